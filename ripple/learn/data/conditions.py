"""Other observing conditions: what another seeing, depth or calibration would have made of the same fluxes.

The stretch is taken back, the fluxes are observed anew, and stretched again as `preprocess` would: by the
noise that they have then. As in `augment`, what becomes of a row is a function of (seed, epoch, row, draw).
"""

from __future__ import annotations

import itertools
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ripple.errors import DataError
from ripple.imaging import noise
from ripple.imaging.normalize import SOFTENED, invert, plane_constants, transform
from ripple.imaging.quality.sky import detect_sources
from ripple.learn.data.augment import key_of, normal_of, taken, uniform_of
from ripple.learn.data.dataset import Rows, TensorDataset, evenly
from ripple.learn.data.neighbours import Neighbours, neighbours
from ripple.learn.data.psf_input import broadened

FWHM = 2.3548  # of a Gaussian, in sigma
#: Pixels mirrored around a cutout, so that its edges do not see the opposite ones.
PAD = 8
#: Rows whose sky tells how neighbouring pixels vary together.
ROWS = 512
#: Side in pixels and number of the fields from which noise is cut.
FIELD, FIELDS = 256, 16
# Streams of random numbers beyond those of `augment`.
_SEEING, _ZERO, _BAND, _DROP, _X, _Y, _SKY = range(32, 39)
_DEPTH, _WHICH, _LEFT, _LOW, _SIGN = (100 * k for k in range(1, 6))  # and one for each band after it


@dataclass(frozen=True, slots=True)
class Ranges:
    """How far conditions differ from those of the survey; all 0: not at all.

    Parameters
    ----------
    seeing
        Arcsec: PSFs are broadened by a Gaussian whose FWHM is uniform from 0 to this, the same in all bands.
    depth
        Magnitudes: the limit of each band becomes brighter by a number that is uniform from 0 to this.
    zero_point
        Scatter of the zero point of each band, magnitudes.
    drop_band
        Share of rows that lose one of their bands.
    subpixel
        Largest shift along each axis, pixels and fractions of them.
    neighbours
        Share of rows that get the galaxy of another row beside their own.
    background
        Scatter of a sky residual of each band, in units of the noise of a pixel: of its level, and of its
        change from the centre to the edge along each axis.
    """

    seeing: float = 0.0
    depth: float = 0.0
    zero_point: float = 0.0
    drop_band: float = 0.0
    subpixel: float = 0.0
    neighbours: float = 0.0
    background: float = 0.0

    def __bool__(self) -> bool:
        return any(astuple(self))


