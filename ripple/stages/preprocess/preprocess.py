"""`ripple preprocess`: cutout shards to tensor shards, shard k to shard k, row to row.

Nothing is dropped: rows judged unfit keep their pixels and their row; `accept` is 0, `qc` says why.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from ripple.errors import ConfigError, Reason
from ripple.imaging import noise, normalize
from ripple.imaging.batch import CutoutBatch
from ripple.imaging.quality import judge
from ripple.imaging.quality.flags import LABELS, flag_names
from ripple.learn.model.contract import Contract, load_contract
from ripple.runtime.profile import Profile, peak_rss
from ripple.runtime.summary import Summary, rate, tally
from ripple.sky.neighbours import repeated
from ripple.sky.splits import split_blocks, split_keys
from ripple.stages.preprocess.batch import (
    CORRELATION_ROWS,
    DataConstants,
    calibrated,
    copies_planes,
    correlation_of,
    describe,
    on_grid,
    prepare,
    preprocess_batch,
)
from ripple.stages.preprocess.config import PreprocessConfig
from ripple.stages.preprocess.for_model import for_model, model_constants
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.files import stage
from ripple.storage.map_shards import ShardResult, Workers, map_shards, map_tasks, need_of
from ripple.storage.outcomes import Outcome, Outcomes
from ripple.storage.shard_reader import has_psf, map_planes, map_tensors
from ripple.storage.shard_writer import pack_tensors
from ripple.storage.shards import cutouts_of, mapped_cutouts, some_cutouts
from ripple.storage.writer import ArtefactWriter, Finished, create

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["PreprocessConfig", "ShardTask", "make_shard", "preprocess", "preprocess_batch"]

FEW = 64  # rows that take less time than a worker takes to start
#: Memory for each byte of a shard whose planes are mapped and never copied whole: 0.84 measured for float32
#: and cutouts without a margin, which is cut off.
MAPPED = 0.9
CORRELATION_SHARDS = 8  # evenly spread; the noise correlation is measured there


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One shard to preprocess.

    Parameters
    ----------
    cutouts, shard
        Artefact directory and shard number.
    directory, name
        Where the tensor shard goes.
    config, constants
        As for `preprocess_batch`.
    rows
        For passes over part of a shard: row numbers; None for all.
    """

    cutouts: str
    shard: int
    directory: str
    name: str
    config: PreprocessConfig
    constants: DataConstants
    rows: NDArray[np.int64] | None = None


class TensorAttributes(TypedDict):
    """Facts about all tensors: `size` and `trimmed` (from each edge) in pixels.

    `psf_fwhm` is the FWHM of the common PSF image in arcsec, None where PSFs have no common width.
    """

    bands: list[str]
    size: int | list[int] | None
    margin: int
    trimmed: int
    unit: str
    psf: str
    psf_fwhm: float | None
    normalization: Mapping[str, object]
    class_map: dict[str, str]
    noise_correlation: Mapping[str, list[list[float]]] | None
    flags: list[str]


@lru_cache(maxsize=4)
def _artefact(directory: str) -> Artefact:
    return open_artefact(Path(directory), "cutouts")


def _batch(task: ShardTask, profile: Profile) -> CutoutBatch:
    with profile.time("read"):
        artefact = _artefact(task.cutouts)
        if task.rows is not None:
            return some_cutouts(artefact, task.shard, task.rows)
        return cutouts_of(artefact, task.shard)


def make_shard(task: ShardTask) -> ShardResult:
    """Preprocess one shard and write it beside its place: what a worker does."""
    profile = Profile()
    with profile.time("read"):
        batch, release = mapped_cutouts(_artefact(task.cutouts), task.shard)
    tensors = preprocess_batch(batch, task.config, task.constants, profile, release)
    with profile.time("pack"):
        digest = _artefact(task.cutouts).shards[task.shard].sha256
        data = pack_tensors(tensors, {"cutouts_sha256": digest})
    with profile.time("write", bytes=len(data)):
        staged = stage(Path(task.directory), task.name, data)
    return ShardResult(staged, len(tensors), profile.operations, peak_rss())


def sum_correlation(task: ShardTask) -> noise.Correlation:
    """Noise correlation sums of some rows of a shard: what a worker does in the first pass."""
    batch = calibrated(_batch(task, Profile()), task.config.zero_point)
    return correlation_of(on_grid(batch, task.config, 0)[0])


def row_statistics(task: ShardTask) -> normalize.Statistics:
    """Statistics of the training rows of a shard: what a worker does in the second pass."""
    config = task.config.model_copy(update={"registration": False})
    prepared = prepare(_batch(task, Profile()), config, task.constants, Profile())
    return normalize.statistics(prepared.image, prepared.valid, prepared.noise)


