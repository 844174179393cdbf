"""Decode time of full-size planes: ours against fitsio and astropy, paired, medians and ratios.

Run: python scripts/bench/decode.py [--repeat 7] [--size 3300] [--tile 150]
The planes are made here: noise with sources (image), a smooth variance, a sparse mask, a PSF per cell.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fitsio
import numpy as np
from astropy.io import fits

from ripple.rubin.formats.decode import open_image
from ripple.rubin.formats.fits import Memory, read_hdu, walk


def planes(size: int, tile: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Image, mask, variance `(size, size)` and PSF `(cells, cells, 41, 41)` like those of a deep coadd."""
    image = rng.normal(0, 20, (size, size)).astype("f4")
    y, x = np.mgrid[-15:16, -15:16]
    for row, column in rng.integers(20, size - 20, (3000 * size**2 // 3300**2, 2)).tolist():
        blob = rng.pareto(1.2) * 50 * np.exp(-(y**2 + x**2) / 2 / rng.uniform(1.5, 5) ** 2)
        image[row - 15 : row + 16, column - 15 : column + 16] += blob.astype("f4")
    variance = (400 + 0.02 * np.abs(image) + rng.normal(0, 1, (size, size))).astype("f4")
    mask = np.where(image > 100, 128, 0).astype("i4")
    mask[rng.random((size, size)) < 1e-3] |= 2
    y, x = np.mgrid[-20:21, -20:21]
    width = rng.uniform(1.8, 2.2, (size // tile, size // tile, 1, 1))
    psf = np.exp(-(y**2 + x**2) / 2 / width**2) + 1e-5 * rng.normal(size=(*width.shape[:2], 41, 41))
    psf /= psf.sum(axis=(2, 3), keepdims=True)
    return {"IMAGE": image, "MASK": mask, "VARIANCE": variance, "PSF": psf}


def write(path: Path, arrays: dict[str, np.ndarray], tile: int) -> None:
    """Lossless HDUs with the default recipe of `lsst.images`, then image and variance with `lossy16`."""
    hdus: list[Any] = [fits.PrimaryHDU()]
    for name, pixels in arrays.items():
        shape = (tile, tile) if pixels.ndim == 2 else None
        options = {"compression_type": "GZIP_2", "tile_shape": shape, "quantize_level": 0.0}
        hdus.append(fits.CompImageHDU(pixels, name=name, **options))
    for name in ("IMAGE", "VARIANCE"):
        hdus.append(
            fits.CompImageHDU(
                arrays[name], name=f"{name}_LOSSY16", compression_type="RICE_1", tile_shape=(tile, tile),
                quantize_method=2, quantize_level=16.0, dither_seed=7,
            )
        )  # fmt: skip
    fits.HDUList(hdus).writeto(path)


def paired(readers: dict[str, Callable[[], Any]], repeat: int) -> dict[str, list[float]]:
    """Seconds of each reader, taken in turn so that noise of the machine meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(repeat):
        for name, read in readers.items():
            start = time.perf_counter()
            read()
            times[name].append(time.perf_counter() - start)
    return times


def measure(path: Path, repeat: int) -> list[dict[str, Any]]:
    """One row per HDU; every reader starts from the file in the page cache."""
    rows = []
    for number, hdu in list(enumerate(walk(path.read_bytes(), name=path.name)))[1:]:

        def ours(start: int = hdu.start, end: int = hdu.end) -> np.ndarray:
            with path.open("rb") as file:
                file.seek(start)
                source = Memory(file.read(end - start), path.name)
            return open_image(read_hdu(source, 0, name=path.name), source, name=path.name).all()

        readers: dict[str, Callable[[], Any]] = {
            "ours": ours, "astropy": lambda number=number: fits.getdata(path, number)
        }  # fmt: skip
        if hdu.integer("ZNAXIS") <= 3:  # fitsio reads no fourth axis
            readers["fitsio"] = lambda number=number: fitsio.read(str(path), ext=number)
        expected, got = fits.getdata(path, number), ours()
        assert got.tobytes() == expected.astype(got.dtype).tobytes(), hdu.extname
        times = paired(readers, repeat)
        row: dict[str, Any] = {"plane": hdu.extname}
        row |= {f"{name}_ms": 1e3 * statistics.median(values) for name, values in times.items()}
        for other in times.keys() - {"ours"}:
            ratios = [a / b for a, b in zip(times["ours"], times[other], strict=True)]
            row[f"ours/{other}"] = statistics.median(ratios)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=7, help="measurements of each reader, at least 5")
    parser.add_argument("--size", type=int, default=3300)
    parser.add_argument("--tile", type=int, default=150)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "planes.fits"
        write(path, planes(args.size, args.tile, np.random.default_rng(1)), args.tile)
        rows = measure(path, max(5, args.repeat))
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    columns = ["plane", "ours_ms", "fitsio_ms", "astropy_ms", "ours/fitsio", "ours/astropy"]
    print(" ".join(f"{c:>16}" for c in columns))
    for row in rows:
        values = [f"{row[c]:.2f}" if isinstance(row.get(c), float) else str(row.get(c, "-")) for c in columns]
        print(" ".join(f"{v:>16}" for v in values))
    print("\nmedians, paired; every plane was compared bit for bit with astropy first")


if __name__ == "__main__":
    main()
