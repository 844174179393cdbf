"""The methods of domain adaptation: the loss that each adds to a training step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ripple.errors import ConfigError
from ripple.learn.config import TrainConfig
from ripple.learn.data.augment import Augment
from ripple.learn.data.dataset import Batch
from ripple.learn.model.network import Net
from ripple.learn.training import losses

BatchNorm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Step:
    """What a method sees of one training step.

    Parameters
    ----------
    net, average
        The network in training, and the moving average of its weights when there is one.
    source, target
        Features `(n, F)` and `(m, F)`, with gradients.
    source_logits, target_logits
        `(n, K)` and `(m, K)`; a single logit z becomes `(0, z)`.
    label, weight
        `(n,)`, of the source rows; the weights give the batch the class shares assumed for the target.
    target_batch
        Images, row numbers and labels of the target rows; `source_image` are the images of the source rows.
    progress
        From 0 to 1 over the epochs with adaptation.
    cast
        Context in which networks run; losses are in float32, as are all the numbers here.
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
    cast: Callable[[], Any]

    def answer(self, net: Net, image: Tensor) -> Tensor:
        """Logits `(n, K)` float32 of images `(n, B, H, W)`."""
        with self.cast():
            return two_logits(net(image).float())


@dataclass(frozen=True)
class Latent:
    """Features of all target training rows, and the mean of each source class."""

    rows: NDArray[np.int64]  # (m,) global row numbers of the target
    target: Tensor  # (m, F)
    means: Tensor  # (K, F)


class Method(nn.Module):
    """One way to bring two domains together.

    Attributes
    ----------
    learns_task
        False when the network does not learn from source labels while it adapts.
    rate
        Factor on the learning rate while it adapts.
    weight
        Of its loss at the end of training, unless said otherwise.
    optimizer
        Of the parameters of the method itself, if it has any.
    needs_latent
        True when the method needs a `Latent` at the start of every epoch.
    """

    learns_task = True
    rate = 1.0
    weight = 1.0
    needs_latent = False
    optimizer: torch.optim.Optimizer | None = None

    def begin(self, net: Net, latent: Latent | None, progress: float) -> None:
        """Start an epoch; `net` is the network that will be validated at its end."""

    def loss(self, step: Step) -> Tensor:
        """The adaptation loss `()`."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after the optimiser of the network has taken its step."""


class AdaBn(Method):
    """Only batch statistics of its own for each domain (Li et al. 2018, Pattern Recognit. 80, 109).

    All methods have these; this one shows what the others add.
    """

    def loss(self, step: Step) -> Tensor:
        """Zero: the weights learn from the source alone."""
        # A zero that depends on the target, so that the backward pass runs as for every method.
        return step.target.sum() * 0


class Mmd(Method):
    """Multi-kernel maximum mean discrepancy, `losses.mmd`."""

    def loss(self, step: Step) -> Tensor:
        """MMD^2 of the features."""
        return losses.mmd(step.source, step.target, step.weight)


class Coral(Method):
    """Deep CORAL, `losses.coral`, of features in units of their spread in the source batch."""

    # At 1 it destroyed the task on a sky of docs/explanation/adaptation.md, (b).
    weight = 0.1

    def loss(self, step: Step) -> Tensor:
        """Distance of the covariances, and of the means, which CORAL leaves to the batch norms."""
        # Detached: a network could otherwise lower the loss by spreading the source out.
        centre = step.source.detach().mean(0)
        width = step.source.detach().std(0).clamp_min(1e-3)
        x, y = (step.source - centre) / width, (step.target - centre) / width
        share = step.weight / step.weight.sum()
        means = ((share[:, None] * x).sum(0) - y.mean(0)).square().mean()
        # `losses.coral` divides by 4 F^2, which makes the loss of a wide layer tiny: one F is taken back.
        return losses.coral(x, y, step.weight) * x.shape[1] + means


def _critic(features: int, width: int = 64) -> nn.Sequential:
    """A small network with one number per row, `(n, F)` -> `(n,)`: discriminator or critic."""
    return nn.Sequential(
        nn.Linear(features, width),
        nn.LeakyReLU(0.1),
        nn.Linear(width, width),
        nn.LeakyReLU(0.1),
        nn.Linear(width, 1),
        nn.Flatten(0),
    )


class Dann(Method):
    """A discriminator of domains behind a reversed gradient (Ganin et al. 2016, JMLR 17, 1)."""

    def __init__(self, features: int, lr: float) -> None:
        super().__init__()
        self.discriminator = _critic(features)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=lr)

    def loss(self, step: Step) -> Tensor:
        """The discriminator descends this loss, the network climbs it."""
        self.discriminator.zero_grad(set_to_none=True)
        x, y = (self.discriminator(losses.reverse(f)) for f in (step.source, step.target))
        return losses.domain_loss(x, y, step.weight)

    def after_step(self) -> None:
        """The discriminator takes its step with the gradient that the network's backward pass left."""
        assert self.optimizer is not None
        self.optimizer.step()


