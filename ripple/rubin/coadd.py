"""One open coadd file of one (tract, patch, band), whatever its format.

Readers (`formats.cell_coadd` for CellCoadd, `formats.exposure` for afw ExposureF) fill a `Coadd` with
one function per plane; everything above sees boxes of float32 nJy and canonical mask bits only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ripple.errors import DataError, UnreadableError
from ripple.imaging.batch import MASK_PLANES
from ripple.sky.geometry import Box, Tan


@dataclass(frozen=True, slots=True)
class PsfCells:
    """PSF kernels on a regular grid of cells; a constant PSF is one cell as large as the image.

    Parameters
    ----------
    kernels
        `(cy, cx, K, K)` float32, K odd, centre pixel `K // 2`, sum 1; NaN in cells without a PSF (and in
        cells that were not requested when only some were read).
    x0, y0
        First pixel of the first cell, PARENT frame.
    cell_width, cell_height
        Pixels per cell.
    """

    kernels: NDArray[np.float32]
    x0: int
    y0: int
    cell_width: int
    cell_height: int

    def index(self, x: ArrayLike, y: ArrayLike) -> NDArray[np.int32]:
        """Cells of positions.

        Parameters
        ----------
        x, y
            `(N,)` PARENT pixels; a pixel spans -0.5 to 0.5 around its integer.

        Returns
        -------
        index
            `(N, 2)` int32 `(row, column)` of the cell; `(-1, -1)` outside the grid or without a PSF.
        """
        px = np.floor(np.asarray(x, float).reshape(-1) + 0.5)
        py = np.floor(np.asarray(y, float).reshape(-1) + 0.5)
        rows, columns = self.kernels.shape[:2]
        i = (py - self.y0) // self.cell_height
        j = (px - self.x0) // self.cell_width
        inside = (i >= 0) & (i < rows) & (j >= 0) & (j < columns)  # False for NaN
        # -1, -1 indexes the last cell below, harmlessly: such rows keep -1 whatever its kernel.
        cells = np.full((len(px), 2), -1, np.int32)
        cells[inside, 0], cells[inside, 1] = i[inside], j[inside]
        # A cell without PSF is NaN throughout, so its centre pixel tells.
        centre = self.kernels[..., self.kernels.shape[2] // 2, self.kernels.shape[3] // 2]
        cells[inside & ~np.isfinite(centre[cells[:, 0], cells[:, 1]])] = -1
        return cells


@dataclass(frozen=True, slots=True)
class NoPsf:
    """No PSF, and why, e.g. `CoaddPsf needs lsst.afw`."""

    reason: str


Plane = NDArray[np.generic]

#: Up to so many pixels numpy is done before numba is loaded.
_FEW_PIXELS = 1 << 18


@dataclass(frozen=True)
class Coadd:
    """One open coadd file.

    Parameters
    ----------
    name
        File, for messages.
    box
        Pixels of the image, PARENT frame.
    projection
        TAN projection of the tract, PARENT frame.
    band
        Band in the file, if it says so.
    mask_planes
        Bit of each mask plane in this file.
    read_image, read_variance
        Pixels of a box inside `box`: float32 nJy and nJy².
    read_mask
        Pixels of a box inside `box`: any integer type, in the bits of this file.
    read_psf
        PSF of the cells that overlap any of the boxes, or of all cells (None).
    read_digest
        sha256 of the whole file when it was opened whole, else `ranges:` and that of the bytes read so far.
    missing
        Boxes of missing cells.
    notes
        What a user should know about how this file was read.
    bytes_read
        Bytes fetched so far.
    """

    name: str
    box: Box
    projection: Tan
    band: str | None
    mask_planes: dict[str, int]
    read_image: Callable[[Box], NDArray[np.float32]]
    read_variance: Callable[[Box], NDArray[np.float32]]
    read_mask: Callable[[Box], Plane]
    read_psf: Callable[[Iterable[Box] | None], PsfCells | NoPsf]
    read_digest: Callable[[], str]
    bytes_read: Callable[[], int]
    missing: tuple[Box, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def image(self, box: Box | None = None) -> NDArray[np.float32]:
        """Pixels of `box` (all by default), `(H, W)` float32 nJy; NaN and 0 as in the file.

        Raises
        ------
        UnreadableError
            When the bytes are damaged.
        DataError
            When `box` is not inside `self.box`.
        """
        with naming(self.name):
            return self.read_image(self._checked_box(box))

    def variance(self, box: Box | None = None) -> NDArray[np.float32]:
        """Variance of `box` (all by default), `(H, W)` float32 nJy²; errors as for `image`."""
        with naming(self.name):
            return self.read_variance(self._checked_box(box))

    def mask(self, box: Box | None = None, planes: tuple[str, ...] | None = None) -> NDArray[np.uint32]:
        """Mask of `box` (all by default) in canonical bits.

        Parameters
        ----------
        box
            A box inside `self.box`.
        planes
            Names by bit of the result; by default `canonical_planes(self.mask_planes)`. Planes of the file
            that are not named are dropped.

        Returns
        -------
        mask
            `(H, W)` uint32.
        """
        names = canonical_planes(self.mask_planes) if planes is None else planes
        with naming(self.name):
            return renumber(self.read_mask(self._checked_box(box)), self.mask_planes, names)

    @property
    def psf(self) -> PsfCells | NoPsf:
        """PSF of all cells."""
        with naming(self.name):
            return self.read_psf(None)

    def psf_near(self, boxes: Iterable[Box]) -> PsfCells | NoPsf:
        """PSF of at least the cells that overlap `boxes`; the others may be NaN."""
        with naming(self.name):
            return self.read_psf(boxes)

    @property
    def digest(self) -> str:
        """sha256 (hex) of the file, or `ranges:` and that of the bytes read."""
        return self.read_digest()

    def _checked_box(self, box: Box | None) -> Box:
        if box is None:
            return self.box
        if box.empty or not self.box.contains(box):
            raise DataError(f"{self.name}: {box} is not inside its pixels, {self.box}")
        return box


def canonical_planes(*schemas: Iterable[str]) -> tuple[str, ...]:
    """Mask plane names by bit for files with these planes: `MASK_PLANES`, then the others alphabetically.

    Raises
    ------
    DataError
        When more than 32 planes are needed.
    """
    # The same planes give the same numbers whatever file came first.
    others = sorted({name for schema in schemas for name in schema} - set(MASK_PLANES))
    names = (*MASK_PLANES, *others)
    if len(names) > 32:
        raise DataError(f"{len(names)} mask planes do not fit in 32 bits: {', '.join(others)}")
    return names


def renumber(mask: Plane, schema: dict[str, int], planes: tuple[str, ...]) -> NDArray[np.uint32]:
    """Move mask bits from the numbering of a file to the numbering `planes`.

    Parameters
    ----------
    mask
        Integer array.
    schema
        Bit of each plane in `mask`.
    planes
        Names by bit of the result; planes not listed are dropped.

    Returns
    -------
    mask
        uint32, same shape.
    """
    # Planes that move by the same distance move together: one pass over the mask per distance.
    target = {name: bit for bit, name in enumerate(planes)}
    moved: dict[int, int] = {}  # distance to the left -> bits of the file that move so far
    for name, bit in schema.items():
        if name in target:
            moved[target[name] - bit] = moved.get(target[name] - bit, 0) | 1 << bit
    # CellCoadd masks can have up to 62 planes, and a shift needs the room of its type.
    word = np.uint64 if mask.dtype.itemsize == 8 else np.uint32
    # Unsigned, so that >> brings in zeros.
    flat = np.ascontiguousarray(mask).reshape(-1).view(f"u{mask.dtype.itemsize}")
    bits: NDArray[np.unsignedinteger] = flat.astype(word, copy=False)
    out = np.zeros(mask.size, np.uint32)
    if mask.size <= _FEW_PIXELS:
        for left, chosen in moved.items():
            part = bits & word(chosen)
            out |= (part << word(left) if left >= 0 else part >> word(-left)).astype(np.uint32)
        return out.reshape(mask.shape)
    from ripple.rubin.formats import decode_loops

    decode_loops.move_bits(bits, np.array(list(moved.values()), word), np.array(list(moved), np.int64), out)
    return out.reshape(mask.shape)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put the file's name before errors of helpers that know only an HDU."""
    try:
        yield
    except UnreadableError as error:
        if name in error.message:
            raise
        raise UnreadableError(f"{name}: {error.message}", hint=error.hint, reason=error.reason) from error
