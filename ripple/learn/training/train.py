"""`ripple train`: tensors to a lens finder whose numbers hold on sky it has not seen.

Rows are divided by block of sky, shortcuts are tried first, every member of the ensemble is trained and keeps
its best epoch, then scores are calibrated on the validation sky and judged on the test sky, once.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ripple.config import Json
from ripple.errors import (
    ConfigError,
    DataError,
    IntegrityError,
    Interrupted,
    OtherInputsError,
    RippleError,
    WriteError,
)
from ripple.learn.config import TrainConfig
from ripple.learn.data.psf_input import broadened, seen_widths
from ripple.learn.data.training_set import TrainingSet, training_set
from ripple.learn.evaluation import evaluate, metrics, shortcuts
from ripple.learn.evaluation.curves import training_curves
from ripple.learn.evaluation.intervals import printed
from ripple.learn.model import calibrate
from ripple.learn.model.architecture import Architecture
from ripple.learn.model.contract import (
    CONTRACT,
    MAX_CONTRACT_BYTES,
    ArchitectureRecord,
    Contract,
    Judged,
    Member,
    load_contract,
    require_weights,
)
from ripple.learn.model.device import choose_device
from ripple.learn.model.network import Net, build, require_known
from ripple.learn.model.weights import BESIDE, member_file, save_model
from ripple.learn.scoring.forward import mean_outputs
from ripple.learn.training import judge as judging
from ripple.learn.training.loop import Ranks, fit, process_group, standardisation
from ripple.learn.training.state import Fitted
from ripple.runtime.log import say
from ripple.runtime.signals import Stop, stoppable
from ripple.runtime.summary import Summary
from ripple.sky.splits import TEST, TRAIN, VALIDATION
from ripple.storage.checksums import check_size
from ripple.storage.files import make_directory, read_sealed, remove_temporaries, write_atomic, write_sealed
from ripple.storage.lock import lock, unlock
from ripple.storage.manifest import MANIFEST, first_difference, software

WORK = ".train"


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What a model depends on besides the software: only a run with the same may be resumed.

    Parameters
    ----------
    config
        Options of `train` that change the model, as JSON values.
    inputs
        Digests of the tensors, then of those of the target, of the model of `--init`, and of the candidates
        of `--labels`.
    """

    config: Json
    inputs: tuple[str, ...]

    def record(self) -> dict[str, object]:
        """As it stands in `run.json` and in the contract."""
        return {"config": self.config, "inputs": list(self.inputs)}


def train(config: TrainConfig) -> Summary:
    """Train, or resume, or find finished.

    Raises
    ------
    ConfigError
        The output was made with another configuration or other tensors; names the first difference. With
        `strict`: a shortcut came too near.
    DataError
        Rows that cannot be learnt from.
    ContractError
        Tensor artefacts that disagree.
    Interrupted
        By a signal; the same command resumes.
    """
    began = time.perf_counter()
    config = with_network_of_init(config)
    device = choose_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.tensorboard:
        _summary_writer()  # an absent package is better known before hours of training
    data = training_set(config)
    # The base by its digest: a model that was trained again at the same place is another one.
    base = (load_contract(config.init).digest(),) if config.init else ()
    inputs = (*data.digests, *(data.target.digests if data.target else ()), *base, *data.grades)
    identity = RunIdentity(config.canonical(), inputs)
    if (config.output / MANIFEST).exists():
        summary = _finished(config, load_contract(config.output), identity)
        # Its writer may have been killed just before it did this; one that lives does it too.
        shutil.rmtree(config.output / WORK, ignore_errors=True)
        return summary
    with process_group(device) as ranks, _output(config, identity, ranks), stoppable() as stop:
        try:
            contract = _train(config, data, identity, device, ranks, stop)
        except (RippleError, ValueError) as err:
            # A shard that rotted while it was mapped gives numbers that are not finite: blame the shard.
            if not isinstance(err, Interrupted | IntegrityError):
                _still_whole(data, config.output / WORK)
            raise
    return _summary(config, contract, time.perf_counter() - began)


