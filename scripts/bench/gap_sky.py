"""One sky, many instruments: analytic galaxies, lenses and lookalikes, seen as an instrument would.

The sky is a function of a seed alone. `observe` renders it with the PSF, pixels, noise, zero points and
defects of one instrument, so that two tensor artefacts differ in nothing but the instrument.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from ripple.config import Config
from ripple.imaging.batch import TensorBatch
from ripple.storage.shard_writer import pack_tensors
from ripple.storage.writer import ArtefactWriter, create

Float = NDArray[np.float64]
BANDS = ("g", "r", "i")
#: Colours: flux in g, r, i of old and young stars.
RED, BLUE = np.array([0.35, 0.75, 1.0]), np.array([0.9, 0.9, 0.8])
KINDS = ("elliptical", "spiral", "pair", "lens")


class Instrument(Config):
    """What an image of the sky goes through. Fluxes are in units of the depth of the reference."""

    verb: ClassVar[str] = "observe"

    pixel_scale: float = Field(0.2, description="Arcsec.")
    fwhm: tuple[float, float, float] = Field((0.8, 0.7, 0.65), description="Of the PSF by band, arcsec.")
    fwhm_scatter: float = Field(0.05, description="Row to row, as a fraction.")
    noise: tuple[float, float, float] = Field((0.05, 0.05, 0.05), description="Per pixel of 0.2 arcsec.")
    zero_point: tuple[float, float, float] = Field((0.0, 0.0, 0.0), description="Error of it, mag.")
    sky: float = Field(0.0, description="Scatter of the sky offset, in noise.")
    correlated: float = Field(0.0, description="Sigma of the smoothing of the noise, pixels.")
    neighbours: float = Field(0.0, description="Mean number of unrelated galaxies in a stamp.")
    artefacts: float = Field(0.0, description="Share of rows with a cosmic ray or a trail in one band.")


@dataclass(frozen=True)
class Sky:
    """Rows of `KINDS`, and where they are; `seed` decides the rest."""

    kind: NDArray[np.int64]
    ra: Float
    dec: Float
    seed: int


def make_sky(rows: int, shares: tuple[float, ...], seed: int) -> Sky:
    """A strip of sky with so many galaxies of each kind."""
    rng = np.random.default_rng([seed, 1])
    kind = rng.choice(len(KINDS), rows, p=np.array(shares) / sum(shares))
    return Sky(kind, rng.uniform(53, 54, rows), rng.uniform(-28.5, -27.5, rows), seed)


def observe(
    sky: Sky, instrument: Instrument, *, size: int, look: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Images `(N, 3, size, size)` in units of flux, and the FWHM `(N, 3)` of their PSFs with pixels, arcsec.

    `look` seeds noise and defects.
    """
    fine = size * 2
    step = instrument.pixel_scale / 2
    y, x = (np.mgrid[:fine, :fine] - (fine / 2 + 0.5)) * step
    out = np.empty((len(sky.kind), 3, size, size), np.float32)
    fwhm = np.empty((len(sky.kind), 3), np.float32)
    zero = 10 ** (-0.4 * np.array(instrument.zero_point))
    frequency = np.hypot(np.fft.fftfreq(fine)[:, None], np.fft.rfftfreq(fine)[None]) / step
    for k, kind in enumerate(sky.kind):
        scene = _scene(KINDS[kind], x, y, np.random.default_rng([sky.seed, 2, k]))  # (3, fine, fine)
        rng = np.random.default_rng([sky.seed, 3, look, k])
        for _ in range(rng.poisson(instrument.neighbours)):
            scene = scene + _blob(x, y, rng)
        for b in range(3):
            seeing = instrument.fwhm[b] * rng.lognormal(0, instrument.fwhm_scatter)
            # A pixel has the variance of a Gaussian of 0.68 pixels FWHM.
            fwhm[k, b] = np.hypot(seeing, 2.3548 / np.sqrt(12) * instrument.pixel_scale)
            sigma = seeing / 2.3548
            # Gaussian of the seeing; pixels are averages of four fine ones.
            kernel = np.exp(-2 * (np.pi * frequency * sigma) ** 2)
            seen = np.fft.irfft2(np.fft.rfft2(scene[b]) * kernel, (fine, fine))
            out[k, b] = zero[b] * seen.reshape(size, 2, size, 2).mean((1, 3))
        out[k] += _defects(instrument, size, rng)
    return out, fwhm


