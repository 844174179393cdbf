"""Where in an image the answer of a network comes from.

Each function takes a network, images `(n, B, H, W)` and the answer to explain, and returns maps. The answer
is a function of the outputs `(n, outputs)` -> `(n,)`; for lens finding it is the logit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ripple.learn.model.network import Net

Answer = Callable[[Tensor], Tensor]


def saliency(net: Net, image: Tensor, answer: Answer) -> Tensor:
    """Gradient of the answer with respect to each pixel, `(n, B, H, W)` (Simonyan et al. 2014, ICLR-W)."""
    return _gradient(net, image, answer)


def _gradient(net: Net, image: Tensor, answer: Answer) -> Tensor:
    x = image.detach().clone().requires_grad_(True)
    # Rows do not depend on each other in evaluation mode: the gradient of the sum is that of each row.
    (slope,) = torch.autograd.grad(answer(net(x)).sum(), x)
    return slope


def integrated_gradients(
    net: Net, image: Tensor, answer: Answer, *, baseline: Tensor | None = None, steps: int = 64
) -> Tensor:
    """Share of each pixel in the answer, `(n, B, H, W)` (Sundararajan et al. 2017, ICML 70, 3319).

    The shares sum to the difference between the answers for image and baseline, up to the error of the
    midpoint rule with `steps` points.

    Parameters
    ----------
    net, image, answer
        See the module.
    baseline
        `(n, B, H, W)`; default: every plane at its own median, that is an empty sky of the same level.
    steps
        Points on the way from baseline to image.
    """
    start = image.flatten(2).median(2).values[..., None, None] if baseline is None else baseline
    way = image - start  # (n, B, H, W)
    total = torch.zeros_like(image)
    # One step at a time: all of them as one batch would need `steps` times the memory.
    for k in range(steps):
        total += _gradient(net, start + way * ((k + 0.5) / steps), answer)
    return way * total / steps


def grad_cam(net: Net, image: Tensor, answer: Answer) -> Tensor | None:
    """Where the last feature maps speak for the answer, `(n, H, W)` in [0, 1].

    Selvaraju et al. 2017 (ICCV, 618). None for a network without feature maps (vision transformers).
    """
    maps = last_maps(net, image)
    if maps is None:
        return None
    kept, outputs = maps
    (slope,) = torch.autograd.grad(answer(outputs).sum(), kept)
    weight = slope.mean((2, 3), keepdim=True)  # (n, C, 1, 1)
    # Negative sums speak for another answer: Grad-CAM shows only what speaks for this one.
    found = (weight * kept).sum(1).clamp_min(0).detach()
    return _enlarged(found, image)


def activation(net: Net, image: Tensor) -> Tensor | None:
    """Mean absolute value of the last feature maps, `(n, H, W)` in [0, 1]; None as in `grad_cam`."""
    maps = last_maps(net, image)
    return None if maps is None else _enlarged(maps[0].detach().abs().mean(1), image)


def _enlarged(found: Tensor, image: Tensor) -> Tensor:
    """Maps `(n, h, w)` scaled to a maximum of 1 and enlarged to the images, `(n, H, W)`."""
    found = found / found.amax((1, 2), keepdim=True).clamp_min(1e-12)
    size = list(image.shape[2:])
    return nn.functional.interpolate(found[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def last_maps(net: Net, image: Tensor) -> tuple[Tensor, Tensor] | None:
    """The last feature maps that still localise, `(n, C, h, w)` with h at least H / 8, and the outputs.

    The very last layer has only 2 or 3 pixels left of a small cutout; of a network that shrinks its maps
    faster, the last ones larger than a pixel are taken.
    """
    kept: list[Tensor] = []
    enough = min(image.shape[2:]) // 8

    def keep(module: nn.Module, given: object, out: object) -> None:
        if not isinstance(out, Tensor) or out.ndim != 4 or not out.requires_grad:
            return
        # Layers are called in order: each one that still has the resolution replaces the one before it.
        side, before = min(out.shape[2:]), min(kept[0].shape[2:]) if kept else 0
        if side > 1 and (side >= enough or before < enough):
            kept[:] = [out]

    hooks = [m.register_forward_hook(keep) for m in net.backbone.modules()]
    try:
        # The image needs a gradient even if all weights are frozen, or no map would carry one.
        outputs = net(image.detach().clone().requires_grad_(True))
    finally:
        for hook in hooks:
            hook.remove()
    return (kept[0], outputs) if kept else None


@torch.no_grad()
def band_ablation(net: Net, image: Tensor, answer: Answer) -> Tensor:
    """Change of the answer when a band is replaced by empty sky, `(n, B)`: negative if it spoke for it."""
    before = answer(net(image))
    # The median and not 0: after normalisation, 0 need not be the level of the sky.
    empty = image.flatten(2).median(2).values[..., None, None]  # (n, B, 1, 1)
    changes = []
    for b in range(image.shape[1]):
        without = image.clone()
        without[:, b] = empty[:, b]
        changes.append(answer(net(without)) - before)
    return torch.stack(changes, 1)
