"""Evaluate a trained network: its uncertainty, and how good it is on the sky it was adapted to."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from ripple.learn.config import TrainConfig
from ripple.learn.data.dataset import TensorDataset
from ripple.learn.data.training_set import TargetSet, TrainingSet, positions
from ripple.learn.evaluation import metrics
from ripple.learn.evaluation.evaluate import LensEvaluation, evaluate
from ripple.learn.evaluation.intervals import Measure, Measured, clopper_pearson, printed
from ripple.learn.model import calibrate, uncertainty
from ripple.learn.model.contract import Contract
from ripple.learn.model.network import Net
from ripple.learn.model.weights import Bank, load_bank, save_bank
from ripple.learn.scoring.forward import mean_outputs, probabilities
from ripple.learn.training.adapt.adaptation import (
    assumed_shares,
    estimated_shares,
    features_of,
    own_statistics,
    target_statistics,
)
from ripple.sky.splits import TEST, TRAIN, VALIDATION, sky_cells

Float = NDArray[np.float64]
#: Methods that, with the right shares given, ranked worse than no adaptation on one of the skies of
#: docs/explanation/adaptation.md, (d), in the mean of the seeds.
UNSAFE = ("teacher", "wdgrl", "adda")


class UnknownClasses(TypedDict):
    """How rows of unknown classes are found: AUROC by score; fractions beyond the limit of the distance, of
    unknown (`ood_found`) and of known rows (`ood_false`).
    """

    rows: int
    auroc: dict[str, float]
    ood_found: float
    ood_false: float


class ClassShares(TypedDict, total=False):
    """Class shares of the target, assumed and estimated."""

    assumed_shares: list[float]
    estimated_shares: list[float]


class LabelledRecord(TypedDict, total=False):
    """How good a network is on labelled rows of the target; empty when they cannot be ranked."""

    accuracy: Measure
    evaluation: LensEvaluation
    auroc: Measured
    ece: Measured
    conformal: uncertainty.Coverage
    risk_coverage: uncertainty.RiskCoverage
    unknown: UnknownClasses


class TargetRecord(ClassShares, LabelledRecord):
    """What is known of the target: how the network was adapted, and to how many rows.

    `warning` is empty when there is nothing to say.
    """

    method: str
    rows: int
    warning: str


def both_domains(
    nets: list[Net], data: TrainingSet, config: TrainConfig, device: torch.device
) -> tuple[list[Net], list[Net]]:
    """Adapted networks with the batch statistics of the target, which are kept, and with those of the source.

    Source rows are evaluated and calibrated with their own statistics, so that an answer means the same in
    both domains.
    """
    source = data.rows(TRAIN)
    return (
        [target_statistics(net, data, config, device) for net in nets],
        [own_statistics(net, data.dataset, source, device) for net in nets],
    )


def with_uncertainty(
    contract: Contract,
    data: TrainingSet,
    outputs: Float,
    nets: list[Net],
    device: torch.device,
    directory: Path,
) -> Contract:
    """The contract with conformal limits and the scale of distances; writes the bank of features.

    Parameters
    ----------
    contract
        With its calibration.
    data
        Rows and their split.
    outputs
        `(n, outputs)` mean outputs of the validation rows.
    nets
        The members.
    device
        Where they are.
    directory
        Of the model.
    """
    known, held = data.rows(TRAIN), data.rows(VALIDATION)
    # A bank of all rows would make a model as large as its tensors. Always the same choice: seed 0.
    if len(known) > uncertainty.BANK:
        known = np.sort(np.random.default_rng(0).permutation(known)[: uncertainty.BANK])
    features = torch.from_numpy(member_features(nets, data.dataset, known, device))
    labels = data.labels
    bank = Bank(features, torch.from_numpy(known), torch.from_numpy(labels[known].astype(np.int64)))
    # The limits come from validation rows: training rows would find themselves in the bank, at distance 0.
    latent = member_features(nets, data.dataset, held, device)  # (E, n, F)
    limit = uncertainty.ood_limit(uncertainty.neighbour_distance(features.numpy(), latent))
    limits: tuple[float, ...] = ()
    if contract.output != "regression":
        limits = uncertainty.conformal_quantiles(probabilities(contract, outputs), labels[held])
    fitted = uncertainty.Uncertainty(quantiles=limits, ood_limit=limit, **save_bank(directory, bank))
    return contract.model_copy(update={"uncertainty": fitted})


def judge_target(
    contract: Contract, data: TrainingSet, nets: list[Net], config: TrainConfig, device: torch.device
) -> tuple[Contract, TargetRecord]:
    """Record what was assumed about the target and, if it has labels, how good the network is there.

    Returns
    -------
    The contract with `training["adaptation"]`, and the full record.
    """
    assert data.target is not None
    target = data.target
    record: TargetRecord = {
        "method": config.adapt,
        "rows": int((target.split == TRAIN).sum()),
        "warning": "; ".join(_doubts(config, data)),
    }
    rows = target.rows(TEST)  # never those whose features were aligned
    if len(rows):
        outputs = mean_outputs(nets, target.dataset, rows, device)
        if contract.output != "regression":
            shares = _class_shares(contract, data, config, probabilities(contract, outputs))
            judged = _judge_labelled(contract, target, rows, outputs, nets, config, device)
            record = {**record, **shares, **judged}
    # The full evaluation goes to evaluation.json; the contract keeps the numbers alone.
    kept = {k: v for k, v in record.items() if k != "evaluation"}
    training = {**contract.training, "adaptation": kept}
    return contract.model_copy(update={"training": training}), record


def member_features(
    nets: list[Net], dataset: TensorDataset, rows: NDArray[np.int64], device: torch.device
) -> NDArray[np.float32]:
    """Features `(E, n, F)` of rows by each of E members."""
    return np.stack([features_of(net, dataset, rows, device).cpu().numpy() for net in nets])


def _class_shares(contract: Contract, data: TrainingSet, config: TrainConfig, p: Float) -> ClassShares:
    """Class shares of the target: those assumed, and those that the answers suggest."""
    label = data.labels[data.rows(VALIDATION)]
    # The probabilities were calibrated on validation rows, so these are their shares.
    before = np.bincount(label, minlength=p.shape[1]) / len(label)
    estimated = estimated_shares(p, np.maximum(before, 1e-6))
    assumed = assumed_shares(data, config).double().numpy()
    return {"assumed_shares": assumed.tolist(), "estimated_shares": estimated.tolist()}


def _doubts(config: TrainConfig, data: TrainingSet) -> list[str]:
    """What to say of an adapted network that nobody has checked with labels."""
    found = []
    # A few labels of the target, which `supervised` has, do not say how many lenses there are either.
    if config.task == "lens" and config.target_prevalence is None:
        # No comparison with the estimate: it follows what was assumed, right or wrong.
        share = float(assumed_shares(data, config)[1])
        found.append(
            f"{share:.0%} of the target are taken for lenses, as of the training rows, and nothing here "
            "can tell: --target-prevalence says how many there are"
        )
    if config.adapt in UNSAFE:
        found.append(
            f"{config.adapt} can lose the task and nothing shows it: compare with a few labelled rows"
        )
    return found


def _judge_labelled(
    contract: Contract,
    target: TargetSet,
    rows: NDArray[np.int64],
    outputs: Float,
    nets: list[Net],
    config: TrainConfig,
    device: torch.device,
) -> LabelledRecord:
    """Accuracy, AUROC, calibration, coverage and unknown classes, by the labels of the target's test sky."""
    label = target.labels[rows]
    p = probabilities(contract, outputs)
    # Labels beyond the classes of the source are classes it never saw: they are judged by `_unknown_classes`.
    known = (label >= 0) & (label < p.shape[1])
    if len(np.unique(label[known])) < 2:  # no labels, or a single class: nothing can be ranked
        return {}
    y, q = label[known], p[known]
    right = q.argmax(1) == y
    found: LabelledRecord = {"accuracy": clopper_pearson(right.sum(), len(y)).as_dict()}
    if contract.output == "lens":
        # At the operating point of the source: nothing about the target's labels may move it.
        found["evaluation"] = evaluate(
            y,
            calibrate.sigmoid(outputs[known, 0]),
            contract.calibration.probability(outputs[known, 0], prevalence=float(y.mean())),
            threshold=contract.threshold,
            block=sky_cells(*positions(target.dataset), config.nside)[rows[known]],
            draws=config.draws,
            seed=config.seed,
        )
        found["auroc"] = found["evaluation"]["metrics"]["auroc"]
        found["ece"] = found["evaluation"]["metrics"]["ece"]
    limits = contract.uncertainty
    if limits is not None:
        sets = uncertainty.conformal_sets(q, limits.quantiles)
        found["conformal"] = uncertainty.set_coverage(sets, y)
    found["risk_coverage"] = uncertainty.risk_coverage(q.max(1), right)
    if not known.all() and limits is not None:
        found["unknown"] = _unknown_classes(contract, target, rows, outputs, known, nets, config, device)
    return found


