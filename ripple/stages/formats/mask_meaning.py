"""What the bits of a foreign mask mean, in the mask planes of Rubin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ripple.errors import ConfigError
from ripple.imaging.batch import MASK_PLANES, unsigned_bits


def planes_of_mask(
    mask: NDArray[np.generic], bits: Mapping[str, int], *, meaning: str, where: str, complete: bool = False
) -> NDArray[np.uint32]:
    """A mask in bits of `MASK_PLANES`, uint32 of the same shape.

    Parameters
    ----------
    mask
        Integers, booleans, or floats that are whole numbers.
    bits
        Mask plane -> bit. Planes that RIPPLe does not know mean nothing.
    meaning
        What 1 means where `bits` is empty: `bad` or `good`.
    where
        File and HDU or array, for messages.
    complete
        `bits` names every bit that the source uses: others that are set mean BAD. Else others mean nothing.

    Raises
    ------
    ValueError
        It is no mask, or it has bits that nobody named.
    """
    values = _unsigned(mask, where)
    bad = np.uint32(1 << MASK_PLANES.index("BAD"))
    out = np.zeros(values.shape, np.uint32)
    if not bits:
        if values.max(initial=0) > 1:
            seen = ", ".join(str(k) for k in range(64) if (values >> np.uint64(k) & np.uint64(1)).any())
            raise ValueError(
                f"{where}: nobody says what the bits {seen} of the mask mean; name those that matter with "
                "--mask-bits BAD=0,... or use --mask ignore"
            )
        out[(values == 0) if meaning == "good" else (values != 0)] |= bad
        return out
    for name, bit in bits.items():
        if name in MASK_PLANES:
            hit = ((values >> np.uint64(bit)) & np.uint64(1)).astype(np.uint32)
            out |= hit << np.uint32(MASK_PLANES.index(name))
    if complete:
        named = np.uint64(sum({1 << bit for bit in bits.values()}))
        out[(values & ~named) != 0] |= bad
    return out


def _unsigned(mask: NDArray[np.generic], where: str) -> NDArray[np.uint64]:
    if mask.dtype.kind == "b":
        return mask.astype(np.uint64)
    if mask.dtype.kind in "iu":
        return unsigned_bits(np.ascontiguousarray(mask))
    values = np.nan_to_num(np.asarray(mask, np.float64), nan=1.0)
    if (values != np.floor(values)).any() or values.min(initial=0) < 0 or values.max(initial=0) >= 2**53:
        raise ValueError(f"{where} is a mask of fractions")
    return values.astype(np.uint64)


def named_bits(given: Sequence[str]) -> dict[str, int]:
    """`BAD=0,SAT=1` as mask plane -> bit.

    Raises
    ------
    ConfigError
        A plane is not known, or a bit is no number from 0 to 63.
    """
    out: dict[str, int] = {}
    for item in given:
        name, equals, bit = (part.strip() for part in item.partition("="))
        if not equals or not bit.isdecimal() or int(bit) > 63:
            raise ConfigError(f"--mask-bits: {item!r} is not NAME=BIT", hint="as in BAD=0,SAT=1,DETECTED=5")
        if name.upper() not in MASK_PLANES:
            raise ConfigError(
                f"--mask-bits: no mask plane {name!r}", hint="known are " + ", ".join(MASK_PLANES)
            )
        out[name.upper()] = int(bit)
    return out
