"""Foreign cutouts to batches: one size, one unit, one pixel grid per projection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.errors import Reason
from ripple.imaging.batch import MASK_PLANES, CutoutBatch, TensorBatch
from ripple.imaging.psf.square import odd_square, padded
from ripple.imaging.quality.fill_values import fill_values
from ripple.imaging.quality.measure import usable
from ripple.sky.geometry import Tan, off_sky
from ripple.stages.formats.foreign_cutout import ForeignCutout, Unreadable

#: Statements of a unit that differ by less are the same.
SAME_UNIT = 0.01
#: Column -> value.
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Frame:
    """What all rows share.

    Parameters
    ----------
    bands, size, pixel_scale, classes
        Names of the B bands; `(H, W)`; arcsec; class names by label value.
    resize
        Crop or pad cutouts to `size`; else a cutout of another size is rejected.
    gaussian_psf
        Make kernels from the columns `psf_fwhm_<band>` for cutouts without PSF images.
    unit
        `nJy`, or empty for pixels without a unit.
    factors
        `(B,)` nJy per unit by the zero points that the user gives, or None.
    assume_njy
        Bands that do not say their unit are in nJy.
    sentinels
        Pixel values that mean no data.
    find_fill
        Look for values that repeat where measurements do not, and take them for no data.
    mask
        Whether masks are used.
    """

    bands: tuple[str, ...]
    size: tuple[int, int]
    pixel_scale: float
    resize: bool
    gaussian_psf: bool
    unit: str
    factors: NDArray[np.float64] | None
    assume_njy: bool
    sentinels: tuple[float, ...]
    find_fill: bool
    mask: bool
    classes: tuple[str, ...]


@dataclass(slots=True)
class Rows:
    """Rows of the index in the order of the source, and the pixel grids they lie on.

    Attributes
    ----------
    columns
        Name -> values.
    grids
        Projection in the parent frame `(ra0, dec0, x0, y0, cd...)` -> number that stands for a tract.
    seen
        Id -> number of the row that has it.
    """

    columns: dict[str, list[Any]] = field(default_factory=dict)
    grids: dict[tuple[float, ...], int] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)

    def reject(self, number: int, row: Unreadable) -> None:
        """Add a row that is in no shard."""
        self._add(
            index=number,
            id=row.id,
            ra=np.nan,
            dec=np.nan,
            tract=-1,
            x0=0,
            y0=0,
            dx=0.0,
            dy=0.0,
            label=-1,
            status="rejected",
            reason=row.reason.value,
            detail=row.detail,
            bands="",
            shard=-1,
            row=-1,
            columns={},
            has_variance=False,
            has_psf=False,
            present=0,
        )

    def accept(self, number: int, cutout: ForeignCutout, shard: int, row: int, frame: Frame) -> Row:
        """Add a row of a shard; returns its columns."""
        has = np.isfinite(cutout.image).any(axis=(1, 2))  # (B,)
        tract, x0, y0 = self._placed(cutout)
        # Position minus the centre of the central pixel, in pixels; 0 where the source has no projection.
        dx = dy = 0.0
        if cutout.wcs is not None and np.isfinite(cutout.ra + cutout.dec):
            x, y = (float(v) for v in cutout.wcs.sky_to_pixel(cutout.ra, cutout.dec))
            dx, dy = x - frame.size[1] // 2, y - frame.size[0] // 2
        # A band without a finite pixel is missing, as for `ripple fetch`.
        missing = Reason.MISSING_BAND if has.any() else Reason.NO_DATASET
        return self._add(
            index=number,
            id=cutout.id,
            ra=cutout.ra,
            dec=cutout.dec,
            tract=tract,
            x0=x0,
            y0=y0,
            dx=dx,
            dy=dy,
            label=cutout.label,
            status="ok" if has.all() else "partial" if has.any() else "rejected",
            reason="" if has.all() else missing.value,
            detail="; ".join(cutout.remarks),
            bands="".join(b for b, ok in zip(frame.bands, has, strict=True) if ok),
            shard=shard,
            row=row,
            columns=cutout.columns,
            has_variance=cutout.variance is not None,
            has_psf=frame.gaussian_psf or _has_psf(cutout, has),
            present=int((has << np.arange(len(has))).sum()),  # band_mask: one bit per band
        )

    def _add(self, **values: Any) -> Row:
        for name, value in values.items():
            self.columns.setdefault(name, []).append(value)
        return values

    def _placed(self, cutout: ForeignCutout) -> tuple[int, int, int]:
        """Tract and first pixel. Cutouts on one pixel grid share a number, in order of appearance."""
        wcs = cutout.wcs
        if wcs is None:
            return -1, 0, 0
        if cutout.place is not None:
            # Back in the frame of the tract: all cutouts of one tract then have the same projection.
            tract, x0, y0 = cutout.place
            self.grids.setdefault((wcs.ra0, wcs.dec0, wcs.x0 + x0, wcs.y0 + y0, *wcs.cd), tract)
            return cutout.place
        # Parent pixel = cutout pixel + (x0, y0). The fraction of CRPIX, to 0.001 pixel, distinguishes grids.
        x0, y0 = -int(np.floor(wcs.x0 + 5e-4)), -int(np.floor(wcs.y0 + 5e-4))
        key = (wcs.ra0, wcs.dec0, round(wcs.x0 + x0, 3), round(wcs.y0 + y0, 3), *wcs.cd)
        return self.grids.setdefault(key, len(self.grids)), x0, y0


def _has_psf(cutout: ForeignCutout, has: NDArray[np.bool_]) -> bool:
    """Whether every band with pixels has a PSF."""
    found = cutout.psf or (None,) * len(has)
    return all(kernel is not None for kernel, here in zip(found, has, strict=True) if here)


def checked(cutout: ForeignCutout, seen: dict[str, int], number: int) -> ForeignCutout | Unreadable:
    """The cutout, or why a catalogue would not have it: its id repeats, or its position is on no sky.

    Parameters
    ----------
    cutout
        As read.
    seen
        Id -> row of the rows before; this one is added.
    number
        Of the row.
    """
    if (first := seen.setdefault(cutout.id, number)) != number:
        return Unreadable(cutout.id, f"id {cutout.id} is also that of row {first}", Reason.DUPLICATE)
    ra, dec = cutout.ra, cutout.dec
    if off_sky(ra, dec):
        return Unreadable(cutout.id, f"position ra {ra}, dec {dec} is not on the sky", Reason.BAD_POSITION)
    return replace(cutout, ra=ra + 360.0) if ra < 0 else cutout


def fitted(cutout: ForeignCutout, frame: Frame) -> ForeignCutout | Unreadable:
    """The cutout in the common size and unit, with NaN for fill values, and PSFs as odd squares of sum 1."""
    # Shapes are checked here, row by row: a batch needs them equal, and one odd file must not stop an import.
    if cutout.image.shape[0] != len(frame.bands):
        return Unreadable(cutout.id, f"{cutout.image.shape[0]} bands, expected {len(frame.bands)}")
    image = cutout.image.copy()
    # Sentinels as float32, as the pixels are: -9999.9 is not exactly the same number in double precision.
    image[np.isin(image, np.asarray(frame.sentinels, np.float32)) | ~np.isfinite(image)] = np.nan
    remarks = cutout.remarks + (_remove_fill(image, frame.bands) if frame.find_fill else ())
    factors = _nanojansky(cutout, np.isfinite(image).any(axis=(1, 2)), frame)
    if isinstance(factors, Unreadable):
        return factors
    with np.errstate(over="ignore"):
        image *= factors[:, None, None]
        variance = None if cutout.variance is None else cutout.variance * factors[:, None, None] ** 2
    psf, faults = _odd_squares(cutout.psf, frame.bands)
    cutout = replace(cutout, psf=psf, remarks=remarks + faults)
    shape = image.shape[1:]
    if shape != frame.size and not frame.resize:
        return Unreadable(
            cutout.id, f"{shape[0]}x{shape[1]} pixels, expected {frame.size[0]}x{frame.size[1]}"
        )
    for name, plane in (("variance", variance), ("mask", cutout.bad), ("mask", cutout.mask)):
        if plane is not None and plane.shape != image.shape:
            return Unreadable(cutout.id, f"{name} has shape {plane.shape}, the image {image.shape}")
    if shape == frame.size:
        return replace(cutout, image=image, variance=variance)
    # The object is in pixel (H // 2, W // 2) before and after, also when a side changes from odd to even.
    top, left = (new // 2 - old // 2 for new, old in zip(frame.size, shape, strict=True))
    wcs = cutout.wcs and Tan(
        cutout.wcs.ra0, cutout.wcs.dec0, cutout.wcs.x0 + left, cutout.wcs.y0 + top, cutout.wcs.cd
    )
    place = cutout.place and (cutout.place[0], cutout.place[1] - left, cutout.place[2] - top)
    return replace(
        cutout,
        image=_moved(image, frame.size, top, left, np.nan),
        wcs=wcs,
        place=place,
        variance=None if variance is None else _moved(variance, frame.size, top, left, np.nan),
        bad=None if cutout.bad is None else _moved(cutout.bad, frame.size, top, left, False),
        mask=None if cutout.mask is None else _moved(cutout.mask, frame.size, top, left, 0),
    )


def _remove_fill(image: NDArray[np.float32], bands: Sequence[str]) -> tuple[str, ...]:
    """Put NaN for values that are no measurements into `image` `(B, H, W)`; says what was found, by band."""
    found = []
    for plane, band in zip(image, bands, strict=True):
        for value in fill_values(plane):
            hit = plane == np.float32(value)
            found.append(f"{value:g} in {hit.mean():.0%} of {band} was taken for no data")
            plane[hit] = np.nan
    return tuple(found)


def _nanojansky(
    cutout: ForeignCutout, has: NDArray[np.bool_], frame: Frame
) -> NDArray[np.float32] | Unreadable:
    """`(B,)` nJy per unit of each band; ones where pixels have no unit. `has`: bands with pixels."""
    count = len(frame.bands)
    said = np.full(count, np.nan) if cutout.to_njy is None else cutout.to_njy
    known = np.isfinite(said) & has
    names = np.array(frame.bands)
    if not frame.unit:
        if known.any():
            detail = f"{', '.join(names[known])} say their flux unit, the first rows do not"
            return Unreadable(cutout.id, detail, Reason.WRONG_UNIT)
        return np.ones(count, np.float32)
    given = frame.factors
    if given is None:
        given = np.ones(count) if frame.assume_njy else np.full(count, np.nan)
    elif (apart := known & (np.abs(said / given - 1) > SAME_UNIT)).any():
        k = int(np.argmax(apart))
        return Unreadable(
            cutout.id,
            f"{names[k]}: the file says {said[k]:.6g} nJy per unit, --zero-points {given[k]:.6g}; "
            "--ignore-cards leaves a card out",
            Reason.WRONG_UNIT,
        )
    factors = np.where(np.isfinite(said), said, given)
    if (unknown := has & ~np.isfinite(factors)).any():
        detail = f"{', '.join(names[unknown])} do not say their flux unit"
        return Unreadable(cutout.id, detail, Reason.WRONG_UNIT)
    return np.nan_to_num(factors, nan=1.0).astype(np.float32)


def _odd_squares(
    psf: tuple[NDArray[np.float32] | None, ...] | None, bands: Sequence[str]
) -> tuple[tuple[NDArray[np.float32] | None, ...] | None, tuple[str, ...]]:
    """PSFs as RIPPLe stores them, None for those that cannot be used, and why."""
    if psf is None:
        return None, ()
    found: list[NDArray[np.float32] | None] = []
    faults = []
    for image, band in zip(psf, bands, strict=True):
        try:
            found.append(None if image is None else odd_square(image))
        except ValueError as err:
            found.append(None)
            faults.append(f"the PSF of {band} is not used: {err}")
    return tuple(found), tuple(faults)


def _moved(array: NDArray[Any], size: tuple[int, int], top: int, left: int, fill: Any) -> NDArray[Any]:
    """`array` with its pixel (0, 0) at (top, left) of a larger or smaller frame; `fill` elsewhere."""
    out = np.full((array.shape[0], *size), fill, array.dtype)
    # The part of the new frame that the old one covers.
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + array.shape[1], size[0]), min(left + array.shape[2], size[1])
    out[:, y0:y1, x0:x1] = array[:, y0 - top : y1 - top, x0 - left : x1 - left]
    return out


def cutouts(
    kept: Sequence[tuple[Row, ForeignCutout]], frame: Frame, grids: dict[tuple[float, ...], int]
) -> CutoutBatch:
    """The batch of accepted rows.

    Parameters
    ----------
    kept
        Columns and fitted cutout of each row.
    frame
        What all rows share.
    grids
        As in `Rows`; only those of these rows are used.
    """
    n, shape = len(kept), (len(kept), len(frame.bands), *frame.size)
    image = np.full(shape, np.nan, np.float32)
    variance = np.full(shape, np.nan, np.float32)
    mask = np.zeros(shape, np.uint32)
    # The planes of Rubin's masks, whatever the source had: `preprocess` knows them by name.
    no_data, bad = (np.uint32(1 << MASK_PLANES.index(name)) for name in ("NO_DATA", "BAD"))
    for k, (_, cutout) in enumerate(kept):
        image[k] = cutout.image
        if cutout.variance is not None:
            variance[k] = cutout.variance
        if cutout.bad is not None and frame.mask:
            mask[k][cutout.bad] |= bad
        if cutout.mask is not None and frame.mask:
            mask[k] |= cutout.mask
    # As `ripple fetch` writes them: no pixel is NaN in the image without NO_DATA in the mask.
    mask[np.isnan(image)] |= no_data
    variance[np.isnan(image)] = np.nan
    psf, which = _psfs([cutout for _, cutout in kept], frame)
    catalog = _catalog([row for row, _ in kept], n)
    tracts = set(np.unique(catalog["tract"]).tolist())
    wcs = {t: Tan(k[0], k[1], k[2], k[3], (k[4], k[5], k[6], k[7])) for k, t in grids.items() if t in tracts}
    return CutoutBatch(
        frame.bands, image, variance, mask, MASK_PLANES, psf, which, catalog, wcs, frame.pixel_scale
    )


def _catalog(rows: Sequence[Row], n: int) -> dict[str, NDArray[np.generic]]:
    """The columns of a shard: those that every artefact has, then those of the source."""
    kinds = {
        "index": np.int64,
        "ra": np.float64,
        "dec": np.float64,
        "tract": np.int32,
        "x0": np.int32,
        "y0": np.int32,
        "dx": np.float32,
        "dy": np.float32,
        "label": np.int64,
        "id": np.str_,
    }
    out: dict[str, NDArray[np.generic]] = {
        name: np.array([row[name] for row in rows], kind) for name, kind in kinds.items()
    }
    out["patch"] = np.full(n, -1, np.int32)  # only Rubin's sky maps have patches
    out["band_mask"] = np.array([row["present"] for row in rows], np.uint32)
    more = extra_columns([row["columns"] for row in rows])
    return {**out, **{name: values for name, values in more.items() if name not in out}}


def extra_columns(rows: Sequence[Row]) -> dict[str, NDArray[np.generic]]:
    """Columns that at least one row has; NaN or empty text where a row lacks them."""
    out: dict[str, NDArray[np.generic]] = {}
    for name in sorted({name for row in rows for name in row}):
        values = [row.get(name) for row in rows]
        if any(isinstance(v, str) for v in values):
            out[name] = np.array(["" if v is None else str(v) for v in values], np.str_)
        else:
            out[name] = _numbers(values)
    return out


def _numbers(values: Sequence[float | int | None]) -> NDArray[np.generic]:
    """Floats with NaN, or integers with -1, where a row has none; integers beyond 64 bits as text."""
    if not all(isinstance(v, int | None) for v in values):
        return np.array([np.nan if v is None else v for v in values], float)
    # Integers with gaps do not become floats, which would lose digits.
    whole = [-1 if v is None else v for v in values]
    if min(whole) >= -(2**63) and max(whole) < 2**63:
        return np.array(whole, np.int64)
    if min(whole) >= 0 and max(whole) < 2**64:
        return np.array(whole, np.uint64)
    return np.array(["" if v is None else str(v) for v in values], np.str_)


def _psfs(cutouts: Sequence[ForeignCutout], frame: Frame) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Distinct kernels `(M, K, K)`, and which of them each row and band has, `(n, B)`; -1 for none."""
    n, b = len(cutouts), len(frame.bands)
    sides = [len(kernel) for cutout in cutouts for kernel in cutout.psf or () if kernel is not None]
    # 5 arcsec across, enough for the seeing of a ground-based telescope; always odd.
    round_side = 2 * int(np.ceil(2.5 / frame.pixel_scale)) + 1
    side = max([1, *sides, *([round_side] if frame.gaussian_psf else [])])
    # By their bytes: many sources have one kernel for all rows.
    kernels: dict[bytes, int] = {}
    found: list[NDArray[np.float32]] = []
    which = np.full((n, b), -1, np.int32)
    for k, cutout in enumerate(cutouts):
        for j, band in enumerate(frame.bands):
            kernel = _kernel(cutout, j, band, side, frame)
            if kernel is None:
                continue
            index = kernels.setdefault(kernel.tobytes(), len(found))
            if index == len(found):
                found.append(kernel)
            which[k, j] = index
    return np.array(found, np.float32).reshape(-1, side, side), which


