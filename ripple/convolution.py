"""Bad pixels filled and planes convolved, in batch: numpy arrays, or torch tensors on any device.

Both run the same operations, so there is one implementation to trust; torch itself is never imported here.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

CHUNK = 16  # kernels transformed at a time: they stay in the cache


def namespace(array: Any) -> Any:
    """The module whose functions take `array`: numpy, or torch when that is what made it."""
    return np if isinstance(array, np.ndarray) else sys.modules[type(array).__module__.partition(".")[0]]


def to_numpy(array: Any) -> NDArray[Any]:
    """`array` in host memory as numpy."""
    return array if isinstance(array, np.ndarray) else np.asarray(array.cpu())


def beside(array: NDArray[Any], like: Any) -> Any:
    """`array` in the library of `like`, and on its device."""
    return array if isinstance(like, np.ndarray) else namespace(like).asarray(array, device=like.device)


def contiguous(array: Any) -> Any:
    """A fresh copy in C order."""
    return array.copy() if isinstance(array, np.ndarray) else array.clone()


def as_float(flags: Any, like: Any) -> Any:
    """Bool to the type of `like`."""
    return flags.astype(like.dtype) if isinstance(flags, np.ndarray) else flags.to(like.dtype)


def _transforms(xp: Any) -> Any:
    # scipy's FFT transforms several lines at once with SIMD; numpy's does not.
    return scipy.fft if xp is np else xp.fft


def reflect(length: int, before: int, after: int) -> NDArray[np.intp]:
    """Indices that extend an axis by reflection about its end pixels, as often as needed."""
    period = max(2 * (length - 1), 1)
    i = np.abs(np.arange(-before, length + after)) % period
    return np.where(i < length, i, period - i).astype(np.intp)


def fill(image: Any, good: Any, passes: int = 6) -> Any:
    """Replace bad pixels by the mean of their good neighbours, growing inwards, then by the plane's mean.

    Parameters
    ----------
    image
        `(..., H, W)` float; values of bad pixels are never used.
    good
        `(..., H, W)` bool.
    passes
        Depth in pixels to which a hole is filled from its rim (3 x 3 means); what is left gets the mean of
        the good pixels (0 without any).

    Returns
    -------
    filled
        A new array, finite where `image` is finite on good pixels.
    """
    xp = namespace(image)
    zero = xp.zeros_like(image)
    out = xp.where(good, image, zero)
    weight = xp.where(good, zero + 1, zero)
    mean = out.sum(axis=(-2, -1)) / xp.maximum(weight.sum(axis=(-2, -1)), zero[..., 0, 0] + 1)
    for _ in range(passes):
        share = _box3(weight)
        new = (weight == 0) & (share > 0)
        if not bool(new.any()):
            break
        out = xp.where(new, _box3(out) / xp.where(share > 0, share, zero + 1), out)
        weight = xp.where(new, zero + 1, weight)
    return xp.where(weight > 0, out, mean[..., None, None])


def _box3(a: Any) -> Any:
    """Sum over 3 x 3 neighbours, zero outside."""
    xp = namespace(a)
    rows = xp.zeros_like(a)
    rows[...] = a
    rows[..., 1:, :] += a[..., :-1, :]
    rows[..., :-1, :] += a[..., 1:, :]
    out = xp.zeros_like(a)
    out[...] = rows
    out[..., 1:] += rows[..., :-1]
    out[..., :-1] += rows[..., 1:]
    return out


def kernel_spectra(kernel: NDArray[np.floating], shape: tuple[int, int]) -> NDArray[np.complex64]:
    """Transforms `(M, Hp, Wp // 2 + 1)` of kernels, cut to an odd size that fits `shape`, sum kept."""
    h = kernel.shape[-1] // 2
    used = min(h, (min(shape) - 1) // 2)
    cut = slice(h - used, h + used + 1)
    out = np.empty((len(kernel), shape[0], shape[1] // 2 + 1), np.complex64)
    frame = np.zeros((min(CHUNK, len(kernel)), *shape), np.float32)
    # The origin of the transform is the centre pixel: what lies before it wraps around.
    quarters = ((slice(0, used + 1), slice(used, None)), (slice(-used, None), slice(0, used)))
    for start in range(0, len(kernel), CHUNK):
        k = kernel[start : start + CHUNK]
        part = k[:, cut, cut]
        if used < h:
            kept, whole = (a.sum(axis=(1, 2), dtype=np.float64) for a in (part, k))
            part = part * (whole / kept)[:, None, None]
        for to_y, from_y in quarters[: 1 + (used > 0)]:
            for to_x, from_x in quarters[: 1 + (used > 0)]:
                frame[: len(k), to_y, to_x] = part[:, from_y, from_x]
        out[start : start + len(k)] = scipy.fft.rfft2(frame[: len(k)])
    return out


def frame_shape(shape: tuple[int, int], pad: int) -> tuple[int, int]:
    """Shape of the transforms for planes of `shape` extended by `pad` pixels on each side."""
    h, w = shape
    # Without `real`, factors 7 and 11 count as fast: for transforms of this size they are.
    return int(scipy.fft.next_fast_len(h + 2 * pad)), int(scipy.fft.next_fast_len(w + 2 * pad))


def convolve(
    image: Any, spectra: Any, number: NDArray[np.integer], frame: tuple[int, int], trim: int = 0
) -> Any:
    """Convolve planes with kernels.

    Parameters
    ----------
    image
        `(..., H, W)` float32, finite.
    spectra
        `(M, frame[0], frame[1] // 2 + 1)` complex64, see `kernel_spectra`.
    number
        `(...)` which of them each plane gets.
    frame
        Shape of the transform, at least `(H, W)`; the difference is filled by reflection.
    trim
        Pixels to cut off each side of the result.

    Returns
    -------
    out
        `(..., H - 2 trim, W - 2 trim)` float32.
    """
    product = _forward(image, frame)
    if namespace(image) is np:
        for place in np.ndindex(number.shape):  # one by one: gathering the spectra first costs a copy
            product[place] *= spectra[number[place]]
    else:
        product = product * spectra[number]
    return _back(product, image.shape[-2:], frame, trim)


def convolve_each(
    image: Any, plane: NDArray[np.integer], spectra: Any, number: NDArray[np.integer], frame: tuple[int, int]
) -> Any:
    """Convolve planes with several kernels each, `(L, H, W)`.

    Parameters
    ----------
    image
        `(P, H, W)` float32, finite.
    plane, number
        `(L,)` which plane meets which kernel.
    spectra, frame
        As in `convolve`.
    """
    return _back(_forward(image, frame)[plane] * spectra[number], image.shape[-2:], frame, 0)


def _forward(image: Any, frame: tuple[int, int]) -> Any:
    h, w = image.shape[-2:]
    before_y, before_x = (frame[0] - h) // 2, (frame[1] - w) // 2
    if frame[0] > h:
        image = image[..., reflect(h, before_y, frame[0] - h - before_y), :]
    if frame[1] > w:
        image = image[..., reflect(w, before_x, frame[1] - w - before_x)]
    return _transforms(namespace(image)).rfft2(image)


def _back(product: Any, shape: tuple[int, int], frame: tuple[int, int], trim: int) -> Any:
    h, w = shape
    out = _transforms(namespace(product)).irfft2(product, s=frame)
    y, x = (frame[0] - h) // 2 + trim, (frame[1] - w) // 2 + trim
    return out[..., y : y + h - 2 * trim, x : x + w - 2 * trim]
