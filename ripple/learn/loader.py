"""Tensor shards to batches on a device.

`TensorDataset` is the rows of one or more tensor artefacts, mapped and not loaded; it works with any PyTorch
code. `Loader` turns it into batches: the order is a function of (seed, epoch, rank, world), whatever the
number of threads, and an epoch can be entered at any batch.
"""

from __future__ import annotations

import math
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ripple import shard
from ripple.artefact import Artefact, open_artefact
from ripple.cutouts import TensorBatch
from ripple.errors import ConfigError, DataError
from ripple.learn.augment import Augment
from ripple.learn.splits import mix64

Batch = dict[str, Tensor]
Rows = NDArray[np.int64]


class TensorDataset(torch.utils.data.Dataset[Batch]):
    """Rows of tensor artefacts, as a PyTorch dataset.

    Shards are mapped when first touched, in the process that touches them, after their digest was checked; a
    copy sent to another process carries names and columns, no file handle.

    Parameters
    ----------
    artefacts
        Directories of kind `tensors`, or open artefacts. All must have the same bands and image size.
    rows
        Global row numbers to keep, in this order; default all accepted rows.
    accepted
        Leave out rows that quality control refused. Ignored when `rows` is given.

    Attributes
    ----------
    rows
        `(n,)` int64 global row numbers: the position in all shards of all artefacts, in order.
    total
        Number of rows in all shards.
    bands, shape
        Names of the B bands; `(B, H, W)`.

    Raises
    ------
    DataError
        Artefacts that do not fit together, or no row is left.
    """

    def __init__(
        self,
        artefacts: Path | str | Artefact | Sequence[Path | str | Artefact],
        *,
        rows: ArrayLike | None = None,
        accepted: bool = True,
    ) -> None:
        given = [artefacts] if isinstance(artefacts, Path | str | Artefact) else list(artefacts)
        self.artefacts = [a if isinstance(a, Artefact) else open_artefact(Path(a), "tensors") for a in given]
        self._units = [(a, k) for a in self.artefacts for k in range(len(a.shards))]
        counts = [a.shards[k].rows for a, k in self._units]
        self._offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.total = int(self._offsets[-1])
        if self.total == 0:
            names = ", ".join(str(a.directory) for a in self.artefacts)
            raise DataError(f"{names or 'no artefact'}: no rows to load")
        self._columns: dict[str, NDArray[Any]] = {}
        self._indexes = [a.index() for a in self.artefacts]
        self._reset()
        first = self._map(int(np.argmax(np.array(counts) > 0)))
        self.bands = first.bands
        self.shape: tuple[int, int, int] = first.image.shape[1:]
        self.dtype = first.image.dtype
        self.rows: Rows = self._select(accepted) if rows is None else np.asarray(rows, np.int64)
        if len(self.rows) and (self.rows.min() < 0 or self.rows.max() >= self.total):
            raise DataError(f"row numbers beyond the {self.total} rows of the shards")

    def _reset(self) -> None:
        self._maps: dict[int, TensorBatch] = {}
        self._locks = [threading.Lock() for _ in self._units]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_maps", "_locks")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Batch:
        """One row: `image` `(B, H, W)` float32, `label` and `row` int64."""
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: list[int]) -> list[Batch]:
        """Rows of one batch, read together (PyTorch's fetcher calls this when it exists)."""
        rows = self.rows[positions]
        image = torch.from_numpy(self.read(rows)).to(torch.float32)
        label = torch.from_numpy(self.column("label")[rows].astype(np.int64))
        numbers = torch.from_numpy(rows)
        return [{"image": image[k], "label": label[k], "row": numbers[k]} for k in range(len(rows))]

    def subset(self, rows: ArrayLike) -> TensorDataset:
        """The same shards with other rows (global row numbers)."""
        other = object.__new__(TensorDataset)
        other.__setstate__({**self.__getstate__(), "rows": np.asarray(rows, np.int64)})
        return other

    def select(
        self,
        *,
        labels: Sequence[int] | None = None,
        split: NDArray[np.int8] | None = None,
        which: int | Sequence[int] = 0,
    ) -> Rows:
        """Those of `rows` that pass every filter given.

        Parameters
        ----------
        labels
            Keep rows with one of these labels.
        split
            `(total,)` int8 from `ripple.learn.splits`, over all rows of the shards.
        which
            Keep rows in this split, or in one of these splits.

        Returns
        -------
        `(m,)` int64 global row numbers.
        """
        keep = np.ones(len(self.rows), bool)
        if labels is not None:
            keep &= np.isin(self.column("label")[self.rows], labels)
        if split is not None:
            if len(split) != self.total:
                raise DataError(f"split of {len(split)} rows, the shards hold {self.total}")
            keep &= np.isin(split[self.rows], which)
        chosen: Rows = self.rows[keep]
        return chosen

    def column(self, name: str) -> NDArray[Any]:
        """A catalogue column over all `total` rows, for example `ra`, `label` (-1 unknown) or `id`.

        Raises
        ------
        DataError
            Neither the index nor all shards have it.
        """
        if name not in self._columns:
            indexed = all(name in table.column_names for table in self._indexes)
            self._columns[name] = self._from_indexes(name) if indexed else self._from_shards(name)
        return self._columns[name]

    def column_names(self) -> tuple[str, ...]:
        """Names that `column` takes: those of the shards."""
        return tuple(sorted(self._map(int(np.argmax(np.diff(self._offsets) > 0))).catalog))

    def _from_indexes(self, name: str) -> NDArray[Any]:
        """The index has targets in input order: put their values where the rows lie."""
        parts, first = [], 0
        for artefact, table in zip(self.artefacts, self._indexes, strict=True):
            column = table[name]
            values = column.fill_null(-1) if pa.types.is_signed_integer(column.type) else column
            shard, row = table["shard"].to_numpy(), table["row"].to_numpy()
            placed = shard >= 0
            at = self._offsets[first + shard[placed]] - self._offsets[first] + row[placed]
            plain = np.asarray(values.to_numpy())[placed]
            parts.append(plain[np.argsort(at)])
            first += len(artefact.shards)
        whole = np.concatenate(parts)
        return whole.astype(np.int64) if name == "label" else whole

    def _from_shards(self, name: str) -> NDArray[Any]:
        catalogs = [shard.map_tensors(a.verified_path(k)).catalog for a, k in self._units]
        parts = [catalog.get(name) for catalog in catalogs]
        have = [p for p in parts if p is not None]
        if name == "label":
            counts = np.diff(self._offsets)
            filled = [
                np.full(c, -1, np.int64) if p is None else p for p, c in zip(parts, counts, strict=True)
            ]
            return np.concatenate(filled).astype(np.int64)
        if len(have) < len(parts):
            known = ", ".join(sorted(catalogs[0]))
            raise DataError(f"the tensors have no column {name!r}", hint=f"there are {known}")
        return np.concatenate(have)

    def _select(self, accepted: bool) -> Rows:
        everything = np.arange(self.total, dtype=np.int64)
        return everything[self._from_indexes("status") != "rejected"] if accepted else everything

    def _map(self, unit: int) -> TensorBatch:
        """Shard `unit`, verified and mapped; threads verify different shards side by side."""
        with self._locks[unit]:
            if unit not in self._maps:
                artefact, k = self._units[unit]
                path = artefact.verified_path(k)
                batch = shard.map_tensors(path, catalog=False)
                self._check(batch, path)
                self._maps[unit] = batch
            return self._maps[unit]

    def _check(self, batch: TensorBatch, path: Path) -> None:
        if not hasattr(self, "shape") or len(batch) == 0:
            return
        for what, mine, theirs in (
            ("bands", self.bands, batch.bands),
            ("image shape", self.shape, batch.image.shape[1:]),
            ("dtype", self.dtype, batch.image.dtype),
        ):
            if mine != theirs:
                raise DataError(f"{path}: {what} {theirs}, the first shard has {mine}")

    def read(self, rows: Rows, out: NDArray[Any] | None = None, *, valid: bool = False) -> NDArray[Any]:
        """Images (or validity planes) of rows, as stored.

        Parameters
        ----------
        rows
            `(n,)` global row numbers, any order, repeats allowed.
        out
            `(n, B, H, W)` to fill; made when not given.
        valid
            Read `/valid` (uint8) instead of `/image`.
        """
        if out is None:
            out = np.empty((len(rows), *self.shape), np.uint8 if valid else self.dtype)
        if (np.diff(rows) < 0).any():  # forward through each file: what disks, caches and page tables like
            order = np.argsort(rows, kind="stable")
            out[order] = self.read(rows[order], valid=valid)
            return out
        bounds = np.searchsorted(rows, self._offsets)
        for unit in np.flatnonzero(np.diff(bounds)):
            batch = self._map(int(unit))
            here = slice(bounds[unit], bounds[unit + 1])
            source = (batch.valid if valid else batch.image).view(np.ndarray)
            # One copy per row, mapped file to batch, without the interpreter lock ("clip" needs no buffer).
            np.take(source, rows[here] - self._offsets[unit], axis=0, out=out[here], mode="clip")
        return out


