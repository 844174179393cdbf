"""Normalise fluxes for a network, and convert them back.

Every method is `y = f((x - offset) / scale)`, with f one of identity, asinh, signed log, signed square root,
or the Lupton colour mapping. Offsets and scales are kept (columns `norm_offset`, `norm_scale` of the catalog,
or the batch's `normalization`), nothing is clipped, so every tensor can be turned back into nJy.

`scope` says what shares constants. `row`, the default: all bands of a row, so that colours survive; `band`:
each plane by itself, which published networks may need and which destroys colour; `dataset`: constants
per band for all rows, from a first pass over training rows. Rows far beyond the others (`OUTLIER`) have no
part in these: one row of 1e12 nJy would move the offset so far that float32 could not hold the other rows.

What comes back is good to 1e-5 of the flux; with linear methods, where the flux is smaller than the offset,
to 1e-7 of the offset. With `minmax` the offset is the faintest good pixel, and the range ends at the
brightest: one pixel of 1e12 nJy, unless masked, leaves the other values near 0, but they can be turned back.

`transform` and `invert` take numpy arrays or torch tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ripple.errors import DataError
from ripple.imaging.batch import TensorBatch
from ripple.imaging.convolve import namespace

Method = Literal["asinh", "minmax", "zscore", "log", "sqrt", "percentile", "zscale", "lupton", "none"]
Scope = Literal["row", "band", "dataset"]
Float = NDArray[np.float32]

#: Methods whose scale is a noise level times `softening`; the others take a range of pixel values.
SOFTENED: frozenset[str] = frozenset({"asinh", "log", "sqrt", "lupton"})
# The softening Q of Lupton et al. 2004; `colour.lupton_rgb` uses the same.
LUPTON_Q = 8.0
PERCENTILES = (0.5, 99.5)
ZSCALE_CONTRAST = 0.25
SMALLEST_SCALE = 1e-12  # nJy; anything smaller would turn noise of the arithmetic into signal
CHUNK = 64  # rows whose pixels are sorted at a time, which takes 24 bytes for each pixel
# Statistics of `Accumulator` that are averaged over rows; extremes are not.
_AVERAGED = ("noise", "mean", "percentile_low", "percentile_high", "zscale_low", "zscale_high")


# A row has no part in constants of the data set when one of these is beyond so many times the usual `std`.
# The brightest good pixels are not among them: stars reach thousands.
_JUDGED, OUTLIER = ("noise", "mean", "std", "low", "percentile_low", "zscale_low"), 1e3
REFERENCE_ROWS = 4096  # the usual `std` is the median of the first rows: their statistics fit into memory


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of the good pixels of each plane, all `(N, B)` float32 in nJy; NaN without good pixels.

    Parameters
    ----------
    noise
        Sky noise.
    mean, std
        Of the good pixels, after clipping at 5 sigma around the median for `std`.
    low, high
        Smallest and largest good pixel.
    percentile_low, percentile_high
        See `PERCENTILES`.
    zscale_low, zscale_high
        IRAF zscale: the line through the sorted middle pixels, divided by the contrast, about the median.
    """

    noise: Float
    mean: Float
    std: Float
    low: Float
    high: Float
    percentile_low: Float
    percentile_high: Float
    zscale_low: Float
    zscale_high: Float


