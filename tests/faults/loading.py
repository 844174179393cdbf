"""Row 36: the loaders. Each row once per epoch and in the same order, whoever reads and whoever dies."""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from faultlib import Tally
from rows import row, trials_in_time
from verbs import VERB_ROWS

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))


def _rows(batches: Any) -> list[tuple[int, bytes]]:
    """Row and pixels of everything an epoch gives."""
    return [
        (int(r), np.asarray(image).tobytes())
        for batch in batches
        for r, image in zip(batch["row"], batch["image"], strict=True)
    ]


@row("36", "Loader: threads 1 to 4, forks, epochs left unfinished", full=100, gate=8, into=VERB_ROWS)
def loader_threads(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    from tensorsets import make_tensors

    from ripple.learn.data.dataset import TensorDataset
    from ripple.learn.data.loader import Loader

    data = TensorDataset(make_tensors(directory / "tensors"))
    plain = Loader(data, batch_size=16, seed=3, threads=1)
    for trial in trials_in_time(trials):
        tally.trials = trial + 1
        want = _rows(plain.epoch(trial))
        other = Loader(data, batch_size=16, seed=3, threads=rng.choice([1, 2, 3, 4]))
        for _ in range(rng.randrange(3)):  # epochs that somebody walks out of
            next(iter(other.epoch(rng.randrange(9))))
        found = _rows(other.epoch(trial))
        start = rng.randrange(len(plain))
        late = _rows(other.epoch(trial, start))
        if found != want or late != want[16 * start :]:
            tally.silent += 1
            tally.note("another order or other pixels")
        if sorted(r for r, _ in found) != sorted(data.rows.tolist()):
            tally.lost += 1
            tally.note("not every row once")
        if trial % 5 == 0 and _in_fork(other, trial, want) != 0:
            tally.silent += 1
            tally.note("a fork of this process reads something else")


def _in_fork(loader: Any, epoch: int, want: list[tuple[int, bytes]]) -> int:
    """The exit code of a fork that reads with the loader of its parent."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(20)
            code = int(_rows(loader.epoch(epoch)) != want)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@row("36", "DataLoader of torch: 0 to 4 workers, fork and spawn, a worker killed", full=40, gate=2,
     into=VERB_ROWS)  # fmt: skip
def torch_workers(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    from tensorsets import make_tensors
    from torch.utils.data import DataLoader

    from ripple.learn.data.dataset import TensorDataset

    data = TensorDataset(make_tensors(directory / "tensors"))
    want = [(int(i), np.asarray(data[i]["image"]).tobytes()) for i in range(len(data))]
    for trial in trials_in_time(trials):
        tally.trials = trial + 1
        workers = (0, 1, 2, 4)[trial % 4]
        how = None if not workers else "spawn" if trial % 20 == 1 else "fork"
        loader = DataLoader(
            data,
            batch_size=16,
            num_workers=workers,
            multiprocessing_context=how,
            timeout=60 if workers else 0,
        )
        if trial % 4 == 3:
            _killed(tally, loader)
        images = [np.asarray(image).tobytes() for batch in loader for image in batch["image"]]
        if images != [pixels for _, pixels in want]:
            tally.silent += 1
            tally.note(f"{workers} workers ({how}): {len(images)} of {len(want)} rows, or another order")


def _killed(tally: Tally, loader: Any) -> None:
    """A dead worker ends the epoch with an error; the next one is whole."""
    before = {p.pid for p in psutil.Process().children()}
    try:
        batches = iter(loader)
        for child in psutil.Process().children():
            if child.pid not in before:
                child.kill()
                break
        count = sum(1 for _ in batches)
        if count != len(loader):
            tally.silent += 1
            tally.note(f"{count} of {len(loader)} batches after a worker was killed")
    except RuntimeError as err:
        if "killed" not in str(err) and "exited unexpectedly" not in str(err):
            tally.unnamed += 1
            tally.note(str(err)[:200])
