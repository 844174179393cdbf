"""The tutorials run as they are written, one after another in one directory, and come out right."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import ripple

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "tutorial"
SCRIPTS = sorted(FOLDER.glob("*.py"))


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


tutorials = _script("tutorials")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One directory for all: the survey is simulated once, and later tutorials find it finished."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("tutorial")
        patch.chdir(path)
        yield path


def run(name: str) -> tuple[dict[str, Any], list[Any]]:
    """The variables at the end of a tutorial, and the outputs of its cells."""
    path = next(path for path in SCRIPTS if path.stem.endswith(name))
    space: dict[str, Any] = {"__name__": "__main__"}
    outputs = [output for _, output in tutorials.run(path.read_text(), path.name, space)]
    return space, outputs


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_notebooks_and_pages_are_those_of_the_scripts(path: Path) -> None:
    text = path.read_text()
    notebook = path.with_suffix(".ipynb").read_text()
    assert notebook == tutorials.notebook(text), "run python scripts/tutorials.py"
    page = path.with_suffix(".md").read_text()
    for cell in tutorials.cells(text):
        assert cell.text in page, "run python scripts/tutorials.py --run"
    body = json.loads(notebook)
    assert body["nbformat"] == 4
    assert {cell["cell_type"] for cell in body["cells"]} == {"markdown", "code"}


@pytest.mark.slow  # a minute: it trains
def test_from_sky_to_a_ranked_list(scratch: Path) -> None:
    space, outputs = run("sky-to-list")
    assert space["model"].contract.metrics["auroc"]["value"] > 0.7
    table = space["scores"].table()
    # Four of ten rows are lenses where all are taken; the list begins with them.
    assert (table["label"][:10] == 1).mean() >= 0.7
    assert (scratch / "report" / "index.html").is_file()
    assert sum(len(output.pictures) for output in outputs) >= 3


@pytest.mark.slow
def test_cutouts_only(scratch: Path) -> None:
    space, _ = run("cutouts")
    assert len(space["many"].outcomes) == 4 * 196
    flux = space["flux"]
    # The circle holds most of the galaxy.
    assert ((flux["flux"] / flux["model"] > 0.5) & (flux["flux"] / flux["model"] < 1.2)).all()
    assert 0 < space["worst"].good.mean() < 1
    assert (scratch / "galaxy.fits").stat().st_size > 50_000
    # The verb and the survey deliver the same rows.
    theirs, ours = space["cutouts"].table(), space["table"]
    assert theirs["status"].tolist() == ours["status"].tolist()
    assert isinstance(space["artefact"], ripple.Artefact)


@pytest.mark.slow  # a minute: it trains twice
def test_a_finder_that_is_fooled_is_found_out(scratch: Path) -> None:
    space, _ = run("honest-finder")
    assert (
        space["fooled"].contract.metrics["auroc"]["value"] > space["model"].contract.metrics["auroc"]["value"]
    )
    gates = space["fooled"].contract.gates["shortcuts"]
    assert gates["radial_profile"]["verdict"] == "shortcut"
    assert gates["radial_profile"]["auroc"]["value"] > 0.85
    best = space["best"]
    assert (best["probability"] > 100 * best["probability at 1e-4"]).all()


@pytest.mark.slow  # a minute, and PyTorch
def test_a_model_from_elsewhere(scratch: Path) -> None:
    space, outputs = run("model-from-elsewhere")
    assert space["best"]["score"] == pytest.approx(space["theirs"], abs=1e-4)
    assert any("normalization.method is zscore" in output.text for output in outputs)
    assert space["program"].stat().st_size > 40e6


@pytest.mark.slow  # it trains where the first tutorial has not
def test_dp2_on_the_platform(scratch: Path) -> None:
    space, _ = run("dp2-on-the-rsp")
    # Lenses are among the galaxies of the object table, under the same ids.
    truth = ripple.open("tensors").table()
    lenses = set(truth["id"][truth["label"] == 1].tolist())
    assert sum(i in lenses for i in space["scores"].table()["id"][:20].tolist()) >= 10
    assert (scratch / "dp2-report" / "index.html").is_file()


@pytest.mark.slow  # it trains where the first tutorial has not
def test_what_would_we_have_found(scratch: Path) -> None:
    space, outputs = run("selection-function")
    # Brighter arcs are found more often, and most of the brightest.
    smooth = space["smooth"]
    assert (smooth[:, -1] > smooth[:, 0] + 0.3).all()
    for cell in space["found"]["bins"]:
        known = cell["completeness"]
        assert known["value"] is None or known["low"] <= known["value"] <= known["high"]
    assert all(verdict == "ok" for *_, verdict in space["checks"])
    assert sum(len(output.pictures) for output in outputs) == 1
    assert (scratch / "selection.pdf").stat().st_size > 10_000


def test_cells_have_the_tags_of_the_script() -> None:
    body = json.loads((FOLDER / "05-dp2-on-the-rsp.ipynb").read_text())
    tags = [cell["metadata"].get("tags", []) for cell in body["cells"]]
    assert tags.count(["here"]) == tags.count(["rsp"]) == 1


@pytest.mark.slow  # the other side opens a file for every cutout
def test_everyday_tasks_give_what_the_butler_and_astropy_give(scratch: Path) -> None:
    tasks = _script("notebook_tasks")
    found = tasks.rows()  # raises where pixels or numbers differ
    assert sum(row[-1] == "equal" for row in found) == 5
    assert all(ours < theirs for _, ours, theirs, *_ in found)


def test_the_page_of_tasks_is_that_of_the_script() -> None:
    tasks = _script("notebook_tasks")
    rows = [
        (task, 0.0, 0.0, 0.0 if task.theirs else math.nan, "equal" if task.compared else "")
        for task in tasks.TASKS
    ]
    written, made = tasks.PAGE.read_text(), tasks.page(rows)
    # Seconds are those of the day.
    assert re.sub(r"\d+\.\d\d \|", "", written) == re.sub(r"\d+\.\d\d \|", "", made)
