"""Write docs/reference/python-tasks.md: everyday tasks, ours beside the Butler and astropy, executed.

    python scripts/notebook_tasks.py          # in a temporary directory
    python scripts/notebook_tasks.py DIR      # or in DIR, where the survey is not made again

Both sides run on the same simulated repository, and where both give pixels or numbers these are compared. Lines
are counted without blank ones. Each task is timed with a survey that was just opened, and once more; all libraries
are loaded before.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ripple

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "python-tasks.md"

#: What both sides have before the first task; not counted.
OURS = """
import astropy.units as u
import numpy as np
import ripple
survey = ripple.open_survey("sky/repo", collections="mini")
"""
THEIRS = """
import astropy.units as u
import matplotlib.figure
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import CCDData, Cutout2D, NoOverlapError, VarianceUncertainty
from astropy.visualization import make_lupton_rgb
from lsst.daf.butler import Butler
from lsst.images import Box
butler = Butler("sky/repo", collections="mini")
def coadd_of(ra, dec, band):
    where = f"skymap='ripple_mini_v1' AND band='{band}' AND patch.region OVERLAPS POINT({ra}, {dec})"
    refs = butler.query_datasets("deep_coadd", where=where)
    return butler.get(refs[0])
"""


@dataclass(frozen=True)
class Task:
    """One task: the question, both programs, and the name of the variable that both should agree on.

    Without `theirs` the others have no such thing. `hyrax` and `lsdb` are calls that are shown and not run.
    """

    name: str
    ours: str
    theirs: str = ""
    compared: str = ""
    hyrax: str = ""
    lsdb: str = ""


TASKS = (
    Task(
        "One object in three bands, pixels and WCS",
        """
cut = survey.cutout(ra, dec, size=65, bands="gri")
pixels = cut.image
""",
        """
cutouts = []
for band in "gri":
    coadd = coadd_of(ra, dec, band)
    wcs = coadd.sky_projection.as_fits_wcs(coadd.bbox)
    cutouts.append(Cutout2D(coadd.image.array, SkyCoord(ra, dec, unit="deg"), 65, wcs=wcs, mode="partial"))
pixels = np.stack([c.data for c in cutouts])
""",
        "pixels",
    ),
    Task(
        "Which PSF does its cell have?",
        """
kernel = survey.cutout(ra, dec, bands="i").psf[0]
""",
        """
coadd = coadd_of(ra, dec, "i")
x, y = coadd.sky_projection.as_fits_wcs(coadd.bbox).world_to_pixel_values(ra, dec)
x0, y0 = coadd.bbox.x.start, coadd.bbox.y.start
kernel = coadd.psf.compute_kernel_image(x=float(x) + x0, y=float(y) + y0).array
""",
        "kernel",
    ),
    Task(
        "Ten cutouts as one colour picture",
        """
figure = survey.cutouts({"ra": many["ra"][:10], "dec": many["dec"][:10]}, size=65, bands="gri").plot()
""",
        """
figure = matplotlib.figure.Figure()
for ax, (ra_k, dec_k) in zip(figure.subplots(2, 5).flat, zip(many["ra"][:10], many["dec"][:10])):
    planes = []
    for band in "irg":
        coadd = coadd_of(ra_k, dec_k, band)
        wcs = coadd.sky_projection.as_fits_wcs(coadd.bbox)
        cut = Cutout2D(coadd.image.array, SkyCoord(ra_k, dec_k, unit="deg"), 65, wcs=wcs, mode="partial")
        planes.append(np.nan_to_num(cut.data))
    ax.imshow(make_lupton_rgb(*planes, stretch=20, Q=8), origin="lower")
    ax.set_axis_off()
""",
        hyrax="h.visualize(), of all rows on a map, after h.infer() and h.umap()",
    ),
    Task(
        "The bright galaxies within 0.01 deg",
        """
table = survey.objects(f"CIRCLE {ra} {dec} 0.01", select="refExtendedness == 1 and i_cModelMag < 21")
count = len(table)
""",
        """
