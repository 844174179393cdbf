"""Cutouts in memory: the batch that flows from reading to preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.sky.geometry import Tan

#: Mask planes with a fixed bit in every batch, whatever the numbering in the files. DP2 (`lsst.images`) names
#: first, then those of afw. Fetch keeps these planes and drops others; `open_coadd` gives others the next
#: free bits, in alphabetical order.
MASK_PLANES: tuple[str, ...] = (
    "NO_DATA", "INTERPOLATED", "COSMIC_RAY", "SATURATED", "DETECTION_EDGE", "CLIPPED", "REJECTED", "DETECTED",
    "INEXACT_PSF", "BAD", "SAT", "INTRP", "CR", "EDGE", "DETECTED_NEGATIVE", "SUSPECT", "VIGNETTED", "STREAK",
    "CROSSTALK", "NOT_DEBLENDED", "SENSOR_EDGE", "UNMASKEDNAN", "ITL_DIP", "BRIGHT_OBJECT",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CutoutBatch:
    """N multi-band cutouts on the pixel grid of their tracts.

    Parameters
    ----------
    bands
        Names of the B bands, in order.
    image
        `(N, B, H, W)` float32, nJy; NaN where there is no pixel.
    variance
        `(N, B, H, W)` float32, nJy²; NaN where there is no pixel, +inf in missing cells as on disk.
    mask
        `(N, B, H, W)` uint32; bit k is `mask_planes[k]`. Pixels outside the data carry NO_DATA.
    mask_planes
        Names by bit.
    psf
        `(M, K, K)` float32 distinct PSF kernels, K odd, centre pixel `K // 2`, sum 1.
    psf_index
        `(N, B)` int32 into `psf`; -1 where there is none.
    catalog
        Columns of length N: `index` (int64, position in the target list), `id`, `ra`, `dec` (deg ICRS),
        `tract`, `patch` (int32), `x0`, `y0` (int32, first pixel, PARENT), `dx`, `dy` (float32, target
        minus centre of pixel `W // 2`, `H // 2`), `band_mask` (uint32, bit b set when band b has data), then
        measures and user columns (`label` among them when given).
    wcs
        Projection of each tract that occurs, PARENT frame.
    pixel_scale
        Arcsec per pixel.
    psf_cells
        `(L, 7)` int32, ascending: parts of cutouts that lie in another cell of a cell coadd than the centre
        and so have another PSF: row, band, first and end pixel in y, first and end pixel in x (of the
        cutout), and which of `psf`. Parts without an entry have the PSF of `psf_index`, as far as is known.
    """

    bands: tuple[str, ...]
    image: NDArray[np.float32]
    variance: NDArray[np.float32]
    mask: NDArray[np.uint32]
    mask_planes: tuple[str, ...]
    psf: NDArray[np.float32]
    psf_index: NDArray[np.int32]
    catalog: dict[str, NDArray[np.generic]]
    wcs: dict[int, Tan] = field(default_factory=dict)
    pixel_scale: float = 0.2
    psf_cells: NDArray[np.int32] = field(default_factory=lambda: np.empty((0, 7), np.int32))

    def __post_init__(self) -> None:
        # Assertions, not errors: only our own code makes batches, and a wrong shape is a bug in it.
        n, b, _, _ = self.image.shape
        assert self.variance.shape == self.mask.shape == self.image.shape
        assert b == len(self.bands)
        assert self.psf_index.shape == (n, b)
        assert all(len(column) == n for column in self.catalog.values())

    def __len__(self) -> int:
        return len(self.image)

    def __repr__(self) -> str:
        return f"<CutoutBatch {_shape(self)}>"

    def bits(self, *names: str) -> np.uint32:
        """The mask value with the bits of the named planes set (absent planes contribute nothing)."""
        value = sum(1 << k for k, plane in enumerate(self.mask_planes) if plane in names)
        return np.uint32(value)

    @property
    def table(self) -> CutoutTable:
        """Everything but the planes."""
        return CutoutTable(
            self.bands,
            self.mask_planes,
            self.psf,
            self.psf_index,
            self.psf_cells,
            self.catalog,
            self.wcs,
            self.pixel_scale,
        )

    def take(self, rows: NDArray[np.integer] | slice) -> CutoutBatch:
        """Some rows, in the given order; views where `rows` is a slice."""
        # `psf_cells` is sorted by row, so the parts of each chosen row are one run of it.
        numbers = np.arange(len(self))[rows]
        begin, end = (np.searchsorted(self.psf_cells[:, 0], numbers, side) for side in ("left", "right"))
        new = np.repeat(np.arange(len(numbers)), end - begin)
        # 0, 1, 2, ... within each run.
        within = np.arange(len(new)) - np.repeat(np.cumsum(end - begin) - (end - begin), end - begin)
        parts = self.psf_cells[begin[new] + within]
        parts[:, 0] = new  # rows count from 0 in the new batch
        return replace(
            self,
            image=self.image[rows],
            variance=self.variance[rows],
            mask=self.mask[rows],
            psf_index=self.psf_index[rows],
            psf_cells=parts,
            catalog={name: values[rows] for name, values in self.catalog.items()},
        )

    def trimmed(self, margin: int) -> CutoutBatch:
        """Without `margin` pixels on each side; planes are views."""
        if not margin:
            return self
        height, width = self.image.shape[2:]
        inner = (..., slice(margin, height - margin), slice(margin, width - margin))
        cells = self.psf_cells.copy()
        cells[:, 2:4] = np.clip(cells[:, 2:4] - margin, 0, height - 2 * margin)
        cells[:, 4:6] = np.clip(cells[:, 4:6] - margin, 0, width - 2 * margin)
        first = {
            name: (self.catalog[name] + margin).astype(self.catalog[name].dtype)
            for name in ("x0", "y0")
            if name in self.catalog
        }
        return replace(
            self,
            image=self.image[inner],
            variance=self.variance[inner],
            mask=self.mask[inner],
            # Parts that lay in the margin are empty now.
            psf_cells=cells[(cells[:, 2] < cells[:, 3]) & (cells[:, 4] < cells[:, 5])],
            catalog=self.catalog | first,
        )


@dataclass(frozen=True, slots=True)
class CutoutTable:
    """N cutouts without their planes; parameters as for `CutoutBatch`."""

    bands: tuple[str, ...]
    mask_planes: tuple[str, ...]
    psf: NDArray[np.float32]
    psf_index: NDArray[np.int32]
    psf_cells: NDArray[np.int32]
    catalog: dict[str, NDArray[np.generic]]
    wcs: dict[int, Tan]
    pixel_scale: float

    def __len__(self) -> int:
        return len(self.psf_index)


@dataclass(frozen=True, slots=True)
class TensorBatch:
    """N preprocessed rows, as the network sees them.

    Parameters
    ----------
    bands
        Names of the B bands, in order.
    image
        `(N, B, H, W)` float16 or float32, normalised; finite everywhere.
    valid
        `(N, B, H, W)` uint8, 1 where the pixel is a measurement (not filled, not masked bad).
    catalog
        Columns of length N: those of the cutout batch, then quality measures (`qc_*`), `accept` (uint8),
        `qc` (uint64 bitmask of reasons), and normalisation constants (`norm_*`).
    pixel_scale
        Arcsec per pixel.
    psf_fwhm
        FWHM of the common PSF in arcsec, pixels included (`psf.shape.fwhm`); NaN when the PSFs were not
        matched to one width.
    normalization
        Method and data-set-wide constants, JSON values; enough to invert together with the `norm_*` columns.
    class_map
        Label value -> class name, empty when unlabelled.
    unit
        Unit that `denormalize` returns, `nJy`.
    variance
        `(N, B, H, W)` float32 in the square of `unit`: of the fluxes after PSF matching, not yet normalised;
        NaN in missing bands. None when it was not kept.
    """

    bands: tuple[str, ...]
    image: NDArray[np.float32] | NDArray[np.float16]  # (N, B, H, W)
    valid: NDArray[np.uint8]
    catalog: dict[str, NDArray[np.generic]]
    pixel_scale: float
    psf_fwhm: float
    normalization: dict[str, object]
    class_map: dict[str, str] = field(default_factory=dict)
    unit: str = "nJy"
    variance: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.image)

    def __repr__(self) -> str:
        return f"<TensorBatch {_shape(self)}, {self.normalization.get('method')}>"


def _shape(batch: CutoutBatch | TensorBatch) -> str:
    """Rows, bands and size: the pixels themselves would fill many screens."""
    n, _, height, width = batch.image.shape
    return f"{n} rows, {' '.join(batch.bands)}, {width} x {height} px"


def psf_gaps(
    psf: NDArray[np.float32], first: NDArray[np.integer], second: NDArray[np.integer]
) -> NDArray[np.float32]:
    """`(L,)` sum |P - Q| of PSFs `(M, K, K)` numbered `first` and `second`, once per distinct pair."""
    # Rows of a tract share a few PSFs, so distinct pairs are far fewer than rows.
    pairs, place = np.unique(np.stack([first, second], axis=1), axis=0, return_inverse=True)
    gaps = np.array([np.abs(psf[a] - psf[b]).sum() for a, b in pairs], np.float32)
    return gaps[place.reshape(-1)]


def concatenate(batches: Sequence[CutoutBatch]) -> CutoutBatch:
    """Several batches of equal bands and size as one; PSF kernels are padded to one side.

    Raises
    ------
    ValueError
        No batch, or batches that differ in bands, mask planes or size.
    """
    first = batches[0]
    if len(batches) == 1:
        return first
    if any(b.bands != first.bands or b.mask_planes != first.mask_planes for b in batches):
        raise ValueError("the batches differ in bands or mask planes")
    # Zeros around a kernel change nothing, and its centre stays the centre: sizes are odd.
    side = max(b.psf.shape[-1] for b in batches)
    starts = np.cumsum([0, *(len(b.psf) for b in batches)])
    rows = np.cumsum([0, *(len(b) for b in batches)])
    # PSFs and rows of later batches are counted on behind those of earlier ones.
    index = [np.where(b.psf_index < 0, -1, b.psf_index + s) for b, s in zip(batches, starts, strict=False)]
    pads = [(side - b.psf.shape[-1]) // 2 for b in batches]
    return CutoutBatch(
        bands=first.bands,
        image=np.concatenate([b.image for b in batches]),
        variance=np.concatenate([b.variance for b in batches]),
        mask=np.concatenate([b.mask for b in batches]),
        mask_planes=first.mask_planes,
        psf=np.concatenate(
            [np.pad(b.psf, ((0, 0), (p, p), (p, p))) for b, p in zip(batches, pads, strict=True)]
        ),
        psf_index=np.concatenate(index).astype(np.int32),
        catalog={
            k: np.concatenate([b.catalog[k] for b in batches])
            for k in first.catalog
            # A column that one batch lacks has no value to fill in for its rows.
            if all(k in b.catalog for b in batches)
        },
        wcs={t: tan for b in batches for t, tan in b.wcs.items()},
        psf_cells=np.concatenate(
            [
                b.psf_cells + np.array([first_row, 0, 0, 0, 0, 0, first_psf], np.int32)
                for b, first_row, first_psf in zip(batches, rows, starts, strict=False)
            ]
        ),
        pixel_scale=first.pixel_scale,
    )


def unsigned_bits(mask: NDArray[Any]) -> NDArray[np.uint64]:
    """The bits of a mask as they are: as a signed number, its last bit would fill all bits above it."""
    bits = mask.view(f"u{mask.dtype.itemsize}") if mask.dtype.kind == "i" else mask
    return bits.astype(np.uint64)
