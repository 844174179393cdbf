"""One unit of a fetch: its rows cut from all bands of a few patches, streamed in the order of the shard.

A unit is read, cut and packed by one worker and depends on nothing but its task, so its bytes are the same
whoever does it and whenever. Only one plane per band is in memory at a time, however many rows there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ripple.cutouts import MASK_PLANES, CutoutBatch
from ripple.errors import Reason, UnreadableError
from ripple.geometry import Box, Tan
from ripple.plan import Dataset
from ripple.profile import Profile
from ripple.rubin.source import Coadd, PsfCells
from ripple.shard import Draft, draft_cutouts
from ripple.stitch import Seams, cut, inside, stitch_row, touches

#: Projections of one row must agree to this many pixels (a milli-pixel).
WCS_TOLERANCE = 1e-3
NO_DATA = np.uint32(1 << MASK_PLANES.index("NO_DATA"))
#: Rows per chunk of a shard: a chunk stays in the processor's cache from the cut to the disk.
CHUNK_BYTES = 1 << 22
PLANES = ("image", "variance", "mask")

#: Opens a dataset; the flag says that few boxes of it will be read.
Opener = Callable[[Dataset, bool], Coadd]


@dataclass(frozen=True, slots=True)
class UnitTask:
    """All that a worker needs to make one shard.

    Parameters
    ----------
    number
        Shard number.
    bands
        Bands in order.
    size
        Pixels per side, margins included.
    margin
        Pixels of it on each side that preprocess trims.
    tract
        Tract of all rows.
    projection
        Projection of the tract.
    catalog
        Columns of the N rows, sorted by patch: `index`, `id`, `ra`, `dec`, `patch`, `x`, `y`, user columns.
    datasets
        What exists for the patches that the boxes touch.
    boxes
        Outer box of each of these patches, as planned.
    repo
        Where to resolve datasets that have no local file.
    missing_band, edge
        Policies, as in `FetchConfig`.
    """

    number: int
    bands: tuple[str, ...]
    size: int
    margin: int
    tract: int
    projection: Tan
    catalog: dict[str, NDArray[Any]]
    datasets: tuple[Dataset, ...]
    boxes: dict[int, Box]
    repo: str
    missing_band: Literal["partial", "reject"] = "partial"
    edge: Literal["pad", "reject"] = "pad"

    @property
    def rows(self) -> int:
        """Number of rows asked for."""
        return len(self.catalog["index"])


@dataclass(slots=True)
class _Band:
    """One band: its open files, and the boxes that leave their patch, already stitched."""

    coadds: dict[int, Coadd]
    whole: NDArray[np.bool_]
    edge: NDArray[np.int64]
    stamps: dict[str, NDArray[Any]]


@dataclass(slots=True)
class UnitReader:
    """A unit with everything known but the pixels of boxes inside their patch, which are streamed.

    Parameters
    ----------
    task
        What was asked for.
    status, reason
        `(N,)` per row asked for: `ok`, `partial` or `rejected`, and a `Reason` or the empty string.
    kept
        Row numbers of the rows that are delivered.
    notes
        Remarks of the readers, each once.
    """

    task: UnitTask
    bands: list[_Band]
    x0: NDArray[np.int64]
    y0: NDArray[np.int64]
    coverage: NDArray[np.float32]
    missing: NDArray[np.float32]
    disagreement: NDArray[np.float32]
    psf_jump: NDArray[np.float32]
    n_patches: NDArray[np.int16]
    psf_key: NDArray[np.int32]
    failures: dict[tuple[int, int], Reason]
    kernels: list[NDArray[np.float32]] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    profile: Profile = field(default_factory=Profile)
    status: NDArray[Any] = field(default_factory=lambda: np.empty(0, "U8"))
    reason: NDArray[Any] = field(default_factory=lambda: np.empty(0, "U24"))
    kept: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def draft(self) -> Draft:
        """The shard without its planes."""
        shape = (len(self.kept), len(self.task.bands), self.task.size, self.task.size)
        return draft_cutouts(shape, self.batch(), {"margin": self.task.margin})

    def batch(self) -> CutoutBatch:
        """Everything but the planes, which have no rows here: only for `draft`."""
        b, s = len(self.task.bands), self.task.size
        psf, index = _pack_kernels(self.kernels, self.psf_key[self.kept])
        return CutoutBatch(
            bands=self.task.bands,
            image=np.broadcast_to(np.float32(0), (len(self.kept), b, s, s)),
            variance=np.broadcast_to(np.float32(0), (len(self.kept), b, s, s)),
            mask=np.broadcast_to(np.uint32(0), (len(self.kept), b, s, s)),
            mask_planes=MASK_PLANES,
            psf=psf,
            psf_index=index,
            catalog=_catalog(self),
            wcs={self.task.tract: self.task.projection},
            pixel_scale=self.task.projection.pixel_scale,
        )

    def digests(self) -> dict[str, str]:
        """Dataset UUID -> SHA-256 of the bytes read so far."""
        found = {}
        for d in self.task.datasets:
            coadd = self.bands[self.task.bands.index(d.band)].coadds.get(d.patch)
            if coadd is not None:
                with self.profile.time("digest", bytes=coadd.bytes_read()):
                    found[d.uuid] = coadd.digest
        return found

    def chunks(self, name: str) -> Iterator[NDArray[Any]]:
        """One plane of all delivered rows in order, `(n, B, S, S)` at a time.

        Raises
        ------
        DamagedError
            A file turned out to be damaged: begin again without it.
        """
        own = self.task.catalog["patch"][self.kept]
        b, s = len(self.task.bands), self.task.size
        step = max(1, CHUNK_BYTES // (b * s * s * 4))
        dtype = np.dtype(np.uint32 if name == "mask" else np.float32)
        for first, last in _runs(own):
            rows = self.kept[first:last]
            layers = [self._layer(k, int(own[first]), name, rows) for k in range(b)]
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                out = np.empty((len(part), b, s, s), dtype)
                with self.profile.time("gather", bytes=out.nbytes):
                    for k, layer in enumerate(layers):
                        self._fill(out[:, k], k, name, part, layer)
                yield out

    def _layer(self, k: int, patch: int, name: str, rows: NDArray[np.int64]) -> _Layer | None:
        """The plane of a patch that rows of it are cut from; None when no row lies wholly inside it."""
        band = self.bands[k]
        coadd = band.coadds.get(patch)
        if coadd is None or not band.whole[rows].any():
            return None
        boxes = [_stamp(self, row) for row in rows[band.whole[rows]]]
        if is_sparse(len(boxes), self.task.size, coadd.box):
            pieces = [self._read(k, patch, coadd, name, box) for box in boxes]
            return _Layer(None, dict(zip(rows[band.whole[rows]].tolist(), pieces, strict=True)), coadd.box)
        return _Layer(self._read(k, patch, coadd, name, coadd.box), {}, coadd.box)

    def _read(self, k: int, patch: int, coadd: Coadd, name: str, box: Box) -> NDArray[Any]:
        with self.profile.time("decode", bytes=4 * box.width * box.height):
            return _read_plane(coadd, name, box, (patch, k))

    def _fill(
        self, out: NDArray[Any], k: int, name: str, rows: NDArray[np.int64], layer: _Layer | None
    ) -> None:
        band = self.bands[k]
        blank = NO_DATA if name == "mask" else np.float32(np.nan)
        if layer is not None and layer.plane is not None and band.whole[rows].all():
            cut(layer.plane, self.x0[rows] - layer.box.x0, self.y0[rows] - layer.box.y0, out)
            return
        at = np.searchsorted(band.edge, rows)
        for i, row in enumerate(rows):
            if band.whole[row] and layer is not None:
                x, y = self.x0[row] - layer.box.x0, self.y0[row] - layer.box.y0
                if layer.plane is None:
                    out[i] = layer.pieces[int(row)]
                else:
                    cut(layer.plane, np.array([x]), np.array([y]), out[i : i + 1])
            elif name in band.stamps:
                out[i] = band.stamps[name][at[i]]
            else:
                out[i] = blank


@dataclass(frozen=True, slots=True)
class _Layer:
    """A decoded plane, or the boxes of single rows when there are few."""

    plane: NDArray[Any] | None
    pieces: dict[int, NDArray[Any]]
    box: Box


class DamagedError(Exception):
    """A file is damaged; `(patch, band number)` in `key`. Never leaves this module's callers."""

    def __init__(self, key: tuple[int, int], error: UnreadableError) -> None:
        super().__init__(str(error))
        self.key, self.error = key, error


