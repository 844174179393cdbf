"""The names of the networks and what describes one; this module does not import torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

#: Networks that were tried on cutouts; every other name is that of a network of timm.
NAMES = (
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
)
#: Name of networks that are an ONNX file.
ONNX = "onnx"
Stem = Literal["small", "standard"]
#: What a name of timm looks like: `resnet50`, `convnext_nano.in12k`.
TIMM_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)?")


@dataclass(frozen=True, slots=True)
class Architecture:
    """Everything that determines the shapes of the weights.

    Parameters
    ----------
    name
        One of `NAMES`, that of a network of timm, or `onnx`.
    bands
        Number of input channels B.
    size
        Side of the input, pixels.
    outputs
        Width of the head: 1 for lens finding, K classes, or Q regressed quantities.
    stem
        "standard" is the network as published, made for 224 px; "small" keeps more resolution for cutouts
        of about 64 px (patches of 2 for ConvNeXt, 8 for `vit_small`, no max-pool after the first layer of a
        ResNet; nothing else has a small one).
    width
        Fields of the first layer of `d4cnn`, unused otherwise.
    dropout
        Fraction of features dropped before the head in training; no weight depends on it.
    gives, lens
        Of `ONNX` programs: what their outputs are, and which of two means a lens; of a single one 0 says that
        it is larger for what is none.
    """

    name: str = "d4cnn"
    bands: int = 3
    size: int = 64
    outputs: int = 1
    stem: Stem = "small"
    width: int = 8
    dropout: float = 0.0
    gives: Literal["logits", "probabilities"] = "logits"
    lens: int = 1

    @property
    def is_program(self) -> bool:
        """Whether the network is an ONNX program of others, which is run as it is."""
        return self.name == ONNX
