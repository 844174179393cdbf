"""Dask clusters on this machine that lose a worker."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def losing_a_worker() -> Iterator[str]:
    """A cluster of two worker processes, of which one is killed as soon as a task is in work, or done."""
    import distributed

    killed = threading.Event()
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        victim = next(iter(client.run(os.getpid).values()))

        def kill() -> None:
            while not client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
                time.sleep(0.02)
            os.kill(victim, signal.SIGKILL)
            killed.set()

        thread = threading.Thread(target=kill)
        thread.start()
        yield str(cluster.scheduler_address)
        thread.join(60)
    assert killed.is_set()
