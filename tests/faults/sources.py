"""Rows that concern source files: small cell coadds of two bands, damaged, read and prepared in process.

The unit is read by the very functions a worker of `fetch` runs, and prepared by those of `preprocess`.
"""

from __future__ import annotations

import hashlib
import json
import random
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from faultlib import Tally
from rows import Row, row

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from cellfiles import CELL, CELLS, KERNEL, MISSING, X0, Y0, write_cell_coadd

from ripple.imaging.batch import CutoutBatch
from ripple.imaging.quality.flags import Flag
from ripple.rubin.open import RepositoryFiles, open_coadd
from ripple.rubin.repository import Dataset
from ripple.runtime.profile import Profile
from ripple.sky.geometry import Box
from ripple.stages.fetch.planes import read_batch
from ripple.stages.fetch.reading import UnitReading
from ripple.stages.fetch.task import UnitTask
from ripple.stages.preprocess.batch import DataConstants, preprocess_batch
from ripple.stages.preprocess.config import PreprocessConfig

SOURCE_ROWS: list[Row] = []
BANDS, SIZE, SIDE = ("g", "r"), 32, CELL * CELLS
#: The damaged band; the other one must come out as if nothing had happened.
VICTIM = 1
GONE = "unreadable_source"


# Clean files --------------------------------------------------------


def clean(arrays: dict[str, Any]) -> None:
    """A galaxy in each cutout, no flags, round PSFs: rows that quality control accepts."""
    y, x = np.mgrid[:SIDE, :SIDE]
    arrays["image"] -= np.arange(SIDE, dtype="f4")
    arrays["image"][5:8, 5:8] = 0
    for cx, cy in centres():
        arrays["image"] += 2000 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 18).astype("f4")
    arrays["mask"][...] = 0
    half = KERNEL // 2
    ky, kx = np.mgrid[-half : half + 1, -half : half + 1]
    kernel = np.exp(-(kx**2 + ky**2) / (2 * 2.0**2))
    arrays["psf"][...] = kernel / kernel.sum()
    arrays["psf"][MISSING] = np.nan


def centres() -> list[tuple[int, int]]:
    """Array pixels of the targets: one in each cell, well inside it."""
    return [(CELL * j + 25, CELL * i + 25) for i in range(CELLS) for j in range(CELLS)]


