"""The training loop of one network: read it from top to bottom.

The state is saved after every epoch. Everything random in epoch e is a function of (seed, e), so a run that
was killed repeats the interrupted epoch and ends with the same weights (on a CPU, with as many threads).

Several GPUs: plain DistributedDataParallel, started by `torchrun`. It needs five lines of this loop, which a
framework would hide. Rank 0 validates, decides and writes.
"""

from __future__ import annotations

import copy
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ripple.errors import ConfigError, WorkerError
from ripple.learn.config import TrainConfig
from ripple.learn.data.conditions import Ranges, conditions
from ripple.learn.data.dataset import Batch
from ripple.learn.data.graded import SOFT
from ripple.learn.data.loader import Loader
from ripple.learn.data.training_set import TargetSet, TrainingSet, galaxies
from ripple.learn.evaluation import metrics
from ripple.learn.model.architecture import Architecture
from ripple.learn.model.device import autocast
from ripple.learn.model.network import Net, build, parameter_groups
from ripple.learn.model.weights import fit_state, load_model
from ripple.learn.training.adapt.adaptation import Adaptation
from ripple.learn.training.adapt.methods import augmentation
from ripple.learn.training.state import Fitted, Progress, Store
from ripple.runtime.log import say
from ripple.runtime.signals import Stop
from ripple.runtime.summary import progress as progress_line
from ripple.sky.splits import TRAIN, VALIDATION
from ripple.storage.labels import renumbered, same_classes

Objective = Callable[[Tensor, Batch], Tensor]