class Loader:
    """Batches of a dataset, on a device, in an order that depends on (seed, epoch, rank, world) only.

    Without `balance`, one epoch over all ranks holds every row exactly once, and all ranks make the same
    number of batches. With `balance`, an epoch has as many rows as the dataset, the same number of each
    class; rare classes repeat, and rows without a label (< 0) are left out.

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
        Another order each epoch; else as in `rows`.
    balance
        Draw classes evenly.
    augment
        What to do to each row on the device.
    device
        `cpu`, `cuda`, `cuda:1`. CUDA copies run from pinned memory on a stream of their own.
    rank, world
        This process among those that share the epoch.
    drop_last
        Leave out the batches that are not full (batch normalisation dislikes them).
    valid
        Also give `valid` `(n, B, H, W)` uint8.
    columns
        Catalogue columns to give along, as float32 `(n,)`.
    threads
        Reading threads.
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
        self.rank, self.world, self.threads = rank, world, max(1, threads)
        if batch_size < 1 or not 0 <= rank < world:
            raise ConfigError(f"batch size {batch_size}, rank {rank} of {world}", hint="rank counts from 0")
        self._buffers = _Buffers(2 * self.threads + 4)
        self._labels = dataset.column("label")
        self._extra = {name: _numbers(name, dataset.column(name)) for name in columns}
        self._classes = self._by_class() if balance else ()
        if len(self.rows) < world:
            raise DataError(f"{len(self.rows)} rows for {world} ranks")

    def _by_class(self) -> tuple[Rows, ...]:
        label = self._labels[self.rows]
        groups = tuple(self.rows[label == value] for value in np.unique(label) if value >= 0)
        if len(groups) < 2:
            raise DataError(
                f"balanced batches need two classes, the rows have labels {np.unique(label).tolist()}"
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
        seed = (self.seed * 0x2545F4914F6CDD1D + epoch + 1) & (2**64 - 1)
        if self._classes:
            return self._balanced(seed)
        return _shuffled(self.rows, seed) if self.shuffle else self.rows

    def _balanced(self, seed: int) -> Rows:
        total, kinds = len(self.rows), len(self._classes)
        drawn = []
        for c, members in enumerate(self._classes):
            quota = total // kinds + (c < total % kinds)
            repeats = -(-quota // len(members))
            passes = [_shuffled(members, seed + 0x9E3779B9 * (k + 1)) for k in range(repeats)]
            drawn.append(np.concatenate(passes)[:quota])
        pooled = np.concatenate(drawn)
        return pooled[_shuffled(np.arange(total, dtype=np.int64), seed)]

    def batches(self, epoch: int) -> list[Rows]:
        """Row numbers of each batch of this rank, chosen by `order`, sorted within the batch for reading."""
        steps, size = len(self), self.batch_size
        mine = self.order(epoch)[self.rank :: self.world]
        parts = [mine[k * size : (k + 1) * size] for k in range(steps)]
        if (
            parts and len(parts[-1]) == 0
        ):  # this rank has one row less than others, and they need one more step
            parts[-2:] = [parts[-2][:-1], parts[-2][-1:]]
        return [np.sort(p) for p in parts if len(p)]

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Batches of one epoch from `start_batch` on.

        Yields
        ------
        `image` `(n, B, H, W)` float32, `label` `(n,)` int64, `row` `(n,)` int64 global row numbers, on the
        device; `valid` and the named columns when asked for.
        """
        host = self._host(self.batches(epoch)[start_batch:])
        return self._on_cuda(host, epoch) if self.device.type == "cuda" else self._on_cpu(host, epoch)

    def _host(self, batches: list[Rows]) -> Iterator[Batch]:
        """Batches in host memory, read ahead by threads, in order; memory for `threads + 1` batches."""
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="ripple-loader")
        waiting: deque[Future[Batch]] = deque()
        try:
            for rows in batches:
                waiting.append(pool.submit(self._read, rows))
                if len(waiting) > self.threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, rows: Rows) -> Batch:
        pin = self.device.type == "cuda"
        shape = (len(rows), *self.dataset.shape)
        if pin:
            image = torch.empty(shape, dtype=_TORCH[self.dataset.dtype.name], pin_memory=True)
            self.dataset.read(rows, image.numpy())
        else:
            stored = self.dataset.read(rows, self._buffers.take(shape, self.dataset.dtype))
            image = torch.from_numpy(stored)
            if stored.dtype != np.float32:
                image = torch.from_numpy(self._buffers.take(shape, np.dtype(np.float32))).copy_(image)
        batch = {"image": image, "label": torch.from_numpy(self._labels[rows]), "row": torch.from_numpy(rows)}
        if self.valid:
            batch["valid"] = torch.from_numpy(self.dataset.read(rows, valid=True))
        batch |= {name: torch.from_numpy(column[rows]) for name, column in self._extra.items()}
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
                moved["image"] = moved["image"].to(torch.float32)
                moved = self._augmented(moved, epoch)
                return moved, stream.record_event()

        def receive(sent: tuple[Batch, torch.cuda.Event]) -> Batch:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(sent[1])
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
        if self.augment is not None:
            image = self.augment(batch["image"], batch["row"], seed=self.seed, epoch=epoch)
            batch = {**batch, "image": image}
        return batch