def then(*edits: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def edit(arrays: dict[str, Any]) -> None:
        for one in edits:
            one(arrays)

    return edit


@dataclass(frozen=True)
class Unit:
    """The files of a unit, its task, and what it gives when nothing is wrong."""

    task: UnitTask
    paths: tuple[Path, Path]
    want: CutoutBatch

    def read(self, path: Path | None = None, *, known: bool = True) -> tuple[UnitReading, CutoutBatch]:
        """Read the unit with another file for band r; `known`: with the digests of the clean files."""
        datasets = list(self.task.datasets)
        if path is not None:
            datasets[VICTIM] = replace(datasets[VICTIM], uri=path.as_uri(), size=-1, sha256="")
        if not known:
            datasets = [replace(d, sha256="") for d in datasets]
        return read_unit(replace(self.task, datasets=tuple(datasets)))


def read_unit(task: UnitTask) -> tuple[UnitReading, CutoutBatch]:
    """How a unit was read, and its rows."""
    found = read_batch(task, RepositoryFiles(""), Profile())
    return found.reading, found.batch


def make_unit(directory: Path, *, lossy: bool = False) -> Unit:
    """Two clean files and the task that reads them."""
    paths = (directory / "g.fits", directory / "r.fits")
    for k, path in enumerate(paths):
        write_cell_coadd(path, seed=k + 1, lossy=lossy, edit=clean)
    data = [path.read_bytes() for path in paths]
    xy = np.array(centres(), float) + np.array([X0, Y0])
    tan = open_coadd(data[0], name="g").projection
    n = len(xy)
    ra, dec = tan.pixel_to_sky(xy[:, 0], xy[:, 1])
    catalog: dict[str, Any] = {
        "index": np.arange(n), "id": np.arange(n) + 100, "ra": ra, "dec": dec,
        "patch": np.zeros(n, np.int32), "x": xy[:, 0], "y": xy[:, 1],
    }  # fmt: skip
    datasets = tuple(
        Dataset(
            f"uuid-{band}", "run", "deep_coadd", "CellCoadd", 1, 0, band, path.as_uri(), len(bytes_),
            sha256=hashlib.sha256(bytes_).hexdigest(),
        )
        for band, path, bytes_ in zip(BANDS, paths, data, strict=True)
    )  # fmt: skip
    boxes = {0: Box(X0, Y0, X0 + SIDE, Y0 + SIDE)}
    task = UnitTask(0, BANDS, SIZE, 0, 1, tan, catalog, datasets, boxes, "")
    _, want = read_unit(task)
    return Unit(task, paths, want)


def fresh(path: Path, **options: Any) -> None:
    """The clean file of band r with something else in it."""
    path.unlink(missing_ok=True)
    write_cell_coadd(path, seed=2, **options)


# Judging ------------------------------------------------------------


def refused(tally: Tally, unit: Unit, read: tuple[UnitReading, CutoutBatch], *reasons: str) -> bool:
    """Band r refused with one of the reasons and a note; True when it was refused at all."""
    reader, _ = read
    error = reader.bands[VICTIM].failures.get(0)
    if error is None:
        return False
    why = error.reason
    named = all("deep_coadd 1/0/r" in outcome.detail for _, outcome in reader.outcomes.groups())
    if why.value not in reasons or not named or not any("deep_coadd 1/0/r" in n for n in reader.notes()):
        tally.unnamed += 1
        tally.note(f"{why.value}, notes {reader.notes()}, {list(reader.outcomes.groups())}")
    return True


def compare(tally: Tally, unit: Unit, read: tuple[UnitReading, CutoutBatch], *, gone: bool) -> bool:
    """All rows accounted for and band g untouched; whether band r is as it must be."""
    reader, batch = read
    if len(reader.outcomes) != unit.task.rows:
        tally.lost += 1
        tally.note(repr(reader.outcomes))
        return True
    keep = np.isin(unit.want.catalog["index"], batch.catalog["index"])
    if gone:
        same = bool(
            np.isnan(batch.image[:, VICTIM]).all() and not (batch.catalog["band_mask"] >> VICTIM).any()
        )
    else:
        same = _same(batch, unit.want, keep, VICTIM)
    if not _same(batch, unit.want, keep, 1 - VICTIM):
        tally.silent += 1
        tally.note("the other band changed")
    return same


def _same(batch: CutoutBatch, want: CutoutBatch, keep: Any, k: int) -> bool:
    # Without a digest a flip may turn a missing cell into a present one: a row that nothing is known of.
    mine = np.isin(batch.catalog["index"], want.catalog["index"])
    planes = (getattr(batch, name)[mine, k].tobytes() for name in ("image", "variance", "mask"))
    right = (getattr(want, name)[keep, k].tobytes() for name in ("image", "variance", "mask"))
    which, wanted = batch.psf_index[mine, k], want.psf_index[keep, k]
    has = wanted >= 0
    kernels = (batch.psf[which[has]], want.psf[wanted[has]])  # padded to the largest of all bands
    return (
        all(a == b for a, b in zip(planes, right, strict=True))
        and np.array_equal(which >= 0, has)
        and np.array_equal(*(np.trim_zeros(p.sum(axis=0).ravel()) for p in kernels))
    )


def prepared(tally: Tally, batch: CutoutBatch, **options: Any) -> Any:
    """The batch as tensors; none may hold a number that is not finite."""
    tensors = preprocess_batch(
        batch, PreprocessConfig.make({"registration": False} | options), DataConstants(margin=0)
    )
    if not np.isfinite(tensors.image).all() or len(tensors.image) != len(batch.image):
        tally.silent += 1
        tally.note("a tensor is not finite")
    return tensors


# Rows 6, 7: damaged files -------------------------------------------


def _flips(
    tally: Tally, rng: random.Random, trials: int, directory: Path, *, lossy: bool, known: bool
) -> None:
    unit = make_unit(directory, lossy=lossy)
    whole = unit.paths[VICTIM].read_bytes()
    for trial in range(trials):
        tally.trials = trial + 1
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        unit.paths[VICTIM].write_bytes(damaged)
        read = unit.read(known=known)
        gone = refused(tally, unit, read, GONE, "wrong_wcs", "wrong_unit", "bad_psf")
        if known and not (gone and any("uuid-r: SHA-256" in note for note in read[0].notes())):
            tally.silent += 1
            tally.note("a flipped bit was read")
        # Without a digest a flip may give other pixels: no promise but that the run goes on.
        compare(tally, unit, read, gone=gone)


@row("6", "bit flips in RICE coadds, digest known", full=1500, gate=60, into=SOURCE_ROWS, gating=True)
def flips_rice(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    _flips(tally, rng, trials, directory, lossy=True, known=True)


@row("6", "bit flips in GZIP coadds, digest known", full=1500, gate=60, into=SOURCE_ROWS, gating=True)
def flips_gzip(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    _flips(tally, rng, trials, directory, lossy=False, known=True)


@row("6", "bit flips, no digest known: the run goes on", full=3000, gate=60, into=SOURCE_ROWS)
def flips_unknown(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    _flips(tally, rng, trials, directory, lossy=bool(rng.random() < 0.5), known=False)


def foreign_files(whole: bytes) -> list[tuple[str, bytes]]:
    """Things that are not a coadd."""
    from io import BytesIO

    from astropy.io import fits

    plain = BytesIO()
    fits.HDUList([fits.PrimaryHDU(np.zeros((4, 4)))]).writeto(plain)
    card = b"SIMPLE  =                    T".ljust(80)
    huge = (card + b"BITPIX  =                    8".ljust(80) + b"NAXIS   =                    2".ljust(80)
            + b"NAXIS1  =         999999999999".ljust(80) + b"NAXIS2  =         999999999999".ljust(80)
            + b"END".ljust(80)).ljust(2880)  # fmt: skip
    return [
        ("empty", b""), ("one byte", b"S"), ("web page", b"<!DOCTYPE html><html>sign in</html>" * 200),
        ("json", b'{"error": "not found"}'), ("zeros", bytes(50_000)), ("ones", b"\xff" * 50_000),
        ("gzip", b"\x1f\x8b\x08" + bytes(3000)), ("zip", b"PK\x03\x04" + bytes(3000)),
        ("png", b"\x89PNG\r\n\x1a\n" + bytes(3000)), ("hdf5", b"\x89HDF\r\n\x1a\n" + bytes(3000)),
        ("parquet", b"PAR1" + bytes(3000) + b"PAR1"), ("pickle", b"\x80\x04cos\nsystem\n(S'true'\ntR."),
        ("elf", b"\x7fELF" + bytes(3000)), ("other FITS", plain.getvalue()), ("cards only", card * 36),
        ("header without end", card * 3600), ("claims 10^24 bytes", huge), ("twice", whole[:2880] * 2),
        ("starts late", b"\n" + whole), ("text FITS", whole.replace(b"cell_coadd", b"cell_xoadd")),
        ("reversed", whole[::-1]), ("half of each", whole[: len(whole) // 2] + b"<html>" * 9000),
    ]  # fmt: skip


@row("7", "coadds truncated, empty, or something else", full=322, gate=40, into=SOURCE_ROWS)
def not_a_coadd(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    unit = make_unit(directory)
    whole = unit.paths[VICTIM].read_bytes()
    cases = foreign_files(whole)
    cases += [(f"cut at {k}", whole[:k]) for k in rng.sample(range(len(whole) - 2880), 300)]
    path = directory / "case.fits"
    for trial, (name, data) in enumerate(cases[:trials]):
        tally.trials = trial + 1
        path.write_bytes(data)
        read = unit.read(path)
        gone = refused(tally, unit, read, GONE)
        if not compare(tally, unit, read, gone=gone) or not gone:
            tally.silent += 1
            tally.note(f"{name}: was read")


# Rows 9 to 13: faults in the data -----------------------------------


@row("9", "a band that is not there", full=30, gate=2, into=SOURCE_ROWS)
def missing_band(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    unit = make_unit(directory)
    for trial in range(trials):
        tally.trials = trial + 1
        strict = bool(trial % 2)
        task = replace(unit.task, datasets=unit.task.datasets[:1], require_all_bands=strict)
        seen = read_unit(task)
        right = compare(tally, unit, seen, gone=True)
        expected = {"rejected" if strict else "partial"}
        clear = np.arange(unit.task.rows) != MISSING[0] * CELLS + MISSING[1]
        columns = seen[0].outcomes.columns()
        found = tuple(set(np.array(columns[name].to_pylist())[clear]) for name in ("reason", "status"))
        if not right or found != ({"missing_band"}, expected):
            tally.silent += 1
            tally.note(f"{found}")
        if not strict:
            tensors = prepared(tally, seen[1])
            tally.silent += not (tensors.catalog["qc"] >> int(Flag.MISSING_BAND) & 1).all()


def _fill(plane: str, value: float) -> Callable[[dict[str, Any], Any], None]:
    def edit(arrays: dict[str, Any], place: Any) -> None:
        arrays[plane][place] = value

    return edit


PLANE_FAULTS: dict[str, Callable[[dict[str, Any], Any], None]] = {
    "image NaN": _fill("image", np.nan), "image inf": _fill("image", np.inf),
    "image -inf": _fill("image", -np.inf), "image 3e38": _fill("image", 3e38),
    "variance 0": _fill("variance", 0), "variance < 0": _fill("variance", -1),
    "variance NaN": _fill("variance", np.nan), "variance inf": _fill("variance", np.inf),
    "variance 1e-44": _fill("variance", 1e-44), "variance 3e38": _fill("variance", 3e38),
}  # fmt: skip


@row("10", "planes with NaN, inf, zero or negative variance", full=250, gate=20, into=SOURCE_ROWS)
def bad_planes(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    unit = make_unit(directory)
    kinds = list(PLANE_FAULTS)
    for trial in range(trials):
        tally.trials = trial + 1
        kind = kinds[trial % len(kinds)]
        w, h = rng.choice([1, 5, 30, SIDE]), rng.choice([1, 5, 30, SIDE])
        x, y = rng.randrange(SIDE - w + 1), rng.randrange(SIDE - h + 1)
        place = (slice(y, y + h), slice(x, x + w))
        path = directory / "case.fits"
        fresh(path, edit=then(clean, partial(_at, PLANE_FAULTS[kind], place)))
        read = unit.read(path)
        gone = refused(tally, unit, read, GONE)
        compare(tally, unit, read, gone=gone)
        hit = np.zeros((SIDE, SIDE), bool)
        hit[place] = True
        for method in ("asinh", "zscore") if trial % 2 else ("minmax", "none"):
            _hidden(tally, kind, read[1], hit, method)


def _at(edit: Callable[[dict[str, Any], Any], None], place: Any, arrays: dict[str, Any]) -> None:
    edit(arrays, place)


def _hidden(tally: Tally, kind: str, batch: CutoutBatch, hit: Any, method: str) -> None:
    """Bad pixels are not valid in the tensors, and a row with more than a tenth of them is flagged."""
    tensors = prepared(tally, batch, normalize=method, psf="none")
    for k, (x, y) in enumerate(zip(batch.catalog["x0"] - X0, batch.catalog["y0"] - Y0, strict=True)):
        mine = hit[y : y + SIZE, x : x + SIZE]
        # A positive variance is one, however small: only numbers that are not finite are ruled out there.
        if kind != "variance 1e-44" and tensors.valid[k, VICTIM][mine].any():
            tally.silent += 1
            tally.note(f"{kind}: a bad pixel is valid")
        if kind != "variance 1e-44" and mine.mean() > 0.1 and not tensors.catalog["qc"][k]:
            tally.silent += 1
            tally.note(f"{kind}: {mine.mean():.2f} of row {k} is bad and not flagged")


CELL_FAULTS = ("missing", "all masked", "no PSF")


@row("10", "missing cells, masked cells, cells without PSF", full=27, gate=4, into=SOURCE_ROWS)
def bad_cells(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    unit = make_unit(directory)
    for trial in range(trials):
        tally.trials = trial + 1
        kind, cell = CELL_FAULTS[trial % 3], (trial // 3 % CELLS, rng.randrange(CELLS))
        place = tuple(slice(c * CELL, (c + 1) * CELL) for c in cell)

        def edit(arrays: dict[str, Any], kind: str = kind, place: Any = place, cell: Any = cell) -> None:
            if kind == "missing":
                arrays["image"][place], arrays["variance"][place], arrays["psf"][cell] = 0, np.inf, np.nan
            elif kind == "no PSF":
                arrays["psf"][cell] = np.nan
            else:
                arrays["mask"][place] = 255

        path = directory / "case.fits"
        fresh(path, edit=then(clean, edit))
        read = unit.read(path)
        compare(tally, unit, read, gone=False)
        tensors = prepared(tally, read[1])
        number = cell[0] * CELLS + cell[1]
        found = np.flatnonzero(read[1].catalog["index"] == number)
        if len(found) and not tensors.catalog["qc"][found[0]]:
            tally.silent += 1
            tally.note(f"{kind}: row {number} is not flagged")


def wcs_changes(rng: random.Random) -> list[tuple[str, dict[str, Any]]]:
    """Projections more than a pixel off somewhere in the patch."""
    s, a = 0.2 / 3600, rng.uniform(1e-3, 3.0)
    c, d = float(np.cos(a)), float(np.sin(a))
    shift = rng.choice([-1, 1]) * rng.uniform(1.0, 500.0)
    scale = rng.choice([0.5, 0.99, 1.001, 2.0])
    return [
        ("shift x", {"CRPIX1": 13800.0 + shift}), ("shift y", {"CRPIX2": 13800.0 + shift}),
        ("shift on the sky", {"CRVAL2": -36.446280991736 + abs(shift) * s}),
        ("rotate", {"CD1_1": -s * c, "CD1_2": s * d, "CD2_1": s * d, "CD2_2": s * c}),
        ("flip", {"CD1_1": s}), ("scale", {"CD1_1": -s * scale, "CD2_2": s * scale}),
        ("swap axes", {"CD1_1": 0.0, "CD1_2": -s, "CD2_1": s, "CD2_2": 0.0}),
        ("other tract", {"CRVAL1": 56.649746192893 + rng.uniform(0.5, 3)}),
    ]  # fmt: skip


@row("11", "wrong WCS in one band: shift, rotate, flip, scale, swap", full=100, gate=8, into=SOURCE_ROWS)
def wrong_wcs(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    unit = make_unit(directory)
    path = directory / "case.fits"
    for trial in range(trials):
        tally.trials = trial + 1
        name, cards = wcs_changes(rng)[trial % 8]
        fresh(path, edit=clean, **cards)
        _must_refuse(tally, unit, path, name, "wrong_wcs")


def _must_refuse(tally: Tally, unit: Unit, path: Path, name: str, *reasons: str) -> None:
    read = unit.read(path)
    gone = refused(tally, unit, read, *reasons)
    if not gone or not compare(tally, unit, read, gone=True):
        tally.silent += 1
        tally.note(f"{name}: was read")


def with_card(data: bytes, key: bytes, value: str) -> bytes:
    """Every card of this name changed in place."""
    out, at = bytearray(data), 0
    while (at := out.find(key.ljust(8) + b"=", at)) >= 0:
        if at % 80 == 0:
            out[at : at + 80] = (key.ljust(8) + b"= " + value.rjust(20).encode()).ljust(80)
        at += 80
    return bytes(out)


@row("11", "wrong WCS cards in the header of one band", full=60, gate=10, into=SOURCE_ROWS)
def wrong_cards(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    unit = make_unit(directory)
    whole, path = unit.paths[VICTIM].read_bytes(), directory / "case.fits"
    names = "CRPIX1 CRPIX2 CRVAL1 CRVAL2 CRVAL1A CRVAL2A CTYPE1 CTYPE2 CDELT1 CDELT2 CD1_1 CD2_2"
    keys = [k for k in names.encode().split() if k.ljust(8) + b"=" in whole]
    values = ["1.5", "-7.25E3", "0", "1E400", "NaN", "''", "'RA---SIN'", "T", "1.0.0", ""]
    for trial in range(trials):
        tally.trials = trial + 1
        key = keys[trial % len(keys)]
        # The second copy of the origin, and a factor of 1, may be absent, but not differ.
        value = rng.choice(values[:-1] if key.endswith(b"A") or key.startswith(b"CDELT") else values)
        path.write_bytes(with_card(whole, key, value))
        _must_refuse(tally, unit, path, f"{key!r} = {value}", "wrong_wcs", GONE)


UNITS = ("adu", "uJy", "mJy", "electron", "electron/s", "ct", "nJy/arcsec2", "W/m2")
TREE_UNITS = (("image", "Jy"), ("variance", "Jy"), ("image", ""), ("variance", "nJy"))


@row("12", "wrong or no unit", full=12, gate=4, into=SOURCE_ROWS)
def wrong_unit(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    unit = make_unit(directory)
    whole, path = unit.paths[VICTIM].read_bytes(), directory / "case.fits"
    for trial in range(trials):
        tally.trials = trial + 1
        if trial % 3 < 2:
            name = UNITS[(trial - trial // 3) % len(UNITS)]
            fresh(path, edit=clean, unit=name)
        else:
            plane, name = TREE_UNITS[trial // 3 % len(TREE_UNITS)]
            path.write_bytes(_retitled(whole, name, plane))
        _must_refuse(tally, unit, path, f"unit {name!r}", "wrong_unit")


def _retitled(data: bytes, unit: str, plane: str) -> bytes:
    """The file with another, not longer unit of a plane in its tree."""
    tree, (start, room) = _tree(data)
    tree[plane]["data"]["unit"] = unit
    text = json.dumps(tree, separators=(",", ":")).encode()
    return data[:start] + text.ljust(room) + data[start + room :]


def _tree(data: bytes) -> tuple[dict[str, Any], tuple[int, int]]:
    """The JSON tree of a file, where it starts and its length."""
    from ripple.rubin.formats.fits import walk

    hdu = next(h for h in walk(data, name="file") if h.extname == "JSON")
    start = data.index(b"{", hdu.data)
    (length,) = struct.unpack(">I", data[hdu.data : hdu.data + 4])
    return json.loads(data[start : start + length]), (start, length)


def _kernel(change: Callable[[Any], Any]) -> Callable[[Any, tuple[int, int]], None]:
    def edit(psf: Any, cell: tuple[int, int]) -> None:
        psf[cell] = change(psf[cell])

    return edit


def _wide(kernel: Any) -> Any:
    return np.full_like(kernel, 1 / kernel.size)


def _one_nan(kernel: Any) -> Any:
    kernel = kernel.copy()
    kernel[3, 3] = np.nan
    return kernel


PSF_FAULTS: dict[str, Callable[[Any, tuple[int, int]], None]] = {
    "zero": _kernel(np.zeros_like), "NaN": _kernel(lambda k: np.full_like(k, np.nan)),
    "one NaN": _kernel(_one_nan), "one inf": _kernel(lambda k: np.where(k == k.max(), np.inf, k)),
    "off centre by 1 px": _kernel(lambda k: np.roll(k, 1, axis=1)),
    "off centre by 2 px": _kernel(lambda k: np.roll(k, -2, axis=0)), "negative": _kernel(lambda k: -k),
    "flat": _kernel(_wide), "1e-30": _kernel(lambda k: k * 1e-40), "huge": _kernel(lambda k: k * 1e38),
    "checkerboard": _kernel(lambda k: k * (-1) ** np.add.outer(np.arange(KERNEL), np.arange(KERNEL))),
}  # fmt: skip


@row("13", "PSFs: zero, NaN, off centre, negative, flat", full=66, gate=11, into=SOURCE_ROWS)
def bad_psf(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    unit = make_unit(directory)
    path, kinds = directory / "case.fits", list(PSF_FAULTS)
    cells = [(i, j) for i in range(CELLS) for j in range(CELLS) if (i, j) != MISSING]
    for trial in range(trials):
        tally.trials = trial + 1
        kind, cell = kinds[trial % len(kinds)], rng.choice(cells)
        fresh(path, edit=then(clean, lambda a, k=kind, c=cell: PSF_FAULTS[k](a["psf"], c)))
        read = unit.read(path)
        if refused(tally, unit, read, "bad_psf", GONE):
            compare(tally, unit, read, gone=True)
            continue
        for target in ("match", "1.2"):
            tensors = prepared(tally, read[1], psf=target)
            _judged(tally, kind, tensors, cell[0] * CELLS + cell[1])


def _judged(tally: Tally, kind: str, tensors: Any, number: int) -> None:
    """The row in the cell is rejected for its PSF (scaled ones may serve); others keep their flux."""
    psf_flags = sum(1 << int(f) for f in (Flag.PSF_INVALID, Flag.PSF_WIDTH, Flag.PSF_RESIDUAL))
    here = tensors.catalog["index"] == number
    bad = (tensors.catalog["qc"][here] & np.uint64(psf_flags)) != 0
    scaled = kind in ("1e-30", "huge") and np.allclose(tensors.catalog["psf_flux_r"][here], 1, atol=1e-3)
    if not (bad.all() or scaled) or (tensors.catalog["accept"][here][bad] != 0).any():
        tally.silent += 1
        tally.note(f"{kind}: qc {tensors.catalog['qc'][here]}")
    good = tensors.catalog["accept"] != 0
    if (np.abs(tensors.catalog["psf_flux_r"][good] - 1) > 1e-3).any():
        tally.silent += 1
        tally.note(f"{kind}: a kernel loses flux: {tensors.catalog['psf_flux_r']}")
