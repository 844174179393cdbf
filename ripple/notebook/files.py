"""Cutouts in memory to directories and FITS files, by the code of the verbs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ripple.errors import ConfigError
from ripple.imaging.batch import CutoutBatch
from ripple.stages.formats.config import ExportConfig
from ripple.stages.formats.export import export
from ripple.storage.arrays import write_cutouts
from ripple.storage.artefact import Artefact


def write(batch: CutoutBatch, directory: Path, class_map: Mapping[str, str], margin: int = 0) -> Artefact:
    """Write a batch as a cutout artefact; errors as in `write_cutouts`."""
    return write_cutouts(
        directory,
        batch.image,
        batch.bands,
        batch.catalog,
        variance=batch.variance,
        mask=batch.mask,
        mask_planes=batch.mask_planes,
        psf=batch.psf,
        psf_index=batch.psf_index,
        psf_cells=batch.psf_cells,
        pixel_scale=batch.pixel_scale,
        class_map=class_map,
        wcs=batch.wcs,
        margin=margin,
    )


def fits_directory(batch: CutoutBatch, directory: Path, class_map: Mapping[str, str]) -> Path:
    """A FITS file per row, and `catalog.csv`, as `ripple export` writes them."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "cutouts"
        write(batch, source, class_map)
        export(ExportConfig.make({"source": source, "output": directory, "format": "fits"}))
    return directory


def fits_file(batch: CutoutBatch, path: Path, *, overwrite: bool) -> Path:
    """The one row of a batch as a FITS file.

    Raises
    ------
    ConfigError
        The file exists.
    """
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists", hint="give overwrite=True, or another name")
    with tempfile.TemporaryDirectory() as scratch:
        (written,) = fits_directory(batch, Path(scratch) / "fits", {}).glob("*.fits")
        shutil.copyfile(written, path)
    return path
