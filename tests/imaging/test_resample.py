"""Pixels of another tract on this tract's grid: position, flux and variance."""

from __future__ import annotations

import numpy as np

from ripple.imaging.resample import lanczos, locate, resample
from ripple.sky.geometry import Box, Tan
from ripple.sky.skymap import known

SIGMA = 2.2


def star(tan: Tan, box: Box, ra: float, dec: float, flux: float = 1000.0) -> np.ndarray:
    """A Gaussian star of FWHM 1 arcsec on a pixel grid."""
    x, y = tan.sky_to_pixel(ra, dec)
    gy, gx = np.mgrid[box.y0 : box.y1, box.x0 : box.x1]
    profile = np.exp(-((gx - x) ** 2 + (gy - y) ** 2) / (2 * SIGMA**2)) / (2 * np.pi * SIGMA**2)
    return (flux * profile).astype(np.float32)


def pair() -> tuple[Tan, Tan, float, float]:
    """Two neighbouring tracts of lsst_cells_v2 and a position in their overlap."""
    skymap = known("lsst_cells_v2")
    own = skymap.tan(5063)
    box = skymap.tract_box(5063)
    ra, dec = own.pixel_to_sky(float(box.x1) - 150, float(box.y0 + box.y1) / 2)
    row, tract = skymap.all_tracts(np.atleast_1d(ra), np.atleast_1d(dec))
    other = next(int(t) for t in tract if t != 5063)
    assert len(row) > 1
    return own, skymap.tan(other), float(ra), float(dec)


def test_a_star_lands_where_it_is_with_its_flux() -> None:
    own, other, ra, dec = pair()
    x, y = own.sky_to_pixel(ra, dec)
    stamp = Box.around(float(x), float(y), 41)
    sources = locate(stamp, own, other)
    wanted = np.ones(stamp.shape, bool)
    box = sources.box(wanted).grown(2)
    planes = {
        "image": star(other, box, ra, dec),
        "variance": np.full(box.shape, 9.0, np.float32),
        "mask": np.zeros(box.shape, np.uint32),
    }
    done, values = resample(planes, box, sources, wanted)
    assert done.all()
    image = values["image"].reshape(stamp.shape)
    expected = star(own, stamp, ra, dec)
    assert np.abs(image - expected).max() < 5e-3 * expected.max()  # the ripple of Lanczos-3 itself
    assert abs(image.sum() / expected.sum() - 1) < 1e-3
    gy, gx = np.mgrid[stamp.y0 : stamp.y1, stamp.x0 : stamp.x1]
    assert abs((image * gx).sum() / image.sum() - x) < 0.03
    assert abs((image * gy).sum() / image.sum() - y) < 0.03


def test_variance_of_resampled_noise_is_as_predicted() -> None:
    own, other, ra, dec = pair()
    x, y = own.sky_to_pixel(ra, dec)
    stamp = Box.around(float(x), float(y), 64)
    sources = locate(stamp, own, other)
    wanted = np.ones(stamp.shape, bool)
    box = sources.box(wanted).grown(1)
    rng = np.random.default_rng(4)
    stack = []
    for _ in range(60):
        planes = {
            "image": rng.normal(0, 3, box.shape).astype(np.float32),
            "variance": np.full(box.shape, 9.0, np.float32),
            "mask": np.zeros(box.shape, np.uint32),
        }
        _, values = resample(planes, box, sources, wanted)
        stack.append(values["image"])
    assert abs(np.var(stack) / values["variance"].mean() - 1) < 0.03


def test_masks_are_joined_and_nan_stays_nan() -> None:
    own, other, ra, dec = pair()
    x, y = own.sky_to_pixel(ra, dec)
    stamp = Box.around(float(x), float(y), 21)
    sources = locate(stamp, own, other)
    wanted = np.ones(stamp.shape, bool)
    box = sources.box(wanted).grown(1)
    image = np.ones(box.shape, np.float32)
    mask = np.zeros(box.shape, np.uint32)
    image[box.height // 2, box.width // 2] = np.nan
    mask[box.height // 2, box.width // 2] = 4
    planes = {"image": image, "variance": np.ones(box.shape, np.float32), "mask": mask}
    done, values = resample(planes, box, sources, wanted)
    assert 1 <= (values["mask"] == 4).sum() <= 9
    assert 16 <= np.isnan(values["image"]).sum() <= 49
    good = np.isfinite(values["image"])
    np.testing.assert_allclose(values["image"][good], sources.area[done][good], rtol=1e-5)


def test_pixels_without_all_taps_are_left_out() -> None:
    own, other, ra, dec = pair()
    x, y = own.sky_to_pixel(ra, dec)
    stamp = Box.around(float(x), float(y), 21)
    sources = locate(stamp, own, other)
    wanted = np.ones(stamp.shape, bool)
    whole = sources.box(wanted)
    half = Box(whole.x0, whole.y0, (whole.x0 + whole.x1) // 2, whole.y1)
    planes = {
        "image": np.ones(half.shape, np.float32),
        "variance": np.ones(half.shape, np.float32),
        "mask": np.zeros(half.shape, np.uint32),
    }
    done, values = resample(planes, half, sources, wanted)
    assert 0 < done.sum() < wanted.sum()
    assert np.isfinite(values["image"]).all()


def test_lanczos_weights_sum_to_one_and_pick_the_pixel_itself() -> None:
    weights = lanczos(np.linspace(0, 0.999, 50))
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_allclose(weights[0], [0, 0, 1, 0, 0, 0], atol=1e-12)
