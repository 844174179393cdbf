"""The losses of domain adaptation as pure functions: how far apart are two clouds of features.

Source rows carry weights that give them the class shares assumed for the target: two domains must not look
different only because their shares of lenses are (Zhao et al. 2019, ICML, 7523).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

#: Squared widths of the kernels of `mmd`, as factors on half the mean squared distance of the rows.
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


def mmd(
    x: Tensor, y: Tensor, weight: Tensor | None = None, *, squared_widths: Tensor | None = None
) -> Tensor:
    """Squared maximum mean discrepancy with a mean of Gaussian kernels (Long et al. 2015, ICML 37, 97).

    Parameters
    ----------
    x, y
        `(n, F)` and `(m, F)` features.
    weight
        `(n,)` of `x`, any scale; default equal.
    squared_widths
        sigma^2 of the kernels `exp(-d^2 / (2 sigma^2))`; default `WIDTHS` times the mean of `d^2 / 2`.

    Returns
    -------
    `()`, at least 0 (the biased estimate).
    """
    every = torch.cat([x, y])
    distance = torch.cdist(every, every).square()  # (n + m, n + m)
    if squared_widths is None:
        # Detached: a network could otherwise lower the loss by widening the kernels.
        n = len(every)
        mean = distance.detach().sum() / max(n * (n - 1), 1) / 2
        squared_widths = torch.stack([mean.clamp_min(1e-12) * width for width in WIDTHS])
    kernel = torch.exp(-distance[..., None] / (2 * squared_widths)).mean(-1)
    a, b = _shares(len(x), weight, x), _shares(len(y), None, y)
    # E k(x, x') - 2 E k(x, y) + E k(y, y') as one quadratic form.
    signed = torch.cat([a, -b])
    return (signed[:, None] * kernel * signed[None]).sum().clamp_min(0)


def coral(x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """Squared Frobenius distance of the covariances over `4 F^2` (Sun & Saenko 2016, ECCV-W, 443)."""
    a, b = _covariance(x, weight), _covariance(y, None)
    return (a - b).square().sum() / (4 * x.shape[1] ** 2)


def _covariance(x: Tensor, weight: Tensor | None) -> Tensor:
    """Weighted covariance `(F, F)` of features `(n, F)`."""
    share = _shares(len(x), weight, x)
    centred = x - (share[:, None] * x).sum(0)
    return (share[:, None] * centred).T @ centred


def _shares(n: int, weight: Tensor | None, like: Tensor) -> Tensor:
    """Weights that sum to 1."""
    if weight is None:
        return torch.full((n,), 1 / n, device=like.device, dtype=like.dtype)
    return weight / weight.sum()


class _Reverse(torch.autograd.Function):
    """The identity forwards; backwards the gradient changes sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * gradients[0], None


def reverse(x: Tensor, factor: float = 1.0) -> Tensor:
    """`x`, whose gradient is multiplied by `-factor` (Ganin et al. 2016, JMLR 17, 1)."""
    out: Tensor = _Reverse.apply(x, factor)
    return out


