"""The names of the networks and what describes one; this module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Name = Literal[
    "d4cnn",
    "resnet18",
    "resnet34",
    "efficientnet_b0",
    "efficientnet_b2",
    "densenet121",
    "vit_small",
    "convnextv2_atto",
    "convnextv2_femto",
    "convnextv2_pico",
    "convnextv2_nano",
    "convnextv2_tiny",
]
Stem = Literal["small", "standard"]
NAMES: tuple[str, ...] = get_args(Name)


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything that determines the shapes of the weights.

    Parameters
    ----------
    name
        One of `NAMES`.
    bands
        Number of input channels B.
    size
        Side of the input, pixels.
    outputs
        Width of the head: 1 for lens finding, K classes, or Q regressed quantities.
    stem
        "standard" is the network as published, made for 224 px; "small" keeps more resolution for cutouts
        of about 64 px (patches of 2 for ConvNeXt, 8 for ViT, no max-pool after the first layer of a ResNet).
    width
        Fields of the first layer of `d4cnn`, unused otherwise.
    dropout
        Fraction of features dropped before the head in training; no weight depends on it.
    """

    name: Name = "d4cnn"
    bands: int = 3
    size: int = 64
    outputs: int = 1
    stem: Stem = "small"
    width: int = 8
    dropout: float = 0.0
