"""A session: the objects that are graded, as they stand in GRADES."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripple.config import Json
from ripple.errors import IntegrityError
from ripple.storage.checksums import parse_listing, read_verified
from ripple.storage.files import parse_parquet
from ripple.storage.manifest import MANIFEST, check_files, read_manifest
from ripple.vetting.pictures import Pictures, Wide

KIND = "grades"
OBJECTS, PIXELS, SESSION = "objects.parquet", "pixels.npy", "session.json"
#: Pixels of the surroundings, and the column of objects that have any; only in sessions with wide fields.
WIDE_PIXELS, HAS_WIDE = "wide.npy", "has_wide"


@dataclass(frozen=True, slots=True)
class Session:
    """A GRADES directory.

    Parameters
    ----------
    directory
        Where it is.
    manifest
        Its manifest.
    objects
        Columns `id` (text), `ra`, `dec` (deg), `rank`, `score`, `probability` (NaN where unknown), `truth`
        (int8: 1 and 0 for hidden tests, -1 for candidates), in order of rank; `has_wide` (bool) in sessions
        with wide fields.
    facts
        Of `session.json`.
    """

    directory: Path
    manifest: Json
    objects: pa.Table
    facts: Json

    @property
    def truth(self) -> NDArray[np.int8]:
        """`(N,)` 1 lens, 0 no lens, of hidden tests; -1 of candidates."""
        return np.asarray(self.objects["truth"].to_numpy(), np.int8)

    @property
    def has_wide(self) -> NDArray[np.bool_]:
        """`(N,)` objects whose surroundings can be shown."""
        if HAS_WIDE not in self.objects.column_names:
            return np.zeros(self.objects.num_rows, bool)
        return np.asarray(self.objects[HAS_WIDE].to_numpy(), bool)

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A column as float64."""
        return np.asarray(self.objects[name].to_numpy(), np.float64)

    def pictures(self, stretch: float, softening: float) -> Pictures:
        """The pictures, the pixels mapped from the file."""
        bands, scale = tuple(self.facts["bands"]), float(self.facts["pixel_scale"])
        width = np.array([np.nan if w is None else w for w in self.facts["psf_fwhm"]], np.float64)
        wide = None
        if (wide_scale := self.facts.get("wide_pixel_scale")) is not None:
            wide = Wide(self._mapped(WIDE_PIXELS, len(bands)), self.has_wide, float(wide_scale))
        return Pictures(self._mapped(PIXELS, len(bands)), bands, width, scale, stretch, softening, wide)

    def _mapped(self, name: str, bands: int) -> NDArray[np.float32]:
        path = self.directory / name
        try:
            pixels: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as err:
            raise IntegrityError(
                f"{path}: cannot be read: {err}", hint="remove GRADES, grade again"
            ) from None
        if pixels.ndim != 4 or pixels.shape[:2] != (self.objects.num_rows, bands):
            raise IntegrityError(f"{path}: the shape {pixels.shape} is not that of the objects")
        return pixels


def open_session(directory: Path) -> Session:
    """Open GRADES, its small files verified.

    Raises
    ------
    InputError
        The directory is something else.
    IntegrityError
        It is damaged.
    """
    manifest = read_manifest(directory, KIND)
    check_files(directory, manifest)
    files = parse_listing(directory / MANIFEST, manifest["files"])
    try:
        objects = parse_parquet(read_verified(directory / OBJECTS, files[OBJECTS]))
        facts = json.loads(read_verified(directory / SESSION, files[SESSION]))
    except (pa.ArrowException, KeyError, ValueError) as err:
        raise IntegrityError(f"{directory}: cannot be read as grades: {err}") from None
    return Session(directory, manifest, objects, facts)
