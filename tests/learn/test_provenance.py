"""What a model was trained on: by rule, by place, through fine-tuning; unknown where nobody can say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from models import SMALL, make_contract, make_model
from toys import toy_batch, write_batches, write_toys

from ripple.cli import run
from ripple.errors import ConfigError, DataError
from ripple.learn.config import ScoreConfig, TrainConfig
from ripple.learn.data.training_set import positions, training_set
from ripple.learn.model.contract import MAX_CONTRACT_BYTES, load_contract
from ripple.learn.model.provenance import MAX_CELLS, Split, lineage, listed, merged, verdicts
from ripple.learn.scoring.score import score
from ripple.learn.training.train import train
from ripple.sky.neighbours import unit_vectors
from ripple.sky.splits import sky_cells, split_keys


def config(tensors: Path, output: Path, **changes: Any) -> TrainConfig:
    return TrainConfig.make(SMALL | {"tensors": [str(tensors)], "output": str(output)} | changes)


def scored(model: Path, tensors: Path, output: Path) -> dict[str, list[Any]]:
    options = {"model": str(model), "tensors": [str(tensors)], "output": str(output), "draws": 20}
    score(ScoreConfig.make(options | {"evaluate": True}))
    return dict(pq.read_table(output / "scores.parquet").to_pydict())


# --- the verdict on a row ---------------------------------------------------------------------------


def sky(**changes: Any) -> Split:
    cells = [np.unique(sky_cells([10.0, 10.5], [0.0, 0.0], 512)), np.unique(sky_cells([12.0], [0.0], 512))]
    fields = {"by": "sky", "nside": 512, "placed": True, "inputs": ("mine",)}
    return listed(Split(**(fields | changes)), 512, cells)


def names(split: tuple[Split, ...], digest: str, ra: list[float], **columns: Any) -> list[int]:
    catalog = {"ra": np.array(ra), "dec": np.zeros(len(ra)), "id": np.arange(len(ra))} | columns
    return verdicts(split, digest, catalog, len(ra)).tolist()


def test_rows_of_other_tensors_are_judged_by_their_place() -> None:
    assert names((sky(),), "theirs", [10.0, 12.0, 14.0, np.nan]) == [0, 1, 2, 3]
    # Tensors without positions: nobody can say.
    assert verdicts((sky(),), "theirs", {"id": np.arange(2)}, 2).tolist() == [3, 3]
    assert names((Split(),), "theirs", [14.0]) == names((), "theirs", [14.0]) == [3]


def test_a_stamp_that_may_share_pixels_with_a_training_stamp_is_unknown() -> None:
    (cell,) = set(sky_cells([10.0], [0.0], 512).tolist())
    east = np.arange(10.0, 10.3, 1 / 3600)  # a point per arcsec
    outside = float(east[sky_cells(east, np.zeros(len(east)), 512) != cell][0])
    guarded = sky(guard=12.8)
    assert names((guarded,), "theirs", [outside + 5 / 3600, outside + 30 / 3600]) == [3, 2]
    assert names((sky(),), "theirs", [outside + 5 / 3600]) == [2]


def test_rows_of_the_training_tensors_are_judged_by_the_rule() -> None:
    ra = np.arange(20.0, 30, 0.3)
    expected = split_keys(sky_cells(ra, np.zeros(len(ra)), 512)).tolist()
    assert names((sky(),), "mine", ra.tolist()) == expected
    part = np.array([0, 1, 2, -1], np.int8)
    given = Split(by="column", column="part", inputs=("mine",), placed=True)
    # -1 was left out, not held out; in other tensors a column says nothing.
    assert names((given,), "mine", [14.0] * 4, part=part) == [0, 1, 2, 0]
    assert names((given.model_copy(update={"placed": False}),), "theirs", [14.0]) == [3]


def test_a_chain_of_models_remembers_everything() -> None:
    child = sky(inputs=("second",)).model_copy(update={"train": (), "validation": ()})
    assert names((child,), "theirs", [10.0, 14.0]) == [2, 2]
    assert names((child, sky()), "theirs", [10.0, 12.0, 14.0]) == [0, 1, 2]
    assert names((child, Split()), "theirs", [14.0]) == [3]  # fine-tuned from a model from elsewhere
    one = merged(sky(), child)
    assert one.inputs == ("mine", "second")
    assert names((one,), "theirs", [10.0, 12.0, 14.0]) == [0, 1, 2]
    assert len(lineage((sky(), child, Split(by="id")), child)) == 2
    for other in ({"seed": 1}, {"fractions": (0.8, 0.1, 0.1)}, {"nside": 1024}):
        with pytest.raises(ConfigError, match=r"--init: its rows were held out with"):
            lineage((sky(),), child.model_copy(update=other))


def test_ids_are_the_fallback_within_the_tensors_of_a_chain() -> None:
    first, second = (Split(by="id", inputs=(name,)) for name in ("first", "second"))
    expected = split_keys(np.arange(50)).tolist()
    columns = {"id": np.arange(50)}
    assert verdicts((first, second), "second", columns, 50).tolist() == expected
    assert verdicts((first, second), "third", columns, 50).tolist() == [3] * 50


@pytest.mark.slow
def test_the_contract_of_ten_million_training_cells_stays_readable() -> None:
    cells = np.arange(15_000_000)
    block = split_keys(cells)
    split = listed(Split(by="sky", nside=2048, placed=True), 2048, [cells[block == 0], cells[block == 1]])
    assert (block == 0).sum() > 10_000_000
    assert max(len(split.train), len(split.validation)) <= MAX_CELLS
    text = json.dumps(make_contract(split=split).model_dump(mode="json"), indent=1)
    assert len(text) < MAX_CONTRACT_BYTES / 10
    # No training row is ever called unseen, and the rule still finds the blocks that were held out.
    from astropy_healpix import healpix_to_lonlat

    some = np.arange(0, 15_000_000, 150_001)
    lon, lat = healpix_to_lonlat(some, 2048, order="nested")
    catalog = {"ra": lon.to_value("deg"), "dec": lat.to_value("deg")}
    assert verdicts((split,), "theirs", catalog, len(some)).tolist() == block[some].tolist()


# --- in training and scoring ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and the tensors it was trained on."""
    root = tmp_path_factory.mktemp("base")
    tensors = write_toys(root / "tensors", shards=2)
    train(config(tensors, root / "model"))
    return root / "model", tensors


