"""Fusion of grades: on simulated panels, and agreement against the package of others."""

from __future__ import annotations

import sys
from pathlib import Path

import krippendorff
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, cohen_kappa_score

from ripple.vetting.agreement import alpha, kappa, kappas, offsets
from ripple.vetting.consensus import calibration_error, fuse, logit, sigmoid

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts/bench"))
from vetting import panel


@pytest.fixture(scope="module")
def panels() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    return [panel(seed) for seed in range(3)]


def known(truth: np.ndarray, is_test: np.ndarray) -> np.ndarray:
    return np.where(is_test, truth, -1).astype(np.int8)


def test_fusion_beats_the_mean_grade_and_is_calibrated(panels: list[tuple[np.ndarray, ...]]) -> None:
    """On a panel where the mean grade has an average precision of .85 (`scripts/bench/vetting.py`)."""
    precision, plain, error, held = [], [], [], []
    for level, truth, is_test in panels:
        fused = fuse(level, known(truth, is_test))
        use = ~is_test & (level >= 0).any(axis=1)
        mean = np.where(level >= 0, level, 0).sum(1) / np.maximum((level >= 0).sum(1), 1)
        precision.append(average_precision_score(truth[use], fused.probability[use]))
        plain.append(average_precision_score(truth[use], mean[use]))
        error.append(calibration_error(fused.probability[use], truth[use]))
        seen = is_test & (level >= 0).any(axis=1)
        held.append(
            calibration_error(fused.held_out, truth[seen]) - calibration_error(fused.uncorrected, truth[seen])
        )
        assert fused.slope < 0.95  # they err together
        assert abs(fused.share - 0.15) < 0.05
        assert (fused.low <= fused.high).all()
        inside = (fused.low - 1e-9 <= fused.probability) & (fused.probability <= fused.high + 1e-9)
        assert inside[use].mean() > 0.9
    assert np.mean(precision) > 0.885
    assert np.mean(precision) > np.mean(plain) + 0.03
    assert np.mean(error) < 0.03
    assert np.mean(held) < 0.01


def test_careless_careful_and_contrarian_graders_are_known() -> None:
    """Confusion within the intervals of its counts, though the three see one object in ten as a test."""
    rng = np.random.default_rng(2)
    n = 600
    truth = (rng.random(n) < 0.3).astype(np.int8)
    true = np.array([
        [[0.85, 0.09, 0.04, 0.02], [0.04, 0.11, 0.30, 0.55]],
        [[0.40, 0.30, 0.20, 0.10], [0.25, 0.25, 0.25, 0.25]],
        [[0.10, 0.20, 0.30, 0.40], [0.50, 0.30, 0.15, 0.05]],
    ])  # fmt: skip
    level = np.stack([[rng.choice(4, p=true[j, z]) for z in truth] for j in range(3)], axis=1).astype(np.int8)
    fused = fuse(level, known(truth, np.arange(n) < 90))
    total = fused.counts.sum(axis=2, keepdims=True)
    error = np.sqrt(fused.confusion * (1 - fused.confusion) / total) + 8 / total
    assert (np.abs(fused.confusion - true) < 2.5 * error).all()
    # The contrarian's A is evidence against a lens.
    assert fused.confusion[2, 0, 3] > fused.confusion[2, 1, 3]
    assert average_precision_score(truth[90:], fused.probability[90:]) > 0.9


def test_a_network_is_one_more_witness(panels: list[tuple[np.ndarray, ...]]) -> None:
    level, truth, is_test = panels[0]
    network = np.random.default_rng(0).normal(np.where(truth == 1, 1.0, -1.0), 1.0) * 2
    with_it = fuse(level, known(truth, is_test), network)
    without = fuse(level, known(truth, is_test))
    use = ~is_test
    of = [average_precision_score(truth[use], f.probability[use]) for f in (with_it, without)]
    assert of[0] > of[1] + 0.02
    noise = np.random.default_rng(0).normal(0, 2.0, len(truth))
    useless = fuse(level, known(truth, is_test), noise)
    assert average_precision_score(truth[use], useless.probability[use]) > of[1] - 0.04


@pytest.mark.parametrize("graders", [1, 3])
def test_without_tests_there_is_a_ranking(graders: int) -> None:
    level, truth, is_test = panel(4)
    level = level[~is_test][:, :graders]
    fused = fuse(level, np.full(len(level), -1, np.int8))
    seen = (level >= 0).any(axis=1)
    assert fused.slope == 1.0
    assert len(fused.held_out) == 0
    assert average_precision_score(truth[~is_test][seen], fused.probability[seen]) > 0.55


def test_few_tests_change_little_and_same_seed_same_numbers() -> None:
    level, truth, is_test = panel(5)
    few = known(truth, np.cumsum(is_test) * is_test > 144)
    one, two = fuse(level, few, seed=3), fuse(level, few, seed=3)
    assert 0.4 < one.slope < 1.3
    for name in ("probability", "low", "high", "held_out"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    only_lenses = np.where(few == 0, -1, few).astype(np.int8)
    assert np.isfinite(fuse(level, only_lenses).probability).all()


def test_odds_and_calibration_error() -> None:
    p = np.array([0.001, 0.3, 0.5, 0.9])
    np.testing.assert_allclose(sigmoid(logit(p)), p)
    truth = (np.random.default_rng(0).random(20_000) < 0.3).astype(int)
    assert calibration_error(np.full(20_000, 0.3), truth) < 0.02
    assert calibration_error(np.full(20_000, 0.5), truth) == pytest.approx(0.2, abs=0.02)


# Agreement ----------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_alpha_is_that_of_the_package(seed: int) -> None:
    level, _, _ = panel(seed)
    level = level[:: 7 * (seed + 1)]
    data = np.where(level >= 0, level, np.nan).astype(float).T
    want = krippendorff.alpha(
        reliability_data=data, level_of_measurement="ordinal", value_domain=[0, 1, 2, 3]
    )
    assert alpha(level) == pytest.approx(want, abs=1e-12)


def test_agreement_of_extremes() -> None:
    same = np.repeat(np.array([[0], [1], [3], [2]], np.int8), 3, axis=1)
    assert alpha(same) == pytest.approx(1.0)
    assert kappa(same[:, 0], same[:, 1]) == pytest.approx(1.0)
    none = np.full((4, 2), -1, np.int8)
    assert np.isnan(alpha(none))
    assert np.isnan(kappa(none[:, 0], none[:, 1]))
    assert np.isnan(offsets(none)).all()
    assert np.isnan(kappas(np.zeros((5, 2), np.int8))).all()


def test_kappa_and_offsets_use_what_both_graded() -> None:
    level = np.array([[0, 1, -1], [3, 3, 2], [2, -1, 2], [1, 3, -1], [-1, 0, 0]], np.int8)
    both = [(0, 1), (3, 3), (1, 3)]
    assert kappa(level[:, 0], level[:, 1]) == pytest.approx(
        cohen_kappa_score(*zip(*both, strict=True), labels=[0, 1, 2, 3], weights="quadratic")
    )
    found = offsets(level)
    assert found[0] == pytest.approx(np.mean([0 - 1, 3 - 2.5, 2 - 2, 1 - 3]))