def _kernel(cutout: ForeignCutout, j: int, band: str, side: int, frame: Frame) -> NDArray[np.float32] | None:
    """The PSF of a row in band number `j`, `(side, side)` of sum 1, or None."""
    image = cutout.psf[j] if cutout.psf is not None else None
    if image is not None:
        return padded(image, side)
    width = cutout.columns.get(f"psf_fwhm_{band}") if frame.gaussian_psf else None
    if not isinstance(width, float) or not width > 0:
        return None
    sigma = width / 2.354820045 / frame.pixel_scale  # FWHM = sqrt(8 ln 2) sigma
    axis = np.arange(side) - side // 2
    profile = np.exp(-0.5 * (axis / sigma) ** 2)
    kernel = np.outer(profile, profile)
    return np.asarray(kernel / kernel.sum(), np.float32)


def tensors(batch: CutoutBatch, frame: Frame, unit: str) -> TensorBatch:
    """The batch as tensors with the pixels as they are, for data that are already normalised."""
    n = len(batch)
    return TensorBatch(
        bands=batch.bands,
        image=np.where(np.isnan(batch.image), 0, batch.image).astype(np.float32),
        valid=usable(batch).astype(np.uint8),
        # Every row is accepted: there are no quality measures to judge it by.
        catalog={**batch.catalog, "accept": np.ones(n, np.uint8), "qc": np.zeros(n, np.uint64)},
        pixel_scale=batch.pixel_scale,
        psf_fwhm=float("nan"),
        normalization={
            "method": "none",
            "offset": dict.fromkeys(frame.bands, 0.0),
            "scale": dict.fromkeys(frame.bands, 1.0),
        },
        class_map={str(k): name for k, name in enumerate(frame.classes)},
        unit=unit,
    )
