"""Metrics against cases computed by hand and against scikit-learn; calibration; gates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from ripple.errors import DataError
from ripple.learn.evaluation import intervals, metrics, slices
from ripple.learn.evaluation.evaluate import (
    Sky,
    evaluate,
    evaluate_classes,
    evaluate_regression,
    ranking_estimates,
)
from ripple.learn.model import calibrate

#: Ranked from the top: lens, lens, other, lens, other, other.
LABEL = np.array([1, 1, 0, 1, 0, 0])
SCORE = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])


def test_by_hand() -> None:
    c = metrics.curve(LABEL, SCORE)
    assert metrics.auroc(c) == pytest.approx(8 / 9)  # one of nine pairs is in the wrong order
    assert metrics.pr_auc(c) == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert metrics.tpr0(c) == pytest.approx(2 / 3)
    assert metrics.tpr10(c) == 1.0
    assert metrics.tpr_at_fpr(c, 0.33) == pytest.approx(2 / 3)
    assert metrics.tpr_at_fpr(c, 1 / 3) == 1.0
    assert metrics.f_beta(c, 1.0) == pytest.approx(2 * 0.75 / 1.75)  # P = 3/4, R = 1
    # beta^2 = 0.001: purity decides, the point with P = 1, R = 2/3
    assert metrics.f_beta(c) == pytest.approx(1.001 * (2 / 3) / (0.001 + 2 / 3))
    assert metrics.confusion(LABEL, SCORE, 0.65) == {"tp": 2, "fp": 1, "fn": 1, "tn": 2}
    assert metrics.threshold_at_fpr(c, 0.0) == 0.8
    assert metrics.threshold_at_fpr(c, 0.4) == 0.6


def test_tpr10_stops_before_the_tenth_false_positive() -> None:
    label = np.array([0] * 9 + [1] + [0] + [1] * 3)
    c = metrics.curve(label, -np.arange(14.0))
    assert metrics.tpr10(c) == pytest.approx(1 / 4)
    assert metrics.tpr0(c) == 0.0


def test_a_top_score_shared_by_both_classes_gives_tpr0_of_zero() -> None:
    assert metrics.tpr0(metrics.curve([1, 0, 1, 0], [1.0, 1.0, 0.5, 0.1])) == 0.0
    assert metrics.auroc(metrics.curve([1, 0], [0.5, 0.5])) == 0.5


def test_purity_is_that_of_the_sky_and_not_of_the_test_set() -> None:
    # TPR 1/2 before the first false positive, then 1 of 100 others, then the rest.
    label = np.array([1] * 5 + [0] + [1] * 5 + [0] * 99)
    c = metrics.curve(label, -np.arange(110.0))
    purity, completeness = metrics.at_density(c, 3.0, lenses=6, sources=1000)
    assert (purity, completeness) == (1.0, 0.5)
    # 6 * 0.5 + 1000 * 0.01 = 13 candidates per deg^2 hold 3 lenses
    purity, completeness = metrics.at_density(c, 13.0, lenses=6, sources=1000)
    assert purity == pytest.approx(3 / 13)
    assert completeness == pytest.approx(0.5)
    assert metrics.at_density(c, 1e6, lenses=6, sources=1000) == (6 / 1006, 1.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 400), st.integers(2, 50))
def test_agrees_with_scikit_learn(seed: int, n: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    label = np.append(rng.integers(0, 2, n), [0, 1])
    score = np.round((rng.normal(size=n + 2) + label) * levels) / levels  # with ties
    c = metrics.curve(label, score)
    assert metrics.auroc(c) == pytest.approx(sk.roc_auc_score(label, score), abs=1e-12)
    assert metrics.pr_auc(c) == pytest.approx(sk.average_precision_score(label, score), abs=1e-12)
    fpr, tpr, _ = sk.roc_curve(label, score, drop_intermediate=False)
    for limit in (0.0, 0.01, 0.1, 0.5):
        assert metrics.tpr_at_fpr(c, limit) == pytest.approx(tpr[fpr <= limit + 1e-12].max())
    best = max(
        sk.fbeta_score(label, score >= t, beta=np.sqrt(0.001), zero_division=0) for t in np.unique(score)
    )
    assert metrics.f_beta(c) == pytest.approx(best, abs=1e-9)
    p = calibrate.sigmoid(score)
    assert metrics.brier(label, p) == pytest.approx(sk.brier_score_loss(label, p))


def test_ece_by_hand() -> None:
    # Two bins: 0.1 said and 1 of 4 true, 0.9 said and 3 of 4 true: gaps of 0.15 with equal weight.
    p = np.array([0.1] * 4 + [0.9] * 4)
    label = np.array([1, 0, 0, 0, 1, 1, 1, 0])
    assert metrics.ece(label, p, bins=2) == pytest.approx(0.15)
    assert [r["fraction"] for r in metrics.reliability(label, p, bins=2)] == [0.25, 0.75]
    assert metrics.ece(label, label.astype(float)) == 0.0


def test_few_rows_show_a_calibration_error_that_is_not_there() -> None:
    """Labels drawn from the very probabilities: the ECE is that of the scatter, and says so."""
    rng = np.random.default_rng(0)
    p = rng.beta(0.5, 2.0, 20000)
    label = (rng.random(len(p)) < p).astype(int)
    few, many = (intervals.ece_expected(p[:n], draws=200) for n in (160, 20000))
    assert few.value > 0.04
    assert many.value < 0.01
    inside = 0
    for k in range(100):
        rows = slice(160 * k, 160 * (k + 1))
        expected = intervals.ece_expected(p[rows], draws=100)
        inside += expected.low <= metrics.ece(label[rows], p[rows]) <= expected.high
    assert inside >= 88  # 95 expected
    assert metrics.ece(label, np.sqrt(p)) > intervals.ece_expected(np.sqrt(p), draws=100).high


def test_intervals_cover_and_are_reproducible() -> None:
    """The 95 % interval holds the true AUROC of two Gaussians, Phi(1 / sqrt 2), about 19 times of 20."""
    from scipy.stats import norm

    truth, hits = norm.cdf(1 / np.sqrt(2)), 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        label = np.repeat([0, 1], [150, 60])
        score = rng.normal(size=210) + label
        found = intervals.auroc_estimate(label, score, draws=200, seed=seed)
        hits += found.low <= truth <= found.high
    assert 50 <= hits <= 60  # 57 expected; below 50 has a chance of 1e-4
    assert intervals.auroc_estimate(label, score, draws=200, seed=59) == found


def test_exact_limits_by_hand() -> None:
    # Clopper & Pearson's table: 5 of 10 have 0.187 and 0.813; none of 10 leaves 1 - 0.025^(1/10).
    found = intervals.clopper_pearson(5, 10)
    assert (found.low, found.high) == (pytest.approx(0.1871, abs=1e-4), pytest.approx(0.8129, abs=1e-4))
    assert intervals.clopper_pearson(0, 10).high == pytest.approx(1 - 0.025**0.1)
    assert intervals.clopper_pearson(10, 10).low == pytest.approx(0.025**0.1)
    assert intervals.clopper_pearson(0, 0).high == 1.0
    # Wilson 1927: (p + z^2/2n +- z sqrt(...)) / (1 + z^2/n)
    assert intervals.score_limits(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_a_perfect_ranking_of_few_rows_is_not_certain() -> None:
    label = np.repeat([1, 0], [27, 137])
    found = evaluate(label, label + 0.0, label * 0.9 + 0.05, threshold=0.5, draws=50)["metrics"]
    assert found["auroc"]["value"] == found["pr_auc"]["value"] == 1.0
    assert found["auroc"]["low"] < 0.99
    assert found["pr_auc"]["low"] == pytest.approx(27 / (27 + 1.959964**2))  # Wilson's limit of 27 of 27
    # No false positive of 137: the exact limit is 1 - 0.025^(1/137), in 10,000 sources 266 per deg^2.
    limit = 1 - 0.025 ** (1 / 137)
    assert found["fpr_at_threshold"]["high"] == pytest.approx(limit, abs=1e-6)
    assert found["false_per_deg2_at_threshold"]["high"] == pytest.approx(1e4 * limit, abs=1e-4)
    assert found["purity_at_threshold"]["value"] is None


def test_what_the_test_set_cannot_resolve_is_none_with_the_reason() -> None:
    """Rule of three: a rate r needs 3 / r non-lenses."""
    rng = np.random.default_rng(0)
    label = np.repeat([1, 0], [50, 300])
    found = ranking_estimates(label, rng.normal(size=350) + 3 * label, Sky(), draws=20)
    assert found["tpr_at_fpr_1e-2"]["value"] is not None  # 3 of 300
    for name, needed in (
        ("tpr_at_fpr_1e-3", "3,000"), ("tpr_at_fpr_1e-4", "30,000"),
        ("purity_at_10_per_deg2", "3,000"), ("completeness_at_1_per_deg2", "30,000"),
    ):  # fmt: skip
        assert found[name]["value"] is None
        assert found[name]["reason"].endswith(f"needs {needed} non-lenses, the test set has 300")
    assert found["purity_at_100_per_deg2"]["value"] is not None  # a rate of 0.01
    one_less = ranking_estimates(label[:-1], rng.normal(size=349), Sky(), draws=20)
    assert one_less["tpr_at_fpr_1e-2"]["value"] is None


def test_limits_of_the_tpr_at_a_given_fpr_are_those_of_order_statistics() -> None:
    """All 40 lenses lie between the 7th and the 8th of 300 non-lenses."""
    score = np.concatenate([np.arange(300.0)[::-1], np.full(40, 292.5)])
    c = metrics.curve(np.repeat([0, 1], [300, 40]), score)
    # The 7th non-lens lies below an FPR of 0.05 with certainty, and 0.01 may be above or below it.
    low, high = intervals.tpr_limits(c, lenses=0.0, others=1.0, budget=0.05)
    assert (low, high) == (pytest.approx(0.025 ** (1 / 40)), 1.0)
    assert intervals.tpr_limits(c, lenses=0.0, others=1.0, budget=0.01)[0] == 0.0


def test_rows_of_one_cell_are_drawn_together() -> None:
    """Forty copies of five rows: the interval of the mean is that of five rows, not of two hundred."""
    value, cell = np.repeat([0.0, 0.0, 1.0, 1.0, 1.0], 40), np.repeat(np.arange(5), 40)
    together = intervals.mean_estimate(value, cell, draws=500, seed=0)
    alone = intervals.mean_estimate(value, None, draws=500, seed=0)
    # The scatter of a mean of n rows is sqrt(0.24 / n): 0.22 and 0.035.
    assert together.high - together.low > 0.6
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * np.sqrt(0.24 / 200), rel=0.15)
    weights = next(intervals.row_weights(np.array([7, 7, -1, -1]), 1, 3))
    assert weights[0] == weights[1]
    assert weights.sum() != 0


def test_the_report_is_json_and_complete() -> None:
    import json

    rng = np.random.default_rng(0)
    label = (rng.random(2000) < 0.1).astype(int)
    logit = rng.normal(size=2000) + 2 * label
    report = evaluate(label, calibrate.sigmoid(logit), calibrate.sigmoid(logit - 3), threshold=0.7, draws=50)
    json.dumps(report, allow_nan=False)
    wanted = {
        "auroc",
        "pr_auc",
        "tpr0",
        "tpr10",
        "f_beta",
        "tpr_at_fpr_1e-4",
        "tpr_at_fpr_1e-3",
        "ece",
        "brier",
    }
    wanted |= {"tpr_at_fpr_1e-2", "purity_at_1_per_deg2", "completeness_at_100_per_deg2"}
    assert wanted <= set(report["metrics"])
    for name, entry in report["metrics"].items():
        if entry["value"] is None:
            assert entry["reason"], name
        elif name != "ece":  # it is compared with `ece_expected` instead
            assert entry["low"] <= entry["value"] <= entry["high"], name
    assert "low" not in report["metrics"]["ece"]
    assert sum(report["confusion"].values()) == 2000


def test_slices_keep_all_non_lenses_for_columns_of_the_arc() -> None:
    rng = np.random.default_rng(1)
    label = np.repeat([1, 0], [200, 300])
    brightness = np.where(label == 1, rng.uniform(22, 26, 500), np.nan)
    score = np.where(label == 1, 26 - brightness, rng.uniform(0, 2, 500))
    seeing = rng.normal(1, 0.1, 500)
    found = slices.slices(label, score, {"arc_sb": brightness, "psf_g": seeing}, threshold=2.0, draws=20)
    arcs = [s for s in found if s["column"] == "arc_sb"]
    assert [(s["low"], s["high"]) for s in arcs] == [(22, 23), (23, 24), (24, 25), (25, 26)]
    assert all(s["nonlenses"] == 300 for s in arcs)
    assert [s["completeness"]["value"] for s in arcs] == [1, 1, 0, 0]
    assert arcs[0]["auroc"]["value"] == 1.0 > arcs[3]["auroc"]["value"]
    psf = [s for s in found if s["column"] == "psf_g"]
    assert sum(s["lenses"] for s in psf) == 200
    assert sum(s["nonlenses"] for s in psf) == 300


@pytest.mark.parametrize(
    ("label", "score", "what"),
    [([1, 1], [0, 1], "only one class"), ([0, 2], [0, 1], "other than"), ([0, 1], [0, np.nan], "not finite")],
)
def test_rankings_that_cannot_be_judged(label: list[int], score: list[float], what: str) -> None:
    with pytest.raises(DataError, match=what):
        metrics.curve(label, score)


def test_other_tasks() -> None:
    p = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.6, 0.3], [0.1, 0.2, 0.7]])
    found = evaluate_classes([0, 1, 2, 2], p, draws=10)
    assert found["metrics"]["accuracy"]["value"] == 0.75
    assert found["confusion_matrix"] == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    truth = np.linspace(0.5, 2.5, 101)
    gap = np.where(np.arange(101) == 7, 5.0, 0.1 + 0.02 * np.linspace(-1, 1, 101))
    found = evaluate_regression(truth, truth + gap)
    assert found["bias"] == pytest.approx(0.1, abs=0.001)
    assert found["outliers"] == pytest.approx(1 / 101, abs=1e-6)


# --- calibration --------------------------------------------------------------------------------------------


def _calibrated(n: int, scale: float, offset: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    truth = rng.normal(-2, 2, n)
    label = (rng.random(n) < calibrate.sigmoid(truth)).astype(int)
    return (truth - offset) / scale, label


def test_temperature_finds_the_scale_that_was_taken_off() -> None:
    logit, label = _calibrated(40_000, 0.5, -1.0)
    found = calibrate.fit("temperature", logit, label)
    assert found.scale == pytest.approx(0.5, rel=0.05)
    assert found.offset == pytest.approx(-1.0, abs=0.05)
    assert metrics.ece(label, calibrate.sigmoid(logit)) > 0.1
    assert metrics.ece(label, found.probability(logit)) < 0.01


def test_isotonic_is_the_best_rising_function() -> None:
    from sklearn.isotonic import IsotonicRegression

    logit, label = _calibrated(3000, 0.5, -1.0)
    found = calibrate.fit("isotonic", logit, label)
    p = found.probability(logit)
    theirs = IsotonicRegression().fit_transform(logit, label)
    inner = (theirs > 0) & (theirs < 1)
    np.testing.assert_allclose(p[inner], theirs[inner], atol=1e-9)
    assert (np.diff(p[np.argsort(logit)]) >= 0).all()
    assert 0 < p.min() < p.max() < 1  # never certain


def test_prior_shift_is_bayes() -> None:
    # Likelihood ratio 9 at p = 0.9 under even odds; under 1 % prevalence 9/99 : 1 -> 1/12.
    assert calibrate.prior_shift(0.9, 0.5, 0.01) == pytest.approx(1 / 12)
    logit, label = _calibrated(40_000, 1.0, 0.0)
    model = calibrate.fit("temperature", logit, label)
    keep = (label == 0) | (np.random.default_rng(0).random(len(label)) < 0.1)
    shifted = model.probability(logit[keep], prevalence=label[keep].mean())
    assert metrics.ece(label[keep], shifted) < 0.01 < metrics.ece(label[keep], model.probability(logit[keep]))


def test_separable_rows_keep_a_finite_scale() -> None:
    found = calibrate.fit("temperature", np.array([-1.0, -0.5, 0.5, 1.0] * 10), np.array([0, 0, 1, 1] * 10))
    assert 0 < found.scale < 100
    assert np.isfinite(found.probability([-1e6, 1e6])).all()
