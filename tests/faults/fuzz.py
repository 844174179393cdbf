"""Row 40: every reader against bytes that were changed at random, and values that hypothesis makes up.

The trials run in a fork, so that a crash of a C library is a count and not the end. What may come out is a
value or a `RippleError`; anything else, a crash, or more than 10 s is a fault. FITS coadds are rows 6 and 7.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import victim
from faultlib import Tally
from rows import row
from sources import SOURCE_ROWS, make_unit

from ripple.errors import RippleError

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
LIMIT = 10

Read = Callable[[bytes], object]


def mutated(whole: bytes, rng: random.Random) -> bytes:
    """One to four changes: bits, bytes, interesting numbers, pieces cut, doubled, moved, or set to zero."""
    data = bytearray(whole)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at, n = rng.randrange(len(data) + 1), rng.choice([1, 2, 4, 8, 64, 1000])
        match rng.randrange(8):
            case 0 if data:
                data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + n] = rng.randbytes(n)
            case 2:
                number = rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1])
                data[at : at + 8] = number.to_bytes(8, rng.choice(["little", "big"]))
            case 3:
                del data[at : at + n]
            case 4:
                data[at:at] = data[at : at + n]
            case 5:
                data[at : at + n] = bytes(n)
            case 6:
                del data[at:]
            case _:
                data[at:at] = rng.choice(
                    [b"\n", b'"', b"{", b"[", b",", b"-", b"NaN", b"1e999", b"\xff", b"\0"]
                )
    return bytes(data)


def fuzzed(
    tally: Tally, rng: random.Random, trials: int, directory: Path, seeds: list[bytes], read: Read
) -> None:
    """Read mutants in forks; one that dies is replaced and goes on with the next mutant."""
    log, start = directory / "progress", 0
    seed = rng.random()
    while start < trials:
        log.write_bytes(b"")
        pid = os.fork()
        if pid == 0:
            _trials(start, trials, seed, seeds, read, log)
        _, status = os.waitpid(pid, 0)
        done, *faults = log.read_bytes().split(b"\n")
        if not done:
            raise RuntimeError("the fuzzing process did nothing")
        start = int(done) + 1
        for fault in filter(None, faults):
            tally.unnamed += 1
            tally.note(fault.decode(errors="replace"))
        if status:
            code = os.waitstatus_to_exitcode(status)
            late = code in (-signal.SIGALRM, -signal.SIGPROF)
            tally.hung += late
            tally.silent += not late
            tally.note(f"mutant {start - 1}: ended with {code}")
    tally.trials = trials


def _trials(start: int, stop: int, seed: float, seeds: list[bytes], read: Read, log: Path) -> None:
    """In the fork: mutants `start` to `stop`; the log's first line is the one at hand."""
    faults: list[str] = []
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    handle = os.open(log, os.O_WRONLY)
    for k in range(start, stop):
        os.pwrite(handle, ("\n".join([f"{k:09d}", *faults])).encode(errors="replace"), 0)
        rng = random.Random(f"{seed}/{k}")
        data = mutated(rng.choice(seeds), rng)
        signal.setitimer(signal.ITIMER_PROF, LIMIT)  # time of the processor: the machine may be busy
        signal.alarm(60 * LIMIT)
        try:
            read(data)
        except RippleError:
            pass
        except BaseException as err:  # noqa: BLE001 - this is what the row looks for
            where = traceback.extract_tb(err.__traceback__)[-1]
            text = " ".join(str(err).split())[:120]
            faults.append(
                f"mutant {k}: {type(err).__name__} {text} at {Path(where.filename).name}:{where.lineno}"
            )
    os.pwrite(handle, ("\n".join([f"{stop - 1:09d}", *faults])).encode(errors="replace"), 0)
    os._exit(0)


def _to_file(path: Path, read: Callable[[Path], object]) -> Read:
    def reading(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return reading


# Catalogues ---------------------------------------------------------


def _tables(directory: Path) -> list[bytes]:
    """A catalogue in each format that is read."""
    import numpy as np
    from astropy.table import Table

    table = Table({"id": np.arange(30), "ra": np.linspace(50, 60, 30), "dec": np.linspace(-40, -30, 30),
                   "label": ["lens", "ring", ""] * 10})  # fmt: skip
    found = []
    for name, form in (
        ("a.csv", "ascii.csv"),
        ("a.ecsv", "ascii.ecsv"),
        ("a.fits", "fits"),
        ("a.vot", "votable"),
    ):
        table.write(directory / name, format=form)
        found.append((directory / name).read_bytes())
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({k: table[k].tolist() for k in table.colnames}), directory / "a.parquet")
    return [*found, (directory / "a.parquet").read_bytes()]