def test_a_fine_tuned_model_knows_the_rows_of_its_base(base: tuple[Path, Path], tmp_path: Path) -> None:
    model, tensors = base
    other = write_toys(tmp_path / "other", shards=2, seed=7)
    with pytest.raises(ConfigError, match=r"split-seed 0, these with 1: .* count as unseen") as err:
        train(config(other, tmp_path / "m", init=str(model), split_seed=1))
    assert err.value.hint == "give --split-seed 0"
    train(config(other, tmp_path / "m", init=str(model)))
    contract = load_contract(tmp_path / "m")
    (ancestor,) = contract.ancestors
    assert ancestor.inputs == tuple(load_contract(model).training["inputs"])
    assert contract.judged is not None
    assert contract.judged.split == "test"
    ours, theirs = scored(tmp_path / "m", tensors, tmp_path / "a"), scored(model, tensors, tmp_path / "b")
    used = {"train", "validation"}
    kept = dict(zip(theirs["id"], theirs["split"], strict=True))
    assert {kept[k] for k, s in zip(ours["id"], ours["split"], strict=True) if s == "test"} == {"test"}
    assert all(s in used for k, s in zip(ours["id"], ours["split"], strict=True) if kept[k] in used)


def test_network_and_width_come_from_the_base(base: tuple[Path, Path], tmp_path: Path) -> None:
    model, tensors = base
    options = {"init": str(model), "epochs": 1}
    with pytest.raises(ConfigError, match=r"--width 3, but .* has 2") as err:
        train(config(tensors, tmp_path / "m", **options, width=3))
    assert not (tmp_path / "m").exists()
    assert "leave out --width" in err.value.hint
    plain = {k: v for k, v in SMALL.items() if k != "width"}
    plain |= {"tensors": [str(tensors)], "output": str(tmp_path / "m")} | options
    train(TrainConfig.make(plain))
    contract = load_contract(tmp_path / "m")
    assert contract.architecture.width == 2
    assert contract.training["inputs"][-1] == load_contract(model).digest()