def domain_loss(x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy of telling domains apart, both counting half.

    Parameters
    ----------
    x, y
        `(n,)` and `(m,)` logits of "from the source", for source and target rows.
    weight
        `(n,)` of the source rows.
    """
    # softplus(-z) is the cross-entropy for "source", softplus(z) that for "target".
    first = (_shares(len(x), weight, x) * nn.functional.softplus(-x)).sum()
    return (first + nn.functional.softplus(y).mean()) / 2


def wasserstein(x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """Difference of the mean values of a critic over source and target (Shen et al. 2018, AAAI 32, 4058).

    The largest value over all 1-Lipschitz critics is the Wasserstein-1 distance of the two distributions.

    Parameters
    ----------
    x, y
        `(n,)` and `(m,)` values of the critic.
    weight
        `(n,)` of the source rows.
    """
    return (_shares(len(x), weight, x) * x).sum() - y.mean()


def gradient_penalty(critic: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Mean of `(|gradient| - 1)^2` between and at the rows (Gulrajani et al. 2017, NeurIPS 30, 5767).

    Parameters
    ----------
    critic
        `(k, F)` -> `(k,)`.
    x, y
        `(n, F)` and `(m, F)`; paired after cutting to the shorter.
    """
    n = min(len(x), len(y))
    x, y = x[:n].detach(), y[:n].detach()
    # A 1-Lipschitz critic has slope 1 on the lines between the two distributions: there it is enforced.
    between = x + torch.rand(n, 1, device=x.device, dtype=x.dtype) * (y - x)
    points = torch.cat([between, x, y]).requires_grad_(True)
    (slope,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)  # differentiated again
    penalty: Tensor = (slope.norm(dim=1) - 1).square().mean()
    return penalty


def spherical_kmeans(x: Tensor, centres: Tensor, *, iterations: int = 50) -> tuple[Tensor, Tensor]:
    """Clusters of directions by cosine, from given centres (Dhillon & Modha 2001, Mach. Learn. 42, 143).

    Parameters
    ----------
    x
        `(n, F)`.
    centres
        `(K, F)` first guess, for example the class means of the source (Kang et al. 2019, CVPR, 4893).
    iterations
        Number at most.

    Returns
    -------
    `(n,)` int64 cluster of each row, and `(K, F)` centres of length 1. An empty cluster keeps its centre.
    """
    unit, centres = nn.functional.normalize(x, dim=1), nn.functional.normalize(centres, dim=1)
    chosen = torch.full((len(x),), -1, device=x.device)
    for _ in range(iterations):
        nearest = (unit @ centres.T).argmax(1)
        if torch.equal(nearest, chosen):
            break
        chosen = nearest
        # The direction of the sum is the centre that maximises the cosines of its rows.
        total = torch.zeros_like(centres).index_add_(0, chosen, unit)
        filled = total.norm(dim=1, keepdim=True) > 1e-9
        centres = torch.where(filled, nn.functional.normalize(total, dim=1), centres)
    return chosen, centres


def contrastive(x: Tensor, y: Tensor, x_label: Tensor, y_label: Tensor, margin: float = 1.0) -> Tensor:
    """Draw one class together and keep others `margin` apart, across domains (Motiian et al. 2017).

    Parameters
    ----------
    x, y
        `(n, F)` and `(m, F)`, compared on the unit sphere.
    x_label, y_label
        `(n,)` and `(m,)`.
    margin
        Chord of the unit sphere, at most 2.
    """
    # Chord on the sphere, softened near 0, where the slope of the root is infinite.
    cosine = nn.functional.normalize(x, dim=1) @ nn.functional.normalize(y, dim=1).T
    distance = (2 - 2 * cosine).clamp_min(0).add(1e-8).sqrt()
    same = x_label[:, None] == y_label[None]  # (n, m)
    near = distance.square()
    far = (margin - distance).clamp_min(0).square()
    return torch.where(same, near, far).mean()


def entropy(p: Tensor) -> Tensor:
    """Entropy `(n,)` in nats of probabilities `(n, K)`."""
    return -(p * p.clamp_min(1e-12).log()).sum(1)


def separation(p: Tensor, margin: float) -> Tensor:
    """Push entropies away from `log(K) / 2` (Saito et al. 2020, NeurIPS 33, 16282).

    Rows more certain than the middle become more certain; rows less certain (of classes that the source does
    not have) become less certain; those within `margin` of the middle are left alone.

    Parameters
    ----------
    p
        `(n, K)` probabilities.
    margin
        Nats.
    """
    middle = math.log(p.shape[1]) / 2
    off = (entropy(p) - middle).abs()
    return torch.where(off > margin, -off, torch.zeros_like(off)).mean()


def class_weight(label: Tensor, shares: Tensor) -> Tensor:
    """Weight `(n,)` per row that gives a batch the class shares `(K,)`; mean 1.

    Every label is from 0 to K - 1.
    """
    count = nn.functional.one_hot(label, len(shares)).sum(0).to(shares.dtype)
    # A class that is absent from the batch cannot be given its share: the others take it.
    weight = (shares / count.clamp_min(1))[label]
    total = weight.sum()
    # Decided on the device: asking for the sum would make a GPU wait for the host in every step.
    return torch.where(total > 0, weight * len(label) / total, torch.ones_like(weight))
