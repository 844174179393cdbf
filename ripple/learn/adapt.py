"""Domain adaptation: a finder trained on labelled source rows learns to work on unlabelled target rows.

One loop for all (`ripple.learn.fit`): the task loss on source rows plus a weight times the loss of a
`Method`, which sees features of source and target rows of the same step. The first `adapt_start` of the
epochs is source only; then the weight grows from 0 to `adapt_weight` as in Ganin et al. (2016). No method
reads target labels, except `supervised`, and that no more than `target_labels` of them.

Batch statistics are those of each domain: source and target rows pass through the network in turn, and the
network that is kept carries the statistics of the target, measured at the end (`own_statistics`).

What is assumed about the target is written down: its class shares are those of `target_prevalence`, by
default those of the source. Source rows are weighted to these shares before domains are compared.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ripple.errors import ConfigError, DataError, IntegrityError
from ripple.learn import align
from ripple.learn.augment import Augment
from ripple.learn.loader import Batch, Loader, TensorDataset
from ripple.learn.network import Net
from ripple.learn.rows import TargetSet, TrainingSet
from ripple.learn.splits import TRAIN
from ripple.learn.train_config import TrainConfig

BatchNorm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Step:
    """What a method sees of one step.

    Parameters
    ----------
    net, average
        The network in training, and the moving average of its weights when there is one.
    source, target
        Features `(n, F)` and `(m, F)`, with gradients.
    source_logits, target_logits
        `(n, K)` and `(m, K)`; a single logit z becomes `(0, z)`.
    label, weight
        Of the source rows, `(n,)`; the weights give the batch the class shares assumed for the target.
    target_batch
        Images, row numbers and labels of the target rows.
    progress
        From 0 to 1 over the adaptation.
    """

    net: Net
    average: Net | None
    source: Tensor
    target: Tensor
    source_logits: Tensor
    target_logits: Tensor
    label: Tensor
    weight: Tensor
    target_batch: Batch
    progress: float


@dataclass(frozen=True)
class Latent:
    """Features of all target training rows `(m, F)` and of the mean of each source class `(K, F)`."""

    rows: NDArray[np.int64]
    target: Tensor
    means: Tensor


class Method(nn.Module):
    """One way to bring two domains together.

    Attributes
    ----------
    task
        False when the network does not learn from source labels while it adapts.
    rate
        Factor on the learning rate while it adapts.
    inner
        Optimiser of the parameters of the method itself, if it has any.
    surveys
        True when the method wants a `Latent` at the start of every epoch.
    """

    task = True
    rate = 1.0
    surveys = False
    inner: torch.optim.Optimizer | None = None

    def begin(self, net: Net, latent: Latent | None, progress: float) -> None:
        """Start an epoch; `net` is what will be judged at its end."""

    def loss(self, step: Step) -> Tensor:
        """The adaptation loss `()`."""
        raise NotImplementedError


class AdaBn(Method):
    """Nothing but batch statistics of its own for each domain (Li et al. 2018, Pattern Recognit. 80, 109).

    All methods have these; this one shows what the others add.
    """

    def loss(self, step: Step) -> Tensor:
        """Zero: the weights learn from the source alone."""
        return step.target.sum() * 0


class Mmd(Method):
    """Multi-kernel maximum mean discrepancy, `align.mmd`."""

    def loss(self, step: Step) -> Tensor:
        """MMD^2 of the features."""
        return align.mmd(step.source, step.target, step.weight)


class Coral(Method):
    """Deep CORAL, `align.coral`, of features in units of their spread in the source batch."""

    def loss(self, step: Step) -> Tensor:
        """Distance of the covariances, and of the means, which CORAL leaves to the batch norms."""
        centre = step.source.detach().mean(0)
        width = step.source.detach().std(0).clamp_min(1e-3)
        x, y = (step.source - centre) / width, (step.target - centre) / width
        share = step.weight / step.weight.sum()
        means = ((share[:, None] * x).sum(0) - y.mean(0)).square().mean()
        # 4 F^2 makes the loss tiny for the wide layers it was made for; F of them count as one here.
        return align.coral(x, y, step.weight) * x.shape[1] + means


def _critic(features: int, seed_width: int = 64) -> nn.Sequential:
    """Two hidden layers and one number per row."""
    return nn.Sequential(
        nn.Linear(features, seed_width), nn.LeakyReLU(0.1),
        nn.Linear(seed_width, seed_width), nn.LeakyReLU(0.1), nn.Linear(seed_width, 1), nn.Flatten(0),
    )  # fmt: skip


class Dann(Method):
    """A discriminator of domains behind a reversed gradient (Ganin et al. 2016, JMLR 17, 1)."""

    def __init__(self, features: int, lr: float) -> None:
        super().__init__()
        self.discriminator = _critic(features)
        self.inner = torch.optim.Adam(self.discriminator.parameters(), lr=lr)

    def loss(self, step: Step) -> Tensor:
        """The discriminator goes down this loss, the network up."""
        self.discriminator.zero_grad(set_to_none=True)
        x, y = (self.discriminator(align.reverse(f)) for f in (step.source, step.target))
        return align.domain_loss(x, y, step.weight)


class Adda(Method):
    """Target features that a discriminator takes for those of the frozen source network.

    Tzeng et al. 2017 (CVPR, 2962). The task is learnt first; then the copy for the target, which is what is
    kept, starts from the source network, and the head stays as it is.
    """

    task, rate = False, 0.1

    def __init__(self, net: Net, features: int, lr: float) -> None:
        super().__init__()
        self.reference = copy.deepcopy(net).eval().requires_grad_(False)
        self.discriminator = _critic(features)
        self.inner = torch.optim.Adam(self.discriminator.parameters(), lr=lr)
        self.frozen: Tensor
        self.register_buffer("frozen", torch.zeros((), dtype=torch.int64))

    def begin(self, net: Net, latent: Latent | None, progress: float) -> None:
        """Freeze the source network once."""
        if not int(self.frozen):
            self.reference.load_state_dict(net.state_dict())
            self.frozen.fill_(1)

    def loss(self, step: Step) -> Tensor:
        """One step of the discriminator, then how well the target passes for the source."""
        assert self.inner is not None
        with torch.no_grad():
            source = self.reference.eval().features(step.target_batch["source_image"])
        known = self.discriminator(source)
        self.inner.zero_grad(set_to_none=True)
        align.domain_loss(known, self.discriminator(step.target.detach()), step.weight).backward()
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        return nn.functional.softplus(-self.discriminator(step.target)).mean()


class Wdgrl(Method):
    """Wasserstein distance by a critic trained to its best in every step (Shen et al. 2018, AAAI, 4058)."""

    def __init__(self, features: int, lr: float, steps: int = 5, penalty: float = 10.0) -> None:
        super().__init__()
        self.critic = _critic(features)
        self.inner = torch.optim.Adam(self.critic.parameters(), lr=lr, betas=(0.5, 0.9))
        self.steps, self.penalty = steps, penalty

    def loss(self, step: Step) -> Tensor:
        """The distance, after `steps` steps of the critic."""
        assert self.inner is not None
        x, y = step.source.detach(), step.target.detach()
        for _ in range(self.steps):
            distance = align.wasserstein(self.critic(x), self.critic(y), step.weight)
            cost = self.penalty * align.gradient_penalty(self.critic, x, y) - distance
            self.inner.zero_grad(set_to_none=True)
            cost.backward()
            self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        return align.wasserstein(self.critic(step.source), self.critic(step.target), step.weight)


class KMeans(Method):
    """Pseudo-labels by spherical k-means of the target, started at the source classes.

    Kang et al. 2019 (CVPR, 4893). Each epoch clusters anew; rows near their centre teach first.
    """

    surveys = True

    def begin(self, net: Net, latent: Latent | None, progress: float) -> None:
        """Cluster the target; keep the nearest half of each cluster, later all."""
        assert latent is not None
        chosen, centres = align.spherical_kmeans(latent.target, latent.means)
        cosine = (nn.functional.normalize(latent.target, dim=1) * centres[chosen]).sum(1)
        self.label = torch.full((int(latent.rows.max()) + 1,), -1, device=chosen.device)
        rows = torch.from_numpy(latent.rows).to(chosen.device)
        for k in range(len(centres)):
            mine = torch.nonzero(chosen == k).squeeze(1)
            if len(mine):
                order = mine[cosine[mine].argsort(descending=True, stable=True)]
                order = order[: max(1, math.ceil(len(mine) * (0.5 + 0.4 * progress)))]
                self.label[rows[order]] = k

    def loss(self, step: Step) -> Tensor:
        """Cross-entropy of the target rows that have a pseudo-label."""
        label = self.label[step.target_batch["row"]]
        if not bool((label >= 0).any()):
            return step.target_logits.sum() * 0
        return nn.functional.cross_entropy(step.target_logits, label, ignore_index=-1)


class Teacher(Method):
    """The moving average of the network teaches it on disturbed target images.

    Tarvainen & Valpola 2017 (NeurIPS 30, 1195) with the distribution alignment and the relative threshold of
    AdaMatch (Berthelot et al. 2022, ICLR).
    """

    def __init__(self, shares: Tensor, seed: int, sky: float = 0.0) -> None:
        super().__init__()
        self.sky = sky
        self.shares: Tensor
        self.mean: Tensor
        self.register_buffer("shares", shares)
        self.register_buffer("mean", shares.clone())
        self.seed = seed

    def loss(self, step: Step) -> Tensor:
        """Cross-entropy against the teacher where it is sure enough."""
        if step.average is None:
            raise ConfigError("--adapt teacher: there is no moving average", hint="--ema above 0")
        image = step.target_batch["image"]
        with torch.no_grad():
            teacher = step.average.train()  # normalised by this batch, as the pupil is
            p = torch.softmax(two_logits(teacher(image).float()), 1)
            teacher.eval()
            self.mean.lerp_(p.mean(0), 0.05)
            p = p * self.shares / self.mean.clamp_min(1e-3)
            sure, label = (p / p.sum(1, keepdim=True)).max(1)
            limit = 0.9 * torch.softmax(step.source_logits, 1).amax(1).mean()
            width = float((image - image.median()).abs().median()) * 1.4826
        strong = Augment(d4=True, shift=3, blur=1.5, noise=width, sky=self.sky)
        turn = int(step.progress * 1e6)
        other = strong(image, step.target_batch["row"], seed=self.seed + 1, epoch=turn)
        each = nn.functional.cross_entropy(two_logits(step.net(other).float()), label, reduction="none")
        # The source is disturbed as well: what blur and noise leave of an arc is learnt from true labels.
        known, number = step.target_batch["source_image"], torch.arange(len(step.label), device=image.device)
        other = strong(known, number, seed=self.seed + 2, epoch=turn)
        ours = nn.functional.cross_entropy(two_logits(step.net(other).float()), step.label)
        return (each * (sure >= limit)).mean() + ours


class Universal(Method):
    """Known classes are drawn together, what only the target has is pushed aside.

    In the spirit of DeepAstroUDA (Ciprijanovic et al. 2023, MLST 4, 025013) and DANCE (Saito et al. 2020,
    NeurIPS 33, 16282): each target row clusters with a source class mean or with its target neighbours, and
    rows that are neither certain nor like a class become less certain. `ood` of the scores finds them.
    """

    surveys = True

    def __init__(self, temperature: float = 0.05) -> None:
        super().__init__()
        self.temperature = temperature

    def begin(self, net: Net, latent: Latent | None, progress: float) -> None:
        """Remember the directions of all target rows and of the source classes."""
        assert latent is not None
        self.bank = nn.functional.normalize(latent.target, dim=1)
        self.means = nn.functional.normalize(latent.means, dim=1)
        self.place = torch.zeros(int(latent.rows.max()) + 1, dtype=torch.int64, device=self.bank.device)
        rows = torch.from_numpy(latent.rows).to(self.bank.device)
        self.place[rows] = torch.arange(len(rows), device=self.bank.device)

    def loss(self, step: Step) -> Tensor:
        """Entropy over neighbours, and entropy separation of the classes."""
        unit = nn.functional.normalize(step.target, dim=1)
        own = self.place[step.target_batch["row"]]
        alike = unit @ self.bank.T
        alike = alike.scatter(1, own[:, None], -1e4)  # a row is not its own neighbour
        every = torch.cat([alike, unit @ self.means.T], 1) / self.temperature
        self.bank = self.bank.index_copy(0, own, unit.detach())
        neighbours = align.entropy(torch.softmax(every, 1)).mean()
        p = torch.softmax(step.target_logits, 1)
        separated = align.separation(p, 0.3 * math.log(p.shape[1]) / 2)
        # Source rows keep compact classes, so that "far from all of them" means something.
        compact = 1 - (nn.functional.normalize(step.source, dim=1) * self.means[step.label]).sum(1).mean()
        return 0.1 * neighbours + 0.1 * separated + compact


class Supervised(Method):
    """A few labelled target rows: their own cross-entropy, and classes that meet across domains.

    Contrastive semantic alignment, Motiian et al. 2017 (ICCV, 5716).
    """

    def loss(self, step: Step) -> Tensor:
        """Cross-entropy and contrast of the labelled target rows."""
        label = step.target_batch["label"]
        own = nn.functional.cross_entropy(step.target_logits, label)
        return own + align.contrastive(step.source, step.target, step.label, label)


def two_logits(outputs: Tensor) -> Tensor:
    """Logits `(n, K)` with K of at least 2; a single logit z becomes `(0, z)`."""
    return torch.cat([torch.zeros_like(outputs), outputs], 1) if outputs.shape[1] == 1 else outputs


def make_method(config: TrainConfig, net: Net, shares: Tensor, seed: int) -> Method:
    """The method that the config names."""
    features, lr = net.head.in_features, min(config.lr, 1e-3)
    match config.adapt:
        case "adabn":
            if not any(isinstance(m, BatchNorm) for m in net.modules()):
                raise ConfigError("adabn: the network has no batch normalisation", hint="another --adapt")
            return AdaBn()
        case "mmd":
            return Mmd()
        case "coral":
            return Coral()
        case "dann":
            return Dann(features, lr)
        case "adda":
            return Adda(net, features, lr)
        case "wdgrl":
            return Wdgrl(features, lr)
        case "kmeans":
            return KMeans()
        case "teacher":
            return Teacher(shares, seed, config.sky)
        case "universal":
            return Universal()
        case "supervised":
            return Supervised()
    raise ConfigError(f"unknown method {config.adapt!r}")


class Adaptation:
    """A method at work: its target rows, its weight over time, its state between epochs.

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
    """

    def __init__(
        self, data: TrainingSet, config: TrainConfig, net: Net, average: Net | None, *, seed: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        if data.target is None:
            raise ConfigError(f"--adapt {config.adapt} needs another data set", hint="--target TENSORS")
        self.data, self.config, self.net, self.average, self.device = data, config, net, average, device
        self.target: TargetSet = data.target
        self.shares = assumed_shares(data, config).to(device)
        self.method = make_method(config, net, self.shares, seed).to(device)
        self.start = min(math.ceil(config.adapt_start * config.epochs), config.epochs - 1)
        self.loader = self._loader(seed)
        self._stream: Iterator[Batch] = iter(())
        self.active = False

    def _loader(self, seed: int) -> Loader:
        config, labelled = self.config, self.config.adapt == "supervised"
        rows = self.target.labelled(config.target_labels, seed) if labelled else self.target.rows(TRAIN)
        size = min(config.batch_size, len(rows))
        return Loader(
            self.target.dataset, rows=rows, batch_size=size, seed=seed + 7919,
            augment=augmentation(config), device=self.device, balance=labelled, drop_last=True,
        )  # fmt: skip

    @property
    def rate(self) -> float:
        """Factor on the learning rate."""
        return self.method.rate if self.active else 1.0

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first batch of an epoch."""
        self.active = epoch >= self.start
        if not self.active:
            return
        judged = self.average if self.average is not None else self.net
        latent = self._survey(judged) if self.method.surveys else None
        self.method.train()
        self.method.begin(judged, latent, self._progress(epoch))
        self._stream = (b for k in count() for b in self.loader.epoch(epoch * 10_000 + k))

    def _progress(self, at: float) -> float:
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
            return self.net(batch["image"]), torch.zeros((), device=self.device)
        other = next(self._stream)
        # In turn, not together: each domain is normalised by its own batch statistics (Chang et al. 2019).
        source, target = (self.net.features(b["image"]).float() for b in (batch, other))
        outputs, theirs = (self.net.head(self.net.dropout(f)) for f in (source, target))
        progress = self._progress(at)
        loss = self.method.loss(Step(
            net=self.net, average=self.average, source=source, target=target,
            source_logits=two_logits(outputs), target_logits=two_logits(theirs), label=batch["label"],
            weight=self._weight(batch), target_batch=other | {"source_image": batch["image"]},
            progress=progress,
        ))  # fmt: skip
        if not self.method.task:
            outputs = outputs.detach()
        return outputs, self.config.adapt_weight * ramp(progress) * loss

    def after(self) -> None:
        """Called after the step of the network: the discriminator moves on the gradient it was left."""
        if self.active and isinstance(self.method, Dann) and self.method.inner is not None:
            self.method.inner.step()

    def _weight(self, batch: Batch) -> Tensor:
        if self.config.task == "regression":
            return torch.ones(len(batch["label"]), device=self.device)
        return align.class_weight(batch["label"], self.shares)

    @torch.no_grad()
    def _survey(self, net: Net) -> Latent:
        rows = self.target.rows(TRAIN)
        known = self.data.rows(TRAIN)
        theirs = own_statistics(net, self.target.dataset, rows, self.device)
        target = features_of(theirs, self.target.dataset, rows, self.device)
        ours = own_statistics(net, self.data.dataset, known, self.device)
        source = features_of(ours, self.data.dataset, known, self.device)
        label = torch.from_numpy(self.data.labels[known]).to(self.device)
        unit = nn.functional.normalize(source, dim=1)
        means = torch.stack([unit[label == k].mean(0) for k in range(len(self.shares))])
        return Latent(rows, target, means)

    def state(self) -> dict[str, Tensor]:
        """All that a resume needs: weights of the method and slots of its optimiser."""
        kept = {f"method/{k}": v for k, v in self.method.state_dict().items()}
        if self.method.inner is not None:
            for index, slots in self.method.inner.state_dict()["state"].items():
                kept |= {f"inner/{index}/{name}": value for name, value in slots.items()}
        return kept

    def load(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave.

        Raises
        ------
        IntegrityError
            It does not fit the method.
        """
        own = {k.removeprefix("method/"): v for k, v in state.items() if k.startswith("method/")}
        try:
            self.method.load_state_dict(own)
        except RuntimeError as err:
            raise IntegrityError(
                f"state of --adapt {self.config.adapt}: {' '.join(str(err).split())[:150]}"
            ) from None
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key.startswith("inner/"):
                _, index, name = key.split("/")
                slots.setdefault(int(index), {})[name] = value
        if self.method.inner is not None:
            groups = self.method.inner.state_dict()["param_groups"]
            self.method.inner.load_state_dict({"state": slots, "param_groups": groups})


def augmentation(config: TrainConfig) -> Augment:
    """What happens to the images of a training batch, source and target alike."""
    return Augment(
        d4=config.augment, shift=config.shift, blur=config.blur, noise=config.noise, sky=config.sky
    )


def ramp(progress: float) -> float:
    """Weight of the adaptation from 0 to 1 (Ganin et al. 2016, eq. 14)."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


def assumed_shares(data: TrainingSet, config: TrainConfig) -> Tensor:
    """Class shares `(K,)` assumed for the target: `target_prevalence`, else those of the source rows."""
    if config.task == "regression":
        return torch.ones(1)
    if config.target_prevalence is not None:
        return torch.tensor([1 - config.target_prevalence, config.target_prevalence])
    label = data.labels[data.rows(TRAIN)]
    kinds = 2 if config.task == "lens" else len(data.class_map)
    found = np.bincount(label, minlength=kinds)
    return torch.from_numpy(found / found.sum()).float()


@torch.no_grad()
def features_of(net: Net, dataset: TensorDataset, rows: NDArray[np.int64], device: torch.device) -> Tensor:
    """Features `(n, F)` of rows, in their order, from the network in evaluation mode."""
    training = net.training
    net.eval()
    loader = Loader(dataset, rows=rows, batch_size=256, shuffle=False, device=device)
    parts = [net.features(batch["image"]).float() for batch in loader.epoch(0)]
    net.train(training)
    if not parts:
        raise DataError("no rows to take features of")
    return torch.cat(parts)


@torch.no_grad()
def own_statistics(net: Net, dataset: TensorDataset, rows: NDArray[np.int64], device: torch.device) -> Net:
    """A copy of the network whose batch norms carry the statistics of these rows; as it is without norms."""
    net = copy.deepcopy(net).eval()
    for m in net.modules():
        if isinstance(m, BatchNorm):
            m.reset_running_stats()
            m.momentum = None  # the plain mean over batches
            m.train()
    for batch in Loader(dataset, rows=rows, batch_size=256, seed=0, device=device).epoch(0):
        if len(batch["image"]) > 1:
            net.features(batch["image"])
    return net.eval()


def estimated_shares(probability: NDArray[Any], shares: NDArray[Any], *, steps: int = 1000) -> NDArray[Any]:
    """Class shares of rows without labels, by expectation and maximisation.

    Saerens, Latinne & Decaestecker 2002 (Neural Comput. 14, 21). Holds when only the shares differ: under a
    shift of the images it is a warning, not a measurement.

    Parameters
    ----------
    probability
        `(N, K)`, calibrated for `shares`.
    shares
        `(K,)` of the rows it was calibrated on.
    steps
        At most.
    """
    now = np.asarray(shares, np.float64)
    for _ in range(steps):
        p = probability * (now / shares)
        p /= p.sum(1, keepdims=True)
        new = p.mean(0)
        if np.abs(new - now).max() < 1e-7:
            break
        now = new
    return now
