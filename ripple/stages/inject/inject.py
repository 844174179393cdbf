"""`ripple inject`: lensed sources painted into real cutouts; deflector and surroundings stay real.

A deflector's mass follows the light at the centre of its cutout (axis ratio and angle from second moments);
its Einstein radius, the source and the position of the source are drawn. Or a file gives all of that. Arcs
are convolved with the row's own PSF in each band and bring their photon noise along. Rows that are not chosen
stay as they are.
"""

from __future__ import annotations

import hashlib
import io
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripple.errors import CatalogueError, ConfigError, DataError, IntegrityError
from ripple.imaging.batch import CutoutBatch
from ripple.imaging.psf.shape import fwhm
from ripple.runtime.profile import Profile, peak_rss
from ripple.runtime.summary import Summary
from ripple.stages.inject.choose import LENS, UNKNOWN, chosen_light, generator
from ripple.stages.inject.config import InjectConfig
from ripple.stages.inject.lenses import REDSHIFTS, Lenses, read_lenses
from ripple.stages.inject.masses import require_masses, velocity_dispersions
from ripple.stages.inject.paint import add_arcs, arc_facts, gain, host_facts, over_seeing
from ripple.stages.inject.sources import Sources, read_sources
from ripple.stages.plan.select import matching
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.checksums import listed
from ripple.storage.files import Pin, stage, write_atomic
from ripple.storage.labels import plain_class
from ripple.storage.map_shards import ShardResult, Workers, map_shards, need_of
from ripple.storage.shard_reader import unpack_cutouts
from ripple.storage.shard_writer import pack_cutouts
from ripple.storage.shards import cutouts_of
from ripple.storage.writer import ArtefactWriter, Finished, create

