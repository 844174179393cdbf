"""The rows that a selection function is made from: what was painted, what became of it, and on which sky."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripple.config import suggest
from ripple.errors import ConfigError, ContractError, DataError
from ripple.stages.completeness.config import CompletenessConfig
from ripple.stages.plan.tables import is_number
from ripple.stages.report.figures import numbers
from ripple.stages.report.report import ranked_table, with_truth
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.candidates import read_candidates

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]
#: Made here where the scores do not have it: Einstein radius over the mean FWHM of the bands of the row.
OVER_SEEING = "theta_E_over_seeing"
#: Columns of the statement, where the scores have them.
STATED = ("arc_snr", OVER_SEEING)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of all scores.

    Parameters
    ----------
    lens
        `(N,)` row was painted, or is labelled as a lens with `--of lenses`.
    other
        `(N,)` row was not painted, and is not labelled as a lens.
    passed
        `(N,)` quality control accepts the row.
    above
        `(N,)` row passed and is above the cut.
    graded
        `(N,)` probability that people gave it, NaN where they did not; None without candidates.
    found
        `(N,)` row is above, and graded as a lens where there are candidates.
    used
        `(N,)` row lies on sky that the model was not trained on, or all with `--all-rows`.
    why
        N reasons of rejection, each a list of names of flags; empty where the row passed.
    kind
        N names of classes; empty where there is none.
    columns
        Name -> `(N,)` values, NaN where unknown.
    z_lens
        `(N,)` redshift of the lens, NaN where unknown.
    ids, pixelless
        Of all lens rows, whatever their sky; ids of rows that have no pixels.
    asked
        Rows of the indices, those without pixels too.
    left_out, notes, cut
        Verdict on its sky -> rows that do not count; warnings; the cut in words.
    """

    lens: Mask
    other: Mask
    passed: Mask
    above: Mask
    graded: Float | None
    found: Mask
    used: Mask
    why: list[list[str]]
    kind: list[str]
    columns: dict[str, Float]
    z_lens: Float
    ids: frozenset[str]
    pixelless: frozenset[str]
    asked: int
    left_out: dict[str, int]
    notes: tuple[str, ...]
    cut: str


def open_scores(config: CompletenessConfig) -> list[Artefact]:
    """The scores, all by one model.

    Raises
    ------
    ConfigError
        None is given, or one twice; or `--top` with several.
    ContractError
        They are of several models.
    DataError
        The model does not look for lenses.
    """
    if not config.scores:
        raise ConfigError("completeness: scores are missing", hint="ripple completeness SCORES -o DIR")
    artefacts = [open_artefact(Path(path), "scores") for path in config.scores]
    if len({a.digest for a in artefacts}) < len(artefacts):
        raise ConfigError("completeness: the same scores are given twice")
    if len({str(a.inputs["model"]) for a in artefacts}) > 1:
        raise ContractError("completeness: the scores are of several models", hint="give those of one")
    if config.top is not None and len(artefacts) > 1:
        raise ConfigError("--top: every directory of scores has ranks of its own", hint="give --threshold")
    for a in artefacts:
        if a.attributes.get("output", "lens") not in ("lens", "classes"):
            raise DataError(f"{a.directory}: its model does not look for lenses")
    return artefacts


