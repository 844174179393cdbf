"""Small, realistic disturbances of images, and the one-pixel attack.

Every disturbance acts on fluxes, in units of the noise of each image; the fluxes are then normalised again
with the constants of the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ripple.imaging.batch import TensorBatch
from ripple.imaging.normalize import invert, plane_constants, transform
from ripple.learn.data.augment import blur
from ripple.learn.data.psf_input import broadened, widths_told, with_widths
from ripple.learn.model.contract import Contract, Facts
from ripple.learn.model.weights import convert

Fluxes = Callable[["FluxCutouts", torch.Generator], Tensor]
#: FWHM of the seeing that is added, arcsec.
WORSE = 0.5


@dataclass(frozen=True)
class FluxCutouts:
    """Cutouts as fluxes, with the constants of their normalisation.

    Parameters
    ----------
    flux
        `(n, B, H, W)` in nJy, or the unit of the tensors.
    noise
        `(n, B, 1, 1)` noise of the pixels, measured from differences of neighbours.
    offset, scale
        `(n, B)`, of the normalisation.
    method
        Of `ripple.imaging.normalize`.
    pixel_scale
        Arcsec.
    psf
        `(n, B)` widths of the PSFs for a network that takes them.
    """

    flux: Tensor
    noise: Tensor
    offset: Tensor
    scale: Tensor
    method: Any
    pixel_scale: float
    psf: Tensor | None = None

    def tensor(self, flux: Tensor) -> Tensor:
        """Fluxes normalised for the network, float32."""
        return with_widths(transform(flux, self.offset, self.scale, self.method).float(), self.psf)

    def take(self, rows: Tensor) -> FluxCutouts:
        """Some of the rows."""
        return replace(
            self,
            flux=self.flux[rows],
            noise=self.noise[rows],
            offset=self.offset[rows],
            scale=self.scale[rows],
            psf=None if self.psf is None else self.psf[rows],
        )


def flux_cutouts(
    batch: TensorBatch, rows: NDArray[np.int64], contract: Contract, device: torch.device
) -> FluxCutouts:
    """Rows of a shard as fluxes, with the bands and the size of the model."""
    image = convert(torch.from_numpy(batch.image[rows].astype(np.float32)), contract, Facts.of(batch))
    method: Any = batch.normalization.get("method")
    # Tensors that were not normalised carry no constants: offset 0, scale 1.
    if method == "none":
        constants: list[NDArray[Any]] = [np.zeros(image.shape[:2]), np.ones(image.shape[:2])]
    else:
        # `convert` put the bands in the order of the model; the constants must follow.
        order = [batch.bands.index(band) for band in contract.bands]
        constants = [np.asarray(c[rows][:, order], np.float64) for c in plane_constants(batch)]
    put = [torch.from_numpy(np.ascontiguousarray(c)).to(device) for c in constants]
    # In float64: inverting a stretch magnifies rounding, and undisturbed fluxes must give the tensors again.
    flux = invert(image.to(device).double(), put[0], put[1], method)
    across = (flux[..., 1:] - flux[..., :-1]).flatten(2).abs()
    # The median ignores objects; 1.4826 makes it a sigma, and a difference has twice the variance of a pixel.
    noise = across.median(2).values.mul(1.4826 / math.sqrt(2)).clamp_min(1e-9)[..., None, None]
    psf = widths_told(batch.catalog, contract.bands, contract.psf_input)
    psf = None if psf is None else psf[torch.from_numpy(rows)].to(device)
    return FluxCutouts(flux, noise, put[0], put[1], method, contract.pixel_scale, psf)


def joined(pieces: list[FluxCutouts]) -> FluxCutouts:
    """The rows of all pieces, which were normalised by the same method."""
    names = ("flux", "noise", "offset", "scale", *(("psf",) if pieces[0].psf is not None else ()))
    whole: dict[str, Any] = {name: torch.cat([getattr(p, name) for p in pieces]) for name in names}
    return replace(pieces[0], **whole)


@dataclass(frozen=True)
class Disturbance:
    """What becomes of fluxes, and of what a pipeline knows of their PSFs.

    Parameters
    ----------
    flux
        Rows -> disturbed fluxes `(n, B, H, W)`.
    psf
        Widths of the PSFs `(n, B)` -> those that would be known afterwards.
    """

    flux: Fluxes
    psf: Callable[[Tensor], Tensor] = lambda width: width

    def __call__(self, s: FluxCutouts, g: torch.Generator) -> Tensor:
        return self.flux(s, g)

    def tensor(self, s: FluxCutouts, g: torch.Generator) -> Tensor:
        """Disturbed rows as the network takes them."""
        known = s if s.psf is None else replace(s, psf=self.psf(s.psf))
        return known.tensor(self.flux(s, g))


# --- disturbances: FluxCutouts -> fluxes --------------------------------------------------------------------


def _normal(like: Tensor, g: torch.Generator) -> Tensor:
    # Drawn on the CPU whatever the device: the same seed gives the same disturbance everywhere.
    return torch.randn(like.shape, generator=g, dtype=like.dtype).to(like.device)


def _uniform(shape: tuple[int, ...], like: Tensor, g: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=g, dtype=like.dtype).to(like.device)


def more_noise(s: FluxCutouts, g: torch.Generator, factor: float = 2.0) -> Tensor:
    """White noise that brings the total noise to `factor` times what it was."""
    return s.flux + s.noise * math.sqrt(factor**2 - 1) * _normal(s.flux, g)


def shallower(s: FluxCutouts, g: torch.Generator) -> Tensor:
    """Half a magnitude less depth: the noise grows as the flux of that difference."""
    return more_noise(s, g, 10 ** (0.4 * 0.5))


def worse_seeing(s: FluxCutouts, g: torch.Generator) -> Tensor:
    """A blur of `WORSE` arcsec FWHM, in quadrature with the PSF."""
    sigma = WORSE / 2.3548 / s.pixel_scale  # 2.3548 sigma is the FWHM of a Gaussian
    return blur(s.flux, torch.full((len(s.flux),), sigma, device=s.flux.device), sigma)


def sky_offset(s: FluxCutouts, g: torch.Generator) -> Tensor:
    """A level left in each plane by sky subtraction, with a scatter of one noise per pixel."""
    return s.flux + s.noise * _normal(s.noise, g)


def gain(s: FluxCutouts, g: torch.Generator) -> Tensor:
    """All fluxes too high by 10 %."""
    return s.flux * 1.1


def zero_points(s: FluxCutouts, g: torch.Generator) -> Tensor:
    """Zero points of the bands off, with a scatter of 0.1 mag."""
    return s.flux * torch.pow(10.0, 0.4 * 0.1 * _normal(s.noise, g))


def quantised(s: FluxCutouts, g: torch.Generator) -> Tensor:
    """Fluxes rounded to steps of one noise."""
    return (s.flux / s.noise).round() * s.noise


def lossy(s: FluxCutouts, g: torch.Generator) -> Tensor:
    """Fluxes in steps of half a noise with subtractive dither, as in tile-compressed FITS."""
    dither = _uniform(tuple(s.flux.shape), s.flux, g) - 0.5
    step = s.noise / 2
    return ((s.flux / step + dither).round() - dither) * step


def eight_bits(s: FluxCutouts, g: torch.Generator) -> Tensor:
    """256 levels of the tensor values, as a picture has."""
    # On the stretched values, because that is what a JPEG or PNG of a cutout holds.
    y = transform(s.flux, s.offset, s.scale, s.method)
    low, high = y.amin((1, 2, 3), keepdim=True), y.amax((1, 2, 3), keepdim=True)
    step = (high - low).clamp_min(1e-9) / 255
    out: Tensor = invert(((y - low) / step).round() * step + low, s.offset, s.scale, s.method)
    return out


def _band(b: int, change: Callable[[Tensor], Tensor]) -> Fluxes:
    def apply(s: FluxCutouts, g: torch.Generator) -> Tensor:
        out = s.flux.clone()
        out[:, b] = change(out[:, b : b + 1])[:, 0]
        return out

    return apply


def _without(b: int) -> Callable[[Tensor], Tensor]:
    """Widths of PSFs without that of one band."""
    return lambda width: torch.cat(
        [width[:, :b], torch.zeros_like(width[:, b : b + 1]), width[:, b + 1 :]], 1
    )


def shifted(flux: Tensor, dy: float, dx: float) -> Tensor:
    """Shift by a fraction of a pixel in Fourier space; exact for band-limited images."""
    fy = torch.fft.fftfreq(flux.shape[-2], dtype=flux.dtype, device=flux.device)[:, None]
    fx = torch.fft.rfftfreq(flux.shape[-1], dtype=flux.dtype, device=flux.device)[None]
    # The shift theorem; unlike interpolation it does not smooth the noise.
    phase = torch.exp(-2j * math.pi * (fy * dy + fx * dx))
    out: Tensor = torch.fft.irfft2(torch.fft.rfft2(flux) * phase, s=flux.shape[-2:])
    return out


def turned(flux: Tensor, degrees: float) -> Tensor:
    """Rotation about the centre by cubic interpolation, edges mirrored."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = torch.tensor([[c, -s, 0], [s, c, 0]], dtype=flux.dtype, device=flux.device)
    grid = torch.nn.functional.affine_grid(
        matrix.expand(len(flux), 2, 3), list(flux.shape), align_corners=False
    )
    return torch.nn.functional.grid_sample(
        flux, grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )


