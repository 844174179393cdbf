"""The parallel map that all verbs share: a worker makes shard k from task k, and it is committed at once.

A shard whose workers die does not stop the others: they are committed, then the run ends with an error that
names it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from ripple.config import Json
from ripple.errors import WorkerError
from ripple.runtime.dask import dask_cluster
from ripple.runtime.memory import IDLE_WORKER, MemoryWatch, parse_bytes
from ripple.runtime.pool import Started, WorkerFailure, ordered_map
from ripple.runtime.profile import Counts, Profile, Timeline
from ripple.runtime.summary import progress
from ripple.storage.artefact import Artefact
from ripple.storage.files import Staged
from ripple.storage.writer import ArtefactWriter

#: Memory that a worker needs for each byte of a shard of cutouts: 1.4 measured, for cutouts of 64 px.
SHARE = 2


@dataclass(frozen=True, slots=True)
class ShardResult:
    """What a worker sends back.

    Parameters
    ----------
    staged
        The shard, written under a temporary name.
    rows
        Rows in it.
    operations
        Counts of a `Profile`.
    peak_rss
        Of the worker, bytes.
    facts
        JSON values for the record of the shard in the manifest.
    beside
        The shard of the same number in a second artefact, and the facts for its record.
    """

    staged: Staged
    rows: int
    operations: Counts
    peak_rss: int
    facts: Json = field(default_factory=dict)
    beside: tuple[Staged, Json] | None = None


class WorkerOptions(Protocol):
    """The options of a verb that maps shards: fields of `Workers` by their names there."""

    @property
    def workers(self) -> int: ...
    @property
    def deadline(self) -> float: ...
    @property
    def memory(self) -> str: ...
    @property
    def dask(self) -> str | None: ...
    @property
    def dask_settings(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Workers:
    """The worker processes, and what they may use.

    Parameters
    ----------
    count
        Number of processes; 0 does the work in this one.
    deadline
        Seconds a task may take.
    memory
        Of all processes together, for example `4GiB`.
    need
        Bytes that one worker needs.
    dask, dask_settings
        A Dask cluster instead, as for `dask_cluster`; None for processes on this machine.
    """

    count: int
    deadline: float
    memory: str
    need: int
    dask: str | None = None
    dask_settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, options: WorkerOptions, need: int) -> Self:
        """The workers that a user asked for, of which each needs so many bytes."""
        cluster = options.dask, options.dask_settings
        return cls(options.workers, options.deadline, options.memory, need, *cluster)

    def watch(self) -> MemoryWatch:
        """A watch that allows as many workers as fit into the memory."""
        return MemoryWatch(parse_bytes(self.memory), self.need)

    @contextmanager
    def map[T, R](
        self,
        function: Callable[[T], R],
        tasks: Sequence[T],
        watch: MemoryWatch,
        started: Started | None = None,
    ) -> Generator[Generator[tuple[int, R | WorkerFailure]]]:
        """`ordered_map` by these workers; the results are closed with the context."""
        # Without an executor, `ordered_map` starts processes of its own.
        start = nullcontext(None) if self.dask is None else dask_cluster(self.dask, self.dask_settings)
        with start as cluster:
            results = ordered_map(
                function,
                tasks,
                workers=self.count,
                executor=None if cluster is None else cluster.executor,
                trouble=None if cluster is None else cluster.trouble,
                deadline=self.deadline,
                allowed=watch.allowed,
                memory_bytes=watch.most(),
                started=started,
            )
            # Closed also when the caller stops early: no worker outlives the run.
            with closing(results):
                yield results


def need_of(cutouts: Artefact, share: float = SHARE) -> int:
    """Bytes of memory that a worker needs for the largest shard of a cutout artefact."""
    return IDLE_WORKER + int(share * max((shard.bytes for shard in cutouts.shards), default=0))


def map_shards[T](
    make: Callable[[T], ShardResult],
    tasks: Mapping[int, T],
    writer: ArtefactWriter,
    rows: Sequence[int],
    workers: Workers,
    profile: Profile,
    label: str,
    *,
    timeline: Timeline | None = None,
    started: Started | None = None,
    instead: Callable[[T, str], ShardResult] | None = None,
    beside: ArtefactWriter | None = None,
) -> int:
    """Make and commit shards.

    Parameters
    ----------
    make
        A module-level function of a task.
    tasks
        Shard number -> task, for the shards that do not exist yet.
    writer
        Writer of the artefact.
    rows
        Rows of each of its shards, for the progress bar.
    workers
        The worker processes.
    profile
        Gets what the shards cost.
    label
        Name of the progress bar.
    timeline
        Gets when each shard was done.
    started
        Workers that were started for `make` already.
    instead
        Makes a shard whose workers were lost twice, from its task and what happened; without it, such a
        shard is not written.
    beside
        Writer of a second artefact, which gets `ShardResult.beside`.

    Returns
    -------
    Peak memory of all processes, bytes.

    Raises
    ------
    WorkerError
        Workers died or were stuck twice with the same shards; names them. All others are committed.
    RippleError
        An error of `make`, at once: trying again would not help with a damaged source.
    """
    # In order of shards: the same files and journal whatever the number of workers.
    numbers, lost = sorted(tasks), []
    watch = workers.watch()
    # Workers that were started early, before it was known how many shards there are and what fits.
    if started is not None:
        started.keep(min(len(numbers), watch.allowed()))
    ordered = [tasks[k] for k in numbers]
    with watch, progress(sum(rows), label) as advance, workers.map(make, ordered, watch, started) as results:
        advance(sum(rows) - sum(rows[k] for k in numbers))  # done by earlier runs
        for at, result in results:
            k = numbers[at]
            if isinstance(result, WorkerFailure):
                if instead is None:
                    lost.append(f"shard {k}: {result.message}")
                    continue
                result = instead(tasks[k], result.message)
            # Only this process commits, in order of shards: workers never touch journal or manifest.
            with profile.time("commit"):
                cost = {"operations": result.operations, "peak_rss": result.peak_rss}
                if beside is not None and result.beside is not None:
                    beside.commit(k, result.beside[0], result.rows, result.beside[1])
                writer.commit(k, result.staged, result.rows, {**result.facts, "profile": cost})
            profile.add(result.operations)
            watch.learn(result.peak_rss)  # the estimate may have been too low
            advance(rows[k])
            if timeline is not None:
                timeline.add(rows[k], result.staged.bytes)
    _refuse_lost(lost, len(rows))
    return watch.peak


def map_tasks[T, R](function: Callable[[T], R], tasks: Sequence[T], workers: Workers) -> Generator[R]:
    """Results in task order, for a first pass that needs all of them.

    Raises
    ------
    WorkerError
        A worker was lost twice over the same task.
    """
    with workers.watch() as watch, workers.map(function, tasks, watch) as results:
        for k, result in results:
            if isinstance(result, WorkerFailure):
                raise WorkerError(
                    f"part {k + 1} of {len(tasks)} of the first pass: {result.message}",
                    hint="run again to resume",
                )
            yield result


def _refuse_lost(lost: list[str], total: int) -> None:
    if lost:
        # A lost node may take hundreds of shards with it.
        more = f"; and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise WorkerError(
            f"{len(lost)} of {total} shards lost their worker twice: {'; '.join(lost[:3])}{more}",
            hint="all other shards are committed; run again to retry these",
        )