def with_network_of_init(config: TrainConfig) -> TrainConfig:
    """The options with network, stem, width and PSF input of the model in `init`, where they were not given.

    Raises
    ------
    ConfigError
        They were given, and differ.
    """
    if config.init is None:
        return config
    base = load_contract(config.init)
    require_weights(base, f"--init {config.init}", "which cannot be trained further")
    theirs = base.architecture
    have = {"network": theirs.name, "stem": theirs.stem, "width": theirs.width, "psf_input": base.psf_input}
    for name, value in have.items():
        used = name != "width" or theirs.name == "d4cnn"  # no other network has a width
        if used and name in config.model_fields_set and getattr(config, name) != value:
            option = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{option} {getattr(config, name)}, but {config.init} has {value}",
                hint=f"leave out {option}: --init takes it from the model",
            )
    return config.model_copy(update=have)


@contextmanager
def _output(config: TrainConfig, identity: RunIdentity, ranks: Ranks) -> Iterator[None]:
    """The output and its lock, which the first rank takes for all; the others wait until it is ready."""
    if not ranks.first:
        ranks.wait()
        yield
        return
    _claim(config.output)
    handle = lock(config.output)
    try:
        remove_temporaries(config.output)
        work = config.output / WORK
        if work.is_symlink():
            raise WriteError(f"{work} is a symbolic link", hint="remove it")
        make_directory(work)
        _same_run(work / "run.json", identity)
        ranks.wait()
        yield
    finally:
        unlock(handle)


def _train(
    config: TrainConfig,
    data: TrainingSet,
    identity: RunIdentity,
    device: torch.device,
    ranks: Ranks,
    stop: Stop,
) -> Contract:
    work, arch = config.output / WORK, architecture(config, data)
    require_known(arch.name)  # before the gates, which take minutes
    report = _gates(config, data, work) if config.task == "lens" and ranks.first else None
    members = [
        fit(data, config, arch, work, seed=config.seed + k, device=device, ranks=ranks, stop=stop)
        for k in range(config.seeds)
    ]
    if not ranks.first:
        return _contract(config, data, arch, members, identity)
    nets = [_net(arch, member, device) for member in members]
    adapted = nets
    if data.target is not None:
        adapted, nets = judging.both_domains(nets, data, config, device)
        members = [replace(m, state=n.state_dict()) for m, n in zip(members, adapted, strict=True)]
    contract = _contract(config, data, arch, members, identity)
    outputs = {k: mean_outputs(nets, data.dataset, data.rows(k), device) for k in (VALIDATION, TEST)}
    contract, evaluation = judge(contract.model_copy(update={"gates": report or {}}), data, outputs, config)
    contract = judging.with_uncertainty(contract, data, outputs[VALIDATION], nets, device, config.output)
    found = None
    if data.target is not None:
        contract, found = judging.judge_target(contract, data, adapted, config, device)
    _still_whole(data, work)
    _write(config, contract, members, evaluation, found)
    shutil.rmtree(work, ignore_errors=True)  # the model is whole without it
    return contract


def _still_whole(data: TrainingSet, work: Path) -> None:
    """Refuse a model whose shards changed while it was trained; its state is not fit for a resume either."""
    artefacts = [*data.dataset.artefacts, *(data.target.dataset.artefacts if data.target else ())]
    try:
        for artefact in artefacts:
            artefact.recheck()
    except IntegrityError as err:
        shutil.rmtree(work)
        raise IntegrityError(f"{err.message}; no model was written", hint=err.hint) from None


def architecture(config: TrainConfig, data: TrainingSet) -> Architecture:
    """The network that config and data ask for.

    Raises
    ------
    DataError
        Images that are not square, or classes without names.
    """
    h, w = data.facts.size
    if h != w:
        raise DataError(f"images of {h}x{w} pixels", hint="networks take square stamps")
    outputs = {"lens": 1, "classes": len(data.class_map), "regression": len(config.targets)}[config.task]
    if outputs == 0 or (config.task == "classes" and int(data.labels.max()) >= outputs):
        raise DataError(
            f"labels up to {int(data.labels.max())} and a class map {data.class_map}", hint="name every class"
        )
    record = ArchitectureRecord(
        name=config.network,
        bands=len(data.facts.bands) * (1 if config.psf_input == "none" else 2),
        size=h,
        outputs=outputs,
        stem=config.stem,
        width=config.width,
        dropout=config.dropout,
    )
    return record.architecture()


