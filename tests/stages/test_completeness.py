"""The selection function: a made-up scorer with a known detection probability must come back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_candidates import grade, write_candidates
from scipy.stats import binomtest, poisson
from tensorsets import ScoresConfig, parquet

from ripple.cli import run
from ripple.errors import ConfigError, ContractError
from ripple.learn.evaluation.intervals import Estimate
from ripple.stages.completeness import function, yields
from ripple.stages.completeness.bins import bin_edges, binned, fraction, parse_bins, place, poisson_rate
from ripple.stages.completeness.rows import judged
from ripple.storage import files
from ripple.storage.artefact import verify
from ripple.storage.checksums import listed
from ripple.storage.writer import ArtefactWriter, create

BY = ("theta_E", "arc_snr")


def probability(theta: np.ndarray, snr: np.ndarray) -> np.ndarray:
    """A known, smooth detection probability."""
    return 0.95 / (1 + np.exp(-(2.5 * np.log(snr / 20) + 2 * (theta - 1.2))))


def drawn(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns `(N, 2)`, true probabilities, and outcomes."""
    rng = np.random.default_rng(seed)
    values = np.stack([rng.uniform(0.5, 2.5, rows), np.exp(rng.normal(3, 0.8, rows))], axis=1)
    p = probability(*values.T)
    return values, p, rng.random(rows) < p


