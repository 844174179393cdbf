"""Pictures as other people keep them, and cutouts with everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ripple import write_cutouts
from ripple.imaging.batch import CutoutBatch
from ripple.sky.geometry import Tan
from ripple.storage import artefact, shard_reader


def deeplense_tree(root: Path, rng: np.random.Generator, n: int = 4) -> dict[str, np.ndarray]:
    images = {}
    for folder in ("train_lenses", "train_nonlenses", "test_lenses", "test_nonlenses"):
        (root / folder).mkdir(parents=True)
        for k in range(n):
            image = rng.random((3, 64, 64))
            np.save(root / folder / f"{k}.npy", image)
            images[f"{folder}/{k}"] = image.astype(np.float32)
    return images


TAN = Tan(53.1, -27.8, 1000.25, 2000.5, (-0.2 / 3600, 0.0, 0.0, 0.2 / 3600))


def make_cutouts(directory: Path, n: int = 12, size: int = 21, *, labels: bool = True) -> CutoutBatch:
    """Cutouts with everything: variance, mask, PSF, WCS, two rows with a hole."""
    rng = np.random.default_rng(3)
    image = rng.normal(10, 3, (n, 3, size, size)).astype(np.float32)
    image[0, 1] = np.nan  # a missing band
    image[1, :, :5, :5] = np.nan
    x = 1000 + 40 * np.arange(n)
    y = np.full(n, 1990)
    ra, dec = TAN.pixel_to_sky(x + 0.3, y - 0.2)
    axis = np.arange(15) - 7
    kernels = np.stack([np.exp(-0.5 * (axis[:, None] ** 2 + axis**2) / s**2) for s in (2.0, 2.4, 2.8)])
    catalog: dict[str, Any] = {
        "id": [f"obj/../{k}é" for k in range(n)], "ra": ra, "dec": dec, "tract": np.full(n, 7),
        "x0": x - size // 2, "y0": y - size // 2, "dx": np.full(n, 0.3), "dy": np.full(n, -0.2),
    }  # fmt: skip
    if labels:
        catalog["label"] = np.arange(n) % 2
    write_cutouts(
        directory, image, "gri", catalog, variance=rng.uniform(1, 2, image.shape).astype(np.float32),
        mask=(rng.random(image.shape) < 0.02).astype(np.uint32), mask_planes=("BAD",), psf=kernels,
        wcs={7: TAN}, rows_per_shard=5,
    )  # fmt: skip
    parts = artefact.open_artefact(directory)
    return shard_reader.unpack_cutouts(parts.read(0))