class Adda(Method):
    """Target features that a discriminator cannot tell from those of the frozen source network.

    Tzeng et al. 2017 (CVPR, 2962). The task is learnt first; then the network that is kept starts from the
    source network and adapts to the target, and the head does not change.
    """

    # A tenth of the learning rate: the task no longer holds the features in place.
    learns_task, rate = False, 0.1

    def __init__(self, net: Net, features: int, lr: float) -> None:
        super().__init__()
        # In the state of the method, so that a resume has the same reference and knows that it is frozen.
        self.reference = copy.deepcopy(net).eval().requires_grad_(False)
        self.discriminator = _critic(features)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=lr)
        self.frozen: Tensor
        self.register_buffer("frozen", torch.zeros((), dtype=torch.int64))

    def begin(self, net: Net, latent: Latent | None, progress: float) -> None:
        """Freeze the source network once."""
        if not int(self.frozen):
            self.reference.load_state_dict(net.state_dict())
            self.frozen.fill_(1)

    def loss(self, step: Step) -> Tensor:
        """One step of the discriminator, then how well the target passes for the source."""
        assert self.optimizer is not None
        with torch.no_grad(), step.cast():
            source = self.reference.eval().features(step.target_batch["source_image"]).float()
        known = self.discriminator(source)  # (n,)
        self.optimizer.zero_grad(set_to_none=True)
        losses.domain_loss(known, self.discriminator(step.target.detach()), step.weight).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # Inverted labels: the target is to pass for the source, with a gradient even where it fails clearly.
        return nn.functional.softplus(-self.discriminator(step.target)).mean()


class Wdgrl(Method):
    """Wasserstein distance by a critic that is trained before every step (Shen et al. 2018, AAAI, 4058)."""

    def __init__(self, features: int, lr: float, steps: int = 5, penalty: float = 10.0) -> None:
        super().__init__()
        self.critic = _critic(features)
        self.optimizer = torch.optim.Adam(self.critic.parameters(), lr=lr, betas=(0.5, 0.9))
        self.steps, self.penalty = steps, penalty

    def loss(self, step: Step) -> Tensor:
        """The distance, after `steps` steps of the critic."""
        assert self.optimizer is not None
        # The critic estimates a distance only when near its best: several of its steps per step of ours.
        x, y = step.source.detach(), step.target.detach()
        for _ in range(self.steps):
            distance = losses.wasserstein(self.critic(x), self.critic(y), step.weight)
            cost = self.penalty * losses.gradient_penalty(self.critic, x, y) - distance
            self.optimizer.zero_grad(set_to_none=True)
            cost.backward()
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return losses.wasserstein(self.critic(step.source), self.critic(step.target), step.weight)


class KMeans(Method):
    """Pseudo-labels by spherical k-means of the target, started at the source classes.

    Kang et al. 2019 (CVPR, 4893). Every epoch clusters again; rows near their centre are used first.
    """

    needs_latent = True

    def begin(self, net: Net, latent: Latent | None, progress: float) -> None:
        """Cluster the target; label the nearest half of each cluster, 90 % at the end."""
        assert latent is not None
        chosen, centres = losses.spherical_kmeans(latent.target, latent.means)
        cosine = (nn.functional.normalize(latent.target, dim=1) * centres[chosen]).sum(1)
        # Indexed by global row number; -1 for rows without a pseudo-label.
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
        total = nn.functional.cross_entropy(step.target_logits, label, ignore_index=-1, reduction="sum")
        return total / (label >= 0).sum().clamp_min(1)  # 0 and not NaN where none has one


