"""Write docs/reference/inputs.md: what is read from tables, labels and pictures, and what is refused, by running it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import MaskedColumn, QTable, Table

from ripple.errors import RippleError
from ripple.imaging.bands import canonical, wavelength
from ripple.stages.formats.fits_hdus import BAND_CARDS, ROLE_CARDS, ROLE_WORDS
from ripple.stages.formats.fits_units import ZERO_POINT_CARDS, flux_of
from ripple.stages.plan.select import matching
from ripple.stages.plan.tables import UserTable, read_table
from ripple.stages.plan.targets import Columns, from_table
from ripple.storage.labels import lens_map, read_labels

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "inputs.md"
BIG = 12547118600189071360

INTRO = """# What RIPPLe reads from your tables, labels and pictures

This page is written by `python scripts/inputs_page.py`, which runs every example; a test compares the two. What
is refused names the row, counted from 0, and how to say what is meant. `ripple plan` and `ripple import
--dry-run` print how your own files were understood.

Tables are CSV, TSV, ECSV, FITS, VOTable, Parquet, HATS, and in Python a mapping of arrays, a structured array,
an astropy, Arrow or pandas table.
"""


def said(act: Callable[[], object]) -> str:
    """What comes out, or the message and hint of the refusal."""
    try:
        return str(act())
    except RippleError as err:
        return f"refused: {err.message}" + (f" ({err.hint})" if err.hint else "")


def markdown(title: str, text: str, head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    """A section with a table of two columns."""
    lines = [f"\n## {title}\n", f"{text}\n", f"| {head[0]} | {head[1]} |", "|---|---|"]
    lines += [f"| {a.replace('|', chr(92) + '|')} | {b.replace('|', chr(92) + '|')} |" for a, b in rows]
    return "\n".join(lines) + "\n"


def csv_ids(cells: list[str], header: str = "id") -> str:
    """Ids of a CSV file with these cells."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        rows = "\n".join(f"{cell},{100 + k},{k}" for k, cell in enumerate(cells))
        path.write_text(f"{header},ra,dec\n{rows}\n")
        return said(lambda: shown(from_table(read_table(path), Columns(), source={"name": "t.csv"}).id))


def shown(values: np.ndarray) -> str:
    """Values and their type."""
    kind = "text" if values.dtype.kind in "US" else str(values.dtype)
    return f"{', '.join(map(str, values.tolist()))} ({kind})"


def arrow_ids(column: pa.Array) -> str:
    """Ids of a Parquet file with this column."""
    n = len(column)
    table = UserTable.of(pa.table({"id": column, "ra": np.arange(n) + 30.0, "dec": np.arange(n) + 0.0}))
    return said(lambda: shown(from_table(table, Columns(), source={"name": "t.parquet"}).id))


def positions(table: Any, columns: Columns = Columns()) -> str:  # noqa: B008
    """Right ascension and declination, in deg ICRS."""

    def read() -> str:
        found = from_table(UserTable.in_memory(table), columns, source={"name": "t"})
        return "; ".join(f"{r:.6g}, {d:.6g}" for r, d in zip(found.ra, found.dec, strict=True))

    return said(read)


