"""Train, validation and test by sky block, stable when rows are added, and checks that nothing leaks.

Two galaxies a few arcseconds apart share pixels, noise and PSF. A split by row puts them on both sides and
flatters every metric; a split by block keeps them together, and `drop_neighbours` removes the pairs that
straddle a border.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from ripple.errors import ConfigError, DataError
from ripple.sky.neighbours import chord, unit_vectors

TRAIN, VALIDATION, TEST = 0, 1, 2
#: Blocks of sky unless said otherwise: cells of 1.7 arcmin, many cutouts wide and enough for even fractions.
NSIDE = 2048
#: Split value -> name. -1 means "in no split" (dropped next to a border).
SPLITS: tuple[str, ...] = ("train", "validation", "test")

Float = NDArray[np.float64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, the step of SplitMix64


def sky_cells(ra: ArrayLike, dec: ArrayLike, nside: int) -> NDArray[np.int64]:
    """HEALPix cell (nested) of each position.

    Parameters
    ----------
    ra, dec
        `(N,)` deg ICRS.
    nside
        A power of two; a cell is `58.6 deg / nside` wide: 2048 -> 1.7 arcmin, 256 -> 14 arcmin.

    Returns
    -------
    `(N,)` int64; -1 where the position is not finite.

    Raises
    ------
    ConfigError
        `nside` is not a power of two.
    """
    if nside < 1 or nside & (nside - 1) or nside > 1 << 29:
        raise ConfigError(f"nside {nside} is not a power of two", hint="for example 256 or 2048")
    import astropy.units as u
    from astropy_healpix import lonlat_to_healpix

    lon, lat = np.asarray(ra, np.float64), np.asarray(dec, np.float64)
    good = np.isfinite(lon) & np.isfinite(lat)
    # -1 is not a HEALPix cell: callers see which rows have no position.
    cells = np.full(lon.shape, -1, np.int64)
    cells[good] = lonlat_to_healpix(lon[good] * u.deg, lat[good] * u.deg, nside, order="nested")
    return cells


def split_blocks(
    ra: ArrayLike,
    dec: ArrayLike,
    *,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    nside: int = NSIDE,
) -> NDArray[np.int8]:
    """Assign every row to a split by the HEALPix cell it lies in.

    The split of a cell is a hash of (seed, cell) and nothing else: adding or removing rows never moves
    another row. The fractions hold for cells, so few cells give rough fractions.

    Parameters
    ----------
    ra, dec
        `(N,)` deg ICRS, finite.
    fractions
        Train, validation, test; sum 1.
    seed
        Another seed, another choice of cells.
    nside
        Cell size, see `sky_cells`.

    Returns
    -------
    `(N,)` int8: 0 train, 1 validation, 2 test.

    Raises
    ------
    DataError
        A position is not finite (rows without a position: `split_keys`).
    """
    cells = sky_cells(ra, dec, nside)
    if (cells < 0).any():
        raise DataError(
            f"{int((cells < 0).sum())} rows have no position, first row {int(np.argmax(cells < 0))}",
            hint="split rows without positions by a key, such as their id",
        )
    return split_keys(cells, fractions=fractions, seed=seed)


def split_keys(
    keys: ArrayLike, *, fractions: Sequence[float] = (0.7, 0.15, 0.15), seed: int = 0
) -> NDArray[np.int8]:
    """Assign every row to a split by a key: rows with equal keys stay together.

    Parameters
    ----------
    keys
        `(N,)` integers (a tract, a patch, a cell) or strings (an id).
    fractions, seed
        As in `split_blocks`.

    Returns
    -------
    `(N,)` int8: 0 train, 1 validation, 2 test.
    """
    parts = np.asarray(fractions, np.float64)
    if parts.shape != (3,) or (parts < 0).any() or abs(parts.sum() - 1) > 1e-9:
        raise ConfigError(
            f"split fractions {tuple(fractions)} cannot be used",
            hint="give three non-negative numbers with sum 1",
        )
    values = np.asarray(keys)
    words = values.astype(np.int64).view(np.uint64) if values.dtype.kind in "iu" else _hash_texts(values)
    # uint64 to [0, 1): the cumulative fractions divide that interval.
    uniform = mix64(words, seed).astype(np.float64) / 2.0**64
    return np.searchsorted(np.cumsum(parts)[:2], uniform, side="right").astype(np.int8)


def _hash_texts(values: NDArray[np.generic]) -> NDArray[np.uint64]:
    unique, inverse = np.unique(values.astype(str), return_inverse=True)
    # Python's own hash of a string differs from run to run.
    digests = [hashlib.blake2b(str(v).encode(), digest_size=8).digest() for v in unique]
    return np.frombuffer(b"".join(digests), "<u8")[inverse].astype(np.uint64)


def mix64(words: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Hash of (seed, word), the same on every machine and in every version.

    SplitMix64's finaliser (Steele, Lea & Flood 2014), twice, so that near seeds and near words part ways.

    Parameters
    ----------
    words
        Any shape, uint64.
    seed
        Any integer; its low 64 bits count.
    """
    x = words ^ np.uint64((seed * int(_GOLDEN)) & (2**64 - 1))
    # The constants are those of SplitMix64; products wrap around at 2^64, as intended.
    for _ in range(2):
        x = x + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return x