def read_rows(artefacts: Sequence[Artefact], config: CompletenessConfig) -> Rows:
    """Rows of scores with everything that the selection function needs.

    Raises
    ------
    DataError
        The scores have no painted rows or not the columns, or no row may be judged.
    ConfigError
        The model has no threshold.
    """
    tables = [with_truth(ranked_table(a), a.attributes.get("lens_labels", [1])) for a in artefacts]
    reasons = [_reasons(a, t) for a, t in zip(artefacts, tables, strict=True)]
    for artefact, table in zip(artefacts, tables, strict=True):
        _refuse_missing(artefact, table, config)
    columns = _columns(tables, (*config.by, *STATED))
    label = _joined(tables, "label")
    lens = (_joined(tables, "injected") if config.of == "injected" else label) == 1
    # The index knows the verdict on a row also where the tensors of others have no column for it.
    passed = np.array([not names for part in reasons for names in part], bool)
    passed &= ~(_joined(tables, "accept") == 0)
    cut, above = _cut(artefacts[0], tables, config)
    split = np.array([v for t in tables for v in _texts(t, "split")])
    used, left_out, notes = judged(split, lens, all_rows=config.all_rows)
    above, graded = passed & above, _grades(artefacts, tables, config)
    ids = np.array([v for t in tables for v in _texts(t, "id")], object)
    return Rows(
        lens=lens,
        other=~lens & (_joined(tables, "injected") != 1) & (label != 1),
        passed=passed,
        above=above,
        graded=graded,
        # NaN, not graded at all, is no lens either.
        found=above if graded is None else above & (graded >= config.grade),
        used=used,
        why=[names for part in reasons for names in part],
        kind=[v for t in tables for v in _texts(t, "class")],
        columns=columns,
        z_lens=_joined(tables, "z_lens"),
        ids=frozenset(ids[lens].tolist()),
        pixelless=frozenset(_pixelless(artefacts)),
        asked=sum(a.manifest["counts"]["asked"] for a in artefacts),
        left_out=left_out,
        notes=notes,
        cut=cut if graded is None else f"{cut}, graded at least {config.grade:g}",
    )


def judged(
    split: NDArray[np.str_], lens: Mask, *, all_rows: bool
) -> tuple[Mask, dict[str, int], tuple[str, ...]]:
    """Which rows may be judged: those on unseen sky, else those of which nobody can say.

    Parameters
    ----------
    split
        `(N,)` train, validation, test or unknown.
    lens
        `(N,)` rows whose completeness is asked for.
    all_rows
        Keep all of them.

    Returns
    -------
    used, left_out, notes
        `(N,)`; verdict -> lens rows left out; warnings.

    Raises
    ------
    DataError
        None may be judged.
    """
    if all_rows:
        seen = int((lens & np.isin(split, ("train", "validation"))).sum())
        said = f"{seen:,} of the rows lie on sky that the model was trained on: completeness is too high"
        return np.ones(len(split), bool), {}, (said,) if seen else ()
    verdict = "test" if (lens & (split == "test")).any() else "unknown"
    used = split == verdict
    left_out = dict(sorted(Counter(split[lens & ~used].tolist()).items()))
    if not (lens & used).any():
        counts = ", ".join(f"{n:,} {name}" for name, n in left_out.items()) or "there are none"
        raise DataError(
            f"completeness: no row lies on sky that the model has not seen: {counts}",
            hint="score rows on other sky, or give --all-rows",
        )
    unsure = "nobody can say whether the model was trained on the sky of these rows"
    return used, left_out, (unsure,) if verdict == "unknown" else ()


def _refuse_missing(artefact: Artefact, table: pa.Table, config: CompletenessConfig) -> None:
    names = table.column_names
    needed = "injected" if config.of == "injected" else "label"
    if needed not in names:
        raise DataError(
            f"{artefact.directory} has no column {needed!r}",
            hint="score the output of ripple inject, or give --of lenses for labelled rows",
        )
    for name in config.by:
        if name not in names and not (name == OVER_SEEING and "theta_E" in names):
            raise DataError(f"{artefact.directory} has no column {name!r}{suggest(name, names)}")
        if name in names and not is_number(table.schema.field(name).type):
            raise DataError(f"{artefact.directory}: column {name!r} has no numbers")


def _columns(tables: Sequence[pa.Table], names: Sequence[str]) -> dict[str, Float]:
    """Columns by name, all NaN where no table has them."""
    out = {name: _joined(tables, name) for name in dict.fromkeys(names)}
    if OVER_SEEING in out and not all(OVER_SEEING in t.column_names for t in tables):
        out[OVER_SEEING] = np.concatenate([over_seeing(t) for t in tables])
    return out


