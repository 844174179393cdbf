"""Write docs/reference/python-tasks.md: everyday tasks, ours beside the Butler and astropy, executed.

    python scripts/notebook_tasks.py

Both sides run on the same simulated repository, and where both give pixels or numbers these are compared. Lines
are counted without blank ones. Each task is timed with a survey that was just opened, and once more; all libraries
are loaded before.
"""

from __future__ import annotations

import contextlib
import io
import os
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
import ripple
survey = ripple.open_survey("sky/repo", collections="mini")
"""
THEIRS = """
import astropy.units as u
import matplotlib.figure
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import CCDData, Cutout2D, VarianceUncertainty
from astropy.visualization import make_lupton_rgb
from lsst.daf.butler import Butler
butler = Butler("sky/repo", collections="mini")
def coadd_of(ra, dec, band):
    where = f"skymap='ripple_mini_v1' AND band='{band}' AND patch.region OVERLAPS POINT({ra}, {dec})"
    refs = butler.query_datasets("deep_coadd", where=where)
    return butler.get(refs[0])
"""


@dataclass(frozen=True)
class Task:
    """One task: the question, both programs, and the name of the variable that both should agree on."""

    name: str
    ours: str
    theirs: str
    compared: str = ""


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
)


def timed(program: str, space: dict[str, Any]) -> float:
    """Seconds of a run."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        exec(program, space)
    return time.perf_counter() - start


def lines(program: str) -> int:
    return len([line for line in program.splitlines() if line.strip()])


def rows() -> list[tuple[Any, ...]]:
    """Name, lines and seconds of both sides; stops when the results differ."""
    truth = ripple.open("cutouts").table()
    whole = truth[truth["status"] == "ok"]
    values = {"ra": float(whole["ra"][7]), "dec": float(whole["dec"][7]), "many": whole}
    ours, theirs = dict(values), dict(values)
    found = []
    for setup, programs, space in (
        (OURS, [task.ours for task in TASKS], ours),
        (THEIRS, [task.theirs for task in TASKS], theirs),
    ):
        exec(setup, space)
        for program in programs:  # loads and compiles what is needed
            timed(program, space)
    for task in TASKS:
        exec(OURS, ours)
        seconds = timed(task.ours, ours), timed(task.ours, ours), timed(task.theirs, theirs)
        if task.compared:
            a, b = np.asarray(ours[task.compared]), np.asarray(theirs[task.compared])
            np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=task.name)
        same = "equal" if task.compared else ""
        found.append((task.name, lines(task.ours), lines(task.theirs), *seconds, same))
    return found


def page(found: list[tuple[Any, ...]]) -> str:
    head = "| task | lines | theirs | seconds | again | theirs | results |\n|---|---|---|---|---|---|---|"
    body = [f"| {n} | {a} | {b} | {s:.2f} | {w:.2f} | {t:.2f} | {same} |" for n, a, b, s, w, t, same in found]
    setup = lines(OURS), lines(THEIRS)
    programs = [
        f"### {task.name}\n\n```python{task.ours}```\n\nwith the Butler and astropy:\n\n```python{task.theirs}```\n"
        for task in TASKS
    ]
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
            "The other side cuts at the edge of a patch, where RIPPLe takes the pixels of the neighbour. Hyrax and LSDB do not\n"
            "cut out of Butler repositories, and are not compared.\n",
            "## The programs\n",
            *programs,
        )
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        ripple.simulate("sky", patches=4, targets=196, bands="gri", seed=7, lens_fraction=0.4)
        ripple.fetch(
            repo="sky/repo",
            collections="mini",
            targets="sky/truth.parquet",
            bands="gri",
            size=64,
            output="cutouts",
        )
        PAGE.write_text(page(rows()))


if __name__ == "__main__":
    main()
