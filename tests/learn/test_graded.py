"""Labels that people gave: they reach the rows that were graded, and nothing reaches the hidden tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_candidates import grade, write_candidates
from models import SMALL
from toys import toy_batch, write_batches

from ripple.errors import ConfigError, InputError, OtherInputsError
from ripple.learn.config import TrainConfig
from ripple.learn.data.graded import SOFT, graded_rows
from ripple.learn.data.training_set import training_set
from ripple.learn.model.contract import load_contract
from ripple.learn.training.loop import lens_loss
from ripple.learn.training.train import train
from ripple.storage.candidates import read_candidates

CLASSES = {"0": "elliptical", "1": "lens", "2": "spiral"}


COLUMNS = {
    "id": np.array(["a", "b", "c", "d", "e", "f"]),
    "ra": np.array([10.0, 10.1, 10.2, 10.3, 10.4, np.nan]),
    "dec": np.full(6, -30.0),
}
LABEL = np.array([-1, -1, -1, 0, -1, -1])


def read(path: Path, **changes: Any) -> Any:
    options: dict[str, Any] = {"task": "lens", "guard": 10.0} | changes
    return graded_rows([path], COLUMNS, LABEL, {"0": "nonlens", "1": "lens"}, **options)


def test_labels_come_from_grades_and_undecided_ones_do_not(tmp_path: Path) -> None:
    rows = [grade("a", 0.9), grade("b", 0.1), grade("c", 0.52), grade("d", 0.9), grade("elsewhere", 0.9)]
    found = read(write_candidates(tmp_path / "c", rows, []))
    # d was labelled before, c is open, nobody graded e and f.
    assert found.label.tolist() == [1, 0, -1, 0, -1, -1]
    said = " ".join(found.notes)
    assert "2 labels are from grades (1 lenses)" in said
    assert "1 candidates are not in these tensors" in said
    assert "1 graded rows had a label before" in said
    assert "1 graded rows are left out" in said


def test_soft_labels_keep_what_graders_left_open(tmp_path: Path) -> None:
    rows = [grade("a", 0.9), grade("c", 0.52), grade("d", 0.9)]
    found = read(write_candidates(tmp_path / "c", rows, []), soft=True)
    assert found.label.tolist() == [1, -1, 1, 0, -1, -1]
    np.testing.assert_allclose(found.probability[[0, 2, 3]], [0.9, 0.52, 0.0], rtol=1e-6)


def test_hidden_tests_go_by_id_and_by_position(tmp_path: Path) -> None:
    near = {"ra": 10.1 + 5 / 3600 / np.cos(np.deg2rad(30)), "dec": -30.0}
    tests = [grade("f", 1.0), grade("under another name", 0.0, **near)]
    found = read(write_candidates(tmp_path / "c", [grade("a", 0.9)], tests))
    assert found.hidden.tolist() == [False, True, False, False, False, True]
    assert not read(write_candidates(tmp_path / "d", [grade("a", 0.9)], tests), guard=4.0).hidden[1]


def test_rejected_objects_are_negatives_of_their_class(tmp_path: Path) -> None:
    rows = [grade("a", 0.9), grade("b", 0.02, kind="spiral"), grade("c", 0.02), grade("e", 0.02, kind="star")]
    path = write_candidates(tmp_path / "c", rows, [])
    found = graded_rows([path], COLUMNS, LABEL, CLASSES, task="classes", guard=10.0)
    # An X without a kind, or of a kind that the network does not know, has no class.
    assert found.label.tolist() == [1, 2, -1, 0, -1, -1]


def test_the_last_of_several_grades_counts(tmp_path: Path) -> None:
    first = write_candidates(tmp_path / "c", [grade("a", 0.1), grade("b", 0.1)], [])
    second = write_candidates(tmp_path / "d", [grade("a", 0.9)], [], scores="1" * 64)
    found = graded_rows([first, second], COLUMNS, LABEL, CLASSES, task="lens", guard=10.0)
    assert found.label[:2].tolist() == [1, 0]
    assert found.digests == (read_candidates(first).digest, read_candidates(second).digest)


def test_candidates_of_other_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of the candidates"):
        read(write_candidates(tmp_path / "c", [grade("z", 0.9)], []))


def test_loss_of_a_soft_label_by_hand() -> None:
    logit, label, ones = torch.tensor([0.3, -1.0]), torch.tensor([1, 0]), torch.ones(2)
    p = torch.sigmoid(logit)
    truth = torch.tensor([0.7, 0.2])
    by_hand = -(truth * p.log() + (1 - truth) * (1 - p).log()).mean()
    torch.testing.assert_close(lens_loss(logit, label, ones, 0.0, truth), by_hand)
    torch.testing.assert_close(lens_loss(logit, label, ones, 0.0), lens_loss(logit, label, ones, 0.0, label))


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """240 labelled rows, then 120 without a label, and the truth and place of all."""
    batches = [toy_batch(120, 100 + k, first=120 * k) for k in range(3)]
    truth = {
        name: np.concatenate([b.catalog[name] for b in batches]) for name in ("id", "label", "ra", "dec")
    }
    last = dict(batches[2].catalog) | {"label": np.full(120, -1)}
    batches[2] = toy_batch(120, 102, first=240, catalog=last)
    return write_batches(tmp_path_factory.mktemp("graded") / "tensors", batches), truth


def config(tensors: Path, output: Path, **changes: Any) -> TrainConfig:
    return TrainConfig.make(SMALL | {"tensors": [str(tensors)], "output": str(output)} | changes)


@pytest.fixture(scope="module")
def candidates(unlabelled: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last 120 rows, graded rightly; ten of the labelled rows were hidden tests."""
    truth = unlabelled[1]
    place = [{"ra": float(truth["ra"][k]), "dec": float(truth["dec"][k])} for k in range(360)]
    rows = [
        grade(str(truth["id"][k]), 0.95 if truth["label"][k] else 0.04, **place[k]) for k in range(240, 360)
    ]
    tests = [grade(str(truth["id"][k]), 0.5, **place[k]) for k in range(10)]
    return write_candidates(tmp_path_factory.mktemp("grades") / "candidates", rows, tests)


