"""`ripple report`: a page on which a person grades candidates, or sees the quality of tensors.

    OUT/index.html       self-contained: loads nothing, and runs no script but its own
    OUT/candidates.csv   the ranked table

Everything on the page comes from the given artefact; pictures are made from the cutouts behind it if these
still exist, else from the tensors.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripple.config import Json
from ripple.errors import DataError, InputError, IntegrityError
from ripple.imaging.quality.flags import flag_names
from ripple.learn.evaluation.evaluate import ClassEvaluation, JudgedRecord, LensEvaluation, Stages
from ripple.learn.evaluation.slices import Slice
from ripple.learn.model.calibrate import one_in
from ripple.learn.model.contract import Contract, load_contract
from ripple.report.cards import Card, csv_bytes, data_uri, render
from ripple.report.cutout_pictures import pictures_of_rows
from ripple.runtime.summary import Summary
from ripple.stages.report.config import ReportConfig
from ripple.stages.report.figures import (
    class_note,
    class_tables,
    note,
    numbers,
    plots,
    stage_table,
    tables,
    tiles,
)
from ripple.stages.report.tensors import tensors_page
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.directory import write_directory
from ripple.storage.files import parse_parquet, read_whole, write_new

#: Catalogue columns to show on a card, and their formats; those of `simulate` and `inject`.
FACTS: dict[str, str] = {
    "theta_E": "θ_E {:.2f}″",
    "arc_mag_i": "arc i {:.1f}",
    "arc_sb": "arc {:.1f} mag/″²",
    "arc_snr": "arc S/N {:.0f}",
    "lens_mag_i": "lens i {:.1f}",
    "z_lens": "z_l {:.2f}",
    "z_source": "z_s {:.2f}",
}


class Judgement(TypedDict, total=False):
    """What the page takes from `evaluation.json` of a lens finder."""

    judged: JudgedRecord
    evaluation: LensEvaluation
    stages: Stages
    slices: list[Slice]


def report(config: ReportConfig) -> Summary:
    """Write the page.

    Raises
    ------
    DataError
        The source is none of these, or the tensors that were scored are missing or have changed.
    ConfigError, WriteError
        The output contains something else.
    """
    start = time.perf_counter()
    artefact = open_artefact(config.source)
    kind = artefact.kind
    if kind not in ("scores", "tensors", "cutouts"):
        raise DataError(f"{config.source} contains {kind}", hint="give scores, tensors or cutouts")
    # By its digest, not its path: the same page for the same content.
    facts: Json = {"source": kind, "rows": artefact.rows}

    def build(directory: Path) -> None:
        files = scores_page(artefact, config) if kind == "scores" else tensors_page(artefact, config)
        for name, data in files.items():
            write_new(directory / name, data)
        facts["page"] = f"{len(files['index.html']) / 1e6:.1f} MB"

    fresh = write_directory(config.output, "page", config, {kind: artefact.digest}, build)
    return Summary(
        "report",
        str(config.output / "index.html"),
        facts,
        seconds=time.perf_counter() - start,
        done_before=not fresh,
    )


def scores_page(artefact: Artefact, config: ReportConfig) -> dict[str, bytes]:
    """The files of the page about scores, by name."""
    ranked = ranked_table(artefact)
    attributes = artefact.attributes
    table = with_truth(ranked, attributes.get("lens_labels", [1]))
    shown = chosen_rows(table, config)
    judged = judgement(artefact)
    # The page draws the curves of lens finders; of other tasks it has tables.
    output = attributes.get("output", "lens")
    evaluation = judged.get("evaluation") if output == "lens" else None
    said, by_class = note(evaluation, _split_of(judged), elsewhere=bool(judged)), []
    if output == "classes" and judged:
        found = cast(ClassEvaluation, judged["evaluation"])
        said = class_note(found, _split_of(judged))
        by_class = class_tables(found, [n[2:] for n in table.column_names if n.startswith("p_")])
    model = model_record(artefact, config)
    cards, legend = _cards(artefact, table.take(shown), config)
    # The filters for truth only appear when there is any.
    known = Counter(card.truth for card in cards)
    context = {
        "title": "Strong-lens candidates",
        "digest": artefact.digest[:16],
        "lead": f"{table.num_rows:,} rows scored by {attributes['model']['origin']} in "
        f"{', '.join(attributes['bands'])}.",
        "facts": tiles(table, evaluation),
        "plots": plots(table, evaluation),
        "evaluation_note": said,
        "tables": [
            *by_class,
            *stage_table(judged.get("stages")),
            *tables(artefact, evaluation, judged.get("slices") or [], model),
        ],
        "cards": cards,
        "cards_note": " ".join(
            (_cards_note(len(shown), table.num_rows, config), prevalence_note(attributes), legend)
        ),
        "has_truth": bool(known["lens"] or known["nonlens"]),
        "provenance": _provenance(artefact),
    }
    page = render("scores.html.j2", **context)
    return {"index.html": page, "candidates.csv": csv_bytes(ranked.slice(0, config.csv_rows))}


def prevalence_note(attributes: Mapping[str, Any]) -> str:
    """At which prevalence the probabilities of the page hold."""
    if (prevalence := attributes.get("prevalence")) is not None:
        return f"Probabilities are those where {one_in(prevalence)} is a lens."
    return "The model states no prevalence: the number of a card is its score."


def _split_of(judged: Judgement) -> str:
    """Whether the evaluated rows were proven unseen (`test`) or not (`unknown`)."""
    record = judged.get("judged")
    return str(record.get("split", "test")) if isinstance(record, dict) else "test"


def with_truth(table: pa.Table, lens_labels: Sequence[int]) -> pa.Table:
    """The table with `label` 1 for lenses, 0 for other labelled rows and -1 for the rest."""
    if "label" not in table.column_names:
        return table
    label = numbers(table, "label")  # NaN where it is unknown
    truth = np.where(np.isin(label, lens_labels), 1, np.where(label >= 0, 0, -1))
    return table.set_column(table.column_names.index("label"), "label", pa.array(truth))


def ranked_table(artefact: Artefact) -> pa.Table:
    """`scores.parquet`, verified, best row first.

    Raises
    ------
    IntegrityError
        Its bytes differ from those that were written, or it lacks a column.
    """
    entry = artefact.attributes["sorted"]
    path = artefact.directory / entry["name"]
    data = read_whole(path)
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise IntegrityError(f"{path}: damaged, its SHA-256 is not the recorded one", hint="score again")
    # From here on: scores that another program may have written.
    try:
        table = parse_parquet(data)
    except (pa.ArrowException, OSError, ValueError) as err:
        reason = " ".join(str(err).split())[:200]
        raise IntegrityError(f"{path}: cannot be read as a table: {reason}") from None
    for name in ("rank", "shard", "row"):
        if name not in table.column_names or not pa.types.is_integer(table[name].type):
            raise IntegrityError(f"{path}: no column {name!r} of whole numbers")
        # -1 would be the last row of a shard in numpy.
        if table.num_rows and numbers(table, name).min() < 0:
            raise IntegrityError(f"{path}: column {name!r} has a number below 0")
    if "score" not in table.column_names or not pa.types.is_floating(table["score"].type):
        raise IntegrityError(f"{path}: no column 'score' of numbers")
    return table


def judgement(artefact: Artefact) -> Judgement:
    """`evaluation.json`, verified: `evaluation`, `slices` and more; empty when nothing was evaluated.

    Raises
    ------
    IntegrityError
        Its bytes differ from those that were written, or the manifest does not list it.
    """
    # The manifest has the summary; the file has curves and slices as well.
    if "evaluation" not in artefact.attributes:
        return {}
    try:
        found = json.loads(artefact.read_file("evaluation.json"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise IntegrityError(
            f"{artefact.directory / 'evaluation.json'}: cannot be read as an evaluation", hint="score again"
        )
    return cast(Judgement, found)


def chosen_rows(table: pa.Table, config: ReportConfig) -> NDArray[np.int64]:
    """Positions to show: the best `top`, and the worst-ranked true lenses."""
    best = np.arange(min(config.top, table.num_rows))
    if "label" not in table.column_names or not config.missed:
        return best
    lenses = np.flatnonzero(numbers(table, "label") == 1)
    # Lenses that the model misses teach more about it than those it finds.
    late = lenses[lenses >= len(best)][-config.missed :]
    return np.concatenate([best, late])


# Cards ----------------------------------------------------------------


def _cards(artefact: Artefact, table: pa.Table, config: ReportConfig) -> tuple[list[Card], str]:
    """One card per row of `table`, in its order, and which bands are which colours."""
    sources = tensor_artefacts(artefact)
    drawn = pictures_of_rows(
        sources,
        numbers(table, "shard").astype(np.int64),
        numbers(table, "row").astype(np.int64),
        stretch=config.stretch,
        softening=config.softening,
    )
    ra, dec, label = (numbers(table, name) for name in ("ra", "dec", "label"))
    probability, spread, score = (numbers(table, name) for name in ("probability", "spread", "score"))
    # Models without calibration have a score only.
    probability = np.where(np.isfinite(probability), probability, score)
    ids, qc = table["id"].to_pylist(), _integers(table, "qc")
    kinds = table["class"].to_pylist() if "class" in table.column_names else [None] * table.num_rows
    ranks = numbers(table, "rank").astype(np.int64)
    extra = _facts(table)
    cards = []
    for k in range(table.num_rows):
        truth = {1.0: "lens", 0.0: "nonlens"}.get(float(label[k]), "unknown")  # NaN or -1: unknown
        height, width, _ = drawn.images[k].shape
        cards.append(
            Card(
                id=str(ids[k]),
                rank=int(ranks[k]),
                ra=float(ra[k]),
                dec=float(dec[k]),
                picture=data_uri(drawn.images[k]),
                width=width,
                height=height,
                truth=truth,
                kind=str(kinds[k] or truth),
                flags=tuple(flag_names(qc[k])),
                extra=extra[k],
                probability=float(probability[k]),
                spread=float(spread[k]),
            )
        )
    return cards, drawn.legend


def _integers(table: pa.Table, name: str) -> list[int]:
    """A column as whole numbers, 0 where it is null or missing: flags have 64 bits, too many for a float."""
    if name not in table.column_names:
        return [0] * table.num_rows
    return [int(v or 0) for v in table[name].to_pylist()]


def _facts(table: pa.Table) -> list[tuple[str, ...]]:
    """The facts of each row; columns that are missing or NaN are left out."""
    columns = {name: numbers(table, name) for name in FACTS if name in table.column_names}
    return [
        tuple(FACTS[n].format(v[k]) for n, v in columns.items() if np.isfinite(v[k]))
        for k in range(table.num_rows)
    ]


def tensor_artefacts(artefact: Artefact) -> list[Artefact]:
    """The tensors that were scored, in order, recognised by their digests.

    Raises
    ------
    DataError
        They are missing or have changed.
    """
    if "tensors" not in artefact.inputs:  # a search, or a committee of searches
        kept = artefact.directory if artefact.manifest["verb"] == "search" else Path("SEARCH")
        raise DataError(
            f"{artefact.directory}: a search keeps no pictures of its rows",
            hint=f"search with --keep 100, then use {kept / 'kept' / 'scores'}",
        )
    paths, digests = artefact.manifest["config"]["tensors"], artefact.inputs["tensors"]
    found = []
    # Config and inputs are in the same order; a manifest with unequal lengths is refused when it is read.
    for name, digest in zip(paths, digests, strict=True):
        path = located(Path(name), artefact.directory)
        tensors = open_artefact(path, "tensors")
        if tensors.digest != digest:
            raise DataError(f"{path} has changed since it was scored", hint="score again")
        found.append(tensors)
    return found


def located(path: Path, beside: Path) -> Path:
    """A directory named in a manifest: where it was, or beside the artefact that names it if both moved."""
    moved = beside.parent / path.name
    return moved if not path.exists() and moved.exists() else path


def model_record(artefact: Artefact, config: ReportConfig) -> Contract | None:
    """The contract of the model that gave the scores; None when it is not found.

    Raises
    ------
    IntegrityError
        The contract is damaged.
    """
    try:
        contract = load_contract(config.model or artefact.directory.parent / "model")
    except InputError:
        return None
    # Another model may have taken its place since.
    return contract if contract.digest() == artefact.inputs["model"] else None


def _cards_note(shown: int, rows: int, config: ReportConfig) -> str:
    best = min(config.top, rows)
    late = f", then the {shown - best} true lenses ranked lowest" if shown > best else ""
    return f"The best {best:,} of {rows:,}{late}."


def _provenance(artefact: Artefact) -> list[str]:
    inputs = artefact.inputs
    return [
        f"scores {artefact.digest[:16]}",
        f"model {str(inputs['model'])[:16]}",
        "tensors " + " ".join(str(d)[:16] for d in inputs["tensors"]),
    ]
