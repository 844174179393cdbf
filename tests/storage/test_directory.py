"""Directories (pages, exports): whole or absent, one writer, every byte accounted for."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import faultlib
import pytest
from pages import write_page

from ripple.cli import run
from ripple.errors import ConfigError, IntegrityError, LockedError, WriteError
from ripple.storage.artefact import verify
from ripple.storage.files import write_new
from ripple.storage.manifest import MANIFEST, MARK, content_digest, render

FILES = {
    "index.html": b"<p>page</p>",
    "candidates.csv": b"rank,id\n1,a\n",
    "deep/er/0000000.npy": bytes(5000),
}


def build(directory: Path) -> None:
    for name, data in FILES.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)


def never(directory: Path) -> None:
    raise AssertionError("built again")


def contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


SUPPORT = str(Path(__file__).parents[1] / "support")
#: A process that makes a tree: argv is the output, and seconds to sleep in the middle.
CHILD = f"""
import sys, time
from contextlib import suppress
from pathlib import Path
from ripple.errors import RippleError
sys.path.insert(0, {SUPPORT!r})
from pages import write_page
def slowly(directory):
    for name, data in {FILES!r}.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    print("begun", flush=True)
    time.sleep(float(sys.argv[2]))
try:
    write_page(Path(sys.argv[1]), slowly)
except RippleError as err:
    print(err, file=sys.stderr)
    sys.exit(err.exit_code)