class _Buffers:
    """Arrays for batches, used again once nobody holds a tensor or view of them.

    Fresh memory for every batch costs more in page faults than the reading does. A tensor made by
    `torch.from_numpy` refers to its array as long as any view of it lives, so an array to which only this
    pool refers is free.
    """

    def __init__(self, keep: int) -> None:
        self._keep, self._lock = keep, threading.Lock()
        self._arrays: list[NDArray[Any]] = []
        # What counting gives for an array that only a list holds differs between versions of Python.
        self._free = _references([np.empty(1)], 0)

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array of this shape and type; its values are anything."""
        with self._lock:
            for k in range(len(self._arrays)):
                fits = self._arrays[k].shape == shape and self._arrays[k].dtype == dtype
                if fits and _references(self._arrays, k) == self._free:
                    return self._arrays[k]
            array = np.empty(shape, dtype)
            self._arrays = [*self._arrays[-self._keep + 1 :], array]
            return array


def _references(arrays: list[NDArray[Any]], k: int) -> int:
    array = arrays[k]
    return sys.getrefcount(array)


_TORCH = {"float16": torch.float16, "float32": torch.float32}


def _shuffled(rows: Rows, seed: int) -> Rows:
    """`rows` sorted by a hash of (seed, row): no generator, so the order holds across library versions."""
    return rows[np.argsort(mix64(rows.view(np.uint64), seed), kind="stable")]


def _numbers(name: str, column: NDArray[Any]) -> NDArray[np.float32]:
    if column.dtype.kind not in "iufb":
        raise ConfigError(f"column {name!r} does not hold numbers")
    return column.astype(np.float32)
