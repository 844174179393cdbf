"""Augmentation on the device, reproducible row by row.

The augmentation of a row is a function of (seed, epoch, row, draw) alone: the same on one GPU or eight, in
any batch, with any number of reading threads. `draw` counts how often the epoch had the row before, which
happens when classes are balanced. Random numbers come from an integer hash and not from a generator, whose
state would depend on the rows before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ripple.errors import ConfigError

_MASK = 0xFFFFFFFF
# One stream of random numbers per decision.
_D4, _DX, _DY, _BLUR, _NOISE, _PIXELS, _SKY = range(7)


@dataclass(frozen=True, slots=True)
class Augment:
    """Augmentation of each row, in this order: D4, shift, blur, sky, noise.

    Parameters
    ----------
    d4
        One of the 8 symmetries of the square (4 when images are not square), with equal probability.
    shift
        Largest shift along each axis in whole pixels; edges are mirrored.
    blur
        Largest sigma in pixels of a round Gaussian, like slightly worse seeing; uniform from 0 to `blur`.
    noise
        Largest sigma of added Gaussian noise in the units of the tensor; uniform from 0 to `noise`.
    sky
        Sigma of a level added to each plane, in the units of the tensor, like a residual of sky subtraction.
    """

    d4: bool = True
    shift: int = 0
    blur: float = 0.0
    noise: float = 0.0
    sky: float = 0.0

    def __post_init__(self) -> None:
        if min(self.shift, self.blur, self.noise, self.sky) < 0:
            raise ConfigError(f"{self} is not possible", hint="shift, blur, noise and sky are 0 or larger")

    def __call__(
        self, image: Tensor, row: Tensor, *, seed: int, epoch: int, draw: Tensor | None = None
    ) -> Tensor:
        """Augmented copy of a batch.

        Parameters
        ----------
        image
            `(n, B, H, W)` floating point.
        row
            `(n,)` int64 global row numbers, on the same device.
        seed, epoch
            Of the loader.
        draw
            `(n,)` int64, how often the epoch had each row before; None: never.

        Returns
        -------
        `(n, B, H, W)`, dtype of `image`.
        """
        if len(image) == 0:
            return image
        key = key_of(row, seed, epoch, draw)
        if self.d4:
            image = orient(image, _d4_element(key, image.shape[-2] == image.shape[-1]))
        if self.shift:
            dy, dx = (integer_of(key, s, -self.shift, self.shift) for s in (_DY, _DX))
            image = roll_mirrored(image, dy, dx)
        if self.blur:
            image = blur(image, self.blur * uniform_of(key, _BLUR), self.blur)
        # Sky and noise after the blur: an instrument smooths the light, not its own noise.
        if self.sky:
            level = self.sky * normal_of(key, torch.Size([image.shape[1], 1, 1]), _SKY)
            image = image + level.to(image.dtype)
        if self.noise:
            sigma = (self.noise * uniform_of(key, _NOISE)).to(image.dtype)
            image = image + sigma[:, None, None, None] * normal_of(key, image.shape[1:]).to(image.dtype)
        return image


def orient(image: Tensor, element: Tensor) -> Tensor:
    """Apply element `k` of D4 to each row: `k % 4` quarter turns, after a left-right flip when `k >= 4`.

    Parameters
    ----------
    image
        `(n, B, H, W)`.
    element
        `(n,)` int64, 0 to 7; odd ones need H = W.
    """
    turns, mirrored = element % 4, element >= 4

    # Chosen pixel by pixel, not row by row: a GPU need not wait until the host has counted rows.
    def where(chosen: Tensor, this: Tensor, image: Tensor) -> Tensor:
        return torch.where(chosen[:, None, None, None], this, image)

    odd = turns % 2 == 1
    # A quarter turn is a left-right flip and a swap of the axes.
    image = where(mirrored ^ odd, image.flip(-1), image)
    if image.shape[-2] == image.shape[-1]:
        image = where(odd, image.transpose(-2, -1), image)
    return where(turns >= 2, image.flip(-2, -1), image)


def roll_mirrored(image: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    """Shift each row by whole pixels: `out[y, x] = image[y - dy, x - dx]`, mirrored at the edges.

    Parameters
    ----------
    image
        `(n, B, H, W)`.
    dy, dx
        `(n,)` int64, smaller than H and W.
    """
    n, b, h, w = image.shape
    y = _mirror(torch.arange(h, device=image.device)[None] - dy[:, None], h)  # (n, H)
    x = _mirror(torch.arange(w, device=image.device)[None] - dx[:, None], w)  # (n, W)
    # Two gathers, one per axis, because every row has its own shift.
    image = image.gather(2, y[:, None, :, None].expand(n, b, h, w))
    return image.gather(3, x[:, None, None, :].expand(n, b, h, w))


def blur(image: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Convolve each row with a round Gaussian of its own width, edges mirrored.

    Parameters
    ----------
    image
        `(n, B, H, W)`.
    sigma
        `(n,)` pixels; 0 leaves a row as it is.
    largest
        Upper bound of `sigma`; the kernel reaches to 4 times this.
    """
    reach = min(max(1, int(4 * largest + 0.999)), image.shape[-1] - 1, image.shape[-2] - 1)
    offsets = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
    # All rows share the reach of the widest kernel, so that they can be convolved together.
    weight = torch.exp(-0.5 * (offsets / sigma.clamp_min(1e-3).to(image.dtype)[:, None]) ** 2)
    weight = weight / weight.sum(dim=1, keepdim=True)  # (n, K)
    for axis, pad in ((-1, (reach, reach, 0, 0)), (-2, (0, 0, reach, reach))):
        padded = torch.nn.functional.pad(image, pad, mode="reflect")
        size = image.shape[axis]
        taps = (weight[:, k, None, None, None] * padded.narrow(axis, k, size) for k in range(2 * reach + 1))
        total = torch.zeros_like(image)
        for tap in taps:  # one tap at a time: all shifted copies at once would take K times the memory
            total += tap
        image = total
    return image