def test_a_model_from_elsewhere_has_seen_nobody_knows_what(
    base: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign, tensors = make_model(tmp_path / "foreign"), base[1]
    out = tmp_path / "s"
    argv = ["score", str(foreign), str(tensors), "--evaluate", "--threads", "1", "-o", str(out)]
    assert run(argv) == 0
    assert "240 rows, split unknown: these may be training rows" in " ".join(capsys.readouterr().err.split())
    assert set(pq.read_table(out / "scores.parquet")["split"].to_pylist()) == {"unknown"}
    report = json.loads((out / "evaluation.json").read_text())
    assert report["judged"] == {"rows": 240, "split": "unknown"}
    assert run(["report", str(out), "--top", "2", "-o", str(tmp_path / "page")]) == 0
    assert "split unknown: these may be training rows" in (tmp_path / "page" / "index.html").read_text()
    capsys.readouterr()
    argv = ["train", str(tensors), "--init", str(foreign), "-o", str(tmp_path / "m"), "--epochs", "1"]
    assert run([*argv, "--nside", "512", "--draws", "20", "--threads", "1"]) == 0
    assert "split unknown: these may be training rows" in " ".join(capsys.readouterr().err.split())
    judged = load_contract(tmp_path / "m").judged
    assert judged is not None
    assert judged.split == "unknown"


# --- guard, tracts ----------------------------------------------------------------------------------


def nearest(data: Any) -> float:
    """Least distance of two rows of different splits, arcsec."""
    points, found = unit_vectors(*positions(data.dataset)), []
    for a, b in ((0, 1), (0, 2), (1, 2)):
        chord = np.linalg.norm(points[data.split == a][:, None] - points[data.split == b][None], axis=2)
        found.append(np.degrees(chord.min()) * 3600)
    return float(min(found))


def crowded(path: Path, **extra: Any) -> Path:
    """A field of 6 arcmin: rows 3 to 25 arcsec apart, whose stamps have a diagonal of 9 arcsec."""
    rng = np.random.default_rng(1)
    batch = toy_batch(500, 3, catalog_extra=extra)
    y, x = np.divmod(np.arange(500), 25)
    batch.catalog["ra"][:] = 53 + (14 * x + rng.uniform(0, 11, 500)) / 3600  # type: ignore[index]
    batch.catalog["dec"][:] = (18 * y + rng.uniform(0, 11, 500)) / 3600  # type: ignore[index]
    return write_batches(path, [batch])


@pytest.mark.parametrize("column", [False, True])
def test_no_two_splits_share_pixels(tmp_path: Path, column: bool) -> None:
    rng = np.random.default_rng(0)
    fold = rng.choice(["train", "validation", "test"], 500, p=[0.7, 0.15, 0.15])
    tensors = crowded(tmp_path / "t", fold=fold)
    options = {"split_column": "fold"} if column else {"nside": 2048}
    data = training_set(config(tensors, tmp_path / "m", **options))
    assert nearest(data) > np.hypot(32, 32) * 0.2
    loose = training_set(config(tensors, tmp_path / "m", **options, guard=1.0))
    assert nearest(loose) < np.hypot(32, 32) * 0.2
    # Later splits keep their rows: the test set does not shrink.
    assert (data.split == 2).sum() == (loose.split == 2).sum()


def test_two_surveys_of_one_sky_share_no_pixels_either(tmp_path: Path) -> None:
    """The target of an adaptation: training rows of the one, held-out rows of the other."""
    first, second = crowded(tmp_path / "a"), crowded(tmp_path / "b")
    options = {"adapt": "adabn", "target": [str(second)], "nside": 2048}
    data = training_set(config(first, tmp_path / "m", **options))
    assert data.target is not None
    mine, theirs = (unit_vectors(*positions(d)) for d in (data.dataset, data.target.dataset))
    for (a, split_a), (b, split_b) in (
        ((mine, data.split), (theirs, data.target.split)),
        ((theirs, data.target.split), (mine, data.split)),
    ):
        chord = np.linalg.norm(a[split_a == 0][:, None] - b[split_b == 2][None], axis=2)
        assert np.degrees(chord.min()) * 3600 > np.hypot(32, 32) * 0.2
    assert set(data.held.inputs) == {*data.digests, *data.target.digests}


@pytest.mark.parametrize("by", ["tract", "patch"])
def test_tracts_and_patches_are_held_out_whole(tmp_path: Path, by: str) -> None:
    rng = np.random.default_rng(2)
    tract, patch = rng.integers(5000, 5030, 500), rng.integers(0, 4, 500)
    tensors = crowded(tmp_path / "t", tract=tract, patch=patch)
    data = training_set(config(tensors, tmp_path / "m", split_by=by, guard=1.0))
    key = tract if by == "tract" else tract * 100 + patch
    assert set(np.unique(data.split)) >= {0, 1, 2}
    for value in np.unique(key):
        assert len(set(data.split[key == value].tolist()) - {-1}) <= 1
    assert (data.held.by, data.held.placed) == (by, True)


def test_a_split_by_tract_needs_tracts(tmp_path: Path) -> None:
    tensors = write_toys(tmp_path / "t", shards=1)
    with pytest.raises(DataError, match="--split-by tract: the tensors have no numbers of tract and patch"):
        training_set(config(tensors, tmp_path / "m", split_by="tract"))
