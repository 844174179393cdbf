"""What a model and the models it was fine-tuned from were trained on, and what that makes of a row.

A row is `test` only when its provenance proves it: by the rule that held it out, for the tensors the model
was trained on, or by its place on the sky, for all others. What cannot be decided is `unknown`. Numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ripple.errors import ConfigError, DataError
from ripple.sky.splits import NSIDE, SPLITS, TEST, TRAIN, VALIDATION, sky_cells, split_keys

#: Beside the three splits: nobody can say.
UNKNOWN = 3
VERDICTS: tuple[str, ...] = (*SPLITS, "unknown")
#: Cells of a list in a contract at most; with more, the list names larger cells.
MAX_CELLS = 20_000

By = Literal["sky", "tract", "patch", "column", "id", "unknown"]
Columns = Mapping[str, NDArray[Any]]


class Split(BaseModel):
    """How the rows of a training were held out, and the sky of those that were not.

    `by` is a block of sky (`nside`), a tract or a patch, a column with names of splits (`column`;
    `validation_drawn`: it named no validation rows, some training rows were drawn by id), the id for rows
    without positions, or unknown for a model from elsewhere. `inputs` are digests of the tensors. `guard` is
    the least distance of rows of different splits, arcsec. `train` and `validation` are HEALPix cells
    (nested) of `cells_nside` with such rows; `placed` says that every such row is in them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    by: By = "unknown"
    inputs: tuple[str, ...] = ()
    seed: int = 0
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15)
    nside: int = NSIDE
    column: str = ""
    validation_drawn: bool = False
    guard: float = 0.0
    placed: bool = False
    cells_nside: int = NSIDE
    train: tuple[int, ...] = ()
    validation: tuple[int, ...] = ()


def with_cells(
    split: Split, ra: NDArray[np.float64], dec: NDArray[np.float64], number: NDArray[np.int8]
) -> Split:
    """The split with the sky of its training and validation rows.

    Parameters
    ----------
    split
        Without cells.
    ra, dec
        `(N,)` deg ICRS; NaN for rows without a position.
    number
        `(N,)` 0 train, 1 validation; other rows do not count.
    """
    used = [number == which for which in (TRAIN, VALIDATION)]
    if not np.isfinite(ra[used[0] | used[1]] + dec[used[0] | used[1]]).all():
        return split
    each = [np.unique(sky_cells(ra[rows], dec[rows], split.nside)) for rows in used]
    return listed(split.model_copy(update={"placed": True}), split.nside, each)


def listed(split: Split, nside: int, each: list[NDArray[np.int64]]) -> Split:
    """The split with these training and validation cells of `nside`, or larger ones if they are too many."""
    # The parent of a nested cell is its number over four. Larger cells hold more sky than was used: a few
    # unseen rows count as seen, never the other way round.
    while nside > 1 and max(len(cells) for cells in each) > MAX_CELLS:
        nside, each = nside // 2, [np.unique(cells >> 2) for cells in each]
    train, validation = (tuple(cells.tolist()) for cells in each)
    return split.model_copy(update={"cells_nside": nside, "train": train, "validation": validation})


def merged(first: Split, second: Split) -> Split:
    """One split for two with the same rule: the tensors and the sky of both."""
    nside = min(first.cells_nside, second.cells_nside)
    each = []
    for name in ("train", "validation"):
        parts = [_coarser(getattr(s, name), s.cells_nside, nside) for s in (first, second)]
        each.append(np.unique(np.concatenate(parts)))
    both = {
        "inputs": tuple(dict.fromkeys((*first.inputs, *second.inputs))),
        "placed": first.placed and second.placed,
        "guard": max(first.guard, second.guard),
    }
    return listed(second.model_copy(update=both), nside, each)


