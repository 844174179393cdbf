"""Beyond one machine: a Dask cluster as a `concurrent.futures.Executor`.

The scheduler is Dask's; RIPPLe maps the same units over it. Workers must see the same files as the client.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from ripple.errors import ConfigError, WorkerError
from ripple.runtime.log import say

#: Seconds between two looks at the workers of a cluster.
LOOK = 5.0
#: Seconds without any worker after which the user is told, and after which a run ends.
SAY_AFTER, GIVE_UP_AFTER = 20.0, 600.0


@dataclass
class Cluster:
    """A Dask cluster, and whether it can still work.

    Parameters
    ----------
    executor
        Where tasks are submitted.
    client
        Dask's.
    name
        Its address, or `slurm`.
    """

    executor: Executor
    client: Any
    name: str
    _looked: float = field(default_factory=time.monotonic)
    _worked: float = field(default_factory=time.monotonic)
    _said: bool = False

    def trouble(self) -> WorkerError | None:
        """Why no task can be finished any more: the scheduler is gone, or had no worker for a long time."""
        if self.client.status != "running":  # after a lost connection its tasks are forgotten
            return WorkerError(
                f"the Dask scheduler at {self.name} is lost: nothing is rejected because of that",
                hint="start a scheduler and run again to resume",
            )
        now = time.monotonic()
        if now - self._looked < LOOK:
            return None
        self._looked = now
        if self._workers():
            self._worked, self._said = now, False
        elif now - self._worked > GIVE_UP_AFTER:
            return WorkerError(
                f"the Dask scheduler at {self.name} has had no worker for {GIVE_UP_AFTER:.0f} s",
                hint="look at the logs of the workers: they may be unable to import ripple",
            )
        elif now - self._worked > SAY_AFTER and not self._said:
            self._said = True
            say(
                f"the Dask scheduler at {self.name} has no worker; "
                f"waiting up to {GIVE_UP_AFTER:.0f} s for one"
            )
        return None

    def _workers(self) -> int:
        try:
            return len(self.client.scheduler_info(n_workers=1)["workers"])
        except (OSError, TimeoutError):
            return 0  # the status will say it


@contextmanager
def dask_cluster(target: str, settings: Mapping[str, Any] | None = None) -> Iterator[Cluster]:
    """A running scheduler, or jobs that a batch system starts.

    Parameters
    ----------
    target
        `tcp://host:port` of a scheduler, or `slurm`: then `dask-jobqueue` submits the jobs.
    settings
        For `slurm`: `jobs` (how many to submit) and the arguments of `dask_jobqueue.SLURMCluster`
        (`cores`, `memory`, `processes`, `queue`, `account`, `walltime`, `job_extra_directives`, ...).

    Raises
    ------
    ConfigError
        Dask is not installed, or the cluster does not accept the settings.
    WorkerError
        The scheduler cannot be reached.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ConfigError("--dask needs Dask", hint="pip install 'ripple-lsst[dask]'") from None
    with ExitStack() as stack:
        cluster = target if "://" in target else _cluster(target, dict(settings or {}), stack)
        try:
            client = stack.enter_context(Client(cluster, timeout="30s", set_as_default=False))
        except (OSError, TimeoutError) as err:
            raise WorkerError(
                f"no Dask scheduler at {target}: {err}", hint="check that it is running"
            ) from None
        # A unit may run twice without harm, so Dask may retry it elsewhere when a worker is lost.
        # pure=False: its arguments are not hashed into a key.
        executor = stack.enter_context(client.get_executor(pure=False, retries=2))
        yield Cluster(cast(Executor, executor), client, target)


def _cluster(kind: str, settings: dict[str, Any], stack: ExitStack) -> Any:
    if kind != "slurm":
        raise ConfigError(
            f"--dask {kind!r} is not a cluster",
            hint="give tcp://HOST:PORT, or slurm with dask_settings in the YAML",
        )
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        raise ConfigError(
            "--dask slurm needs dask-jobqueue", hint="pip install 'ripple-lsst[dask]'"
        ) from None
    jobs = int(settings.pop("jobs", 1))
    try:
        cluster = stack.enter_context(SLURMCluster(**settings))
    except (TypeError, ValueError) as err:
        raise ConfigError(f"dask_settings cannot be used: {err}") from None
    cluster.scale(jobs=jobs)
    return cluster
