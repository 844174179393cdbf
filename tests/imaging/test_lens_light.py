"""The light of a lens galaxy is subtracted, arcs stay."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from ripple.imaging.lens_light import elliptical_radius, lens_light, subtracted

SIZE, PSF = 64, 1.9  # pixels: an FWHM of 0.9 arcsec


def galaxy(q: float, angle: float, dx: float = 0.0, dy: float = 0.0, re: float = 5.0) -> np.ndarray:
    """A de Vaucouleurs galaxy of unit flux behind a Gaussian PSF, drawn on a grid five times as fine."""
    fine = 5
    y, x = (np.mgrid[: SIZE * fine, : SIZE * fine] - (fine - 1) / 2) / fine
    u, v = x - SIZE // 2 - dx, y - SIZE // 2 - dy
    along, across = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
    r = np.sqrt(q * along**2 + across**2 / q)
    light = gaussian_filter(np.exp(-7.67 * ((r + 0.05) / re) ** 0.25), fine * PSF)
    light = light.reshape(SIZE, fine, SIZE, fine).sum((1, 3))
    return np.asarray(light / light.sum())


def arc(radius: float, span: float, turn: float = 0.7) -> np.ndarray:
    """An arc of unit flux around the middle."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    away = np.angle(np.exp(1j * (np.arctan2(y, x) - turn)))
    light = np.exp(-0.5 * ((np.hypot(x, y) - radius) / 1.8) ** 2) * (np.abs(away) <= span / 2)
    return np.asarray(light / light.sum())


def test_a_galaxy_alone_leaves_nothing() -> None:
    rng = np.random.default_rng(0)
    for q, angle, dx, dy in ((1.0, 0.0, 0.0, 0.0), (0.8, 0.5, 0.3, -0.4), (0.65, 2.0, -0.5, 0.2)):
        flux = 3000 * np.array([0.5, 1.0, 1.4])[:, None, None] * galaxy(q, angle, dx, dy)
        left = subtracted((flux + rng.normal(0, 1.0, flux.shape))[None].astype(np.float32))[0]
        assert np.abs(left).max() < 0.1 * flux.max()
        # Of the light as a whole almost nothing is left.
        middle = np.s_[:, 20:44, 20:44]
        assert np.abs(left[middle].sum((1, 2)) / flux[middle].sum((1, 2))).max() < 0.07
        # Where arcs are, from 1 arcsec on, what is left is noise.
        y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
        ring = (np.hypot(x, y) > 5) & (np.hypot(x, y) < 15)
        assert left[:, ring].std() < 1.1


@pytest.mark.parametrize(("radius", "span", "kept"), [(7.0, 1.5, 0.75), (9.0, 2.4, 0.75)])
def test_arcs_of_planted_lenses_stay(radius: float, span: float, kept: float) -> None:
    rng = np.random.default_rng(1)
    lens, source = 3000 * galaxy(0.75, 0.4), 250 * arc(radius, span)
    noise = rng.normal(0, 1.0, (1, 2, SIZE, SIZE))
    left = subtracted((lens + source + noise).astype(np.float32))[0].mean(axis=0)
    where = source > 0.2 * source.max()
    assert kept < left[where].sum() / source[where].sum() < 1.05


def test_the_ellipse_is_that_of_the_galaxy() -> None:
    image = galaxy(0.7, 0.9, 0.4, -0.3, re=8.0)
    r = elliptical_radius(image)
    y, x = np.unravel_index(np.argmin(r), r.shape)
    assert (abs(x - 32), abs(y - 32)) <= (1, 1)
    # Pixels at one radius have one brightness.
    ring = (r > 6) & (r < 6.5)
    assert image[ring].std() / image[ring].mean() < 0.08


def test_what_has_no_light_is_left_alone() -> None:
    image = np.full((1, 2, 16, 16), np.nan, np.float32)
    assert np.isnan(subtracted(image)).all()
    assert (lens_light(np.zeros((2, 16, 16))) == 0).all()
    assert (lens_light(np.full((1, 9, 13), -3.0)) == 0).all()