def is_sparse(rows: int, size: int, box: Box, tile: int = 150) -> bool:
    """Whether reading the tiles under `rows` boxes costs less than decoding the plane once.

    A box of `size` pixels touches about `(1 + size / tile)**2` tiles. Reading by tile costs a seek and a call
    per box, which the factor 4 covers.
    """
    touched = rows * (1 + size / tile) ** 2
    return 4 * touched < (box.width / tile) * (box.height / tile)


def open_unit(task: UnitTask, opener: Opener, excluded: dict[tuple[int, int], DamagedError]) -> UnitReader:
    """Open the files of a unit, stitch the boxes that leave their patch, look up PSFs, judge the rows.

    Parameters
    ----------
    task
        What to read.
    opener
        Opens a dataset, whole or for a few boxes.
    excluded
        Files found damaged by an earlier attempt.

    Raises
    ------
    DamagedError
        A file turned out to be damaged: call again with it excluded.
    """
    reader = _new(task)
    for key, damaged in excluded.items():
        _fail(reader, key, damaged.error)
    for k in range(len(task.bands)):
        reader.bands.append(_open_band(reader, k, opener, excluded))
    _judge(reader)
    return reader


def _new(task: UnitTask) -> UnitReader:
    n, b, s = task.rows, len(task.bands), task.size
    x = np.floor(task.catalog["x"].astype(np.float64) + 0.5).astype(np.int64) - s // 2
    y = np.floor(task.catalog["y"].astype(np.float64) + 0.5).astype(np.int64) - s // 2
    coverage, missing, disagreement, jump = (np.zeros((n, b), np.float32) for _ in range(4))
    key = np.full((n, b), -1, np.int32)
    return UnitReader(
        task, [], x, y, coverage, missing, disagreement, jump, np.ones(n, np.int16), key, failures={}
    )


