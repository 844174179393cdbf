"""Turned, mirrored and shifted bands are found; clean, faint and symmetric stamps are left alone."""

from __future__ import annotations

import numpy as np
import pytest

from ripple.imaging.registration.check import check_registration
from ripple.imaging.registration.correlate import TRANSFORMS, undo

SIZE = 64
BANDS = 4


def scene(
    rng: np.random.Generator,
    n: int,
    *,
    shift: tuple[float, float] = (0.0, 0.0),
    snr: float = 60.0,
    neighbours: int = 4,
) -> np.ndarray:
    """Galaxies (elliptical bulge and disc of other colour) and neighbours, `(n, BANDS, SIZE, SIZE)`, noise 1.

    Each band has its own seeing; the last band is moved by `shift`.
    """  # fmt: skip
    y, x = np.mgrid[:SIZE, :SIZE].astype(float)
    out = np.zeros((n, BANDS, SIZE, SIZE))
    for row in range(n):
        for k in range(1 + neighbours):
            place = np.array([SIZE // 2, SIZE // 2]) + (
                rng.uniform(-0.5, 0.5, 2) if k == 0 else rng.uniform(-24, 24, 2)
            )
            flux = snr * (1.0 if k == 0 else rng.uniform(0.2, 1.0))
            angle, ratio, size = rng.uniform(0, np.pi), rng.uniform(0.4, 0.9), rng.uniform(1.5, 4.0)
            colour = rng.uniform(-0.3, 0.3)
            for part, radius in ((0.6, size), (0.4, 0.5)):
                tilt = colour if part > 0.5 else -colour
                for band in range(BANDS):
                    cx, cy = place + (np.array(shift) if band == BANDS - 1 else 0.0)
                    seeing = 1.5 + 0.12 * band
                    u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
                    v = -(x - cx) * np.sin(angle) + (y - cy) * np.cos(angle)
                    a2, b2 = radius**2 + seeing**2, (ratio * radius) ** 2 + seeing**2
                    peak = part * flux * (1 + tilt * (band - 1.5)) * 8 / np.sqrt(a2 * b2)
                    out[row, band] += peak * np.exp(-0.5 * (u**2 / a2 + v**2 / b2))
    return out + rng.normal(size=out.shape)


def apply(plane: np.ndarray, name: str) -> np.ndarray:
    """The inverse of `undo`: turns swap with their opposite, the other orientations are their own inverse."""
    return undo(plane, {"rot90": "rot270", "rot270": "rot90"}.get(name, name))


def check(image: np.ndarray):
    return check_registration(image.astype(np.float32), np.ones_like(image, np.float32))


def test_clean_rows_are_not_flagged():
    rng = np.random.default_rng(1)
    image = np.concatenate([scene(rng, 150, snr=s) for s in (3.0, 10.0, 60.0, 400.0)])
    result = check(image)
    assert result.bad.mean() < 0.01
    assert result.decided[150:].any(axis=1).mean() > 0.8


@pytest.mark.parametrize("name", TRANSFORMS[1:])
def test_turned_band_is_found_and_named(name):
    rng = np.random.default_rng(2)
    image = scene(rng, 40)
    image[:, 2] = apply(image[:, 2], name)
    result = check(image)
    found = result.flagged[:, 2] | ((result.reference == 2) & result.bad)
    assert found.mean() > 0.95
    compared = result.flagged[:, 2] & (result.reference != 2)
    assert (result.transform[compared, 2] == TRANSFORMS.index(name)).mean() > 0.95


@pytest.mark.parametrize("shift", [(0.3, 0.0), (0.4, 0.0), (0.3, -0.3), (2.0, -1.0), (0.0, 7.0)])
def test_shifted_band_is_found_and_measured(shift):
    rng = np.random.default_rng(3)
    result = check(scene(rng, 40, shift=shift, snr=150.0))
    last = BANDS - 1
    compared = result.reference != last
    assert result.bad.mean() > (
        0.75 if 0.35 < np.hypot(*shift) < 5 else 0.6
    )  # large: sources leave the stamp
    measured = result.shift[compared, last]
    assert abs(np.median(measured) - np.hypot(*shift)) < 0.05 + 0.05 * np.hypot(
        *shift
    )  # the taper pulls large ones in


def test_shift_error_is_honest():
    rng = np.random.default_rng(4)
    still = np.repeat(
        scene(rng, 1, snr=15.0, neighbours=0) * 0 + scene(rng, 1, snr=1e6, neighbours=0) / 1e6 * 15,
        300,
        axis=0,
    )
    result = check(still + rng.normal(size=still.shape))
    # Of two independent axes the rms length is the quadrature sum, which is what the error states.
    other = np.flatnonzero(result.reference[0] != np.arange(BANDS))[0]
    fixed = result.reference != other
    rms = np.sqrt(np.mean(result.shift[fixed, other] ** 2))
    assert 0.7 < rms / np.median(result.shift_error[fixed, other]) < 1.4


def test_nothing_to_say_without_signal():
    rng = np.random.default_rng(5)
    result = check(rng.normal(size=(200, BANDS, SIZE, SIZE)))
    assert not result.bad.any()
    assert not result.decided.any()


def test_bands_that_differ_are_not_called_shifted():
    """Blue arc on one side, red lens in the middle: another shape, not another place."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(float)
    rng = np.random.default_rng(6)
    image = rng.normal(size=(50, 2, SIZE, SIZE))
    radius, angle = np.hypot(x - 32, y - 32), np.arctan2(y - 32, x - 32)
    image[:, 0] += 40 * np.exp(-0.5 * ((radius - 7) / 1.6) ** 2 - 0.5 * (angle / 0.7) ** 2) + 8 * np.exp(
        -(radius**2) / 8
    )
    image[:, 1] += 90 * np.exp(-(radius**2) / 14)
    assert not check(image).bad.any()


def test_missing_and_bad_planes_are_left_out():
    rng = np.random.default_rng(7)
    image = scene(rng, 6)
    image[0, 1] = np.nan
    image[1, :, :, :] = np.nan
    image[2, :3] = np.nan
    image[3, 0, :20] = np.nan
    variance = np.ones_like(image)
    variance[4, 0] = -1.0
    result = check_registration(image, variance)
    assert result.reference[1] == result.reference[2] == -1
    assert np.isnan(result.shift[[0, 4], [1, 0]]).all()
    assert not result.bad.any()


def test_two_bands_flag_both_and_rectangles_work():
    rng = np.random.default_rng(8)
    image = scene(rng, 10)[:, :2, 4:60]
    image[:, 1] = image[:, 1, ::-1]
    result = check(image)
    assert result.bad.mean() > 0.8
    np.testing.assert_array_equal(result.flagged[:, 0], result.flagged[:, 1])


def test_same_bytes_whatever_the_batch():
    rng = np.random.default_rng(9)
    image = scene(rng, 70)
    whole, one = check(image), check(image[66:67])
    np.testing.assert_array_equal(whole.shift[66:67], one.shift)
    np.testing.assert_array_equal(whole.peak[66:67], one.peak)


def test_empty_batch():
    assert check(np.zeros((0, 3, SIZE, SIZE))).bad.shape == (0,)