def write_scores(directory: Path, columns: dict[str, np.ndarray], details: dict[int, str]) -> Path:
    """Scores with these columns in the layout of `ripple score`; `details`: rejected row -> why."""
    n = len(columns["score"])
    rank = np.empty(n, np.int64)
    rank[np.argsort(-columns["score"], kind="stable")] = np.arange(1, n + 1)
    accept = np.array([k not in details for k in range(n)], np.uint8)
    place = {"shard": np.zeros(n, np.int32), "row": np.arange(n, dtype=np.int32)}
    table = pa.table({"id": np.arange(n), **columns, "rank": rank, "accept": accept, **place})
    writer = create(
        directory,
        kind="scores",
        config=ScoresConfig(tensors=(directory,)),
        inputs={"model": "0" * 64, "tensors": ["1" * 64]},
        units=1,
        suffix=".parquet",
    )
    assert isinstance(writer, ArtefactWriter)
    with writer:
        writer.commit(0, parquet(table), n, {})
        data = parquet(table.sort_by("rank"))
        files.write_atomic(directory / "scores.parquet", data)
        digest = hashlib.sha256(data).hexdigest()
        attributes = {
            "rows": n, "sorted": {"name": "scores.parquet", "sha256": digest}, "output": "lens",
            "threshold": 0.5, "bands": ["g", "r", "i"], "model": {"origin": "a test"},
        }  # fmt: skip
        index = {
            "index": np.arange(n), "id": np.arange(n), "ra": np.zeros(n), "dec": np.zeros(n), **place,
            "status": np.where(accept, "ok", "rejected"), "reason": np.where(accept, "", "quality"),
            "detail": [details.get(k, "") for k in range(n)],
        }  # fmt: skip
        writer.finish(pa.table(index), {}, attributes, files=listed(directory, ("scores.parquet",)))
    return directory


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1500 painted rows and 500 others, of which every fifth lies on training sky; ten are rejected."""
    values, _, found = drawn(7, 2000)
    painted = np.arange(2000) < 1500
    score = np.where(found, 0.9, 0.1)
    score[1500:] = np.where(np.arange(500) < 25, 0.9, 0.1)  # five of them on training sky
    columns = {
        "ra": np.zeros(2000), "dec": np.zeros(2000), "score": score, "probability": score,
        "split": np.where(np.arange(2000) % 5 == 0, "train", "test"),
        "injected": painted.astype(np.uint8), "label": painted.astype(np.int64),
        "theta_E": np.where(painted, values[:, 0], np.nan),
        "arc_snr": np.where(painted, values[:, 1], np.nan),
        "psf_fwhm_g": np.full(2000, 1.2), "psf_fwhm_i": np.full(2000, 0.8),
        "class": np.where(painted, "lens", "spiral"),
    }  # fmt: skip
    details = dict.fromkeys(range(1, 48, 5), "bad_pixels: bad 0.3 in i (at most 0.1); registration")
    return write_scores(tmp_path_factory.mktemp("completeness") / "scores", columns, details)


def read(path: Path) -> dict[str, np.ndarray]:
    """Columns of a Parquet file, scores in the order of their ids."""
    table = pq.read_table(path)
    table = table.sort_by("id") if "id" in table.column_names else table
    return {name: table[name].to_numpy() for name in table.column_names}


def complete(scores: Path, out: Path, *more: str) -> dict[str, object]:
    assert run(["completeness", str(scores), "-o", str(out), "--set", "draws=10", "-q", *more]) == 0
    found: dict[str, object] = json.loads((out / "completeness.json").read_text())
    return found


# What comes back ------------------------------------------------------


@pytest.mark.parametrize("interval", ["clopper-pearson", "wilson"])
def test_bins_hold_the_true_completeness(interval: str) -> None:
    """In at least 93 % of the bins the 95 % interval holds the mean probability of its rows."""
    held = []
    for seed in range(10):
        values, p, found = drawn(seed, 4000)
        edges = bin_edges(values, BY, None)
        cell = place(values, edges)
        truth = np.bincount(cell, p) / np.bincount(cell)
        for k, one in enumerate(binned(values, found, edges, least=10, interval=interval)):
            assert one.completeness is not None
            held.append(one.completeness.low <= truth[k] <= one.completeness.high)
    assert len(held) > 500
    assert np.mean(held) >= 0.93


@pytest.mark.parametrize("kind", ["monotone", "logistic"])
def test_the_function_is_calibrated(kind: str) -> None:
    for seed in (1, 2):
        values, p, found = drawn(seed, 4000)
        fit = function.fit(values, found, BY, kind, 5, 0)
        parts = np.array_split(np.argsort(fit.held_out), 10)
        # Against the truth, which the made-up scorer knows: no noise of counting.
        error = np.mean([abs(fit.held_out[part].mean() - p[part].mean()) for part in parts])
        assert error < 0.02
        assert np.abs(fit.function(values) - p).mean() < 0.05


def test_trees_rise_with_the_signal_to_noise() -> None:
    values, _, found = drawn(3, 800)
    predict = function.train("monotone", values, found, BY)
    snr = np.geomspace(3, 150, 60)
    curve = predict(np.stack([np.full(60, 1.0), snr], axis=1))
    assert (np.diff(curve) >= 0).all()
    assert [function.direction(n) for n in ("arc_snr_g", "arc_mag_i", "theta_E", "noise_r")] == [1, -1, 0, -1]


def test_the_crossing_is_where_the_probability_is_one_half() -> None:
    values, _, _ = drawn(4, 4000)
    theta = np.quantile(values[:, 0], 0.9)
    at = function.crossing(lambda x: probability(*x.T), values, 1, 0.5)
    # 0.95 / (1 + exp(-a)) = 0.5 solved for the S/N at the most favourable decile of theta_E.
    exact = 20 * np.exp((np.log(0.5 / 0.45) - 2 * (theta - 1.2)) / 2.5)
    assert at == pytest.approx(exact, rel=0.02)
    assert function.crossing(lambda x: np.full(len(x), 0.9), values, 1, 0.5) == -np.inf
    assert function.crossing(lambda x: np.full(len(x), 0.1), values, 1, 0.5) == np.inf


def test_intervals_are_the_exact_ones() -> None:
    known = binomtest(7, 40)
    for name, method in (("clopper-pearson", "exact"), ("wilson", "wilson")):
        exact = known.proportion_ci(method=method)
        got = fraction(7, 40, name)
        assert (got.low, got.high) == (pytest.approx(exact.low), pytest.approx(exact.high))
    rate = poisson_rate(4, 2.0)
    # At the limits of the mean, four or more, and four or fewer events happen once in 40 times.
    assert poisson.sf(3, 2 * rate.low) == pytest.approx(0.025)
    assert poisson.cdf(4, 2 * rate.high) == pytest.approx(0.025)
    assert poisson_rate(0, 1.0).high == pytest.approx(-np.log(0.025))


# The verb -------------------------------------------------------------


def test_losses_bins_and_false_positives(scored: Path, tmp_path: Path) -> None:
    found = complete(
        scored, tmp_path / "s", "--area-deg2", "0.5", "--bins", "theta_E=0.5,1,2.5;arc_snr=1,20,1000"
    )
    assert verify(tmp_path / "s") == []
    t = read(scored / "scores.parquet")
    mine = (t["injected"] == 1) & (t["split"] == "test")
    hits = mine & (t["accept"] == 1) & (t["score"] > 0.5)
    losses = found["losses"]
    assert losses["rows"] == mine.sum() == 1200
    assert found["left_out"] == {"train": 300}
    assert losses["rejected"]["rows"] == 10
    assert losses["rejected_by"] == {"bad_pixels": 10, "registration": 10}
    assert losses["found"]["rows"] == hits.sum()
    assert losses["scored_low"]["rows"] == 1200 - 10 - hits.sum()
    first = found["bins"][1]
    inside = mine & (t["theta_E"] >= 0.5) & (t["theta_E"] < 1) & (t["arc_snr"] >= 20)
    assert (first["low"], first["rows"]) == ([0.5, 20.0], inside.sum())
    assert first["found"] == (inside & hits).sum()
    # 400 of 2000 rows are neither painted nor on training sky: a fifth of the area.
    false = found["false_positives"]
    assert (false["rows"], false["found"], false["by_class"]) == (400, 20, {"spiral": 20})
    assert false["area_deg2"] == pytest.approx(0.1)
    assert false["per_deg2"]["value"] == pytest.approx(200)
    page = (tmp_path / "s" / "index.html").read_text()
    assert "Selection function" in page
    assert page.count("<img") == 1
    grid = read(tmp_path / "s" / "completeness.parquet")
    assert list(grid) == [*BY, "completeness", "rows_near"]
    # S/N spans decades: as many points in each.
    steps = np.diff(np.log(np.unique(grid["arc_snr"])))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    near = grid["rows_near"] > 5
    truth = probability(grid["theta_E"], grid["arc_snr"])
    assert np.abs(grid["completeness"] - truth)[near].mean() < 0.08


def test_painted_lenses_without_a_label_count(tmp_path: Path) -> None:
    """Of arcs that nobody could see the label is -1; that they were lost is what completeness is about."""
    values, _, found = drawn(3, 400)
    faint = values[:, 1] < np.median(values[:, 1])
    columns = {
        "ra": np.zeros(400), "dec": np.zeros(400), "score": np.where(found, 0.9, 0.1),
        "split": np.full(400, "test"), "injected": np.ones(400, np.uint8), "label": np.where(faint, -1, 1),
        "theta_E": values[:, 0], "arc_snr": values[:, 1],
    }  # fmt: skip
    out = complete(write_scores(tmp_path / "scores", columns, {}), tmp_path / "s")
    assert (out["losses"]["rows"], out["losses"]["found"]["rows"]) == (400, found.sum())
    assert out["false_positives"]["rows"] == 0
    lenses = complete(tmp_path / "scores", tmp_path / "labelled", "--of", "lenses")
    assert lenses["losses"]["rows"] == (~faint).sum()
    assert lenses["false_positives"]["rows"] == 0


def test_the_statement_has_limits(scored: Path, tmp_path: Path) -> None:
    said = complete(scored, tmp_path / "s", "--fit", "logistic")["statement"]
    need = said["needs"]["arc_snr"]
    assert need["low"] <= need["value"] <= need["high"]
    assert 5 < need["value"] < 15  # 8.5 for the probability above at a large Einstein radius
    assert said["text"].startswith(f"Needs arc_snr > {need['value']:.3g}")


def test_cuts_and_sky(scored: Path, tmp_path: Path) -> None:
    t = read(scored / "scores.parquet")
    mine = (t["injected"] == 1) & (t["accept"] == 1) & (t["split"] == "test")
    few = ("--fit", "logistic", "--by")
    top = complete(scored, tmp_path / "top", "--top", "300", *few, "theta_E")
    assert top["losses"]["found"]["rows"] == (mine & (t["rank"] <= 300)).sum()
    none = complete(scored, tmp_path / "none", "--probability", "0.95", *few, "theta_E_over_seeing")
    assert none["losses"]["found"]["rows"] == 0
    assert none["function"]["kind"] is None
    assert "were found" in none["function"]["reason"]
    assert none["edges"]["theta_E_over_seeing"][0] == pytest.approx(0.5, abs=0.01)  # 0.5 over (1.2 + 0.8) / 2
    every = complete(scored, tmp_path / "all", "--all-rows", *few, "arc_snr")
    assert every["losses"]["rows"] == 1500
    assert "trained on" in every["notes"][0]


def test_three_columns_and_the_same_bytes(scored: Path, tmp_path: Path) -> None:
    more = ("--by", "theta_E,arc_snr,theta_E_over_seeing", "--bins", "2", "--fit", "logistic")
    outs = [tmp_path / "a", tmp_path / "b"]
    for out in outs:
        found = complete(scored, out, *more)
    for name in ("completeness.json", "completeness.parquet", "index.html"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()
    empty = [b for b in found["bins"] if b["rows"] < 10]
    assert empty  # a small Einstein radius over a large ratio: no such rows
    assert all(
        b["completeness"] == {"value": None, "reason": f"{b['rows']} rows, fewer than 10"} for b in empty
    )
    assert (outs[0] / "index.html").read_text().count("<img") == 2


def test_lenses_that_were_never_rows(scored: Path, tmp_path: Path) -> None:
    """A fifth of the lenses is in no catalogue: lost, in the effective area and in the expected number."""
    listed = np.concatenate([np.arange(1500), 5000 + np.arange(375)])
    pq.write_table(pa.table({"id": listed}), tmp_path / "all.parquet")
    given = ("--catalogue", str(tmp_path / "all.parquet"), "--area-deg2", "2", "--density", "10")
    found = complete(scored, tmp_path / "s", *given, "--by", "theta_E", "--fit", "logistic")
    lost, there = found["losses"], found["footprint"]
    assert (lost["not_in_catalogue"]["rows"], lost["not_in_catalogue"]["value"]) == (375, 0.2)
    share = 0.8 * lost["found"]["value"]
    assert lost["overall"]["value"] == pytest.approx(share, abs=1e-5)
    assert there["effective_area_deg2"]["value"] == pytest.approx(2 * share, abs=1e-5)
    lenses = there["lenses"]
    assert lenses["value"] == pytest.approx(20 * share, abs=1e-4)
    assert lenses["counts"][0] < lenses["low"] < lenses["value"] < lenses["high"] < lenses["counts"][1]
    assert there["effective_volume"]["value"] is None
    page = (tmp_path / "s" / "index.html").read_text()
    assert "Not in the catalogue: 375 of all 1,875 lenses" in page
    assert "at 10 per deg²" in page


def test_rows_that_were_graded_down(scored: Path, tmp_path: Path) -> None:
    t = read(scored / "scores.parquet")
    mine = (t["injected"] == 1) & (t["accept"] == 1) & (t["split"] == "test") & (t["score"] > 0.5)
    ranks = t["rank"][mine]
    rows = [grade("x", 0.9, rank=int(r)) for r in ranks[:100]]
    rows += [grade("x", 0.2, rank=int(r)) for r in ranks[100:130]]
    tests = [grade("x", 0.1, rank=int(r)) for r in ranks[130:140]]  # painted rows, shown as hidden tests
    digest = json.loads((scored / "manifest.json").read_text())["digest"]
    write_candidates(tmp_path / "c", rows, tests, digest)
    few = ("--by", "theta_E", "--fit", "logistic")
    lost = complete(scored, tmp_path / "s", "--candidates", str(tmp_path / "c"), *few)["losses"]
    counts = {name: lost[name]["rows"] for name in ("found", "graded_down", "not_graded")}
    assert counts == {"found": 100, "graded_down": 40, "not_graded": mine.sum() - 140}
    assert "graded down" in (tmp_path / "s" / "index.html").read_text()
    write_candidates(tmp_path / "d", rows, [])
    argv = ["completeness", str(scored), "-o", str(tmp_path / "d2"), "--candidates", str(tmp_path / "d")]
    assert run(argv) == ContractError.exit_code


def test_effective_volume_is_that_of_astropy() -> None:
    from astropy.cosmology import FlatLambdaCDM

    z = np.random.default_rng(0).uniform(0.2, 1.0, 400)
    found = yields.effective_volume(z, z < 0.6, 100.0, Estimate(1.0, 1.0, 1.0))
    shells = found["shells"]
    assert sum(s["rows"] for s in shells) == 400
    cosmology = FlatLambdaCDM(70, 0.3)
    whole = np.diff([cosmology.comoving_volume(z).value for z in (shells[0]["low"], shells[-1]["high"])])[0]
    expected = whole / 1e9 * 100 / yields.SKY
    assert sum(s["volume_gpc3"] for s in shells) == pytest.approx(expected, rel=1e-4)
    parts = sum(s["volume_gpc3"] * s["completeness"]["value"] for s in shells)
    assert found["value"] == pytest.approx(parts, rel=1e-4)
    assert found["low"] < found["value"] < found["high"] < expected


def test_sky_of_which_nobody_can_say() -> None:
    lens = np.array([True, True, False])
    used, left, notes = judged(np.array(["unknown", "train", "test"]), lens, all_rows=False)
    assert (used.tolist(), left, len(notes)) == ([True, False, False], {"train": 1}, 1)


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--by", "theta"], 3, "did you mean"),
        (["--by", "class"], 3, "no numbers"),
        (["--top", "5", "--threshold", "0.5"], 2, "give one of"),
        (["--bins", "theta=1,2"], 2, "not a column"),
        (["--bins", "theta_E=2,1"], 2, "edges that rise"),
    ],
)
def test_refused_by_name(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], code: int, said: str
) -> None:
    assert run(["completeness", str(scored), "-o", str(tmp_path / "c"), *more]) == code
    assert said in capsys.readouterr().err


def test_rows_without_paint(scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = {name: np.zeros(3) for name in ("ra", "dec", "score", "theta_E", "arc_snr")}
    bare = write_scores(tmp_path / "bare", columns, {})
    assert run(["completeness", str(bare), "-o", str(tmp_path / "c")]) == 3
    assert "ripple inject" in capsys.readouterr().err
    assert run(["completeness", str(scored), str(scored), "-o", str(tmp_path / "c")]) == 2
    with pytest.raises(ConfigError, match="1 to 100"):
        parse_bins("0", BY)
