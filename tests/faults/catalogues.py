"""Rows 14 and 15: catalogues with repeated objects, and catalogues that are wrong."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fetching
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import verbs
from faultlib import Tally
from rows import row, trials_in_time
from verbs import VERB_ROWS

from ripple.sky.splits import split_blocks
from ripple.stages.preprocess.config import PreprocessConfig
from ripple.stages.preprocess.preprocess import preprocess
from ripple.storage.artefact import open_artefact

ARCSEC = 1 / 3600
#: Arcsec between a repeat and its object, by kind; what `--duplicate-radius` 0.2 does not take, quality does.
APART = {"id": 30.0, "place": 0.0, "close": 0.1, "near": 0.5}


def _truth() -> pa.Table:
    assert verbs.SKY is not None
    table = pq.read_table(verbs.SKY / "truth.parquet", columns=["objectId", "ra", "dec"])
    return table.rename_columns(["id", "ra", "dec"])


# Row 14: the same object twice --------------------------------------


@row(
    "14",
    "catalogues with repeated ids, places, and objects 0.5 arcsec apart",
    full=50,
    gate=3,
    into=VERB_ROWS,
)
def repeated(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    for trial in trials_in_time(trials):
        here, tally.trials = directory / f"repeated-{trial}", trial + 1
        here.mkdir()
        table, kinds = _repeats(rng)
        pq.write_table(table, here / "targets.parquet")
        assert verbs.SKY is not None
        fetching.run(verbs.SKY, here / "cutouts", targets=str(here / "targets.parquet"), workers=0)
        _judge_repeats(tally, open_artefact(here / "cutouts").index(), table, kinds)
        preprocess(PreprocessConfig.make(
            {"cutouts": str(here / "cutouts"), "output": str(here / "tensors"), "psf": "1.2", "workers": 0}
        ))  # fmt: skip
        _judge_accepted(tally, open_artefact(here / "tensors").index(), rng)


def _repeats(rng: random.Random) -> tuple[pa.Table, list[str]]:
    """The survey's targets with one to four of them once more, in random order; the kind of each row."""
    truth = _truth()
    rows = [
        (*values, "") for values in zip(*(truth[k].to_pylist() for k in ("id", "ra", "dec")), strict=True)
    ]
    for k in range(rng.randrange(1, 5)):
        name, ra, dec, _ = rng.choice(rows[: truth.num_rows])
        kind = rng.choice(list(APART))
        place = (name if kind == "id" else 7_000_000 + k, ra, dec + APART[kind] * ARCSEC)
        rows.append((*place, kind))
    rng.shuffle(rows)
    ids, ra, dec, kinds = (list(column) for column in zip(*rows, strict=True))
    return pa.table({"id": ids, "ra": ra, "dec": dec}), kinds


def _judge_repeats(tally: Tally, index: pa.Table, table: pa.Table, kinds: list[str]) -> None:
    """The first of each object is kept, each later one is rejected and names it."""
    ids, dec = table["id"].to_numpy(), table["dec"].to_numpy()
    ra = table["ra"].to_numpy()
    reason, detail = index["reason"].to_pylist(), index["detail"].to_pylist()
    if index.num_rows != len(ids):
        tally.lost += 1
    for k in range(len(ids)):
        apart = np.hypot((ra[:k] - ra[k]) * np.cos(np.radians(dec[k])), dec[:k] - dec[k])
        earlier = np.flatnonzero((ids[:k] == ids[k]) | (apart < 0.2 * ARCSEC))
        if bool(len(earlier)) != (reason[k] == "duplicate"):
            tally.silent += 1
            tally.note(f"row {k} ({kinds[k]}): {reason[k]!r}, like rows {earlier.tolist()}")
        elif len(earlier) and not any(f"row {e}" in detail[k] for e in earlier.tolist()):
            tally.unnamed += 1
            tally.note(f"row {k} ({kinds[k]}): {detail[k]!r} names none of rows {earlier.tolist()}")


def _judge_accepted(tally: Tally, index: pa.Table, rng: random.Random) -> None:
    """No two accepted rows are one object, so that none can be in two splits, whatever the cells."""
    kept = index.filter(pa.compute.equal(index["accept"], 1))
    ra, dec = kept["ra"].to_numpy(), kept["dec"].to_numpy()
    split = split_blocks(ra, dec, fractions=(0.5, 0.25, 0.25), seed=rng.randrange(100), nside=8192)
    for k in range(len(ra)):
        apart = np.hypot((ra - ra[k]) * np.cos(np.radians(dec[k])), dec - dec[k])
        twins = np.flatnonzero((apart < 1.0 * ARCSEC) & (np.arange(len(ra)) != k))
        if len(twins):
            tally.silent += 1
            tally.note(f"two accepted rows within 1 arcsec, splits {split[k]} and {split[twins].tolist()}")


# Row 15: wrong catalogues -------------------------------------------

#: What is done to the columns of a good table, perhaps in one row.
Break = Callable[[dict[str, list[object]], int], None]


def _set(name: str, value: object) -> Break:
    def change(columns: dict[str, list[object]], k: int) -> None:
        columns[name][k] = value

    return change


def _all(name: str, make: Callable[[float], object]) -> Break:
    def change(columns: dict[str, list[object]], _: int) -> None:
        columns[name] = [make(float(v)) for v in columns[name]]  # type: ignore[arg-type]

    return change


