"""Bad pixels filled and planes convolved, in batch: numpy arrays, or torch tensors on any device.

Both run the same operations, so there is one implementation to trust; torch itself is never imported here.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

#: What `fill` does, in the contracts of models; a change of the method changes this text.
FILL = "3 x 3 means, 6 passes, then the mean of the plane"
CHUNK = 16  # rows, or kernels, at a time: few enough to stay in the cache


def namespace(array: Any) -> Any:
    """The module whose functions take `array`: numpy, or torch when it is a tensor."""
    return np if isinstance(array, np.ndarray) else sys.modules[type(array).__module__.partition(".")[0]]


def to_numpy(array: Any) -> NDArray[Any]:
    """`array` in host memory as numpy."""
    return array if isinstance(array, np.ndarray) else np.asarray(array.cpu())


def to_library_of(array: NDArray[Any], like: Any) -> Any:
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
    # The end pixel is not repeated, as in numpy's mode "reflect".
    period = max(2 * (length - 1), 1)
    i = np.abs(np.arange(-before, length + after)) % period
    return np.where(i < length, i, period - i).astype(np.intp)


def fill(image: Any, good: Any, passes: int = 6) -> Any:
    """Replace bad pixels by means of neighbours, from the rim inwards, and deep ones by the plane's mean.

    Parameters
    ----------
    image
        `(..., H, W)` float; values of bad pixels are never used.
    good
        `(..., H, W)` bool.
    passes
        Depth in pixels to which a hole is filled from its rim (3 x 3 means); deeper pixels get the mean of
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
        # One pixel deeper per pass: only pixels that touch what is filled by now.
        new = (weight == 0) & (share > 0)
        if not bool(new.any()):
            break
        out = xp.where(new, _box3(out) / xp.where(share > 0, share, zero + 1), out)
        weight = xp.where(new, zero + 1, weight)
    return xp.where(weight > 0, out, mean[..., None, None])


def _box3(a: Any) -> Any:
    """Sum over 3 x 3 neighbours, zero outside."""
    xp = namespace(a)
    # Separable, and by slices: torch and numpy have no common 3 x 3 filter.
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
    # Used again for each chunk: what is outside the kernels stays 0.
    frame = np.zeros((min(CHUNK, len(kernel)), *shape), np.float32)
    # The origin of the transform is the centre pixel: what lies before it wraps around.
    quarters = ((slice(0, used + 1), slice(used, None)), (slice(-used, None), slice(0, used)))
    for start in range(0, len(kernel), CHUNK):
        k = kernel[start : start + CHUNK]
        part = k[:, cut, cut]
        # A kernel larger than the plane loses its rim; its sum is kept, so that flux is.
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
    xp = namespace(image)
    transforms = _transforms(xp)
    h, w = image.shape[-2:]
    before_y, before_x = (frame[0] - h) // 2, (frame[1] - w) // 2
    if frame[0] > h:
        image = image[..., reflect(h, before_y, frame[0] - h - before_y), :]
    if frame[1] > w:
        image = image[..., reflect(w, before_x, frame[1] - w - before_x)]
    product = transforms.rfft2(image)  # (..., frame[0], frame[1] // 2 + 1)
    if xp is np:
        for place in np.ndindex(number.shape):  # one by one: gathering the spectra first costs a copy
            product[place] *= spectra[number[place]]
    else:
        product = product * spectra[number]
    out = transforms.irfft2(product, s=frame)
    y, x = before_y + trim, before_x + trim
    return out[..., y : y + h - 2 * trim, x : x + w - 2 * trim]


def convolve_parts(
    image: Any, part: NDArray[np.integer], kernel: Any, number: NDArray[np.integer]
) -> list[Any]:
    """Convolve rectangles of planes with short kernels, directly: cheaper than transforms of whole planes.

    Parameters
    ----------
    image
        `(n, B, H, W)` float32, finite; beyond its edges it is reflected.
    part
        `(L, 6)` row, band, first and end pixel in y, first and end pixel in x.
    kernel
        `(M, 2r + 1, 2r + 1)` float32; numpy, or torch on the device of `image`.
    number
        `(L,)` which of them each part gets.

    Returns
    -------
    pieces
        L arrays of the sizes of the parts.
    """
    h, w = image.shape[-2:]
    reach = kernel.shape[-1] // 2
    at_y, at_x = (reflect(length, reach, reach) for length in (h, w))
    if namespace(image) is not np:
        # conv2d is a correlation, hence the turned kernels; groups gives each plane its own.
        planes = image[part[:, 0], part[:, 1]][:, at_y][:, :, at_x]
        turned = kernel[number].flip(-1).flip(-2)
        whole = namespace(image).nn.functional.conv2d(planes[None], turned[:, None], groups=len(part))[0]
        return [whole[k, y0:y1, x0:x1] for k, (_, _, y0, y1, x0, x1) in enumerate(part.tolist())]
    from ripple.imaging.psf import loops

    part = np.ascontiguousarray(part, np.int64)
    shapes = part[:, 3::2] - part[:, 2::2]
    # Pieces have different sizes, so they lie one after the other in one flat array.
    end = np.cumsum(shapes.prod(axis=1))
    start = end - shapes.prod(axis=1)
    flat = np.zeros(int(end[-1]) if len(end) else 0, np.float32)
    loops.convolve_parts(image, part, kernel, np.asarray(number, np.int64), at_y, at_x, start, flat)
    pieces = zip(start.tolist(), end.tolist(), shapes.tolist(), strict=True)
    return [flat[a:b].reshape(shape) for a, b, shape in pieces]
