"""A unit that has been opened: everything about its rows except the pixels of boxes inside their patch.

Those are streamed afterwards (`planes.py`), so that only one plane per band is in memory at a time, however
many rows there are. A reading never changes: what is learnt about a band is in the reading of that band.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ripple.errors import UnreadableError
from ripple.imaging.batch import MASK_PLANES, CutoutTable
from ripple.rubin.coadd import Coadd
from ripple.sky.geometry import Box
from ripple.stages.fetch.task import UnitTask
from ripple.storage.outcomes import Outcomes
from ripple.storage.shard_writer import Draft, draft_cutouts

NO_DATA = np.uint32(1 << MASK_PLANES.index("NO_DATA"))
#: In the order in which a shard stores them.
PLANES = ("image", "variance", "mask")

#: (patch, band number) of the files found damaged so far, and what is wrong with each.
Damaged = dict[tuple[int, int], UnreadableError]


class DamagedError(Exception):
    """A file turned out to be damaged while its pixels were read: open the unit again without it.

    Parameters
    ----------
    key
        Patch and band number of the file.
    error
        What is wrong with it.
    """

    def __init__(self, key: tuple[int, int], error: UnreadableError) -> None:
        super().__init__(str(error))
        self.key, self.error = key, error


@dataclass(frozen=True, slots=True)
class Psfs:
    """PSFs of one band of a unit.

    Parameters
    ----------
    kernels
        Those in use, `(K, K)` float32 each; equal ones of different files occur twice.
    key
        `(N,)` int32 which of them applies at the centre of each row; -1 for none.
    cells
        `(L, 6)` int32 parts of boxes in other cells: row, first and end pixel in y and in x, kernel.
    jump
        `(N,)` float32 largest sum of |difference| between the PSF at the centre and one in another cell.
    """

    kernels: tuple[NDArray[np.float32], ...]
    key: NDArray[np.int32]
    cells: NDArray[np.int32]
    jump: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BandReading:
    """One band of a unit: its open files, facts about each row, and the boxes that leave their patch.

    Parameters
    ----------
    name
        The band.
    coadds
        Patch -> open file.
    failures
        Patch -> why its file could not be used.
    whole
        `(N,)` rows whose box lies inside the file of their own patch.
    edge
        `(E,)` the other rows, ascending.
    stitched
        Plane -> `(E, S, S)` pixels of these boxes, put together from several patches; empty when there are
        none.
    coverage
        `(N,)` share of the box that has pixels, those from other tracts included.
    resampled
        `(N,)` share of the box that was resampled from other tracts.
    missing
        `(N,)` share of the box in missing cells.
    disagreement
        `(N,)` largest difference between patches that overlap under the box, in units of the noise.
    n_patches
        `(N,)` patches that gave pixels.
    crossed
        UUID -> open file of another tract.
    cross_failures
        (tract, patch) -> why a file of another tract could not be used.
    psfs
        PSFs of the rows.
    notes
        What users should know about how the files were read.
    """

    name: str
    coadds: dict[int, Coadd]
    failures: dict[int, UnreadableError]
    whole: NDArray[np.bool_]
    edge: NDArray[np.int64]
    stitched: dict[str, NDArray[np.generic]]
    coverage: NDArray[np.float32]
    resampled: NDArray[np.float32]
    missing: NDArray[np.float32]
    disagreement: NDArray[np.float32]
    n_patches: NDArray[np.int16]
    crossed: dict[str, Coadd]
    cross_failures: dict[tuple[int, int], UnreadableError]
    psfs: Psfs
    notes: tuple[str, ...]

    @property
    def has(self) -> NDArray[np.bool_]:
        """`(N,)` rows that have this band."""
        # Boxes whose central pixel no file covers have coverage 0, whatever their borders have.
        return np.asarray(self.coverage > 0)


@dataclass(frozen=True, slots=True)
class UnitReading:
    """A unit, opened and judged.

    Parameters
    ----------
    task
        The N requested rows.
    x0, y0
        `(N,)` first pixels of the boxes, PARENT frame.
    bands
        One reading per band, in order.
    outcomes
        Of the N rows.
    table
        The delivered rows: all of their shard except the planes.
    kept
        Row numbers of the delivered rows, ascending.
    """

    task: UnitTask
    x0: NDArray[np.int64]
    y0: NDArray[np.int64]
    bands: tuple[BandReading, ...]
    outcomes: Outcomes
    table: CutoutTable
    kept: NDArray[np.int64]

    def __post_init__(self) -> None:
        # Everything that follows relies on these; a mistake would put pixels into the wrong row.
        assert len(self.bands) == len(self.task.bands)
        assert len(self.outcomes) == len(self.x0) == len(self.y0) == self.task.rows
        assert len(self.table) == len(self.kept)

    # Row numbers here count the rows of the task, not those of the shard.
    def box(self, row: int) -> Box:
        """Pixels of the box of a row, PARENT frame."""
        return box_of(self.x0, self.y0, self.task.size, row)

    def draft(self) -> Draft:
        """The shard without its planes, whose size is known before any pixel is read."""
        shape = (len(self.kept), len(self.bands), self.task.size, self.task.size)
        return draft_cutouts(shape, self.table, {"margin": self.task.margin})

    def digests(self) -> dict[str, str]:
        """Dataset UUID -> SHA-256 of what was read so far, as `Coadd.digest` gives it."""
        # Files that were never opened have no entry: nothing is claimed about them.
        files = {(d.patch, d.band): d.uuid for d in self.task.datasets}
        found = {
            files[patch, band.name]: coadd for band in self.bands for patch, coadd in band.coadds.items()
        }
        crossed = {uuid: coadd for band in self.bands for uuid, coadd in band.crossed.items()}
        return {uuid: coadd.digest for uuid, coadd in (found | crossed).items()}

    def notes(self) -> list[str]:
        """Remarks of the readers, and files that could not be used, each once."""
        found: dict[str, None] = {}  # a set that keeps the order
        for band in self.bands:
            faults = (*band.failures.values(), *band.cross_failures.values())
            found |= dict.fromkeys((*band.notes, *(str(error) for error in faults)))
        return list(found)


def box_of(x0: NDArray[np.int64], y0: NDArray[np.int64], size: int, row: int) -> Box:
    """The box of a row, PARENT frame."""
    x, y = int(x0[row]), int(y0[row])
    return Box(x, y, x + size, y + size)