def preprocess(config: PreprocessConfig) -> Summary:
    """Turn a cutout artefact into a tensor artefact.

    Raises
    ------
    RippleError
        As listed in `ripple.errors`; faults of single rows are in the index instead.
    """
    if not config.cutouts or not config.output:
        raise ConfigError(
            "preprocess: give the cutouts and an output", hint="ripple preprocess CUTOUTS -o DIR"
        )
    start = time.perf_counter()
    # In a notebook, other cutouts may have taken the place of those that were read before.
    _artefact.cache_clear()
    cutouts = open_artefact(Path(config.cutouts), "cutouts")
    contract = None if config.model is None else load_contract(config.model)
    config = config if contract is None else for_model(config, contract, cutouts.bands)
    _check_psfs(cutouts, config)
    inputs = {"cutouts": cutouts.digest}
    if contract is not None:
        inputs["model"] = contract.digest()
    opened = create(
        Path(config.output), kind="tensors", config=config, inputs=inputs, units=len(cutouts.shards)
    )
    if isinstance(opened, Finished):
        return _summary(config, opened.artefact.index(), 0.0)
    with opened as writer:
        profile = Profile()
        with profile.time("constants"):
            constants = data_constants(cutouts, config, contract)

        def task(k: int) -> ShardTask:
            where = str(cutouts.directory), k, str(writer.directory), writer.name(k)
            return ShardTask(*where, config, constants)

        with profile.time("verify"):
            tasks = {k: task(k) for k in writer.todo()}
        rows = [shard.rows for shard in cutouts.shards]
        peak = map_shards(make_shard, tasks, writer, rows, _workers(cutouts, config), profile, "preprocess")
        index = _index(cutouts, config, writer)
        seconds = time.perf_counter() - start
        metrics = {"operations": profile.operations, "seconds": seconds, "peak_rss": peak}
        size = _size(writer) if config.size or config.pixel_scale else cutouts.attributes.get("size")
        writer.finish(index, metrics, {**_attributes(cutouts, config, constants), "size": size})
    return _summary(config, index, seconds, constants.outliers)


def _check_psfs(cutouts: Artefact, config: PreprocessConfig) -> None:
    """Raise before anything is done when PSFs are to be matched and no row has one."""
    filled = [k for k, shard in enumerate(cutouts.shards) if shard.rows]
    if config.psf == "none" or not filled or any(has_psf(cutouts.shard_path(k)) for k in filled):
        return
    raise ConfigError(
        f"{config.cutouts}: no row has a PSF, so that none can be matched to {config.psf}",
        hint="use --psf none; or import PSF images, or --gaussian-psf where the width is known",
    )


def data_constants(
    cutouts: Artefact, config: PreprocessConfig, contract: Contract | None = None
) -> DataConstants:
    """What rows need to know of the whole data set; a pure function of artefact, config and contract.

    Parameters
    ----------
    cutouts, config
        As for `preprocess`.
    contract
        Of the model whose constants are taken instead of measured ones.

    Returns
    -------
    constants
        For `preprocess_batch`; JSON values.
    """
    attributes, index = cutouts.attributes, cutouts.index()
    bands = tuple(attributes["bands"])
    placed = index["shard"].to_numpy() >= 0
    ra, dec = (np.asarray(index[name].to_numpy(zero_copy_only=False), np.float64) for name in ("ra", "dec"))
    # Rows without pixels count as rows without a position: nothing repeats them.
    twin = repeated(np.where(placed, ra, np.nan), dec, config.quality.min_separation)
    constants = DataConstants(
        margin=attributes.get("margin", 0),
        duplicates=tuple(index["index"].to_numpy()[twin].tolist()),
        class_map=attributes.get("class_map", {}),
    )
    if contract is not None:
        return model_constants(contract, constants)
    if config.noise_correlation == "measured":
        rho = _correlation_pass(cutouts, config).rho()
        # Rounded, so that the manifest shows what was used to the last digit.
        rounded = {b: np.round(r, 6).tolist() for b, r in zip(bands, rho, strict=True)}
        constants = replace(constants, noise_correlation=rounded)
    if config.scope == "dataset":
        constants = _with_statistics(cutouts, config, constants, index, ra, dec)
    return constants


def _tasks(
    cutouts: Artefact, config: PreprocessConfig, constants: DataConstants, rows: dict[int, NDArray[np.int64]]
) -> list[ShardTask]:
    where = str(cutouts.directory)
    return [ShardTask(where, k, "", "", config, constants, r) for k, r in sorted(rows.items()) if len(r)]


