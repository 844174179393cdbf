"""Beyond one machine: a Dask cluster as a `concurrent.futures.Executor`.

The scheduler is Dask's; RIPPLe maps the same units over it. Workers must see the same files as the client.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from ripple.errors import ConfigError, WorkerError


@contextmanager
def dask_executor(target: str, settings: Mapping[str, Any] | None = None) -> Iterator[Executor]:
    """An executor over a running scheduler, or over jobs that a batch system starts.

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
        yield cast(Executor, executor)


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