table = butler.get(butler.query_datasets("object", where="skymap='ripple_mini_v1'")[0])
near = SkyCoord(table["coord_ra"], table["coord_dec"], unit="deg").separation(SkyCoord(ra, dec, unit="deg"))
table = table[(near < 0.01 * u.deg) & (table["refExtendedness"] == 1) & (table["i_cModelMag"] < 21)]
count = len(table)
""",
        "count",
        lsdb='catalog.cone_search(ra, dec, 36).query("refExtendedness == 1 and i_cModelMag < 21").compute()',
    ),
    Task(
        "Flux in a circle of 2 arcsec, with error",
        """
flux = survey.cutout(ra, dec, bands="i").flux(2 * u.arcsec)["flux"].value
""",
        """
coadd = coadd_of(ra, dec, "i")
wcs = coadd.sky_projection.as_fits_wcs(coadd.bbox)
cut = Cutout2D(coadd.image.array, SkyCoord(ra, dec, unit="deg"), 65, wcs=wcs)
variance = Cutout2D(coadd.variance.array, SkyCoord(ra, dec, unit="deg"), 65, wcs=wcs)
x, y = cut.wcs.world_to_pixel_values(ra, dec)
j, i = np.mgrid[: 65 * 10, : 65 * 10] / 10 - 0.45
weight = ((i - x) ** 2 + (j - y) ** 2 <= 10**2).reshape(65, 10, 65, 10).mean(axis=(1, 3))
flux = [(cut.data * weight).sum()]
error = np.sqrt((variance.data * weight**2).sum())
""",
        "flux",
    ),
    Task(
        "As CCDData with WCS, variance and mask of unusable pixels",
        """
data = survey.cutout(ra, dec, size=65, bands="gri").to_nddata()
pixels = data["g"].data
""",
        """
data = {}
for band in "gri":
    coadd = coadd_of(ra, dec, band)
    wcs = coadd.sky_projection.as_fits_wcs(coadd.bbox)
    place = SkyCoord(ra, dec, unit="deg")
    cut = Cutout2D(coadd.image.array, place, 65, wcs=wcs)
    variance = Cutout2D(coadd.variance.array, place, 65, wcs=wcs)
    bad = coadd.mask.get("NO_DATA") | coadd.mask.get("SATURATED")
    mask = Cutout2D(bad, place, 65, wcs=wcs)
    data[band] = CCDData(
        cut.data, unit=u.nJy, wcs=cut.wcs, mask=mask.data, uncertainty=VarianceUncertainty(variance.data)
    )
pixels = data["g"].data
""",
        "pixels",
    ),
    Task(
        "One object to a FITS file with WCS and PSF",
        """
survey.cutout(ra, dec, size=65, bands="gri").to_fits("ours.fits", overwrite=True)
""",
        """
hdus = [fits.PrimaryHDU()]
for band in "gri":
    coadd = coadd_of(ra, dec, band)
    wcs = coadd.sky_projection.as_fits_wcs(coadd.bbox)
    cut = Cutout2D(coadd.image.array, SkyCoord(ra, dec, unit="deg"), 65, wcs=wcs)
    x, y = wcs.world_to_pixel_values(ra, dec)
    psf = coadd.psf.compute_kernel_image(x=float(x) + coadd.bbox.x.start, y=float(y) + coadd.bbox.y.start)
    hdus.append(fits.ImageHDU(cut.data, cut.wcs.to_header(), name=f"IMAGE_{band}"))
    hdus.append(fits.ImageHDU(psf.array, name=f"PSF_{band}"))
fits.HDUList(hdus).writeto("theirs.fits", overwrite=True)
""",
    ),
    Task(
        "Fifty objects, and which could not be cut and why",
        """
cutouts = survey.cutouts({"ra": many["ra"][:50], "dec": many["dec"][:50]}, size=65, bands="gri")
reasons = cutouts.table["status", "reason", "detail"]
""",
        """
cutouts, reasons = [], []
for ra_k, dec_k in zip(many["ra"][:50], many["dec"][:50]):
    try:
        planes = []
        for band in "gri":
            coadd = coadd_of(ra_k, dec_k, band)
            wcs = coadd.sky_projection.as_fits_wcs(coadd.bbox)
            place = SkyCoord(ra_k, dec_k, unit="deg")
            planes.append(Cutout2D(coadd.image.array, place, 65, wcs=wcs, mode="partial").data)
        cutouts.append(np.stack(planes))
        reasons.append("")
    except Exception as error:
        reasons.append(str(error))
