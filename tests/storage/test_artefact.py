"""The artefact directory: commit, resume, refusal, the conservation law, verification."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ripple.config import Config, neutral
from ripple.errors import ConfigError, InputError, IntegrityError, LockedError, WriteError
from ripple.storage.artefact import open_artefact, verify
from ripple.storage.files import TEMPORARY, stage, stage_chunks, write_atomic, write_single
from ripple.storage.law import Law
from ripple.storage.manifest import content_digest, render
from ripple.storage.writer import ArtefactWriter, Finished, _line, _parse_journal, create


class DemoConfig(Config):
    verb = "demo"
    size: int = 64
    bands: tuple[str, ...] = ("g", "r")
    workers: int = neutral(1)


UNITS, ROWS = 3, 4
INPUTS = {"repo": "r", "datasets": {"a": "1", "b": "2"}}


def unit_bytes(unit: int) -> bytes:
    return random.Random(unit).randbytes(5000 + unit)


def index() -> pa.Table:
    rows = UNITS * ROWS
    return pa.table(
        {
            "index": list(range(rows + 1)),
            "status": ["ok"] * rows + ["rejected"],
            "reason": [None] * rows + ["no_tract"],
            "shard": [k // ROWS for k in range(rows)] + [-1],
            "row": [k % ROWS for k in range(rows)] + [-1],
        }
    )


def begin(directory: Path, config: Config | None = None, **changes: Any) -> ArtefactWriter | Finished:
    inputs = {**INPUTS, **changes}
    return create(directory, kind="cutouts", config=config or DemoConfig(), inputs=inputs, units=UNITS)


def build(directory: Path, upto: int = UNITS) -> None:
    writer = begin(directory)
    assert isinstance(writer, ArtefactWriter)
    with writer:
        for unit in range(upto):
            if writer.done(unit) is None:
                writer.commit(unit, unit_bytes(unit), ROWS, {"profile": {"seconds": unit}, "notes": [unit]})
        if upto == UNITS:
            writer.finish(index(), {"seconds": 1.5}, {"bands": ["g"]}, asked=UNITS * ROWS + 1)


def contents(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(directory.iterdir())}


def test_build_open_read_verify(tmp_path: Path) -> None:
    build(tmp_path / "a")
    artefact = open_artefact(tmp_path / "a", "cutouts")
    assert [artefact.read(k) for k in range(UNITS)] == [unit_bytes(k) for k in range(UNITS)]
    assert artefact.index().equals(index())
    assert artefact.rows == UNITS * ROWS
    assert artefact.manifest["counts"] == {"asked": 13, "ok": 12, "partial": 0, "rejected": 1}
    assert artefact.shards[1].extra == {"notes": [1]}
    assert artefact.metrics() == {"seconds": 1.5}
    assert verify(tmp_path / "a") == []
    found = sorted(contents(tmp_path / "a"))
    assert found == sorted([".lock", "index.parquet", "manifest.json", "metrics.json"]
                           + [f"shard-{k:05d}.h5" for k in range(3)])  # fmt: skip
    assert contents(tmp_path / "a")[".lock"] == b""


def test_running_again_is_done_before_and_changes_nothing(tmp_path: Path) -> None:
    build(tmp_path / "a")
    before = contents(tmp_path / "a")
    again = begin(tmp_path / "a", DemoConfig(workers=8))
    assert isinstance(again, Finished)
    assert again.artefact.digest == open_artefact(tmp_path / "a").digest
    assert contents(tmp_path / "a") == before


def test_resume_gives_the_same_bytes(tmp_path: Path) -> None:
    build(tmp_path / "a")
    build(tmp_path / "b", upto=2)
    with pytest.raises(InputError, match="not finished"):
        open_artefact(tmp_path / "b")
    build(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("finished", [False, True])
def test_another_config_is_refused_naming_the_first_key(tmp_path: Path, finished: bool) -> None:
    build(tmp_path / "a", upto=UNITS if finished else 1)
    with pytest.raises(ConfigError, match=r"demo\.size: 64 -> 96"):
        begin(tmp_path / "a", DemoConfig(size=96))
    with pytest.raises(ConfigError, match=r'demo\.bands\[1\]: "r" -> "i"'):
        begin(tmp_path / "a", DemoConfig(bands=("g", "i")))
    with pytest.raises(ConfigError, match=r'inputs\.datasets\.b: "2" -> "3"'):
        begin(tmp_path / "a", datasets={"a": "1", "b": "3"})
    with pytest.raises(ConfigError, match=r'inputs\.new: absent -> "x"'):
        begin(tmp_path / "a", new="x")
    if not finished:
        build(tmp_path / "a")


def test_resume_with_other_software_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "a", upto=1)
    monkeypatch.setattr("ripple.storage.writer.software", lambda: {"ripple": "99"})
    with pytest.raises(ConfigError, match="different software"):
        begin(tmp_path / "a")
    build(tmp_path / "b")  # finished artefacts of any software are read
    monkeypatch.undo()
    assert verify(tmp_path / "b") == []


def test_second_writer_is_refused_and_told_who(tmp_path: Path) -> None:
    first = begin(tmp_path / "a")
    assert isinstance(first, ArtefactWriter)
    with first:
        with pytest.raises(LockedError, match=f"pid {os.getpid()}"):
            begin(tmp_path / "a")
        with pytest.raises(InputError, match="another process is writing"):
            open_artefact(tmp_path / "a")
    build(tmp_path / "a")


def test_someone_elses_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(WriteError, match="did not write"):
        begin(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "thesis.tex"]


def test_committed_unit_that_rots_is_done_again(tmp_path: Path) -> None:
    build(tmp_path / "ref")
    for damage in ("flip", "cut", "delete", "link", "swap", "empty"):
        here = tmp_path / damage
        build(here, upto=2)
        shard = here / "shard-00000.h5"
        other = here / "shard-00001.h5"
        data = bytearray(shard.read_bytes())
        data[77] ^= 4
        if damage == "flip":
            shard.write_bytes(data)
        elif damage == "cut":
            shard.write_bytes(data[:100])
        elif damage == "delete":
            shard.unlink()
        elif damage == "empty":
            shard.write_bytes(b"")
        elif damage == "link":
            shard.rename(tmp_path / "elsewhere")
            shard.symlink_to(tmp_path / "elsewhere")
        else:
            shard.rename(here / "x")
            other.rename(shard)
            (here / "x").rename(other)
        build(here)
        assert contents(here) == contents(tmp_path / "ref"), damage


def test_staged_bytes_commit_like_bytes(tmp_path: Path) -> None:
    build(tmp_path / "a")
    writer = begin(tmp_path / "b")
    assert isinstance(writer, ArtefactWriter)
    with writer:
        for unit in (2, 0, 1):  # any order
            staged = stage(writer.directory, writer.name(unit), unit_bytes(unit))
            writer.commit(unit, staged, ROWS, {"notes": [unit]})
        stage(writer.directory, "shard-00000.h5", b"left by a worker that died")
        writer.finish(index(), {"seconds": 1.5}, {"bands": ["g"]})
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("index", 1, 0, "row 0 occurs more than once"),
        ("status", 2, "lost", "row 2 has an unknown status"),
        ("shard", 3, -1, "row 3 is accepted but in no shard"),
        ("reason", 12, "", "row 12 is rejected without a reason"),
        ("shard", 3, 7, "row 3 points outside"),
        ("row", 3, 9, "row 3 points beyond"),
        ("row", 3, 2, "row 2 of shard 0 belongs to 2 targets"),
        ("row", 3, 2.5, r"column 'row' \(double\) must have a whole number in every row"),
        ("shard", 3, None, r"column 'shard' \(int64\) must have a whole number in every row"),
    ],
)
def test_conservation_law(tmp_path: Path, column: str, row: int, value: Any, message: str) -> None:
    writer = begin(tmp_path / "a")
    assert isinstance(writer, ArtefactWriter)
    values = index().to_pydict()
    values[column][row] = value
    with writer:
        for unit in range(UNITS):
            writer.commit(unit, unit_bytes(unit), ROWS, {})
        with pytest.raises(IntegrityError, match=message):
            writer.finish(pa.table(values), {}, {"bands": ["g"]})
        with pytest.raises(IntegrityError, match="12 targets were requested, but the index has 13"):
            writer.finish(index(), {}, {}, asked=12)
    with pytest.raises(InputError, match="not finished"):
        open_artefact(tmp_path / "a")


def test_index_may_come_in_parts(tmp_path: Path) -> None:
    build(tmp_path / "whole")
    writer = begin(tmp_path / "parts")
    assert isinstance(writer, ArtefactWriter)
    with writer:
        for unit in range(UNITS):
            writer.commit(unit, unit_bytes(unit), ROWS, {})
        writer.finish((index().slice(at, 5) for at in range(0, index().num_rows, 5)), {}, {"bands": ["g"]})
    whole, parts = open_artefact(tmp_path / "whole"), open_artefact(tmp_path / "parts")
    assert parts.index().equals(whole.index())
    assert parts.manifest["counts"] == whole.manifest["counts"]
    assert verify(tmp_path / "parts") == []


def test_law_holds_over_parts() -> None:
    law = Law([2, 1])
    columns = {"status": ["ok"], "reason": [""], "shard": [0], "row": [0]}
    law.add(pa.table({"index": [7], **columns}))
    law.add(pa.table({"index": [7], **columns, "row": [1]}))
    law.add(pa.table({"index": [3], **columns, "shard": [1]}))
    with pytest.raises(IntegrityError, match="index row 7 occurs more than once"):
        law.counts()


def test_uncommitted_unit_is_named(tmp_path: Path) -> None:
    writer = begin(tmp_path / "a")
    assert isinstance(writer, ArtefactWriter)
    with writer:
        writer.commit(0, b"x", 1, {})
        with pytest.raises(IntegrityError, match="unit 1 is not committed"):
            writer.finish(index(), {}, {})


def test_unfinished_and_foreign_directories_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        open_artefact(tmp_path / "none")
    with pytest.raises(InputError, match="it has no manifest"):
        open_artefact(tmp_path)
    build(tmp_path / "a")
    with pytest.raises(InputError, match="contains cutouts, not tensors"):
        open_artefact(tmp_path / "a", "tensors")


def test_manifest_never_leads_outside(tmp_path: Path) -> None:
    from ripple.storage.manifest import content_digest, render

    build(tmp_path / "a")
    path = tmp_path / "a/manifest.json"
    manifest = json.loads(path.read_bytes())
    for name in ("../secret", "/etc/passwd", "shard-00001.h5"):
        manifest["shards"][0]["name"] = name
        manifest["digest"] = content_digest(manifest)
        path.write_bytes(render(manifest))
        with pytest.raises(IntegrityError, match="is named"):
            open_artefact(tmp_path / "a")


def test_write_atomic_replaces_and_names_failures(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    with pytest.raises(WriteError, match="missing"):
        write_atomic(tmp_path / "missing" / "x", b"")
    link = tmp_path / "link"
    link.symlink_to(path)
    write_atomic(link, b"three")  # replaces the link, does not follow it
    assert path.read_bytes() == b"two"
    assert not link.is_symlink()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(TEMPORARY)]


def test_writer_killed_between_manifest_and_tidying_leaves_nothing(tmp_path: Path) -> None:
    build(tmp_path / "a")
    before = contents(tmp_path / "a")
    (tmp_path / "a/.journal").write_bytes(b"left over")
    (tmp_path / "a/.tmp-x").write_bytes(b"left over")
    assert isinstance(begin(tmp_path / "a"), Finished)
    assert contents(tmp_path / "a") == before


def test_a_disk_that_fails_while_more_is_written_fails_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def broken(handle: int) -> None:
        calls.append(handle)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("ripple.storage.files._FLUSH", 1000)
    monkeypatch.setattr("ripple.storage.files.os.fdatasync", broken)
    chunks = (bytes(1000) for _ in range(100))
    with pytest.raises(WriteError, match="Input/output error"):
        stage_chunks(tmp_path, "shard", chunks, 100_000)
    assert calls
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    monkeypatch.setattr("ripple.storage.files._FLUSH", 1000)
    staged = stage_chunks(tmp_path, "shard", (bytes([k]) * 1000 for k in range(100)), 100_000)
    whole = b"".join(bytes([k]) * 1000 for k in range(100))
    assert (tmp_path / staged.temporary).read_bytes() == whole
    assert (staged.bytes, staged.sha256) == (len(whole), hashlib.sha256(whole).hexdigest())


def test_an_index_that_is_no_table_is_refused_though_its_digest_is_right(tmp_path: Path) -> None:
    """An artefact made by others, with a right seal; found by fuzzing."""
    build(tmp_path)
    path = tmp_path / "manifest.json"
    whole = (tmp_path / "index.parquet").read_bytes()
    for data in (b"PAR1 no table PAR1", whole[:40] + bytes(40) + whole[80:], b""):
        (tmp_path / "index.parquet").write_bytes(data)
        manifest = json.loads(path.read_bytes())
        manifest["index"] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest["digest"] = content_digest(manifest)
        path.write_bytes(render(manifest))
        with pytest.raises(IntegrityError, match=r"index\.parquet: cannot be read as a table"):
            open_artefact(tmp_path).index()
        assert verify(tmp_path)


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