def _claim(directory: Path) -> None:
    """Make the output directory, or refuse one that holds other things."""
    make_directory(directory)
    strangers = [p.name for p in sorted(directory.iterdir()) if not p.name.startswith(".")]
    known = {"model.safetensors", CONTRACT, *BESIDE}
    if strangers and not (directory / WORK).is_dir() and not set(strangers) <= known:
        raise WriteError(f"{directory} holds {strangers[0]}, which is not ours", hint="give a new directory")


def _same_run(path: Path, identity: RunIdentity) -> None:
    """Refuse to resume with another config, other tensors or other software."""
    run = json.loads(json.dumps({**identity.record(), "software": software()}))
    if path.exists():
        found = first_difference(_sealed_json(path), run, "train")
        if found:
            raise _other(found)(
                f"{path.parent.parent} was begun otherwise: {found}", hint="give another output"
            )
    write_sealed(path, json.dumps(run, sort_keys=True).encode())


def _sealed_json(path: Path) -> Any:
    """What an earlier run noted beside its state."""
    try:
        return json.loads(read_sealed(path, MAX_CONTRACT_BYTES))
    except IntegrityError as err:
        raise IntegrityError(err.message, hint=f"remove {path.parent} to train again") from None


def _other(difference: str) -> type[ConfigError]:
    return OtherInputsError if difference.startswith("train.inputs") else ConfigError


def _finished(config: TrainConfig, contract: Contract, identity: RunIdentity) -> Summary:
    new = json.loads(json.dumps(identity.record()))
    found = first_difference({key: contract.training.get(key) for key in new}, new, "train")
    if found:
        raise _other(found)(f"{config.output} was made otherwise: {found}", hint="give another output")
    for member in contract.members:
        check_size(config.output / member.file, member.bytes)
    return _summary(config, contract, 0.0, done=True)


def _gates(config: TrainConfig, data: TrainingSet, work: Path) -> shortcuts.GateReport:
    """The gates' report, kept over a resume."""
    path = work / "gates.json"
    if not path.exists():
        found = shortcuts.run_gates(
            data,
            limit=config.gate_limit,
            rows=config.gate_rows,
            draws=min(config.draws, 200),
            seed=config.seed,
        )
        write_sealed(path, json.dumps(found).encode())
    report: shortcuts.GateReport = _sealed_json(path)
    twins = report["near_duplicates"]
    if twins["pixels"]:
        raise DataError(
            f"leakage between splits: {twins['pixels']} pairs of rows show the same pixels"
            f" ({', '.join(twins['pairs'])})",
            hint="remove the copies, or give them one position or one split",
        )
    for name, gate in report["shortcuts"].items():
        line = f"gate {name}: AUROC {printed(gate['auroc'], 3)} {gate['verdict']}"
        say(line)
    return report


def _net(arch: Architecture, member: Fitted, device: torch.device) -> Net:
    net = build(arch)
    net.load_state_dict(member.state)
    return net.to(device).eval()


def _contract(
    config: TrainConfig, data: TrainingSet, arch: Architecture, members: list[Fitted], identity: RunIdentity
) -> Contract:
    """The contract before it was judged."""
    # An adapted network is for its target: that is the data its contract admits.
    facts, dataset = (data.target or data).facts, (data.target or data).dataset
    noise_correlation = dataset.artefacts[0].attributes.get("noise_correlation")
    record = ArchitectureRecord(**{name: getattr(arch, name) for name in ArchitectureRecord.model_fields})
    mean, std = standardisation(data, config.targets)
    return Contract(
        architecture=record,
        bands=facts.bands,
        psf_input=config.psf_input,
        psf_seen=_psfs_seen(config, data),
        size=facts.size[0],
        pixel_scale=facts.pixel_scale,
        unit=facts.unit,
        psf_fwhm=None if np.isnan(facts.psf_fwhm) else facts.psf_fwhm,
        normalization=facts.normalization,
        pixels=facts.pixels,
        noise_correlation=noise_correlation,
        class_map=data.class_map,
        lens_class=config.lens_class,
        output=config.task,
        targets=config.targets,
        target_mean=tuple(mean),
        target_std=tuple(std),
        split=data.held,
        ancestors=data.ancestors,
        licence=config.licence,
        members=tuple(
            Member(file=member_file(k), bytes=0, sha256="", seed=config.seed + k, epoch=m.progress.best_epoch)
            for k, m in enumerate(members)
        ),
        training={
            **identity.record(),
            "rows": data.counts(),
            "notes": list(data.notes),
            **({"grades": list(data.grades)} if data.grades else {}),
            "software": software(),
        },
    )