""",
    ),
    Task(
        "All rejected rows and why",
        """
found = survey.cutouts(places, size=65, bands="gri").table
rejected = found[found["status"] == "rejected"]["ra", "dec", "reason", "detail"]
count = len(rejected)
""",
        """
rejected = []
for ra_k, dec_k in zip(places["ra"], places["dec"]):
    where = f"skymap='ripple_mini_v1' AND patch.region OVERLAPS POINT({ra_k}, {dec_k})"
    if not butler.query_datasets("deep_coadd", where=where, explain=False):
        rejected.append((ra_k, dec_k, "no coadd"))
count = len(rejected)
""",
        "count",
    ),
    Task(
        "An object by its id",
        """
cut = survey.cutout(identifier, size=65, bands="gri")
pixels = cut.image
""",
        """
table = butler.get(butler.query_datasets("object", where="skymap='ripple_mini_v1'")[0])
row = table[table["objectId"] == identifier][0]
cutouts = []
for band in "gri":
    coadd = coadd_of(row["coord_ra"], row["coord_dec"], band)
    wcs = coadd.sky_projection.as_fits_wcs(coadd.bbox)
    place = SkyCoord(row["coord_ra"], row["coord_dec"], unit="deg")
    cutouts.append(Cutout2D(coadd.image.array, place, 65, wcs=wcs, mode="partial"))
pixels = np.stack([c.data for c in cutouts])
""",
        "pixels",
        hyrax="h.lookup(id=identifier): its latent vector, after h.infer(); no pixels",
        lsdb='catalog.id_search(values={"objectId": identifier}).compute(): the row, no pixels',
    ),
    Task(
        "A cutout across the border of a patch",
        """
pixels = survey.cutout(*border, size=65, bands="i").image[0]
complete = np.isfinite(pixels).all()
""",
        """
circle = f"CIRCLE({border[0]}, {border[1]}, 0.0026)"
where = f"skymap='ripple_mini_v1' AND band='i' AND patch.region OVERLAPS {circle}"
pixels = np.full((65, 65), np.nan)
for ref in butler.query_datasets("deep_coadd", where=where):
    coadd = butler.get(ref)
    wcs = coadd.sky_projection.as_fits_wcs(coadd.bbox)
    try:
        cut = Cutout2D(coadd.image.array, SkyCoord(*border, unit="deg"), 65, wcs=wcs, mode="partial")
    except NoOverlapError:
        continue
    pixels = np.where(np.isfinite(pixels), pixels, cut.data)
complete = np.isfinite(pixels).all()
""",
        "complete",
    ),
    Task(
        "The mask planes as a picture",
        """
figure = survey.cutout(ra, dec, size=65, bands="i").plot("mask")
""",
        """
coadd = coadd_of(ra, dec, "i")
wcs = coadd.sky_projection.as_fits_wcs(coadd.bbox)
figure = matplotlib.figure.Figure()
ax = figure.subplots()
for k, plane in enumerate(coadd.mask.schema.names):
    cut = Cutout2D(coadd.mask.get(plane), SkyCoord(ra, dec, unit="deg"), 65, wcs=wcs)
    if cut.data.any():
        ax.contourf(cut.data, levels=[0.5, 1], colors=[f"C{k}"], alpha=0.5)
        ax.plot([], [], color=f"C{k}", label=plane)
ax.legend()
""",
    ),
    Task(
        "Width of the PSF in each band, arcsec",
        """
widths = survey.cutout(ra, dec, bands="gri").psf_fwhm
""",
        """
widths = {}
for band in "gri":
    coadd = coadd_of(ra, dec, band)
    x, y = coadd.sky_projection.as_fits_wcs(coadd.bbox).world_to_pixel_values(ra, dec)
    x, y = float(x) + coadd.bbox.x.start, float(y) + coadd.bbox.y.start
    psf = coadd.psf.compute_kernel_image(x=x, y=y).array
    widths[band] = 2 * np.sqrt((psf > psf.max() / 2).sum() / np.pi) * 0.2
""",
    ),
    Task(
        "Median error of a pixel in each band, nJy",
        """