def lineage(base: tuple[Split, ...], own: Split) -> tuple[Split, ...]:
    """The splits of the ancestors that cannot be merged with each other; `base` are those of the model
    that a training starts from, its own first.

    Raises
    ------
    ConfigError
        The base held out other rows by the same rule: what it was trained on would count as unseen.
    """
    for split in base:
        if split.by != own.by or split.by in ("column", "unknown"):
            continue
        for name in ("seed", "fractions", *(("nside",) if split.by == "sky" else ())):
            if (theirs := getattr(split, name)) != getattr(own, name):
                option = {"seed": "split-seed"}.get(name, name)
                raise ConfigError(
                    f"--init: its rows were held out with {option} {theirs}, these with "
                    f"{getattr(own, name)}: rows that it was trained on would count as unseen",
                    hint=f"give --{option} " + str(theirs).strip("()").replace(" ", ""),
                )
    found: list[Split] = []
    for split in base:
        same = next((k for k, s in enumerate(found) if same_rule(s, split)), None)
        if same is None:
            found.append(split)
        else:
            found[same] = merged(found[same], split)
    return tuple(found)


def same_rule(first: Split, second: Split) -> bool:
    """Whether both hold out the same rows, whatever the tensors."""
    return _rule(first) == _rule(second)


def _rule(split: Split) -> dict[str, Any]:
    return split.model_dump(include={"by", "seed", "fractions", "nside", "column", "validation_drawn"})


def _coarser(cells: tuple[int, ...], nside: int, to: int) -> NDArray[np.int64]:
    """Nested cells of `nside` as cells of the larger or equal ones of `to`."""
    return np.asarray(cells, np.int64) >> (2 * (nside.bit_length() - to.bit_length()))


# --- rows -------------------------------------------------------------------------------------------


def by_rule(split: Split, columns: Columns) -> NDArray[np.int8]:
    """`(N,)` split of rows by the rule alone: 0 train, 1 validation, 2 test, -1 in none.

    Parameters
    ----------
    split
        `by`, and what belongs to it.
    columns
        Of the catalogue: those that the rule needs.

    Raises
    ------
    DataError
        There is no such column, or it has a value that is no split.
    """
    at: dict[str, Any] = {"fractions": split.fractions, "seed": split.seed}
    match split.by:
        case "sky":
            cells = sky_cells(columns["ra"], columns["dec"], split.nside)
            return np.where(cells < 0, -1, split_keys(cells, **at)).astype(np.int8)
        case "tract" | "patch":
            return split_keys(_field_keys(split.by, columns), **at)
        case "column":
            number = named_split(np.asarray(columns[split.column]), split.column)
            return with_validation(number, columns["id"], **at) if split.validation_drawn else number
        case _:
            return split_keys(columns["id"], **at)


def _field_keys(by: str, columns: Columns) -> NDArray[np.int64]:
    """`(N,)` number of the tract, or of the patch within all tracts."""
    try:
        tract = np.asarray(columns["tract"]).astype(np.int64)
        # Sequential numbers of patches stay far below 2^20: hsc_rings_v1 has 81, DP2 about 400.
        return tract if by == "tract" else (tract << 20) + np.asarray(columns["patch"]).astype(np.int64)
    except (KeyError, ValueError, DataError):
        raise DataError(
            f"--split-by {by}: the tensors have no numbers of tract and patch",
            hint="leave it out to split by blocks of sky",
        ) from None


def by_place(split: Split, columns: Columns, rows: int) -> NDArray[np.int8]:
    """`(N,)` verdict on rows of other tensors by where they lie on the sky."""
    if not split.placed or "ra" not in columns or "dec" not in columns:
        return np.full(rows, UNKNOWN, np.int8)
    ra, dec = (np.asarray(columns[name], np.float64) for name in ("ra", "dec"))
    verdict = _of_cells(split, ra, dec)
    # Eight points around a row that lies just outside: its stamp may share pixels with a training stamp.
    for angle in np.arange(8) * np.pi / 4 if split.guard else ():
        north = split.guard / 3600 * np.sin(angle)
        east = split.guard / 3600 * np.cos(angle) / np.maximum(np.cos(np.radians(dec)), 1e-6)
        near = _of_cells(split, (ra + east) % 360, np.clip(dec + north, -90, 90))
        verdict[(verdict == TEST) & (near != TEST)] = UNKNOWN
    return verdict