def _psfs_seen(config: TrainConfig, data: TrainingSet) -> tuple[tuple[float, float], ...]:
    """The PSFs of each band that a network was shown, of both domains; empty if it is not told of them."""
    shown = [(d.dataset.psf, d.rows(TRAIN)) for d in (data, data.target) if d is not None]
    widths = [psf[rows] for psf, rows in shown if psf is not None]
    if not widths:
        return ()
    # Only rows of the source are observed under other conditions, not those of the target.
    other = broadened(torch.from_numpy(widths[0]), config.seeing).numpy()
    return seen_widths(np.concatenate([*widths, other]))


def judge(
    contract: Contract, data: TrainingSet, outputs: dict[int, NDArray[np.float64]], config: TrainConfig
) -> tuple[Contract, evaluate.Evaluation]:
    """Calibrate on validation sky and evaluate on test sky.

    Returns
    -------
    The contract with calibration, threshold and metrics, and the full evaluation.
    """
    judged = Judged(rows=len(outputs[TEST]), split="test" if data.unseen else "unknown")
    contract = contract.model_copy(update={"judged": judged})
    if config.task == "classes":
        fitted = class_calibration(config, data, outputs[VALIDATION])
        contract = contract.model_copy(update={"class_calibration": fitted})
    if config.task != "lens":
        other = _judge_other(contract, data, outputs[TEST], config)
        return contract.model_copy(update={"metrics": other["metrics"]}), other
    known, unseen = data.labels[data.rows(VALIDATION)], data.labels[data.rows(TEST)]
    logits, test = outputs[VALIDATION][:, 0], outputs[TEST][:, 0]
    # What sampler or weights of the loss made the network believe; else the share in the training rows.
    prior = 0.5 if config.balance != "none" else float(data.labels[data.rows(TRAIN)].mean())
    calibration = calibrate.fit(config.calibration, logits, known, prior=prior)
    ranking = metrics.curve(known, calibrate.sigmoid(logits))
    threshold = metrics.threshold_at_fpr(ranking, config.operating_fpr)
    evaluation = evaluate.evaluate(
        unseen,
        calibrate.sigmoid(test),
        # At the mix of the judged rows: their share of lenses differs from that of the validation rows.
        calibration.probability(test, prevalence=float(unseen.mean())),
        threshold=threshold,
        block=data.cells(config.nside)[data.rows(TEST)],
        draws=config.draws,
        seed=config.seed,
    )
    update = {"calibration": calibration, "threshold": threshold, "metrics": evaluation["metrics"]}
    return contract.model_copy(update=update), evaluation


def class_calibration(
    config: TrainConfig, data: TrainingSet, outputs: NDArray[np.float64]
) -> calibrate.ClassCalibration:
    """The calibration of several classes from mean outputs `(n, K)` of the validation rows."""
    if config.calibration != "none":
        return calibrate.fit_classes(outputs, data.labels[data.rows(VALIDATION)])
    count = np.bincount(data.labels[data.rows(TRAIN)], minlength=outputs.shape[1])
    shown = (count > 0) if config.balance != "none" else count  # balanced batches show all alike
    return calibrate.ClassCalibration(shares=tuple((shown / shown.sum()).tolist()))