def _correlation_pass(cutouts: Artefact, config: PreprocessConfig) -> noise.Correlation:
    """Noise correlation from rows spread evenly over evenly spread shards."""
    filled = np.flatnonzero([shard.rows for shard in cutouts.shards])
    picked = filled[
        np.unique(np.linspace(0, max(len(filled) - 1, 0), CORRELATION_SHARDS).astype(int))[: len(filled)]
    ]
    rows = {
        int(k): np.unique(np.linspace(0, cutouts.shards[k].rows - 1, CORRELATION_ROWS).astype(np.int64))
        for k in picked
    }
    size = (len(cutouts.bands), 2 * noise.LAG + 1, 2 * noise.LAG + 1)
    total = noise.Correlation(np.zeros(size), np.zeros(size), np.zeros(size[0]))
    # In this process: a thousand rows take less time than workers take to start.
    for part in map(sum_correlation, _tasks(cutouts, config, DataConstants(), rows)):
        total = total + part
    return total


def _with_statistics(
    cutouts: Artefact, config: PreprocessConfig, constants: DataConstants, index: pa.Table, ra: Any, dec: Any
) -> DataConstants:
    """The constants with those of scope `dataset`: training rows only, in shard order."""
    shard, row = index["shard"].to_numpy(), index["row"].to_numpy()
    placed = shard >= 0
    train = np.zeros(len(ra), bool)
    known = placed & np.isfinite(ra) & np.isfinite(dec)
    how: dict[str, Any] = {"fractions": config.train_fractions, "seed": config.train_seed}
    train[known] = split_blocks(ra[known], dec[known], nside=config.train_nside, **how) == 0
    rest = placed & ~known
    train[rest] = split_keys(index["index"].to_numpy()[rest], **how) == 0
    rows = {k: np.sort(row[train & (shard == k)]).astype(np.int64) for k in range(len(cutouts.shards))}
    total = normalize.Accumulator(cutouts.bands)
    tasks = _tasks(cutouts, config, constants, rows)
    for stats in map_tasks(row_statistics, tasks, _workers(cutouts, config, whole=True)):
        total.add(stats)
    offset, scale = total.constants(config.normalize, config.softening)
    return replace(constants, offset=offset, scale=scale, rows=total.rows, outliers=total.outliers)


def _workers(cutouts: Artefact, config: PreprocessConfig, *, whole: bool = False) -> Workers:
    """The workers that were asked for; a few rows, for which none were, are done in this process.

    `whole`: a shard is copied rather than mapped.
    """
    need = need_of(cutouts) if whole or copies_planes(config) else need_of(cutouts, MAPPED)
    found = Workers.of(config, need)
    few = sum(shard.rows for shard in cutouts.shards) <= FEW
    return replace(found, count=0) if few and "workers" not in config.model_fields_set else found


def _index(cutouts: Artefact, config: PreprocessConfig, writer: ArtefactWriter) -> pa.Table:
    """The index of the cutouts plus verdicts, measures and constants; rows without pixels keep theirs."""
    import pyarrow as pa

    old = cutouts.index()
    shard, row = old["shard"].to_numpy(), old["row"].to_numpy()
    fresh: dict[str, NDArray[Any]] = {}
    for k in range(len(cutouts.shards)):
        catalog = map_tensors(writer.directory / writer.name(k)).catalog
        here = np.flatnonzero(shard == k)
        for name, values in catalog.items():
            if not _is_fresh(name):
                continue
            empty = np.nan if values.dtype.kind == "f" else 0
            column = fresh.setdefault(name, np.full(len(shard), empty, values.dtype))
            column[here] = values[row[here]]
    columns: dict[str, Any] = {name: old[name] for name in old.column_names}
    columns |= _outcomes(old, fresh, config).columns()
    columns |= {name: pa.array(values) for name, values in fresh.items()}
    columns["noise_from"] = _noise_from(fresh, cutouts.bands, len(shard))
    return pa.table(columns)


def _noise_from(fresh: Mapping[str, NDArray[Any]], bands: Sequence[str], rows: int) -> list[str]:
    """Where the noise of each row comes from: `variance`, `pixels` where a band has none, or empty."""
    out = np.full(rows, "", "U8")
    for band in bands:
        if f"noise_{band}" in fresh:
            known = np.isfinite(fresh[f"noise_{band}"])
            out[known & np.isfinite(fresh[f"qc_noise_ratio_{band}"]) & (out == "")] = "variance"
            out[known & np.isnan(fresh[f"qc_noise_ratio_{band}"])] = "pixels"
    return [str(value) for value in out]


