"""Rows of tensor shards as a PyTorch dataset; shards are memory-mapped, not loaded."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ripple.errors import DataError
from ripple.imaging.batch import TensorBatch
from ripple.learn.config import PsfInput
from ripple.learn.data import loops
from ripple.learn.data.psf_input import psf_widths, with_widths
from ripple.storage import shard_reader
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.labels import renumbered

Batch = dict[str, Tensor]
Rows = NDArray[np.int64]

#: Datasets of this process. A fork must find their locks open: a thread that holds one while it maps a
#: shard does not exist in the child, where the lock would stay closed for ever.
_datasets: weakref.WeakSet[TensorDataset] = weakref.WeakSet()
_locks_for_fork: list[threading.Lock] = []


def _lock_before_fork() -> None:
    """Wait until no thread maps a shard, and let none begin."""
    _locks_for_fork[:] = [lock for dataset in _datasets for lock in dataset._locks]
    for lock in _locks_for_fork:
        lock.acquire()


def _unlock_after_fork() -> None:
    for lock in _locks_for_fork:
        lock.release()


os.register_at_fork(
    before=_lock_before_fork, after_in_parent=_unlock_after_fork, after_in_child=_unlock_after_fork
)


def evenly(rows: Rows, count: int) -> Rows:
    """At most `count` of some rows, spread evenly over them."""
    if not len(rows):
        return rows
    chosen: Rows = rows[np.unique(np.linspace(0, len(rows) - 1, count).astype(np.int64))]
    return chosen


class TensorDataset(torch.utils.data.Dataset[Batch]):
    """Rows of tensor artefacts, as a PyTorch dataset.

    A shard is mapped when it is first used, in the process that uses it, after its checksum was verified; a
    copy sent to another process carries names and columns but no file handle.

    Parameters
    ----------
    artefacts
        Directories of kind `tensors`, or open artefacts. All must have the same bands and image size.
    rows
        Global row numbers to keep, in this order; default all accepted rows.
    accepted
        Leave out rows that quality control rejected. Ignored when `rows` is given.
    class_map
        Label value -> class name to number the labels by: those of each artefact are translated by name.
        None to take them as they are.
    psf_input
        What batches hold beside the bands: nothing, or planes with the width of the PSF of each band.

    Attributes
    ----------
    rows
        `(n,)` int64 global row numbers: the position in all shards of all artefacts, in order.
    total
        Number of rows in all shards.
    bands, shape
        Names of the B bands; `(B, H, W)`.
    psf
        `(total, B)` float32 arcsec, see `psf_widths`; None without `psf_input`.

    Raises
    ------
    DataError
        The artefacts do not fit together, or have no rows.
    """

    def __init__(
        self,
        artefacts: Path | str | Artefact | Sequence[Path | str | Artefact],
        *,
        rows: ArrayLike | None = None,
        accepted: bool = True,
        class_map: Mapping[str, str] | None = None,
        psf_input: PsfInput = "none",
    ) -> None:
        given = [artefacts] if isinstance(artefacts, Path | str | Artefact) else list(artefacts)
        self.artefacts = [a if isinstance(a, Artefact) else open_artefact(Path(a), "tensors") for a in given]
        self._units = [(a, k) for a in self.artefacts for k in range(len(a.shards))]
        counts = [a.shards[k].rows for a, k in self._units]
        # First global row number of each shard, and the total: (shards + 1,)
        self._offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.total = int(self._offsets[-1])
        if self.total == 0:
            names = ", ".join(str(a.directory) for a in self.artefacts)
            raise DataError(f"{names or 'no artefact'}: there are no rows to load")
        self._class_map = class_map
        self._columns: dict[str, NDArray[Any]] = {}
        self._names: tuple[str, ...] = ()
        self._indexes = [a.index() for a in self.artefacts]
        self._reset()
        # Bands and shape are those of the first shard with rows; every other shard is compared when mapped.
        first = self._map(int(np.argmax(np.array(counts) > 0)))
        self.bands = first.bands
        self.shape: tuple[int, int, int] = first.image.shape[1:]
        self.dtype = first.image.dtype
        self.rows: Rows = self._select(accepted) if rows is None else np.asarray(rows, np.int64)
        if len(self.rows) and (self.rows.min() < 0 or self.rows.max() >= self.total):
            raise DataError(f"there are row numbers beyond the {self.total} rows of the shards")
        self.psf = self._widths() if psf_input == "width" else None

    def _widths(self) -> NDArray[np.float32]:
        names = {f"{kind}_{band}" for kind in ("psf_fwhm", "psf_sharpening") for band in self.bands}
        found = psf_widths({n: self.column(n) for n in names & {*self.column_names()}}, self.bands)
        if len(self.rows) and not (found[self.rows] > 0).any():
            raise DataError(
                "no row has a PSF, and a network with --psf-input width takes its width",
                hint="fetch or import cutouts with PSFs",
            )
        return found

    def network_input(self, rows: Rows) -> Tensor:
        """Images of rows as a network takes them, `(n, B, H, W)`, or `(n, 2 B, H, W)` with `psf_input`."""
        image = torch.from_numpy(self.read(rows, np.empty((len(rows), *self.shape), np.float32)))
        return with_widths(image, None if self.psf is None else torch.from_numpy(self.psf[rows]))

    def _reset(self) -> None:
        """What belongs to this process alone: maps, locks and addresses, all empty."""
        self._maps: dict[int, shard_reader.TensorPlanes] = {}
        self._locks = [threading.Lock() for _ in self._units]
        _datasets.add(self)
        # Address of the first pixel of each shard's image and valid plane; 0 until the shard is mapped.
        self._start = {name: np.zeros(len(self._units), np.int64) for name in ("valid", "image")}

    def __getstate__(self) -> dict[str, object]:
        # Maps and addresses mean nothing in another process, and locks cannot be pickled.
        return {k: v for k, v in self.__dict__.items() if k not in ("_maps", "_locks", "_start")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Batch:
        """One row: `image` `(B, H, W)` float32, `label` and `row` int64."""
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: list[int]) -> list[Batch]:
        """Rows of one batch, read together (PyTorch's fetcher calls this if it is defined)."""
        rows = self.rows[positions]
        image = torch.from_numpy(self.read(rows, np.empty((len(rows), *self.shape), np.float32)))
        label = torch.from_numpy(self.column("label")[rows].astype(np.int64))
        numbers = torch.from_numpy(rows)
        return [{"image": image[k], "label": label[k], "row": numbers[k]} for k in range(len(rows))]

    def select(
        self,
        *,
        labels: Sequence[int] | None = None,
        split: NDArray[np.int8] | None = None,
        which: int | Sequence[int] = 0,
    ) -> Rows:
        """The `rows` that pass every filter given.

        Parameters
        ----------
        labels
            Keep rows with one of these labels.
        split
            `(total,)` int8 from `ripple.sky.splits`, over all rows of the shards.
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
                raise DataError(f"split of {len(split)} rows, but the shards hold {self.total}")
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
            # From the index where it can be: a column from the shards needs every one of them verified first.
            indexed = all(name in table.column_names for table in self._indexes)
            column = self._from_indexes(name) if indexed else self._from_shards(name)
            self._columns[name] = self._by_name(column) if name == "label" else column
        return self._columns[name]

    def replace_column(self, name: str, values: NDArray[Any]) -> None:
        """Use other values of a column, `(total,)`, in this dataset; the shards keep theirs.

        Raises
        ------
        DataError
            Not one value for each row of the shards.
        """
        if len(values) != self.total:
            raise DataError(f"{len(values)} values of {name!r}, but the shards hold {self.total} rows")
        self._columns[name] = values

    def column_names(self) -> tuple[str, ...]:
        """Names that `column` accepts: those of the first shard with rows, and `label`."""
        if not self._names:
            self._names = tuple(sorted({*self.first_shard().catalog, "label"}))
        return self._names

    def first_shard(self) -> TensorBatch:
        """The first shard that has rows, whole: what it says of itself holds for all of its artefact."""
        artefact, k = self._units[int(np.argmax(np.diff(self._offsets) > 0))]
        return shard_reader.map_tensors(artefact.verified_path(k))

    def _by_name(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        """Labels of all rows in the numbers of `class_map`."""
        if self._class_map is None:
            return np.asarray(labels, np.int64)
        parts, unit = [], 0
        for artefact in self.artefacts:
            first, last = self._offsets[unit], self._offsets[unit + len(artefact.shards)]
            # Shards without labels have none; all others have the same, so that the first one tells.
            maps = (
                shard_reader.map_tensors(artefact.verified_path(k)).class_map
                for k in range(len(artefact.shards))
            )
            own = next((found for found in maps if found), {})
            parts.append(renumbered(labels[first:last], own, self._class_map))
            unit += len(artefact.shards)
        return np.concatenate(parts)

    def _from_indexes(self, name: str) -> NDArray[Any]:
        """A column of the indexes, which list targets in input order, put into the order of the rows."""
        parts, first = [], 0
        for artefact, table in zip(self.artefacts, self._indexes, strict=True):
            column = table[name]
            # Integers with gaps would become floats; -1 stands for "unknown" in labels.
            gaps = column.null_count and pa.types.is_signed_integer(column.type)
            values = column.fill_null(-1) if gaps else column
            shard, row = table["shard"].to_numpy(), table["row"].to_numpy()
            placed = shard >= 0  # rejected targets have no row
            at = self._offsets[first + shard[placed]] - self._offsets[first] + row[placed]
            # `at` numbers the rows of this artefact: sorting by it is the order of the shards.
            plain = np.asarray(values.to_numpy())[placed]
            parts.append(plain[np.argsort(at)])
            first += len(artefact.shards)
        whole = np.concatenate(parts)
        return whole.astype(np.int64) if name == "label" else whole

    def _from_shards(self, name: str) -> NDArray[Any]:
        catalogs = [shard_reader.map_tensors(a.verified_path(k)).catalog for a, k in self._units]
        parts = [catalog.get(name) for catalog in catalogs]
        have = [p for p in parts if p is not None]
        # Labels are optional in each shard, unlike other columns: -1 where there is none.
        if name == "label":
            counts = np.diff(self._offsets)
            filled = [
                np.full(c, -1, np.int64) if p is None else p for p, c in zip(parts, counts, strict=True)
            ]
            return np.concatenate(filled).astype(np.int64)
        if len(have) < len(parts):
            known = ", ".join(sorted(catalogs[0]))
            raise DataError(f"the tensors have no column {name!r}", hint=f"the columns are {known}")
        return np.concatenate(have)

    def _select(self, accepted: bool) -> Rows:
        everything = np.arange(self.total, dtype=np.int64)
        return everything[self._from_indexes("status") != "rejected"] if accepted else everything

    def _map(self, unit: int) -> shard_reader.TensorPlanes:
        """Shard number `unit`, verified and mapped."""
        with self._locks[unit]:
            return self._mapped(unit)

    def _mapped(self, unit: int) -> shard_reader.TensorPlanes:
        """As `_map`, for a caller that holds the lock of the shard."""
        if unit not in self._maps:
            artefact, k = self._units[unit]
            path = artefact.verified_path(k)
            batch = shard_reader.map_planes(path)
            self._check(batch, path)
            self._maps[unit] = batch
            # `image` comes last: `_map_all` takes it, without the lock, as the sign of a mapped shard.
            for name, starts in self._start.items():
                starts[unit] = getattr(batch, name).ctypes.data
        return self._maps[unit]

    def _map_all(self, units: NDArray[np.intp]) -> None:
        """Map the shards that are not mapped yet; threads that need the same ones share the work."""
        missing = units[self._start["image"][units] == 0].tolist()
        for unit in missing:
            if self._locks[unit].acquire(blocking=False):
                try:
                    self._mapped(unit)
                finally:
                    self._locks[unit].release()
        for unit in missing:  # wait for those that another thread is mapping
            self._map(unit)

    def _check(self, batch: shard_reader.TensorPlanes, path: Path) -> None:
        """Refuse a shard whose bands, shape or type differ from those of the first one."""
        if not hasattr(self, "shape") or len(batch.image) == 0:
            return
        for what, mine, theirs in (
            ("bands", self.bands, batch.bands),
            ("image shape", self.shape, batch.image.shape[1:]),
            ("dtype", self.dtype, batch.image.dtype),
        ):
            if mine != theirs:
                raise DataError(f"{path}: {what} {theirs} differ from those of the first shard, {mine}")

    def read(self, rows: Rows, out: NDArray[Any] | None = None, *, valid: bool = False) -> NDArray[Any]:
        """Images (or validity planes) of rows; several threads may read at once.

        Parameters
        ----------
        rows
            `(n,)` global row numbers, any order, repeats allowed. Ascending is fastest.
        out
            `(n, B, H, W)` to fill, of the stored type, or float32 for float16 tensors, which are converted
            in the same pass; when not given, a new array of the stored type.
        valid
            Read `/valid` (uint8) instead of `/image`.

        Raises
        ------
        DataError
            A row number lies beyond the shards; `out` has another shape, type or layout.
        """
        stored = np.dtype(np.uint8) if valid else self.dtype
        rows = np.ascontiguousarray(rows, np.int64)
        if out is None:
            out = np.empty((len(rows), *self.shape), stored)
        # The compiled loops trust addresses, and a wrong one ends the process: all is checked here first.
        widen = stored == np.float16 and out.dtype == np.float32
        if out.shape != (len(rows), *self.shape) or not (widen or out.dtype == stored):
            raise DataError(
                f"out is {out.dtype} {out.shape}, but the rows are {stored} {(len(rows), *self.shape)}"
            )
        if not out.flags.carray:
            raise DataError("out must be C-contiguous and writable")
        if len(rows) == 0:
            return out
        if rows.min() < 0 or rows.max() >= self.total:
            raise DataError(f"there are row numbers beyond the {self.total} rows of the shards")
        loop: Callable[..., None] = loops.widen if widen else loops.copy
        flat = out.reshape(len(rows), -1)
        # Moved as unsigned words of the same size: bits are bits, and one compiled loop serves all types.
        flat = flat if widen else flat.view(loops.WORD[stored.itemsize])
        unit = np.searchsorted(self._offsets, rows, side="right") - 1  # (n,) shard of each row
        self._map_all(np.unique(unit))
        plane = "valid" if valid else "image"
        at = rows - self._offsets[unit]
        if loops.loaded(loop, flat.dtype):
            # Pixels of a shard lie without gaps, so that row k begins k steps after the first.
            step = int(np.prod(self.shape)) * stored.itemsize
            loop(self._start[plane][unit] + at * step, flat)
        else:  # the first batches: numba loads meanwhile, see docs/loader.md
            for i in range(len(rows)):
                out[i] = getattr(self._maps[unit[i]], plane)[at[i]]
            loops.load(loop, flat.dtype)
        return out
