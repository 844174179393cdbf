"""Shard k of a cutout artefact to shard k of a new artefact, by workers, each committed as it comes.

A shard whose workers die does not stop the others: they are committed, then the run ends with its name.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from ripple.errors import WorkerError
from ripple.runtime.memory import IDLE_WORKER, MemoryWatch, parse_bytes
from ripple.runtime.pool import WorkerFailure, ordered_map
from ripple.runtime.profile import Counts, Profile
from ripple.runtime.summary import progress
from ripple.storage.artefact import Artefact
from ripple.storage.files import Staged
from ripple.storage.writer import ArtefactWriter

#: Memory that a worker needs for each byte of a shard of cutouts: 1.4 measured, for stamps of 64 px.
SHARE = 2


@dataclass(frozen=True, slots=True)
class ShardResult:
    """What a worker sends back.

    Parameters
    ----------
    staged
        The shard, written beside its place.
    rows
        Rows in it.
    operations
        Counts of a `Profile`.
    peak_rss
        Of the worker, bytes.
    """

    staged: Staged
    rows: int
    operations: Counts
    peak_rss: int


@dataclass(frozen=True, slots=True)
class Means:
    """What a run may use.

    Parameters
    ----------
    workers
        Processes; 0 works in this one.
    deadline
        Seconds a shard may take.
    memory
        For all processes, as in `4GiB`.
    """

    workers: int
    deadline: float
    memory: str

    def watch(self, cutouts: Artefact) -> MemoryWatch:
        """A watch that lets as many workers work as the largest shards allow."""
        largest = max((shard.bytes for shard in cutouts.shards), default=0)
        return MemoryWatch(parse_bytes(self.memory), IDLE_WORKER + SHARE * largest)

    def map[T, R](
        self, function: Callable[[T], R], tasks: Sequence[T], watch: MemoryWatch
    ) -> Generator[tuple[int, R | WorkerFailure]]:
        """`ordered_map` within these means; to be closed by who iterates."""
        return ordered_map(
            function,
            tasks,
            workers=self.workers,
            deadline=self.deadline,
            allowed=watch.allowed,
            memory_bytes=watch.most(),
        )


def map_shards(
    make: Callable[[Any], ShardResult], task: Callable[[int], Any], cutouts: Artefact, writer: ArtefactWriter,
    means: Means, profile: Profile, label: str,
) -> int:  # fmt: skip
    """Make and commit the shards of `writer` that are not there yet.

    Parameters
    ----------
    make
        A module-level function of a task.
    task
        The task of a shard number.
    cutouts
        Source: shard k of it becomes shard k.
    writer
        Has as many units.
    means
        Workers, deadline, memory.
    profile
        Gets what the shards cost.
    label
        Of the line of progress.

    Returns
    -------
    Peak memory of all processes, bytes.

    Raises
    ------
    WorkerError
        Workers died or were stuck twice over the same shards; names them. All others are committed.
    RippleError
        What `make` raises, as soon as it does: a damaged source is no matter of luck.
    """
    todo = [k for k in range(len(cutouts.shards)) if writer.done(k) is None]
    lost: list[str] = []
    watch = means.watch(cutouts)
    with watch, progress(cutouts.rows, label) as advance:
        advance(cutouts.rows - sum(cutouts.shards[k].rows for k in todo))
        with closing(means.map(make, [task(k) for k in todo], watch)) as results:
            for k, result in results:
                if isinstance(result, WorkerFailure):
                    lost.append(f"shard {todo[k]}: {result.message}")
                    continue
                with profile.time("commit"):
                    facts = {"operations": result.operations, "peak_rss": result.peak_rss}
                    writer.commit(todo[k], result.staged, result.rows, {"profile": facts})
                profile.add(result.operations)
                watch.learn(result.peak_rss)
                advance(result.rows)
    refuse_lost(lost, len(cutouts.shards), "run again to retry")
    return watch.peak


def refuse_lost(lost: list[str], total: int, hint: str) -> None:
    """Raise `WorkerError` when units were lost, which it names."""
    if lost:
        more = f"; and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise WorkerError(
            f"{len(lost)} of {total} units lost their worker twice: {'; '.join(lost[:3])}{more}",
            hint=f"all other units are committed; {hint}",
        )