def test_training_uses_grades_and_no_hidden_test(
    unlabelled: tuple[Path, dict[str, Any]], candidates: Path, tmp_path: Path
) -> None:
    tensors, truth = unlabelled
    data = training_set(config(tensors, tmp_path / "m", labels=[str(candidates)], guard=2.0))
    assert (data.labels == truth["label"]).all()
    assert (data.split[:10] == -1).all()
    assert (data.split[240:] >= 0).sum() > 100
    assert data.grades == (read_candidates(candidates).digest,)
    without = training_set(config(tensors, tmp_path / "m", guard=2.0))
    assert (without.split[240:] == -1).all()


def test_a_model_names_its_grades_and_resumes_with_no_others(
    unlabelled: tuple[Path, dict[str, Any]], candidates: Path, tmp_path: Path
) -> None:
    tensors, truth = unlabelled
    options: dict[str, Any] = {"labels": [str(candidates)], "labels_as": "soft", "epochs": 1, "width": 1}
    train(config(tensors, tmp_path / "m", **options))
    contract = load_contract(tmp_path / "m")
    assert contract.training["grades"] == [read_candidates(candidates).digest]
    assert contract.training["config"]["labels_as"] == "soft"
    others = write_candidates(tmp_path / "others", [grade(str(truth["id"][300]), 0.9)], [])
    with pytest.raises(OtherInputsError, match="inputs"):
        train(config(tensors, tmp_path / "m", **(options | {"labels": [str(others)]})))


def test_batches_have_the_soft_labels(
    unlabelled: tuple[Path, dict[str, Any]], candidates: Path, tmp_path: Path
) -> None:
    tensors, truth = unlabelled
    data = training_set(config(tensors, tmp_path / "m", labels=[str(candidates)], labels_as="soft"))
    p = data.dataset.column(SOFT)
    np.testing.assert_allclose(p[:240], truth["label"][:240])
    np.testing.assert_allclose(p[240:], np.where(truth["label"][240:] == 1, 0.95, 0.04), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels_as": "soft"}, "belongs to --labels"),
        ({"labels": ["c"], "task": "regression", "targets": ["theta_E"]}, "grades are of classes"),
        ({"labels": ["c"], "labels_as": "soft", "task": "classes"}, "not of every class"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(tmp_path, tmp_path / "m", **changes)