"""


def child(output: Path, seconds: float, *prefix: str) -> subprocess.Popen[str]:
    argv = [*prefix, sys.executable, "-c", CHILD, str(output), str(seconds)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def begun(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    assert write_page(tmp_path / "out", build)
    return tmp_path / "out"


def test_what_is_written_and_nothing_else(tree: Path) -> None:
    assert sorted(contents(tree)) == sorted([*FILES, MANIFEST])
    assert [p.name for p in tree.parent.iterdir()] == ["out"]
    note = json.loads((tree / MANIFEST).read_bytes())
    assert sorted(note["files"]) == sorted(FILES)
    assert note["files"]["index.html"][0] == len(FILES["index.html"])
    assert (note["kind"], note["verb"], note["config"]) == ("page", "report", {"top": 3})
    assert verify(tree) == []
    assert run(["verify", str(tree)]) == 0


def test_the_same_again_is_done_and_looks_at_sizes(tree: Path) -> None:
    before = contents(tree)
    assert not write_page(tree, never)
    assert contents(tree) == before
    assert [p.name for p in tree.parent.iterdir()] == ["out"]
    with pytest.raises(ConfigError, match=r"report\.top: 3 -> 4"):
        write_page(tree, never, top=4)
    (tree / "candidates.csv").write_bytes(b"rank")
    with pytest.raises(IntegrityError, match=r"candidates\.csv has 4 bytes"):
        write_page(tree, never)
    (tree / "candidates.csv").unlink()
    with pytest.raises(IntegrityError, match=r"candidates\.csv"):
        write_page(tree, never)
    assert [p.name for p in tree.parent.iterdir()] == ["out"]


def test_the_same_files_give_the_same_note(tree: Path, tmp_path: Path) -> None:
    write_page(tmp_path / "other", build)
    assert contents(tmp_path / "other") == contents(tree)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_every_flip_is_found(tree: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (tree / name).read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 40)):
        for bit in (0, 5):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            (tree / name).write_bytes(bytes(data))
            assert run(["verify", str(tree)]) == 4
            assert name in capsys.readouterr().err
            if name == MANIFEST:
                with pytest.raises(IntegrityError, match=MANIFEST):
                    write_page(tree, never)


def test_missing_extra_and_linked_files_are_named(tree: Path) -> None:
    (tree / "deep/er/0000000.npy").unlink()
    (tree / "deep/new").write_bytes(b"")
    (tree / "index.html").rename(tree.parent / "page")
    (tree / "index.html").symlink_to(tree.parent / "page")
    problems = verify(tree)
    assert len(problems) == 3
    expected = ("0000000.npy: No such", "index.html: is a symbolic", "deep/new: not listed")
    for problem, words in zip(problems, expected, strict=True):
        assert words in problem


def test_a_note_without_a_list_and_one_that_leads_outside(tree: Path) -> None:
    record = json.loads((tree / MANIFEST).read_bytes())
    (tree / MANIFEST).write_text(json.dumps(record) + "\n")
    with pytest.raises(IntegrityError, match="remove the directory and run again"):
        write_page(tree, never)
    for files in ({"../page": [1, "0"]}, {"/etc/passwd": [1, "0"]}, {"a": [1]}, {"a": ["1", "0"]}, [], None):
        changed = {**record, "files": files}
        (tree / MANIFEST).write_bytes(render({**changed, "digest": content_digest(changed)}))
        (problem,) = verify(tree)
        assert "files" in problem


def test_a_second_writer_is_told_who_writes_and_leaves_it_alone(tmp_path: Path) -> None:
    first = child(tmp_path / "out", 60)
    begun(first)
    before = contents(tmp_path / "out.partial")
    with pytest.raises(LockedError, match=rf"out\.partial is being written by pid {first.pid}"):
        write_page(tmp_path / "out", never)
    assert contents(tmp_path / "out.partial") == before
    first.kill()
    first.communicate()
    assert contents(tmp_path / "out.partial").keys() == {*FILES, MARK}
    assert write_page(tmp_path / "out", build)
    assert sorted(contents(tmp_path / "out")) == sorted([*FILES, MANIFEST])
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_many_writers_at_once_make_one_tree(tmp_path: Path, tree: Path) -> None:
    want = contents(tree)
    for trial in range(3):
        output = tmp_path / f"many-{trial}"
        writers = [child(output, 0.02) for _ in range(4)]
        ends = [(w.communicate()[1], w.returncode) for w in writers]
        assert {code for _, code in ends} <= {0, 6}
        assert 0 in {code for _, code in ends}
        assert all("is being written by" in text for text, code in ends if code)
        assert contents(output) == want
        assert not (tmp_path / f"many-{trial}.partial").exists()


def test_killed_at_any_moment_the_next_run_makes_the_same(tmp_path: Path, tree: Path) -> None:
    want = contents(tree)
    if faultlib.can_trace():
        pytest.skip(faultlib.can_trace())
    counts = {"mkdir": 1, "flock": 1, "fsync": 5, "rename": 2, "unlink": 1}  # by thread, as strace counts
    for call, k in [(call, k) for call, count in counts.items() for k in range(1, count + 1)]:
        output = tmp_path / f"{call}-{k}"
        inject = faultlib.injection(call, "signal=SIGKILL", k)
        process = child(output, 0, "strace", "-f", "-qq", *inject)
        process.communicate()
        assert process.returncode == -9
        write_page(output, build)
        assert contents(output) == want
        assert not output.with_name(output.name + ".partial").exists()


def test_killed_between_the_rename_and_the_end(tree: Path) -> None:
    (tree / MARK).write_bytes(b"pid 1 on nowhere")
    assert verify(tree) == []
    assert not write_page(tree, never)
    assert not (tree / MARK).exists()


def test_a_foreign_partial_is_left_alone(tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "thesis.tex").write_text("x")
    with pytest.raises(WriteError, match=r"out\.partial contains files that RIPPLe did not write"):
        write_page(tmp_path / "out", never)
    assert [p.name for p in partial.iterdir()] == ["thesis.tex"]
    shutil.rmtree(partial)
    partial.write_text("a file")
    with pytest.raises(WriteError, match=r"out\.partial"):
        write_page(tmp_path / "out", never)
    assert partial.read_text() == "a file"
    partial.unlink()
    (tmp_path / "elsewhere").mkdir()
    partial.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(WriteError, match="did not write"):
        write_page(tmp_path / "out", never)
    assert partial.is_symlink()


def test_a_finished_tree_called_partial_is_not_cleared(tmp_path: Path) -> None:
    write_page(tmp_path / "out.partial", build)
    with pytest.raises(WriteError, match="did not write"):
        write_page(tmp_path / "out", never)
    assert verify(tmp_path / "out.partial") == []


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def broken(directory: Path) -> None:
        build(directory)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(WriteError, match=r"out\.partial: disk full, at least \d+ bytes needed, \d+ free"):
        write_page(tmp_path / "out", broken)
    assert list(tmp_path.iterdir()) == []


def test_threads_that_write_after_a_failure_leave_nothing(tmp_path: Path) -> None:
    def late(directory: Path) -> None:
        for k in range(100):
            with suppress(OSError):
                (directory / f"sub-{k}").mkdir()
                (directory / f"sub-{k}" / "file").write_bytes(b"late")
            time.sleep(0.002)

    def broken(directory: Path) -> None:
        writer.append(threading.Thread(target=late, args=(directory,)))
        writer[0].start()
        time.sleep(0.05)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer: list[threading.Thread] = []
    with pytest.raises(WriteError, match="disk full"):
        write_page(tmp_path / "out", broken)
    writer[0].join()
    assert write_page(tmp_path / "out", build)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_named_with_what_it_needed(tmp_path: Path) -> None:
    if faultlib.can_mount():
        pytest.skip(faultlib.can_mount())
    with faultlib.small_disk(tmp_path / "disk", 1 << 20) as disk:
        with pytest.raises(WriteError, match=r"big: disk full, at least 2097152 bytes needed, \d+ free"):
            write_page(disk / "out", lambda d: write_new(d / "big", bytes(1 << 21)))
        assert list(disk.iterdir()) == []


def test_a_failing_sync_is_an_error_and_nothing_passes_for_finished(tmp_path: Path, tree: Path) -> None:
    if faultlib.can_trace():
        pytest.skip(faultlib.can_trace())
    # strace counts by thread: 1 is of each file, then the second folder, the note, its directory, the parent
    for k in range(1, 6):
        output = tmp_path / f"sync-{k}"
        process = child(output, 0, "strace", "-f", "-qq", *faultlib.injection("fsync", "error=EIO", k))
        _, text = process.communicate()
        assert process.returncode == 6, text
        assert f"sync-{k}" in text
        assert "Input/output error" in text
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith("sync")] == []
    last = child(tmp_path / "sync-6", 0, "strace", "-f", "-qq", *faultlib.injection("fsync", "error=EIO", 6))
    assert last.wait() == 0  # there is no sixth
    assert contents(tmp_path / "sync-6") == contents(tree)


def test_names_of_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(WriteError, match="working directory"):
        write_page(Path(), never)
    assert [p.name for p in tmp_path.iterdir()] == ["here"]
    for name in ("/", ".."):
        with pytest.raises(WriteError):
            write_page(Path(name), never)
    (tmp_path / "to").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "to")
    for name in ("sub/", "../up", "a/b/c", str(tmp_path / "link"), "empty"):
        if name == "empty":
            Path(name).mkdir()
        assert write_page(Path(name), build)
        assert verify(Path(name)) == []
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "up").is_dir()
    monkeypatch.chdir(tmp_path / "up")
    assert not write_page(Path(), never)
    assert not list(tmp_path.rglob("*.partial"))


def test_verify_of_scores_and_models_covers_what_lies_beside(tmp_path: Path, made: Any) -> None:
    scores, model = made
    for directory, names in (
        (scores, ("evaluation.json", "metrics.json", "scores.parquet", "manifest.json", "index.parquet")),
        (
            model,
            (
                "evaluation.json",
                "curves.png",
                "history.csv",
                "model.safetensors",
                "model.json",
                "manifest.json",
            ),
        ),
    ):
        assert run(["verify", str(directory)]) == 0
        for name in names:
            whole = (directory / name).read_bytes()
            for at in range(0, len(whole), max(1, len(whole) // 7)):
                (directory / name).write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
                assert run(["verify", str(directory)]) == 4, (name, at)
            (directory / name).unlink()
            if name == "manifest.json":
                assert run(["verify", str(directory)]) == 3
            elif name != "metrics.json":
                assert run(["verify", str(directory)]) == 4
            (directory / name).write_bytes(whole)
        assert run(["verify", str(directory)]) == 0


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    """Scores, and a model with the files of a training beside its weights."""
    from models import make_contract
    from tensorsets import make_scores, make_tensors

    from ripple.learn.model.network import build as network
    from ripple.learn.model.weights import save_model

    contract = make_contract()
    model = tmp_path / "model"
    model.mkdir()
    for name in ("evaluation.json", "curves.png", "history.csv"):
        (model / name).write_bytes(name.encode() * 20)
    save_model(model, contract, [network(contract.architecture.architecture()).state_dict()])
    return make_scores(tmp_path / "scores", make_tensors(tmp_path / "tensors", (20, 30))), model


def test_the_page_believes_no_number_without_a_digest(made: Any, tmp_path: Path) -> None:
    from ripple.stages.report.config import ReportConfig
    from ripple.stages.report.report import report

    scores, _ = made
    path = scores / "evaluation.json"
    path.write_bytes(path.read_bytes().replace(b'"auroc"', b'"aurok"'))
    with pytest.raises(IntegrityError, match=r"evaluation\.json: damaged"):
        report(ReportConfig.make({"source": scores, "output": tmp_path / "page"}))
    assert not list(tmp_path.glob("page*"))


def test_a_finished_page_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert write_page(tmp_path / "out", build)

    def refuse(*_: object) -> int:
        raise AssertionError("the place may be read-only")

    monkeypatch.setattr("ripple.storage.directory._claim", refuse)
    assert not write_page(tmp_path / "out", build)