error = np.sqrt(np.median(survey.cutout(ra, dec, size=65, bands="gri").variance, axis=(1, 2)))
""",
        """
error = []
for band in "gri":
    coadd = coadd_of(ra, dec, band)
    wcs = coadd.sky_projection.as_fits_wcs(coadd.bbox)
    cut = Cutout2D(coadd.variance.array, SkyCoord(ra, dec, unit="deg"), 65, wcs=wcs)
    error.append(np.sqrt(np.median(cut.data)))
""",
        "error",
    ),
    Task(
        "As a MaskedImage of lsst.images",
        """
image = survey.cutout(ra, dec, size=65, bands="i").to_lsst()["i"]
pixels = image.image.array
""",
        """
coadd = coadd_of(ra, dec, "i")
x, y = coadd.sky_projection.as_fits_wcs(coadd.bbox).world_to_pixel_values(ra, dec)
x0, y0 = round(float(x)) + coadd.bbox.x.start - 32, round(float(y)) + coadd.bbox.y.start - 32
image = coadd[Box.factory[y0 : y0 + 65, x0 : x0 + 65]]
pixels = image.image.array
""",
        "pixels",
    ),
    Task(
        "Ten objects to FITS files",
        """
survey.cutouts({"ra": many["ra"][:10], "dec": many["dec"][:10]}, size=65, bands="gri").to_fits("ours")
""",
        """
for k, (ra_k, dec_k) in enumerate(zip(many["ra"][:10], many["dec"][:10])):
    hdus = [fits.PrimaryHDU()]
    for band in "gri":
        coadd = coadd_of(ra_k, dec_k, band)
        wcs = coadd.sky_projection.as_fits_wcs(coadd.bbox)
        cut = Cutout2D(coadd.image.array, SkyCoord(ra_k, dec_k, unit="deg"), 65, wcs=wcs, mode="partial")
        hdus.append(fits.ImageHDU(cut.data, cut.wcs.to_header(), name=f"IMAGE_{band}"))
    fits.HDUList(hdus).writeto(f"theirs-{k}.fits", overwrite=True)
""",
    ),
    Task(
        "Is there data here, and in which bands?",
        """
found = survey.plan({"ra": [ra], "dec": [dec]})[0]["status", "reason", "detail"]
""",
        """
found = [
    ref.dataId["band"]
    for ref in butler.query_datasets(
        "deep_coadd", where=f"skymap='ripple_mini_v1' AND patch.region OVERLAPS POINT({ra}, {dec})"
    )
]
""",
    ),
    Task(
        "What would all of these read, write and take?",
        """
cost = survey.plan(many).meta
""",
    ),
    Task(
        "Ten objects as tensors with one PSF",
        """
chosen = survey.cutouts({"ra": many["ra"][:10], "dec": many["dec"][:10]}, size=84, bands="gri")
tensors = chosen.to_tensors(psf="match")
""",
        hyrax="transforms of its own data sets; no PSF matching",
    ),
    Task(
        "Objects of a region to a VOTable with units",
        """
survey.objects(f"CIRCLE {ra} {dec} 0.02").write("ours.vot", format="votable", overwrite=True)
""",
        """
table = butler.get(butler.query_datasets("object", where="skymap='ripple_mini_v1'")[0])
near = SkyCoord(table["coord_ra"], table["coord_dec"], unit="deg").separation(SkyCoord(ra, dec, unit="deg"))
table = table[near < 0.02 * u.deg]
table["coord_ra"].unit = table["coord_dec"].unit = "deg"
table.write("theirs.vot", format="votable", overwrite=True)
""",
        lsdb="catalog.cone_search(ra, dec, 72).compute(), then Table.from_pandas(...).write(...)",
    ),
)


def timed(program: str, space: dict[str, Any]) -> float:
    """Seconds of a run."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        exec(program, space)
    return time.perf_counter() - start


def lines(program: str) -> int:
    return len([line for line in program.splitlines() if line.strip()])