def _fail(reader: UnitReader, key: tuple[int, int], error: UnreadableError) -> None:
    reader.failures[key] = error.reason
    reader.notes[str(error)] = None


def _stamp(reader: UnitReader, row: Any) -> Box:
    x, y, s = int(reader.x0[row]), int(reader.y0[row]), reader.task.size
    return Box(x, y, x + s, y + s)


def _runs(values: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Bounds of the runs of equal values."""
    if len(values):
        cuts = np.flatnonzero(values[1:] != values[:-1]) + 1
        yield from zip([0, *cuts.tolist()], [*cuts.tolist(), len(values)], strict=True)


def _read_plane(coadd: Coadd, name: str, box: Box, key: tuple[int, int]) -> NDArray[Any]:
    try:
        if name == "mask":
            return coadd.mask(box, MASK_PLANES)
        return coadd.image(box) if name == "image" else coadd.variance(box)
    except UnreadableError as err:
        raise DamagedError(key, err) from None


def _open_band(
    reader: UnitReader, k: int, opener: Opener, excluded: dict[tuple[int, int], DamagedError]
) -> _Band:
    task = reader.task
    own = task.catalog["patch"].astype(np.int64)
    here = {d.patch: d for d in task.datasets if d.band == task.bands[k] and (d.patch, k) not in excluded}
    coadds: dict[int, Coadd] = {}
    whole = np.zeros(task.rows, bool)
    for patch in sorted(here):
        coadd = _open(reader, k, here[patch], opener)
        if coadd is not None:
            coadds[patch] = coadd
            whole |= (own == patch) & inside(coadd.box, reader.x0, reader.y0, task.size)
    # A row whose own file cannot be used is not patched together from its neighbours.
    failed = np.isin(own, [patch for patch, band in reader.failures if band == k])
    edge = np.flatnonzero(~whole & ~failed)
    band = _Band(coadds, whole, edge, {})
    reader.coverage[whole, k] = 1
    _stitch(reader, k, band)
    for patch, coadd in coadds.items():
        with reader.profile.time("psf"):
            _psf(reader, k, coadd, patch, band)
        _missing_cells(reader, k, coadd, own == patch)
    return band


def _open(reader: UnitReader, k: int, dataset: Dataset, opener: Opener) -> Coadd | None:
    """The open file, or None with the reason noted: a fault here concerns one patch and band only."""
    task = reader.task
    planned = task.boxes[dataset.patch]
    rows = int(touches(planned, reader.x0, reader.y0, task.size).sum())
    sparse = is_sparse(rows, task.size, planned)
    try:
        with reader.profile.time("open sparse" if sparse else "open dense"):
            coadd = opener(dataset, sparse)
        reader.profile.count("open sparse" if sparse else "open dense", rows=rows)
        gap = task.projection.separation(coadd.projection, coadd.box)
        if gap > WCS_TOLERANCE:
            raise UnreadableError(
                f"{coadd.name}: its projection is {gap:.3g} px away from that of tract {task.tract}",
                hint="the file is not on the tract's pixel grid",
                reason=Reason.WRONG_WCS,
            )
    except UnreadableError as err:
        _fail(reader, (dataset.patch, k), err)
        return None
    reader.notes |= dict.fromkeys(coadd.notes)
    return coadd


def _stitch(reader: UnitReader, k: int, band: _Band) -> None:
    """Complete the boxes that leave their patch from all patches that hold a part of them."""
    task, edge = reader.task, band.edge
    own = task.catalog["patch"]
    near = {
        p: edge[touches(c.box, reader.x0[edge], reader.y0[edge], task.size)] for p, c in band.coadds.items()
    }
    if not any(len(rows) for rows in near.values()):
        return
    shape = (len(edge), task.size, task.size)
    band.stamps = {
        "image": np.full(shape, np.nan, np.float32),
        "variance": np.full(shape, np.nan, np.float32),
        "mask": np.full(shape, NO_DATA, np.uint32),
    }
    seams, parts = Seams.empty(len(edge), task.size), np.zeros(len(edge), np.int16)
    for patch, rows in near.items():
        coadd = band.coadds[patch]
        commons = [_stamp(reader, row) & coadd.box for row in rows]
        whole = _union(commons) if rows.size else coadd.box
        dense = not is_sparse(len(rows), task.size, whole)
        planes = {n: reader._read(k, patch, coadd, n, whole) for n in PLANES} if dense and rows.size else {}
        for row, common in zip(rows, commons, strict=True):
            source, box = planes, whole
            if not dense:
                source, box = {n: reader._read(k, patch, coadd, n, common) for n in PLANES}, common
            e = int(np.searchsorted(edge, row))
            out = {n: band.stamps[n][e] for n in PLANES}
            with reader.profile.time("stitch"):
                stitch_row(
                    seams, e, _stamp(reader, row), source, box, out, patch=patch, own=own[row] == patch
                )
            parts[e] += 1
    reader.coverage[edge, k] = seams.filled.mean(axis=(1, 2))
    reader.disagreement[edge, k] = seams.disagreement
    reader.n_patches[edge] = np.maximum(reader.n_patches[edge], parts)


def _union(boxes: list[Box]) -> Box:
    return Box(
        min(b.x0 for b in boxes),
        min(b.y0 for b in boxes),
        max(b.x1 for b in boxes),
        max(b.y1 for b in boxes),
    )


def _psf(reader: UnitReader, k: int, coadd: Coadd, patch: int, band: _Band) -> None:
    """Kernel at the cutout centre, and how much it changes over the cells under the cutout."""
    task = reader.task
    half = task.size // 2
    mine = task.catalog["patch"] == patch
    usable = reader.coverage[:, k] > 0
    # A neighbour's PSF serves only where the own patch gave none.
    other = usable & ~mine & ~band.whole & (reader.psf_key[:, k] < 0)
    rows = np.flatnonzero((mine & usable) | other)
    if not rows.size:
        return
    try:
        psf = coadd.psf_near([_stamp(reader, row) for row in rows]) if len(rows) < 64 else coadd.psf
    except UnreadableError as err:
        raise DamagedError((patch, k), err) from None
    if not isinstance(psf, PsfCells):
        reader.notes[f"{coadd.name}: no PSF: {psf.reason}"] = None
        return
    cells = psf.index(reader.x0[rows] + half, reader.y0[rows] + half)
    columns = psf.kernels.shape[1]
    flat = np.where(cells[:, 0] < 0, -1, cells[:, 0] * columns + cells[:, 1])
    good = flat >= 0
    used = np.unique(flat[good])
    reader.psf_key[rows[good], k] = len(reader.kernels) + np.searchsorted(used, flat[good])
    reader.kernels.extend(psf.kernels[c // columns, c % columns] for c in used)
    reader.psf_jump[rows[good], k] = _jumps(reader, psf, rows[good], flat[good])


def _jumps(
    reader: UnitReader, psf: PsfCells, rows: NDArray[np.int64], cells: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Largest sum|K_cell - K_centre| over the cells under each stamp, computed once per distinct case."""
    size, (ny, nx) = reader.task.size, psf.kernels.shape[:2]
    span = np.stack([
        cells,
        np.clip((reader.y0[rows] - psf.y0) // psf.cell_height, 0, ny - 1),
        np.clip((reader.y0[rows] + size - 1 - psf.y0) // psf.cell_height, 0, ny - 1),
        np.clip((reader.x0[rows] - psf.x0) // psf.cell_width, 0, nx - 1),
        np.clip((reader.x0[rows] + size - 1 - psf.x0) // psf.cell_width, 0, nx - 1),
    ], axis=1)  # fmt: skip
    cases, place = np.unique(span, axis=0, return_inverse=True)
    values = np.zeros(len(cases), np.float32)
    for c, (cell, i0, i1, j0, j1) in enumerate(cases.tolist()):
        if (i0, j0) == (i1, j1):
            continue
        centre = psf.kernels[cell // nx, cell % nx]
        gaps = np.abs(psf.kernels[i0 : i1 + 1, j0 : j1 + 1] - centre).sum(axis=(2, 3))
        values[c] = np.nanmax(gaps)  # the centre's own cell is there: never all NaN
    return values[place.reshape(-1)]


def _missing_cells(reader: UnitReader, k: int, coadd: Coadd, rows: NDArray[np.bool_]) -> None:
    size = reader.task.size
    for cell in coadd.missing:
        for row in np.flatnonzero(rows & touches(cell, reader.x0, reader.y0, size)):
            common = _stamp(reader, row) & cell
            reader.missing[row, k] += common.width * common.height / size**2


def _judge(reader: UnitReader) -> None:
    """Status and reason of each row; the first reason that applies, gravest first."""
    task, n = reader.task, reader.task.rows
    has = reader.coverage > 0
    failed = _failed(reader)
    reader.status, reader.reason = np.full(n, "ok", "U8"), np.full(n, "", "U24")
    level = "rejected" if task.missing_band == "reject" else "partial"
    lost = ~has.any(axis=1)
    faults = (Reason.WRONG_WCS, Reason.WRONG_UNIT, Reason.BAD_PSF, Reason.UNREADABLE_SOURCE)
    for why in faults:
        _verdict(reader, lost & (failed == why.value).any(axis=1), "rejected", why)
    _verdict(reader, lost, "rejected", Reason.NO_DATASET)
    empty = np.where(has, reader.missing >= 1 - 1e-6, True).all(axis=1)
    _verdict(reader, empty, "rejected", Reason.MISSING_CELL)
    for why in faults:
        _verdict(reader, (failed == why.value).any(axis=1), level, why)
    _verdict(reader, ~has.all(axis=1), level, Reason.MISSING_BAND)
    outside = np.where(has, reader.coverage < 1, False).any(axis=1)
    _verdict(reader, outside, "rejected" if task.edge == "reject" else "partial", Reason.OUTSIDE)
    reader.kept = np.flatnonzero(reader.status != "rejected")


def _verdict(reader: UnitReader, rows: NDArray[np.bool_], level: str, why: Reason) -> None:
    """Give rows that are still `ok` a status; a rejection also overrides `partial`."""
    open_ = (reader.status == "ok") | ((reader.status == "partial") & (level == "rejected"))
    reader.status[rows & open_], reader.reason[rows & open_] = level, why.value


def _failed(reader: UnitReader) -> NDArray[np.str_]:
    """`(N, B)` reason for which the own patch's file of a band could not be used."""
    failed = np.full(reader.coverage.shape, "", "U24")
    own = reader.task.catalog["patch"]
    for (patch, k), why in reader.failures.items():
        failed[(own == patch) & (reader.coverage[:, k] == 0), k] = why.value
    return failed


def _pack_kernels(
    kernels: list[NDArray[np.float32]], index: NDArray[np.int32]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Kernels in use, padded about their centre to one odd size; equal kernels stored once."""
    seen: dict[str, int] = {}
    place = np.full(len(kernels) + 1, -1, np.int32)
    for k in np.unique(index[index >= 0]):
        name = hashlib.sha256(np.ascontiguousarray(kernels[k]).tobytes()).hexdigest()
        place[k] = seen.setdefault(f"{kernels[k].shape} {name}", len(seen))
    side = max((s for k in kernels for s in k.shape), default=1)
    packed = np.zeros((len(seen), side, side), np.float32)
    for k, slot in enumerate(place[:-1]):
        if slot >= 0:
            h, w = kernels[k].shape
            y, x = (side - h) // 2, (side - w) // 2
            packed[slot, y : y + h, x : x + w] = kernels[k]
    return packed, place[index]


def _catalog(reader: UnitReader) -> dict[str, NDArray[Any]]:
    task, half = reader.task, reader.task.size // 2
    bits = np.arange(len(task.bands), dtype=np.uint32)
    has = reader.coverage > 0
    own: dict[str, NDArray[Any]] = {
        "tract": np.full(task.rows, task.tract, np.int32),
        "x0": reader.x0.astype(np.int32),
        "y0": reader.y0.astype(np.int32),
        "dx": (task.catalog["x"] - (reader.x0 + half)).astype(np.float32),
        "dy": (task.catalog["y"] - (reader.y0 + half)).astype(np.float32),
        "band_mask": np.left_shift(has.astype(np.uint32), bits).sum(axis=1).astype(np.uint32),
        "coverage": np.where(has, reader.coverage, np.inf).min(axis=1).astype(np.float32),
        "missing_cell": reader.missing.max(axis=1),
        "n_patches": reader.n_patches,
        "seam_difference": reader.disagreement.max(axis=1),
        "psf_jump": reader.psf_jump.max(axis=1),
    }
    first = ("index", "id", "ra", "dec")
    columns = {c: task.catalog[c] for c in first} | {"patch": task.catalog["patch"].astype(np.int32)} | own
    columns |= {c: v for c, v in task.catalog.items() if c not in columns and c not in ("x", "y")}
    return {c: v[reader.kept] for c, v in columns.items()}


def read_attempts[T](
    task: UnitTask, opener: Opener, consume: Callable[[UnitReader], T]
) -> tuple[UnitReader, T]:
    """Open a unit and hand it to `consume`, again without a file each time one turns out to be damaged.

    Returns
    -------
    reader, result
        Of the attempt that went through.
    """
    excluded: dict[tuple[int, int], DamagedError] = {}
    while True:
        try:
            reader = open_unit(task, opener, excluded)
            return reader, consume(reader)
        except DamagedError as err:
            # Each round excludes one more file, so this ends.
            excluded[err.key] = err


def read_batch(task: UnitTask, opener: Opener) -> tuple[UnitReader, CutoutBatch]:
    """A unit in memory: what its shard would hold."""
    from ripple.shard import unpack_cutouts

    def consume(reader: UnitReader) -> bytes:
        return b"".join(reader.draft().chunks({name: reader.chunks(name) for name in PLANES}))

    reader, data = read_attempts(task, opener, consume)
    return reader, unpack_cutouts(data)
