"""Colour pictures of rows of tensor artefacts, made from the cutouts behind them when these still exist."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.errors import InputError, IntegrityError
from ripple.imaging.colour import lupton_rgb, sky_noise
from ripple.imaging.normalize import denormalize
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.shard_reader import map_tensors, unpack_cutouts
from ripple.storage.shards import agreeing


def colour_pictures(
    sources: list[Artefact],
    shard: NDArray[np.int64],
    row: NDArray[np.int64],
    *,
    stretch: float,
    softening: float,
) -> list[NDArray[np.uint8]]:
    """Colour pictures of rows, all with the same stretch, so that colours and depths can be compared.

    Parameters
    ----------
    sources
        Tensor artefacts, in the order in which `shard` counts their shards.
    shard, row
        `(n,)` shard number over all sources, and row in that shard.
    stretch
        Linear range in units of the sky noise of all these rows.
    softening
        Q of the asinh.

    Returns
    -------
    `n` arrays `(H, W, 3)` uint8.
    """
    places = [(artefact, k) for artefact in sources for k in range(len(artefact.shards))]
    cutouts = {artefact.directory: _cutouts_of(artefact) for artefact in sources}
    fluxes: list[NDArray[np.float32]] = [np.zeros((0, 0, 0), np.float32)] * len(shard)
    bands: tuple[str, ...] = ()
    # Each shard is opened once, whatever the order of the rows.
    rows = {int(k): np.flatnonzero(shard == k) for k in np.unique(shard)}

    def read(k: int) -> tuple[NDArray[np.float32], tuple[str, ...]]:
        artefact, number = places[k]
        behind = cutouts[artefact.directory]
        if behind is None:
            return _from_tensors(artefact, number, row[rows[k]])
        return _from_cutouts(behind, number, row[rows[k]])

    # Most of the time goes into checksums, which let other threads run.
    with ThreadPoolExecutor(4) as readers:
        for here, found in zip(rows.values(), readers.map(read, rows), strict=True):
            flux, bands = found
            for place, image in zip(here.tolist(), flux, strict=True):
                fluxes[place] = image
    if not fluxes:
        return []
    # Sources may differ in size; a few hundred rows give the noise well enough for a picture.
    pool = [f for f in fluxes if f.shape == fluxes[0].shape]
    noise = sky_noise(np.stack(pool[:400]), bands)
    pictures: list[NDArray[np.uint8]] = [np.zeros((0, 0, 3), np.uint8)] * len(fluxes)
    shapes = np.array([f.shape for f in fluxes])
    for shape in np.unique(shapes, axis=0):
        alike = np.flatnonzero((shapes == shape).all(axis=1)).tolist()
        drawn = lupton_rgb(np.stack([fluxes[k] for k in alike]), bands, stretch=stretch * noise, q=softening)
        for k, picture in zip(alike, drawn, strict=True):
            pictures[k] = picture
    return pictures


def _cutouts_of(artefact: Artefact) -> Artefact | None:
    """The cutouts that tensors were made from, if they are in a directory beside the tensors and intact.

    A manifest names its input by digest, not by path, because directories are moved.
    """
    digest = artefact.inputs.get("cutouts")
    if digest is None:
        return None
    # At most a hundred neighbours are opened: the tensors may lie in a large shared directory.
    for path in sorted(artefact.directory.absolute().parent.glob("*/manifest.json"))[:100]:
        try:
            found = open_artefact(path.parent)
        except (InputError, IntegrityError):
            continue
        if found.digest == digest:
            return found
    return None


def _from_cutouts(
    artefact: Artefact, k: int, rows: NDArray[np.int64]
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Fluxes `(n, B, H, W)` in nJy of rows of a shard of cutouts, without margins, and the bands."""
    mapped: Any = np.memmap(artefact.verified_path(k), np.uint8, mode="r")
    batch = agreeing(artefact, k, unpack_cutouts(mapped))  # views: only these rows are read
    margin = artefact.attributes.get("margin", 0)
    image = np.asarray(batch.image[rows], np.float32)
    inner = slice(margin, -margin or None)  # -0 would leave nothing
    return image[:, :, inner, inner], batch.bands


def _from_tensors(
    artefact: Artefact, k: int, rows: NDArray[np.int64]
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Fluxes `(n, B, H, W)` of rows of a shard of tensors, with the normalisation undone, and the bands."""
    batch = map_tensors(artefact.verified_path(k))
    chosen = replace(
        batch,
        image=batch.image[rows],
        valid=batch.valid[rows],
        catalog={name: np.asarray(values)[rows] for name, values in batch.catalog.items()},
    )
    if "offset" not in batch.normalization and "norm_offset" not in batch.catalog:
        return chosen.image.astype(np.float32), batch.bands  # normalised elsewhere, in an unknown way
    return denormalize(chosen), batch.bands
