"""Toy tensor artefacts: red galaxies, some with a blue arc around them, on a piece of sky."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from ripple.config import Config
from ripple.imaging.batch import TensorBatch
from ripple.storage.shard_writer import pack_tensors
from ripple.storage.writer import ArtefactWriter, create

BANDS = ("g", "r", "i")
#: All methods of adaptation.
METHODS = ("adabn", "mmd", "coral", "dann", "adda", "wdgrl", "kmeans", "teacher", "universal", "supervised")
NORMALIZATION: dict[str, object] = {
    "method": "asinh",
    "softening": 3.0,
    "scale": {"g": 1.0, "r": 1.0, "i": 1.0},
}


class ToyConfig(Config):
    """Stands for the configuration of `preprocess`."""

    verb: ClassVar[str] = "preprocess"
    seed: int = 0


def toy_images(
    label: np.ndarray, rng: np.random.Generator, size: int = 32, bands: int = 3, arc: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Images `(N, B, size, size)` and radii of the arcs (NaN without); others have a blob."""
    n, c = len(label), size // 2
    y, x = np.mgrid[:size, :size].astype(np.float32)
    image = rng.normal(0, 0.3, (n, bands, size, size)).astype(np.float32)
    radius = rng.uniform(4, 0.35 * size, n)
    for k in range(n):
        r = np.hypot(x - c, y - c)
        image[k] += 4 * np.exp(-((r / rng.uniform(2, 3)) ** 2)) * np.linspace(0.4, 1, bands)[:, None, None]
        angle, span = rng.uniform(0, 2 * np.pi), rng.uniform(1.0, 2.5)
        turn = np.angle(np.exp(1j * (np.arctan2(y - c, x - c) - angle)))
        if label[k] == 1:
            shape = np.exp(-(((r - radius[k]) / 1.3) ** 2)) * (np.abs(turn) < span / 2)
        else:
            cy, cx = c + radius[k] * np.sin(angle), c + radius[k] * np.cos(angle)
            shape = np.exp(-(((x - cx) ** 2 + (y - cy) ** 2) / 4))
        image[k] += arc * shape * np.linspace(1, 0.5, bands)[:, None, None]
    return image, np.where(label == 1, radius * 0.2, np.nan)


def toy_batch(
    n: int, seed: int, *, first: int = 0, size: int = 32, lens: float = 0.3, **kwargs: Any
) -> TensorBatch:
    """One shard of toys on a strip of sky 0.5 deg wide."""
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < lens).astype(np.int64)
    image, radius = toy_images(label, rng, size, arc=kwargs.pop("arc", 1.0))
    seeing = rng.normal(1.2, 0.05, n) - (0.3 * label if kwargs.pop("leak", False) else 0)
    extra = kwargs.pop("catalog_extra", {})
    fields: dict[str, Any] = {
        "bands": BANDS, "image": image, "valid": np.ones(image.shape, np.uint8), "pixel_scale": 0.2,
        "psf_fwhm": 1.2, "normalization": NORMALIZATION, "class_map": {"0": "nonlens", "1": "lens"},
        "catalog": {
            "index": np.arange(first, first + n), "id": np.arange(first, first + n) + 1000,
            "ra": rng.uniform(53.0, 53.5, n), "dec": rng.uniform(-28.0, -27.5, n),
            "label": label, "theta_E": radius, "arc_sb": 26 - 2 * rng.random(n) + 0 * radius,
            "psf_g": seeing, "qc": np.zeros(n, np.uint64), "accept": np.ones(n, np.uint8),
            "mag_i": rng.normal(20, 1, n), **extra,
        },
    }  # fmt: skip
    return TensorBatch(**(fields | kwargs))


def write_toys(directory: Path, *, shards: int = 3, rows: int = 120, seed: int = 0, **kwargs: Any) -> Path:
    """A finished tensor artefact of toys."""
    batches = [toy_batch(rows, 100 * seed + k, first=k * rows, **kwargs) for k in range(shards)]
    return write_batches(directory, batches, seed=seed)


def write_pair(base: Path) -> tuple[Path, Path]:
    """Two data sets with other PSFs, to adapt from the first to the second."""
    return (
        write_toys(base / "source", shards=2, rows=70),
        write_toys(base / "target", shards=2, rows=60, seed=5, psf_fwhm=0.9),
    )


def write_batches(directory: Path, batches: list[TensorBatch], *, seed: int = 0) -> Path:
    """A finished tensor artefact, a shard per batch."""
    writer = create(directory, kind="tensors", config=ToyConfig(seed=seed), inputs={}, units=len(batches))
    assert isinstance(writer, ArtefactWriter)
    catalogs = []
    with writer:
        for k, batch in enumerate(batches):
            rows = len(batch.image)
            writer.commit(k, pack_tensors(batch, {}), rows, {})
            catalogs.append(batch.catalog | {"shard": np.full(rows, k), "row": np.arange(rows)})
        columns = {name: np.concatenate([c[name] for c in catalogs]) for name in catalogs[0]}
        words = {"status": ["ok"] * len(columns["row"]), "reason": [""] * len(columns["row"])}
        writer.finish(pa.table({**columns, **words}), {}, {"bands": list(batches[0].bands)})
    return directory