def statistics(image: NDArray[np.floating], good: NDArray[np.bool_], noise: Float) -> Statistics:
    """Statistics of planes on their good pixels.

    Parameters
    ----------
    image, good
        `(N, B, H, W)`.
    noise
        `(N, B)` sky noise, measured elsewhere.
    """
    parts = [
        _statistics(image[at : at + CHUNK], good[at : at + CHUNK], noise[at : at + CHUNK])
        # Once for no rows: the columns are there too.
        for at in range(0, max(len(image), 1), CHUNK)
    ]
    names = [one.name for one in fields(Statistics)]
    return Statistics(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _statistics(image: NDArray[np.floating], good: NDArray[np.bool_], noise: Float) -> Statistics:
    n, b = image.shape[:2]
    size = image.shape[2] * image.shape[3]
    # Bad pixels sort to the end as inf, so quantiles are positions among the first `count`.
    flat = np.where(good, image, np.inf).reshape(n, b, size).astype(np.float32)
    flat.sort(axis=-1)
    count = np.count_nonzero(good, axis=(2, 3))

    def at(fraction: float) -> Float:
        place = np.clip(np.rint(fraction * (count - 1)).astype(np.int64), 0, flat.shape[-1] - 1)
        value = np.take_along_axis(flat, place[..., None], -1)[..., 0]
        return np.where(count > 0, value, np.nan).astype(np.float32)

    low, middle, high = at(0.0), at(0.5), at(1.0)
    # Half the interquartile range times 1.4826 is sigma of a Gaussian.
    spread = 1.4826 * np.maximum(at(0.75) - at(0.25), 0) / 2
    limit = 5 * np.where(spread > 0, spread, np.inf)
    with np.errstate(invalid="ignore"):
        core = np.abs(flat - middle[..., None]) <= limit[..., None]
    core &= np.isfinite(flat)
    used = np.maximum(core.sum(axis=-1), 1)
    values = np.where(core, flat, 0).astype(np.float64)
    mean = values.sum(axis=-1) / used
    deviation = np.where(core, flat - mean[..., None], 0).astype(np.float64)
    std = np.sqrt((deviation**2).sum(axis=-1) / used)
    # The slope of the sorted middle half stands for IRAF's fitted line: pixel value against rank.
    slope = 2 * (at(0.75) - at(0.25)) / ZSCALE_CONTRAST
    blank = count == 0
    return Statistics(
        noise=np.asarray(noise, np.float32),
        mean=np.where(blank, np.nan, mean).astype(np.float32),
        std=np.where(blank, np.nan, std).astype(np.float32),
        low=low,
        high=high,
        percentile_low=at(PERCENTILES[0] / 100),
        percentile_high=at(PERCENTILES[1] / 100),
        zscale_low=np.maximum(low, middle - slope / 2),
        zscale_high=np.minimum(high, middle + slope / 2),
    )


def constants_of(
    stats: Statistics | None, noise: Float, method: Method, scope: Scope, softening: float
) -> tuple[Float, Float]:
    """Offset and scale of each plane, `(N, B)` float32 in nJy, finite, scale positive.

    Parameters
    ----------
    stats
        Needed by methods that are not in `SOFTENED`.
    noise
        `(N, B)` sky noise in nJy; NaN where a band is missing.
    method, scope
        See the module; constants of scope `dataset` come from `Accumulator` instead.
    softening
        Noise levels per unit of the argument of asinh, log and square root.

    Raises
    ------
    DataError
        `stats` is missing.
    """
    if method == "none":
        return np.zeros_like(noise), np.ones_like(noise)
    if method in SOFTENED:
        # The median band: one noisy band must not set the scale of a whole row.
        scale = _share_between_bands(noise, scope, np.nanmedian) * np.float32(softening)
        return np.zeros_like(noise), _usable_scale(scale)
    if stats is None:
        raise DataError(f"normalisation {method!r} needs the statistics of the pixels")
    if method == "zscore":
        offset, scale = (
            _share_between_bands(stats.mean, scope, np.nanmean),
            _share_between_bands(stats.std, scope, np.nanmean),
        )
    else:
        # Lowest and highest over all bands, so that no band leaves the range.
        low, high = _range(stats, method)
        offset, top = (
            _share_between_bands(low, scope, np.nanmin),
            _share_between_bands(high, scope, np.nanmax),
        )
        scale = top - offset
    return np.nan_to_num(offset).astype(np.float32), _usable_scale(scale)


def _range(stats: Statistics, method: str) -> tuple[Float, Float]:
    if method == "minmax":
        return stats.low, stats.high
    if method == "percentile":
        return stats.percentile_low, stats.percentile_high
    return stats.zscale_low, stats.zscale_high


def _share_between_bands(values: Float, scope: Scope, combine: Any) -> Float:
    """One value per row for all its bands, unless each band has its own."""
    if scope == "band":
        return values
    some = np.isfinite(values).any(axis=1)
    out = np.full(len(values), np.nan, np.float32)
    out[some] = combine(np.where(np.isfinite(values[some]), values[some], np.nan), axis=1)
    return np.broadcast_to(out[:, None], values.shape).copy()


def _usable_scale(scale: Float) -> Float:
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(scale) & (scale > SMALLEST_SCALE), scale, 1.0).astype(np.float32)


