"""`ripple show`: what a directory of RIPPLe contains: facts, costs, pictures."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ripple.config import Json
from ripple.errors import InputError
from ripple.report.band_colours import channels, measured_noise, pictures
from ripple.runtime.summary import Summary, size
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.files import write_atomic
from ripple.storage.manifest import files_of, read_manifest
from ripple.storage.schema import KINDS
from ripple.storage.shards import images_of

_SHOWN_ATTRIBUTES = 12  # lines of the summary
_GRID = 6  # rows and columns of cutouts in a picture


def describe(directory: Path) -> Summary:
    """Facts about a finished directory of any kind, to print or as JSON.

    Raises
    ------
    InputError
        RIPPLe did not write the directory, or it is not finished.
    IntegrityError
        The manifest or the index is damaged.
    """
    manifest = read_manifest(directory)
    files = files_of(directory, manifest)
    on_disk = size(sum(count for count, _ in files.values()))
    facts: Json = {"kind": manifest["kind"]}
    counts: dict[str, int] = {}
    if manifest["kind"] in KINDS:
        artefact = open_artefact(directory)
        facts |= {**manifest["counts"], "rows": artefact.rows, "shards": len(artefact.shards)}
        # Without maps such as the checksums of sources, which have thousands of entries.
        attributes = {k: v for k, v in artefact.attributes.items() if not isinstance(v, dict)}
        facts |= {k: _plain(v) for k, v in list(attributes.items())[:_SHOWN_ATTRIBUTES]}
        counts = rejections(artefact)
    else:
        facts["files"] = len(files)
    written = f"ripple {manifest['verb']} {manifest['software'].get('ripple', '?')}"
    facts |= {"on disk": on_disk, "written by": written, "digest": manifest["digest"]}
    return Summary("show", str(directory), facts, counts)


def rejections(artefact: Artefact) -> dict[str, int]:
    """Reason -> number of targets, most frequent first."""
    index = artefact.index()
    pairs = zip(index["status"].to_pylist(), index["reason"].to_pylist(), strict=True)
    counts = Counter(f"{status}: {reason}" for status, reason in pairs if reason)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def operations(directory: Path) -> list[Json]:
    """Costs by operation, most expensive first: `operation`, `calls`, `seconds`, `bytes`, other counters.

    Raises
    ------
    InputError
        As in `describe`, or the artefact has no metrics.
    """
    metrics = open_artefact(directory).metrics()
    found = metrics.get("operations")
    if not isinstance(found, dict):
        raise InputError(f"{directory} has no metrics by operation")
    rows = [{"operation": name, **row} for name, row in found.items() if isinstance(row, dict)]
    return sorted(rows, key=lambda row: -float(row.get("seconds", 0)))


# Pictures -----------------------------------------------------------


def cost_picture(directory: Path, output: Path) -> None:
    """Draw seconds by operation, and rows and bytes per second while it ran, as PNG.

    Parameters
    ----------
    directory
        An artefact with metrics.
    output
        PNG file, which is replaced if it exists.

    Raises
    ------
    InputError
        As in `operations`.
    """
    rows = [row for row in operations(directory) if row.get("seconds", 0) > 0]
    timeline = open_artefact(directory).metrics().get("timeline")
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    bars, rate = figure.subplots(1, 2)
    # matplotlib draws from the bottom; the most expensive operation belongs at the top.
    bars.barh([str(row["operation"]) for row in rows][::-1], [row["seconds"] for row in rows][::-1])
    bars.set_xlabel("seconds, all workers")
    if timeline and timeline["seconds"]:
        time = np.array([0.0, *timeline["seconds"]])
        for name, unit, axis, colour in (("rows", 1.0, rate, "C0"), ("bytes", 1e6, rate.twinx(), "C1")):
            done = np.array([0.0, *timeline[name]]) / unit
            axis.stairs(np.diff(done) / np.maximum(np.diff(time), 1e-9), time, color=colour, baseline=None)
            axis.set_ylabel(f"{'MB' if name == 'bytes' else name} per second", color=colour)
            axis.set_ylim(bottom=0)
    rate.set_xlabel("seconds since the start; a step is a finished unit")
    _save(figure, output)


def picture(directory: Path, output: Path, *, seed: int = 0) -> int:
    """Draw random rows in colour, beside histograms of the pixels of each band, as PNG.

    Parameters
    ----------
    directory
        Cutouts or tensors.
    output
        PNG file, which is replaced if it exists.
    seed
        Seed of the choice of rows.

    Returns
    -------
    Number of rows drawn.

    Raises
    ------
    InputError
        The artefact has no images.
    """
    artefact = open_artefact(directory)
    if artefact.kind not in ("cutouts", "tensors") or artefact.rows == 0:
        raise InputError(f"{directory} has no images to draw", hint="give cutouts or tensors with rows")
    image, bands = _sample(artefact, _GRID * _GRID, seed)
    chosen = channels(bands)
    rgb = pictures(image, chosen, measured_noise(image, chosen), stretch=8.0, softening=8.0)
    figure = Figure(figsize=(12, 7), layout="constrained")
    left, right = np.ravel(np.asarray(figure.subfigures(1, 2, width_ratios=(3, 2)), object)).tolist()
    for k, axis in enumerate(left.subplots(_GRID, _GRID).flat):
        axis.set_axis_off()
        if k < len(rgb):
            axis.imshow(rgb[k], origin="lower", interpolation="nearest")
    charts = right.subplots(len(bands), 1, squeeze=False)[::-1, 0]  # the bluest band at the bottom
    for b, axis in enumerate(charts):
        values = image[:, b][np.isfinite(image[:, b])]
        if values.size:
            # Without the outermost 0.2 %: one hot pixel would leave a single bar.
            axis.hist(values, bins=200, range=tuple(np.quantile(values, [0.001, 0.999])), log=True)
        axis.set_title(bands[b], loc="left")
    charts[0].set_xlabel("pixel value, nJy" if artefact.kind == "cutouts" else "normalised pixel value")
    charts[0].set_xlabel("pixel value, nJy" if artefact.kind == "cutouts" else "normalised pixel value")
    _save(figure, output)
    return len(image)


def _save(figure: Figure, output: Path) -> None:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    write_atomic(output, data.getvalue())


def _sample(artefact: Artefact, count: int, seed: int) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """At most `count` random rows, from at most four random shards: each is read as a whole."""
    rng = np.random.default_rng(seed)
    filled = [k for k, shard in enumerate(artefact.shards) if shard.rows]
    chosen = sorted(rng.choice(filled, min(4, len(filled)), replace=False).tolist())
    parts: list[NDArray[np.float32]] = []
    bands: tuple[str, ...] = ()
    for position, k in enumerate(chosen):
        batch = images_of(artefact, k)
        want = count // len(chosen) + (position < count % len(chosen))  # the first shards give one more
        rows = np.sort(rng.choice(len(batch), min(want, len(batch)), replace=False))
        parts.append(batch.image[rows].astype(np.float32))
        bands = batch.bands
    return np.concatenate(parts), bands
