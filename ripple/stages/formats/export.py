"""`ripple export`: tensors or cutouts in the formats of other packages.

    deeplense   {train,validation,test}_{lenses,nonlenses}/0000000.npy   (B, H, W) float32
    mmu         healpix=12345/001-of-001.hdf5                            Multimodal Universe
    webdataset  000000.tar                                               npy, json and cls per row
    zarr        data.zarr                                                Zarr v3: image, valid, catalog
    fits        ID.fits                                                  IMAGE, VARIANCE, MASK, PSF by band

Other file names are running numbers, never ids, which may contain anything; those of FITS files are made safe
(`fits_names`). `catalog.csv` has the file of each row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ripple.runtime.summary import Summary, progress
from ripple.stages.formats import layouts
from ripple.stages.formats.config import ExportConfig
from ripple.stages.formats.rows import Source, open_source
from ripple.storage.directory import write_directory


def export(config: ExportConfig) -> Summary:
    """Write `config.output` in the layout `config.format`.

    Raises
    ------
    DataError
        The format needs something the rows do not have (labels, positions, WCS).
    ConfigError
        The output was written with different options.
    """
    start = time.perf_counter()
    source = open_source(config)

    # `directory` is a temporary one, which takes the name of the output when it is complete.
    def build(directory: Path) -> None:
        with progress(source.rows, "export") as advance:
            for done in _writer(config)(source, config, directory):
                advance(done)

    fresh = write_directory(
        config.output, "export", config, {source.artefact.kind: source.artefact.digest}, build
    )
    facts = {"format": config.format, "rows": source.rows, "bands": " ".join(source.bands)}
    seconds = time.perf_counter() - start
    return Summary("export", str(config.output), facts, seconds=seconds, done_before=not fresh)


def _writer(config: ExportConfig) -> Callable[[Source, ExportConfig, Path], Iterator[int]]:
    """The function that writes the layout, and yields how many rows it has just written."""
    match config.format:
        case "deeplense":
            return layouts.deeplense
        case "mmu":
            return layouts.multimodal_universe
        case "webdataset":
            return layouts.webdataset
        case "zarr":
            return layouts.zarr_v3
        case "fits":
            return layouts.fits_cutouts
