"""Colour pictures of rows of tensor artefacts, made from the cutouts behind them when these still exist."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.errors import InputError, IntegrityError
from ripple.imaging.normalize import denormalize
from ripple.imaging.psf.shape import fwhm
from ripple.report.band_colours import Channels, channels, measured_noise, pictures
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.shard_reader import map_tensors, unpack_cutouts
from ripple.storage.shards import agreeing


@dataclass(frozen=True, slots=True)
class _Fluxes:
    """Rows of one shard: `(n, B, H, W)` fluxes, the bands, `(n, B)` FWHM in arcsec, NaN when unknown, and
    arcsec per pixel.
    """

    image: NDArray[np.float32]
    bands: tuple[str, ...]
    width: NDArray[np.float64]
    pixel_scale: float


@dataclass(frozen=True, slots=True)
class RowFluxes:
    """Fluxes of rows `(B, H, W)`, bands, their typical FWHM `(B,)` in arcsec, and arcsec per pixel."""

    image: list[NDArray[np.float32]]
    bands: tuple[str, ...]
    width: NDArray[np.float64]
    pixel_scale: float


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures of rows, `(H, W, 3)` uint8 each, and the legend: which bands are which colours."""

    images: list[NDArray[np.uint8]]
    legend: str


def colour_pictures(
    sources: list[Artefact],
    shard: NDArray[np.int64],
    row: NDArray[np.int64],
    *,
    stretch: float,
    softening: float,
) -> list[NDArray[np.uint8]]:
    """The images of `pictures_of_rows`."""
    return pictures_of_rows(sources, shard, row, stretch=stretch, softening=softening).images


def pictures_of_rows(
    sources: list[Artefact],
    shard: NDArray[np.int64],
    row: NDArray[np.int64],
    *,
    stretch: float,
    softening: float,
) -> Pictures:
    """Colour pictures of rows, all with the same stretch, so that colours and depths can be compared.

    Parameters
    ----------
    sources
        Tensors or cutouts, in the order in which `shard` counts their shards.
    shard, row
        `(n,)` shard number over all sources, and row in that shard.
    stretch
        Linear range in units of the sky noise of all these rows.
    softening
        Q of the asinh.

    Returns
    -------
    pictures
        `n` images; where `channels` has a grey band, it is on the right of the colours.
    """
    found = fluxes_of_rows(sources, shard, row)
    if not found.image:
        return Pictures([], "")
    chosen = channels(found.bands, found.width)
    images = _drawn(found.image, chosen, stretch=stretch, softening=softening)
    return Pictures(images, chosen.text(found.bands))


def fluxes_of_rows(sources: list[Artefact], shard: NDArray[np.int64], row: NDArray[np.int64]) -> RowFluxes:
    """Fluxes of rows: of the cutouts behind tensors if these still exist, else with normalisation undone.

    Parameters
    ----------
    sources, shard, row
        As for `pictures_of_rows`.

    Returns
    -------
    fluxes
        `n` images in the order of `shard`; without rows, no bands.
    """
    places = [(artefact, k) for artefact in sources for k in range(len(artefact.shards))]
    cutouts = {artefact.directory: _cutouts_of(artefact) for artefact in sources}
    # Each shard is opened once, whatever the order of the rows.
    rows = {int(k): np.flatnonzero(shard == k) for k in np.unique(shard)}

    def read(k: int) -> _Fluxes:
        artefact, number = places[k]
        behind = cutouts[artefact.directory]
        if behind is None:
            return _from_tensors(artefact, number, row[rows[k]])
        return _from_cutouts(behind, number, row[rows[k]])

    # Most of the time goes into checksums, which let other threads run.
    with ThreadPoolExecutor(4) as readers:
        read_all = list(readers.map(read, rows))
    if not read_all:
        return RowFluxes([], (), np.zeros(0), np.nan)
    fluxes: list[NDArray[np.float32]] = [np.zeros((0, 0, 0), np.float32)] * len(shard)
    for here, found in zip(rows.values(), read_all, strict=True):
        for place, image in zip(here.tolist(), found.image, strict=True):
            fluxes[place] = image
    width = _typical(np.concatenate([found.width for found in read_all]))
    return RowFluxes(fluxes, read_all[-1].bands, width, read_all[-1].pixel_scale)


def _typical(width: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median FWHM of each band over rows `(n, B)`, NaN where no row has one."""
    known = np.ma.masked_invalid(width)
    return np.ma.filled(np.ma.median(known, axis=0).astype(np.float64), np.nan)


def _drawn(
    fluxes: list[NDArray[np.float32]], chosen: Channels, *, stretch: float, softening: float
) -> list[NDArray[np.uint8]]:
    """A picture of each row, rows of one size at a time."""
    # Sources may differ in size; a few hundred rows give the noise well enough for a picture.
    pool = [f for f in fluxes if f.shape == fluxes[0].shape]
    noise = measured_noise(np.stack(pool[:400]), chosen)
    out: list[NDArray[np.uint8]] = [np.zeros((0, 0, 3), np.uint8)] * len(fluxes)
    shapes = np.array([f.shape for f in fluxes])
    for shape in np.unique(shapes, axis=0):
        alike = np.flatnonzero((shapes == shape).all(axis=1)).tolist()
        image = np.stack([fluxes[k] for k in alike])
        for k, picture in zip(
            alike, pictures(image, chosen, noise, stretch=stretch, softening=softening), strict=True
        ):
            out[k] = picture
    return out


def _cutouts_of(artefact: Artefact) -> Artefact | None:
    """The cutouts that tensors were made from, if they are in a directory beside the tensors and intact.

    A manifest names its input by digest, not by path, because directories are moved.
    """
    if artefact.kind == "cutouts":
        return artefact
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


def _from_cutouts(artefact: Artefact, k: int, rows: NDArray[np.int64]) -> _Fluxes:
    """Rows of a shard of cutouts in nJy, without margins."""
    mapped: Any = np.memmap(artefact.verified_path(k), np.uint8, mode="r")
    batch = agreeing(artefact, k, unpack_cutouts(mapped))  # views: only these rows are read
    margin = artefact.attributes.get("margin", 0)
    image = np.asarray(batch.image[rows], np.float32)
    inner = slice(margin, -margin or None)  # -0 would leave nothing
    which = np.asarray(batch.psf_index[rows])
    # -1: no kernel. Pixels to arcsec.
    used, place = np.unique(which, return_inverse=True)
    widths = np.full(len(used), np.nan)
    widths[used >= 0] = fwhm(batch.psf[used[used >= 0]]) * batch.pixel_scale
    return _Fluxes(
        image[:, :, inner, inner], batch.bands, widths[place].reshape(which.shape), batch.pixel_scale
    )


def _from_tensors(artefact: Artefact, k: int, rows: NDArray[np.int64]) -> _Fluxes:
    """Rows of a shard of tensors with the normalisation undone."""
    batch = map_tensors(artefact.verified_path(k))
    chosen = replace(
        batch,
        image=batch.image[rows],
        valid=batch.valid[rows],
        catalog={name: np.asarray(values)[rows] for name, values in batch.catalog.items()},
    )
    # Matched to one width, or not known.
    width = np.full((len(rows), len(batch.bands)), batch.psf_fwhm, np.float64)
    if "offset" not in batch.normalization and "norm_offset" not in batch.catalog:
        # Normalised elsewhere, in an unknown way.
        return _Fluxes(chosen.image.astype(np.float32), batch.bands, width, batch.pixel_scale)
    return _Fluxes(denormalize(chosen), batch.bands, width, batch.pixel_scale)