def over_seeing(table: pa.Table) -> Float:
    """Einstein radius over the mean `psf_fwhm_<band>`; NaN where either is unknown."""
    names = [n for n in table.column_names if n.startswith("psf_fwhm_")]
    if not names:
        return np.full(table.num_rows, np.nan)
    widths = np.stack([numbers(table, n) for n in names])
    known = np.isfinite(widths) & (widths > 0)
    count = known.sum(axis=0)
    total = np.where(known, widths, 0.0).sum(axis=0)
    seeing = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return np.asarray(numbers(table, "theta_E") / seeing)


def _cut(artefact: Artefact, tables: Sequence[pa.Table], config: CompletenessConfig) -> tuple[str, Mask]:
    """The cut in words, and which rows are above it."""
    if config.top is not None:
        return f"rank at most {config.top:,}", _joined(tables, "rank") <= config.top
    if config.probability is not None:
        probability = _joined(tables, "probability")
        if not np.isfinite(probability).any():
            raise DataError("--probability: the scores have no probabilities", hint="give --threshold")
        return f"probability at least {config.probability:g}", probability >= config.probability
    threshold = config.threshold
    if threshold is None:
        threshold = artefact.attributes.get("threshold")
        if threshold is None:
            raise ConfigError(
                f"{artefact.directory}: its model states no threshold",
                hint="give --threshold, --probability or --top",
            )
    return f"score at least {threshold:.6g}", _joined(tables, "score") >= float(threshold)


def _grades(
    artefacts: Sequence[Artefact], tables: Sequence[pa.Table], config: CompletenessConfig
) -> Float | None:
    """Probability by people of each row, candidate or hidden test, by its rank; None without candidates.

    Raises
    ------
    ConfigError
        Several scores: candidates are of one.
    ContractError
        The candidates are of other scores.
    """
    if not config.candidates:
        return None
    if len(artefacts) > 1:
        raise ConfigError("--candidates: they are of one directory of scores", hint="give only that one")
    found = read_candidates(Path(config.candidates))
    if found.scores != artefacts[0].digest:
        raise ContractError(f"{config.candidates}: candidates of other scores than {artefacts[0].directory}")
    known: dict[int, float] = {}
    for table in (found.table, found.tests):
        ranks, values = numbers(table, "rank"), numbers(table, "probability")
        known |= {int(r): float(p) for r, p in zip(ranks, values, strict=True) if np.isfinite(r)}
    return np.array([known.get(int(r), np.nan) for r in numbers(tables[0], "rank")], np.float64)


def _pixelless(artefacts: Sequence[Artefact]) -> list[str]:
    """Ids of targets that never became a row."""
    out = []
    for artefact in artefacts:
        index = artefact.index()
        out += [
            v for v, shard in zip(_texts(index, "id"), index["shard"].to_pylist(), strict=True) if shard < 0
        ]
    return out


def _reasons(artefact: Artefact, table: pa.Table) -> list[list[str]]:
    """Why each row was rejected: the names in the detail of the index, else its reason."""
    index = artefact.index()
    known: dict[tuple[int, int], list[str]] = {}
    names = ("shard", "row", "status", "reason", "detail")
    columns = [index[n].to_pylist() if n in index.column_names else [""] * len(index) for n in names]
    for shard, row, status, reason, detail in zip(*columns, strict=True):
        if status == "rejected":
            # `bad_pixels: bad 0.25 in i; no_data: ...`: the words before the colons are flags.
            flags = [part.partition(":")[0].strip() for part in str(detail or "").split(";")]
            named = sorted({flag for flag in flags if flag}) if reason == "quality" else []
            known[(shard, row)] = named or [str(reason or "rejected")]
    at = zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True)
    return [known.get(key, []) for key in at]


def _joined(tables: Sequence[pa.Table], name: str) -> Float:
    return np.concatenate([numbers(table, name) for table in tables])


def _texts(table: pa.Table, name: str) -> list[str]:
    if name not in table.column_names:
        return ["unknown" if name == "split" else ""] * table.num_rows
    return ["" if v is None else str(v) for v in table[name].to_pylist()]