def two_tables() -> str:
    """A FITS file with two tables."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.fits"
        hdus = [fits.PrimaryHDU()]
        hdus += [fits.table_to_hdu(Table({"ra": [1.0], "dec": [1.0]}, meta={"EXTNAME": n})) for n in "AB"]
        fits.HDUList(hdus).writeto(path)
        return said(lambda: read_table(path)).replace(f"{folder}/", "")


def labels(values: Any, classes: tuple[str, ...] = ()) -> str:
    """Labels and class names as they are read."""

    def read() -> str:
        found, names = read_labels(values, classes, "label")
        named = f"; classes {', '.join(f'{k}: {n}' for k, n in enumerate(names))}" if names else ""
        return f"{found.tolist()}{named}"

    return said(read)


def chosen(columns: dict[str, Any], condition: str) -> str:
    """Rows that a condition keeps."""
    table = pa.table(columns)
    return said(lambda: f"rows {np.flatnonzero(matching(table, condition).to_numpy()).tolist()}")


def unit(**cards: Any) -> str:
    """Nanojansky per unit of the pixels, for a header with these cards."""
    try:
        flux = flux_of(fits.Header(cards), "x.fits, HDU 1", 0.2)
    except ValueError as err:
        return f"refused: {err}"
    return "says no unit: give --zero-points or --unit nJy" if flux.factor is None else f"x {flux.factor:.6g}"


def role_rows() -> list[tuple[str, str]]:
    """Words in names of HDUs, cards and file names, by the role that they mean."""
    words: dict[str, list[str]] = {}
    for word, role in ROLE_WORDS.items():
        words.setdefault(role, []).append(word)
    names = {"ivar": "inverse variance, or weight", "other": "nothing that is used"}
    return [(", ".join(found), names.get(role, role)) for role, found in words.items()]


def band_rows() -> list[tuple[str, str]]:
    """Spellings of bands, and what they mean."""
    spelled = (
        "HSC-I2", "g.MP9401", "DECAM_g", "DES_G", "i DECam SDSS c0003 7835.0 1470.0", "PS1_z", "r.00000",
        "OCAM_u_SDSS", "i_sim_1.4", "r_57", "VIS", "NIR_Y", "VISTA Ks", "W1", "F814W", "WFC3/F160W", "F150W",
        "N708",
    )  # fmt: skip
    rows = []
    for name in spelled:
        nm = wavelength(name)
        rows.append((f"`{name}`", f"{canonical(name)}, {nm:.0f} nm" if nm == nm else f"{name}, not known"))
    return rows


UNITS: tuple[dict[str, Any], ...] = (
    {"BUNIT": "nJy"}, {"BUNIT": "MJy"}, {"BUNIT": "nanomaggy"}, {"BUNIT": "MJy/sr"}, {"BUNIT": "adu"},
    {"BUNIT": "adu", "FLUXMAG0": 63095734448.0194}, {"BUNIT": "electron/s", "MAGZERO": 27.0}, {"MAGZP": 31.4},
    {"BUNIT": "nanomaggy", "MAGZERO": 22.5}, {"BUNIT": "nJy", "MAGZERO": 27.0}, {"BUNIT": "furlong"},
    {"BUNIT": "adu", "ZPT": 0.0},
)  # fmt: skip


def page() -> str:
    """The whole page."""
    hour = {"ra": [3.5, 4.5], "dec": [1.0, 2.0]}
    sky = SkyCoord([120.0], [-30.0], unit="deg", frame="galactic")
    g, r = np.array([1, 5, 3, 2, 0], np.uint8), np.array([2, 1, 3, 4, 0], np.uint8)
    id_rows = [
        (f"CSV `{BIG}`, `{BIG + 1}`", csv_ids([str(BIG), str(BIG + 1)])),
        ("CSV `000123`, `0123`, `123`", csv_ids(["000123", "0123", "123"])),
        ("CSV `12E34`, `7`", csv_ids(["12E34", "7"])),
        ("CSV with the header `# object_id` of HSC", csv_ids(["42", "43"], "# object_id")),
        ("Parquet float64 `1.0, 2.0`", arrow_ids(pa.array([1.0, 2.0]))),
        ("Parquet float64 of more than 53 bits", arrow_ids(pa.array([float(BIG)]))),
        ("Parquet int64 with an empty cell", arrow_ids(pa.array([1, None]))),
        ("the same id twice", csv_ids(["7", "7"]) + "; the second row is rejected as a duplicate"),
    ]
    rad = QTable({"ra": [1.0] * u.rad, "dec": [0.5] * u.rad})
    masked = Table({"ra": MaskedColumn([10.0, 20.0], mask=[0, 1]), "dec": [1.0, 2.0]})
    place_rows = [
        ("numbers without unit", positions({"ra": [120.5], "dec": [-30.0]})),
        ("columns in rad", positions(rad)),
        ("a column in hourangle", positions(QTable({"ra": [8.0] * u.hourangle, "dec": [1.0] * u.deg}))),
        ("sexagesimal text", positions({"ra": ["03:32:30"], "dec": ["-28:06:00"]})),
        ("sky coordinates in the Galactic frame", positions(Table({"where": sky}))),
        ("right ascension from -180 to 180", positions({"ra": [-30.0], "dec": [0.0]})),
        ("numbers that may be hours", positions(hour)),
        ("the same with `--ra-unit hour`", positions(hour, Columns(ra_unit="hour"))),
        ("a masked right ascension", positions(masked)),
        ("declination 95", positions({"ra": [120.0], "dec": [95.0]})),
        ("right ascension 400", positions({"ra": [400.0], "dec": [5.0]})),
        ("magnitudes as positions", positions(QTable({"ra": [20.0] * u.mag, "dec": [1.0] * u.deg}))),
        ("no column looks like a declination", positions({"ra": [1.0], "b": [2.0]})),
        ("a FITS file with two tables", two_tables()),
    ]
    label_rows = [
        ("`0, 1, -1`", labels([0, 1, -1])),
        ("`True, False`", labels([True, False])),
        ("`1.0, nan`", labels([1.0, float("nan")])),
        ("masked", labels(np.ma.array([1, 0], mask=[0, 1]))),
        ("`lens, nonlens`, empty", labels(["lens", "nonlens", ""])),
        ("`ring, arc` with `--classes arc,ring`", labels(["ring", "arc"], ("arc", "ring"))),
        ("`1, 0` as text", labels(["1", "0"])),
        ("one-hot rows `0 1`, `1 0`, `0 0`", labels(np.array([[0, 1], [1, 0], [0, 0]]))),
        ("`0.0, 0.9`", labels([0.0, 0.9])),
        ("`2` with `--classes nonlens,lens`", labels([0, 2], ("nonlens", "lens"))),
        ("`galaxy, arc` without `--classes`", labels(["galaxy", "arc"])),
        ("text and numbers", labels(np.array(["lens", 1], object))),
        ("rows `0.2 0.8`", labels(np.array([[0.2, 0.8]]))),
    ]
    class_rows = [
        (f"`{names}`", said(lambda m=names: lens_map(m, name="tensors")))
        for names in (
            {"0": "nonlens", "1": "lens"},
            {"0": "Lenses", "1": "non-lens"},
            {"0": "0", "1": "1"},
            {"0": "arc", "1": "galaxy"},
            {"0": "no", "1": "sphere", "2": "vort"},
        )
    ]
    select_rows = [
        ("uint8 `g` = 1 5 3 2 0, `r` = 2 1 3 4 0: `g - r > 0`", chosen({"g": g, "r": r}, "g - r > 0")),
        ("int16 200, 100: `n * n > 30000`", chosen({"n": np.array([200, 100], np.int16)}, "n * n > 30000")),
        (
            f"uint64 ids: `id in ({BIG + 1},)`",
            chosen({"id": np.array([BIG, BIG + 1], np.uint64)}, f"id in ({BIG + 1},)"),
        ),
        ("int64 beyond its range: `n * 4 > 0`", chosen({"n": np.array([2**62])}, "n * 4 > 0")),
    ]
    return "".join([
        INTRO,
        markdown(
            "Ids",
            "Ids are exact: integers of 64 bits, or text as the file has it. Columns called `id`, `objectId`, "
            "`object_id`, `objid`, `diaObjectId`, `source_id`, `sourceId`, `obj_id` or `name` are found, in any "
            "case; `--id-column` names another. Other integer columns with empty cells have -1 there.",
            ("in the file", "ids"), id_rows,
        ),
        markdown(
            "Positions",
            "Positions are ICRS. Units and masks of ECSV, FITS, VOTable and astropy tables are used.",
            ("in the table", "right ascension, declination in deg"), place_rows,
        ),
        markdown(
            "Labels",
            "One reader serves catalogues (`--label-column`), arrays (`label_key`), `LABEL` cards of FITS files, "
            "Multimodal Universe files, `write_cutouts` and `write_tensors`. -1 is unknown.",
            ("in the table", "labels"), label_rows,
        ),
        markdown(
            "Which class is the lens",
            "Found by its name: `lens`, `lenses`, `lensed` or `strong lens` in any case; `--lens-class NAME` when "
            "it is called otherwise. Label 1 of a lens finder is the lens whatever its number in the tensors, and "
            "tensors are translated by name when they are scored. The same holds for the `class_map` of the "
            "sidecar of `ripple import-model`, whose `threshold` and `calibration` are about the lens. Labels 0 "
            "and 1 without any names mean nonlens and lens. For classes without a lens but with one of the names "
            "`nonlens`, `no` or `no_sub`, the score is the probability of any other class.",
            ("class map of the tensors", "of the lens finder"), class_rows,
        ),
        markdown(
            "Conditions",
            "`--select` computes with integers of 64 bits and with floats as Python does.",
            ("condition", "kept"), select_rows,
        ),
        markdown(
            "Pictures: what is image, noise, mask, PSF",
            "Said by a word in the name of an HDU or of a file (`a_var_i.fits`), or by one of the cards "
            f"{', '.join(ROLE_CARDS)}; two that differ are refused. An HDU of which nothing is said is the image "
            "where there is no other. Of two pictures of one role and band none is chosen: the row is rejected. "
            "Nothing follows from the order of HDUs or files. `--dry-run` prints what each one was taken for.",
            ("word", "role"), role_rows(),
        ),
        markdown(
            "Pictures: bands",
            f"Said by the name of the HDU, by the cards {', '.join(BAND_CARDS)} of it or of the primary header, "
            "by `BANDS` for the planes of a cube, or by the name of the file. `--bands` names the bands that are "
            "wanted, in the order of the artefact; a band that no row has is an error, a row that lacks one is "
            "`partial`. `--ignore-cards FILTER` reads a card as if it were not there.",
            ("spelling", "band"), band_rows(),
        ),
        markdown(
            "Pictures: units",
            f"`BUNIT` is read by `astropy.units`; counts need one of {', '.join(ZERO_POINT_CARDS)} (AB) or "
            "FLUXMAG0. Cards of the primary header hold for all HDUs that do not have their own. Each row, band "
            "and file has its own unit. `MJy/sr` here: pixels of 0.2 arcsec.",
            ("cards", "to nJy"),
            [(", ".join(f"{k} = {v}" for k, v in cards.items()), unit(**cards)) for cards in UNITS],
        ),
        "\n## Pictures: projection, PSF, mask, fill values\n\n"
        "Projections are those of `astropy.wcs`: any frame, equinox, SIP, TPV. A gnomonic projection in ICRS that "
        "agrees to 0.01 px over the cutout replaces them; where none does, the cutout is resampled onto one, "
        "which `detail` and `resampled` in the index say (`--no-resample` refuses). RA 0, Dec 0 in the middle of a "
        "cutout is no position. Bands on other pixel grids, and rows of another pixel scale, are refused, or "
        "resampled with `--align`. PSF images may have any sides; they are stored as odd squares, centred on the "
        "middle pixel, and `detail` says why one is not used. The bits of an integer mask are named by its cards "
        "`MP_<plane>` or by `--mask-bits BAD=0,SAT=1`; without either, only 0 and 1 are understood. Values that "
        "repeat where measurements do not (-999, 1e16, a constant band, zeros in whole rows at the edge) are no "
        "data; `detail` says which, and `--set find_fill=false` keeps them.\n"
        "\n## Cutouts of others\n\n"
        "`ripple import` rejects single rows, with the reason in the index: a repeated id (`duplicate`), a "
        "position off the sky (`bad_position`), an unreadable file or two files of one band "
        "(`unreadable_source`). A row without a position is kept. A folder of a DeepLense tree is a class when "
        "`--classes` names it or, without `--classes`, when it is one of nonlens and lens, of no, sphere and "
        "vort, or of axion, cdm and no_sub. Three bands without names are taken for g, r, i at 0.168 arcsec, "
        "which the summary says. `ripple preprocess --dtype float16` clips values beyond 65504 and flags the "
        "rows (`clipped`).\n",
    ])  # fmt: skip


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    print(PAGE)
