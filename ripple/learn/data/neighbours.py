"""Galaxies of some rows, put beside those of others: on a deeper or denser sky a target has more neighbours.

Only the source at the centre of a cutout is taken, without its sky, so that hardly any noise comes with it.
As in `augment`, which galaxy comes where is a function of (seed, epoch, row, draw).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor

from ripple.errors import DataError
from ripple.imaging.normalize import invert
from ripple.imaging.quality.sky import ENOUGH, detect_sources
from ripple.learn.data.augment import integer_of, taken, uniform_of
from ripple.learn.data.dataset import Rows, TensorDataset, evenly

Float = NDArray[np.float32]
#: Galaxies that are kept at most, and rows that are looked at for them.
KEPT, SEEN = 256, 512
#: Arcsec between the centres of target and neighbour at least: Einstein radii of galaxies end at about 3, and
#: an arc there has still 1 to the core of the neighbour. In small cutouts it is this share of half the side.
INNER, SHARE = 4.0, 0.625
#: Largest radius of a neighbour over the least distance: the innermost 0.3 of that get no light of it at all.
REACH = 0.7
#: Pixels over which its light fades within its mask, as many as `detect_sources` grows a source.
FADE = 3
#: The faintest that a neighbour is made, as a factor on its flux: 1.3 magnitudes.
FAINTEST = 0.3
# Streams of random numbers beyond those of `augment` and `conditions`.
_HAS, _WHICH, _TURN, _ANGLE, _RADIUS, _FLUX = range(40, 46)


@dataclass(frozen=True)
class Neighbours:
    """Galaxies to choose from.

    Parameters
    ----------
    light
        `(B, M, S, S)` float32 nJy, S odd: M galaxies, their target's pixel in the middle, 0 along the edges.
    row
        `(M,)` int64 global row numbers that they come from.
    inner
        Pixels between the centres of target and neighbour, at least.
    """

    light: Tensor
    row: Tensor
    inner: float

    def to(self, device: torch.device) -> Neighbours:
        """The same, on another device."""
        return replace(self, light=self.light.to(device), row=self.row.to(device))

    def beside(self, key: Tensor, row: Tensor, share: float, shape: torch.Size) -> Tensor:
        """Light of one neighbour for a share of the rows, `(n, B, *shape)` nJy; 0 for the others.

        Parameters
        ----------
        key
            `(n,)` of `augment.key_of`.
        row
            `(n,)` int64 global row numbers.
        share
            From 0 to 1.
        shape
            Height and width of a cutout.
        """
        count, side = self.light.shape[1:3]
        which = integer_of(key, _WHICH, 0, count - 1)
        which = torch.where(self.row[which] == row, (which + 1) % count, which)  # not a row beside itself
        at_y, at_x = self._places(key, shape)
        turn = integer_of(key, _TURN, 0, 7)
        y = self._within(torch.arange(shape[0], device=key.device) - at_y[:, None], turn & 1)  # (n, H)
        x = self._within(torch.arange(shape[1], device=key.device) - at_x[:, None], turn & 2)  # (n, W)
        # The axes of the galaxy swapped, or not: with two flips these are all eight turns.
        swap = (turn >= 4)[:, None]
        line, column = torch.where(swap, y, y * side), torch.where(swap, x * side, x)
        place = (which * side**2)[:, None, None] + line[:, :, None] + column[:, None, :]
        factor = torch.where(uniform_of(key, _HAS) < share, FAINTEST ** uniform_of(key, _FLUX), 0.0)
        found = torch.stack([taken(plane, place) for plane in self.light], 1)
        return found * factor[:, None, None, None]

    def _places(self, key: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Pixels `(n,)` of the neighbour's centre: any direction, from `inner` to the edge of the cutout."""
        angle = 2 * torch.pi * uniform_of(key, _ANGLE)
        sine, cosine = torch.sin(angle), torch.cos(angle)
        edge = 0.5 * torch.minimum(
            shape[0] / sine.abs().clamp_min(1e-6), shape[1] / cosine.abs().clamp_min(1e-6)
        )
        # Evenly over the area that there is in this direction.
        room = (edge**2 - self.inner**2).clamp_min(0)
        radius = (self.inner**2 + room * uniform_of(key, _RADIUS)).sqrt()
        y, x = (torch.round(radius * part).to(torch.int64) for part in (sine, cosine))
        return shape[0] // 2 + y, shape[1] // 2 + x

    def _within(self, offset: Tensor, flipped: Tensor) -> Tensor:
        """Pixels of the galaxy for offsets `(n, H)` from its centre; beyond it the edge, where it is 0."""
        half = self.light.shape[-1] // 2
        offset = torch.where((flipped > 0)[:, None], -offset, offset)
        return offset.clamp(-half, half) + half