def cosmic_ray(s: FluxCutouts, g: torch.Generator) -> Tensor:
    """A straight track about six pixels long, 30 times the noise, in one band."""
    return s.flux + _streak(s, g, height=30.0, reach=3.0, width=0.6)


def satellite(s: FluxCutouts, g: torch.Generator) -> Tensor:
    """A trail across the whole cutout, 5 times the noise and three pixels wide, in one band."""
    return s.flux + _streak(s, g, height=5.0, reach=math.inf, width=1.5)


def _streak(s: FluxCutouts, g: torch.Generator, *, height: float, reach: float, width: float) -> Tensor:
    """Flux `(n, B, H, W)` of one straight streak per row, in a random band, place and direction."""
    n, bands, h, w = s.flux.shape
    # Its middle lies in the central half, so that it does not miss the target's surroundings.
    draw = _uniform((n, 4), s.flux, g)
    y = torch.arange(h, device=s.flux.device)[None, :, None] - (0.25 + 0.5 * draw[:, 0, None, None]) * h
    x = torch.arange(w, device=s.flux.device)[None, None, :] - (0.25 + 0.5 * draw[:, 1, None, None]) * w
    angle = math.pi * draw[:, 2, None, None]
    across = (x * angle.sin() - y * angle.cos()).abs()
    along = (x * angle.cos() + y * angle.sin()).abs()
    mark = ((across <= width) & (along <= reach)).to(s.flux.dtype)
    chosen = (draw[:, 3] * bands).long()
    plane = torch.nn.functional.one_hot(chosen, bands).to(s.flux.dtype)[:, :, None, None]
    return height * s.noise * plane * mark[:, None]