def _of_cells(split: Split, ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.int8]:
    cells = sky_cells(ra, dec, split.cells_nside)
    used = [np.isin(cells, getattr(split, name)) for name in ("train", "validation")]
    if split.by == "sky" and split.cells_nside < split.nside:
        # The list names larger cells, each with blocks of all three splits: the rule tells them apart.
        block = by_rule(split, {"ra": ra, "dec": dec})
        return np.select([cells < 0, ~(used[0] | used[1]), block == TRAIN, block == VALIDATION],
                         [UNKNOWN, TEST, TRAIN, VALIDATION], TEST).astype(np.int8)  # fmt: skip
    # By column or id, cells also hold rows that were held out: nobody can say which these are.
    seen = (UNKNOWN, UNKNOWN) if split.by in ("column", "id") else (TRAIN, VALIDATION)
    return np.select([cells < 0, *used], [UNKNOWN, *seen], TEST).astype(np.int8)


def verdict(
    split: Split, digest: str, columns: Columns, rows: int, known: tuple[str, ...] = ()
) -> NDArray[np.int8]:
    """`(N,)` what one training used rows for: 0 train, 1 validation, 2 test, 3 unknown.

    Parameters
    ----------
    split
        Of the training.
    digest
        Of the tensors with the rows.
    columns
        Catalogue of the rows.
    rows
        N.
    known
        Digests of tensors whose ids are those of the training: rows held out by id are recognised there too.
    """
    if split.by == "unknown":
        return np.full(rows, UNKNOWN, np.int8)
    if digest in split.inputs or (split.by == "id" and digest in known):
        number = by_rule(split, columns)
        # -1: left out because it touches held-out sky, but not held out itself.
        return np.where(number < 0, TRAIN, number).astype(np.int8)
    return by_place(split, columns, rows)


def verdicts(splits: tuple[Split, ...], digest: str, columns: Columns, rows: int) -> NDArray[np.int8]:
    """`(N,)` what a model and its ancestors used rows for; arguments as in `verdict`.

    A row that any of them was trained on is `train`; one is `test` only if it is that to all.
    """
    if not splits:
        return np.full(rows, UNKNOWN, np.int8)
    known = tuple(name for split in splits for name in split.inputs)
    each = np.stack([verdict(split, digest, columns, rows, known) for split in splits])
    order = [TRAIN, VALIDATION, UNKNOWN]
    return np.select([(each == value).any(0) for value in order], order, TEST).astype(np.int8)


def named_split(values: NDArray[Any], column: str) -> NDArray[np.int8]:
    """Split numbers of a column with 0, 1, 2 or the names of the splits.

    Raises
    ------
    DataError
        Any other value.
    """
    if values.dtype.kind in "iu":
        if ((values < -1) | (values > 2)).any():
            raise DataError(
                f"column {column!r} has other values than 0 (train), 1 (validation), 2 (test) and -1 (unused)"
            )
        return values.astype(np.int8)
    # Column types of published sets vary: names in several spellings, empty for "in no split".
    words = {"train": TRAIN, "val": VALIDATION, "validation": VALIDATION, "test": TEST, "": -1}
    text = [v.decode() if isinstance(v, bytes) else str(v) for v in values]
    unknown = sorted(set(text) - set(words))
    if unknown:
        raise DataError(f"column {column!r} has {unknown[0]!r}, which is not train, validation or test")
    return np.array([words[v] for v in text], np.int8)


def with_validation(
    split: NDArray[np.int8], keys: NDArray[Any], fractions: tuple[float, float, float], seed: int
) -> NDArray[np.int8]:
    """A split of the data in which a share of the training rows becomes validation, by a hash of the id.

    Parameters
    ----------
    split
        `(N,)` without validation rows; test rows stay.
    keys
        `(N,)` ids.
    fractions
        Of training, validation and test; only the ratio of the first two counts.
    seed
        Another seed draws other rows.
    """
    rest = fractions[0] + fractions[1]
    # No test rows are drawn: the data have theirs. Without both fractions nothing is drawn at all.
    shares = (fractions[0] / rest, fractions[1] / rest, 0.0) if rest else (1.0, 0.0, 0.0)
    drawn = split_keys(keys, fractions=shares, seed=seed)
    return np.where((split == TRAIN) & (drawn == VALIDATION), VALIDATION, split).astype(np.int8)