@row("40", "fuzz: catalogues (CSV, ECSV, FITS, VOTable, Parquet)", full=20_000, gate=60, into=SOURCE_ROWS)
def fuzz_catalogues(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    from ripple.stages.plan.tables import read_table
    from ripple.stages.plan.targets import Columns, from_table

    def read(path: Path) -> object:
        return from_table(read_table(path), Columns(), source={"name": "catalogue"})

    fuzzed(tally, rng, trials, directory, _tables(directory), _to_file(directory / "catalogue", read))


# Configuration ------------------------------------------------------

YAML = b"""
fetch: {repo: /r, collections: [a, b], bands: [g, r], size: 64, edge: pad, digests: null}
preprocess:
  cutouts: c
  psf: match
  normalize: asinh
train: {tensors: [t], epochs: 3, lr: 0.001, width: 8}
score: &s {model: m, tensors: [t], top: 10}
run: {output: out}
"""


def _configs(path: Path) -> None:
    from ripple.cli.options import section
    from ripple.learn.config import ScoreConfig, TrainConfig
    from ripple.stages.fetch.config import FetchConfig
    from ripple.stages.preprocess.config import PreprocessConfig
    from ripple.stages.run import RunConfig

    for kind in (FetchConfig, PreprocessConfig, TrainConfig, ScoreConfig, RunConfig):
        with suppress(RippleError):
            kind.make(section(path, kind.verb)).digest()


@row("40", "fuzz: configuration files", full=20_000, gate=200, into=SOURCE_ROWS)
def fuzz_configs(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    fuzzed(tally, rng, trials, directory, [YAML], _to_file(directory / "config.yaml", _configs))


@row("40", "hypothesis: configuration values of any kind", full=5000, gate=100, into=SOURCE_ROWS)
def any_values(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    import yaml
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st

    from ripple.stages.fetch.config import FetchConfig
    from ripple.stages.preprocess.config import PreprocessConfig

    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    values = st.recursive(
        plain, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v), max_leaves=8
    )
    keys = st.sampled_from(sorted({*FetchConfig.model_fields, *PreprocessConfig.model_fields}))
    path = directory / "config.yaml"

    @seed(rng.randrange(1 << 30))
    @settings(max_examples=trials, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(
        st.sampled_from(["fetch", "preprocess", "train", "score", "run"]),
        values | st.dictionaries(keys, values),
    )
    def check(verb: str, value: Any) -> None:
        tally.trials += 1
        path.write_text(
            yaml.safe_dump({verb: value}, allow_unicode=True), encoding="utf-8", errors="surrogatepass"
        )
        _configs(path)

    try:
        check()
    except Exception as err:  # noqa: BLE001 - this is what the row looks for
        tally.unnamed += 1
        tally.note(f"{type(err).__name__}: {err}")


# Artefacts ----------------------------------------------------------


def _resealed(data: bytes) -> bytes:
    """A mutant of the manifest's JSON with a right seal, so that what is behind the seal is read."""
    from ripple.storage.manifest import content_digest, render

    try:
        value = json.loads(data)
        value["digest"] = content_digest(value)
        return render(value)
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError):
        return data


@row(
    "40",
    "fuzz: manifests, half of them with a right seal, and journals",
    full=20_000,
    gate=200,
    into=SOURCE_ROWS,
)
def fuzz_manifests(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    from ripple.storage.artefact import open_artefact, verify

    here = directory / "a"
    victim.build(here, units=2, size=500)
    path = here / "manifest.json"

    def read(data: bytes) -> None:
        for each in (data, _resealed(data)):
            path.write_bytes(each)
            with suppress(RippleError):
                open_artefact(here).index()
            with suppress(RippleError):
                verify(here)

    fuzzed(tally, rng, trials, directory, [path.read_bytes()], read)


@row("40", "fuzz: index of an artefact, whose digest is right", full=10_000, gate=100, into=SOURCE_ROWS)
def fuzz_index(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    import hashlib

    from ripple.storage.artefact import verify
    from ripple.storage.manifest import content_digest, render

    here = directory / "a"
    victim.build(here, units=2, size=500)
    manifest = json.loads((here / "manifest.json").read_bytes())

    def read(data: bytes) -> None:
        (here / "index.parquet").write_bytes(data)
        manifest["index"] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest["digest"] = content_digest(manifest)
        (here / "manifest.json").write_bytes(render(manifest))
        verify(here)

    fuzzed(tally, rng, trials, directory, [(here / "index.parquet").read_bytes()], read)


@row("40", "fuzz: shards of cutouts and of tensors", full=20_000, gate=200, into=SOURCE_ROWS)
def fuzz_shards(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    from toys import toy_batch

    from ripple.storage.shard_reader import map_tensors, unpack_cutouts
    from ripple.storage.shard_writer import pack_cutouts, pack_tensors

    cutouts = pack_cutouts(make_unit(directory).want, {})
    tensors = pack_tensors(toy_batch(6, 0), {})

    def read_tensors(path: Path) -> object:
        batch = map_tensors(path)
        return float(batch.image.sum())

    half = trials // 2
    fuzzed(tally, rng, half, directory, [cutouts], unpack_cutouts)
    fuzzed(tally, rng, trials - half, directory, [tensors], _to_file(directory / "shard.h5", read_tensors))
    tally.trials = trials


@row("40", "fuzz: models, whose digests are right", full=10_000, gate=60, into=SOURCE_ROWS)
def fuzz_models(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    from learning import _rewrite, model

    from ripple.learn.model.weights import load_model

    here = model(directory / "model")
    weights, contract = here / "model.safetensors", here / "model.json"
    whole, kept = weights.read_bytes(), contract.read_bytes()

    def read_weights(data: bytes) -> None:
        contract.write_bytes(kept)
        _rewrite(here, data)
        load_model(here)

    def read_contract(data: bytes) -> None:
        contract.write_bytes(data)
        try:
            _rewrite(here)  # with a right digest, if it is JSON at all
        except (ValueError, TypeError, KeyError):
            contract.write_bytes(data)
        load_model(here)

    half = trials // 2
    fuzzed(tally, rng, half, directory, [whole], read_weights)
    weights.write_bytes(whole)
    fuzzed(tally, rng, trials - half, directory, [kept], read_contract)
    tally.trials = trials


@row("40", "fuzz: lists of digests", full=5000, gate=100, into=SOURCE_ROWS)
def fuzz_digests(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    from ripple.stages.fetch.digests import trusted_digests

    good = json.dumps({f"0000-{k}": f"{k:064x}" for k in range(5)}).encode()
    path = directory / "digests.json"
    fuzzed(tally, rng, trials, directory, [good], _to_file(path, lambda p: trusted_digests(str(p))))
