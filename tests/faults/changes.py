"""Rows 24, 25, 27, 28, 38: what changes around a run: the repository, the disks, the clock, the machine."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import faultlib
import fetching
import numpy as np
import pyarrow.parquet as pq
import verbs
import victim
from faultlib import Tally, contents
from fetching import faulty
from rows import _unfinished, named, reference, row, trials_in_time
from verbs import VERB_ROWS

from ripple.errors import ConfigError, InputError, SourceError
from ripple.stages.fetch import fetch as fetching_stage
from ripple.storage.artefact import open_artefact
from ripple.storage.manifest import content_digest, render, software
from ripple.storage.shard_reader import unpack_cutouts


def _sky() -> Path:
    assert verbs.SKY is not None
    return verbs.SKY


# Row 24: the repository changes -------------------------------------


@contextmanager
def _after_planning(change: Callable[[], None]) -> Iterator[None]:
    """Something happens between the plan and the first read."""
    plan = fetching_stage.make_plan

    def planned(*args: Any) -> Any:
        made = plan(*args)
        change()
        return made

    fetching_stage.make_plan = planned
    try:
        yield
    finally:
        fetching_stage.make_plan = plan


@contextmanager
def _between_units(change: Callable[[], None], at: int) -> Iterator[None]:
    """Something happens before unit `at` is read."""
    make = fetching_stage.make_shard

    def made(task: Any) -> Any:
        if task.unit.number == at:
            change()
        return make(task)

    fetching_stage.make_shard = made
    try:
        yield
    finally:
        fetching_stage.make_shard = make


@row("24", "a coadd replaced, cut or deleted between plan and read, or between units", full=40, gate=4,
     into=VERB_ROWS)  # fmt: skip
def repository_changes(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    sky = directory / "sky"
    shutil.copytree(_sky(), sky)
    files = sorted((sky / "repo").rglob("*.fits"))
    clean = directory / "clean"
    with faulty(directory):
        fetching.run(sky, clean, workers=0)
    units = len(open_artefact(clean).shards)
    for trial in trials_in_time(trials):
        here, tally.trials = directory / f"changed-{trial}", trial + 1
        kind = ("replaced", "deleted", "cut", "between")[trial % 4]
        path = rng.choice(files)
        whole = path.read_bytes()
        change = _change(kind, path, files, rng)
        trusted = {"digests": str(clean)} if kind == "replaced" else {}
        when = (
            _between_units(change, rng.randrange(1, units)) if kind == "between" else _after_planning(change)
        )
        try:
            with faulty(directory), when:
                fetching.run(sky, here, workers=0, **trusted)
            _refused(tally, here, clean, kind, path)
        except SourceError as err:  # two units read two versions of it
            named(tally, str(err), "changed while it was read", "SHA-256")
            if kind != "between" or (here / "manifest.json").exists():
                tally.silent += 1
                tally.note(f"{kind}: {err}")
        finally:
            path.write_bytes(whole)
        shutil.rmtree(here)


def _change(kind: str, path: Path, files: list[Path], rng: random.Random) -> Callable[[], None]:
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[rng.randrange(len(whole) // 2, len(whole))] ^= 1
    return {
        "replaced": lambda: path.write_bytes(flipped) and None,
        "between": lambda: path.write_bytes(flipped) and None,
        "deleted": path.unlink,
        "cut": lambda: path.write_bytes(whole[: len(whole) // 3]) and None,
    }[kind]  # fmt: skip


def _refused(tally: Tally, here: Path, clean: Path, kind: str, path: Path) -> None:
    """The changed file was refused by name, and what does not need it is as it was."""
    artefact, before = open_artefact(here), open_artefact(clean)
    notes = json.dumps([s.extra.get("notes") for s in artefact.shards])
    if kind == "between":  # read after the change only: its digest is recorded, and no version was mixed
        return
    words = {
        "replaced": ("SHA-256", "trusted digest"),
        "deleted": (path.name,),
        "cut": (path.name, "recorded"),
    }
    named(tally, notes, *words[kind])
    old, new = _rows(before), _rows(artefact)
    same = 0
    for k, value in new.items():
        if value == old.get(k):
            same += 1
        elif value[1] == old[k][1]:
            tally.silent += 1
            tally.note(f"{kind} {path.name}: row {k} has the same bands and other pixels")
    if not same or same == len(old):
        tally.silent += 1
        tally.note(f"{kind} {path.name}: {same} of {len(old)} rows are as before")


def _rows(artefact: Any) -> dict[Any, tuple[bytes, int]]:
    """Id -> pixels and bands of each cutout."""
    found = {}
    for k in range(len(artefact.shards)):
        batch = unpack_cutouts(artefact.read(k))
        for i, name in enumerate(batch.catalog["id"].tolist()):
            planes = (batch.image[i], batch.variance[i], batch.mask[i])
            found[name] = b"".join(p.tobytes() for p in planes), int(batch.catalog["band_mask"][i])
    return found


@row("24", "the collection points elsewhere when a run is resumed", full=4, gate=1, into=VERB_ROWS)
def collection_moves(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    from lsst.daf.butler import Butler, CollectionType

    sky = directory / "sky"
    shutil.copytree(_sky(), sky)
    with Butler.from_config(str(sky / "repo"), writeable=True) as butler:
        butler.registry.registerCollection("latest", CollectionType.CHAINED)
        butler.registry.setCollectionChain("latest", ["mini"])
        refs = sorted(butler.query_datasets("deep_coadd", collections="mini"), key=lambda r: str(r.dataId))
        for trial in trials_in_time(trials):
            here, tally.trials = directory / f"moved-{trial}", trial + 1
            with faulty(directory):
                with suppress(KeyboardInterrupt), _between_units(_stop, 2):
                    fetching.run(sky, here, workers=0, collections=["latest"])
                butler.registry.registerRun(f"new{trial}")
                ref = refs[trial % len(refs)]
                butler.put(butler.get(ref), "deep_coadd", ref.dataId, run=f"new{trial}")
                butler.registry.setCollectionChain("latest", [f"new{trial}", "mini"])
                try:
                    fetching.run(sky, here, workers=0, collections=["latest"])
                    tally.silent += 1
                    tally.note("two versions of the collection in one output")
                except ConfigError as err:
                    named(tally, str(err), "inputs.datasets", str(here))
            butler.registry.setCollectionChain("latest", ["mini"])


def _stop() -> None:
    raise KeyboardInterrupt


# Row 25: places that cannot be written ------------------------------


@contextmanager
def _read_only(where: Path) -> Iterator[None]:
    """A directory that root cannot write to either: a read-only bind mount of itself."""
    subprocess.run(["mount", "--bind", str(where), str(where)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(where)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


@row("25", "read-only output, repository, HOME, TMPDIR; no inodes left", full=20, gate=5, into=VERB_ROWS)
def read_only_places(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    tally.skipped = faultlib.can_mount()
    if tally.skipped:
        return
    sky, home = directory / "sky", directory / "home"
    shutil.copytree(_sky(), sky)
    home.mkdir()
    kept, verbs.SKY = verbs.SKY, sky
    try:
        want, _ = verbs.reference(
            verbs.fetch_argv(directory / "reference", workers=0), directory / "reference"
        )
        for trial in trials_in_time(trials):
            here, tally.trials = directory / f"place-{trial}", trial + 1
            kind = ("output", "inodes", "repository", "HOME", "TMPDIR")[trial % 5]
            environment = {**os.environ, kind: str(home)} if kind in ("HOME", "TMPDIR") else dict(os.environ)
            here.mkdir()
            where = {"output": here, "repository": sky}.get(kind, home)
            with _few_inodes(here) if kind == "inodes" else _read_only(where):
                run = verbs.start(verbs.fetch_argv(here / "out", workers=0), env=environment)
                code = run.end()
                if kind in ("output", "inodes"):
                    named(tally, run.text(), str(here))
                if code != (6 if kind in ("output", "inodes") else 0):
                    tally.unnamed += 1
                    tally.note(f"{kind}: exit {code}: {run.text()[-300:]}")
                elif code == 0 and contents(here / "out") != want:
                    tally.silent += 1
                    tally.note(f"{kind}: other bytes")
            shutil.rmtree(here)
    finally:
        verbs.SKY = kept


@contextmanager
def _few_inodes(where: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=4", "none", str(where)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


# Row 27: clocks -----------------------------------------------------


@contextmanager
def _other_clock(shift: float, jump: float) -> Iterator[None]:
    """The wall clock of this process is off, and moves by `jump` at every reading."""
    kept = time.time, time.time_ns
    moved = 0.0

    def now() -> float:
        nonlocal moved
        moved += jump
        return kept[0]() + shift + moved

    time.time = now
    time.time_ns = lambda: int(now() * 1e9)
    try:
        yield
    finally:
        time.time, time.time_ns = kept


@row("27", "the clock is years off or jumps, file times are wrong", full=20, gate=2, into=VERB_ROWS)
def clocks(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    sky = directory / "sky"
    shutil.copytree(_sky(), sky)
    with faulty(directory):
        fetching.run(sky, directory / "reference", workers=0)
        want = contents(directory / "reference")
        for trial in trials_in_time(trials):
            here, tally.trials = directory / f"clock-{trial}", trial + 1
            shift = rng.choice([-2 * 86400.0, 10 * 365.25 * 86400, -30 * 365.25 * 86400])
            for path in (sky / "repo").rglob("*"):
                stamp = time.time() + rng.uniform(-1e9, 1e9)
                os.utime(path, (stamp, stamp))
            with _other_clock(shift, rng.choice([0.0, 3600.0, -3600.0])):
                with suppress(KeyboardInterrupt), _between_units(_stop, 3):
                    fetching.run(sky, here, workers=0)
                fetching.run(sky, here, workers=0)
            if contents(here) != want:
                tally.silent += 1
                tally.note(f"clock {shift:.0f} s off: other bytes")
            shutil.rmtree(here)


# Row 28: machines ---------------------------------------------------


@contextmanager
def _machine(directory: Path, rng: random.Random) -> Iterator[str]:
    """Another time zone, locale, umask, place for temporaries and working directory."""
    place = Path(tempfile.mkdtemp(dir=directory, prefix="tmp ü "))
    values = {
        "TZ": rng.choice(["UTC", "Pacific/Kiritimati", "America/St_Johns", "Asia/Kathmandu"]),
        "LC_ALL": rng.choice(["C", "C.UTF-8", "de_DE.UTF-8", "tr_TR.UTF-8"]), "TMPDIR": str(place),
        "PYTHONHASHSEED": str(rng.randrange(1 << 30)), "OMP_NUM_THREADS": rng.choice("148"),
    }  # fmt: skip
    kept = {name: os.environ.get(name) for name in values}
    mask, where, temporaries = os.umask(rng.choice([0o000, 0o022, 0o077])), Path.cwd(), tempfile.tempdir
    os.environ.update(values)
    os.chdir(place)
    time.tzset()
    tempfile.tempdir = None
    try:
        yield f"{values}"
    finally:
        os.chdir(where)
        os.umask(mask)
        tempfile.tempdir = temporaries
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        time.tzset()


@row("28", "workers 0 to 8, TMPDIR, locale, TZ, umask, hash seed, working directory", full=60, gate=3,
     into=VERB_ROWS)  # fmt: skip
def machines(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    want, _ = verbs.reference(verbs.fetch_argv(directory / "reference", workers=0), directory / "reference")
    tensors = verbs.preprocess_argv(directory / "reference", directory / "tensors", workers=0)
    prepared, _ = verbs.reference(tensors, directory / "tensors")
    for trial in trials_in_time(trials):
        here, tally.trials = directory / f"machine-{trial}", trial + 1
        fresh = trial % 10 == 9  # the hash seed is one of a whole interpreter
        workers = rng.choice([0, 1, 2, 8] if not fresh else [0, 2])
        with _machine(directory, rng) as what:
            for make, expected in (
                (lambda out, n: verbs.fetch_argv(out, workers=n), want),
                (lambda out, n: verbs.preprocess_argv(directory / "reference", out, workers=n), prepared),
            ):
                more: dict[str, Any] = {} if fresh else {"fork_workers": True}
                where = str(Path.cwd())
                run = verbs.start(make(here, workers), fresh=fresh, env=dict(os.environ), cwd=where, **more)
                code = run.end()
                if code != 0 or contents(here) != expected:
                    tally.silent += 1
                    tally.note(f"workers {workers} {what}: exit {code} {run.text()[-200:]}")
                shutil.rmtree(here, ignore_errors=True)


@row("28", "the catalogue in another order: the same samples", full=20, gate=2, into=VERB_ROWS)
def input_order(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    table = pq.read_table(_sky() / "truth.parquet")
    with faulty(directory):
        fetching.run(_sky(), directory / "reference", workers=0)
        clean = open_artefact(directory / "reference")
        want, names = _rows(clean), np.array(clean.index()["id"].to_pylist())
        for trial in trials_in_time(trials):
            here, tally.trials = directory / f"order-{trial}", trial + 1
            order = rng.sample(range(table.num_rows), table.num_rows)
            pq.write_table(table.take(order), directory / "mixed.parquet")
            fetching.run(_sky(), here, workers=0, targets=str(directory / "mixed.parquet"))
            artefact = open_artefact(here)
            found, ids = _rows(artefact), artefact.index()["id"].to_pylist()
            if found != want or ids != names[order].tolist():
                tally.silent += 1
                tally.note(f"{len(found)} samples of {len(want)}, or other pixels")
            shutil.rmtree(here)


# Row 38: other versions ---------------------------------------------


@row("38", "other versions of python, ripple, libraries and schema in the manifest", full=20, gate=20,
     into=VERB_ROWS)  # fmt: skip
def versions(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    reference(directory, units=3, size=2000)
    names = [*software(), "schema"]
    for trial in trials_in_time(trials):
        here, tally.trials = directory / f"version-{trial}", trial + 1
        name, finished = names[trial % len(names)], trial % 2 == 0
        version: Any = 99 if name == "schema" else rng.choice(["0.0.1", "99.0", ""])
        if not finished:
            _begun_with(here, name, version)
            try:
                victim.build(here, units=3, size=2000)
                tally.silent += 1
                tally.note(f"resumed across {name} {version!r}")
            except ConfigError as err:
                named(tally, str(err), name, "->")
            continue
        victim.build(here, units=3, size=2000)
        path = here / "manifest.json"
        manifest = json.loads(path.read_bytes())
        (manifest if name == "schema" else manifest["software"])[name] = version
        manifest["digest"] = content_digest(manifest)
        path.write_bytes(render(manifest))
        try:
            artefact = open_artefact(here)
            if name == "schema" or artefact.manifest["software"][name] != version:
                tally.silent += 1
                tally.note(f"{name} {version!r} was read")
            if artefact.digest != open_artefact(directory / "reference").digest:
                tally.silent += 1
                tally.note("the identity of the content depends on versions")
        except InputError as err:
            named(tally, str(err), "schema 99")
            tally.lost += name != "schema"


def _begun_with(here: Path, name: str, version: Any) -> None:
    """An unfinished artefact whose journal says that another version began it."""
    from ripple.storage.writer import _line, _parse_journal

    _unfinished(here, 2)
    path = here / ".journal"
    header, records = _parse_journal(path.read_bytes())
    assert header is not None
    assert records
    (header if name == "schema" else header["software"])[name] = version
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(_line(header) + b"\n".join(lines[1:]))
