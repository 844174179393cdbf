"""Domain adaptation: a finder trained on labelled source rows learns to work on unlabelled target rows.

All methods share one loop (`training.loop`): the task loss on source rows plus a weight times the loss of a
`Method`, which sees features of source and target rows of the same step. The first `adapt_start` of the
epochs learns from the source only; then the weight grows from 0 to `adapt_weight` as in Ganin et al. (2016).
No method reads target labels, except `supervised`, and that at most `target_labels` of them.

Each domain is normalised by its own batch statistics: source and target rows pass through the network in
turn, and the network that is kept carries the statistics of the target, measured at the end
(`own_statistics`).

What is assumed about the target is stated: its class shares are those of `target_prevalence`, by default
those of the source. Source rows are weighted to these shares before domains are compared, and batch
statistics of the target are measured at the shares of the source (`target_statistics`): a network that was
normalised over half lenses takes half of any sky for lenses when it is normalised over that.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ripple.errors import ConfigError, DataError, IntegrityError
from ripple.learn.config import TrainConfig
from ripple.learn.data.dataset import Batch, TensorDataset
from ripple.learn.data.loader import Loader
from ripple.learn.data.training_set import TargetSet, TrainingSet
from ripple.learn.model.network import Net
from ripple.learn.training import losses
from ripple.learn.training.adapt.methods import (
    BatchNorm,
    Latent,
    Step,
    augmentation,
    make_method,
    ramp,
    two_logits,
)
from ripple.sky.splits import TRAIN


class Adaptation:
    """A method during training: its target rows, its weight over time, its state between epochs.

    Parameters
    ----------
    data
        Source rows, with a target.
    config
        Options.
    net, average
        The network and the moving average of its weights.
    seed
        Of the member.
    device
        Where it runs.
    cast
        Context in which the networks run, of mixed precision or of none.
    """

    def __init__(
        self,
        data: TrainingSet,
        config: TrainConfig,
        net: Net,
        average: Net | None,
        *,
        seed: int,
        device: torch.device,
        cast: Callable[[], Any],
    ) -> None:
        if data.target is None:
            raise ConfigError(f"--adapt {config.adapt} needs a target data set", hint="give --target TENSORS")
        self.data, self.config, self.net, self.average, self.device = data, config, net, average, device
        self.cast = cast
        self.target: TargetSet = data.target
        self.shares = assumed_shares(data, config).to(device)
        self.method = make_method(config, net, self.shares, seed).to(device)
        self.weight = self.method.weight if config.adapt_weight is None else config.adapt_weight
        # At least the last epoch adapts.
        self.start = min(math.ceil(config.adapt_start * config.epochs), config.epochs - 1)
        self.loader = self._loader(seed)
        self._stream: Iterator[Batch] = iter(())
        self.active = False

    def _loader(self, seed: int) -> Loader:
        """Batches of target rows; with `supervised`, of the few labelled ones, classes in equal numbers."""
        config, labelled = self.config, self.config.adapt == "supervised"
        rows = self.target.labelled(config.target_labels, seed) if labelled else self.target.rows(TRAIN)
        size = min(config.batch_size, len(rows))
        return Loader(
            self.target.dataset,
            rows=rows,
            batch_size=size,
            seed=seed + 7919,  # another order and augmentation than the source rows
            augment=augmentation(config),
            device=self.device,
            balance=labelled,
            drop_last=True,
        )

    @property
    def rate(self) -> float:
        """Factor on the learning rate."""
        return self.method.rate if self.active else 1.0

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first batch of an epoch."""
        self.active = epoch >= self.start
        if not self.active:
            return
        judged = self.average if self.average is not None else self.net  # the one validated after the epoch
        latent = self._latent(judged) if self.method.needs_latent else None
        self.method.train()
        self.method.begin(judged, latent, self._progress(epoch))
        # The target may have fewer batches than the source: it starts over, each pass in a new order.
        self._stream = (b for k in count() for b in self.loader.epoch(epoch * 10_000 + k))

    def _progress(self, at: float) -> float:
        """From 0 to 1 over the epochs with adaptation."""
        return min((at - self.start) / (self.config.epochs - self.start), 1.0)

    def step(self, batch: Batch, at: float) -> tuple[Tensor, Tensor]:
        """Outputs `(n, outputs)` of the source rows, and the weighted adaptation loss.

        Parameters
        ----------
        batch
            Source rows.
        at
            Epochs done, with a fraction.
        """
        if not self.active:
            with self.cast():
                return self.net(batch["image"]), torch.zeros((), device=self.device)
        other = next(self._stream)
        # In turn, not together: each domain is normalised by its own batch statistics (Chang et al. 2019).
        with self.cast():
            source, target = (self.net.features(b["image"]).float() for b in (batch, other))
        # From here on in fp32: distances of two clouds are small differences of large sums.
        # (n, F) and (m, F) -> (n, outputs) and (m, outputs)
        outputs, theirs = (self.net.head(self.net.dropout(f)) for f in (source, target))
        progress = self._progress(at)
        loss = self.method.loss(
            Step(
                net=self.net,
                average=self.average,
                source=source,
                target=target,
                source_logits=two_logits(outputs),
                target_logits=two_logits(theirs),
                label=batch["label"],
                weight=self._weight(batch),
                target_batch=other | {"source_image": batch["image"]},
                progress=progress,
                cast=self.cast,
            )
        )
        # Detached, so that the task loss is still printed but does not train the network.
        if not self.method.learns_task:
            outputs = outputs.detach()
        return outputs, self.weight * ramp(progress) * loss

    def after_step(self) -> None:
        """Called after the optimiser of the network has taken its step."""
        if self.active:
            self.method.after_step()

    def _weight(self, batch: Batch) -> Tensor:
        """Weight `(n,)` per source row that gives the batch the assumed class shares."""
        if self.config.task == "regression":
            return torch.ones(len(batch["label"]), device=self.device)
        return losses.class_weight(batch["label"], self.shares)

    @torch.no_grad()
    def _latent(self, net: Net) -> Latent:
        """Features of all target rows, and the mean direction of each source class."""
        rows = self.target.rows(TRAIN)
        known = self.data.rows(TRAIN)
        # As in training steps, whatever shares are given: clusters of other statistics are not theirs.
        theirs = own_statistics(net, self.target.dataset, rows, self.device)
        target = features_of(theirs, self.target.dataset, rows, self.device)
        ours = own_statistics(net, self.data.dataset, known, self.device)
        source = features_of(ours, self.data.dataset, known, self.device)
        label = torch.from_numpy(self.data.labels[known]).to(self.device)
        # Directions, because clusters and neighbours are found by cosine.
        unit = nn.functional.normalize(source, dim=1)  # (n, F)
        means = torch.stack([unit[label == k].mean(0) for k in range(len(self.shares))])
        return Latent(rows, target, means)

    def state(self) -> dict[str, Tensor]:
        """All that a resume needs: weights of the method and state of its optimiser."""
        kept = {f"method/{k}": v for k, v in self.method.state_dict().items()}
        if self.method.optimizer is not None:
            for index, slots in self.method.optimizer.state_dict()["state"].items():
                kept |= {f"inner/{index}/{name}": value for name, value in slots.items()}
        return kept

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned.

        Raises
        ------
        IntegrityError
            The state does not fit the method.
        """
        own = {k.removeprefix("method/"): v for k, v in state.items() if k.startswith("method/")}
        try:
            self.method.load_state_dict(own)
        except RuntimeError as err:
            raise IntegrityError(
                f"saved state does not fit --adapt {self.config.adapt}: {' '.join(str(err).split())[:150]}"
            ) from None
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key.startswith("inner/"):
                _, index, name = key.split("/")
                slots.setdefault(int(index), {})[name] = value
        if self.method.optimizer is not None:
            # Options of the optimiser come from the config; only the moments of Adam are restored.
            groups = self.method.optimizer.state_dict()["param_groups"]
            self.method.optimizer.load_state_dict({"state": slots, "param_groups": groups})


def assumed_shares(data: TrainingSet, config: TrainConfig) -> Tensor:
    """Class shares `(K,)` assumed for the target: `target_prevalence`, else those of the source rows."""
    if config.task == "regression":
        return torch.ones(1)  # no classes: one share of everything
    kinds = 2 if config.task == "lens" else len(data.class_map)
    # Once, and not in every batch, where a GPU would wait for the host.
    label = data.labels[data.rows(TRAIN)]
    if int(label.max()) >= kinds or int(label.min()) < 0:
        raise DataError(f"labels {int(label.min())} to {int(label.max())}, but {kinds} classes")
    if config.target_prevalence is not None:
        return torch.tensor([1 - config.target_prevalence, config.target_prevalence])
    found = np.bincount(label, minlength=kinds)
    return torch.from_numpy(found / found.sum()).float()


@torch.no_grad()
def features_of(net: Net, dataset: TensorDataset, rows: NDArray[np.int64], device: torch.device) -> Tensor:
    """Features `(n, F)` of rows, in their order, with the network in evaluation mode."""
    training = net.training
    net.eval()
    loader = Loader(dataset, rows=rows, batch_size=256, shuffle=False, device=device)
    parts = [net.features(batch["image"]).float() for batch in loader.epoch(0)]
    net.train(training)
    if not parts:
        raise DataError("there are no rows to compute features of")
    return torch.cat(parts)


@torch.no_grad()
def own_statistics(net: Net, dataset: TensorDataset, rows: NDArray[np.int64], device: torch.device) -> Net:
    """A copy of the network whose batch norms carry the statistics of these rows; unchanged without norms."""
    net = copy.deepcopy(net).eval()
    for m in net.modules():
        if isinstance(m, BatchNorm):
            m.reset_running_stats()  # no trace of the rows it was trained on
            m.momentum = None  # the plain mean over batches
            m.train()
    for batch in Loader(dataset, rows=rows, batch_size=256, seed=0, device=device).epoch(0):
        if len(batch["image"]) > 1:  # one row has no variance
            net.features(batch["image"])
    return net.eval()  # the norms too: from here on they are fixed


def target_statistics(net: Net, data: TrainingSet, config: TrainConfig, device: torch.device) -> Net:
    """A copy of the network with the batch statistics of the target's training rows.

    With `target_prevalence`, rows are drawn again until lenses are as frequent as in the source: the
    best-scored ones, as many as there should be, count as lenses.
    """
    assert data.target is not None
    dataset, rows = data.target.dataset, data.target.rows(TRAIN)
    found = own_statistics(net, dataset, rows, device)
    if config.target_prevalence is None:
        return found
    lenses = float((data.labels[data.rows(TRAIN)] == 1).mean())
    # Which rows are the best depends on the statistics: after three rounds hardly any row changes sides.
    for _ in range(3):
        score = found.head(features_of(found, dataset, rows, device))[:, 0]
        ranked = rows[score.argsort(descending=True, stable=True).cpu().numpy()]
        drawn = at_shares(ranked, config.target_prevalence, lenses)
        found = own_statistics(net, dataset, drawn, device)
    return found


def at_shares(ranked: NDArray[np.int64], before: float, after: float) -> NDArray[np.int64]:
    """Rows `(n,)` drawn from `ranked` `(n,)`: its first share `before` makes up a share `after` of them."""
    if len(ranked) < 2:
        return ranked
    # At least one row on either side, however few there are and whatever is said of them.
    best, first = (min(max(1, round(share * len(ranked))), len(ranked) - 1) for share in (before, after))
    top, rest = ranked[:best], ranked[best:]
    # Whole rounds over either side, so that no row counts twice more than another; the rest evenly in rank.
    others = rest[np.linspace(0, len(rest) - 1, len(ranked) - first).round().astype(np.int64)]
    return np.concatenate([np.resize(top, first), others])


def estimated_shares(probability: NDArray[Any], shares: NDArray[Any], *, steps: int = 1000) -> NDArray[Any]:
    """Class shares of rows without labels, by expectation maximisation.

    Saerens, Latinne & Decaestecker 2002 (Neural Comput. 14, 21). Valid when only the shares differ: if the
    images differ as well, it is a warning and not a measurement.

    Parameters
    ----------
    probability
        `(N, K)`, calibrated for `shares`.
    shares
        `(K,)` of the rows it was calibrated on.
    steps
        Iterations at most.
    """
    now = np.asarray(shares, np.float64)
    for _ in range(steps):
        # Expectation: Bayes with the shares of now; maximisation: their mean are the new shares.
        p = probability * (now / shares)  # (N, K)
        p /= p.sum(1, keepdims=True)
        new = p.mean(0)
        if np.abs(new - now).max() < 1e-7:
            break
        now = new
    return now