def disturbances(bands: tuple[str, ...]) -> dict[str, Disturbance]:
    """Name -> disturbance, in the order of the card."""
    every: dict[str, Disturbance] = {
        "noise x 2": Disturbance(more_noise),
        "depth - 0.5 mag": Disturbance(shallower),
        "seeing + 0.5 arcsec": Disturbance(worse_seeing, lambda width: broadened(width, WORSE)),
        "sky offset 1 noise": Disturbance(sky_offset),
        "gain + 10 %": Disturbance(gain),
        "zero points 0.1 mag": Disturbance(zero_points),
        "quantised, 1 noise": Disturbance(quantised),
        "lossy compression": Disturbance(lossy),
        "8-bit picture": Disturbance(eight_bits),
        "shift by half a pixel": Disturbance(lambda s, g: shifted(s.flux, 0.5, 0.5)),
        "turn by 90 deg": Disturbance(lambda s, g: torch.rot90(s.flux, 1, (-2, -1))),
        "turn by 45 deg": Disturbance(lambda s, g: turned(s.flux, 45.0)),
        "mirror": Disturbance(lambda s, g: s.flux.flip(-1)),
        "cosmic ray": Disturbance(cosmic_ray),
        "satellite trail": Disturbance(satellite),
    }
    for b, band in enumerate(bands):
        every[f"{band} missing"] = Disturbance(_band(b, torch.zeros_like), _without(b))
    middle = len(bands) // 2  # a single band out of register
    every[f"{bands[middle]} shifted by a pixel"] = Disturbance(_band(middle, lambda f: shifted(f, 1.0, 0.0)))
    every[f"{bands[middle]} turned by 90 deg"] = Disturbance(
        _band(middle, lambda f: torch.rot90(f, 1, (-2, -1)))
    )
    return every