def _mirror(index: Tensor, size: int) -> Tensor:
    """Indices beyond the edges reflected into 0 .. size - 1, without repeating the edge pixel."""
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)


def taken(plane: Tensor, place: Tensor) -> Tensor:
    """Pixels of a plane at flat places of any shape; a tenth of the time of indexing on CPUs."""
    return plane.reshape(-1).index_select(0, place.reshape(-1)).view_as(place)


def _d4_element(key: Tensor, square: bool) -> Tensor:
    if square:
        return integer_of(key, _D4, 0, 7)
    # Half turns and flips only: a quarter turn would swap H and W.
    return 2 * integer_of(key, _D4, 0, 3)


def _mix[Number: (int, Tensor)](x: Number) -> Number:
    """32-bit hash in int64 (Ellis, "lowbias32")."""
    # torch has no uint32 arithmetic; the product overflows, but its low 32 bits are exact.
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def key_of(row: Tensor, seed: int, epoch: int, draw: Tensor | None = None) -> Tensor:
    """`(n,)` int64 below 2^32 from (seed, epoch, row, draw), from which the numbers of a row are made."""
    # Seeds and rows may exceed 32 bits: both halves count. Numbers, not tensors, which a GPU would wait for.
    base = _mix(_mix(_mix(seed & _MASK) ^ ((seed >> 32) & _MASK)) ^ (epoch & _MASK))
    key = _mix(_mix(base ^ (row & _MASK)) ^ ((row >> 32) & _MASK) ^ 0x5BD1E995)
    if draw is None:
        return key
    # Other numbers for every repeat: twice the same picture would teach nothing.
    return torch.where(draw > 0, _mix(key ^ (draw * 0x9E3779B1 & _MASK)), key)


def uniform_of(key: Tensor, stream: int) -> Tensor:
    """`(n,)` float32 in [0, 1), 24 bits."""
    return (_mix(key ^ ((stream + 1) * 0x9E3779B9 & _MASK)) >> 8).to(torch.float32) / 2**24


def integer_of(key: Tensor, stream: int, low: int, high: int) -> Tensor:
    """`(n,)` int64 from `low` to `high`, both included."""
    return low + (uniform_of(key, stream) * (high - low + 1)).to(torch.int64)


def normal_of(key: Tensor, shape: torch.Size, stream: int = _PIXELS) -> Tensor:
    """`(n, *shape)` float32 standard normal (Box-Muller)."""
    pixels = torch.arange(shape.numel(), device=key.device)
    words = _mix(_mix(key ^ ((stream + 1) * 0x9E3779B9 & _MASK))[:, None] ^ _mix(pixels)[None])
    # Half a step above 0, because the logarithm of 0 is infinite.
    first = ((words >> 8).to(torch.float32) + 0.5) / 2**24
    second = (_mix(words ^ 0x68E31DA4) >> 8).to(torch.float32) / 2**24
    values = torch.sqrt(-2.0 * torch.log(first)) * torch.cos(2.0 * torch.pi * second)
    return values.reshape(len(key), *shape)
