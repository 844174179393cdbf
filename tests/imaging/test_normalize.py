"""Normalisations: undone to 1e-5, colours kept, hot pixels without influence, streaming constants."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stampmaker import SIGMA, make_batch

import ripple
from ripple.errors import DataError
from ripple.imaging import normalize
from ripple.imaging.batch import TensorBatch
from ripple.imaging.half import to_half
from ripple.imaging.quality.flags import Flag
from ripple.stages.preprocess.batch import DataConstants, preprocess_batch
from ripple.stages.preprocess.config import PreprocessConfig

METHODS = ["asinh", "minmax", "zscore", "log", "sqrt", "percentile", "zscale", "lupton", "none"]


def config(**values: object) -> PreprocessConfig:
    return PreprocessConfig.make({"psf": "none", "registration": False, **values})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scope", ["row", "band", "dataset"])
def test_round_trip(method: str, scope: str) -> None:
    batch = make_batch(4, "gri", 32)
    constants = DataConstants(offset={"g": 1.5, "r": -2.0, "i": 0.0}, scale={"g": 60.0, "r": 61.0, "i": 70.0})
    tensors = preprocess_batch(batch, config(normalize=method, scope=scope), constants)
    flux = ripple.denormalize(tensors)
    assert flux.dtype == np.float32
    np.testing.assert_allclose(flux, batch.image, rtol=1e-5, atol=1e-5 * SIGMA)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(METHODS),
    st.floats(2**-10, 2**30, width=32),
    st.floats(2**-10, 2**20, width=32),
    st.integers(0, 2**31),
)
def test_round_trip_at_any_flux(method: str, flux: float, scale: float, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((1, 3, 5, 5)) * flux
    o, s = np.zeros((1, 3)), np.full((1, 3), scale)
    if method == "lupton":
        x = abs(x)  # bands of opposite sign cancel in the intensity
    y = normalize.transform(x, o, s, method)  # type: ignore[arg-type]
    np.testing.assert_allclose(normalize.invert(y, o, s, method), x, rtol=1e-7)  # type: ignore[arg-type]


def test_colours_survive() -> None:
    """Equal fluxes in two bands give equal tensors whatever the noise of the bands; `band` breaks this."""
    batch = make_batch(3, "gr", 32)
    batch.image[:, 1] = batch.image[:, 0] * 2
    batch.variance[:, 1] = batch.variance[:, 0] * 4
    batch.mask[:, 1] = batch.mask[:, 0]
    for method in ("asinh", "zscore", "minmax"):
        shared = preprocess_batch(batch, config(normalize=method), DataConstants())
        ratio = ripple.denormalize(shared)
        np.testing.assert_allclose(ratio[:, 1], 2 * ratio[:, 0], rtol=1e-4, atol=1e-3)
        assert np.ptp(shared.catalog["norm_scale"]) >= 0
        each = preprocess_batch(batch, config(normalize=method, scope="band"), DataConstants())
        assert np.abs(each.image[:, 0] - each.image[:, 1]).max() < 1e-3  # the colour is gone
        assert np.abs(shared.image[:, 0] - shared.image[:, 1]).max() > 0.3


@pytest.mark.parametrize("method", METHODS)
def test_hot_pixels_change_nothing(method: str) -> None:
    batch = make_batch(2, "gr", 48, seed=1)
    before = preprocess_batch(batch, config(normalize=method), DataConstants())
    bad = batch.bits("SAT")
    for row, band, y, x in ((0, 0, 3, 4), (0, 1, 40, 40), (1, 0, 9, 30)):
        batch.image[row, band, y, x] = 1e9
        batch.mask[row, band, y, x] |= bad
    after = preprocess_batch(batch, config(normalize=method), DataConstants())
    for name in ("norm_offset", "norm_scale"):
        np.testing.assert_allclose(after.catalog[name], before.catalog[name], rtol=0.02, atol=0.3)
    assert np.abs(after.image).max() < 1.2 * np.abs(before.image).max()


def test_statistics_of_a_row_do_not_depend_on_the_others() -> None:
    """To the bit, also beyond the rows that are looked at together."""
    batch = make_batch(normalize.CHUNK + 3, "gr", 24)
    good = np.random.default_rng(1).random(batch.image.shape) < 0.9
    noise = np.ones(batch.image.shape[:2], np.float32)
    whole = normalize.statistics(batch.image, good, noise)
    for k in (0, normalize.CHUNK - 1, normalize.CHUNK, len(batch) - 1):
        alone = normalize.statistics(batch.image[k : k + 1], good[k : k + 1], noise[k : k + 1])
        for name in ("mean", "std", "high", "percentile_low", "zscale_high"):
            np.testing.assert_array_equal(getattr(whole, name)[k], getattr(alone, name)[0])
    assert normalize.statistics(batch.image[:0], good[:0], noise[:0]).mean.shape == (0, 2)


def test_noise_sets_the_softening() -> None:
    tensors = preprocess_batch(make_batch(20, "gri", 64), config(softening=2.0), DataConstants())
    np.testing.assert_allclose(tensors.catalog["norm_scale"], 2 * SIGMA, rtol=0.1)


def test_streaming_equals_whole() -> None:
    batch = make_batch(12, "gr", 32)
    good = np.ones(batch.image.shape, bool)
    stats = normalize.statistics(batch.image, good, np.full((12, 2), SIGMA, np.float32))
    whole = normalize.Accumulator(("g", "r"))
    whole.add(stats)
    parts = normalize.Accumulator(("g", "r"))
    for rows in (slice(0, 5), slice(5, 6), slice(6, 12)):
        fields = {k: getattr(stats, k)[rows] for k in stats.__slots__}
        parts.add(normalize.Statistics(**fields))
    for method in METHODS:
        assert whole.constants(method, 3.0) == parts.constants(method, 3.0)  # type: ignore[arg-type]
    assert whole.constants("minmax", 3.0)[1]["g"] == pytest.approx(np.ptp(batch.image[:, 0]))
    with pytest.raises(DataError, match="scope"):
        normalize.Accumulator(("g",)).constants("asinh", 3.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("what", ["row", "negative", "low pixel", "noise"])
def test_a_row_far_beyond_the_others_has_no_part_in_the_constants(method: Any, what: str) -> None:
    """One row of 1e12 nJy: all rows come back to 1e-5, and the constants are those without it."""
    image = make_batch(40, "gr", 32).image
    noise = np.random.default_rng(0).normal(0, 1e12, image[7].shape)
    image[7] = {"row": 1e12, "negative": -1e12, "low pixel": image[7], "noise": noise}[what]
    if what == "low pixel":
        image[7, :, 3, 3] = -1e12
    sigma, others = np.full((40, 2), SIGMA, np.float32), np.arange(40) != 7
    whole, rest = normalize.Accumulator(("g", "r")), normalize.Accumulator(("g", "r"))
    whole.add(normalize.statistics(image, np.ones(image.shape, bool), sigma))
    rest.add(normalize.statistics(image[others], np.ones(image[others].shape, bool), sigma[others]))
    offset, scale = whole.constants(method, 3.0)
    assert (offset, scale) == rest.constants(method, 3.0)
    assert (whole.rows, whole.outliers, rest.outliers) == (40, 1, 0)
    o, s = (np.tile(np.array([v["g"], v["r"]], np.float32), (40, 1)) for v in (offset, scale))
    flux = normalize.invert(
        normalize.transform(image, o, s, method).astype(float), o.astype(float), s.astype(float), method
    )
    # Bands of opposite sign cancel in the intensity of `lupton`: its worst case, whatever the constants.
    rows = others if method == "lupton" else slice(None)
    tolerance = 1e-4 if method == "lupton" else 1e-5
    np.testing.assert_allclose(flux[rows], image[rows], rtol=1e-5, atol=tolerance * SIGMA)


def test_outliers_are_judged_by_the_first_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same constants however the rows arrive, also where a part ends amid the reference."""
    monkeypatch.setattr(normalize, "REFERENCE_ROWS", 8)
    image = make_batch(20, "gr", 32).image
    image[[2, 15]] = 1e12
    stats = normalize.statistics(image, np.ones(image.shape, bool), np.full((20, 2), SIGMA, np.float32))
    found = []
    for cuts in ([0, 20], [0, 3, 11, 20], [0, 8, 9, 20]):
        total = normalize.Accumulator(("g", "r"))
        for a, b in itertools.pairwise(cuts):
            total.add(normalize.Statistics(**{k: getattr(stats, k)[a:b] for k in stats.__slots__}))
        found.append((total.constants("zscore", 3.0), total.outliers))
    assert found[0] == found[1] == found[2]
    assert found[0][1] == 2
    assert abs(found[0][0][0]["g"]) < 10 * SIGMA