@dataclass(frozen=True, slots=True)
class Ranks:
    """One process among those that train together; 0 of 1 when alone."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """True for the process that validates and writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all ranks have come here."""
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()


def fit(
    data: TrainingSet,
    config: TrainConfig,
    arch: Architecture,
    directory: Path,
    *,
    seed: int,
    device: torch.device,
    ranks: Ranks,
    stop: Stop,
) -> Fitted:
    """Train one member of the ensemble, resuming from the state in `directory`.

    Parameters
    ----------
    data
        Rows and their split.
    config
        Options.
    arch
        The network.
    directory
        Where state and best weights are kept until the model is finished.
    seed
        Of this member.
    device, ranks
        Where it runs.
    stop
        Checked between batches; raises after a signal.
    """
    torch.manual_seed(seed)
    net = initial_network(config, arch, data.class_map, seed - config.seed).to(device)
    average = _frozen_copy(net) if config.ema else None
    groups = parameter_groups(
        net,
        lr=config.lr,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
        freeze=config.freeze,
    )
    optimizer = torch.optim.AdamW([dict(group) for group in groups])
    rates = [float(group["lr"]) for group in groups]  # the peak; the schedule multiplies these
    train = _train_loader(data, config, seed, device, ranks)
    objective = make_objective(data, config, device)
    cast = autocast(config.precision, device)
    adaptation = None
    if config.adapt != "none":
        if ranks.world > 1:
            raise ConfigError("--adapt trains in one process only", hint="start it without torchrun")
        adaptation = Adaptation(data, config, net, average, seed=seed, device=device, cast=cast)
    store = Store(directory, seed)
    # Before DDP wraps the network: it then sends the weights of rank 0 to all ranks.
    progress = store.load(net, average, optimizer, adaptation)
    model: nn.Module = nn.parallel.DistributedDataParallel(net) if ranks.world > 1 else net
    run: Any = torch.compile(model) if config.compile else model
    while not progress.finished:
        epoch = progress.epoch
        torch.manual_seed(epoch_seed(seed, epoch))  # dropout and the like repeat after a resume
        if adaptation is not None:
            adaptation.begin_epoch(epoch)
        run.train()
        total, count = torch.zeros((), dtype=torch.float64, device=device), 0
        for step, batch in enumerate(_with_progress_line(train, epoch, seed, ranks)):
            stop.check()
            at = epoch + step / len(train)  # epochs done, with a fraction
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(at, config) * (adaptation.rate if adaptation else 1.0)
            extra: Tensor | float = 0.0
            if adaptation is None:
                with cast():
                    outputs = run(batch["image"])
            else:
                outputs, extra = adaptation.step(batch, at)
            loss = objective(outputs.float(), batch) + extra  # in fp32, whatever the network ran in
            if device.type == "cpu":  # a GPU would wait for the host at every step
                _require_finite(loss, epoch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if config.clip:
                nn.utils.clip_grad_norm_(net.parameters(), config.clip)
            optimizer.step()
            if adaptation is not None:
                adaptation.after_step()
            if average is not None:
                update_average(average, net, config.ema, epoch * len(train) + step)
            total += loss.detach() * len(outputs)  # by rows: the last batch may be smaller
            count += len(outputs)
        # Before anything is kept: one bad step spoils the moving average and with it every later epoch.
        _require_finite(total, epoch)
        if ranks.first:
            record = {
                "epoch": epoch + 1,
                "lr": config.lr * schedule(epoch + 1, config),
                "loss": float(total) / count,
            }
            record |= validate(average or net, data, config, device)
            record_epoch(progress, record, config)
            store.save(net, average, optimizer, progress, adaptation)
            _print_epoch(progress, config, seed)
        # All ranks must stop after the same epoch, or those that go on wait for gradients for ever.
        progress = _from_first_rank(progress, ranks)
    best = store.best(progress.best_epoch) if ranks.first else {}
    return Fitted(best, progress)


def _require_finite(loss: Tensor, epoch: int) -> None:
    if not bool(torch.isfinite(loss)):
        raise ConfigError(
            f"the loss is not finite in epoch {epoch + 1}",
            hint="lower --lr, or check the tensors for extreme values",
        )


def _with_progress_line(train: Loader, epoch: int, seed: int, ranks: Ranks) -> Iterator[Batch]:
    """Batches of an epoch, with a progress line on a terminal."""
    if not ranks.first:
        yield from train.epoch(epoch)
        return
    with progress_line(len(train), f"seed {seed} epoch {epoch + 1}", "batches") as advance:
        for batch in train.epoch(epoch):
            yield batch
            advance(1)


def initial_network(
    config: TrainConfig, arch: Architecture, class_map: dict[str, str], member: int = 0
) -> Net:
    """A new network, or a member of `--init`: its outputs by class name, a new head when the task differs."""
    net = build(arch, pretrained=config.pretrained)
    if config.init is None:
        return net
    model = load_model(config.init)
    # Member k starts from member k: all from one would agree more than an ensemble should.
    state = dict(model.nets[member % len(model.nets)].state_dict())
    own = net.state_dict()
    theirs, heads = model.contract.class_map, ("head.weight", "head.bias")
    same = config.task != "classes" or same_classes(theirs, class_map)
    if model.contract.output != config.task or not same or state[heads[1]].shape != own[heads[1]].shape:
        state |= {key: own[key] for key in heads}
    elif config.task == "classes":
        order = np.argsort(renumbered(np.arange(len(theirs)), theirs, class_map))
        state |= {key: state[key][torch.from_numpy(order)] for key in heads}
    fit_state(net, state, str(config.init))
    return net


def _train_loader(
    data: TrainingSet, config: TrainConfig, seed: int, device: torch.device, ranks: Ranks
) -> Loader:
    """Batches of the training rows for this rank."""
    rows = data.rows(TRAIN)
    balanced = config.balance == "sampler" and config.task != "regression"
    ranges = other_conditions(config)
    return Loader(
        data.dataset,
        rows=rows,
        batch_size=config.batch_size,
        seed=seed,
        conditions=conditions(ranges, data.dataset, galaxies(data, config)) if ranges else None,
        augment=augmentation(config),
        device=device,
        balance=balanced,
        rank=ranks.rank,
        world=ranks.world,
        # A last batch of a few rows would upset the batch norms; a set smaller than a batch is kept whole.
        drop_last=len(rows) >= config.batch_size * ranks.world,
        columns=(SOFT,) if config.labels_as == "soft" else config.targets,
    )


def other_conditions(config: TrainConfig) -> Ranges:
    """How far observing conditions differ from those of the training rows."""
    names = [field.name for field in fields(Ranges)]
    return Ranges(**{name: getattr(config, name) for name in names})


def schedule(epoch: float, config: TrainConfig) -> float:
    """Factor on the learning rates: linear warm-up, then half a cosine down to 1 %."""
    if epoch < config.warmup:
        return max(epoch, 0.02) / config.warmup  # not 0: the first batch would teach nothing
    part = (epoch - config.warmup) / max(config.epochs - config.warmup, 1e-9)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))


def epoch_seed(seed: int, epoch: int) -> int:
    """Seed of torch's generator in one epoch."""
    return (seed * 1_000_003 + epoch * 7919 + 1) % 2**63  # primes: no two (seed, epoch) of a run coincide


def _frozen_copy(net: Net) -> Net:
    return copy.deepcopy(net).eval().requires_grad_(False)


