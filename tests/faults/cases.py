"""The verbs that write something, each on the smallest input that makes it write all that it writes.

A case is a command line that writes below one directory, `work`, which is nobody else's: whatever is in it in
the end was left by the verb. The directory has the same path in every trial, because some outputs name it.
"""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import verbs
from faultlib import Tally

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

#: In which a small disk counts.
PAGE = 4096
#: What may differ between runs: durations, and who held the lock last.
VOLATILE = ("metrics.json", ".lock", "run.json")
Prepare = Callable[[Path, Path], list[list[str]]]


def found(work: Path) -> dict[str, str]:
    """Digest by path of all files below `work` that must be the same every time."""
    return {
        path.relative_to(work).as_posix(): _digest(path)
        for path in sorted(work.rglob("*"))
        if path.name not in VOLATILE and not path.is_dir()
    }


def _digest(path: Path) -> str:
    if path.suffix == ".fits" and "repo" in path.parts:
        return _pixels(path)
    if path.name == "gen3.sqlite3":
        return _registry(path)
    if path.name == "manifest.json" and (path.parent / "repo").is_dir():
        return _survey(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _survey(path: Path) -> str:
    """The manifest of a survey without what follows from the headers of its coadds."""
    manifest = json.loads(path.read_bytes())
    files = {name: None if name.startswith("repo/") else entry for name, entry in manifest["files"].items()}
    kept = {key: value for key, value in manifest.items() if key not in ("digest", "seal")} | {"files": files}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _pixels(path: Path) -> str:
    """A coadd of `simulate` without its headers, which hold the time of writing, and the tree in JSON."""
    from astropy.io import fits

    total = hashlib.sha256()
    with fits.open(path, memmap=False) as hdus:
        for hdu in hdus:
            if hdu.data is not None and hdu.name != "JSON":
                total.update(hdu.name.encode() + hdu.data.tobytes())
    return total.hexdigest()


def _registry(path: Path) -> str:
    """The datasets that a registry knows, and where their files are."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as registry:
        rows = registry.execute("select dataset_id, path, file_size from file_datastore_records").fetchall()
    return hashlib.sha256(repr(sorted(map(str, rows))).encode()).hexdigest()


def litter(work: Path) -> list[str]:
    """Temporaries and unfinished directories that were left below `work`."""
    names = (p.relative_to(work).as_posix() for p in sorted(work.rglob("*")))
    return [n for n in names if ".tmp-" in n or n.endswith(".partial")]


# The verbs ----------------------------------------------------------


def _simulate(given: Path, work: Path) -> list[list[str]]:
    sky = ["simulate", str(work / "sky"), "--patches", "1", "--bands", "g", "--targets", "4"]
    return [[*sky, "--workers", "0"]]


def _inject(given: Path, work: Path) -> list[list[str]]:
    from foreign import make_cutouts

    make_cutouts(given / "cutouts")
    return [["inject", str(given / "cutouts"), "-o", str(work / "out"), "--workers", "0"]]


def stamps(given: Path) -> list[tuple[Path, list[str]]]:
    """Stamps in each layout that is imported, and the options that go with it."""
    import h5py
    from foreign import deeplense_tree, make_cutouts

    from ripple.stages.formats.config import ExportConfig
    from ripple.stages.formats.export import export

    rng = np.random.default_rng(5)
    given.mkdir(parents=True, exist_ok=True)
    deeplense_tree(given / "deeplense", rng, n=2)
    arrays: dict[str, Any] = {
        "image": rng.normal(size=(12, 3, 24, 24)).astype(np.float32),
        "variance": np.ones((12, 3, 24, 24), np.float32),
        "label": np.arange(12) % 2, "id": np.array([f"a{k}" for k in range(12)], "S8"),
        "ra": np.linspace(50, 51, 12), "dec": np.linspace(-30, -29, 12),
    }  # fmt: skip
    np.savez(given / "arrays.npz", **arrays)
    with h5py.File(given / "arrays.h5", "w") as file:
        for name, values in arrays.items():
            file[name] = values
    make_cutouts(given / "cutouts", size=15)
    for name in ("fits", "mmu"):
        values = {"source": given / "cutouts", "output": given / name, "format": name}
        export(ExportConfig.make(values))
    for path in sorted((given / "fits").glob("*.fits"))[4:]:  # a file takes long to read
        path.unlink()
    plain = ["--bands", "gri", "--pixel-scale", "0.2", "--unit", "nJy", "--set", "rows_per_shard=3"]
    return [
        (given / "arrays.npz", ["--format", "arrays", *plain]),
        (given / "deeplense", ["--format", "deeplense", "--set", "rows_per_shard=2"]),
        (given / "fits", ["--format", "fits", *plain]),
        (given / "arrays.h5", ["--format", "arrays", *plain]),
        (given / "mmu", ["--format", "mmu", *plain]),
    ]


def _import(given: Path, work: Path) -> list[list[str]]:
    return [["import", str(path), *options, "-o", str(work / "out")] for path, options in stamps(given)]


def weights(given: Path) -> tuple[Path, Path]:
    """Weights from elsewhere and their sidecar."""
    from learning import SIDECAR, model

    model(given / "model")
    (given / "sidecar.yaml").write_text(json.dumps(SIDECAR))
    return given / "model/model.safetensors", given / "sidecar.yaml"


def _import_model(given: Path, work: Path) -> list[list[str]]:
    source, sidecar = weights(given)
    return [["import-model", str(source), "--sidecar", str(sidecar), "-o", str(work / "out")]]


def _export_model(given: Path, work: Path) -> list[list[str]]:
    weights(given)
    model = ["export-model", str(given / "model"), "--format", "pt2"]
    return [[*model, "-o", str(work / "finder.pt")]]


def _report(given: Path, work: Path) -> list[list[str]]:
    from tensorsets import make_scores, make_tensors

    make_tensors(given / "tensors", rows=(20, 12))
    make_scores(given / "scores", given / "tensors")
    return [
        ["report", str(given / name), "--top", "5", "--missed", "2", "-o", str(work / "out")]
        for name in ("scores", "tensors")
    ]


def _explain(given: Path, work: Path) -> list[list[str]]:
    from learning import model, toys

    data, trained = toys(given, 12), model(given / "model")
    few = ["--top", "2", "--set", "steps=4", "--set", "points=20", "--set", "neighbours=2", "--device", "cpu"]
    return [["explain", str(trained), str(data), *few, "-o", str(work / "out")]]


def _export(given: Path, work: Path) -> list[list[str]]:
    from foreign import make_cutouts

    make_cutouts(given / "cutouts", size=15)
    few = ["--set", "rows_per_file=4", "-o", str(work / "out")]
    forms = ("deeplense", "fits", "webdataset", "zarr", "mmu")
    return [["export", str(given / "cutouts"), "--format", form, *few] for form in forms]


def _locate(given: Path, work: Path) -> list[list[str]]:
    lines = [f"{k},{50 + 0.01 * k},{-30 + 0.001 * k}" for k in range(500)]
    (given / "places.csv").write_text("id,ra,dec\n" + "\n".join(lines) + "\n")
    where = ["locate", "--targets", str(given / "places.csv"), "--skymap", "lsst_cells_v2", "--size", "64"]
    return [[*where, "-o", str(work / name)] for name in ("out.csv", "out.parquet")]


def _run(given: Path, work: Path) -> list[list[str]]:
    assert verbs.SKY is not None
    chain = {
        "fetch": {
            "repo": str(verbs.SKY / "repo"), "collections": ["mini"], "bands": ["g", "r", "i"], "size": 48,
            "targets": str(verbs.SKY / "truth.parquet"), "workers": 0,
        },
        "preprocess": {"workers": 0},
        "train": {
            "epochs": 1, "width": 2, "nside": 8192, "split_seed": 5, "threads": 1, "draws": 3,
            "batch_size": 16,
        },
        "score": {"threads": 1, "draws": 10},
        "report": {"top": 5, "missed": 2},
    }  # fmt: skip
    (given / "chain.yaml").write_text(json.dumps(chain))
    whole = ["run", "-c", str(given / "chain.yaml"), "-o"]
    made = verbs.start([*verbs.RIPPLE, *whole, str(given / "made")])
    assert made.end() == 0, made.text()
    # Training takes longer than all the rest, and has rows of its own.
    quick = [*whole, str(work / "out"), "--model", str(given / "made/model")]
    return [quick, quick, quick, [*whole, str(work / "out")]]


VERBS: dict[str, Prepare] = {
    "simulate": _simulate, "inject": _inject, "import": _import, "import-model": _import_model,
    "export-model": _export_model, "report": _report, "explain": _explain, "export": _export,
    "locate": _locate, "run": _run,
}  # fmt: skip


# Their runs ---------------------------------------------------------


class Cases:
    """The command lines of a verb, what each writes when nothing goes wrong, and how long that takes.

    Parameters
    ----------
    verb
        Of `VERBS`.
    directory
        Scratch space of the row.
    """

    def __init__(self, verb: str, directory: Path) -> None:
        given, self.work = directory / "given", directory / "work"
        given.mkdir()
        self.argv = VERBS[verb](given, self.work)
        self.verb = verb
        self._known: dict[tuple[str, ...], tuple[dict[str, str], float, int]] = {}

    def known(self, args: list[str]) -> tuple[dict[str, str], float, int]:
        """Digests, seconds and pages on disk of a command line, by two runs that must agree."""
        if tuple(args) not in self._known:
            wants, seconds, pages = [], 0.0, 0
            for _ in range(2):
                begin = time.monotonic()
                run = self.start(args)
                code = run.end()
                seconds = time.monotonic() - begin
                assert code == 0, f"{args} exits {code}: {run.text()[-2000:]}"
                wants.append(found(self.work))
                pages = sum(-(-path.stat().st_size // PAGE) for path in _walk(self.work))
                assert not litter(self.work), litter(self.work)
                clear(self.work)
            differing = sorted(set(wants[0].items()) ^ set(wants[1].items()))
            assert not differing, f"{args}: two runs differ in {differing[:4]}"
            self._known[tuple(args)] = wants[0], seconds, pages
        return self._known[tuple(args)]

    def start(self, args: list[str], *, fresh: bool = False) -> verbs.Run:
        """Start one of the command lines."""
        self.work.mkdir(exist_ok=True)
        workers = {} if fresh or "2" not in _workers(args) else {"fork_workers": True}
        return verbs.start([*verbs.RIPPLE, *args], fresh=fresh, **workers)

    def trial(self, number: int) -> Trial:
        """The command line of a trial and how it is run; mostly forked, in one process."""
        args, fresh = self.argv[number % len(self.argv)], number % 40 == 39
        want, seconds, pages = self.known(args)
        if number % 8 == 7 and _workers(args):
            at = args.index("--workers") + 1
            args = [*args[:at], "2", *args[at + 1 :]]
        return Trial(self, args, want, seconds + (4.0 if fresh else 0.0), pages, fresh)


def _workers(args: list[str]) -> list[str]:
    return args[args.index("--workers") + 1 :][:1] if "--workers" in args else []


class Trial:
    """A command line, what it must write, and the time and space it takes when nothing goes wrong."""

    def __init__(
        self, cases: Cases, args: list[str], want: dict[str, str], seconds: float, pages: int, fresh: bool
    ) -> None:
        self.cases, self.args, self.want, self.work = cases, args, want, cases.work
        self.seconds, self.pages, self.fresh = seconds, pages, fresh

    def start(self) -> verbs.Run:
        return self.cases.start(self.args, fresh=self.fresh)

    def wait(self, run: verbs.Run, rng: random.Random) -> None:
        """Until a moment of the run: any, or just after one of its files has appeared."""
        end = time.monotonic() + rng.uniform(0.3 if self.fresh else 0.0, 1.0) * self.seconds
        goal = rng.randint(1, max(1, len(self.want)))
        if rng.random() < 0.5:
            end = time.monotonic() + 2 * self.seconds + 1
            while time.monotonic() < end and _count(self.work) < goal and run.process.poll() is None:
                time.sleep(0.0005)
            end = time.monotonic() + rng.choice([0.0, 0.0, 0.001, 0.01])
        while (left := end - time.monotonic()) > 0 and run.process.poll() is None:
            time.sleep(min(left, 0.01))

    def again(self, tally: Tally, what: str) -> None:
        """Run to the end: the right files, and nothing else. Then all is cleared away."""
        run = self.cases.start(self.args)
        code = run.end()
        now = found(self.work)
        if code is None:
            tally.hung += 1
            tally.note(f"{what}: the run after it hung")
        elif code != 0:
            tally.lost += 1
            tally.note(f"{what}: the run after it exits {code}: {run.text()[-300:]}")
        self.judge(tally, what, now if code == 0 else None)
        clear(self.work)

    def judge(self, tally: Tally, what: str, now: dict[str, str] | None) -> None:
        """Litter, and what differs from the undisturbed run."""
        left = litter(self.work)
        if now is not None and left:
            tally.unnamed += 1
            tally.note(f"{what}: left {left[:3]}")
        rest = {k: v for k, v in (now or {}).items() if not any(k.startswith(n) for n in left)}
        if now is not None and rest != self.want:
            tally.silent += 1
            tally.note(f"{what}: differs: {sorted(set(rest.items()) ^ set(self.want.items()))[:3]}")


def _count(work: Path) -> int:
    return sum(1 for _ in _walk(work))


def _walk(directory: Path) -> Iterator[Path]:
    """Files below a directory that others are writing: what is gone meanwhile is gone."""
    try:
        entries = list(directory.iterdir())
    except OSError:
        return
    for path in entries:
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def clear(work: Path) -> None:
    """Remove what is in `work`, not `work` itself: a disk may be mounted there."""
    import shutil

    for path in work.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
