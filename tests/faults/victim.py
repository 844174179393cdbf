"""A small artefact that is built while faults happen to it; fast to start, so that many trials fit.

python victim.py DIRECTORY [UNITS BYTES WORKERS PAUSE]      exits like `ripple` does
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from ripple.config import Config
from ripple.errors import Interrupted, RippleError, WorkerError
from ripple.runtime.pool import WorkerFailure, ordered_map
from ripple.storage.files import Staged, stage
from ripple.storage.writer import Finished, create

ROWS = 4


class VictimConfig(Config):
    verb = "victim"
    size: int = 64
    bands: tuple[str, ...] = ("g", "r")
    stretch: float = 1.5
    mode: str = "a"


def unit_bytes(unit: int, size: int) -> bytes:
    return random.Random(unit).randbytes(size + unit)


def make_unit(task: tuple[str, str, int, int, float]) -> Staged:
    directory, name, unit, size, pause = task
    time.sleep(pause)
    return stage(Path(directory), name, unit_bytes(unit, size))


def index_table(units: int) -> Any:
    import pyarrow as pa

    n = units * ROWS
    return pa.table(
        {
            "index": list(range(n + 1)),
            "status": ["ok"] * n + ["rejected"],
            "reason": [""] * n + ["no_tract"],
            "shard": [k // ROWS for k in range(n)] + [-1],
            "row": [k % ROWS for k in range(n)] + [-1],
        }
    )


def build(
    directory: Path, units: int = 5, size: int = 20_000, workers: int = 0, pause: float = 0.0,
    config: Config | None = None, deadline: float | None = None, retries: int = 1,
) -> None:  # fmt: skip
    opened = create(
        directory, kind="cutouts", config=config or VictimConfig(), inputs={"units": units}, units=units
    )
    if isinstance(opened, Finished):
        return
    with opened as writer:
        todo = [unit for unit in range(units) if writer.done(unit) is None]
        tasks = [(str(directory), writer.name(unit), unit, size, pause) for unit in todo]
        results = ordered_map(make_unit, tasks, workers=workers, deadline=deadline, retries=retries)
        for k, staged in results:
            if isinstance(staged, WorkerFailure):
                raise WorkerError(f"{directory}: unit {todo[k]}: {staged.message}", hint="run again")
            writer.commit(todo[k], staged, ROWS, {"profile": {"at": time.monotonic()}, "unit": todo[k]})
        writer.finish(index_table(units), {"seconds": 0}, {"bands": ["g"]}, asked=units * ROWS + 1)


def guarded(log: str, *args: Any, **kwargs: Any) -> None:
    """`build` in a child of its own; the message goes to a file, the exit code is that of `ripple`."""
    try:
        build(*args, **kwargs)
    except RippleError as err:
        # Not by write(2): that is where faults are injected.
        os.pwrite(os.open(log, os.O_WRONLY | os.O_CREAT), str(err).encode(), 0)
        sys.exit(err.code if isinstance(err, Interrupted) else err.exit_code)


def main(argv: list[str]) -> int:
    units, size, workers, pause = [*argv[1:], "3", "2000", "0", "0"][:4] if len(argv) < 5 else argv[1:5]
    try:
        build(Path(argv[0]), int(units), int(size), int(workers), float(pause))
    except RippleError as err:
        sys.stderr.write(f"ripple: {err}\n")
        return err.code if isinstance(err, Interrupted) else err.exit_code
    return 0


if __name__ == "__main__":
    import victim  # the importable copy: workers cannot import `__main__`

    sys.exit(victim.main(sys.argv[1:]))
