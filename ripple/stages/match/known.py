"""Known lenses from a user's table: names apart, duplicates together, cluster candidates left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ripple.sky.neighbours import close_pairs, unit_vectors
from ripple.stages.match.config import MatchConfig
from ripple.stages.plan.tables import read_table
from ripple.stages.plan.targets import DEC_NAMES, RA_NAMES, Columns, from_table, pick

#: Names that are recognised when none is given; the bracketed ones are those of lenscat.
NAME_NAMES = ("name", "names", "id", "object", "system", "objname")
REFERENCE_NAMES = ("ref", "refs", "reference", "references", "bibcode", "paper")
GRADE_NAMES = ("grading", "grade", "class", "quality")
_LENSCAT = ("ra [deg]", "dec [deg]")
#: Between several values of one cell.
JOINT = "|"


@dataclass(frozen=True, slots=True)
class Lens:
    """One known lens: its names, position in deg ICRS, references, grades, and how many rows it has."""

    names: tuple[str, ...]
    ra: float
    dec: float
    references: tuple[str, ...]
    grades: tuple[str, ...]
    rows: int


@dataclass(frozen=True, slots=True)
class Known:
    """Known lenses, and what was done to the table."""

    lenses: tuple[Lens, ...]
    rows: int
    clusters: int
    merged: int
    without_position: int
    notes: tuple[str, ...]


def read_known(config: MatchConfig) -> Known:
    """Read the table of known lenses.

    Raises
    ------
    CatalogueError
        It cannot be read, or has no positions; see `ripple.stages.plan.targets.from_table`.
    """
    table, path = read_table(config.known, id_column=config.name_column), str(config.known)
    data = table.columns
    ra_name = pick(data, config.ra_column, (*RA_NAMES, _LENSCAT[0]), "ra", path)
    dec_name = pick(data, config.dec_column, (*DEC_NAMES, _LENSCAT[1]), "dec", path)
    # Neither ids nor labels: one name may occur twice, and every row is a lens.
    bare = type(table)(data.select([n for n in (ra_name, dec_name) if n]), table.units, table.sha256)
    # lenscat has no units but in its names.
    unit = config.ra_unit or ("deg" if ra_name and ra_name.lower() == _LENSCAT[0] else None)
    columns = Columns(ra=ra_name, dec=dec_name, ra_unit=unit)
    targets = from_table(bare, columns, source={"name": path}, duplicate_radius=0.0)
    words = [
        _words(data, pick(data, given, known, what, path))
        for given, known, what in (
            (config.name_column, NAME_NAMES, "name"), (config.reference_column, REFERENCE_NAMES, "reference"),
            (config.grade_column, GRADE_NAMES, "grade"),
        )
    ]  # fmt: skip
    usable = np.isfinite(targets.ra) & np.isfinite(targets.dec)
    cluster = np.array([is_nscs(names) for names in words[0]], bool) & (not config.keep_nscs)
    rows = np.flatnonzero(usable & ~cluster)
    group = groups(targets.ra[rows], targets.dec[rows], config.merge)
    lenses = _merged(rows, group, targets.ra, targets.dec, words)
    counts = int((usable & cluster).sum()), len(rows) - len(lenses), int((~usable).sum())
    notes = tuple(note for note in targets.notes if "no column looks like id" not in note)
    return Known(tuple(lenses), data.num_rows, *counts, notes)


def is_nscs(names: Sequence[str]) -> bool:
    """Whether all names of a row are those of NSCS: optical clusters of galaxies (Lopes et al. 2004).

    lenscat has 9,952 of them as probable galaxy-scale lenses; a search for these must not count them.
    """
    return bool(names) and all(name.upper().startswith("NSCS") for name in names)


def _words(data: pa.Table, name: str | None) -> list[tuple[str, ...]]:
    """The values of each cell of a column; none where it is empty."""
    if name is None:
        return [()] * data.num_rows
    cells = pc.cast(data[name], pa.string()).to_pylist()
    return [
        tuple(dict.fromkeys(part.strip() for part in (cell or "").split(JOINT) if part.strip()))
        for cell in cells
    ]


def groups(ra: NDArray[np.float64], dec: NDArray[np.float64], radius: float) -> NDArray[np.intp]:
    """Number of the group of each position: those in a chain of steps shorter than `radius` arcsec."""
    count, pairs = len(ra), close_pairs(unit_vectors(ra, dec), radius)
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1])


def _merged(
    rows: NDArray[np.intp], group: NDArray[np.intp], ra: NDArray[np.float64], dec: NDArray[np.float64],
    words: Sequence[Sequence[tuple[str, ...]]],
) -> list[Lens]:  # fmt: skip
    """One lens per group, in the order of the table, at the position of its first row."""
    members: dict[int, list[int]] = {}
    for row, number in zip(rows.tolist(), group.tolist(), strict=True):
        members.setdefault(number, []).append(row)
    out = []
    for mine in members.values():
        names, references, grades = (
            tuple(dict.fromkeys(word for row in mine for word in column[row])) for column in words
        )
        first = mine[0]
        out.append(Lens(names, float(ra[first]), float(dec[first]), references, grades, len(mine)))
    return out
