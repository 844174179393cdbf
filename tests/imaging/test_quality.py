"""Quality control: planted defects are caught with the right reason, clean rows are left alone."""

from __future__ import annotations

import numpy as np
import pytest
from planted import DEFECTS, confusion
from stampmaker import SIGMA, bit, make_batch

from ripple.errors import ConfigError
from ripple.imaging.batch import CutoutBatch
from ripple.imaging.quality.flags import Flag, flag_names
from ripple.sky.neighbours import repeated
from ripple.stages.preprocess.batch import DataConstants, preprocess_batch
from ripple.stages.preprocess.config import PreprocessConfig

CONFIG = PreprocessConfig.make({"psf": "match"})
PLACES = 20


def flags(batch: CutoutBatch, config: PreprocessConfig = CONFIG) -> tuple[np.ndarray, np.ndarray]:
    tensors = preprocess_batch(batch, config, DataConstants(margin=12))
    assert np.isfinite(tensors.image).all()
    return tensors.catalog["qc"], tensors.catalog["accept"]


def has(qc: np.ndarray, flag: Flag) -> np.ndarray:
    return (qc >> np.uint64(flag)) & np.uint64(1) == 1


def test_planted_defects() -> None:
    """Every defect is caught with the right reason; fewer than 1 % of clean rows are flagged."""
    batch = make_batch(2 * PLACES, "gri", 64, 12)
    table = confusion(batch, np.arange(1, 2 * PLACES, 2), 12, CONFIG, DataConstants(12))
    for name in DEFECTS:
        found, turned = table[name], name == "turned band"
        # Nobody can see a quarter turn of a round galaxy.
        assert found["visible"] == PLACES or (turned and found["visible"] > PLACES / 2), (name, found)
        assert found["found"] >= found["visible"] * (0.9 if turned else 1), (name, found)
    qc, accept = flags(make_batch(200, "gri", 64, 12, seed=1))
    assert accept.mean() > 0.99
    assert (qc != 0).mean() < 0.01


def test_crowded_sky_is_no_fault() -> None:
    """Wings that fill the stamp are neither background, noise nor dips; their noise is that of the sky."""
    batch, rng = make_batch(20, "gri", 64, 12), np.random.default_rng(5)
    y, x = np.indices((88, 88))
    for row in range(20):
        cy, cx = rng.uniform(-10, 98, 2)
        halo = np.exp(-np.hypot(y - cy, x - cx) / rng.uniform(15, 40))
        batch.image[row] += 15 * SIGMA * halo * np.array([0.4, 0.8, 1.0])[:, None, None]
    batch.mask[:] |= bit("DETECTED")
    tensors = preprocess_batch(batch, CONFIG, DataConstants(margin=12))
    assert tensors.catalog["accept"].all()
    assert not has(tensors.catalog["qc"], Flag.BACKGROUND).any()
    assert not has(tensors.catalog["qc"], Flag.VARIANCE).any()
    assert np.abs(tensors.catalog["qc_noise_ratio_i"] - 1).max() < 0.1


def test_policies_and_verdict() -> None:
    batch = make_batch(3, "gr", 40, 12)
    missing_first = batch.image[1, 0]
    missing_first[:] = np.nan
    batch.variance[1, 0] = np.nan
    batch.mask[1, 0] = bit("NO_DATA")
    verdicts = {}
    for policy in ("reject", "flag", "ignore"):
        config = PreprocessConfig.make({"missing_band": policy, "registration": False, "psf": "none"})
        tensors = preprocess_batch(batch, config, DataConstants(margin=12))
        verdicts[policy] = (int(tensors.catalog["accept"][1]), flag_names(int(tensors.catalog["qc"][1])))
        assert not tensors.image[1, 0].any()
        assert not tensors.valid[1, 0].any()
        assert tensors.catalog["band_mask"].tolist() == [3, 2, 3]
    assert verdicts == {"reject": (0, ["missing_band"]), "flag": (1, ["missing_band"]), "ignore": (1, [])}


def test_unknown_flag_is_refused() -> None:
    with pytest.raises(ConfigError, match="saturated"):
        PreprocessConfig.make({"quality": {"reject": ["saturatd"]}})


def test_duplicates_across_ra_zero() -> None:
    ra, dec = np.array([359.99999, 0.00001, 10.0, np.nan]), np.array([0.0, 0.0, 0.0, 0.0])
    assert repeated(ra, dec, 1.0).tolist() == [False, True, False, False]
