"""From tensor shards to batches on a device.

`TensorDataset` (`ripple.learn.data.dataset`) works with any PyTorch code. `Loader` turns it into batches: the
order is a function of (seed, epoch, rank, world), whatever the number of threads, and an epoch can be resumed
at any batch.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ripple.errors import ConfigError, DataError
from ripple.learn.data.augment import Augment
from ripple.learn.data.conditions import Conditions
from ripple.learn.data.dataset import Batch, Rows, TensorDataset
from ripple.learn.data.psf_input import with_widths
from ripple.sky.splits import mix64

__all__ = ["Batch", "Loader", "Rows", "TensorDataset"]


class Loader:
    """Batches of a dataset, on a device, in an order that depends on (seed, epoch, rank, world) only.

    Without `balance`, one epoch over all ranks holds every row exactly once, and all ranks get the same
    number of batches. With `balance`, an epoch has as many rows as the dataset, the same number of each
    class; rows of rare classes repeat, and rows without a label (< 0) are left out.

    Parameters
    ----------
    dataset
        What to read.
    rows
        Global row numbers; default `dataset.rows`.
    batch_size
        Rows per batch and rank.
    seed
        Of order and augmentation.
    shuffle
        A new order in each epoch; otherwise that of `rows`.
    balance
        Draw classes in equal numbers.
    conditions, augment
        What becomes of each row, on the device and in this order: other observing conditions, augmentation.
    device
        `cpu`, `cuda`, `cuda:1`. CUDA copies run from pinned memory on a stream of their own.
    rank, world
        This process among those that share the epoch.
    drop_last
        Leave out batches that are not full (their statistics upset batch normalisation).
    valid
        Also return `valid` `(n, B, H, W)` uint8.
    columns
        Catalogue columns to return as well, as float32 `(n,)`.
    threads
        Number of reading threads.
    """

    def __init__(
        self,
        dataset: TensorDataset,
        *,
        rows: ArrayLike | None = None,
        batch_size: int = 256,
        seed: int = 0,
        shuffle: bool = True,
        balance: bool = False,
        conditions: Conditions | None = None,
        augment: Augment | None = None,
        device: str | torch.device = "cpu",
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
        valid: bool = False,
        columns: Sequence[str] = (),
        threads: int = 2,
    ) -> None:
        self.dataset = dataset
        self.rows: Rows = dataset.rows if rows is None else np.asarray(rows, np.int64)
        self.batch_size, self.seed, self.shuffle, self.drop_last = batch_size, seed, shuffle, drop_last
        self.augment, self.device, self.valid = augment, torch.device(device), valid
        self.conditions = None if conditions is None else conditions.to(self.device)
        self.rank, self.world, self.threads = rank, world, max(1, threads)
        if batch_size < 1 or not 0 <= rank < world:
            raise ConfigError(
                f"batch size {batch_size} with rank {rank} of {world} is not possible",
                hint="the batch size is at least 1, and ranks count from 0",
            )
        self._buffers: _Buffers
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        self._labels = dataset.column("label")
        self._extra = {name: _numbers(name, dataset.column(name)) for name in columns}
        self._classes = self._by_class() if balance else ()
        if len(self.rows) < world:
            raise DataError(f"{len(self.rows)} rows cannot be shared by {world} ranks")
        # `batches` evens out the last step by splitting a batch, and a batch of one row cannot be split.
        if batch_size == 1 and not drop_last and len(self.rows) % world:
            raise ConfigError(
                f"{len(self.rows)} rows in batches of one are not as many for each of {world} ranks",
                hint="use a larger batch, or drop_last",
            )

    def _by_class(self) -> tuple[Rows, ...]:
        """Labelled rows by class."""
        label = self._labels[self.rows]
        groups = tuple(self.rows[label == value] for value in np.unique(label) if value >= 0)
        if len(groups) < 2:
            raise DataError(
                f"balanced batches need two classes, the rows have only labels {np.unique(label).tolist()}"
            )
        return groups

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank."""
        count = len(self.rows)
        if self.drop_last:
            return count // (self.world * self.batch_size)
        return math.ceil(math.ceil(count / self.world) / self.batch_size)

    def order(self, epoch: int) -> Rows:
        """Global row numbers of one epoch, all ranks, in order."""
        # An odd 64-bit constant spreads neighbouring seeds: seed 1 in epoch 0 is not seed 0 in epoch 1.
        seed = (self.seed * 0x2545F4914F6CDD1D + epoch + 1) & (2**64 - 1)
        if self._classes:
            return self._balanced(seed)
        return _shuffled(self.rows, seed) if self.shuffle else self.rows

    def _balanced(self, seed: int) -> Rows:
        """As many rows as the dataset, classes in equal numbers, in random order."""
        total, kinds = len(self.rows), len(self._classes)
        drawn = []
        for c, members in enumerate(self._classes):
            quota = total // kinds + (c < total % kinds)
            # Whole passes over the class, each in its own order: no row repeats before all others had a turn.
            repeats = -(-quota // len(members))
            passes = [_shuffled(members, seed + 0x9E3779B9 * (k + 1)) for k in range(repeats)]
            drawn.append(np.concatenate(passes)[:quota])
        pooled = np.concatenate(drawn)
        return pooled[_shuffled(np.arange(total, dtype=np.int64), seed)]

    def batches(self, epoch: int) -> list[Rows]:
        """Row numbers of each batch of this rank, in `order`, but sorted within a batch for reading."""
        return [rows for rows, _ in self._drawn(epoch)]

    def _drawn(self, epoch: int) -> list[tuple[Rows, Rows]]:
        """Row numbers of each batch, and how often each row was drawn before in this epoch, on any rank."""
        steps, size, order = len(self), self.batch_size, self.order(epoch)
        before = _repeats(order) if self._classes else np.zeros(len(order), np.int64)
        mine = np.arange(len(order))[self.rank :: self.world]
        parts = [mine[k * size : (k + 1) * size] for k in range(steps)]
        # This rank has one row less than others, which need one more step for theirs. A rank with fewer steps
        # would leave them waiting: one row of its last batch becomes that step.
        if parts and len(parts[-1]) == 0:
            parts[-2:] = [parts[-2][:-1], parts[-2][-1:]]
        parts = [p[np.argsort(order[p], kind="stable")] for p in parts if len(p)]
        return [(order[p], before[p]) for p in parts]

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Batches of one epoch from `start_batch` on.

        Yields
        ------
        `image` `(n, B, H, W)` float32, of a dataset with `psf_input` `(n, 2 B, H, W)`; `label` `(n,)` int64;
        `row` `(n,)` int64 global row numbers; `valid` and the named columns when requested; on the device.
        """
        host = self._host(self._drawn(epoch)[start_batch:])
        return self._on_cuda(host, epoch) if self.device.type == "cuda" else self._on_cpu(host, epoch)

    def _host(self, batches: list[tuple[Rows, Rows]]) -> Iterator[Batch]:
        """Batches in host memory, in order, read ahead by threads; at most `threads + 1` are held."""
        pool = self._threads()
        waiting: deque[Future[Batch]] = deque()
        try:
            for rows, draw in batches:
                waiting.append(pool.submit(self._read, rows, draw))
                if len(waiting) > self.threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # The garbage collector may end an unfinished epoch here, in any thread and under any lock of
            # `threading`: waiting could deadlock, so nothing waits and the pool lives as long as the loader.
            for future in waiting:
                future.cancel()

    def _threads(self) -> ThreadPoolExecutor:
        """The reading threads of this process, and their buffers; a forked child makes its own."""
        if self._pool is None or self._pool[0] != os.getpid():
            pool = ThreadPoolExecutor(self.threads, thread_name_prefix="ripple-loader")
            self._pool = os.getpid(), pool
            # Enough for the batches read ahead and a few that the caller still holds.
            self._buffers = _Buffers(2 * self.threads + 4)
        return self._pool[1]

    def _read(self, rows: Rows, draw: Rows) -> Batch:
        """One batch in host memory; pinned, if it goes to a GPU."""
        pin = self.device.type == "cuda"
        shape = (len(rows), *self.dataset.shape)
        if pin:
            # In the stored type: float16 halves what crosses the bus and is widened on the GPU.
            image = torch.empty(shape, dtype=_TORCH[self.dataset.dtype.name], pin_memory=True)
            self.dataset.read(rows, image.numpy())
        else:
            buffer = self._buffers.take(shape, np.dtype(np.float32))
            image = torch.from_numpy(self.dataset.read(rows, buffer))
        batch = {"image": image, "label": torch.from_numpy(self._labels[rows]), "row": torch.from_numpy(rows)}
        if self._classes and (self.augment is not None or self.conditions is not None):
            batch["draw"] = torch.from_numpy(draw)
        if self.valid:
            batch["valid"] = torch.from_numpy(self.dataset.read(rows, valid=True))
        batch |= {name: torch.from_numpy(column[rows]) for name, column in self._extra.items()}
        if self.dataset.psf is not None:
            batch["psf"] = torch.from_numpy(self.dataset.psf[rows])
        return {k: v.pin_memory() if pin and k != "image" else v for k, v in batch.items()}

    def _on_cpu(self, host: Iterator[Batch], epoch: int) -> Iterator[Batch]:
        for batch in host:
            yield self._augmented(batch, epoch)

    def _on_cuda(self, host: Iterator[Batch], epoch: int) -> Iterator[Batch]:
        """Copy and augment batch k + 1 on a second stream while the caller works on batch k."""
        stream = torch.cuda.Stream(self.device)

        def send(batch: Batch) -> tuple[Batch, torch.cuda.Event]:
            with torch.cuda.stream(stream):
                moved = {k: v.to(self.device, non_blocking=True) for k, v in batch.items()}
                # After the copy, before the augmentation, as on the CPU: both give the same pixels.
                moved["image"] = moved["image"].to(torch.float32)
                moved = self._augmented(moved, epoch)
                return moved, stream.record_event()

        def receive(sent: tuple[Batch, torch.cuda.Event]) -> Batch:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(sent[1])
            # The allocator must not reuse this memory while the caller's stream still works on it.
            for tensor in sent[0].values():
                tensor.record_stream(current)
            return sent[0]

        ahead: tuple[Batch, torch.cuda.Event] | None = None
        for batch in host:
            sent = send(batch)
            if ahead is not None:
                yield receive(ahead)
            ahead = sent
        if ahead is not None:
            yield receive(ahead)

    def _augmented(self, batch: Batch, epoch: int) -> Batch:
        draw, width = batch.pop("draw", None), batch.pop("psf", None)
        image, row = batch["image"], batch["row"]
        for change in (self.conditions, self.augment):
            if change is not None:
                image = change(image, row, seed=self.seed, epoch=epoch, draw=draw)
        if width is not None and self.conditions is not None:
            width = self.conditions.widths(width, row, seed=self.seed, epoch=epoch, draw=draw)
        # After the augmentation, which would disturb these planes as well.
        return {**batch, "image": with_widths(image, width)}


class _Buffers:
    """Arrays for batches, reused once nobody holds a tensor or view of them.

    Fresh memory for every batch costs more in page faults than the reading itself. A tensor from
    `torch.from_numpy` refers to its array as long as any view of it lives, so an array to which only this
    pool refers is free.
    """

    def __init__(self, keep: int) -> None:
        self._keep, self._lock = keep, threading.Lock()
        self._arrays: list[NDArray[Any]] = []
        # The count for an array that only a list holds differs between versions of Python: measured here.
        self._free = _references([np.empty(1)], 0)

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array of this shape and type with arbitrary values."""
        with self._lock:
            for k in range(len(self._arrays)):
                fits = self._arrays[k].shape == shape and self._arrays[k].dtype == dtype
                if fits and _references(self._arrays, k) == self._free:
                    return self._arrays[k]
            array = np.empty(shape, dtype)
            # The oldest goes out of the pool; whoever still holds it keeps it alive.
            self._arrays = [*self._arrays[-self._keep + 1 :], array]
            return array


def _references(arrays: list[NDArray[Any]], k: int) -> int:
    array = arrays[k]  # measured through the same names in both places, so that the counts compare
    return sys.getrefcount(array)


_TORCH = {"float16": torch.float16, "float32": torch.float32}


def _repeats(order: Rows) -> Rows:
    """For each entry of `order`, how many equal ones come before it."""
    by_row = np.argsort(order, kind="stable")
    first = np.flatnonzero(np.diff(order[by_row], prepend=-1))
    found = np.empty(len(order), np.int64)
    found[by_row] = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order))))
    return found


def _shuffled(rows: Rows, seed: int) -> Rows:
    """`rows` in the order of a hash of (seed, row); unlike a generator's, it never changes with a library."""
    return rows[np.argsort(mix64(rows.view(np.uint64), seed), kind="stable")]


def _numbers(name: str, column: NDArray[Any]) -> NDArray[np.float32]:
    if column.dtype.kind not in "iufb":
        raise ConfigError(f"column {name!r} does not hold numbers, which a batch needs")
    return column.astype(np.float32)
