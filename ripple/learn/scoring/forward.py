"""The one way from images to outputs and probabilities, for everything that prints a number about a row.

Thresholds, calibration, conformal limits, metrics, scores, explanations, robustness and exports see the mean
of the members and, for networks that are not invariant by construction, of eight orientations.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ripple.learn.data.dataset import TensorDataset
from ripple.learn.data.loader import Loader
from ripple.learn.model.contract import Contract
from ripple.learn.model.network import Net
from ripple.learn.model.program import SLICE
from ripple.learn.model.uncertainty import class_probabilities

Float = NDArray[np.float64]


def turned(image: Tensor, k: int) -> Tensor:
    """Images `(n, B, S, S)` after element k of D4: `k % 4` quarter turns, after a flip when k >= 4."""
    return torch.rot90(image.flip(-1) if k >= 4 else image, k % 4, (-2, -1))


def orientations(nets: tuple[Net, ...] | list[Net], *, tta: bool = True) -> list[int]:
    """How many orientations of an image each network sees: one when all would give the same."""
    return [8 if tta and not net.invariant else 1 for net in nets]


def varies(nets: tuple[Net, ...] | list[Net], *, tta: bool = True, dropout: int = 0) -> bool:
    """Whether there is more than one answer about a row, so that their spread means something."""
    return len(nets) > 1 or dropout > 1 or max(orientations(nets, tta=tta)) > 1


def member_outputs(
    nets: tuple[Net, ...] | list[Net], image: Tensor, *, tta: bool = True, dropout: int = 0
) -> tuple[Tensor, Tensor]:
    """Outputs of every member and orientation, and features of every member.

    Parameters
    ----------
    nets
        The members, on the device of `image`.
    image
        `(n, B, S, S)` float32.
    tta
        Eight orientations for members that are not invariant by construction.
    dropout
        Passes with dropout for each of these (Gal & Ghahramani 2016, ICML 48, 1050); 0: one pass without.

    Returns
    -------
    `(n, V, outputs)` float32, V members times orientations; an invariant member counts eight times, so that
    all members weigh the same. `(E, n, F)` float32, features of the upright images.
    """
    found, latent = [], []
    for net, count in zip(nets, orientations(nets, tta=tta), strict=True):
        features = turned_features(net, image, count, together=image.device.type != "cpu")
        latent.append(features[0])
        passes = [one for upright in features for one in _passes(net, upright, dropout)]
        # The eight orientations of an invariant network all give one output: it is computed once.
        found += passes * (8 if tta and count == 1 else 1)
    return torch.stack(found, 1).float(), torch.stack(latent).float()


def turned_features(net: Net, image: Tensor, count: int, *, together: bool) -> list[Tensor]:
    """Features `(n, F)` of the first `count` orientations, each by itself or `together` as one batch.

    One large batch keeps a GPU busy; on a CPU it would fall out of the cache.
    """
    if not together or count == 1:
        return [net.features(turned(image, k) if k else image) for k in range(count)]
    whole = net.features(torch.cat([turned(image, k) for k in range(count)]))
    return list(whole.chunk(count))


def sliced_outputs(
    nets: tuple[Net, ...] | list[Net], image: Tensor, *, tta: bool = True, dropout: int = 0
) -> tuple[Tensor, Tensor]:
    """`member_outputs`, on CPUs of a few images at a time: the same numbers, sooner."""
    if image.device.type != "cpu" or len(image) <= SLICE:
        return member_outputs(nets, image, tta=tta, dropout=dropout)
    parts = [member_outputs(nets, part, tta=tta, dropout=dropout) for part in image.split(SLICE)]
    values, latent = zip(*parts, strict=True)
    return torch.cat(values), torch.cat(latent, 1)


def _passes(net: Net, features: Tensor, dropout: int) -> list[Tensor]:
    """Outputs without dropout, or of `dropout` passes; features are computed once, masks are repeatable."""
    if not dropout:
        return [net.head(features)]
    keep = 1 - net.dropout.p
    seeded = torch.Generator().manual_seed(0)
    # One mask for all rows: the score of a row does not depend on its batch.
    masks = (torch.rand(dropout, features.shape[1], generator=seeded) < keep).to(features)  # (P, F)
    # Divided by `keep`, as torch does in training, so that the mean activation stays the same.
    return [net.head(features * mask / keep) for mask in masks]


@torch.inference_mode()
def answered(
    nets: tuple[Net, ...] | list[Net],
    dataset: TensorDataset,
    rows: NDArray[np.int64] | None,
    device: torch.device,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`member_outputs` of rows of a dataset, in their order; None for all accepted rows.

    Returns
    -------
    `(n, V, outputs)` and `(E, n, F)`, float32; nothing along n when there are no rows.
    """
    values, features = [], []
    for batch in Loader(dataset, rows=rows, batch_size=256, shuffle=False, device=device).epoch(0):
        found, latent = sliced_outputs(nets, batch["image"])
        values.append(found.cpu().numpy())
        features.append(latent.cpu().numpy())
    if not values:
        return np.zeros((0, 1, 1), np.float32), np.zeros((len(nets), 0, 1), np.float32)
    return np.concatenate(values), np.concatenate(features, axis=1)


def mean_outputs(
    nets: tuple[Net, ...] | list[Net], dataset: TensorDataset, rows: NDArray[np.int64], device: torch.device
) -> Float:
    """Mean outputs `(n, outputs)` over members and orientations."""
    return average(answered(nets, dataset, rows, device)[0])


def average(values: NDArray[np.floating]) -> Float:
    """Mean `(n, outputs)` of `(n, V, outputs)`: the logits or quantities that all else is made from."""
    return np.asarray(values, np.float64).mean(1)


def probabilities(contract: Contract, mean: Float) -> Float:
    """Calibrated probabilities `(n, K)` of mean outputs `(n, outputs)`, at the shares of the validation rows.

    What conformal sets and decisions are made from; `(n, 0)` for regression.
    """
    match contract.output:
        case "lens":
            return class_probabilities(contract.calibration.probability(mean[:, 0]))
        case "classes":
            return contract.class_calibration.probability(mean)
        case "regression":
            return np.zeros((len(mean), 0))