def asked_for(whole: Any) -> dict[str, Any]:
    """Twenty places with three off the survey, one at the border of a patch, and the id of an object."""
    with ripple.open_survey("sky/repo", collections="mini") as survey:
        catalog = survey.cutouts(whole, size=65).batch.catalog
        objects = survey.objects(f"CIRCLE {whole['ra'][7]} {whole['dec'][7]} 0.02")
    at = int(np.argmax(catalog["n_patches"]))
    off = np.array([0.0, 120.0, 240.0])
    places = {"ra": np.append(whole["ra"][:17], off), "dec": np.append(whole["dec"][:17], 0 * off)}
    border = (float(catalog["ra"][at]), float(catalog["dec"][at]))
    return {"places": places, "border": border, "identifier": int(objects["id"][0])}


def rows() -> list[tuple[Any, ...]]:
    """Name, lines and seconds of both sides; stops when the results differ."""
    truth = ripple.open("places").table()
    whole = truth[truth["status"] == "ok"]
    values = {"ra": float(whole["ra"][7]), "dec": float(whole["dec"][7]), "many": whole} | asked_for(whole)
    ours, theirs = dict(values), dict(values)
    found = []
    for setup, programs, space in (
        (OURS, [task.ours for task in TASKS], ours),
        (THEIRS, [task.theirs for task in TASKS], theirs),
    ):
        exec(setup, space)
        for program in filter(None, programs):  # loads and compiles what is needed
            timed(program, space)
    for task in TASKS:
        exec(OURS, ours)
        other = timed(task.theirs, theirs) if task.theirs else np.nan
        seconds = timed(task.ours, ours), timed(task.ours, ours), other
        if task.compared:
            a, b = np.asarray(ours[task.compared]), np.asarray(theirs[task.compared])
            np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=task.name)
        same = "equal" if task.compared else ""
        found.append((task, *seconds, same))
    return found


def page(found: list[tuple[Any, ...]]) -> str:
    head = (
        "| task | lines | theirs | seconds | again | theirs | results | Hyrax | LSDB |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    body = [
        f"| {task.name} | {lines(task.ours)} | {lines(task.theirs) or '-'} | {s:.2f} | {w:.2f} | "
        f"{'-' if np.isnan(t) else f'{t:.2f}'} | {same} | {task.hyrax or '-'} | {task.lsdb or '-'} |"
        for task, s, w, t, same in found
    ]
    setup = lines(OURS), lines(THEIRS)
    programs = [_program(task) for task in TASKS]
    return "\n".join(
        (
            "# Everyday tasks beside other tools\n",
            "*Written by `python scripts/notebook_tasks.py`, which runs both sides on the survey of the tutorials (patches of 900\n"
            "px; those of DP2 have 3400) on the two busy cores of one machine: the ratio is what matters.*\n",
            f"`Butler` with `lsst.images` reads, `Cutout2D` of astropy cuts. What is set up once is not counted: {setup[0]} lines\n"
            f"with RIPPLe, {setup[1]} without, of which four find the coadd of a position. A survey keeps decoded coadds in memory:\n"
            "*again* is the same question once more. The other side opens the file for each question, as most notebooks do.\n",
            head,
            *body,
            "\nCutouts of 65 px: of an even side, `Cutout2D` and RIPPLe round half of all positions to different pixels.\n"
            "The other side cuts at the edge of a patch, where RIPPLe takes the pixels of the neighbour, but for the task that is\n"
            "about it. `-`: there is no such thing. Hyrax and LSDB do not cut out of Butler repositories: their two columns are written\n"
            "from their documentation and not executed, and only where they have an answer (`h` is a `hyrax.Hyrax()`, `catalog` an\n"
            "`lsdb.open_catalog(...)`).\n",
            "## The programs\n",
            *programs,
        )
    )


def _program(task: Task) -> str:
    ours = f"### {task.name}\n\n```python{task.ours}```\n"
    return f"{ours}\nwith the Butler and astropy:\n\n```python{task.theirs}```\n" if task.theirs else ours


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(sys.argv[1] if len(sys.argv) > 1 else scratch)
        ripple.simulate("sky", patches=4, targets=196, bands="gri", seed=7, lens_fraction=0.4)
        ripple.fetch(
            repo="sky/repo",
            collections="mini",
            targets="sky/truth.parquet",
            bands="gri",
            size=64,
            output="places",
        )
        PAGE.write_text(page(rows()))


if __name__ == "__main__":
    main()
