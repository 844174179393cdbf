"""Row 40 for what others hand us: stamps to import, sidecars, and files of a run that is under way.

A mutant may be read, refused by name, or cost a row; anything else is a fault, as is a reading that takes
much more memory than the file is large.
"""

from __future__ import annotations

import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faultlib import Tally
from fuzz import _to_file, fuzzed
from rows import row
from sources import SOURCE_ROWS

from ripple.errors import RippleError

#: KiB a reading may add to the resident memory; the files are far smaller.
MEMORY = 1 << 19


class UnnamedError(Exception):
    """A refusal that does not say what it refuses."""


def guarded(read: Callable[[], object], *names: str) -> None:
    """Read; a refusal must contain one of `names`, and memory stay bounded.

    Raises
    ------
    UnnamedError
        It does not.
    MemoryError
        The reading took too much.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read()
    except RippleError as err:
        if not any(name in str(err) for name in names):
            raise UnnamedError(str(err)) from None
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if grown > MEMORY:
        raise MemoryError(f"{grown} KiB more")


def _limited(directory: Path, source: Path, path: Path, options: dict[str, Any]) -> Callable[[bytes], None]:
    """Import `source` with other bytes in `path`; a hostile claim must not take the machine's memory."""
    from ripple.stages.formats.config import ImportConfig
    from ripple.stages.formats.import_cutouts import import_cutouts

    output = directory / "imported"
    config = ImportConfig.make({"source": source, "output": output, **options})

    def read(data: bytes) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))
        shutil.rmtree(output, ignore_errors=True)
        path.write_bytes(data)
        guarded(lambda: import_cutouts(config), path.name, str(source))

    return read


def _add(name: str, source: str, pattern: str, options: dict[str, Any]) -> None:
    @row("40", f"fuzz: import of {name}", full=2000, gate=10, into=SOURCE_ROWS)
    def fuzz_import(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
        from cases import stamps

        stamps(directory / "given")
        whole = directory / "given" / source
        path = sorted(whole.rglob(pattern))[0] if whole.is_dir() else whole
        kept = path.read_bytes()
        fuzzed(tally, rng, trials, directory, [kept], _limited(directory, whole, path, options))


_PLAIN = {"bands": ["g", "r", "i"], "pixel_scale": 0.2, "unit": "nJy", "rows_per_shard": 6}
_add(".npy in folders", "deeplense", "*.npy", {"format": "deeplense", "bands": ["g", "r", "i"]})
_add(".npz", "arrays.npz", "", {"format": "arrays", **_PLAIN})
_add("HDF5 arrays", "arrays.h5", "", {"format": "arrays", **_PLAIN})
_add("FITS stamps", "fits", "*.fits", {"format": "fits", **_PLAIN})
_add("Multimodal Universe files", "mmu", "*.hdf5", {"format": "mmu", **_PLAIN})


@row("40", "fuzz: sidecars of import-model", full=10_000, gate=100, into=SOURCE_ROWS)
def fuzz_sidecars(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    from cases import weights

    from ripple.learn.config import ImportModelConfig
    from ripple.learn.model.exchange import import_model

    source, sidecar = weights(directory)
    output = directory / "imported"
    config = ImportModelConfig.make({"source": source, "sidecar": sidecar, "output": output})

    def read(path: Path) -> None:
        shutil.rmtree(output, ignore_errors=True)
        # What the sidecar claims may only turn out wrong at the weights.
        guarded(lambda: import_model(config), path.name, source.name)

    fuzzed(tally, rng, trials, directory, [sidecar.read_bytes()], _to_file(sidecar, read))


@row("40", "fuzz: run.json of a finished chain", full=300, gate=5, into=SOURCE_ROWS)
def fuzz_run(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    import json

    from cases import weights
    from toys import write_toys

    from ripple.stages.run import print_outcome, run_chain

    weights(directory)
    tensors = write_toys(directory / "toys", shards=1, rows=30)
    chain, out = directory / "chain.yaml", directory / "out"
    score = {"model": str(directory / "model"), "tensors": [str(tensors)], "threads": 1, "draws": 10}
    chain.write_text(json.dumps({"score": score, "report": {"top": 3}}))
    run_chain(chain, {"output": str(out)})

    def read(path: Path) -> None:
        print_outcome(run_chain(chain, {"output": str(out)}))

    record = out / "run.json"
    fuzzed(tally, rng, trials, directory, [record.read_bytes()], _to_file(record, read))
