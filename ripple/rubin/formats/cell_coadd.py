"""CellCoadd files (Rubin DP2, `lsst.images`), read without that package.

The tree of the file is read with `json` alone: the AST library, which `lsst.images` hands the projection to,
can crash the process on a damaged file. Layout: a primary header that points to the last two HDUs, JSON (the
tree) and INDEX (byte offsets of all HDUs); tile-compressed IMAGE, MASK, VARIANCE with one tile per cell; PSF
with axes `(cell_y, cell_x, y, x)`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.errors import Reason, UnreadableError
from ripple.rubin.coadd import Coadd, NoPsf, Plane, PsfCells, naming
from ripple.rubin.formats.decode import Image, open_image
from ripple.rubin.formats.fits import Hdu, Memory, Ranges, Source, columns, parse_hdu, read_hdu
from ripple.sky.geometry import Box, Tan

HEAD_BYTES = 2880 * 8  # primary header, and header and tile table of the first image, in one fetch
_TABLE_BYTES = 12288  # tile table of a plane of 22x22 cells
_TAIL_BYTES = 1 << 26  # JSON and INDEX of real files have less than a megabyte


def open_cell_coadd(data: bytes | memoryview, *, name: str) -> Coadd:
    """Open a CellCoadd file that lies in memory.

    Parameters
    ----------
    data
        The whole file.
    name
        File, for messages.

    Raises
    ------
    UnreadableError
        When the file is damaged or no CellCoadd; with reason WRONG_UNIT when it is not in nJy, WRONG_WCS
        when its projection is not TAN or its frames disagree.
    """
    memory = Memory(data, name)
    with naming(name):
        return read_cell_coadd(memory, name)


def read_cell_coadd(source: Memory | Ranges, name: str) -> Coadd:
    """A coadd whose header says that it is a CellCoadd; errors as for `open_cell_coadd`."""
    archive = _Archive.read(source, name)
    image_hdu = archive.hdu(archive.text("image", "data", "value", "source"))
    yx0 = archive.integers("image", "yx0")
    image = open_image(image_hdu, source, name=f"{name} IMAGE")
    box = Box(yx0[1], yx0[0], yx0[1] + image.width, yx0[0] + image.height)
    _check_units(archive)
    masks = _open_masks(archive)
    variance = open_image(
        archive.hdu(archive.text("variance", "data", "value", "source")), source, name=f"{name} VARIANCE"
    )
    # One dictionary over all mask HDUs: their bits were made distinct when they were opened.
    planes = {plane: bit for mask in masks for plane, bit in mask.planes.items()}
    for other in (variance, *(mask.image for mask in masks)):
        if other.shape != image.shape:
            raise UnreadableError(f"{name}: damaged, planes of shape {image.shape} and {other.shape}")
    psf = _PsfReader.open(archive)
    return Coadd(
        name=name,
        box=box,
        projection=_projection(image_hdu, yx0),
        band=archive.band(),
        mask_planes=planes,
        read_image=functools.partial(_read_floats, image, box),
        read_variance=functools.partial(_read_floats, variance, box),
        read_mask=functools.partial(_read_mask, masks, box),
        read_psf=psf.read,
        read_digest=source.digest,
        bytes_read=source.bytes_read,
        # The cell grid may reach beyond the image.
        missing=tuple(cell & box for cell in psf.missing if not (cell & box).empty),
        notes=(*archive.notes(), *(i.note for i in (image, variance, *(m.image for m in masks)) if i.note)),
    )


@dataclass(frozen=True, slots=True)
class _Archive:
    """Tree and index of an `lsst.images` FITS file."""

    source: Source
    name: str
    tree: Any
    index: Mapping[tuple[str, int], tuple[int, int, int]]  # (EXTNAME, EXTVER) -> header, data, size

    @classmethod
    def read(cls, source: Source, name: str) -> _Archive:
        primary = read_hdu(source, 0, name=name)
        model = primary.text("DATAMODL")
        if "/cell_coadd-1." not in model:
            raise UnreadableError(
                f"{name}: data model {model.rpartition('/')[2] or 'missing'}, not a cell_coadd of version 1"
            )
        spans = [(primary.integer(f"{k}ADDR"), primary.integer(f"{k}SIZE")) for k in ("JSON", "INDX")]
        # The lengths come from the file: bounded before anything of that size is read.
        if not all(offset > 0 and 0 < size < _TAIL_BYTES for offset, size in spans):
            raise UnreadableError(f"{name}: damaged, JSON and INDEX at {spans}")
        # JSON and INDEX are the last two HDUs, so that a remote file is asked once for both.
        tail, index = (bytes(view) for view in source.many(spans))
        try:
            tree = json.loads(_json_bytes(tail, spans[0][0], name))
        except ValueError as error:
            raise UnreadableError(f"{name}: damaged, the JSON tree cannot be parsed: {error}") from error
        archive = cls(source, name, tree, _read_index(index, spans[1][0], name))
        # `lsst.images` raises it when an older reader would misread the file.
        if archive.get("min_read_version") != 1:
            raise UnreadableError(
                f"{name}: needs a reader of version {archive.get('min_read_version')}, RIPPLe has version 1"
            )
        return archive

    def get(self, *path: str | int) -> Any:
        """What lies at a path of the tree; `UnreadableError` when nothing does."""
        node = self.tree
        for step in path:
            try:
                node = node[step]
            except (KeyError, IndexError, TypeError):
                where = "/".join(map(str, path))
                raise UnreadableError(f"{self.name}: damaged, the tree has no {where}") from None
        return node

    def text(self, *path: str | int) -> str:
        """A string of the tree."""
        found = self.get(*path)
        if not isinstance(found, str):
            raise UnreadableError(f"{self.name}: damaged, {'/'.join(map(str, path))} is {found!r:.40}")
        return found

    def integers(self, *path: str | int) -> tuple[int, int]:
        """A pair of integers of the tree, as list `[y, x]` or as `{"y": ..., "x": ...}` or `i, j`."""
        found = self.get(*path)
        if isinstance(found, dict):
            found = [found.get(k) for k in (("y", "x") if "y" in found else ("i", "j"))]
        if not (isinstance(found, list) and len(found) == 2 and all(type(v) is int for v in found)):
            raise UnreadableError(f"{self.name}: damaged, {'/'.join(map(str, path))} is {found!r:.40}")
        return found[0], found[1]

    def length(self, *path: str | int) -> int:
        """Length of a list of the tree."""
        found = self.get(*path)
        if not isinstance(found, list):
            raise UnreadableError(f"{self.name}: damaged, {'/'.join(map(str, path))} is not a list")
        return len(found)

    def band(self) -> str | None:
        """Band, if the file says so."""
        found = self.get("band")
        return found if isinstance(found, str) else None

    def notes(self) -> tuple[str, ...]:
        """What was done to the pixels before the file was written."""
        if "backgrounds" not in self.tree or self.get("backgrounds", "subtracted") is None:
            return ()
        return (f"{self.name}: background {self.text('backgrounds', 'subtracted')} was subtracted",)

    def box(self, *path: str | int) -> Box:
        """A box of the tree."""
        (y0, y1), (x0, x1) = ((self.get(*path, a, "start"), self.get(*path, a, "stop")) for a in "yx")
        if not all(type(v) is int for v in (y0, y1, x0, x1)):
            raise UnreadableError(f"{self.name}: damaged, no box at {'/'.join(map(str, path))}")
        return Box(x0, y0, x1, y1)

    def hdu(self, reference: str) -> Hdu:
        """The HDU that a reference such as `fits:IMAGE` points to."""
        # `fits:NAME`, `fits:NAME,EXTVER`, and an index in brackets that does not matter for whole HDUs.
        match = re.fullmatch(r"fits:([\w/\-]+)(?:,(\d+))?(?:\[\d+\])?", reference)
        key = (match[1].upper(), int(match[2] or 1)) if match else ("", 0)
        if key not in self.index:
            raise UnreadableError(f"{self.name}: damaged, no HDU {reference!r}")
        start, data, size = self.index[key]
        if not 0 < data - start < _TAIL_BYTES or size < 0:
            raise UnreadableError(f"{self.name}: damaged, HDU {reference} at {start}, data at {data}")
        # The tile table follows the header: one fetch for both.
        view = self.source(start, data - start + min(size, _TABLE_BYTES))[: data - start]
        hdu = parse_hdu(bytes(view), start, name=self.name)
        # A damaged index that points into another plane would give pixels that look right.
        if hdu.extname != key[0]:
            raise UnreadableError(f"{self.name}: damaged, the index points to {hdu.extname} for {key[0]}")
        return hdu


def _json_bytes(blob: bytes, offset: int, name: str) -> bytes:
    """The tree, which is the first row of the JSON table; `blob` is the whole HDU."""
    memory = Memory(blob, name)
    hdu = read_hdu(memory, 0, name=name)
    if hdu.extname != "JSON" or "JSON" not in columns(hdu):
        raise UnreadableError(f"{name}: damaged, no JSON table at byte {offset}")
    start, code = columns(hdu)["JSON"]
    # A variable-length column: its row holds (length, offset) into the heap (FITS 4.0, section 7.3.5).
    kind = np.dtype(">u4" if code[0] == "P" else ">u8")
    length, where = np.frombuffer(memory(hdu.data + start, 2 * kind.itemsize), kind).tolist()
    heap = hdu.data + hdu.integer("THEAP", hdu.integer("NAXIS1") * hdu.integer("NAXIS2"))
    return bytes(memory(heap + where, length))


def _read_index(blob: bytes, offset: int, name: str) -> dict[tuple[str, int], tuple[int, int, int]]:
    """EXTNAME and EXTVER -> header address, data address, data size."""
    memory = Memory(blob, name)
    hdu = read_hdu(memory, 0, name=name)
    found = columns(hdu)
    wanted = ("EXTNAME", "EXTVER", "HDRADDR", "DATADDR", "DATSIZE")
    if hdu.extname != "INDEX" or not all(k in found for k in wanted):
        raise UnreadableError(f"{name}: damaged, no INDEX table at byte {offset}")
    # EXTNAME is as wide as the column after it begins; the other columns have known types.
    following = min((o for o, _ in found.values() if o > found["EXTNAME"][0]), default=0)
    kinds = {"EXTNAME": f"S{following - found['EXTNAME'][0]}", "EXTVER": ">i4"}
    rows: NDArray[Any] = np.frombuffer(
        memory(hdu.data, hdu.integer("NAXIS1") * hdu.integer("NAXIS2")),
        np.dtype(
            {
                "names": wanted,
                "formats": [kinds.get(k, ">i8") for k in wanted],
                "offsets": [found[k][0] for k in wanted],
                "itemsize": hdu.integer("NAXIS1"),
            }
        ),
    )
    table: list[tuple[bytes, int, int, int, int]] = rows.tolist()
    return {
        (extname.decode("ascii", "replace").strip().upper(), version): (start, data, size)
        for extname, version, start, data, size in table
    }


def _check_units(archive: _Archive) -> None:
    for plane, right in (("image", {"nJy"}), ("variance", {"nJy**2", "nJy2", "nJy^2"})):
        data = archive.get(plane, "data")
        unit = data.get("unit") if isinstance(data, dict) else None
        if unit not in right:
            raise UnreadableError(
                f"{archive.name}: the {plane} has {f'unit {unit}' if unit else 'no unit'}; RIPPLe needs nJy",
                hint="give coadds calibrated to nJy",
                reason=Reason.WRONG_UNIT,
            )


def _projection(hdu: Hdu, yx0: tuple[int, int]) -> Tan:
    """TAN projection in the PARENT frame from the header of the image (CRPIX is that of the array)."""
    kind = (hdu.text("CTYPE1"), hdu.text("CTYPE2"), hdu.text("RADESYS", "ICRS"), hdu.number("LONPOLE", 180.0))
    if kind != ("RA---TAN", "DEC--TAN", "ICRS", 180.0):
        raise UnreadableError(f"{hdu.label}: projection {kind} is not TAN in ICRS", reason=Reason.WRONG_WCS)
    # The `A` world coordinates count PARENT pixels, as in afw files; one that differs from the
    # tree would place every cutout beside its target.
    origin = (round(hdu.number("CRVAL2A", yx0[0])), round(hdu.number("CRVAL1A", yx0[1])))
    if origin != yx0:
        raise UnreadableError(
            f"{hdu.label}: the header starts at {origin}, the tree at {yx0}", reason=Reason.WRONG_WCS
        )
    axes = [(i, j) for i in (1, 2) for j in (1, 2)]
    # Either a CD matrix, or PC and CDELT whose product it is (Greisen & Calabretta 2002, section 2.1.2).
    if "CD1_1" in hdu.header:
        a, b, c, d = (hdu.number(f"CD{i}_{j}", 0.0) for i, j in axes)
    else:
        a, b, c, d = (hdu.number(f"PC{i}_{j}", float(i == j)) * hdu.number(f"CDELT{i}", 1.0) for i, j in axes)
    # FITS counts pixels of the array from 1; PARENT pixels count from 0 at the corner of the tract.
    x0, y0 = hdu.number("CRPIX1") - 1.0 + yx0[1], hdu.number("CRPIX2") - 1.0 + yx0[0]
    tan = Tan(hdu.number("CRVAL1"), hdu.number("CRVAL2"), x0, y0, (a, b, c, d))
    if not (np.isfinite([tan.ra0, tan.dec0, x0, y0, a, b, c, d]).all() and tan.pixel_scale > 0):
        raise UnreadableError(f"{hdu.label}: damaged projection {tan}", reason=Reason.WRONG_WCS)
    return tan


def _read_floats(image: Image, frame: Box, box: Box) -> NDArray[np.float32]:
    pixels = image.read(box.y0 - frame.y0, box.y1 - frame.y0, box.x0 - frame.x0, box.x1 - frame.x0)
    return pixels.astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True)
class _Mask:
    """One mask HDU; its planes in the bits they get when all HDUs are put together."""

    image: Image
    planes: dict[str, int]


def _open_masks(archive: _Archive) -> list[_Mask]:
    """Mask HDUs: `lsst.images` writes 31 planes into each."""
    count = archive.length("mask", "data")
    # Two HDUs have 62 planes, and 64 bits hold no third one.
    if not 1 <= count <= 2:
        raise UnreadableError(f"{archive.name}: a mask of {count} HDUs cannot be read")
    masks: list[_Mask] = []
    for k in range(count):
        hdu = archive.hdu(archive.text("mask", "data", k, "source"))
        image = open_image(hdu, archive.source, name=f"{archive.name} MASK")
        if image.dtype.kind not in "iu":
            raise UnreadableError(f"{archive.name}: damaged, a mask of type {image.dtype}")
        planes = {}
        for card in hdu.header:
            if re.fullmatch(r"MSKN\d{4}", card):
                # MSKNnnnn names the plane, MSKMnnnn holds its bit as a power of two.
                bit = hdu.integer("MSKM" + card[4:]).bit_length() - 1
                if not 0 <= bit < 8 * image.dtype.itemsize:
                    raise UnreadableError(
                        f"{archive.name}: damaged, mask plane {hdu.text(card)} has bit {bit}"
                    )
                planes[hdu.text(card)] = bit + 32 * k  # as `_read_mask` puts the HDUs together
        masks.append(_Mask(image, planes))
    return masks


def _read_mask(masks: list[_Mask], frame: Box, box: Box) -> Plane:
    window = (box.y0 - frame.y0, box.y1 - frame.y0, box.x0 - frame.x0, box.x1 - frame.x0)
    if len(masks) == 1:
        return masks[0].image.read(*window)
    low, high = (mask.image.read(*window).astype(np.uint32).astype(np.uint64) for mask in masks)
    return low | (high << np.uint64(32))


@dataclass(frozen=True, slots=True)
class _PsfReader:
    """The PSF of each cell, read for the cells that are wanted."""

    image: Image
    name: str
    grid: Box  # pixels that the cells cover, PARENT
    cell: tuple[int, int]  # height, width of a cell in pixels
    missing: tuple[Box, ...]

    @classmethod
    def open(cls, archive: _Archive) -> _PsfReader:
        bounds = archive.box("psf", "bounds", "bbox")
        whole = archive.box("psf", "bounds", "grid", "bbox")
        height, width = archive.integers("psf", "bounds", "grid", "cell_shape")
        hdu = archive.hdu(archive.text("psf", "array", "source"))
        image = open_image(hdu, archive.source, name=f"{archive.name} PSF")
        cells = (bounds.height // max(height, 1), bounds.width // max(width, 1))
        if height < 1 or width < 1 or len(image.shape) != 4 or image.shape[:2] != cells:
            raise UnreadableError(f"{archive.name}: damaged, PSF of shape {image.shape} for {cells} cells")
        missing = []
        for k in range(archive.length("psf", "bounds", "missing")):
            i, j = archive.integers("psf", "bounds", "missing", k)
            x0, y0 = whole.x0 + j * width, whole.y0 + i * height
            missing.append(Box(x0, y0, x0 + width, y0 + height))
        return cls(image, archive.name, bounds, (height, width), tuple(sorted(missing)))

    def read(self, boxes: Iterable[Box] | None) -> PsfCells | NoPsf:
        """Kernels of the cells that overlap `boxes`, or of all cells; NaN in the others."""
        rows, cols, size, other = self.image.shape
        if size != other or size % 2 == 0:
            return NoPsf(f"kernels of {size}x{other} pixels have no centre pixel")
        wanted = np.ones((rows, cols), bool) if boxes is None else self._cells_under(boxes)
        kernels = np.full((rows, cols, size, size), np.nan, np.float32)  # NaN: cell not read
        flat, flags = kernels.reshape(-1, size, size), wanted.reshape(-1)
        # Wanted cells in a row are read as one window; `edges` are where such runs begin and end.
        edges = np.flatnonzero(np.diff(flags, prepend=False, append=False))
        for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            pixels = self.image.read(first * size, last * size, 0, size)
            flat[first:last] = pixels.reshape(-1, size, size)
        height, width = self.cell
        # A missing cell may hold zeros in the file; NaN says that there is no PSF.
        for cell in self.missing:
            i, j = (cell.y0 - self.grid.y0) // height, (cell.x0 - self.grid.x0) // width
            if 0 <= i < rows and 0 <= j < cols:
                kernels[i, j] = np.nan
        return PsfCells(kernels, self.grid.x0, self.grid.y0, width, height)

    def _cells_under(self, boxes: Iterable[Box]) -> NDArray[np.bool_]:
        """Cells `(rows, columns)` that overlap any of the boxes, for all boxes at once."""
        height, width = self.cell
        grid = self.grid
        corners = np.array([(b.x0, b.y0, b.x1, b.y1) for b in boxes], np.int64).reshape(-1, 4)
        x0, x1 = (np.clip(corners[:, k], grid.x0, grid.x1) - grid.x0 for k in (0, 2))
        y0, y1 = (np.clip(corners[:, k], grid.y0, grid.y1) - grid.y0 for k in (1, 3))
        some = (x0 < x1) & (y0 < y1)  # boxes may lie outside the grid
        i0, i1 = y0[some] // height, (y1[some] - 1) // height + 1
        j0, j1 = x0[some] // width, (x1[some] - 1) // width + 1
        # How many boxes begin and end at each cell; the sums are how many lie over it.
        edges = np.zeros((self.image.shape[0] + 1, self.image.shape[1] + 1), np.int64)
        for i, j, step in ((i0, j0, 1), (i1, j1, 1), (i0, j1, -1), (i1, j0, -1)):
            np.add.at(edges, (i, j), step)
        over: NDArray[np.bool_] = edges.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0
        return over
