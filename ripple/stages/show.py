"""`ripple show`: what a directory of RIPPLe contains: facts, costs, pictures."""

from __future__ import annotations

import io
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ripple.config import Json
from ripple.errors import ConfigError, InputError
from ripple.imaging.batch import CutoutBatch
from ripple.learn.model.contract import load_contract
from ripple.report.band_colours import Channels, channels, measured_noise, pictures
from ripple.runtime.summary import Summary, plain, size
from ripple.stages.rows import rows_of
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.files import write_atomic
from ripple.storage.manifest import files_of, read_manifest
from ripple.storage.schema import KINDS
from ripple.storage.shards import images_of

_SHOWN_ATTRIBUTES = 12  # lines of the summary
_GRID = 6  # rows and columns of cutouts in a picture
LARGE = 0.2  # share of the time from which on an operation is named


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
        facts |= _model_facts(directory) if manifest["kind"] == "model" else {"files": len(files)}
    written = f"ripple {manifest['verb']} {manifest['software'].get('ripple', '?')}"
    facts |= {"on disk": on_disk, "written by": written, "digest": manifest["digest"]}
    return Summary("show", str(directory), facts, counts)


def _model_facts(directory: Path) -> Json:
    """What data a model takes, and what it gives, as its contract has them."""
    known = load_contract(directory)
    psf = f"{known.psf_fwhm:g} arcsec" if known.psf_fwhm else str(known.pixels.get("psf", "as they are"))
    how = known.normalization
    facts: Json = {
        "network": f"{known.architecture.name}, {len(known.members)} member{'s' * (len(known.members) > 1)}",
        "finds": ", ".join(known.targets or known.class_map.values()),
        "bands": ", ".join(known.bands),
        "pixels": f"{known.size} x {known.size} of {known.pixel_scale:g} arcsec, {known.unit}",
        "PSF": psf + (", whose width it is told" if known.psf_input != "none" else ""),
        "normalisation": " ".join(
            f"{name} {how[name]}" for name in ("method", "scope", "softening") if name in how
        ),
    }
    if known.output == "lens":
        facts["threshold"] = f"{known.threshold:.4g}"
    return facts | {"made by": known.origin}