# --- the one-pixel attack -----------------------------------------------------------------------------------


def one_pixel(
    probability: Callable[[Tensor], Tensor],
    s: FluxCutouts,
    g: torch.Generator,
    *,
    population: int = 32,
    rounds: int = 12,
) -> Tensor:
    """Find by differential evolution the one pixel that changes the answer most.

    Su et al. 2019 (IEEE TEC 23, 828). All rows and their populations are evaluated together. The pixel may
    take any value between the lowest and the highest of its plane.

    Parameters
    ----------
    probability
        Tensors `(k, B, H, W)` -> `(k,)` probability of the class first answered; the attack lowers it.
        Called with `population` images per row of `s`, in the order of rows.
    s
        `n` rows.
    g
        Of the random numbers.
    population, rounds
        Candidates per row, and generations.

    Returns
    -------
    `(n, B, H, W)` attacked fluxes.
    """
    n, bands, h, w = s.flux.shape
    low, high = s.flux.amin((2, 3)), s.flux.amax((2, 3))  # (n, B)

    # A candidate has 2 + B genes in [0, 1]: y, x and the value in each band.
    def paint(genes: Tensor) -> Tensor:  # (n, P, 2 + B) -> (n * P, B, H, W)
        p = genes.shape[1]
        out = s.flux[:, None].expand(n, p, bands, h, w).clone()
        y = (genes[..., 0] * h).long().clamp_max(h - 1)
        x = (genes[..., 1] * w).long().clamp_max(w - 1)
        value = low[:, None] + genes[..., 2:] * (high - low)[:, None]
        lines = (torch.arange(k, device=s.flux.device) for k in (n, p))
        i, j = torch.meshgrid(*lines, indexing="ij")
        out[i, j, :, y, x] = value
        return out.flatten(0, 1)

    def cost(genes: Tensor) -> Tensor:
        wide = s.take(torch.arange(n, device=s.flux.device).repeat_interleave(genes.shape[1]))
        # What judges the answers may be on the CPU.
        return probability(wide.tensor(paint(genes))).reshape(n, -1).to(genes.device)

    genes = _uniform((n, population, 2 + bands), s.flux, g)
    best = cost(genes)  # (n, P)
    for _ in range(rounds):
        # Three members of the population for each candidate, all different.
        draw = torch.rand(n, population, population, generator=g).argsort(2)[..., :3].to(genes.device)
        a, b, c = (
            torch.gather(genes, 1, draw[..., k, None].expand(-1, -1, genes.shape[2])) for k in range(3)
        )
        # Mutation factor 0.5 and no crossover, as in the paper; genes beyond [0, 1] wrap around.
        trial = (a + 0.5 * (b - c)) % 1.0
        found = cost(trial)
        better = found < best
        genes, best = torch.where(better[..., None], trial, genes), torch.where(better, found, best)
    winner = best.argmin(1)
    chosen = genes[torch.arange(n, device=winner.device), winner][:, None]
    return paint(chosen)
