"""`ripple simulate`: a small survey in a real Butler repository, with the truth beside it.

    DIR/repo            Butler repository: collection `mini`, dataset types `deep_coadd` (CellCoadd), `object`
    DIR/simulate.json   only while unfinished: the configuration, written first
    DIR/truth.parquet   one row per target
    DIR/manifest.json   lists the truth and the coadds; written last, so without it the survey is unfinished

The same configuration gives the same pixels, tables and dataset UUIDs. `lsst.images` writes the time into
FITS headers, so the files themselves differ between runs.
"""

from __future__ import annotations

import functools
import operator
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ripple.errors import ConfigError, WorkerError, WriteError
from ripple.imaging.simulation.defects import PLANES, BandPlanes, Defects, draw_defects, observe
from ripple.imaging.simulation.observing import Conditions, draw_conditions, flux
from ripple.imaging.simulation.population import ORDINARY, UGRIZY, Painted, Scene, draw_scene
from ripple.imaging.simulation.render import StripTask, render_strip
from ripple.imaging.simulation.tables import object_ids, object_table, truth_table
from ripple.rubin.write_repository import CoaddPlanes, MiniRepo
from ripple.runtime.pool import WorkerFailure, ordered_map
from ripple.runtime.summary import Summary, progress
from ripple.sky.geometry import Box
from ripple.sky.skymap import RingsSkyMap, known
from ripple.stages.simulate.config import SimulateConfig
from ripple.storage.checksums import listed
from ripple.storage.files import (
    TEMPORARY,
    is_full,
    make_directory,
    read_whole,
    remove_temporaries,
    write_atomic,
)
from ripple.storage.lock import LOCK, lock, unlock
from ripple.storage.manifest import (
    MANIFEST,
    check_files,
    identity_of,
    read_manifest,
    refuse_other,
    render,
    unseal,
    write_manifest,
)
from ripple.storage.parquet import parquet_bytes

SKYMAP = "ripple_mini_v1"
#: The configuration of an unfinished survey; written before anything else.
MARKER = "simulate.json"
#: Approximate bytes per pixel of a compressed coadd file, for the message about a full disk.
PIXEL_BYTES = 5


@dataclass(frozen=True)
class Block:
    """The patches of the survey, and the pixel box around all their outer boxes."""

    skymap: RingsSkyMap
    tract: int
    patches: tuple[int, ...]
    box: Box


def simulate(config: SimulateConfig) -> Summary:
    """Make the survey.

    Parameters
    ----------
    config
        What to make, and where.

    Returns
    -------
    summary
        Counts of targets and coadds; `done_before` when the survey was finished already.

    Raises
    ------
    ConfigError
        The directory has a survey with different options, or the tract has too few patches.
    WriteError
        The directory contains something else.
    """
    start = time.perf_counter()
    directory = _directory(config)
    make_directory(directory)
    foreign = (p for p in directory.iterdir() if p.name != LOCK and not p.name.startswith(TEMPORARY))
    # An interrupted survey is cleared and started again: never a directory that RIPPLe did not begin.
    begun = (directory / MARKER).exists() or (directory / MANIFEST).exists()
    if not begun and any(foreign):
        raise WriteError(
            f"{directory} contains files that RIPPLe did not write", hint="choose another directory"
        )
    block = choose_block(config)
    handle = lock(directory)
    try:
        remove_temporaries(directory)
        if _prepare(directory, config):
            return _summary(config, _read_truth(directory), time.perf_counter() - start, done_before=True)
        truth = _make(config, block)
        _write_truth(directory, truth)
        _finish(directory, config)
    except Exception as err:
        if isinstance(err, WriteError) or not is_full(err):
            raise
        # Most of it is written by the Butler, whose errors do not say how much is missing.
        height, width = block.skymap.patch_outer(block.tract, block.patches[0]).shape
        needed = PIXEL_BYTES * height * width * config.patches * len(config.bands)
        hint = "free space and run the same command again"
        raise WriteError(f"{directory}: disk full, about {needed} bytes needed", hint=hint) from None
    finally:
        unlock(handle)
    return _summary(config, truth, time.perf_counter() - start, done_before=False)


def _directory(config: SimulateConfig) -> Path:
    if not config.output:
        raise ConfigError("simulate: no output directory", hint="give one: ripple simulate DIR")
    return Path(config.output)


