"""Tensors back to fluxes, whichever way they came: a batch, or what `TensorDataset` gives a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.errors import ConfigError
from ripple.imaging import normalize
from ripple.imaging.batch import TensorBatch
from ripple.storage.artefact import open_artefact
from ripple.storage.shard_reader import map_tensors


def denormalize(batch: TensorBatch | Mapping[str, Any], dataset: Any = None) -> NDArray[np.float32]:
    """Tensors back to fluxes.

    Parameters
    ----------
    batch
        As read from a tensor shard; or a mapping with `image` `(N, B, H, W)` and `row` `(N,)` as a loader of
        `TensorDataset` gives it, or one item of the dataset, without the first axis. Augmented images may be
        given too: turning and shifting does not change what a pixel means.
    dataset
        The `TensorDataset` that the mapping came from: it knows how each row was normalised.

    Returns
    -------
    image
        Like the image, float32 nJy; zeros in bands that are missing.

    Raises
    ------
    ConfigError
        A mapping without its dataset.
    DataError
        The tensors do not state how they were normalised.

    Examples
    --------
    >>> dataset = ripple.TensorDataset("tensors")  # doctest: +SKIP
    >>> ripple.denormalize(dataset[7], dataset)  # doctest: +SKIP
    """
    if isinstance(batch, TensorBatch):
        return normalize.denormalize(batch)
    if dataset is None:
        raise ConfigError(
            "a row of a TensorDataset does not say how it was normalised",
            hint="give the dataset too: ripple.denormalize(batch, dataset)",
        )
    image, rows = _array(batch["image"]), np.atleast_1d(_array(batch["row"])).astype(np.int64)
    planes = image[None] if image.ndim == 3 else image
    shards = [(artefact, k) for artefact in dataset.artefacts for k in range(len(artefact.shards))]
    # First global row number of each shard.
    starts = np.cumsum([0, *(artefact.shards[k].rows for artefact, k in shards)])
    which = np.searchsorted(starts, rows, side="right") - 1
    out = np.empty(planes.shape, np.float32)
    for number in np.unique(which).tolist():
        here = which == number
        artefact, k = shards[number]
        whole = _shard(artefact.directory.absolute(), artefact.digest, k)
        inside = rows[here] - starts[number]
        catalog = {name: np.asarray(values)[inside] for name, values in whole.catalog.items()}
        part = replace(whole, image=planes[here], valid=whole.valid[inside], catalog=catalog, variance=None)
        out[here] = normalize.denormalize(part)
    return out.reshape(image.shape)


# A loader asks for rows of the same few shards again and again.
@lru_cache(maxsize=8)
def _shard(directory: Path, digest: str, k: int) -> TensorBatch:
    return map_tensors(open_artefact(directory, "tensors").verified_path(k))


def _array(value: Any) -> NDArray[Any]:
    """A tensor of PyTorch, on whatever device, or an array, as an array."""
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