def _unknown_classes(
    contract: Contract,
    target: TargetSet,
    rows: NDArray[np.int64],
    outputs: Float,
    known: NDArray[np.bool_],
    nets: list[Net],
    config: TrainConfig,
    device: torch.device,
) -> UnknownClasses:
    """How well rows of classes that the source does not have are found: by distance, entropy, energy."""
    bank, limits = load_bank(config.output, contract), contract.uncertainty
    assert bank is not None
    assert limits is not None
    latent = member_features(nets, target.dataset, rows, device)  # (E, n, F)
    p = probabilities(contract, outputs)
    # A lens finder has one logit z: energy needs that of the other class too, which is 0.
    logits = outputs if outputs.shape[1] > 1 else np.concatenate([0 * outputs, outputs], 1)
    scores = {
        "distance": uncertainty.neighbour_distance(bank.features.numpy(), latent, limits.neighbour),
        "entropy": -(p * np.log(np.maximum(p, 1e-12))).sum(1),
        "energy": uncertainty.energy(logits),
    }
    # Here "positive" means a class that the source does not have; all three scores rise with strangeness.
    unknown = (~known).astype(np.int64)
    aurocs = {name: metrics.auroc(metrics.curve(unknown, value)) for name, value in scores.items()}
    outside = scores["distance"] > limits.ood_limit
    return {
        "rows": int(unknown.sum()),
        "auroc": aurocs,
        "ood_found": float(outside[~known].mean()),
        "ood_false": float(outside[known].mean()),
    }


def target_facts(contract: Contract) -> dict[str, str]:
    """The lines of the summary about the target."""
    record = contract.training.get("adaptation")
    if record is None:
        return {}
    facts = {"adapted by": f"{record['method']} to {record['rows']} rows"}
    for name in ("auroc", "accuracy"):
        if name in record:
            facts[f"{name} (target)"] = printed(record[name])
    if record.get("warning"):
        facts["warning"] = record["warning"]
    return facts