def rejections(artefact: Artefact) -> dict[str, int]:
    """Reason -> number of targets, most frequent first."""
    index = artefact.index()
    pairs = zip(index["status"].to_pylist(), index["reason"].to_pylist(), strict=True)
    counts = Counter(f"{status}: {reason}" for status, reason in pairs if reason)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def operations(directory: Path) -> list[Json]:
    """Costs by operation, most expensive first: `operation`, `calls`, `seconds`, `share`, `bytes`, others.

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
    total = sum(float(row.get("seconds", 0)) for row in rows)
    for row in rows:
        row["share"] = float(row.get("seconds", 0)) / total if total else 0.0
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
    total = sum(row["seconds"] for row in rows)
    large = [row["seconds"] > LARGE * total for row in rows][::-1]
    names = [str(row["operation"]) for row in rows][::-1]
    drawn = bars.barh(
        names, [row["seconds"] for row in rows][::-1], color=["C3" if k else "C0" for k in large]
    )
    shares = [f"{row['seconds'] / total:.0%}" for row in rows][::-1]
    bars.bar_label(drawn, [share if k else "" for share, k in zip(shares, large, strict=True)], padding=3)
    bars.margins(x=0.15)
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


@dataclass(frozen=True, slots=True)
class PictureOptions:
    """Which rows a picture shows, and how.

    Parameters
    ----------
    ids
        Rows; random ones when empty.
    rgb
        Bands of blue, green and red; by wavelength when empty.
    mask
        Mask plane whose pixels are outlined; None for none.
    seed
        Of the choice of rows.
    """

    ids: tuple[str, ...] = ()
    rgb: tuple[str, ...] = ()
    mask: str | None = None
    seed: int = 0


def picture(directory: Path, output: Path, how: PictureOptions = PictureOptions()) -> int:
    """Draw rows in colour, with their ids and a scale bar, beside histograms of the pixels of each band, as
    PNG.

    Parameters
    ----------
    directory
        Cutouts or tensors.
    output
        PNG file, which is replaced if it exists.
    how
        Rows, colours and mask.

    Returns
    -------
    Number of rows drawn.

    Raises
    ------
    InputError
        The artefact has no images.
    ConfigError
        A row, band or mask plane does not exist.
    """
    artefact = open_artefact(directory)
    if artefact.kind not in ("cutouts", "tensors") or artefact.rows == 0:
        raise InputError(f"{directory} has no images to draw", hint="give cutouts or tensors with rows")
    drawn = _drawn(artefact, how)
    colours = _colours(drawn.bands, how.rgb, directory)
    rgb = pictures(drawn.image, colours, measured_noise(drawn.image, colours), stretch=8.0, softening=8.0)
    side = min(_GRID, max(1, math.ceil(math.sqrt(len(rgb)))))
    figure = Figure(figsize=(12, 7), layout="constrained")
    left, right = np.ravel(np.asarray(figure.subfigures(1, 2, width_ratios=(3, 2)), object)).tolist()
    for k, axis in enumerate(np.ravel(np.asarray(left.subplots(side, side), object)).tolist()):
        axis.set_axis_off()
        if k < len(rgb):
            axis.imshow(rgb[k], origin="lower", interpolation="nearest")
            axis.set_title(plain(drawn.names[k])[-22:], fontsize=7, pad=2)
            if drawn.outline is not None:
                axis.contour(drawn.outline[k], levels=[0.5], colors="yellow", linewidths=0.7)
    _scale_bar(left, drawn)
    charts = right.subplots(len(drawn.bands), 1, squeeze=False)[::-1, 0]  # the bluest band at the bottom
    for b, axis in enumerate(charts):
        values = drawn.image[:, b][np.isfinite(drawn.image[:, b])]
        if values.size:
            # Without the outermost 0.2 %: one hot pixel would leave a single bar.
            axis.hist(values, bins=200, range=tuple(np.quantile(values, [0.001, 0.999])), log=True)
        axis.set_title(drawn.bands[b], loc="left")
    charts[0].set_xlabel("pixel value, nJy" if artefact.kind == "cutouts" else "normalised pixel value")
    _save(figure, output)
    return len(rgb)


def _scale_bar(panel: Any, drawn: Drawn) -> None:
    """What the colours are, and how large the cutouts are on the sky."""
    height, width = drawn.image.shape[-2:]
    across = f"{width * drawn.pixel_scale:.3g} x {height * drawn.pixel_scale:.3g} arcsec each"
    outlined = "" if drawn.outline is None else "; outlined: the mask plane"
    panel.supxlabel(f"{drawn.legend} {across}{outlined}", fontsize=9)
    panel.axes[0].plot([2, 2 + width / 4], [2, 2], color="white", lw=2)
    panel.axes[0].annotate(f'{width / 4 * drawn.pixel_scale:.2g}"', (2, 4), color="white", fontsize=7)


def _colours(bands: tuple[str, ...], rgb: tuple[str, ...], directory: Path) -> Channels:
    if not rgb:
        return channels(bands)
    if len(rgb) != 3 or not set(rgb) <= set(bands):
        raise ConfigError(
            f"{directory}: --rgb {','.join(rgb)} needs three of its bands {', '.join(bands)}",
            hint="blue first, as in gri",
        )
    blue, green, red = (bands.index(b) for b in rgb)
    return Channels((red,), (green,), (blue,))


def _save(figure: Figure, output: Path) -> None:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    write_atomic(output, data.getvalue())


@dataclass(frozen=True, slots=True)
class Drawn:
    """Rows to draw: `image` `(n, B, H, W)`, ids, and `outline` `(n, H, W)` bool or None."""

    image: NDArray[np.float32]
    names: tuple[str, ...]
    bands: tuple[str, ...]
    pixel_scale: float
    outline: NDArray[np.bool_] | None
    legend: str


def _drawn(artefact: Artefact, how: PictureOptions) -> Drawn:
    """The rows that are asked for, or random ones from at most four shards: each is read as a whole."""
    images: list[NDArray[np.float32]] = []
    outlines: list[NDArray[np.bool_]] = []
    names: list[str] = []
    bands: tuple[str, ...] = ()
    scale = 0.0
    for k, rows in _chosen(artefact, how).items():
        batch = images_of(artefact, k)
        at = np.asarray(rows) if how.ids else _some(len(batch), rows[0], how.seed + k)
        images.append(np.asarray(batch.image[at], np.float32))
        names += [str(v) for v in np.asarray(batch.catalog["id"])[at]]
        bands, scale = batch.bands, batch.pixel_scale
        if how.mask is not None:
            if not isinstance(batch, CutoutBatch) or how.mask not in batch.mask_planes:
                planes = (
                    batch.mask_planes if isinstance(batch, CutoutBatch) else ("none: no mask in tensors",)
                )
                raise ConfigError(f"no mask plane {how.mask!r}", hint=f"there are {', '.join(planes)}")
            outlines.append((batch.mask[at] & batch.bits(how.mask) != 0).any(axis=1))
    outline = np.concatenate(outlines) if outlines else None
    legend = _colours(bands, how.rgb, artefact.directory).text(bands)
    return Drawn(np.concatenate(images), tuple(names), bands, scale, outline, legend)


def _chosen(artefact: Artefact, how: PictureOptions) -> dict[int, list[int]]:
    """Shard -> rows in it that are asked for; or, at random, shard -> how many rows of it."""
    most = _GRID * _GRID
    if how.ids:
        index = rows_of(artefact.directory, ids=how.ids, columns=("shard", "row"))
        found: dict[int, list[int]] = {}
        for shard, row in zip(index["shard"].to_pylist(), index["row"].to_pylist(), strict=True):
            if shard >= 0 and sum(map(len, found.values())) < most:
                found.setdefault(shard, []).append(row)
        if not found:
            raise InputError(f"{artefact.directory}: these rows have no pixels: they were rejected")
        return found
    rng = np.random.default_rng(how.seed)
    filled = [k for k, shard in enumerate(artefact.shards) if shard.rows]
    chosen = sorted(rng.choice(filled, min(4, len(filled)), replace=False).tolist())
    each, more = divmod(most, len(chosen))
    return {k: [each + (position < more)] for position, k in enumerate(chosen)}  # the first give one more


def _some(count: int, want: int, seed: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(count, min(want, count), replace=False))
