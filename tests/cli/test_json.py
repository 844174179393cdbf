"""What `--json` prints is what the page docs/reference/json.md says."""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import ConfigDict, TypeAdapter
from test_reference_pages import pages

from ripple.cli import run

OUTPUTS: dict[str, Any] = pages.OUTPUTS


def closed(kind: Any, patch: pytest.MonkeyPatch) -> Any:
    """The type; its objects may have no keys that are not named."""
    for inner in typing.get_args(kind):
        closed(inner, patch)
    if typing.is_typeddict(kind):
        patch.setattr(kind, "__pydantic_config__", ConfigDict(extra="forbid"), raising=False)
        for inner in typing.get_type_hints(kind).values():
            closed(inner, patch)
    return kind


@pytest.mark.parametrize(
    ("section", "argv", "code"),
    [
        ("Verbs that make something", "fetch {where} --size 24 --workers 0 -o {new}", 0),
        ("Verbs that make something", "preprocess {cutouts} --psf none --workers 0 -o {new}", 0),
        ("Verbs that make something", "export {cutouts} --format fits -o {new}", 0),
        ("Verbs that make something", "report {scores} -o {new}", 0),
        ("Verbs that make something", "score {model} {toys} -o {scores} --threads 1", 0),  # done before
        ("Verbs that make something", "show {model}", 0),
        ("Verbs that make something", "status {cutouts}", 0),
        ("Verbs that make something", "verify {tensors}", 0),
        ("plan", "plan {where} --size 24", 0),
        ("locate", "locate 53.12 -27.54 --skymap lsst_cells_v2 --size 64", 0),
        ("locate", "locate 53.12 -27.54 --skymap ripple_mini_v1", 0),
        ("doctor", "doctor --repo {sky}/repo --collections mini", 0),
        ("show --failures", "show {cutouts} --failures", 0),
        ("Any verb that fails", "show {sky}/absent", 3),
        ("Any verb that fails", "fetch --repo {sky}/absent --bands g -o {new}", 5),
        ("Any verb that fails", "preprocess {scores} -o {new}", 3),
    ],
)
def test_outputs_are_those_of_the_reference(
    section: str, argv: str, code: int, one_of_each: dict[str, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    sky = one_of_each["sky"]
    where = f"--repo {sky}/repo --collections mini --targets {sky}/truth.parquet --bands gr"
    words = argv.format(where=where, new=tmp_path / "new", **one_of_each).split()
    capsys.readouterr()
    assert run([*words, "--json"]) == code
    (line,) = capsys.readouterr().out.splitlines()
    (kind,) = [kind for title, kind in OUTPUTS.items() if title.startswith(section)]
    TypeAdapter(closed(kind, monkeypatch)).validate_json(line, strict=True)
    if code:
        assert json.loads(line)["error"]["code"] == code
