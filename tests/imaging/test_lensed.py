"""The fast drawing of lensed sources against the even sampling of `profiles.transform`."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft

from ripple.imaging.simulation import rays
from ripple.imaging.simulation.lensed import light
from ripple.imaging.simulation.lensing import Deflector, deflect
from ripple.imaging.simulation.observing import moffat
from ripple.imaging.simulation.profiles import Lensed, Sersic, shift, transform
from ripple.stages.inject.paint import draw_lensed

SIZE, KERNEL = 96, 41


def seen(spectrum: np.ndarray) -> np.ndarray:
    """Through a PSF of 4 px FWHM."""
    psf = scipy.fft.rfft2(moffat(KERNEL, 4.0, 0.0, 0.0), s=(SIZE, SIZE))
    centred = shift(SIZE, -(SIZE // 2) - KERNEL // 2, -(SIZE // 2) - KERNEL // 2)
    return np.asarray(scipy.fft.irfft2(spectrum * psf * centred, s=(SIZE, SIZE)))


@pytest.mark.parametrize("slope", [2.0, 1.8])
def test_it_agrees_with_even_sampling(slope: float) -> None:
    rng = np.random.default_rng(3)
    for _ in range(6):
        drawn = draw_lensed(rng, float(rng.uniform(3, 12)), 0.8, 0.3, 0.2)
        turn = drawn.lens
        lens = Deflector(turn.theta_e, turn.q, turn.angle, turn.gamma1, turn.gamma2, slope)
        shape = Lensed(lens, drawn.source, drawn.knots)
        dx, dy = rng.uniform(-0.5, 0.5, 2)
        fast, even = (seen(f(shape, SIZE, dx, dy)) for f in (light, transform))
        assert fast.sum() == pytest.approx(even.sum(), rel=3e-3)
        assert np.abs(fast - even).max() < 0.01 * even.max()
        y, x = np.mgrid[:SIZE, :SIZE]
        for axis in (x, y):
            assert (fast * axis).sum() / fast.sum() == pytest.approx(
                (even * axis).sum() / even.sum(), abs=0.03
            )


@pytest.mark.parametrize(("n", "re"), [(1.0, 0.15), (1.0, 1.5), (4.0, 1.0), (6.0, 0.5)])
def test_flux_and_place_without_a_lens(n: float, re: float) -> None:
    """Compact, cuspy, or with wide wings: a source is itself where there is no mass."""
    shape = Lensed(Deflector(1e-6, 0.9, 0.0), Sersic(n, re, 0.8, 0.4, 2.3, -1.7))
    image = seen(light(shape, SIZE, 0.2, 0.1))
    # Wings of large index leave the stamp.
    assert image.sum() == pytest.approx(1.0, abs=3e-3 if n < 4 else 0.02)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    near = np.hypot(y + 1.6, x - 2.5) < 12
    part = np.where(near, image, 0.0)
    assert [(part * a).sum() / part.sum() for a in (x, y)] == pytest.approx([2.5, -1.6], abs=0.05)


def test_derivatives_are_those_of_the_deflection() -> None:
    rng, step = np.random.default_rng(0), 1e-4
    for _ in range(40):
        shear = rng.uniform(-0.1, 0.1, 2)
        lens = Deflector(
            float(rng.uniform(2, 12)), float(rng.uniform(0.3, 0.99)), float(rng.uniform(0, 3)),
            float(shear[0]), float(shear[1]), float(rng.choice([2.0, 1.6, 2.3])),
        )  # fmt: skip
        x, y = rng.uniform(-20, 20, 2)
        ax, ay, axx, axy, ayy = rays.bend(lens.numbers(), x, y)
        assert [ax, ay] == pytest.approx([float(a) for a in deflect(lens, x, y)], abs=1e-9)
        by_x, by_y = (
            (np.array(deflect(lens, x + h, y + v)) - np.array(deflect(lens, x - h, y - v))) / (2 * step)
            for h, v in ((step, 0), (0, step))
        )
        assert [axx, axy] == pytest.approx(by_x, abs=1e-6)
        assert [axy, ayy] == pytest.approx(by_y, abs=1e-6)