#: Columns of floats that injection adds to the catalogue, besides `label`, `injected` and `arc_mag_<band>`.
MEASURES = (
    "theta_E", "theta_E_over_seeing", "source_mag", "source_re", "magnification", "images", "arc_snr",
    "arc_sb", "host_bad",
)  # fmt: skip
#: The same for each band.
OF_BANDS = ("arc_mag", "arc_snr", "arc_sb", "depth")


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One shard to paint into, and where to write the result."""

    cutouts: str
    shard: int
    directory: str
    name: str
    config: InjectConfig
    lenses: Lenses | None
    sources: str  # SHA-256 of the pictures
    hosts: NDArray[np.bool_] | None


def inject(config: InjectConfig) -> Summary:
    """Paint lensed sources into a cutout artefact.

    Raises
    ------
    ConfigError
        No input or output is given, the colours of sources are not known in a band, label 1 is a class that
        is no lens, or a fraction is given beside lenses with ids.
    CatalogueError
        The lenses or the condition on hosts cannot be used.
    DataError
        No cutout meets that condition.
    RippleError
        As listed in `ripple.errors`.
    """
    if not config.cutouts or not config.output:
        raise ConfigError(
            "inject: cutouts or output are missing", hint="give both: ripple inject CUTOUTS -o DIR"
        )
    start = time.perf_counter()
    cutouts = open_artefact(Path(config.cutouts), "cutouts")
    _check_bands(cutouts)
    _check_classes(cutouts)
    # The file may have changed since this process last read it.
    read_sources.cache_clear()
    sources = _sources(config, cutouts.bands)
    lenses = _lenses(config, cutouts, sources)
    # There may be gigabytes of pictures: each worker reads what it paints, and they are hashed once.
    pins = [Pin.of(path) for path in sources.files()] if sources is not None else []
    hosts = _hosts(config, cutouts)
    require_masses(config, cutouts.index())
    inputs = {"cutouts": cutouts.digest} | ({} if lenses is None else {"lenses": lenses.sha256})
    if sources is not None:
        parts = [sources.sha256, *(pin.sha256 for pin in pins)]
        inputs["sources"] = hashlib.sha256("".join(parts).encode()).hexdigest() if pins else sources.sha256
    opened = create(
        Path(config.output), kind="cutouts", config=config, inputs=inputs, units=len(cutouts.shards)
    )
    if isinstance(opened, Finished):
        return _summary(config, opened.artefact.index(), lenses, 0.0)
    with opened as writer:
        profile = Profile()
        workers = Workers.of(config, need_of(cutouts))

        def task(k: int) -> ShardTask:
            return ShardTask(
                str(cutouts.directory),
                k,
                str(writer.directory),
                writer.name(k),
                config,
                lenses,
                "" if sources is None else sources.sha256,
                None if hosts is None else hosts[k],
            )

        tasks = {k: task(k) for k in writer.todo()}
        rows = [shard.rows for shard in cutouts.shards]
        peak = map_shards(make_shard, tasks, writer, rows, workers, profile, "inject")
        for pin in pins:
            pin.check(rehash=False)
        index = _index(cutouts, writer)
        seconds = time.perf_counter() - start
        names = [writer.name(k) for k in range(len(cutouts.shards))]
        extra = [arcs_name(name) for name in names] if config.keep_arcs else []
        flaws: list[str] = []
        if config.card:
            from ripple.stages.inject import card  # loads plots and pages

            flaws = card.write_card(config, cutouts, writer.directory, names, index, lenses, sources)
            extra += card.NAMES
        beside = listed(writer.directory, extra)
        metrics = {"operations": profile.operations, "seconds": seconds, "peak_rss": peak}
        writer.finish(index, metrics, cutouts.attributes, files=beside)
    return _summary(config, index, lenses, seconds, tuple(flaws))


def _sources(config: InjectConfig, bands: tuple[str, ...]) -> Sources | None:
    """The pictures of the user; None without them."""
    return read_sources(Path(config.sources), bands, config.source_sed) if config.sources else None


def _lenses(config: InjectConfig, cutouts: Artefact, sources: Sources | None) -> Lenses | None:
    """The lenses of the user; None when they are drawn."""
    if not config.lenses:
        return None
    lenses = read_lenses(Path(config.lenses), cutouts.bands, sources)
    if lenses.ids is None:
        return lenses
    if config.fraction is not None:
        raise ConfigError(
            "inject: --fraction, but the lenses have ids", hint="every cutout they name gets one"
        )
    known = {str(value) for value in cutouts.index()["id"].to_pylist()}
    if not known.intersection(lenses.ids):
        raise ConfigError(
            f"{config.lenses}: no cutout has one of its ids, such as {next(iter(lenses.ids))!r}",
            hint="leave out the column id to draw from the lenses",
        )
    return lenses


def _hosts(config: InjectConfig, cutouts: Artefact) -> list[NDArray[np.bool_]] | None:
    """Which rows of each shard meet the condition on hosts; None without one."""
    if not config.hosts:
        return None
    index = cutouts.index()
    try:
        met = matching(index, config.hosts).to_numpy()
    except (CatalogueError, ConfigError) as err:
        # The same language as that of --select, which it was written for.
        raise type(err)(err.message.replace("--select", "--hosts"), hint=err.hint) from None
    shard, row = index["shard"].to_numpy(), index["row"].to_numpy()
    out = [np.zeros(record.rows, bool) for record in cutouts.shards]
    for k, mask in enumerate(out):
        mask[row[shard == k]] = met[shard == k]
    if not any(mask.any() for mask in out):
        raise DataError(f"{cutouts.directory}: no cutout meets --hosts {config.hosts!r}")
    return out


def _check_bands(cutouts: Artefact) -> None:
    unknown = [band for band in cutouts.bands if band not in tuple("ugrizy")]
    if unknown:
        raise ConfigError(
            f"{cutouts.directory}: colours and photon noise of sources are not known in band {unknown[0]!r}",
            hint="they are known in u, g, r, i, z and y",
        )


def _check_classes(cutouts: Artefact) -> None:
    """Refuse classes among which 1, the label of what is painted, is no lens."""
    class_map = cutouts.attributes.get("class_map", {})
    if class_map and plain_class(class_map.get(str(LENS), "")) != "lens":
        names = ", ".join(f"{k}: {v}" for k, v in sorted(class_map.items()))
        raise ConfigError(
            f"{cutouts.directory}: painted lenses get label {LENS}, but the classes are {names}",
            hint=f"import or fetch again with labels in which {LENS} is lens, as in 0: nonlens, 1: lens",
        )


def make_shard(task: ShardTask) -> ShardResult:
    """Inject into one shard and write it under a temporary name: what a worker does."""
    profile = Profile()
    cutouts = open_artefact(Path(task.cutouts), "cutouts")
    batch = cutouts_of(cutouts, task.shard)
    arcs = np.zeros(batch.image.shape, np.float32) if task.config.keep_arcs else None
    # Pictures are read by each worker, which is cheaper than to send them with each shard.
    sources = _sources(task.config, batch.bands)
    if sources is not None and sources.sha256 != task.sources:
        raise IntegrityError(f"{task.config.sources} changed during the run", hint="start again")
    with profile.time("inject"):
        painted = inject_batch(batch, task.config, task.lenses, task.hosts, arcs, sources)
    if arcs is not None:
        # Before the shard: where that is finished, its arcs are there.
        out = io.BytesIO()
        np.save(out, arcs)
        write_atomic(Path(task.directory) / arcs_name(task.name), out.getbuffer())
    data = pack_cutouts(painted, {"cutouts_sha256": cutouts.shards[task.shard].sha256})
    staged = stage(Path(task.directory), task.name, data)
    return ShardResult(staged, len(painted), profile.operations, peak_rss())


def arcs_name(shard: str) -> str:
    """Name of the file with the arcs of a shard, `shard-00000.h5`."""
    return f"arcs-{shard.removeprefix('shard-').partition('.')[0]}.npy"


def inject_batch(
    batch: CutoutBatch,
    config: InjectConfig,
    lenses: Lenses | None = None,
    hosts: NDArray[np.bool_] | None = None,
    keep: NDArray[np.float32] | None = None,
    sources: Sources | None = None,
) -> CutoutBatch:
    """Paint lensed sources into a share of the rows.

    Parameters
    ----------
    batch
        Cutouts in nJy, in bands among ugrizy.
    config
        What to paint, and how often. What a row gets depends only on the seed and the row's `index`.
    lenses
        Of the user; None: drawn.
    hosts
        `(N,)` rows that may get a lens, besides those that are labelled as lenses; None: all.
    keep
        `(N, B, H, W)` zeros, which are filled with the arcs in nJy, without noise.
    sources
        Pictures to lens instead of smooth profiles.

    Returns
    -------
    batch
        Copies of image and variance, and new columns: `label` (1 if injected, but -1 where the arc has an S/N
        below `min_arc_snr` in every band; else as before, or 0), `injected` (uint8), `theta_E` (arcsec),
        `theta_E_over_seeing` (mean FWHM of the bands), `source_mag` (i), `source_re` (half-light radius,
        arcsec), `magnification`, `images` (of the centre of the source), `arc_mag_<band>` (lensed total),
        `arc_snr_<band>` and `arc_snr` (matched filter, best band), `arc_sb_<band>` and `arc_sb` (mag/arcsec²,
        flux-weighted mean, bluest band), NaN where nothing was injected, and with lenses of the user
        `z_lens` and `z_source`; of every row `depth_<band>` (5 sigma, point source), `seam` (1: it lies in
        several cells) and `host_bad` (largest share of pixels in a band that are no measurement), all before
        anything was painted; `lens_row` (row of the lenses, -1 for none), with pictures `source_row`
        likewise, and `not_injected` (why nothing was painted, empty where it was). Rows without a PSF in a
        band that has data are left out.
    """
    n, image, variance = len(batch), batch.image.copy(), batch.variance.copy()
    injected = np.zeros(n, np.uint8)
    names = (*MEASURES, *(f"{name}_{band}" for name in OF_BANDS for band in batch.bands))
    measured = {name: np.full(n, np.nan) for name in names} | host_facts(batch)
    sigma = velocity_dispersions(batch.catalog, config) if config.theta_from else None
    if sigma is not None:
        measured["z_source"] = _redshifts(batch, "z_source")
        measured["lens_sigma_v"] = np.full(n, np.nan)
    if lenses is not None:
        # A catalogue may know the redshifts of its galaxies; those of painted lenses are those of the file.
        measured |= {name: _redshifts(batch, name) for name in REDSHIFTS}
    # Real cutouts are hardly ever lenses: without labels, those that were not painted count as no lens.
    label = np.asarray(batch.catalog.get("label", np.zeros(n, np.int64))).copy()
    # Of the PSFs of the centres only: cells bring as many again.
    used = np.unique(batch.psf_index[batch.psf_index >= 0])
    widths = np.full(len(batch.psf), np.nan)
    widths[used] = fwhm(batch.psf[used]) * batch.pixel_scale
    lens_row, why = np.full(n, -1, np.int64), [""] * n
    source_row = np.full(n, -1, np.int64)
    for k in range(n):
        rng = generator(config, batch, k)
        found = chosen_light(batch, k, config, lenses, hosts, sources, sigma, rng)
        lens_row[k], source_row[k], why[k] = found.lens_row, found.source_row, found.why
        if found.light is None:
            continue
        facts = found.light.facts
        arcs = found.light.seen(batch, k)
        add_arcs(image[k], variance[k], arcs, gain(batch, k), rng)
        injected[k] = 1
        if keep is not None:
            keep[k] = arcs
        facts = facts | arc_facts(arcs, batch.variance[k], batch)
        facts |= over_seeing(facts["theta_E"], batch, k, widths)
        for name, value in facts.items():
            measured[name][k] = value
    label[injected == 1] = LENS
    if config.min_arc_snr:
        # -1 is no number of the unsigned types.
        label = label if label.dtype.kind in "if" else label.astype(np.int64)
        label[(injected == 1) & ~(measured["arc_snr"] >= config.min_arc_snr)] = UNKNOWN
    seam = np.isin(np.arange(n), batch.psf_cells[:, 0]).astype(np.uint8)
    made = {
        "label": label,
        "injected": injected,
        "seam": seam,
        "lens_row": lens_row,
        "not_injected": np.array(why),
    }
    if sources is not None:
        made["source_row"] = source_row
    catalog = {**batch.catalog, **made, **measured}
    return replace(batch, image=image, variance=variance, catalog=catalog)


def _redshifts(batch: CutoutBatch, name: str) -> NDArray[np.float64]:
    """A column of the catalogue; NaN where it has none, or no numbers."""
    column = batch.catalog.get(name)
    if column is None or column.dtype.kind not in "iuf":
        return np.full(len(batch), np.nan)
    return np.array(column, np.float64)


def _index(cutouts: Artefact, writer: ArtefactWriter) -> pa.Table:
    """The index of the cutouts with the new columns; rows without pixels keep their label."""
    old = cutouts.index()
    shard, row = old["shard"].to_numpy(), old["row"].to_numpy()
    columns: dict[str, Any] = {name: old[name] for name in old.column_names}
    fresh: dict[str, NDArray[Any]] = {}
    for k in range(len(cutouts.shards)):
        path = writer.directory / writer.name(k)
        mapped: Any = np.memmap(path, np.uint8, mode="r")  # its pixels are not read
        catalog = unpack_cutouts(mapped).catalog  # the shard that was just written
        here = np.flatnonzero(shard == k)
        for name in _new_columns(catalog):
            # Texts of other shards may be longer.
            values = catalog[name].astype(object) if catalog[name].dtype.kind == "U" else catalog[name]
            if name not in fresh:
                fresh[name] = _blank(old, name, values.dtype)
            fresh[name][here] = values[row[here]]
    return pa.table(columns | {name: pa.array(values) for name, values in fresh.items()})


def _new_columns(catalog: dict[str, NDArray[Any]]) -> list[str]:
    """Names of the columns that injection adds or changes."""
    masses = (*REDSHIFTS, "lens_sigma_v")
    redshifts = [name for name in masses if name in catalog and catalog[name].dtype.kind == "f"]
    names = ("label", "injected", "seam", "lens_row", "not_injected", *MEASURES, *_of_bands(catalog))
    return [*names, *redshifts, *(["source_row"] if "source_row" in catalog else [])]


def _of_bands(catalog: dict[str, NDArray[Any]]) -> list[str]:
    """Columns of `OF_BANDS`: those whose name ends in a band that has all of them."""
    bands = [n.removeprefix("arc_mag_") for n in catalog if n.startswith("arc_mag_")]
    return [f"{name}_{b}" for name in OF_BANDS for b in sorted(bands) if f"arc_snr_{b}" in catalog]


def _blank(old: pa.Table, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The column for rows without pixels: the old label, NaN, 0, -1, or why nothing was painted."""
    if name in ("label", *REDSHIFTS) and name in old.column_names:
        return np.array(old[name].to_numpy(), dtype)
    if name == "not_injected":
        return np.full(old.num_rows, "no pixels", dtype)
    if name in ("lens_row", "source_row"):
        return np.full(old.num_rows, -1, dtype)
    return np.full(old.num_rows, np.nan if dtype.kind == "f" else 0, dtype)


