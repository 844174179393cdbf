"""Labels from people: grades that `ripple consensus` fused, as labels of the rows that were graded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy
from numpy.typing import NDArray

from ripple.errors import InputError
from ripple.sky.neighbours import chord, unit_vectors
from ripple.storage.candidates import Candidates, read_candidates
from ripple.storage.labels import plain_class, ranked_class

Task = Literal["lens", "classes"]
#: Column of a batch with the probability of a lens, for soft labels.
SOFT = "lens_probability"


@dataclass(frozen=True, slots=True)
class GradedRows:
    """What the grades say about the rows of tensors.

    Parameters
    ----------
    digests
        Of the candidates, one for each directory.
    label
        `(total,)` int64 with the grades' labels where there was none, -1 unknown.
    probability
        `(total,)` float32 of being a lens: the label, or for soft labels the fused probability.
    hidden
        `(total,)`: hidden tests, and rows that share pixels with one. They may not be trained on.
    notes
        Lines for the user to read.
    """

    digests: tuple[str, ...]
    label: NDArray[np.int64]
    probability: NDArray[np.float32]
    hidden: NDArray[np.bool_]
    notes: tuple[str, ...]


def graded_rows(
    directories: Sequence[Path],
    columns: Mapping[str, NDArray[Any]],
    label: NDArray[np.int64],
    class_map: Mapping[str, str],
    *,
    task: Task,
    lens_class: str = "",
    soft: bool = False,
    guard: float,
) -> GradedRows:
    """Labels of rows from candidates, which are found by their id.

    Parameters
    ----------
    directories
        What `ripple consensus` wrote; of an object that is in several, the last one counts.
    columns
        `id`, `ra`, `dec` (deg ICRS, NaN unknown) of the rows, `(total,)` each.
    label, class_map
        `(total,)` labels that the rows have, -1 where there is none, and the names of the labels.
    task, lens_class
        Of the network.
    soft
        Train towards the fused probability. Otherwise a lens is what is at least as probable as not, and
        objects whose 95 % interval holds one half have no label.
    guard
        Rows nearer to a hidden test than this share pixels with it, arcsec.

    Raises
    ------
    InputError
        No candidate is among the rows.
    """
    read = [read_candidates(path) for path in directories]
    place = {name: row for row, name in enumerate(columns["id"].tolist())}
    p, kinds, graded = _grades(read, place, len(label), soft=soft)
    if not graded.any():
        names = ", ".join(map(str, directories))
        raise InputError(
            f"--labels: none of the candidates of {names} is among the rows of the tensors",
            hint="give the tensors whose scores were graded",
        )
    found = _labels(p, kinds, class_map, task, lens_class)
    # What the data say about a row stays: grades add labels, they do not correct them.
    known = label >= 0
    new = np.where(known | ~graded, label, found)
    probability = np.where(known | ~graded, label, p).astype(np.float32)
    added = graded & ~known & (new >= 0)
    hidden = _hidden(read, columns, guard)
    lens = p >= 0.5
    notes = [f"{added.sum():,} labels are from grades ({(added & lens).sum():,} lenses)"]
    if undecided := int((graded & ~known & (new < 0)).sum()):
        why = "nobody can say what they are" if task == "lens" else "no class of the network, or undecided"
        notes.append(f"{undecided:,} graded rows are left out: {why}")
    if kept := int((graded & known).sum()):
        notes.append(f"{kept:,} graded rows had a label before, which stays")
    missing = sum(t.table.num_rows for t in read) - int(graded.sum())
    if missing > 0:
        notes.append(f"{missing:,} candidates are not in these tensors")
    return GradedRows(tuple(t.digest for t in read), new, probability, hidden, tuple(notes))


def _grades(
    read: Sequence[Candidates], place: Mapping[str, int], total: int, *, soft: bool
) -> tuple[NDArray[np.float64], NDArray[np.object_], NDArray[np.bool_]]:
    """Probability of a lens (NaN undecided), what an X is, and whether a row was graded; `(total,)` each."""
    p, kinds, graded = np.full(total, np.nan), np.full(total, "", object), np.zeros(total, bool)
    for candidates in read:
        names = ("id", "probability", "low", "high", "class")
        for name, q, low, high, kind in zip(*(candidates.table[n].to_pylist() for n in names), strict=True):
            row = place.get(name)
            if row is None:
                continue
            undecided = not soft and low < 0.5 < high
            p[row], kinds[row], graded[row] = np.nan if undecided else q, kind or "", True
    return p, kinds, graded


def _labels(
    p: NDArray[np.float64],
    kinds: NDArray[np.object_],
    class_map: Mapping[str, str],
    task: Task,
    lens_class: str,
) -> NDArray[np.int64]:
    """`(total,)` label of each grade; of several classes a rejected object has that of its kind."""
    lens = p >= 0.5
    if task == "lens":
        return np.where(np.isnan(p), -1, lens).astype(np.int64)
    at = ranked_class(class_map, lens_class, name="--labels")[0]
    number = {plain_class(name): int(k) for k, name in class_map.items()}
    other = np.array([number.get(plain_class(kind), -1) if kind else -1 for kind in kinds], np.int64)
    return np.where(np.isnan(p), -1, np.where(lens, at, other)).astype(np.int64)


def _hidden(
    read: Sequence[Candidates], columns: Mapping[str, NDArray[Any]], guard: float
) -> NDArray[np.bool_]:
    """`(total,)`: hidden tests by id, and what lies within `guard` arcsec of one."""
    names = {name for candidates in read for name in candidates.tests["id"].to_pylist()}
    hidden = np.isin(columns["id"], sorted(names)) if names else np.zeros(len(columns["id"]), bool)
    ra, dec = (np.concatenate([c.tests[n].to_numpy() for c in read]) for n in ("ra", "dec"))
    placed = np.isfinite(ra) & np.isfinite(dec)
    rows = np.flatnonzero(np.isfinite(columns["ra"]) & np.isfinite(columns["dec"]))
    if placed.any() and len(rows):
        tree = scipy.spatial.cKDTree(unit_vectors(ra[placed], dec[placed]))
        gap = tree.query(unit_vectors(columns["ra"][rows], columns["dec"][rows]))[0]
        hidden[rows[gap <= chord(guard)]] = True
    return hidden