def _drop(name: str) -> Break:
    return lambda columns, _: columns.pop(name) and None


def _empty(columns: dict[str, list[object]], _: int) -> None:
    for name in columns:
        columns[name] = []


def _same(_: dict[str, list[object]], __: int) -> None:
    """Nothing."""


#: Name -> what is done to the table, to the bytes of its CSV, and a word of the message ("" when it is fine).
CASES: dict[str, tuple[Break, Callable[[bytes], bytes], str]] = {
    "ra 400": (_set("ra", 400.0), bytes, "row {k}"),
    "ra -181": (_set("ra", -181.0), bytes, "row {k}"),
    "dec 91": (_set("dec", 91.0), bytes, "row {k}"),
    "ra nan": (_set("ra", "nan"), bytes, "row {k}"),
    "dec inf": (_set("dec", "inf"), bytes, "row {k}"),
    "ra empty": (_set("ra", ""), bytes, "row {k}"),
    "ra a word": (_set("ra", "noon"), bytes, "row {k}"),
    "id empty": (_set("id", ""), bytes, "row {k}"),
    "sexagesimal with 61 minutes": (_all("ra", lambda v: f"{int(v / 15):02d}:61:00"), bytes, "row"),
    "no ra": (_drop("ra"), bytes, "ra"),
    "no dec": (_drop("dec"), bytes, "dec"),
    "no rows": (_empty, bytes, "no rows"),
    "nothing": (_same, lambda _: b"", "targets"),
    "a web page": (_same, lambda _: b"<html><body>sign in</body></html>", "targets"),
    "half a line": (_same, lambda data: data[: int(len(data) * 0.6)] + b",,,,,,", "targets"),
    "bytes": (_same, lambda data: bytes(reversed(data)) + b"\xff\x00\xfe", "targets"),
    "twice the same column": (_same, lambda data: data.replace(b"dec", b"ra", 1), "targets"),
    "CRLF": (_same, lambda data: data.replace(b"\n", b"\r\n"), ""),
    "byte order mark": (_same, lambda data: b"\xef\xbb\xbf" + data, ""),
    "no last line end": (_same, lambda data: data.rstrip(b"\n"), ""),
    "sexagesimal": (_all("ra", lambda v: _hms(v)), bytes, ""),
    "numbers in quotes": (_all("ra", lambda v: f'"{v!r}"'), bytes, ""),
}


def _hms(ra: float) -> str:
    total = round(ra / 15 * 3600 * 1e6)
    hours, rest = divmod(total, 3_600_000_000)
    minutes, rest = divmod(rest, 60_000_000)
    return f"{hours:02d}:{minutes:02d}:{rest / 1e6:09.6f}"


@row("15", "catalogues that are wrong, in text", full=60, gate=22, into=VERB_ROWS)
def wrong_catalogues(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    truth = _truth()
    for trial in range(trials):
        tally.trials = trial + 1
        name = list(CASES)[trial % len(CASES)]
        change, mangle, word = CASES[name]
        columns = {k: truth[k].to_pylist() for k in truth.column_names}
        k = rng.randrange(truth.num_rows)
        change(columns, k)
        lines = [
            ",".join(columns),
            *(",".join(map(str, line)) for line in zip(*columns.values(), strict=True)),
        ]
        path = directory / "targets.csv"
        path.write_bytes(mangle(("\n".join(lines) + "\n").encode()))
        run = verbs.start([*verbs.RIPPLE, "plan", "--json", *_where(path)])
        code, said = run.end(), run.text()
        if code is None:
            tally.hung += 1
        elif code != (3 if word else 0) or "Traceback" in said:
            tally.unnamed += 1
            tally.note(f"{name}: exit {code}: {said[-300:]!r}")
        elif word.format(k=k) not in said:
            tally.unnamed += 1
            tally.note(f"{name}, row {k}: {said[-300:]!r}")


def _where(path: Path) -> list[str]:
    assert verbs.SKY is not None
    return ["--repo", str(verbs.SKY / "repo"), "--collections", "mini", "--targets", str(path)]


MEASURE = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([done.returncode, done.stderr[-500:], peak]))
"""


@row("15", "ten million targets, most of them elsewhere: below 2 GiB", full=1, gate=1, into=VERB_ROWS)
def ten_million(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    truth, n = _truth(), 10_000_000
    numbers = np.random.default_rng(rng.randrange(1 << 30))
    ra, dec = numbers.uniform(0, 360, n), np.degrees(np.arcsin(numbers.uniform(-1, 1, n)))
    ra[-truth.num_rows :], dec[-truth.num_rows :] = truth["ra"].to_numpy(), truth["dec"].to_numpy()
    path = directory / "many.parquet"
    pq.write_table(pa.table({"id": np.arange(n), "ra": ra, "dec": dec}), path)
    argv = [*verbs.RIPPLE, "plan", *_where(path)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *argv], capture_output=True, text=True, env=os.environ
    )
    code, said, peak = json.loads(done.stdout)
    tally.trials = trials
    if code != 0 or "Traceback" in said:
        tally.unnamed += 1
        tally.note(f"exit {code}: {said!r}")
    if peak > 2 << 20:  # KiB
        tally.hung += 1
    tally.note(f"peak {peak >> 10} MiB")