def drop_neighbours(
    ra: ArrayLike, dec: ArrayLike, split: NDArray[np.int8], *, radius: float
) -> NDArray[np.int8]:
    """Take rows out of their split that lie too near to a row of a later one.

    Training rows within `radius` of a validation or test row, and validation rows within `radius` of a test
    row, get -1. The test set stays whole.

    Parameters
    ----------
    ra, dec
        `(N,)` deg ICRS.
    split
        `(N,)` int8 from `split_blocks`.
    radius
        Arcsec; the diagonal of a cutout keeps any two splits free of shared pixels.

    Returns
    -------
    `(N,)` int8, a copy.
    """
    out = split.copy()
    first, second = _near_pairs(ra, dec, split, radius)
    # The row of the earlier split goes: training rows are many, test rows few.
    out[np.where(split[first] < split[second], first, second)] = -1
    return out


def check_leakage(
    ra: ArrayLike,
    dec: ArrayLike,
    split: NDArray[np.int8],
    *,
    radius: float = 1.0,
    image: NDArray[np.floating] | None = None,
) -> None:
    """Refuse splits that share an object or an image.

    Parameters
    ----------
    ra, dec
        `(N,)` deg ICRS; rows without a finite position are compared by pixels only.
    split
        `(N,)` int8; -1 is in no split.
    radius
        Arcsec; positions nearer than this are one object.
    image
        `(N, B, H, W)`; when given, identical and nearly identical images count too (see `twin_images`).

    Raises
    ------
    DataError
        Rows of different splits are the same object or image; names how many and the first pair.
    """
    first, second = _near_pairs(ra, dec, split, radius)
    _raise_if_pairs(first, second, split, f"lie within {radius:g} arcsec of each other")
    if image is not None:
        _raise_if_pairs(*twin_images(image, split), split, "show the same pixels")


def _raise_if_pairs(
    first: NDArray[np.int64], second: NDArray[np.int64], split: NDArray[np.int8], what: str
) -> None:
    if len(first) == 0:
        return
    a, b = int(first[0]), int(second[0])
    raise DataError(
        f"leakage between splits: {len(first)} pairs of rows {what}, first rows {a} ({SPLITS[split[a]]}) "
        f"and {b} ({SPLITS[split[b]]})",
        hint="split by larger sky cells, drop neighbours, or remove the copies",
    )


def _near_pairs(
    ra: ArrayLike, dec: ArrayLike, split: NDArray[np.int8], radius: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows `(first, second)` of different splits nearer than `radius` arcsec, ordered."""
    points = unit_vectors(ra, dec)
    known = np.isfinite(points).all(axis=1)
    members = [np.flatnonzero(known & (split == s)) for s in range(3)]
    return _pairs_between([scipy.spatial.cKDTree(points[m]) for m in members], members, chord(radius))


def twin_images(
    image: NDArray[np.floating], split: NDArray[np.int8], *, tolerance: float = 0.02
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of different splits with (nearly) the same image.

    Every band is binned to 8x8, its mean subtracted, and the row scaled to unit length; rows nearer than
    `tolerance` in that space are the same picture, also after a change of scale or level. Rows without
    structure (all pixels equal) are left out.

    Parameters
    ----------
    image
        `(N, B, H, W)`, finite, H and W at least 8.
    split
        `(N,)` int8; -1 is in no split.
    tolerance
        Distance of unit vectors; 0.02 is a correlation of 0.9998.

    Returns
    -------
    first, second
        `(P,)` int64 row numbers, ordered.
    """
    return twin_thumbnails(thumbnails(image), split, tolerance=tolerance)


def thumbnails(image: NDArray[np.floating]) -> NDArray[np.float32]:
    """Every band binned to 8x8, its mean subtracted and the row scaled to unit length, `(N, B * 64)`.

    Rows without structure (all pixels equal) are zero.

    Parameters
    ----------
    image
        `(N, B, H, W)`, finite, H and W at least 8.
    """
    n, b, h, w = image.shape
    if h < 8 or w < 8:
        raise DataError(
            f"images of {h}x{w} pixels are too small to compare", hint="at least 8x8 pixels are needed"
        )
    high, wide = h // 8, w // 8
    small = np.zeros((n, b, 8, 8))
    for k, row in enumerate(image):  # an image set need not fit in memory as float64
        trimmed = row[:, : 8 * high, : 8 * wide].reshape(b, 8, high, 8, wide)
        small[k] = trimmed.mean(axis=(2, 4), dtype=np.float64)
    flat = (small - small.mean(axis=(2, 3), keepdims=True)).reshape(n, -1)
    # All bands as one vector: equal colours count as well as equal shapes.
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.where(norm > 0, flat / np.where(norm > 0, norm, 1), 0).astype(np.float32)


def twin_thumbnails(
    flat: NDArray[np.float32], split: NDArray[np.int8], *, tolerance: float = 0.02
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`twin_images` of `thumbnails` `(N, F)`, which take much less memory than the images."""
    good = flat.any(axis=1) & (split >= 0)
    members = [np.flatnonzero(good & (split == s)) for s in range(3)]
    trees = [scipy.spatial.cKDTree(flat[m]) for m in members]
    return _pairs_between(trees, members, tolerance)


def _pairs_between(
    trees: list[Any], members: list[NDArray[np.int64]], radius: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs between different trees within `radius`, as sorted row numbers."""
    pairs: list[tuple[int, int]] = []
    # One tree per split: pairs within a split are many and do not matter.
    for s, t in ((0, 1), (0, 2), (1, 2)):
        if len(members[s]) == 0 or len(members[t]) == 0:
            continue
        near = trees[s].query_ball_tree(trees[t], radius)
        pairs += [(int(members[s][i]), int(members[t][j])) for i, found in enumerate(near) for j in found]
    array = np.array(sorted((min(p), max(p)) for p in pairs), np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1]
