"""Odd places and odd callers: long names, closed files, limits, others' directories, ignored signals."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from models import list_again, make_model
from pages import write_page
from toys import write_toys

from ripple.cli import run
from ripple.errors import ConfigError
from ripple.runtime.memory import parse_bytes
from ripple.runtime.signals import stoppable
from ripple.stages.run import _clear
from ripple.storage.files import write_single
from ripple.storage.manifest import unseal
from ripple.storage.writer import _line, _parse_journal

COMMAND = [sys.executable, "-c", "import sys; from ripple.cli import main; main(sys.argv[1:])"]


def page(directory: Path) -> None:
    write_page(directory, lambda d: (d / "index.html").write_bytes(b"page") and None)


def test_run_clears_what_is_ours_and_nothing_else(tmp_path: Path) -> None:
    page(tmp_path / "report")
    assert _clear(tmp_path / "report")
    assert not (tmp_path / "report").exists()

    (tmp_path / "cutouts").mkdir()
    (tmp_path / "cutouts" / ".journal").write_bytes(_line({"verb": "fetch"}))
    assert _clear(tmp_path / "cutouts")
    assert not (tmp_path / "cutouts").exists()

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text("{}")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "index.html").write_text("mine")
    page(tmp_path / "far")
    (tmp_path / "link").symlink_to(tmp_path / "far")
    for name in ("model", "thesis", "link"):
        assert not _clear(tmp_path / name)
        assert (tmp_path / name).exists()


def test_a_finished_page_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page(tmp_path / "out")

    def refuse(*_: object) -> int:
        raise AssertionError("the place may be read-only")

    monkeypatch.setattr("ripple.storage.directory._claim", refuse)
    assert not write_page(tmp_path / "out", page)


def test_a_lock_of_others_on_the_directory_is_no_reason_to_wait(tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)  # as `flock DIR ripple locate -o DIR/x.csv` does
    write_single(tmp_path / "x.csv", b"a")
    os.close(handle)
    assert (tmp_path / "x.csv").read_bytes() == b"a"


def test_journal_lines_of_another_layout_are_no_records() -> None:
    good = {"name": "shard-00000.h5", "rows": 1, "bytes": 10, "sha256": "0" * 64, "extra": {}}
    lines = [_line({"unit": 0, **good})]
    lines += [_line({"unit": "0", **good}), _line({"unit": 1, **good, "rows": "x"}), _line({"unit": 2})]
    lines += [_line(5), _line(None), _line([1])]  # type: ignore[arg-type]
    header, records = _parse_journal(_line({"verb": "x"}) + b"".join(lines))
    assert header == {"verb": "x"}
    assert list(records) == [0]
    assert _parse_journal(_line([1]) + lines[0]) == (None, {})  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["9" * 400, "99999999TiB", "1" * 16])
def test_sizes_beyond_all_machines_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read as a size"):
        parse_bytes(text)


def test_a_lower_limit_of_the_user_stays() -> None:
    code = (
        "import os, resource; from ripple.runtime.worker import limit_memory; "
        f"resource.setrlimit(resource.RLIMIT_DATA, ({2 << 30}, {2 << 30})); "
        f"limit_memory(os.getpid(), {8 << 30}); print(resource.getrlimit(resource.RLIMIT_DATA)[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 2 << 30


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.signum == 0
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("verb", ["verify", "show", "preprocess", "report", "export"])
def test_names_that_are_too_long_are_named(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--format", "zarr"] if verb == "export" else []
    out = [] if verb in ("verify", "show") else ["-o", "out"]
    assert run([verb, "x" * 300, *more, *out]) == 3
    assert "x" * 300 in capsys.readouterr().err.replace("\n", "")


def test_closed_standard_files(tmp_path: Path) -> None:
    toys = write_toys(tmp_path / "toys", shards=1, rows=20)
    for closed in ("2>&-", ">&-", "<&- >&- 2>&-"):
        line = f'exec "$@" {closed}'
        argv = ["bash", "-c", line, "bash", *COMMAND, "verify", str(toys), "--json"]
        assert subprocess.run(argv, check=False, capture_output=True).returncode == 0, closed


def test_models_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ripple.storage.manifest import content_digest, render

    model = make_model(tmp_path / "model")
    assert run(["export-model", str(model), "-o", str(tmp_path / "program.json")]) == 2
    assert "is where the contract of the export goes" in capsys.readouterr().err
    path = model / "manifest.json"
    record = unseal(path, path.read_bytes())
    record["files"].pop("model.safetensors")
    path.write_bytes(render({**record, "digest": content_digest(record)}))
    assert run(["verify", str(model)]) == 4
    assert "not the weights" in capsys.readouterr().err


def test_scores_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import hashlib

    import pyarrow as pa
    import pyarrow.parquet as pq

    from ripple.storage.manifest import content_digest, render

    model, toys = make_model(tmp_path / "model"), write_toys(tmp_path / "toys", shards=1, rows=20)
    scores = tmp_path / "scores"
    assert run(["score", str(model), str(toys), "--threads", "1", "-o", str(scores)]) == 0
    table = pq.read_table(scores / "scores.parquet")
    columns = {name: table[name] for name in table.column_names}
    minus = pa.array([-1] * len(table), pa.int64())
    wrong = [
        {k: v for k, v in columns.items() if k != "rank"},
        columns | {"row": minus},
        columns | {"score": pa.array(["x"] * len(table))},
        None,
    ]
    for k, content in enumerate(wrong):
        if content is None:
            (scores / "scores.parquet").write_bytes(b"no table")
        else:
            pq.write_table(pa.table(content), scores / "scores.parquet")
        manifest = json.loads((scores / "manifest.json").read_bytes())
        data = (scores / "scores.parquet").read_bytes()
        manifest["attributes"]["sorted"]["sha256"] = hashlib.sha256(data).hexdigest()
        manifest["files"]["scores.parquet"] = [len(data), hashlib.sha256(data).hexdigest()]
        manifest["digest"] = content_digest(manifest)
        (scores / "manifest.json").write_bytes(render(manifest))
        assert run(["report", str(scores), "-o", str(tmp_path / f"page-{k}")]) == 4
        assert "scores.parquet" in capsys.readouterr().err
    (scores / "scores.parquet").unlink()
    assert run(["score", str(model), str(toys), "--threads", "1", "-o", str(scores)]) == 4
    (model / "model.safetensors").unlink()
    assert "scores.parquet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value"),
    [("training", {"inputs": 5}), ("training", {"inputs": ["a"]}), ("training", {"config": 5}),
     ("training", {"config": {"tensors": 5}}), ("training", {"adaptation": {"x": 1}}), ("pixel_scale", 0.0)],
)  # fmt: skip
def test_contracts_of_others(
    field: str, value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import hashlib

    from ripple.config import canonical_json

    model, toys = make_model(tmp_path / "model"), write_toys(tmp_path / "toys", shards=1, rows=20)
    contract = json.loads((model / "model.json").read_bytes())["contract"] | {field: value}
    record = {"contract": contract, "digest": hashlib.sha256(canonical_json(contract)).hexdigest()}
    (model / "model.json").write_text(json.dumps(record))
    list_again(model)
    for verb in ("score", "explain"):
        assert run([verb, str(model), str(toys), "-o", str(tmp_path / verb)]) in (2, 3, 4)
        said = capsys.readouterr().err
        assert field in said
        assert "model.json" in said