def test_denormalize_refuses_what_it_does_not_know() -> None:
    image = np.zeros((1, 1, 2, 2), np.float32)
    with pytest.raises(DataError, match="normalisation"):
        ripple.denormalize(TensorBatch(("g",), image, image.astype("u1"), {}, 0.2, 1.0, {"method": "magic"}))
    with pytest.raises(DataError, match="offset"):
        ripple.denormalize(TensorBatch(("g",), image, image.astype("u1"), {}, 0.2, 1.0, {"method": "asinh"}))


def test_numpy_and_torch_agree() -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((3, 2, 9, 9)).astype(np.float32) * 100
    o, s = np.full((3, 2), 3, np.float32), np.full((3, 2), 7, np.float32)
    for method in METHODS:
        here = normalize.transform(x, o, s, method)  # type: ignore[arg-type]
        there = normalize.transform(*(torch.from_numpy(a) for a in (x, o, s)), method)  # type: ignore[arg-type]
        np.testing.assert_allclose(here, there.numpy(), rtol=1e-5, atol=1e-5)


def test_values_beyond_float16_are_clipped_and_flagged() -> None:
    batch = make_batch(3, "gri", 32)
    batch.image[1, 2, 16, 16] = 1e5  # nJy; the largest float16 is 65504
    half = preprocess_batch(batch, config(normalize="none", dtype="float16"), DataConstants())
    flagged = half.catalog["qc"] >> np.uint64(Flag.CLIPPED) & np.uint64(1)
    assert flagged.tolist() == [0, 1, 0]
    assert half.image[1, 2, 16, 16] == 65504
    assert np.isfinite(half.image).all()
    whole = preprocess_batch(batch, config(normalize="none", dtype="float32"), DataConstants())
    assert not (whole.catalog["qc"] >> np.uint64(Flag.CLIPPED) & np.uint64(1)).any()


@given(st.lists(st.floats(-65504, 65504, width=32), min_size=1, max_size=50))
def test_halves_are_those_of_numpy(values: list[float]) -> None:
    given_ = np.array(values, np.float32)
    out = np.empty(given_.shape, np.float16)
    to_half(given_, out)
    np.testing.assert_array_equal(out.view(np.uint16), given_.astype(np.float16).view(np.uint16))


def test_every_half_and_what_lies_between() -> None:
    every = np.arange(0, 0x7BFF, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (every[1:] + every[:-1]) / 2  # ties
    near = np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(-np.inf))
    values = np.concatenate([every, middle, *near, -every, -middle])
    out = np.empty(values.shape, np.float16)
    to_half(values, out)
    np.testing.assert_array_equal(out.view(np.uint16), values.astype(np.float16).view(np.uint16))