def _summary(
    config: InjectConfig, index: pa.Table, lenses: Lenses | None, seconds: float, flaws: tuple[str, ...] = ()
) -> Summary:
    rows = int((index["shard"].to_numpy() >= 0).sum())
    injected = np.flatnonzero(index["injected"].to_numpy())
    facts: dict[str, int | str] = {"rows": rows, "injected": len(injected)}
    if len(injected):
        facts["arc S/N"] = f"median {np.median(index['arc_snr'].to_numpy()[injected]):.0f}"
    if config.min_arc_snr:
        facts["unknown"] = int((index["label"].to_numpy()[injected] == UNKNOWN).sum())
    return Summary(
        "inject",
        config.output,
        facts,
        notes=(() if lenses is None else _notes(config, index, lenses)) + flaws,
        seconds=seconds,
        done_before=seconds == 0,
    )


def _notes(config: InjectConfig, index: pa.Table, lenses: Lenses) -> tuple[str, ...]:
    """Lenses that were refused, or have no cutout."""
    notes = []
    if bad := [(k, why) for k, why in enumerate(lenses.refused) if why]:
        k, why = bad[0]
        notes.append(
            f"{config.lenses}: {len(bad):,} lenses cannot be painted, the first in row {k + 1}: {why}"
        )
    if lenses.ids is not None:
        absent = set(lenses.ids).difference(str(value) for value in index["id"].to_pylist())
        if absent:
            notes.append(f"{config.lenses}: {len(absent):,} ids have no cutout, such as {min(absent)}")
    return tuple(notes)
