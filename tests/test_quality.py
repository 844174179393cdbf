"""Quality control: planted defects are caught with the right reason, clean rows are left alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from stampmaker import SIGMA, bit, make_batch, moffat

from ripple import quality
from ripple.cutouts import CutoutBatch
from ripple.errors import ConfigError
from ripple.prepare import PreprocessConfig, preprocess_batch
from ripple.quality import Flag

CONFIG = PreprocessConfig.make({"psf": "match"})
PLACES = 50


def flags(batch: CutoutBatch, config: PreprocessConfig = CONFIG) -> tuple[np.ndarray, np.ndarray]:
    tensors = preprocess_batch(batch, config, {"margin": 12})
    assert np.isfinite(tensors.image).all()
    return tensors.catalog["qc"], tensors.catalog["accept"]


def has(qc: np.ndarray, flag: Flag) -> np.ndarray:
    return (qc >> np.uint64(flag)) & np.uint64(1) == 1


def _blob(batch: CutoutBatch, row: int, rng: np.random.Generator, side: int) -> tuple[slice, slice]:
    """A square in the stamp proper, within the central half when `side` is small."""
    lo = 12 + (20 if side <= 10 else 0)
    y, x = rng.integers(lo, lo + (44 if side <= 10 else 64) - 20 - side + (0 if side <= 10 else 12), 2)
    return slice(y, y + side), slice(x, x + side)


def _mask(name: str, side: int) -> Callable[[CutoutBatch, int, np.random.Generator], None]:
    def plant(batch: CutoutBatch, row: int, rng: np.random.Generator) -> None:
        y, x = _blob(batch, row, rng, side)
        batch.mask[row, rng.integers(len(batch.bands)), y, x] |= bit(name)

    return plant


def nan_block(batch: CutoutBatch, row: int, rng: np.random.Generator) -> None:
    y, x = _blob(batch, row, rng, 28)
    batch.image[row, rng.integers(3), y, x] = rng.choice([np.nan, np.inf, -np.inf])


def bad_variance(batch: CutoutBatch, row: int, rng: np.random.Generator) -> None:
    y, x = _blob(batch, row, rng, 28)
    batch.variance[row, rng.integers(3), y, x] = rng.choice([0.0, -1.0, np.nan])


def missing_cell(batch: CutoutBatch, row: int, rng: np.random.Generator) -> None:
    band, cut = rng.integers(3), slice(0, int(rng.integers(20, 60)))
    batch.image[row, band, cut] = np.nan
    batch.variance[row, band, cut] = np.inf
    batch.mask[row, band, cut] |= bit("NO_DATA")


def unmasked_cosmic_ray(batch: CutoutBatch, row: int, rng: np.random.Generator) -> None:
    y, x = rng.integers(14, 74, 2)
    batch.image[row, rng.integers(3), y, x] += 3000 + 3 * abs(batch.image[row, :, y, x]).max()


def blank(batch: CutoutBatch, row: int, rng: np.random.Generator) -> None:
    batch.image[row] = SIGMA * rng.standard_normal(batch.image.shape[1:])
    batch.mask[row] = 0


def offset(batch: CutoutBatch, row: int, rng: np.random.Generator) -> None:
    batch.image[row, rng.integers(3)] += SIGMA * rng.choice([-2.5, 2.5])


def dip(batch: CutoutBatch, row: int, rng: np.random.Generator) -> None:
    """Background over-subtracted around a bright object."""
    angle, distance = rng.uniform(0, 2 * np.pi), rng.uniform(16, 26)
    where = 44 + distance * np.array([np.sin(angle), np.cos(angle)])
    y, x = np.indices(batch.image.shape[2:]) - where[:, None, None]
    batch.image[row, rng.integers(3)] -= 4 * SIGMA * np.exp(-(x**2 + y**2) / (2 * 5**2)).astype(np.float32)


def wrong_variance(batch: CutoutBatch, row: int, rng: np.random.Generator) -> None:
    batch.variance[row, rng.integers(3)] *= rng.choice([0.2, 5.0])


def dead_psf(batch: CutoutBatch, row: int, rng: np.random.Generator) -> None:
    batch.psf_index[row, rng.integers(3)] = rng.choice([-1, 3, 4, 5])


def wide_psf(batch: CutoutBatch, row: int, rng: np.random.Generator) -> None:
    batch.psf_index[row, rng.integers(3)] = 6


def shifted(batch: CutoutBatch, row: int, rng: np.random.Generator) -> None:
    batch.image[row, rng.integers(3)] = np.roll(batch.image[row, rng.integers(3)], 2, axis=0)


def turned(batch: CutoutBatch, row: int, rng: np.random.Generator) -> None:
    batch.image[row, 1] = np.rot90(batch.image[row, 1])


def missing_band(batch: CutoutBatch, row: int, rng: np.random.Generator) -> None:
    band = rng.integers(3)
    batch.image[row, band], batch.variance[row, band] = np.nan, np.nan
    batch.mask[row, band] = bit("NO_DATA")
    batch.psf_index[row, band] = -1


def duplicate(batch: CutoutBatch, row: int, rng: np.random.Generator) -> None:
    batch.catalog["dec"][row] = batch.catalog["dec"][row - 1] + 0.3 / 3600
    batch.catalog["ra"][row] = batch.catalog["ra"][row - 1]


DEFECTS: dict[str, tuple[Callable[[CutoutBatch, int, np.random.Generator], None], set[Flag]]] = {
    "saturated centre": (_mask("SAT", 6), {Flag.CENTRE_SATURATED}),
    "saturated centre, DP2 name": (_mask("SATURATED", 6), {Flag.CENTRE_SATURATED}),
    "cosmic ray": (_mask("CR", 10), {Flag.COSMIC_RAY}),
    "cosmic ray, DP2 name": (_mask("COSMIC_RAY", 10), {Flag.COSMIC_RAY}),
    "interpolated": (_mask("INTRP", 40), {Flag.INTERPOLATED}),
    "interpolated, DP2 name": (_mask("INTERPOLATED", 40), {Flag.INTERPOLATED}),
    "edge": (_mask("EDGE", 40), {Flag.EDGE}),
    "detection edge": (_mask("DETECTION_EDGE", 40), {Flag.EDGE}),
    "bad pixels": (_mask("BAD", 28), {Flag.BAD_PIXELS}),
    "no data": (_mask("NO_DATA", 28), {Flag.NO_DATA}),
    "streak": (_mask("STREAK", 40), {Flag.SUSPECT}),
    "not finite": (nan_block, {Flag.BAD_PIXELS}),
    "variance not positive": (bad_variance, {Flag.BAD_PIXELS}),
    "missing cell": (missing_cell, {Flag.MISSING_CELL}),
    "unmasked cosmic ray": (unmasked_cosmic_ray, {Flag.COSMIC_RAY}),
    "nothing there": (blank, {Flag.BLANK}),
    "background offset": (offset, {Flag.BACKGROUND}),
    "over-subtracted": (dip, {Flag.DIP}),
    "wrong variance": (wrong_variance, {Flag.VARIANCE}),
    "no usable PSF": (dead_psf, {Flag.PSF_INVALID}),
    "wide PSF": (wide_psf, {Flag.PSF_WIDTH}),
    "shifted band": (shifted, {Flag.REGISTRATION}),
    "turned band": (turned, {Flag.REGISTRATION}),
    "missing band": (missing_band, {Flag.MISSING_BAND}),
    "duplicate": (duplicate, {Flag.DUPLICATE}),
}


def survey(seed: int) -> CutoutBatch:
    """Clean rows with extra PSFs that are dead (3 to 5) and too wide (6)."""
    batch = make_batch(2 * PLACES, "gri", 64, 12, seed=seed)
    good = batch.psf[0]
    extra = np.stack([np.zeros_like(good), good * np.nan, np.roll(good, 1, 0), moffat(14.0).astype("f4")])
    return CutoutBatch(
        batch.bands, batch.image, batch.variance, batch.mask, batch.mask_planes,
        np.concatenate([batch.psf, extra]), batch.psf_index, batch.catalog, batch.wcs,
    )  # fmt: skip


def confusion() -> dict[str, dict[str, int]]:
    """Defect -> flag -> rows among `PLACES` that carry it, for the table in the documents."""
    table = {}
    for number, (name, (plant, _)) in enumerate(DEFECTS.items()):
        batch, rng = survey(number), np.random.default_rng(number)
        for row in range(1, 2 * PLACES, 2):
            plant(batch, row, rng)
        qc, accept = flags(batch)
        table[name] = {
            flag.label: int(has(qc[1::2], flag).sum()) for flag in Flag if has(qc[1::2], flag).any()
        }
        noisy = qc[0::2] & ~np.uint64(1 << Flag.PSF_EDGE)
        table[name]["clean rows flagged"] = int((noisy != 0).sum())
        table[name]["clean rows rejected"] = int((accept[0::2] == 0).sum())
    return table


@pytest.mark.slow
def test_planted_defects() -> None:
    """Every defect of 50 is caught with the right reason; fewer than 1 % of clean rows are flagged."""
    table = confusion()
    for name, (_, expected) in DEFECTS.items():
        # A quarter turn of a round galaxy cannot be seen by anybody.
        least = PLACES // 2 if name == "turned band" else PLACES
        for flag in expected:
            assert table[name].get(flag.label, 0) >= least, (name, table[name])
    alarms = sum(row["clean rows flagged"] for row in table.values())
    assert alarms < 0.01 * PLACES * len(DEFECTS)


def test_some_planted_defects() -> None:
    """A quick version: five places per defect in one batch."""
    names = [n for n in DEFECTS if "band" not in n]
    batch, rng = survey(77), np.random.default_rng(7)
    for k, name in enumerate(names):
        DEFECTS[name][0](batch, 2 * k + 1, rng)
    qc, accept = flags(batch)
    for k, name in enumerate(names):
        for flag in DEFECTS[name][1]:
            assert has(qc[2 * k + 1 : 2 * k + 2], flag).all(), (name, quality.names(int(qc[2 * k + 1])))
    assert accept[0::2].all()


def test_policies_and_verdict() -> None:
    batch = make_batch(3, "gr", 40, 12)
    missing_first = batch.image[1, 0]
    missing_first[:] = np.nan
    batch.variance[1, 0] = np.nan
    batch.mask[1, 0] = bit("NO_DATA")
    verdicts = {}
    for policy in ("reject", "mask", "keep"):
        config = PreprocessConfig.make({"missing_band": policy, "registration": False, "psf": "none"})
        tensors = preprocess_batch(batch, config, {"margin": 12})
        verdicts[policy] = (int(tensors.catalog["accept"][1]), quality.names(int(tensors.catalog["qc"][1])))
        assert not tensors.image[1, 0].any()
        assert not tensors.valid[1, 0].any()
        assert tensors.catalog["band_mask"].tolist() == [3, 2, 3]
    assert verdicts == {"reject": (0, ["missing_band"]), "mask": (1, ["missing_band"]), "keep": (1, [])}


def test_unknown_flag_is_refused() -> None:
    with pytest.raises(ConfigError, match="saturated"):
        PreprocessConfig.make({"reject": ["saturatd"]})


def test_duplicates_across_ra_zero() -> None:
    ra, dec = np.array([359.99999, 0.00001, 10.0, np.nan]), np.array([0.0, 0.0, 0.0, 0.0])
    assert quality.duplicates(ra, dec, 1.0).tolist() == [False, True, False, False]