def noise_level(instrument: Instrument) -> Float:
    """Noise per pixel `(3,)` of a surface brightness: it falls with the area that a pixel collects from."""
    return np.asarray(np.array(instrument.noise) * 0.2 / instrument.pixel_scale)


def _defects(instrument: Instrument, size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise, sky, cosmic rays and trails `(3, size, size)`."""
    noise = rng.normal(size=(3, size, size))
    if instrument.correlated:
        from scipy.ndimage import gaussian_filter

        noise = np.stack([gaussian_filter(n, instrument.correlated, mode="wrap") for n in noise])
        noise /= noise.std()
    plane = noise_level(instrument)[:, None, None] * (noise + instrument.sky * rng.normal(size=(3, 1, 1)))
    if rng.random() < instrument.artefacts:
        b, angle = rng.integers(3), rng.uniform(0, np.pi)
        y, x = np.mgrid[:size, :size] - rng.uniform(0.2, 0.8, (2, 1, 1)) * size
        across = np.abs(x * np.sin(angle) - y * np.cos(angle))
        along = np.abs(x * np.cos(angle) + y * np.sin(angle))
        trail = rng.random() < 0.4
        plane[b] += np.where(across < (1.5 if trail else 0.6), 1.0 if trail else 3.0, 0) * (
            1.0 if trail else along < rng.uniform(2, 6)
        )
    return plane.astype(np.float32)


# --- things on the sky: surface brightness `(3, fine, fine)` at positions in arcsec -------------------


def _sersic(x: Float, y: Float, radius: float, index: float, q: float, angle: float) -> Float:
    u, v = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    r = np.sqrt(q * u**2 + v**2 / q + 0.05**2)
    b = 2 * index - 1 / 3
    profile: Float = np.exp(-b * ((r / radius) ** (1 / index) - 1))
    return profile


def _colour(plane: Float, colour: Float) -> Float:
    return colour[:, None, None] * plane


def _early(x: Float, y: Float, rng: np.random.Generator) -> Float:
    q, angle = rng.uniform(0.6, 1), rng.uniform(0, np.pi)
    return _colour(
        rng.uniform(0.4, 1.0) * _sersic(x, y, rng.uniform(0.6, 1.1), 2.5, q, angle), RED * _tint(rng)
    )


def _tint(rng: np.random.Generator) -> Float:
    return rng.lognormal(0, 0.08, 3)


def _blob(x: Float, y: Float, rng: np.random.Generator) -> Float:
    r, phi = rng.uniform(1.5, 4.5), rng.uniform(0, 2 * np.pi)
    plane = _sersic(x - r * np.cos(phi), y - r * np.sin(phi), rng.uniform(0.2, 0.5), 1, rng.uniform(0.4, 1),
                    rng.uniform(0, np.pi))  # fmt: skip
    colour = BLUE if rng.random() < 0.6 else RED
    return _colour(rng.uniform(0.15, 0.6) * plane, colour * _tint(rng))


def _scene(kind: str, x: Float, y: Float, rng: np.random.Generator) -> Float:
    match kind:
        case "elliptical":
            return _early(x, y, rng)
        case "spiral":
            return _spiral(x, y, rng)
        case "pair":
            return _early(x, y, rng) + _blob(x * 1.2, y * 1.2, rng)
    return _early(x, y, rng) + _lensed(x, y, rng)


def _spiral(x: Float, y: Float, rng: np.random.Generator) -> Float:
    """A red bulge in a blue disk with two arms: the lookalike of a ring."""
    angle, q = rng.uniform(0, np.pi), rng.uniform(0.6, 1)
    disk = _sersic(x, y, rng.uniform(1.2, 1.8), 1, q, angle)
    r, phi = np.hypot(x, y), np.arctan2(y, x)
    hand = rng.choice([-1.0, 1.0])
    arms = 1 + 0.9 * np.cos(2 * phi - hand * rng.uniform(2.5, 4) * np.log(r + 0.2) + rng.uniform(0, 6.3))
    bulge = _sersic(x, y, rng.uniform(0.3, 0.5), 2, 0.9, angle)
    return _colour(rng.uniform(0.2, 0.4) * disk * arms, BLUE * _tint(rng)) + _colour(0.6 * bulge, RED)


def _lensed(x: Float, y: Float, rng: np.random.Generator) -> Float:
    """A blue exponential source behind a singular isothermal ellipsoid (Kormann et al. 1994, A&A 284, 285)."""
    theta_e, q, angle = rng.uniform(0.9, 1.9), rng.uniform(0.6, 0.95), rng.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    psi = np.sqrt(q**2 * u**2 + v**2 + 1e-6)
    f = np.sqrt(1 - q**2)
    factor = theta_e * np.sqrt(q) / f
    au, av = factor * np.arctan(f * u / psi), factor * np.arctanh(f * v / psi)
    radius, phi = 0.35 * theta_e * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
    su, sv = u - au - radius * np.cos(phi), v - av - radius * np.sin(phi)
    source = _sersic(su, sv, rng.uniform(0.12, 0.3), 1, rng.uniform(0.5, 1), rng.uniform(0, np.pi))
    return _colour(rng.uniform(0.12, 0.35) * source, BLUE * _tint(rng))


# --- tensors ------------------------------------------------------------------------------------------


def measured_noise(flux: NDArray[np.float32]) -> Float:
    """The noise `(3,)` that a pipeline would measure: robust, from the frame of the stamps."""
    n = len(flux)
    edge = np.concatenate([flux[:, :, :3].reshape(n, 3, -1), flux[:, :, -3:].reshape(n, 3, -1)], 2)
    scatter = 1.4826 * np.median(np.abs(edge - np.median(edge, 2, keepdims=True)), axis=(0, 2))
    return np.maximum(scatter, 1e-3)


def write_tensors(
    directory: Path, sky: Sky, instrument: Instrument, labels: NDArray[np.int64],
    class_map: dict[str, str], *, size: int, look: int, noise: Float | None = None, by_row: bool = False,
) -> Path:  # fmt: skip
    """A tensor artefact of the sky as one instrument sees it, asinh of flux over `noise`, or its own `(3,)`.

    `by_row`: one scale for all bands, that of the median band, kept for each row as `preprocess` keeps it.
    """
    made = create(directory, kind="tensors", config=instrument, inputs={"sky": sky.seed}, units=1)
    if not isinstance(made, ArtefactWriter):
        return directory
    n = len(labels)
    flux, fwhm = observe(sky, instrument, size=size, look=look)
    scale = measured_noise(flux) if noise is None else noise
    units = np.full(3, np.median(scale)) if by_row else scale
    image = np.arcsinh(flux / (3 * units[:, None, None])).astype(np.float32)
    index = np.arange(n)
    catalog: dict[str, Any] = {
        "index": index, "id": index + 1, "ra": sky.ra, "dec": sky.dec, "label": labels,
        "qc": np.zeros(n, np.uint64), "accept": np.ones(n, np.uint8),
    }  # fmt: skip
    catalog |= {f"noise_{band}": np.full(n, s, np.float32) for band, s in zip(BANDS, scale, strict=True)}
    catalog |= {f"psf_fwhm_{band}": fwhm[:, b] for b, band in enumerate(BANDS)}
    kept: dict[str, Any] = {"scope": "row"}
    if by_row:
        catalog |= {
            "norm_offset": np.zeros(n, np.float32),
            "norm_scale": np.full(n, 3 * units[0], np.float32),
        }
    else:
        scales = {b: round(3 * float(s), 6) for b, s in zip(BANDS, scale, strict=True)}
        kept = {"scope": "dataset", "offset": dict.fromkeys(BANDS, 0.0), "scale": scales}
    batch = TensorBatch(
        bands=BANDS, image=image, valid=np.ones(image.shape, np.uint8), catalog=catalog,
        pixel_scale=instrument.pixel_scale, psf_fwhm=float("nan"), class_map=class_map,
        normalization={"method": "asinh", "softening": 3.0, **kept},
    )  # fmt: skip
    with made as writer:
        writer.commit(0, pack_tensors(batch, {}), n, {})
        place = {"shard": np.zeros(n, np.int64), "row": index}
        table = {**catalog, **place, "status": ["ok"] * n, "reason": [""] * n}
        writer.finish(pa.table(table), {}, {"bands": list(BANDS)})
    return directory