@dataclass(slots=True)
class Accumulator:
    """Streaming statistics over the training rows of a data set, per band.

    Quantities are means and extremes of per-row statistics, without outliers: they need one pass and little
    memory, and rows are added in index order, so the result does not depend on how the work was divided.

    Parameters
    ----------
    bands
        Names of the B bands.
    rows, outliers
        Rows added, and those of them that were left out in some band; outliers count once `constants` ran.
    totals, counts
        Sums and extremes by statistic, and the rows in them, `(B,)` float64.
    limit
        `(B,)` float64 nJy beyond which a row is an outlier; None until enough rows were seen.
    waiting
        Rows until then.
    """

    bands: tuple[str, ...]
    rows: int = 0
    outliers: int = 0
    totals: dict[str, NDArray[np.float64]] | None = None
    counts: NDArray[np.float64] | None = None
    limit: NDArray[np.float64] | None = None
    waiting: list[Statistics] = field(default_factory=list)

    def add(self, stats: Statistics) -> None:
        """Add rows, in order."""
        self.rows += len(stats.noise)
        if self.limit is not None:
            self._sum(stats, self.limit)
            return
        self.waiting.append(stats)
        if self.rows >= REFERENCE_ROWS:
            self._settle()

    def _settle(self) -> None:
        """Find the limit from the rows that wait, and add them."""
        std = np.concatenate([stats.std for stats in self.waiting])[:REFERENCE_ROWS].astype(np.float64)
        # Bands without any pixel, or flat ones, have no usual spread: nothing is an outlier.
        usual = np.nanmedian(np.where(np.isfinite(std).any(axis=0), std, 0.0), axis=0)
        self.limit = np.where(usual > 0, OUTLIER * usual, np.inf)
        for stats in self.waiting:
            self._sum(stats, self.limit)
        self.waiting = []

    def _sum(self, stats: Statistics, limit: NDArray[np.float64]) -> None:
        b = len(self.bands)
        known = np.isfinite(stats.noise) & np.isfinite(stats.mean)
        usual = np.all([~(np.abs(getattr(stats, name)) > limit) for name in _JUDGED], axis=0)
        self.outliers += int((known & ~usual).any(axis=1).sum())
        if self.totals is None or self.counts is None:
            zero = np.zeros(b)
            self.totals = {k: zero.copy() for k in (*_AVERAGED, "square")}
            self.totals |= {"low": np.full(b, np.inf), "high": np.full(b, -np.inf)}
            self.counts = np.zeros(b)
        # Row by row in order: sums in another order differ in the last bit.
        for row in range(len(stats.noise)):
            ok = known[row] & usual[row]
            self.counts += ok
            for name in _AVERAGED:
                self.totals[name] += np.where(ok, getattr(stats, name)[row].astype(np.float64), 0)
            # Mean square of the row, from which the spread over all rows follows.
            second = stats.std[row].astype(np.float64) ** 2 + stats.mean[row].astype(np.float64) ** 2
            self.totals["square"] += np.where(ok, second, 0)
            self.totals["low"] = np.where(
                ok, np.minimum(self.totals["low"], stats.low[row]), self.totals["low"]
            )
            self.totals["high"] = np.where(
                ok, np.maximum(self.totals["high"], stats.high[row]), self.totals["high"]
            )

    def constants(self, method: Method, softening: float) -> tuple[dict[str, float], dict[str, float]]:
        """Offset and scale by band, nJy; one scale for all bands when softened.

        Raises
        ------
        DataError
            No training row has a usable plane in some band.
        """
        if self.waiting:
            self._settle()
        if self.totals is None or self.counts is None or (self.counts == 0).any():
            raise DataError("no training row with good pixels in every band", hint="choose --scope row")
        t = {k: v / self.counts for k, v in self.totals.items() if k not in ("low", "high")}
        b = len(self.bands)
        offset, scale = np.zeros(b), np.ones(b)
        if method in SOFTENED:
            scale = np.full(b, float(np.median(t["noise"])) * softening)
        elif method == "zscore":
            offset, scale = t["mean"], np.sqrt(np.maximum(t["square"] - t["mean"] ** 2, 0))
        elif method == "minmax":
            offset, scale = self.totals["low"], self.totals["high"] - self.totals["low"]
        elif method in ("percentile", "zscale"):
            offset, scale = t[f"{method}_low"], t[f"{method}_high"] - t[f"{method}_low"]
        # Constants are kept as float32 values: what is stored is what is used.
        safe = _usable_scale(scale.astype(np.float32))
        return (
            {band: float(np.float32(v)) for band, v in zip(self.bands, offset, strict=True)},
            {band: float(v) for band, v in zip(self.bands, safe, strict=True)},
        )


def transform(image: Any, offset: Any, scale: Any, method: Method) -> Any:
    """Normalise planes.

    Parameters
    ----------
    image
        `(N, B, H, W)` nJy, finite; numpy or torch, float32.
    offset, scale
        `(N, B)` of the same library.
    method
        See the module.

    Returns
    -------
    normalised
        `(N, B, H, W)`.
    """
    xp = namespace(image)
    # A compiled loop, the same to 3e-7: numpy's arcsinh costs more than all else here.
    if method == "asinh" and xp is np and image.dtype == np.float32:
        from ripple.imaging import loops

        out = np.empty(image.shape, np.float32)
        planes = (np.ascontiguousarray(a, np.float32) for a in (image, offset, scale))
        loops.asinh(*planes, 1.0, out)
        return out
    x = image - offset[..., None, None]  # (N, B, H, W)
    x = x / scale[..., None, None]
    if method == "asinh":
        return xp.arcsinh(x)
    if method == "log":
        return xp.sign(x) * xp.log1p(abs(x))
    if method == "sqrt":
        return xp.sign(x) * xp.sqrt(abs(x))
    if method == "lupton":
        # One factor per pixel for all bands: ratios of bands, the colours, stay.
        intensity = LUPTON_Q * x.mean(axis=1)[:, None]
        return x * _safe_ratio(xp.arcsinh(intensity), intensity)
    return x