@dataclass(frozen=True)
class Conditions:
    """Observes rows of a data set anew.

    Parameters
    ----------
    ranges
        How far.
    offset, scale, noise
        `(total, B)` float32 nJy of all rows: constants of their stretch, and sky noise; NaN in missing bands.
    fields
        `(B, FIELDS, FIELD, FIELD)` float32 noise of variance 1 that varies together as that of the data set,
        and does so across its edges.
    power
        `(B, H + 2 PAD, (W + 2 PAD) // 2 + 1)` float32: power of that noise by frequency, of sum 1.
    method
        The stretch.
    follows
        Of what its scale follows the noise: `row`, `band`, or nothing.
    pixel_scale
        Arcsec.
    bank
        Galaxies to put beside others; None when there is no share of rows that gets one.
    """

    ranges: Ranges
    offset: Tensor
    scale: Tensor
    noise: Tensor
    fields: Tensor
    power: Tensor
    method: Any
    follows: str
    pixel_scale: float
    bank: Neighbours | None = None

    def to(self, device: torch.device) -> Conditions:
        """The same, on another device."""
        names = ("offset", "scale", "noise", "fields", "power")
        moved = {name: getattr(self, name).to(device) for name in names}
        return replace(self, **moved, bank=None if self.bank is None else self.bank.to(device))

    def __call__(
        self, image: Tensor, row: Tensor, *, seed: int, epoch: int, draw: Tensor | None = None
    ) -> Tensor:
        """Normalised images `(n, B, H, W)` under other conditions; parameters as in `Augment`."""
        if len(image) == 0:
            return image
        ranges, key, bands = self.ranges, key_of(row, seed, epoch, draw), image.shape[1]
        offset, scale, sigma = self.offset[row], self.scale[row], self.noise[row]
        present = torch.isfinite(sigma)
        sigma = torch.where(present, sigma, torch.ones_like(sigma))
        light = self._fluxes(image, offset, scale)
        if self.bank is not None:  # before the PSF is broadened, which then holds for all light
            light = light + self.bank.beside(key, row, ranges.neighbours, image.shape[-2:])
        share = torch.ones_like(sigma)
        if ranges.seeing or ranges.subpixel:
            light, share = self._seen(light, key)
        # A wrong zero point changes light and noise alike.
        change = 10 ** (-0.4 * ranges.zero_point * normal_of(key, torch.Size([bands]), _ZERO))
        was = sigma * change
        now = was * 10 ** (0.4 * ranges.depth * _by_band(key, _DEPTH, bands))
        light = light * change[:, :, None, None]
        if ranges.depth or ranges.seeing or ranges.subpixel:
            # Another night has a noise of its own: what a broader PSF takes from this one is added again.
            missing = (now**2 - was**2 * share).clamp_min(0).sqrt()
            light = light + missing[:, :, None, None] * self._noise(key, image.shape)
        if ranges.background:
            light = light + ranges.background * now[:, :, None, None] * _residuals(key, image.shape)
        kept = present & ~_dropped(key, present, ranges.drop_band)
        out = self._stretched(light, offset, self._scale(scale, sigma, now, present, kept))
        return torch.where(kept[:, :, None, None], out, 0.0).to(image.dtype)

    def widths(
        self, width: Tensor, row: Tensor, *, seed: int, epoch: int, draw: Tensor | None = None
    ) -> Tensor:
        """FWHM `(n, B)` arcsec of PSFs of `width` under the conditions that `__call__` gives the same rows.

        0 in bands that a row has not, or loses.
        """
        key = key_of(row, seed, epoch, draw)
        broader = self.ranges.seeing * uniform_of(key, _SEEING)[:, None]
        dropped = _dropped(key, torch.isfinite(self.noise[row]), self.ranges.drop_band)
        return torch.where(dropped, 0.0, broadened(width, broader))

    def _fluxes(self, image: Tensor, offset: Tensor, scale: Tensor) -> Tensor:
        if self.method != "asinh":
            return torch.as_tensor(invert(image, offset, scale, self.method))
        # sinh and asinh of PyTorch take five times as long on CPUs.
        grown = torch.expm1(image.abs())
        light = torch.copysign(0.5 * (grown + grown / (grown + 1)), image)
        return light * scale[..., None, None] + offset[..., None, None]

    def _stretched(self, light: Tensor, offset: Tensor, scale: Tensor) -> Tensor:
        if self.method != "asinh":
            return torch.as_tensor(transform(light, offset, scale, self.method))
        x = (light - offset[..., None, None]) / scale[..., None, None]
        size = x.abs()
        return torch.copysign(torch.log1p(size + size**2 / (1 + torch.sqrt(size**2 + 1))), x)

    def _seen(self, light: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Light shifted and broadened, and `(n, B)` the share of the variance of its noise that is left."""
        height, width = light.shape[-2:]
        pad = min(PAD, height - 1, width - 1)
        wide = torch.nn.functional.pad(light, (pad,) * 4, mode="reflect")
        y = torch.fft.fftfreq(height + 2 * pad, device=light.device)[None, :, None]
        x = torch.fft.rfftfreq(width + 2 * pad, device=light.device)[None, None, :]
        sigma = self.ranges.seeing / self.pixel_scale / FWHM * uniform_of(key, _SEEING)
        # The transform of a Gaussian is one, of any width; a shift is a phase.
        damp = torch.exp(-2 * torch.pi**2 * sigma[:, None, None] ** 2 * (y**2 + x**2))
        dy, dx = (self.ranges.subpixel * (2 * uniform_of(key, s) - 1)[:, None, None] for s in (_Y, _X))
        turn = torch.polar(damp, -2 * torch.pi * (y * dy + x * dx))
        seen = torch.fft.irfft2(torch.fft.rfft2(wide) * turn[:, None], s=wide.shape[-2:])
        left = torch.einsum("nyx,byx->nb", damp**2, self.power.to(damp.dtype))
        return seen[..., pad : pad + height, pad : pad + width], left

    def _noise(self, key: Tensor, shape: torch.Size) -> Tensor:
        """Noise of variance 1, `(n, B, H, W)`: pieces of the fields from anywhere, of either sign."""
        _, bands, height, width = shape
        which, left, low = (
            (n * _by_band(key, stream, bands)).to(torch.int64)
            for n, stream in ((FIELDS, _WHICH), (FIELD, _LEFT), (FIELD, _LOW))
        )
        sign = torch.where(_by_band(key, _SIGN, bands) < 0.5, -1.0, 1.0)
        y = (low[..., None] + torch.arange(height, device=key.device)) % FIELD  # (n, B, H)
        x = (left[..., None] + torch.arange(width, device=key.device)) % FIELD
        line = (torch.arange(bands, device=key.device) * FIELDS + which)[..., None] * FIELD + y
        place = line[..., None] * FIELD + x[:, :, None, :]
        return taken(self.fields, place) * sign[:, :, None, None]

    def _scale(self, scale: Tensor, was: Tensor, now: Tensor, present: Tensor, kept: Tensor) -> Tensor:
        """Scales of the stretch for the noise there is now, as `normalize.constants_of` has them."""
        before, after = was, now
        if self.follows == "row":
            # The scale was made of all bands that the row has; a band that is lost has no part in it now.
            both = ((was, present), (now, kept))
            before, after = (
                torch.where(which, sigma, torch.nan).nanquantile(0.5, dim=1, keepdim=True)
                for sigma, which in both
            )
        # Planes without noise have a scale of their own, 1, whatever becomes of them.
        return torch.where(before > 0, scale * after / before, scale) if self.follows else scale


def conditions(ranges: Ranges, dataset: TensorDataset, galaxies: Rows | None = None) -> Conditions:
    """What is needed to observe the rows of a data set anew.

    Parameters
    ----------
    ranges
        How far.
    dataset
        The rows.
    galaxies
        Global numbers of rows that may be put beside others, none of them lenses; `neighbours` needs some.

    Raises
    ------
    DataError
        Its tensors do not say how they were normalised or how noisy they are, or their stretch follows the
        range of pixel values of each cutout. There are no galaxies for `neighbours`.
    """
    sample = dataset.first_shard()
    method, scope = sample.normalization.get("method"), sample.normalization.get("scope")
    if scope != "dataset" and method not in SOFTENED | {"none"}:
        raise DataError(
            f"the stretch {method} of each {scope} follows its brightest pixels and not its noise",
            hint="seeing, depth and the like need asinh, log, sqrt or lupton, or scope dataset",
        )
    names = [f"noise_{band}" for band in dataset.bands]
    names += [n for n in sample.catalog if n.startswith(("norm_scale", "norm_offset"))]
    columns = {name: dataset.column(name) for name in names}
    empty = np.empty((dataset.total, len(dataset.bands), 0, 0), np.float32)
    offset, scale = plane_constants(replace(sample, image=empty, catalog=columns))
    sigma = np.stack([np.asarray(columns[name], np.float32) for name in names[: len(dataset.bands)]], axis=1)
    rho = _correlation(dataset, offset, scale, sigma, method)
    height, width = dataset.shape[1:]
    pad = min(PAD, height - 1, width - 1)
    bank = None
    if ranges.neighbours:
        chosen = np.empty(0, np.int64) if galaxies is None else galaxies
        chosen = chosen[np.isfinite(sigma[chosen]).all(axis=1)]
        bank = neighbours(dataset, chosen, offset, scale, sigma, method, sample.pixel_scale)
    return Conditions(
        ranges,
        torch.from_numpy(np.array(offset, np.float32)),
        torch.from_numpy(np.array(scale, np.float32)),
        torch.from_numpy(sigma),
        torch.from_numpy(_fields(rho)),
        torch.from_numpy(_shares(rho, (height + 2 * pad, width + 2 * pad))),
        method,
        "" if scope == "dataset" or method == "none" else str(scope),
        sample.pixel_scale,
        bank,
    )


def _correlation(
    dataset: TensorDataset,
    offset: NDArray[np.float32],
    scale: NDArray[np.float32],
    sigma: NDArray[np.float32],
    method: Any,
) -> NDArray[np.float64]:
    """`(B, L, L)` how the noise of neighbouring pixels varies together, in the sky of some rows."""
    # PSF matching has changed what was known of the cutouts, so it is measured on the tensors themselves.
    rows = evenly(dataset.rows, ROWS)
    rows = np.sort(rows[np.isfinite(sigma[rows]).all(axis=1)])
    if not len(rows):
        return np.tile(noise.WHITE, (len(dataset.bands), 1, 1))
    image = dataset.read(rows).astype(np.float32)
    light = invert(image, offset[rows], scale[rows], method)
    good = dataset.read(rows, valid=True) > 0
    sky = good & ~detect_sources(light, good, sigma[rows])[:, None]
    variance = np.broadcast_to((sigma[rows] ** 2)[..., None, None], light.shape)
    return noise.correlation(light, variance, sky).rho()


def _power(rho: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Power `(B, H, W // 2 + 1)` by frequency of noise with this correlation, in a frame without edges."""
    around = np.zeros((len(rho), *shape))
    lags = range(-noise.LAG, noise.LAG + 1)
    for y, x in itertools.product(lags, lags):  # lags that fall together in a small frame add up
        around[:, y % shape[0], x % shape[1]] += rho[:, y + noise.LAG, x + noise.LAG]
    # A measured correlation is not exactly one: powers below 0 are its errors.
    return np.asarray(np.maximum(np.fft.rfft2(around).real, 0.0))


def _shares(rho: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.float32]:
    """`_power` of sum 1 over all frequencies, also those that `rfft2` leaves out."""
    power = _power(rho, shape)
    half = np.arange(power.shape[2])
    power *= np.where((half == 0) | (2 * half == shape[1]), 1.0, 2.0)
    return np.asarray(power / power.sum(axis=(1, 2), keepdims=True), np.float32)


def _fields(rho: NDArray[np.float64]) -> NDArray[np.float32]:
    """`(B, FIELDS, FIELD, FIELD)` noise of variance 1 with this correlation; always the same numbers."""
    white = np.random.default_rng(0).standard_normal((len(rho), FIELDS, FIELD, FIELD), np.float32)
    amplitude = np.sqrt(_power(rho, (FIELD, FIELD)))[:, None]
    found = np.fft.irfft2(np.fft.rfft2(white) * amplitude, s=(FIELD, FIELD))
    return np.asarray(found / found.std(axis=(1, 2, 3), keepdims=True), np.float32)


def _by_band(key: Tensor, stream: int, bands: int) -> Tensor:
    """`(n, B)` uniform numbers, independent for each band."""
    return torch.stack([uniform_of(key, stream + band) for band in range(bands)], 1)


def _residuals(key: Tensor, shape: torch.Size) -> Tensor:
    """`(n, B, H, W)` planes with a level and slopes of scatter 1; slopes go from the centre to the edge."""
    level, down, along = normal_of(key, torch.Size([shape[1], 3]), _SKY)[..., None, None].unbind(2)
    y, x = (torch.linspace(-1, 1, size, device=key.device) for size in shape[-2:])
    return (level + down * y[:, None]) + along * x


def _dropped(key: Tensor, present: Tensor, share: float) -> Tensor:
    """`(n, B)` the band that a row loses; none where it is its only one."""
    count = present.sum(1)
    # One of those that it has: number `which` among them.
    which = (uniform_of(key, _BAND) * count).to(torch.int64)[:, None]
    chosen = present & (present.cumsum(1) - 1 == which)
    return chosen & ((uniform_of(key, _DROP) < share) & (count > 1))[:, None]
