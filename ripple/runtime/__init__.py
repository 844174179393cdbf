"""How a verb runs: worker processes, memory, Dask, signals, cost and progress."""