@torch.no_grad()
def update_average(average: Net, net: Net, decay: float, step: int) -> None:
    """Move the average towards the network; early steps count more, so that the start is soon forgotten."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    pairs = list(zip(average.state_dict().values(), net.state_dict().values(), strict=True))
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    # One call for all weights: on a GPU two small kernels instead of hundreds.
    torch._foreach_lerp_([mine for mine, _ in floats], [theirs for _, theirs in floats], weight)
    for mine, theirs in pairs:
        if not mine.is_floating_point():  # counters of the batch norms
            mine.copy_(theirs)


# --- losses -----------------------------------------------------------------------------------------------


def make_objective(
    data: TrainingSet, config: TrainConfig, device: torch.device, *, which: int = TRAIN
) -> Objective:
    """The loss of a batch of outputs `(n, outputs)` of rows of a split."""
    if config.task == "regression":
        mean, std = standardisation(data, config.targets)
        centre, width = torch.tensor(mean, device=device), torch.tensor(std, device=device)

        # Huber and not squares: one wrong truth value must not rule a batch.
        def huber(outputs: Tensor, batch: Batch) -> Tensor:
            truth = torch.stack([batch[name] for name in config.targets], 1)  # (n, targets)
            return nn.functional.smooth_l1_loss(outputs, (truth - centre) / width)

        return huber
    weights = class_weights(data, config, which).to(device)
    gamma = config.focal_gamma if config.loss == "focal" else 0.0
    if config.task == "lens":
        return lambda outputs, batch: lens_loss(
            outputs[:, 0], batch["label"], weights, gamma, truth=batch.get(SOFT)
        )
    return lambda outputs, batch: class_loss(outputs, batch["label"], weights, gamma)


def lens_loss(
    logit: Tensor, label: Tensor, weights: Tensor, gamma: float, truth: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy, weighted by class, times `(1 - p_true)^gamma` (Lin et al. 2017, ICCV, 2980).

    `truth` `(n,)` is the probability to learn, by default that of the label: 1 or 0.
    """
    truth = (label if truth is None else truth).to(logit.dtype)
    each = nn.functional.binary_cross_entropy_with_logits(logit, truth, reduction="none")
    return _weighted(each, weights[label], gamma)


def class_loss(logits: Tensor, label: Tensor, weights: Tensor, gamma: float) -> Tensor:
    """Cross-entropy over classes, weighted and focused as in `lens_loss`."""
    each = nn.functional.cross_entropy(logits, label, reduction="none")
    return _weighted(each, weights[label], gamma)


def _weighted(each: Tensor, weight: Tensor, gamma: float) -> Tensor:
    """Weighted mean of the losses `(n,)` of the rows, focused on those that are still wrong."""
    # exp(-cross-entropy) is the probability of the true class.
    focus = (1 - torch.exp(-each)) ** gamma if gamma else 1.0
    return (each * focus * weight).sum() / weight.sum()


def class_weights(data: TrainingSet, config: TrainConfig, which: int = TRAIN) -> Tensor:
    """Weight `(K,)` per label: inverse frequency in a split with mean 1 over its rows, or ones."""
    label = data.labels[data.split == which]
    k = 2 if config.task == "lens" else max(len(data.class_map), int(data.labels.max()) + 1)
    # The sampler balances training rows, so they need no weights; validation rows come as they are.
    if config.balance == "none" or (config.balance == "sampler" and which == TRAIN):
        return torch.ones(k)
    count = np.bincount(label, minlength=k)  # (K,)
    return torch.tensor(len(label) / (k * np.maximum(count, 1)), dtype=torch.float32)