def _is_fresh(name: str) -> bool:
    return name in ("qc", "accept") or name.startswith(("qc_", "psf_", "norm_", "noise_"))


def _outcomes(old: pa.Table, fresh: dict[str, NDArray[Any]], config: PreprocessConfig) -> Outcomes:
    """The outcomes of the cutouts, and rejections by quality control with the measures behind them."""
    columns = {
        name: old[name].to_pylist() for name in ("status", "reason", "detail") if name in old.column_names
    }
    outcomes = Outcomes.read_columns(columns)
    if "accept" not in fresh:
        return outcomes
    placed = np.flatnonzero(old["shard"].to_numpy() >= 0)
    found = rejections({name: values[placed] for name, values in fresh.items()}, config)
    for rows, outcome in found.groups():
        outcomes.add(placed[rows], outcome)
    return outcomes


def rejections(catalog: Mapping[str, NDArray[Any]], config: PreprocessConfig) -> Outcomes:
    """What quality control made of N rows: those it did not accept are rejected, with the measures behind it.

    Parameters
    ----------
    catalog
        `qc`, `accept` and the measures of the rows.
    config
        Thresholds, and which flags reject.
    """
    outcomes = Outcomes(len(catalog["accept"]))
    own = {name: values for name, values in catalog.items() if _is_fresh(name)}
    for k in np.flatnonzero(catalog["accept"] == 0).tolist():
        found = flag_names(int(catalog["qc"][k]))
        measures = {name: float(values[k]) for name, values in own.items()}
        text = "; ".join(
            judge.explain(flag, measures, config.quality) for flag in found if flag in config.reject
        )
        outcomes.add([k], Outcome("rejected", _reason(found, config), text))
    return outcomes


def _reason(found: list[str], config: PreprocessConfig) -> Reason:
    """The most specific reason when the rejecting flags agree on one."""
    fatal = set(found) & config.reject
    if fatal & {"missing_cell"}:
        return Reason.MISSING_CELL
    if fatal and fatal <= {"psf_invalid", "psf_width", "psf_residual"}:
        return Reason.BAD_PSF
    if fatal == {"missing_band"}:
        return Reason.MISSING_BAND
    return Reason.DUPLICATE if fatal == {"duplicate"} else Reason.QUALITY


def _size(writer: ArtefactWriter) -> list[int] | None:
    """`[H, W]` of the tensors that were written; None when there are none."""
    for k in range(writer.units):
        shape = map_planes(writer.directory / writer.name(k)).image.shape
        if shape[0]:
            return list(shape[-2:])
    return None


def _attributes(cutouts: Artefact, config: PreprocessConfig, constants: DataConstants) -> TensorAttributes:
    attributes = cutouts.attributes
    margin = constants.margin
    target = config.target
    return {
        "bands": attributes["bands"],
        "size": attributes.get("size"),
        "margin": 0,
        "trimmed": margin,
        "unit": "nJy",
        "psf": config.psf,
        "psf_fwhm": target if isinstance(target, float) else None,
        "normalization": describe(config, constants),
        "class_map": dict(constants.class_map),
        "noise_correlation": constants.noise_correlation,
        "flags": list(LABELS),
    }


def _summary(config: PreprocessConfig, index: pa.Table, seconds: float, outliers: int = 0) -> Summary:
    """The closing screen; raises `TooManyRejected` when the user's limit is passed."""
    counts, reasons = tally(index, config.output, config.max_rejected)
    facts: dict[str, Any] = {**counts, "psf": config.psf}
    facts["normalize"] = f"{config.normalize} per {config.scope}"
    flags: Counter[str] = Counter()
    if "qc" in index.column_names:
        for qc, count in zip(*np.unique(index["qc"].to_numpy(), return_counts=True), strict=True):
            flags.update({name: int(count) for name in flag_names(int(qc))})
    estimated = index["noise_from"].to_pylist().count("pixels") if "noise_from" in index.column_names else 0
    if estimated:
        facts["noise"] = f"estimated from the pixels in {estimated:,} rows, which have no variance"
    if flags:
        facts["flags"] = ", ".join(f"{name} {count}" for name, count in flags.most_common(8))
    if seconds:
        facts["rate"] = rate(index.num_rows, seconds)
    notes = f"training rows far beyond the others, left out of the constants of the data set: {outliers:,}"
    return Summary(
        "preprocess", config.output, facts, reasons, seconds, seconds == 0, (notes,) if outliers else ()
    )
