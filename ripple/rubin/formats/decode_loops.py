"""Compiled loops of the tile decoder. Importing this module loads numba: import it where a tile is decoded.

A *job* is one row of an int64 table: `start` of the tile's bytes in `raw`, `height` and `width` of the tile,
the window `y0, y1, x0, x1` of it that is wanted, and the pixel `row, column` of the output where it goes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

# nogil: the threads that hash and write go on meanwhile. cache: compiled once per installation.
_compile: Callable[[Callable[..., Any]], Callable[..., Any]] = numba.njit(cache=True, nogil=True)


def load() -> None:
    """Load the loops that every dense read needs: their first call takes tenths of a second."""
    raw = np.frombuffer(bytes(32), np.uint8)  # read-only, as inflated tiles: another type for numba
    jobs, none = np.zeros((0, 9), np.int64), np.zeros(0, np.int64)
    unshuffle4(raw, jobs, np.zeros((1, 1), np.uint32))
    unpack(raw, jobs, True, np.zeros((1, 1), np.uint8))
    unpack(raw.copy(), jobs, True, np.zeros((1, 1), np.uint64))
    bits = np.zeros(0, np.uint32)
    move_bits(bits, bits, none, bits)


@_compile
def unshuffle4(raw: Any, jobs: Any, out: Any) -> None:
    """Shuffled big-endian 4-byte pixels (GZIP_2) to native ones; `raw` uint8, `out` `(H, W)` uint32."""
    for t in range(jobs.shape[0]):
        start, height, width = jobs[t, 0], jobs[t, 1], jobs[t, 2]
        y0, y1, x0, x1 = jobs[t, 3], jobs[t, 4], jobs[t, 5], jobs[t, 6]
        n = height * width  # bytes between the four planes of bytes
        for y in range(y0, y1):
            first = start + y * width + x0
            # Slices give the compiler unit strides to vectorise over.
            b0 = raw[first : first + x1 - x0]
            b1 = raw[first + n : first + n + x1 - x0]
            b2 = raw[first + 2 * n : first + 2 * n + x1 - x0]
            b3 = raw[first + 3 * n : first + 3 * n + x1 - x0]
            line = out[jobs[t, 7] + y - y0, jobs[t, 8] : jobs[t, 8] + x1 - x0]
            for x in range(x1 - x0):
                line[x] = (
                    (np.uint32(b0[x]) << np.uint32(24))
                    | (np.uint32(b1[x]) << np.uint32(16))
                    | (np.uint32(b2[x]) << np.uint32(8))
                    | np.uint32(b3[x])
                )


@_compile
def unpack(raw: Any, jobs: Any, shuffled: bool, out: Any) -> None:
    """Big-endian pixels of any size to native ones; `out` `(H, W)` unsigned of that size."""
    size = out.itemsize
    for t in range(jobs.shape[0]):
        start, height, width = jobs[t, 0], jobs[t, 1], jobs[t, 2]
        y0, x0, run = jobs[t, 3], jobs[t, 5], jobs[t, 6] - jobs[t, 5]
        for y in range(y0, jobs[t, 4]):
            line = out[jobs[t, 7] + y - y0, jobs[t, 8] : jobs[t, 8] + run]
            line[:] = 0
            # Byte by byte from the highest: shifting what is there makes room for the next.
            for b in range(size):
                if shuffled:
                    first = start + b * height * width + y * width + x0
                    part = raw[first : first + run]
                else:
                    first = start + (y * width + x0) * size + b
                    part = raw[first : first + run * size : size]
                for x in range(run):
                    line[x] = (line[x] << 8) | part[x]


@_compile
def dequantize(
    integers: Any,
    job: Any,
    scale: float,
    zero: float,
    first: int,
    dither: int,
    random: Any,
    starts: Any,
    blanks: bool,
    blank: int,
    out: Any,
) -> None:
    """One tile of quantised integers to floats (FITS 4.0, section 10.2; the arithmetic of CFITSIO).

    `integers` flat int32 of the tile; `first` position in the random sequence; `dither` 0 none, 1 or 2 the
    SUBTRACTIVE_DITHER of that number; `random` the sequence and `starts` where each position begins in it.
    """
    width, y0, y1, x0, x1 = job[2], job[3], job[4], job[5], job[6]
    special = np.int32(-2147483646)  # an exact zero, in SUBTRACTIVE_DITHER_2
    seed, position = first, starts[first]
    # From row 0: the random sequence runs over all pixels of the tile, also those that are not wanted.
    for y in range(y1):
        x = 0
        while x < width:
            # A run ends where the line or the random sequence ends.
            run = min(width - x, random.shape[0] - position)
            low, high = max(x, x0), min(x + run, x1)
            if y >= y0 and low < high:
                values = integers[y * width + low : y * width + high]
                noise = random[position + low - x : position + high - x]
                into = out[job[7] + y - y0, job[8] + low - x0 : job[8] + high - x0]
                for i in range(high - low):
                    value = values[i]
                    # Double precision in this order, as CFITSIO: other orders differ in the last bit.
                    result: Any = (np.float64(value) - np.float64(noise[i]) + 0.5) * scale + zero
                    if dither == 0:
                        result = value * scale + zero
                    if dither == 2 and value == special:
                        result = 0.0
                    if blanks and value == blank:
                        result = np.nan
                    into[i] = result
            x += run
            position += run
            if position == random.shape[0]:
                # As CFITSIO: at its end the sequence starts again, from the place of the next tile.
                seed = seed + 1 if seed + 1 < random.shape[0] else 0
                position = starts[seed]


@_compile
def unrice(words: Any, length: int, count: int, block: int, size: int, zeros_of: Any, out: Any) -> bool:
    """Rice-coded `count` pixels of `size` bytes (RICE_1; FITS 4.0, section 10.4.1) to uint32 `out`.

    `words` are the `length` bytes as native uint32, first bit highest, and at least 3 words of zeros;
    `zeros_of` the number of leading zeros of each byte. Returns False when the bytes end too early.
    """
    # Bits of the split value, and the split that marks pixels stored as they are (section 10.4.1).
    code, most = (5, 25) if size == 4 else ((4, 14) if size == 2 else (3, 6))
    width = np.uint64(size * 8)
    mask = (np.uint64(1) << width) - np.uint64(1)
    one, word = np.uint64(1), np.uint64(32)
    # `buffer` holds the next `bits` bits, left-aligned; 32 of them are enough for whatever is read at once.
    buffer = (np.uint64(words[0]) << word) | np.uint64(words[1])
    last = buffer >> (np.uint64(64) - width)
    buffer <<= width
    following = 2
    bits: Any = 64 - size * 8
    for i in range(0, count, block):
        if bits < 32:
            if following >= words.shape[0]:
                return False
            buffer |= np.uint64(words[following]) << np.uint64(32 - bits)
            following, bits = following + 1, bits + 32
        split = np.int64(buffer >> np.uint64(64 - code)) - 1
        buffer <<= np.uint64(code)
        bits -= code
        stop = min(i + block, count)
        if split < 0:  # no differences: the block repeats the last pixel
            for k in range(i, stop):
                out[k] = last
            continue
        low = np.uint64(split)
        for k in range(i, stop):
            if bits < 32:
                if following >= words.shape[0]:
                    return False
                buffer |= np.uint64(words[following]) << np.uint64(32 - bits)
                following, bits = following + 1, bits + 32
            if split == most:
                coded = buffer >> (np.uint64(64) - width)
                used = width
            else:
                coded = np.uint64(0)
                # The unary part, eight zeros at a time; a table gives the rest.
                while buffer >> np.uint64(56) == np.uint64(0):
                    coded += np.uint64(8)
                    buffer <<= np.uint64(8)
                    bits -= 8
                    if bits < 32:
                        if following >= words.shape[0]:
                            return False
                        buffer |= np.uint64(words[following]) << np.uint64(32 - bits)
                        following, bits = following + 1, bits + 32
                zeros = np.uint64(zeros_of[buffer >> np.uint64(56)])
                tail = (buffer << (zeros + one)) >> np.uint64(32)
                coded = ((coded + zeros) << low) | (tail >> (word - low))
                used = zeros + one + low
            buffer <<= used
            bits -= np.int64(used)
            # Differences are coded 0, -1, 1, -2, ...: the lowest bit is the sign.
            last = (last + ((coded >> one) ^ (np.uint64(0) - (coded & one)))) & mask
            out[k] = last
    # More bits used than there were bytes: the zeros behind the end were read as pixels.
    complete: bool = following * 4 - bits // 8 <= length
    return complete


@_compile
def move_bits(mask: Any, chosen: Any, distances: Any, out: Any) -> None:
    """For each k: bits `chosen[k]` of flat `mask`, moved `distances[k]` to the left; `out` flat uint32."""
    step = 4096  # pixels that stay in the cache
    for first in range(0, mask.shape[0], step):
        part, into = mask[first : first + step], out[first : first + step]
        into[:] = 0
        for k in range(distances.shape[0]):
            # One of the two shifts is zero, so the loop below needs no branch.
            left, right = np.uint64(max(distances[k], 0)), np.uint64(max(-distances[k], 0))
            for i in range(part.shape[0]):
                into[i] |= np.uint32(((part[i] & chosen[k]) >> right) << left)