class Teacher(Method):
    """The moving average of the network teaches it on strongly augmented target images.

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
        """Cross-entropy against the teacher where the teacher is certain enough."""
        if step.average is None:
            raise ConfigError("--adapt teacher needs a moving average", hint="--set ema=0.98")
        image = step.target_batch["image"]
        with torch.no_grad():
            teacher = step.average.train()  # normalised by this batch, as the pupil is
            p = torch.softmax(step.answer(teacher, image), 1)
            teacher.eval()
            # The teacher's answers, on average, must have the class shares assumed for the target.
            self.mean.lerp_(p.mean(0), 0.05)
            p = p * self.shares / self.mean.clamp_min(1e-3)
            sure, label = (p / p.sum(1, keepdim=True)).max(1)
            # How certain the network is on source rows: a fixed limit would pass all rows, or none.
            limit = 0.9 * torch.softmax(step.source_logits, 1).amax(1).mean()
            # Scatter of the pixels, from their median deviation: the noise added below is drawn up to this.
            width = (image - image.median()).abs().median() * 1.4826
        turn = int(step.progress * 1e6)  # a new augmentation in every step
        other = self._disturbed(image, step.target_batch["row"], width, seed=self.seed + 1, epoch=turn)
        each = nn.functional.cross_entropy(step.answer(step.net, other), label, reduction="none")
        # The source is augmented as well: what blur and noise leave of an arc is learnt from true labels.
        known, number = step.target_batch["source_image"], torch.arange(len(step.label), device=image.device)
        other = self._disturbed(known, number, width, seed=self.seed + 2, epoch=turn)
        ours = nn.functional.cross_entropy(step.answer(step.net, other), step.label)
        return (each * (sure >= limit)).mean() + ours

    def _disturbed(self, image: Tensor, row: Tensor, width: Tensor, *, seed: int, epoch: int) -> Tensor:
        """Images strongly augmented, with noise of up to `width` `()`, which stays on the device."""
        strong = Augment(d4=True, shift=3, blur=1.5, sky=self.sky)
        noise = Augment(d4=False, noise=1.0)(torch.zeros_like(image), row, seed=seed, epoch=epoch)
        return strong(image, row, seed=seed, epoch=epoch) + width * noise


class Universal(Method):
    """Known classes are drawn together, classes that only the target has are pushed aside.

    In the spirit of DeepAstroUDA (Ciprijanovic et al. 2023, MLST 4, 025013) and DANCE (Saito et al. 2020,
    NeurIPS 33, 16282): each target row clusters with a source class mean or with its target neighbours, and
    rows that are neither certain nor like a class become less certain. Column `ood` of the scores finds them.
    """

    needs_latent = True

    def __init__(self, temperature: float = 0.05) -> None:
        super().__init__()
        self.temperature = temperature

    def begin(self, net: Net, latent: Latent | None, progress: float) -> None:
        """Remember the directions of all target rows and of the source classes."""
        assert latent is not None
        self.bank = nn.functional.normalize(latent.target, dim=1)
        self.means = nn.functional.normalize(latent.means, dim=1)
        # Global row number -> row of the bank.
        self.place = torch.zeros(int(latent.rows.max()) + 1, dtype=torch.int64, device=self.bank.device)
        rows = torch.from_numpy(latent.rows).to(self.bank.device)
        self.place[rows] = torch.arange(len(rows), device=self.bank.device)

    def loss(self, step: Step) -> Tensor:
        """Entropy over neighbours, and entropy separation of the classes."""
        unit = nn.functional.normalize(step.target, dim=1)  # (m, F)
        own = self.place[step.target_batch["row"]]
        alike = unit @ self.bank.T  # (m, all target rows)
        alike = alike.scatter(1, own[:, None], -1e4)  # a row is not its own neighbour
        every = torch.cat([alike, unit @ self.means.T], 1) / self.temperature
        # The bank follows the network within an epoch; the next one measures it again.
        self.bank = self.bank.index_copy(0, own, unit.detach())
        neighbours = losses.entropy(torch.softmax(every, 1)).mean()
        p = torch.softmax(step.target_logits, 1)
        # A margin of 30 % of the middle entropy log(K) / 2: rows nearer to it are left alone.
        separated = losses.separation(p, 0.3 * math.log(p.shape[1]) / 2)
        # Source rows keep compact classes, so that "far from all of them" means something.
        compact = 1 - (nn.functional.normalize(step.source, dim=1) * self.means[step.label]).sum(1).mean()
        return 0.1 * neighbours + 0.1 * separated + compact


class Supervised(Method):
    """A few labelled target rows: their cross-entropy, and classes drawn together across domains.

    Contrastive semantic alignment, Motiian et al. 2017 (ICCV, 5716).
    """

    def loss(self, step: Step) -> Tensor:
        """Cross-entropy and contrast of the labelled target rows."""
        label = step.target_batch["label"]
        own = nn.functional.cross_entropy(step.target_logits, label)
        return own + losses.contrastive(step.source, step.target, step.label, label)


def two_logits(outputs: Tensor) -> Tensor:
    """Logits `(n, K)` with K of at least 2; a single logit z becomes `(0, z)`."""
    return torch.cat([torch.zeros_like(outputs), outputs], 1) if outputs.shape[1] == 1 else outputs


def make_method(config: TrainConfig, net: Net, shares: Tensor, seed: int) -> Method:
    """The method that the config names."""
    features, lr = net.head.in_features, min(config.lr, 1e-3)
    match config.adapt:
        case "adabn":
            if not any(isinstance(m, BatchNorm) for m in net.modules()):
                raise ConfigError(
                    f"--adapt adabn: {config.network} has no batch normalisation to adapt",
                    hint="choose another --adapt, or --network d4cnn",
                )
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


def augmentation(config: TrainConfig) -> Augment:
    """The augmentation of a training batch, the same for source and target."""
    return Augment(
        d4=config.augment, shift=config.shift, blur=config.blur, noise=config.noise, sky=config.sky
    )


def ramp(progress: float) -> float:
    """Weight of the adaptation from 0 to 1 (Ganin et al. 2016, eq. 14)."""
    return 2 / (1 + math.exp(-10 * progress)) - 1