def standardisation(data: TrainingSet, targets: tuple[str, ...]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each target on the training sky."""
    rows = data.rows(TRAIN)
    values = [np.asarray(data.dataset.column(name), np.float64)[rows] for name in targets]
    # A target that never varies keeps a width above 0, by which it can be divided.
    return [float(v.mean()) for v in values], [float(max(v.std(), 1e-9)) for v in values]


# --- validation ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def predict(
    net: Net,
    data: TrainingSet | TargetSet,
    rows: NDArray[np.int64],
    device: torch.device,
    precision: str = "fp32",
) -> NDArray[np.float32]:
    """Outputs `(n, outputs)` of rows, in their order."""
    net.eval()
    loader = Loader(data.dataset, rows=rows, batch_size=256, shuffle=False, device=device)
    cast, parts = autocast(precision, device), []
    for batch in loader.epoch(0):
        with cast():
            outputs = net(batch["image"])
        parts.append(outputs.float().cpu().numpy())
    return np.concatenate(parts)


def validate(net: Net, data: TrainingSet, config: TrainConfig, device: torch.device) -> dict[str, float]:
    """Validation loss and metrics of one epoch, names prefixed `val_`."""
    rows = data.rows(VALIDATION)
    outputs = predict(net, data, rows, device, config.precision)  # (n, outputs)
    batch = {"label": torch.from_numpy(data.labels[rows])}
    batch |= {
        name: torch.from_numpy(np.asarray(data.dataset.column(name), np.float32)[rows])
        for name in config.targets
    }
    # All rows at once: a mean over batches would depend on the batch size.
    # At the class shares that the training loss has, so that the two can be compared.
    objective = make_objective(data, config, torch.device("cpu"), which=VALIDATION)
    found = {"val_loss": float(objective(torch.from_numpy(outputs), batch))}
    match config.task:
        case "lens":
            curve = metrics.curve(data.labels[rows], outputs[:, 0])
            found["val_auroc"] = metrics.auroc(curve)
            found["val_pr_auc"] = metrics.pr_auc(curve)
            found["val_tpr_at_fpr"] = metrics.tpr_at_fpr(curve, config.operating_fpr)
        case "classes":
            label = data.labels[rows]
            # One class against the rest, averaged over classes with rows on both sides.
            curves = [
                metrics.curve((label == k).astype(int), outputs[:, k])
                for k in range(outputs.shape[1])
                if 0 < (label == k).sum() < len(label)
            ]
            found["val_auroc"] = float(np.mean([metrics.auroc(c) for c in curves]))
            found["val_pr_auc"] = float(np.mean([metrics.pr_auc(c) for c in curves]))
            tpr = [metrics.tpr_at_fpr(c, config.operating_fpr) for c in curves]
            found["val_tpr_at_fpr"] = float(np.mean(tpr))
    return found


def record_epoch(progress: Progress, record: dict[str, float], config: TrainConfig) -> None:
    """Add an epoch to the history, and decide whether it is the best so far and whether it is the last."""
    # For every task, larger is better.
    value = -record["val_loss"] if config.task == "regression" else record[f"val_{config.select}"]
    progress.epoch = int(record["epoch"])
    # Of equal metrics the one with the smaller loss is better: small validation sets often tie at 1.
    key = (value, -record["val_loss"])
    best = (
        (progress.best, -progress.history[progress.best_epoch - 1]["val_loss"]) if progress.history else None
    )
    # Source sky cannot say when a network is best adapted to another: the last epoch is kept.
    if best is None or key > best or config.adapt != "none":
        progress.best, progress.best_epoch = value, progress.epoch
    progress.history.append(record)
    impatient = progress.epoch - progress.best_epoch >= config.patience
    progress.finished = impatient or progress.epoch >= config.epochs


def _print_epoch(progress: Progress, config: TrainConfig, seed: int) -> None:
    """One line on stderr; an asterisk marks the best epoch so far."""
    last = progress.history[-1]
    shown = " ".join(f"{k} {v:.4f}" for k, v in last.items() if k not in ("epoch", "lr"))
    mark = " *" if progress.best_epoch == progress.epoch else ""
    say(f"seed {seed} epoch {progress.epoch}/{config.epochs} {shown}{mark}")


# --- several processes, signals -----------------------------------------------------------------------------


@contextmanager
def process_group(device: torch.device) -> Iterator[Ranks]:
    """Join the process group that `torchrun` describes in the environment; without it, train alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    import torch.distributed as dist

    # nccl moves tensors between GPUs and cannot move those of CPUs.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank = dist.get_rank()
    try:
        yield Ranks(rank, world)
    except RuntimeError as err:
        # gloo has no class of its own for it; nccl has.
        if isinstance(err, dist.DistError) or "gloo" in str(err):
            _end_without_the_others(rank)
        raise
    finally:
        dist.destroy_process_group()


def _end_without_the_others(rank: int) -> None:
    """End this process because another rank is gone: at once, for torchrun kills the others in a moment."""
    lost = WorkerError("train: another process of torchrun died", hint="run the same command again to resume")
    if rank <= 1:  # one line, also where it is the first that died
        print(f"ripple: {lost}", file=sys.stderr, flush=True)
    os._exit(WorkerError.exit_code)


def _from_first_rank(progress: Progress, ranks: Ranks) -> Progress:
    """The progress of rank 0, sent to every rank."""
    if ranks.world == 1:
        return progress
    import torch.distributed as dist

    # broadcast_object_list replaces the entries of the list in place.
    box = [json.dumps(progress.__dict__)]
    dist.broadcast_object_list(box, src=0)
    return Progress(**json.loads(box[0]))
