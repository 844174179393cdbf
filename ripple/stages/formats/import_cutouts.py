"""`ripple import`: cutouts in foreign formats to cutouts or tensors.

    files -> listing of rows -> ForeignCutout -> CutoutBatch or TensorBatch -> shards

A row that cannot be read is rejected with its reason, and the import goes on.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ripple.errors import ConfigError, DataError, IntegrityError
from ripple.runtime.log import say
from ripple.runtime.summary import Summary, progress
from ripple.stages.formats.config import ImportConfig
from ripple.stages.formats.fits_cutouts import FitsOptions, fits_cutouts
from ripple.stages.formats.fits_grids import Allowed
from ripple.stages.formats.fits_units import NJY_ZERO_POINT
from ripple.stages.formats.foreign import arrays, deeplense, multimodal_universe
from ripple.stages.formats.foreign_cutout import ForeignCutout, Keys, Listing, Unreadable
from ripple.stages.formats.foreign_rows import (
    Frame,
    Row,
    Rows,
    checked,
    cutouts,
    extra_columns,
    fitted,
    tensors,
)
from ripple.stages.formats.guess import guess_format
from ripple.stages.formats.mask_meaning import named_bits
from ripple.stages.formats.webdataset import webdataset
from ripple.stages.formats.zarr_cutouts import zarr_cutouts
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.labels import label_counts, lens_line
from ripple.storage.shard_writer import pack_cutouts, pack_tensors
from ripple.storage.writer import ArtefactWriter, Finished, create

#: Pictures of the first rows that `--dry-run` shows one by one; the first row is shown in any case.
LINES = 18


def import_cutouts(config: ImportConfig) -> Summary:
    """Read cutouts in a foreign format and write them as an artefact.

    Raises
    ------
    ConfigError
        Neither the source nor an option says bands, pixel scale or unit.
    DataError
        No row is found, or none can be read.
    IntegrityError
        A file changed while it was imported.
    """
    start = time.perf_counter()
    config = _with_format(config)
    listing = open_listing(config)
    frame = _frame(config, listing)
    kind = _kind(config)
    if config.dry_run:
        return understood(config, listing, frame)
    shards = [
        range(k, min(k + config.rows_per_shard, listing.rows))
        for k in range(0, listing.rows, config.rows_per_shard)
    ]
    # Hashed before the first row, so that a later run can tell whether it still imports the same files.
    inputs = {"files": listing.files.fingerprint(config.source, listing.paths)}
    opened = create(config.output, kind=kind, config=config, inputs=inputs, units=len(shards))
    if isinstance(opened, Finished):
        return _summary(config, opened.artefact, 0.0, done_before=True)
    with opened as writer, progress(listing.rows, "import") as advance:
        table = Rows()
        for unit, numbers in enumerate(shards):
            _write_unit(writer, unit, numbers, config, listing, frame, table)
            advance(len(numbers))
        _check_unchanged(listing, writer, rehash=True)
        if missing := unusable(config, frame.bands, table.columns["present"], table.columns["detail"]):
            writer.forget()  # so that the same output can be written with other options
            raise DataError(missing)
        _finish(writer, kind, config, frame, table, listing.notes)

    return _summary(config, open_artefact(config.output), time.perf_counter() - start, done_before=False)


def _with_format(config: ImportConfig) -> ImportConfig:
    """The options with the format that the files are in; says what was taken where the user did not."""
    if not config.source.exists():
        raise DataError(f"{config.source}: no such file or folder")
    if config.format is not None:
        return config
    found, why = guess_format(config.source)
    say(f"import: {config.source} was taken for {found}, by {why}; --format says otherwise")
    return config.model_copy(update={"format": found})


def open_listing(config: ImportConfig) -> Listing:
    """The reader of `config.format`, on `config.source`."""
    source = config.source
    assert config.format is not None  # found by `_with_format`
    match config.format:
        case "deeplense":
            return deeplense(source, config.bands, config.classes)
        case "arrays":
            names = ("image", "variance", "mask", "psf", "label", "id", "ra", "dec")
            keys = Keys(**{name: getattr(config, f"{name}_key") for name in names})
            bits = named_bits(config.mask_bits)
            return arrays(
                source, config.bands, keys, mask=config.mask, mask_bits=bits, classes=config.classes
            )
        case "fits":
            options = FitsOptions(
                bands=config.bands,
                classes=config.classes,
                pixel_scale=config.pixel_scale,
                allowed=Allowed(config.align, config.resample),
                mask=config.mask,
                mask_bits=named_bits(config.mask_bits),
                ignored=config.ignore_cards,
            )
            return fits_cutouts(source, options)
        case "mmu":
            return multimodal_universe(source, config.bands, mask=config.mask, classes=config.classes)
        case "zarr":
            return zarr_cutouts(source, config.bands, config.classes)
        case "webdataset":
            return webdataset(source, config.bands, config.classes)


def understood(config: ImportConfig, listing: Listing, frame: Frame) -> Summary:
    """What an import would make of its source: every row is read, nothing is written."""
    start = time.perf_counter()
    seen: dict[str, int] = {}
    kept: list[ForeignCutout] = []
    rejected: dict[str, int] = {}
    details: list[str] = []
    has: list[int] = []
    counts: Counter[tuple[str, str, str]] = Counter()  # role, band, facts
    remarks: Counter[str] = Counter()
    with progress(listing.rows, "reading") as advance:
        for number in range(listing.rows):
            cutout = _row(listing, number, seen, frame)
            if isinstance(cutout, Unreadable):
                rejected[cutout.reason.value] = rejected.get(cutout.reason.value, 0) + 1
                details.append(cutout.detail)
            else:
                has.append(_present(cutout.image))
                counts.update((u.role, u.band, u.facts) for u in cutout.understood)
                remarks.update(re.sub(r"\d[\d.e+-]*", "N", text) for text in cutout.remarks)
                # Without its pixels, of which there may be more than memory.
                kept.append(
                    replace(cutout, image=cutout.image[:0], variance=None, bad=None, mask=None, psf=None)
                )
            advance(1)
    labels = np.array([cutout.label for cutout in kept], np.int64)
    placed = sum(bool(np.isfinite(cutout.ra + cutout.dec)) for cutout in kept)
    facts: dict[str, int | str] = {
        "source": str(config.source),
        "kind": _kind(config),
        "rows": listing.rows,
        "bands": " ".join(frame.bands),
        "size": f"{frame.size[1]} x {frame.size[0]} px of {frame.pixel_scale:g} arcsec",
        "ids": f"text: {', '.join(cutout.id for cutout in kept[:3])}{' ...' if len(kept) > 3 else ''}",
        "positions": f"ICRS, deg, of {placed:,} rows; {len(kept) - placed:,} without",
        "labels": label_counts(labels, frame.classes) or "none",
        "lens": lens_line(frame.classes),
    }
    for cutout in kept[: max(1, LINES // max(len(kept[0].understood), 1))] if kept else ():
        facts |= {f"  {u.file}, {u.part}": _meaning(u.role, u.band, u.facts) for u in cutout.understood}
    facts |= _counted(counts)
    facts |= {
        f"  remark {k + 1}": f"{n:,} rows: {text}" for k, (text, n) in enumerate(remarks.most_common(9))
    }
    nothing = unusable(config, frame.bands, has, details)
    return Summary(
        "import --dry-run",
        "nothing was written",
        facts,
        rejections=rejected,
        seconds=time.perf_counter() - start,
        notes=(*_remarks(listing.notes, details), *([f"an import would stop: {nothing}"] if nothing else [])),
    )


def _present(image: NDArray[np.float32]) -> int:
    """Bits of the bands of a row `(B, H, W)` that have pixels."""
    has = np.isfinite(image).any(axis=(1, 2))
    return int((has << np.arange(len(has))).sum())


def _meaning(role: str, band: str, facts: str) -> str:
    return f"{role} of {band}: {facts}".replace(" of :", ":").strip(": ")


def _counted(counts: Mapping[tuple[str, str, str], int]) -> dict[str, str]:
    """What the pictures of each role and band say over all rows, the most frequent first."""
    out: dict[str, str] = {}
    for (role, band, facts), n in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        name = "  all rows, " + _meaning(role, band, "")
        said = f"{n:,}: {facts}" if facts else f"{n:,}"
        out[name] = f"{out[name]}; {said}" if name in out else said
    return out


def _row(listing: Listing, number: int, seen: dict[str, int], frame: Frame) -> ForeignCutout | Unreadable:
    """A row of the source in the common frame, or why it is left out."""
    cutout = listing.read(number)
    if isinstance(cutout, ForeignCutout):
        cutout = checked(cutout, seen, number)
    return fitted(cutout, frame) if isinstance(cutout, ForeignCutout) else cutout


def _remarks(notes: Sequence[str], details: Sequence[str]) -> tuple[str, ...]:
    """The notes, and what the first rejected row says."""
    return (*notes, *(f"the first rejected row says: {detail}" for detail in details[:1]))


def _kind(config: ImportConfig) -> Literal["cutouts", "tensors"]:
    # DeepLense images are already normalised: they have no unit to cut or combine them in.
    if config.into == "auto":
        return "tensors" if config.format == "deeplense" else "cutouts"
    return config.into


def _frame(config: ImportConfig, listing: Listing) -> Frame:
    """Bands, size, scale and unit, from the options, the source, and the first cutout that can be read."""
    # 200 rows are tried, so that a few damaged files at the start do not matter.
    first = next(
        (s for s in map(listing.read, range(min(200, listing.rows))) if isinstance(s, ForeignCutout)), None
    )
    if first is None:
        why = listing.read(0)
        detail = why.detail if isinstance(why, Unreadable) else "it has no rows"
        raise DataError(f"{config.source}: none of the first rows can be read: {detail}")
    count, height, width = first.image.shape
    bands = listing.bands
    if len(bands) != count:
        raise ConfigError(f"{config.source}: {count} bands without names", hint="name them with --bands")
    scale = config.pixel_scale or listing.pixel_scale
    if scale is None:
        raise ConfigError(
            f"{config.source} does not say its pixel scale", hint="give it with --pixel-scale, in arcsec"
        )
    factors = _factors(config, count)
    said = first.to_njy is not None and bool(np.isfinite(first.to_njy).any())
    unit = "nJy" if said or factors is not None or config.unit == "nJy" else ""
    if _kind(config) == "cutouts" and not unit:
        # The quality cuts and the noise of cutouts are in nJy: a wrong guess would spoil all of them.
        raise ConfigError(
            f"{config.source} does not say its flux unit",
            hint="give --zero-points, or --unit nJy, or --into tensors for pixels without unit",
        )
    return Frame(
        bands=bands,
        size=(height, width) if config.size is None else (config.size, config.size),
        pixel_scale=scale,
        resize=config.size is not None,
        gaussian_psf=config.gaussian_psf,
        unit=unit,
        factors=factors,
        assume_njy=config.unit == "nJy",
        sentinels=config.sentinels,
        find_fill=config.find_fill and _kind(config) == "cutouts",
        mask=config.mask != "ignore",
        classes=config.classes or listing.classes,
    )


def _factors(config: ImportConfig, count: int) -> NDArray[np.float64] | None:
    """Nanojansky per unit of each band by the zero points that the user gives, `(B,)`; None without them."""
    if not config.zero_points:
        return None
    if len(config.zero_points) not in (1, count):
        raise ConfigError(f"{len(config.zero_points)} zero points for {count} bands")
    points = np.broadcast_to(np.asarray(config.zero_points, float), count)
    return np.asarray(10.0 ** (0.4 * (NJY_ZERO_POINT - points)))


def unusable(
    config: ImportConfig, bands: Sequence[str], present: Sequence[int], details: Sequence[str]
) -> str:
    """Why nothing is imported: no row can be read, or a band is in none of them; empty when neither is so.

    Parameters
    ----------
    config
        Of the import.
    bands
        Those that are asked for.
    present
        Bits of the bands of each row, 0 for rejected rows.
    details
        What each row says, empty where nothing is to be said.
    """
    if not any(present):
        first = next((text for text in details if text), "it has no pixels")
        return f"{config.source}: no row can be read; the first says: {first}"
    anywhere = int(np.bitwise_or.reduce(np.asarray(present, np.uint64)))
    absent = [band for k, band in enumerate(bands) if not anywhere >> k & 1]
    return f"{config.source}: no row has a picture in {', '.join(absent)}" if absent else ""


def _check_unchanged(listing: Listing, writer: ArtefactWriter, *, rehash: bool) -> None:
    """Raise when a file changed, and forget the shards, so that a later run does not resume from them."""
    try:
        listing.files.check(rehash=rehash)
    except IntegrityError:
        writer.forget()
        raise


def _write_unit(
    writer: ArtefactWriter,
    unit: int,
    numbers: range,
    config: ImportConfig,
    listing: Listing,
    frame: Frame,
    table: Rows,
) -> None:
    """Read these rows, add them to the table, and write those that can be read as one shard."""
    kept: list[tuple[Row, ForeignCutout]] = []
    for number in numbers:
        cutout = _row(listing, number, table.seen, frame)
        if isinstance(cutout, Unreadable):
            table.reject(number, cutout)
        else:
            kept.append((table.accept(number, cutout, unit, len(kept), frame), cutout))
    # Rows that cannot be read are in the index, but in no shard.
    batch = cutouts(kept, frame, table.grids)
    if _kind(config) == "cutouts":
        data = pack_cutouts(batch, {"source_format": config.format})
    else:
        unit_name = frame.unit or "none"
        data = pack_tensors(tensors(batch, frame, unit_name), {"source_format": config.format})
    _check_unchanged(listing, writer, rehash=False)
    # When resuming, rows are read again for the index, but a complete shard is not written again.
    if writer.done(unit) is None:
        writer.commit(unit, data, len(kept), {})


# Index and summary ---------------------------------------------------


def _finish(
    writer: ArtefactWriter, kind: str, config: ImportConfig, frame: Frame, table: Rows, notes: tuple[str, ...]
) -> None:
    index = _index(table, frame)
    attributes = {
        "bands": list(frame.bands),
        "size": list(frame.size),
        "pixel_scale": frame.pixel_scale,
        "class_map": {str(k): name for k, name in enumerate(frame.classes)},
        "source_format": config.format,
        "notes": list(notes),
    }
    writer.finish(index, {}, attributes)


def _index(table: Rows, frame: Frame) -> pa.Table:
    """The index of the artefact: one line per row of the source, rejected ones included."""
    rows = table.columns
    columns: dict[str, Any] = {
        "index": np.array(rows["index"], np.int64),
        "id": rows["id"],
        "ra": rows["ra"],
        "dec": rows["dec"],
        "tract": np.array(rows["tract"], np.int32),
        "patch": np.full(len(rows["index"]), -1, np.int32),
        # PARENT pixels: first pixel, central pixel (N // 2), and the rest of the position.
        "x": np.array(rows["x0"]) + frame.size[1] // 2 + np.array(rows["dx"]),
        "y": np.array(rows["y0"]) + frame.size[0] // 2 + np.array(rows["dy"]),
        "status": rows["status"],
        "reason": rows["reason"],
        "detail": rows["detail"],
        "bands": rows["bands"],
        "shard": np.array(rows["shard"], np.int32),
        "row": np.array(rows["row"], np.int32),
        "label": np.array(rows["label"], np.int64),
        "has_variance": np.array(rows["has_variance"], bool),
        "has_psf": np.array(rows["has_psf"], bool),
    }
    extra = extra_columns(rows["columns"])
    # A column of the source never replaces one of ours.
    return pa.table({**columns, **{k: v for k, v in extra.items() if k not in columns}})


def _summary(config: ImportConfig, artefact: Artefact, seconds: float, *, done_before: bool) -> Summary:
    index = artefact.index()
    reasons: dict[str, int] = {}
    for reason, status in zip(index["reason"].to_pylist(), index["status"].to_pylist(), strict=True):
        if status == "rejected":
            reasons[reason] = reasons.get(reason, 0) + 1
    rejected = pc.equal(index["status"], "rejected")
    details = [d for d in index.filter(rejected)["detail"].to_pylist() if d]
    labels = index["label"].to_numpy()[index["shard"].to_numpy() >= 0]  # rejected rows are of no class
    class_map = artefact.attributes.get("class_map", {})
    names = tuple(class_map.get(str(k), "") for k in range(len(class_map)))
    facts: dict[str, int | str] = {
        "kind": artefact.kind,
        "rows": artefact.rows,
        "bands": " ".join(artefact.bands),
    }
    facts |= _gaps(index, artefact.kind)
    if (labels >= 0).any():
        facts["labels"] = label_counts(labels, names)
    return Summary(
        "import",
        str(config.output),
        facts,
        rejections=reasons,
        seconds=seconds,
        done_before=done_before,
        notes=_remarks(artefact.attributes.get("notes", ()), details),
    )


def _gaps(index: pa.Table, kind: str) -> dict[str, int | str]:
    """What rows with pixels lack, in words: bands, variance, PSF; and what was done to them."""
    out: dict[str, int | str] = {}
    column = {name: np.asarray(index[name].to_numpy(zero_copy_only=False)) for name in index.column_names}
    placed = column["shard"] >= 0
    if partial := int((column["status"] == "partial").sum()):
        out["partial"] = f"{partial:,} rows lack a band"
    if kind == "cutouts":
        if count := int((placed & ~column["has_variance"]).sum()):
            out["variance"] = f"{count:,} rows have none: the noise is estimated from the pixels"
        if count := int((placed & ~column["has_psf"]).sum()):
            out["psf"] = f"{count:,} rows have none: preprocess them with --psf none"
    noted = placed & (column["detail"] != "")
    if noted.any():
        out["remarks"] = f"{int(noted.sum()):,} rows, as: {column['detail'][np.argmax(noted)][:160]}"
    return out