def choose_block(config: SimulateConfig) -> Block:
    """A block of patches around the centre of the tract, as square as possible, filled row by row.

    Raises
    ------
    ConfigError
        More patches than the tract has.
    """
    skymap = known(SKYMAP)
    tan = skymap.tan(config.tract)
    columns = int(np.ceil(np.sqrt(config.patches)))
    rows = -(-config.patches // columns)  # rounded up; the last row may have fewer patches
    size = skymap.patches.width
    left, low = (int(v) // size - n // 2 for v, n in ((tan.x0, columns), (tan.y0, rows)))
    whole = skymap.tract_box(config.tract)
    if left < 0 or low < 0 or (left + columns) * size > whole.x1 or (low + rows) * size > whole.y1:
        raise ConfigError(f"{config.patches} patches do not fit into tract {config.tract}")
    across = whole.width // size
    ids = [(low + k // columns) * across + left + k % columns for k in range(config.patches)]
    box = functools.reduce(operator.or_, (skymap.patch_outer(config.tract, p) for p in ids))
    return Block(skymap, config.tract, tuple(ids), box)


def missing_band(config: SimulateConfig, block: Block) -> tuple[int, str] | None:
    """The (patch, band) that is left out on purpose, if there is more than one patch and band."""
    # Real surveys have such gaps, and `fetch` must be tested with one.
    if not config.defects or config.patches < 2 or len(config.bands) < 2:
        return None
    return block.patches[-1], config.bands[-1]


def _make(config: SimulateConfig, block: Block) -> dict[str, NDArray[Any]]:
    """Draw, paint, observe and write everything except the truth, which is returned."""
    tan = block.skymap.tan(block.tract)
    inner = [block.skymap.patch_inner(block.tract, p) for p in block.patches]
    scene = draw_scene(
        inner,
        block.box,
        per_patch=config.targets,
        lens_fraction=config.lens_fraction,
        seed=config.seed,
        ordinary=config.ordinary,
        sources=config.sources,
    )
    conditions = draw_conditions(config.bands, block.box, config.seed)
    defects = draw_defects(len(config.bands), block.box, config.seed) if config.defects else Defects()
    x = np.concatenate([scene.targets["x"], scene.field["x"]])
    y = np.concatenate([scene.targets["y"], scene.field["y"]])
    patch = block.skymap.find_patch(block.tract, x, y)
    # Targets come first, then the objects of the field around them.
    ids, count = object_ids(block.tract, patch), len(scene.targets["x"])
    repo = MiniRepo(_directory(config) / "repo", block.skymap, block.tract, block.patches, config.bands)
    repo.put_objects(object_table(scene, tan, ids, patch, conditions, block.tract, config.seed))
    light, arcs = _paint(config, scene.painted, conditions)
    absent = missing_band(config, block)
    keys = [(patch, band) for band in config.bands for patch in block.patches if (patch, band) != absent]
    planes = _Observed(config, block, conditions, defects, light, _stars(scene))
    with progress(len(keys), "writing", "coadds") as advance:
        repo.put_coadds(keys, planes, workers=config.workers, advance=advance)
    truth = truth_table(scene, ids[:count], tan, patch[:count], arcs, config.bands)
    # Of lenses whose source left no light here the S/N is NaN: they count as invisible.
    unseen = (truth["label"] == 1) & ~(truth["arc_snr"] >= config.min_arc_snr)
    if config.min_arc_snr:
        truth["label"] = np.where(unseen, -1, truth["label"]).astype(np.int8)
    return {"tract": np.full(count, block.tract, np.int32), **truth}


def _paint(
    config: SimulateConfig, painted: Sequence[Painted], conditions: Conditions
) -> tuple[NDArray[np.float32], dict[int, NDArray[np.float64]]]:
    """Light `(B, h, w)` in nJy of the block without noise, and what is known of each arc, by target."""
    box = conditions.box
    light = np.zeros((len(conditions.bands), *box.shape), np.float32)
    arcs: dict[int, NDArray[np.float64]] = {}
    tasks = []
    # Strips of 300 rows, two cells, as tasks: their number does not depend on the workers, nor do the pixels.
    for y0 in range(box.y0, box.y1, 300):
        # Each object belongs to one strip, whatever it reaches into; those below the block to the first.
        inside = tuple(
            p for p in painted if y0 <= np.floor(p.y + 0.5) < y0 + 300 or (y0 == box.y0 and p.y < y0)
        )
        tasks.append(StripTask(inside, conditions, y0, min(y0 + 300, box.y1)))
    with (
        progress(len(tasks), "painting", "strips") as advance,
        closing(ordered_map(render_strip, tasks, workers=config.workers)) as strips,
    ):
        for _, strip in strips:
            if isinstance(strip, WorkerFailure):
                raise WorkerError(f"painting failed: {strip.message}")
            # Strips overlap where objects reach over an edge.
            light[(slice(None), *box.slices(strip.box))] += strip.image
            arcs |= strip.arcs
            advance()
    return light, arcs


def _stars(scene: Scene) -> dict[str, NDArray[np.float64]]:
    """Band -> `(N, 3)` x, y in pixels and flux in nJy of the stars."""
    # Only to find saturated pixels: their light is painted like that of all objects.
    f = scene.field
    fluxes = flux(f["mags"])
    return {
        band: np.stack([f["x"], f["y"], fluxes[:, k]], axis=1)[f["star"]] for k, band in enumerate(UGRIZY)
    }


@dataclass
class _Observed:
    """Observes a band when its first coadd is requested; overlapping patches get identical pixels."""

    config: SimulateConfig
    block: Block
    conditions: Conditions
    defects: Defects
    light: NDArray[np.float32]
    stars: dict[str, NDArray[np.float64]]
    lock: threading.Lock = field(default_factory=threading.Lock)
    band: str = ""
    whole: BandPlanes | None = None
    kernels: NDArray[np.float64] | None = None

    def __call__(self, patch: int, band: str) -> CoaddPlanes:
        # The whole block is observed at once and then cut: noise must be the same where patches overlap.
        with self.lock:
            if band != self.band:
                self._observe(band)
            whole, kernels = self.whole, self.kernels
        assert whole is not None
        assert kernels is not None
        cut = self.block.box.slices(self.block.skymap.patch_outer(self.block.tract, patch))
        cells = tuple(slice(s.start // 150, s.stop // 150) for s in cut)  # cells of 150 px
        return CoaddPlanes(
            patch,
            band,
            np.ascontiguousarray(whole.image[cut]),
            np.ascontiguousarray(whole.variance[cut]),
            np.ascontiguousarray(whole.mask[cut]),
            PLANES,
            kernels[cells],
        )

    def _observe(self, band: str) -> None:
        b = self.config.bands.index(band)
        self.band, self.whole = "", None  # frees the memory of the band before
        light = self.light[b].copy()  # a coadd whose worker died may be requested again
        self.whole = observe(light, self.stars[band], self.conditions, b, self.defects, self.config.seed)
        self.kernels = _kernels(self.conditions, b, self.defects.missing_cell)
        self.band = band


def _kernels(conditions: Conditions, band: int, missing: tuple[int, int] | None) -> NDArray[np.float64]:
    """`(cy, cx, K, K)` kernels of the block, NaN in the missing cell."""
    cy, cx = conditions.sigma.shape[1:]
    kernels = np.stack([np.stack([conditions.kernel(band, i, j) for j in range(cx)]) for i in range(cy)])
    if missing is not None:
        kernels[missing] = np.nan
    return np.asarray(kernels)


def _prepare(directory: Path, config: SimulateConfig) -> bool:
    """Mark the directory as begun; True when it has a finished survey with these options."""
    wanted = identity_of("survey", config.verb, config.canonical(), {})
    if (directory / MANIFEST).exists():
        manifest = read_manifest(directory, "survey")
        refuse_other(directory, manifest, wanted)
        check_files(directory, manifest)
        return True
    marker = directory / MARKER
    if marker.exists():
        refuse_other(directory, unseal(marker, read_whole(marker)), wanted)
        # An interrupted survey starts again: a repository that was being written cannot be trusted.
        shutil.rmtree(directory / "repo", ignore_errors=True)
    write_atomic(marker, render(wanted))
    return False


def _finish(directory: Path, config: SimulateConfig) -> None:
    """Write the manifest, which lists the truth and the coadds."""
    # Not the registry (SQLite), which changes whenever a Butler opens it.
    names = [path.relative_to(directory).as_posix() for path in sorted(directory.rglob("*.fits"))]
    identity = identity_of("survey", config.verb, config.canonical(), {})
    write_manifest(directory, identity, {"files": listed(directory, ("truth.parquet", *names))})
    (directory / MARKER).unlink()


def _write_truth(directory: Path, truth: dict[str, NDArray[Any]]) -> None:
    write_atomic(directory / "truth.parquet", parquet_bytes(pa.table(truth)))


def _read_truth(directory: Path) -> dict[str, NDArray[Any]]:
    table = pq.read_table(directory / "truth.parquet", columns=["label", "class", "arc_snr"])
    return {name: table[name].to_numpy() for name in table.column_names}


def _summary(
    config: SimulateConfig, truth: dict[str, NDArray[Any]], seconds: float, *, done_before: bool
) -> Summary:
    label, plain = np.asarray(truth["label"]), np.isin(truth["class"], list(ORDINARY))
    coadds = config.patches * len(config.bands) - (missing_band(config, choose_block(config)) is not None)
    facts = {
        "targets": len(label),
        "lenses": int((label == 1).sum()),
        "look-alikes": int(((label == 0) & ~plain).sum()),  # targets that look like lenses, but are none
        **({"ordinary": int(plain.sum())} if plain.any() else {}),
        "coadds": coadds,
        "tract": config.tract,
        "bands": "".join(config.bands),
        "repository": f"{_directory(config) / 'repo'} (collection mini)",
    }
    return Summary("simulate", config.output, facts, seconds=seconds, done_before=done_before)
