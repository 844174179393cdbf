"""Evaluate scores on sky the model has not seen: metrics, slices by truth and conditions, and their plot."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NotRequired, TypedDict, final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ripple.learn.config import ScoreConfig
from ripple.learn.evaluation import evaluate, slices
from ripple.learn.evaluation.curves import evaluation_curves
from ripple.learn.evaluation.evaluate import Judgeable, JudgedRecord
from ripple.learn.evaluation.intervals import Measured
from ripple.learn.evaluation.metrics import Confusion
from ripple.learn.model import uncertainty
from ripple.learn.model.calibrate import logit, share_shift, shares_at
from ripple.learn.model.contract import Contract
from ripple.learn.model.provenance import VERDICTS
from ripple.learn.scoring.forward import probabilities
from ripple.sky.splits import NSIDE, sky_cells
from ripple.storage.artefact import Artefact
from ripple.storage.files import write_atomic
from ripple.storage.labels import renumbered
from ripple.storage.shard_reader import map_tensors

#: Columns worth a slice: properties of the arc, of the deflector, and the observing conditions.
SLICED = re.compile(
    r"^(theta_E|arc_(sb|mag|snr)\w*|(lens|deflector)_mag\w*|psf_fwhm\w*|psf_[ugrizy]|\w*depth\w*|noise_\w+)$"
)
MAX_SLICED = 24  # every bin of every slice costs a bootstrap

#: Metrics of arcs brighter than `arc_sb_below`, mag/arcsec^2; as a call, since one is no name of Python.
Visible = TypedDict(
    "Visible", {"arc_sb_below": float, "lenses": int, "auroc": Measured, "tpr_at_fpr_1e-2": Measured}
)


class Doubt(TypedDict):
    """Whether the stated uncertainty holds; `abstained` and `outside` (unlike training) are fractions."""

    alpha: float
    conformal: uncertainty.Coverage
    abstained: float
    outside: float
    risk_coverage: uncertainty.RiskCoverage


class StatedPrevalence(TypedDict):
    """Fractions of lenses: at which the `scores` have their `probability`, and among the `judged` rows, at
    which the calibration is judged.
    """

    scores: float | None
    judged: float | None


class DoubtReport(TypedDict, total=False):
    """No `doubt` for models that do not state their uncertainty, and without labelled rows."""

    prevalence: StatedPrevalence
    doubt: Doubt


@final
class LensReport(DoubtReport):
    """`evaluation.json` of lens finding."""

    judged: JudgedRecord
    evaluation: evaluate.LensEvaluation
    stages: NotRequired[evaluate.Stages]
    slices: list[slices.Slice]
    visible: NotRequired[Visible]


@final
class OtherReport(DoubtReport):
    """`evaluation.json` of classes and regression."""

    judged: JudgedRecord
    evaluation: evaluate.ClassEvaluation | evaluate.TargetsEvaluation


def evaluation_report(
    paths: list[Path],
    artefacts: list[Artefact],
    contract: Contract,
    config: ScoreConfig,
    directory: Path,
    split: Judgeable,
    prevalence: float | None,
) -> LensReport | OtherReport:
    """Evaluate the labelled rows of a split; write `evaluation.json` and, for lens finding, `curves.png`.

    Parameters
    ----------
    paths
        Score tables of the shards.
    artefacts
        The tensors that were scored.
    contract
        Of the model.
    config
        Options of `score`.
    directory
        Where to write.
    split
        Whose rows are evaluated.
    prevalence
        Of lenses, at which the tables have `probability` and `p_<class>`; None where the model states none.

    Returns
    -------
    `judged`, `evaluation`, and for lens finding `slices` and (with `arc_sb` known) `visible`.
    """
    rows = _rows(paths, contract, split)
    judged: JudgedRecord = {"rows": len(rows["score"]), "split": split}
    stated: StatedPrevalence = {"scores": prevalence, "judged": None}
    if contract.output != "regression":
        stated["judged"] = float(np.isin(rows["label"], contract.lens_labels()).mean())
    report: LensReport | OtherReport
    match contract.output:
        case "lens":
            found = _lens_report(rows, contract, config, judged)
            # Not the column `probability`, which is at another prevalence than the sets.
            p = probabilities(contract, logit(rows["score"].astype(np.float64))[:, None])
            if stages := lens_stages(artefacts, contract, split, found["evaluation"]["confusion"]):
                found["stages"] = stages
            report = {**found, **uncertainty_report(p, rows, contract)}
            write_atomic(directory / "curves.png", evaluation_curves(found["evaluation"], found["slices"]))
        case "classes":
            report = _class_report(rows, contract, config, judged, prevalence)
        case "regression":
            each = {t: evaluate.evaluate_regression(*_finite(rows, t)) for t in contract.targets}
            report = {"judged": judged, "evaluation": {"metrics": each}}
    report["prevalence"] = stated
    # NaN is not JSON: better an error here than a file that other readers refuse.
    text = json.dumps(report, indent=1, sort_keys=True, allow_nan=False)
    write_atomic(directory / "evaluation.json", text.encode())
    return report


def _class_report(
    rows: dict[str, NDArray[Any]],
    contract: Contract,
    config: ScoreConfig,
    judged: JudgedRecord,
    prevalence: float | None,
) -> OtherReport:
    """Evaluation of several classes: sets at the shares of the validation rows, the rest at those judged."""
    label = rows["label"]
    names = [f"p_{contract.class_map[str(k)]}" for k in range(len(contract.class_map))]
    own = mixed = np.stack([rows[name].astype(np.float64) for name in names], 1)  # (N, K)
    if prevalence is not None:
        known = contract.class_calibration.shares
        before = shares_at(known, contract.lens_labels(), prevalence)
        own = share_shift(own, before, known)
        mixed = share_shift(mixed, before, np.bincount(label, minlength=len(names)) / len(label))
    return {
        "judged": judged,
        "evaluation": evaluate.evaluate_classes(
            label, mixed, called=rows["predicted"], block=blocks(rows, contract), seed=config.seed
        ),
        **uncertainty_report(own, rows, contract),
    }


def _rows(paths: list[Path], contract: Contract, split: Judgeable) -> dict[str, NDArray[Any]]:
    """Columns of the labelled, accepted rows of a split."""
    parts: dict[str, list[NDArray[Any]]] = {}
    for path in paths:
        table = pq.read_table(path)
        keep = np.asarray(table["split"].to_pylist()) == split
        # Regression is judged by its own targets; a label is not needed.
        if contract.output != "regression":
            label = table["label"].to_numpy()
            # A class that the model never learnt has no right answer.
            keep &= (label >= 0) & (label < max(len(contract.class_map), 2))
        if "accept" in table.column_names:
            keep &= table["accept"].to_numpy() != 0
        for name in table.column_names:
            column = table[name]
            if name not in ("split", "id") and str(column.type) not in ("string", "large_string"):
                parts.setdefault(name, []).append(column.to_numpy()[keep])
    # Only columns that every shard has: the others would not line up with the labels.
    return {name: np.concatenate(columns) for name, columns in parts.items() if len(columns) == len(paths)}


def lens_stages(
    artefacts: list[Artefact], contract: Contract, split: Judgeable, confusion: Confusion
) -> evaluate.Stages | None:
    """What became of the lenses of a split: those that quality control rejected are missed lenses too.

    None where an index has no labels, or not the column that names the splits.
    """
    asked = 0
    lenses = contract.lens_labels()
    for artefact in artefacts:
        index = artefact.index()
        columns = {
            name: index[name].to_numpy() for name in index.column_names if name not in ("status", "reason")
        }
        named = {s.column for s in (contract.split, *contract.ancestors) if s and s.column}
        if "label" not in columns or not named <= columns.keys():
            return None
        # Shards without labels have no map; all others have the same.
        maps = (map_tensors(artefact.verified_path(k)).class_map for k in range(len(artefact.shards)))
        own = next((found for found in maps if found), {})
        label = renumbered(np.nan_to_num(columns["label"], nan=-1), own, contract.class_map)
        verdict = np.array(VERDICTS)[contract.verdicts(artefact.digest, columns, index.num_rows)]
        asked += int((np.isin(label, lenses) & (verdict == split)).sum())
    return evaluate.stages(asked, confusion["tp"] + confusion["fn"], confusion["tp"])


def uncertainty_report(
    probability: NDArray[np.float64], rows: dict[str, NDArray[Any]], contract: Contract
) -> DoubtReport:
    """Does the stated uncertainty hold: coverage of the conformal sets, abstentions, risk against coverage.

    Parameters
    ----------
    probability
        `(N, K)`, those the conformal sets are built from.
    rows
        Columns of the scores.
    contract
        Of the model.
    """
    known = contract.uncertainty
    label = rows["label"].astype(np.int64)
    if known is None or not known.quantiles or not len(label):
        return {}
    sets = uncertainty.conformal_sets(probability, known.quantiles)  # (N, K)
    right = probability.argmax(1) == label
    return {
        "doubt": {
            "alpha": known.alpha,
            "conformal": uncertainty.set_coverage(sets, label),
            "abstained": float(rows["abstain"].mean()),
            "outside": float((rows["ood"] > 1).mean()),  # farther than nearly all validation rows
            "risk_coverage": uncertainty.risk_coverage(probability.max(1), right),
        }
    }


def _finite(rows: dict[str, NDArray[Any]], target: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """True and predicted values of a target, where the truth is known."""
    good = np.isfinite(rows[target])
    return rows[target][good], rows[f"{target}_predicted"][good]


def _lens_report(
    rows: dict[str, NDArray[Any]], contract: Contract, config: ScoreConfig, judged: JudgedRecord
) -> LensReport:
    label, score = rows["label"], rows["score"].astype(np.float64)
    sky = evaluate.Sky(lenses=config.lenses_per_deg2, sources=config.sources_per_deg2)
    # Whatever `probability` is at: calibration is judged at the mix of the judged rows.
    p = contract.calibration.probability(logit(score), prevalence=float((label == 1).mean()))
    found = evaluate.evaluate(
        label,
        score,
        p,
        threshold=contract.threshold,
        block=blocks(rows, contract),
        sky=sky,
        draws=config.draws,
        seed=config.seed,
    )
    chosen = [name for name in sorted(rows) if SLICED.match(name)][:MAX_SLICED]
    columns = {name: rows[name].astype(np.float64) for name in chosen}
    columns["flagged"] = (rows["qc"] != 0).astype(np.float64)
    # There are many slices, and their intervals are wide anyway.
    draws = min(config.draws, 200)
    cut = slices.slices(
        label,
        score,
        columns,
        threshold=contract.threshold,
        block=blocks(rows, contract),
        draws=draws,
        seed=config.seed,
    )
    report: LensReport = {"judged": judged, "evaluation": found, "slices": cut}
    if "arc_sb" in rows:
        # Faint arcs are left out, non-lenses never: `docs/benchmark.md` states the limit beforehand.
        bright = (label == 0) | (rows["arc_sb"] < config.visible_sb)
        if (label[bright] == 1).sum() > 1:
            block = blocks(rows, contract)[bright]
            report["visible"] = visible(label[bright], score[bright], config, block)
    return report


def blocks(rows: dict[str, NDArray[Any]], contract: Contract) -> NDArray[np.int64]:
    """`(N,)` cell of the sky of each row, -1 where it has no position: what the bootstrap draws together."""
    return sky_cells(rows["ra"], rows["dec"], contract.split.nside if contract.split else NSIDE)


def visible(
    label: NDArray[Any],
    score: NDArray[np.float64],
    config: ScoreConfig,
    block: NDArray[np.int64] | None = None,
) -> Visible:
    """AUROC and TPR at FPR 1e-2 of arcs brighter than the visibility limit against all non-lenses."""
    found = evaluate.ranking_estimates(
        label, score, evaluate.Sky(), block=block, draws=config.draws, seed=config.seed
    )
    return {
        "arc_sb_below": config.visible_sb,
        "lenses": int((label == 1).sum()),
        "auroc": found["auroc"],
        "tpr_at_fpr_1e-2": found["tpr_at_fpr_1e-2"],
    }