def _judge_other(
    contract: Contract, data: TrainingSet, outputs: NDArray[np.float64], config: TrainConfig
) -> evaluate.ClassEvaluation | evaluate.TargetsEvaluation:
    rows = data.rows(TEST)
    if config.task == "classes":
        mix = np.bincount(data.labels[rows], minlength=outputs.shape[1]) / len(rows)
        probability = contract.class_calibration.probability(outputs, shares=mix)
        block = data.cells(config.nside)[rows]
        return evaluate.evaluate_classes(
            data.labels[rows], probability, block=block, draws=min(config.draws, 200)
        )
    residuals = {}
    for k, name in enumerate(config.targets):
        truth = np.asarray(data.dataset.column(name), np.float64)[rows]
        guess = outputs[:, k] * contract.target_std[k] + contract.target_mean[k]
        residuals[name] = evaluate.evaluate_regression(truth, guess)
    return {"rows": len(rows), "metrics": residuals}


def _write(
    config: TrainConfig,
    contract: Contract,
    members: list[Fitted],
    evaluation: evaluate.Evaluation,
    target: judging.TargetRecord | None,
) -> None:
    directory = config.output
    write_atomic(directory / "history.csv", history_csv(config, members))
    judged = contract.judged.model_dump() if contract.judged else None
    record = {**evaluation, "judged": judged, **({"target": target} if target else {})}
    text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False)
    write_atomic(directory / "evaluation.json", text.encode())
    write_atomic(directory / "curves.png", training_curves([m.progress.history for m in members], evaluation))
    if config.tensorboard:
        _tensorboard(directory / "tensorboard", members)
    save_model(directory, contract, [m.state for m in members])


def history_csv(config: TrainConfig, members: list[Fitted]) -> bytes:
    """One line per member and epoch."""
    out = io.StringIO()
    names = list(members[0].progress.history[0])
    writer = csv.DictWriter(out, ["seed", *names, "best"], lineterminator="\n")
    writer.writeheader()
    for k, member in enumerate(members):
        for record in member.progress.history:
            best = int(record["epoch"] == member.progress.best_epoch)
            numbers = {name: round(value, 8) for name, value in record.items()}
            writer.writerow({"seed": config.seed + k, **numbers, "best": best})
    return out.getvalue().encode()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "--tensorboard needs the package", hint="install ripple-lsst[tensorboard]"
        ) from None
    return SummaryWriter


def _tensorboard(directory: Path, members: list[Fitted]) -> None:
    for k, member in enumerate(members):
        with _summary_writer()(str(directory / f"member-{k}")) as writer:
            for record in member.progress.history:
                for name, value in record.items():
                    writer.add_scalar(name, value, int(record["epoch"]))


def _summary(config: TrainConfig, contract: Contract, seconds: float, *, done: bool = False) -> Summary:
    facts: dict[str, Any] = {"network": f"{contract.architecture.name} x {len(contract.members)}"}
    for name, counts in contract.training.get("rows", {}).items():
        facts[f"{name} rows"] = ", ".join(f"label {k}: {v}" for k, v in counts.items())
    notes = list(contract.training.get("notes", []))
    if contract.judged:
        facts["evaluated on"] = evaluate.judged_words(
            {"rows": contract.judged.rows, "split": contract.judged.split}
        )
    if contract.output == "lens" and contract.metrics:
        for name in ("auroc", "pr_auc", "tpr_at_fpr_1e-2", "ece"):
            facts[name] = printed(contract.metrics[name])
        for name, gate in contract.gates.get("shortcuts", {}).items():
            facts[f"gate {name}"] = f"AUROC {printed(gate['auroc'], 3)}"
        gates = cast(shortcuts.GateReport, contract.gates)
        lines = shortcuts.too_near(gates, contract.metrics["auroc"]["value"], config.gate_distance)
        if lines and config.strict:
            raise ConfigError(f"{config.output}: " + "; ".join(lines), hint="make the data fairer")
        notes += ["shortcut: " + line for line in lines]
        facts |= judging.target_facts(contract)
    elif contract.metrics:
        facts["metrics"] = json.dumps(contract.metrics)
    return Summary("train", str(config.output), facts, seconds=seconds, done_before=done, notes=tuple(notes))
