"""The rows that an export writes: a source artefact, read part by part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ripple.errors import ConfigError, DataError
from ripple.imaging.batch import CutoutBatch, TensorBatch
from ripple.imaging.psf.shape import fwhm
from ripple.imaging.quality.measure import usable
from ripple.sky.geometry import Tan
from ripple.sky.splits import SPLITS, split_blocks, split_keys
from ripple.stages.formats.config import ExportConfig
from ripple.stages.formats.tensor_errors import psf_widths
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.shards import images_of

Float = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one shard to write.

    Parameters
    ----------
    numbers
        `(n,)` running row numbers of the export, from 0 and without gaps.
    image
        `(n, B, H, W)` float32 as stored, without margins; NaN where there is no pixel.
    variance, bad
        Like `image`, or None. `bad` is true where `ripple preprocess` would not use a pixel.
    mask, mask_planes
        Like `image`, uint32, and the name of each bit; None and empty for tensors.
    psf
        `(M, K, K)` kernels, or None; `psf_index` `(n, B)`, -1 for none.
    psf_fwhm
        `(n, B)` arcsec, NaN when unknown.
    catalog
        Columns of length n.
    wcs
        Projection by tract, PARENT frame.
    tensors
        The rows themselves, when they are tensors.
    """

    numbers: NDArray[np.int64]
    image: Float
    variance: Float | None
    bad: NDArray[np.bool_] | None
    psf: Float | None
    psf_index: NDArray[np.int32] | None
    psf_fwhm: Float
    catalog: dict[str, NDArray[Any]]
    wcs: dict[int, Tan]
    mask: NDArray[np.uint32] | None = None
    mask_planes: tuple[str, ...] = ()
    tensors: TensorBatch | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """An artefact, which of its rows are exported, and what all rows share."""

    artefact: Artefact
    table: pa.Table
    bands: tuple[str, ...]
    pixel_scale: float
    unit: str
    class_map: dict[str, str]
    kind: str

    @property
    def rows(self) -> int:
        """Rows to export."""
        return int(self.table.num_rows)

    def column(self, name: str, missing: Any) -> NDArray[Any]:
        """A column of the index in export order, or `missing` in every row."""
        if name not in self.table.column_names:
            return np.full(self.rows, missing)
        return np.asarray(self.table[name].to_numpy(zero_copy_only=False))

    def parts(self, numbers: NDArray[np.int64] | None = None) -> Iterator[Part]:
        """Rows by shard, in order; all rows, or those with these running numbers."""
        shard, row = self.table["shard"].to_numpy(), self.table["row"].to_numpy()
        chosen = np.arange(self.rows) if numbers is None else numbers
        for k in np.unique(shard[chosen]):
            here = chosen[shard[chosen] == k]
            # One shard in memory at a time, whatever the size of the artefact.
            yield _part(self, _batch(self.artefact, int(k)), here, row[here])


def open_source(config: ExportConfig) -> Source:
    """The artefact and the rows of it to export, sorted by shard and row."""
    artefact = open_artefact(config.source)
    kind = artefact.kind
    if kind not in ("cutouts", "tensors"):
        raise DataError(f"{config.source} contains {kind}", hint="give cutouts or tensors")
    index = artefact.index()
    # Shard -1: rejected before any pixel was read.
    keep = pc.greater_equal(index["shard"], 0)
    if not config.rejected:
        keep = pc.and_(keep, pc.not_equal(index["status"], "rejected"))
    table = index.filter(keep).sort_by([("shard", "ascending"), ("row", "ascending")])
    if table.num_rows == 0:
        raise DataError(
            f"{config.source}: no rows to export", hint="--rejected exports rejected rows as well"
        )
    # Bands, scale, unit and classes are the same in all shards.
    first = _batch(artefact, int(table["shard"][0].as_py()))
    if isinstance(first, TensorBatch):
        class_map, unit = first.class_map, f"normalised ({first.normalization.get('method')})"
    else:
        class_map, unit = artefact.attributes.get("class_map", {}), "nJy"
    return Source(artefact, table, first.bands, first.pixel_scale, unit, dict(class_map), kind)


# Layouts that go by sky position return to a shard, so the last two are kept.
@lru_cache(maxsize=2)
def _unpacked(directory: Path, digest: str, k: int) -> CutoutBatch | TensorBatch:
    artefact = open_artefact(directory)
    batch = images_of(artefact, k)
    # Others get what was asked for: they have no use for pixels that only our PSF matching needs.
    return batch.trimmed(artefact.attributes.get("margin", 0)) if isinstance(batch, CutoutBatch) else batch


def _batch(artefact: Artefact, k: int) -> CutoutBatch | TensorBatch:
    return _unpacked(artefact.directory, artefact.digest, k)


def _part(
    source: Source, batch: CutoutBatch | TensorBatch, numbers: NDArray[np.int64], rows: NDArray[np.int32]
) -> Part:
    """These rows of a batch, with the pixels of other rows left out."""
    catalog = {name: np.asarray(values)[rows] for name, values in batch.catalog.items()}
    image = np.asarray(batch.image[rows], np.float32)
    if isinstance(batch, TensorBatch):
        # Tensors have no kernels, and their variance is not that of their pixels.
        part = replace(
            batch, image=image, valid=batch.valid[rows], catalog=catalog,
            variance=None if batch.variance is None else np.asarray(batch.variance[rows]),
        )  # fmt: skip
        bad = part.valid == 0
        return Part(numbers, image, None, bad, None, None, psf_widths(part), catalog, {}, tensors=part)

    bad, mask = ~usable(batch)[rows], np.asarray(batch.mask[rows])
    which = batch.psf_index[rows]
    # Index -1, no kernel, then picks the NaN at the end. Pixels to arcsec.
    widths = np.append(fwhm(batch.psf) if len(batch.psf) else np.zeros(0), np.nan) * batch.pixel_scale
    return Part(
        numbers,
        image,
        np.asarray(batch.variance[rows]),
        bad,
        batch.psf,
        which,
        widths[which].astype(np.float32),
        catalog,
        batch.wcs,
        mask,
        batch.mask_planes,
    )


def splits(source: Source, config: ExportConfig) -> NDArray[np.str_]:
    """Split name of each row: by column, by sky block, or all empty."""
    if config.split_column is not None:
        if config.split_column not in source.table.column_names:
            raise ConfigError(f"{config.source} has no column {config.split_column!r}")
        found = source.column(config.split_column, "").astype(np.str_)
        for name in np.unique(found).tolist():  # they become folder names, so no `..` and no slashes
            if name and not (name.isascii() and name.replace("_", "").replace("-", "").isalnum()):
                raise DataError(
                    f"{config.source}: split {name[:80]!r} in {config.split_column!r} cannot name a folder",
                    hint="use only letters, digits, - and _",
                )
        return found
    if config.split == "none":
        return np.full(source.rows, "", np.str_)

    ra, dec = (source.column(name, np.nan).astype(float) for name in ("ra", "dec"))
    # By blocks of sky, so that neighbours that share pixels are in one split; without positions by id.
    if np.isfinite(ra + dec).all():
        chosen = split_blocks(ra, dec, fractions=config.fractions, seed=config.seed, nside=config.nside)
    else:
        chosen = split_keys(source.column("id", ""), fractions=config.fractions, seed=config.seed)
    return np.array(SPLITS)[chosen]
