"""One cutout in a foreign format, and what its file says about it; all readers return these."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ripple.errors import Reason
from ripple.sky.geometry import Tan
from ripple.stages.formats.source_files import SourceFiles

Float = NDArray[np.float32]
#: What numpy, h5py and astropy raise for damaged files, and for those that claim more than there is memory.
DAMAGE = (
    OSError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, MemoryError, RuntimeError,
    SyntaxError, tokenize.TokenError, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
#: Pixel scale of the DeepLense lens-finding sets (HSC Wide), arcsec.
HSC_SCALE = 0.168


@dataclass(frozen=True, slots=True)
class Understood:
    """What one picture was taken for: its file and HDU or array, role, band, and facts about it."""

    file: str
    part: str
    role: str
    band: str
    facts: str


@dataclass(frozen=True, slots=True)
class ForeignCutout:
    """One object in all its bands, in the unit of its source.

    Parameters
    ----------
    id
        Name of the row.
    image
        `(B, H, W)` float32; NaN where there is no pixel.
    variance
        `(B, H, W)` float32, or None.
    bad
        `(B, H, W)` bool, or None.
    mask
        `(B, H, W)` uint32 in bits of `MASK_PLANES` when the source names its planes, else None.
    psf
        One `(Ky, Kx)` image per band as the source has it, None for a band without one; or None.
    ra, dec
        Deg ICRS; NaN when unknown.
    label
        -1 when unknown.
    wcs
        Projection in pixels of the cutout (zero-based), or None.
    place
        `(tract, x0, y0)` when the source says from which tract and pixels it was cut.
    to_njy
        `(B,)` nanojansky per unit, NaN in bands whose unit the source does not say; None when it says none.
    columns
        Other facts: numbers and text.
    remarks
        What was done to the row, for the column `detail`.
    understood
        What each picture of the row was taken for.
    """

    id: str
    image: Float
    variance: Float | None = None
    # A source has `bad`, which only says good or bad, or `mask` with the planes of Rubin's masks.
    bad: NDArray[np.bool_] | None = None
    mask: NDArray[np.uint32] | None = None
    psf: tuple[Float | None, ...] | None = None
    ra: float = float("nan")
    dec: float = float("nan")
    label: int = -1
    wcs: Tan | None = None
    place: tuple[int, int, int] | None = None
    to_njy: NDArray[np.float64] | None = None
    columns: dict[str, float | int | str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    understood: tuple[Understood, ...] = ()


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that could not be read or is no row of its own, and why."""

    id: str
    detail: str
    reason: Reason = Reason.UNREADABLE_SOURCE


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source contains, found without reading all of its pixels.

    Parameters
    ----------
    rows
        Number of rows.
    bands
        Names of the bands in order; empty when the source does not say.
    pixel_scale
        Arcsec, or None when the source does not say.
    classes
        Class names by label value; empty when the source does not say.
    read
        Row number -> cutout. Never raises for a damaged row.
    paths
        Every file that the result depends on, sorted.
    files
        What `read` reads them through.
    notes
        What was assumed, for the user to read.
    """

    rows: int
    bands: tuple[str, ...]
    pixel_scale: float | None
    classes: tuple[str, ...]
    read: Callable[[int], ForeignCutout | Unreadable]
    paths: tuple[Path, ...]
    files: SourceFiles
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of arrays in `.npz` and HDF5 files."""

    image: str = "image"
    variance: str = "variance"
    mask: str = "mask"
    psf: str = "psf"
    label: str = "label"
    id: str = "id"
    ra: str = "ra"
    dec: str = "dec"


def one_line(err: BaseException) -> str:
    """The message of a library's error, as one line for the column `detail`."""
    return " ".join(str(err).split())[:200] or type(err).__name__