def neighbours(
    dataset: TensorDataset,
    rows: Rows,
    offset: Float,
    scale: Float,
    noise: Float,
    method: Any,
    pixel_scale: float,
) -> Neighbours:
    """Galaxies at the centres of some rows; always the same ones for the same rows.

    Parameters
    ----------
    dataset
        Where they are read.
    rows
        Global row numbers to choose from: with all bands, and no lenses, whose arcs would come along.
    offset, scale, noise, method
        `(total, B)` nJy of all rows, and the stretch.
    pixel_scale
        Arcsec.

    Raises
    ------
    DataError
        Not even two of the rows show a galaxy.
    """
    rows = evenly(np.sort(rows), SEEN)
    inner = least_distance(dataset.shape[1:], pixel_scale)
    light = invert(dataset.read(rows).astype(np.float32), offset[rows], scale[rows], method)
    good = dataset.read(rows, valid=True) > 0
    found = detect_sources(light, good, noise[rows]) if len(rows) else np.zeros((0, *dataset.shape[1:]), bool)
    cut = [central_source(light[k], good[k], found[k], REACH * inner) for k in range(len(rows))]
    usable = [k for k, one in enumerate(cut) if one is not None]
    if len(usable) < 2:
        raise DataError(
            f"neighbours: of {len(rows)} training rows with all bands and no lens, {len(usable)} show a "
            "source at the centre and sky beside it, and two are needed",
            hint="train without --set neighbours, or on larger cutouts",
        )
    kept = evenly(np.array(usable), KEPT)
    planes = np.stack([cut[k] for k in kept], axis=1)
    return Neighbours(torch.from_numpy(planes), torch.from_numpy(rows[kept]), inner)


def least_distance(shape: tuple[int, ...], pixel_scale: float) -> float:
    """Pixels between the centres of target and neighbour, at least."""
    return min(INNER / pixel_scale, SHARE * min(shape) / 2)


def central_source(
    light: Float, good: NDArray[np.bool_], found: NDArray[np.bool_], reach: float
) -> Float | None:
    """The source at the target's pixel alone, `(B, S, S)` nJy around it, 0 along the edges.

    Parameters
    ----------
    light, good
        `(B, H, W)` nJy, and the pixels that are a measurement.
    found
        `(H, W)` pixels of any source, grown by `FADE`.
    reach
        Pixels from its centre where it ends.

    Returns
    -------
    None where there is no source, no sky to compare it with, or a pixel of it is missing.
    """
    height, width = found.shape
    named, _ = scipy.ndimage.label(found)
    own = named[height // 2, width // 2]
    sky = good & ~found
    if own == 0 or sky.mean(axis=(1, 2)).min() < ENOUGH:
        return None
    y, x = (np.arange(n) - n // 2 for n in (height, width))
    radius = np.hypot(y[:, None], x)
    inside = scipy.ndimage.distance_transform_edt(named == own)
    # Bright galaxies end nowhere: their wings fade over the outer 0.4 of the reach.
    weight = np.clip(inside / FADE, 0, 1) * np.clip((1 - radius / reach) / 0.4, 0, 1)
    if (~good & (weight > 0)).any():
        return None
    level = np.array([np.median(plane[use]) for plane, use in zip(light, sky, strict=True)])
    half = int(reach) + 1
    part = (
        slice(height // 2 - half, height // 2 + half + 1),
        slice(width // 2 - half, width // 2 + half + 1),
    )
    alone = (light - level[:, None, None]) * weight
    return np.ascontiguousarray(alone[:, *part], np.float32)