def invert(image: Any, offset: Any, scale: Any, method: Method) -> Any:
    """The inverse of `transform`; computed in float64 by numpy callers for 1e-5 at any flux."""
    xp = namespace(image)
    y = image
    if method == "asinh":
        y = xp.sinh(y)
    elif method == "log":
        y = xp.sign(y) * xp.expm1(abs(y))
    elif method == "sqrt":
        y = y * abs(y)
    elif method == "lupton":
        # mean(y) = asinh(Q I) / Q, so Q I = sinh(Q mean(y)).
        argument = LUPTON_Q * y.mean(axis=1)[:, None]
        y = y * _safe_ratio(xp.sinh(argument), argument)
    return y * scale[..., None, None] + offset[..., None, None]


def _safe_ratio(top: Any, bottom: Any) -> Any:
    """`top / bottom`, 1 where both vanish."""
    xp = namespace(bottom)
    small = abs(bottom) < 1e-6
    one = xp.zeros_like(bottom) + 1
    return xp.where(small, one, top / xp.where(small, one, bottom))


def columns(
    offset: Float, scale: Float, scope: Scope, bands: tuple[str, ...]
) -> dict[str, NDArray[np.generic]]:
    """Catalog columns that keep the constants: `norm_scale`; with scope `band` `norm_scale_g`, ..."""
    if scope == "dataset":
        return {}
    if scope == "row":
        return {"norm_offset": offset[:, 0].copy(), "norm_scale": scale[:, 0].copy()}
    both = {"offset": offset, "scale": scale}
    return {f"norm_{k}_{band}": v[:, i].copy() for k, v in both.items() for i, band in enumerate(bands)}


def plane_constants(batch: TensorBatch) -> tuple[Float, Float]:
    """Offset and scale of each plane, `(N, B)` float32, from the columns or the batch's `normalization`.

    Raises
    ------
    DataError
        Neither has them.
    """
    return _plane_constant(batch, "offset"), _plane_constant(batch, "scale")


def _plane_constant(batch: TensorBatch, name: str) -> Float:
    shape, columns = (len(batch), len(batch.bands)), batch.catalog
    if f"norm_{name}" in columns:
        return np.broadcast_to(np.asarray(columns[f"norm_{name}"], np.float32)[:, None], shape)
    if all(f"norm_{name}_{band}" in columns for band in batch.bands):
        return np.stack([columns[f"norm_{name}_{band}"] for band in batch.bands], axis=1).astype(np.float32)
    table = batch.normalization.get(name)
    if not isinstance(table, dict) or any(band not in table for band in batch.bands):
        raise DataError(
            f"the tensors have no normalisation {name}", hint="give tensors that `ripple preprocess` wrote"
        )
    return np.broadcast_to(np.array([table[band] for band in batch.bands], np.float32), shape)


def denormalize(batch: TensorBatch) -> Float:
    """Tensors back to fluxes.

    Parameters
    ----------
    batch
        As read from a tensor shard.

    Returns
    -------
    image
        `(N, B, H, W)` float32 nJy; zeros in bands that are missing (see `valid`).

    Raises
    ------
    DataError
        The batch does not state how it was normalised.
    """
    method: Any = batch.normalization.get("method")
    if method not in SOFTENED | {"minmax", "zscore", "percentile", "zscale", "none"}:
        raise DataError(f"the tensors have an unknown normalisation, {method!r}")
    offset, scale = plane_constants(batch)
    out = np.empty(batch.image.shape, np.float32)
    present = _bands_present(batch)
    for start in range(0, len(batch), 64):
        rows = slice(start, start + 64)
        # 64 rows at a time: float64 copies of a whole batch would be large.
        wide = batch.image[rows].astype(np.float64)
        flux = invert(wide, offset[rows].astype(np.float64), scale[rows].astype(np.float64), method)
        out[rows] = np.where(present[rows, :, None, None], flux, 0)
    return out


def _bands_present(batch: TensorBatch) -> NDArray[np.bool_]:
    shape = (len(batch), len(batch.bands))
    if "band_mask" not in batch.catalog:
        return np.ones(shape, bool)
    bits = np.asarray(batch.catalog["band_mask"], np.uint32)
    return np.asarray((bits[:, None] >> np.arange(shape[1], dtype=np.uint32)) & 1 == 1)
