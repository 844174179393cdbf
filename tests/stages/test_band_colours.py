"""Pictures and legends of bands that are not ugrizy."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from tensorsets import make_scores, make_tensors

from ripple import write_cutouts
from ripple.report import plots
from ripple.report.band_colours import channels, measured_noise, pictures
from ripple.stages.preprocess.config import PreprocessConfig
from ripple.stages.preprocess.preprocess import preprocess
from ripple.stages.report.config import ReportConfig
from ripple.stages.report.report import report


@pytest.mark.parametrize(
    ("bands", "legend"),
    [
        ("g,r,i", "Red i, green r, blue g."),
        ("y,z,i,r,g,u", "Red i, green r, blue g."),
        ("DECAM_z,DECAM_g,DECAM_r", "Red DECAM_z, green DECAM_r, blue DECAM_g."),
        ("NIR_H,VIS,NIR_Y,NIR_J", "Red NIR_H, green NIR_J, blue NIR_Y; beside it VIS in grey."),
        ("VIS,g,r,i,z,Y,J,H", "Red i, green r, blue g; beside it VIS in grey."),
        ("VIS,NIR_Y,NIR_H", "Red NIR_H, green NIR_Y, blue VIS; beside it VIS in grey."),
        ("HSC-I2,HSC-G", "Red HSC-I2, green HSC-G + HSC-I2, blue HSC-G; beside it HSC-I2 in grey."),
        ("F814W", "F814W in grey."),
        ("one,two,three", "Red three, green two, blue one."),
    ],
)
def test_colours_follow_the_wavelength(bands: str, legend: str) -> None:
    names = bands.split(",")
    assert channels(names).text(names) == legend


def test_measured_widths_decide_which_band_is_grey() -> None:
    bands = ("g", "r", "i")
    assert channels(bands, np.array([0.7, 0.65, 0.6])).grey is None
    assert channels(bands, np.array([0.7, 0.3, 0.7])).grey == 1
    assert channels(("g", "i"), np.array([0.5, 0.6])).grey == 0
    # VIS that was matched to the width of the others shows nothing that they do not.
    assert channels(("VIS", "Y", "J", "H"), np.full(4, 0.8)).grey is None
    assert channels(("VIS", "Y", "J", "H"), np.full(4, np.nan)).grey == 0


def test_the_grey_picture_stands_beside_the_colours() -> None:
    image = np.random.default_rng(0).normal(size=(3, 2, 8, 8)).astype(np.float32)
    image[:, 1, 2, 3] = 50
    chosen = channels(("g", "i"))
    drawn = pictures(image, chosen, measured_noise(image, chosen), stretch=8, softening=8)
    assert drawn.shape == (3, 8, 18, 3)
    grey = drawn[:, :, 10:]
    assert (grey[..., 0] == grey[..., 1]).all()
    assert (grey[..., 0] == grey[..., 2]).all()
    assert np.unravel_index(grey[0, ..., 0].argmax(), (8, 8)) == (2, 3)
    assert drawn[0, 2, 3, 0] > drawn[0, 2, 3, 2]  # red


def test_a_report_shows_the_sharp_band_of_the_cutouts_in_grey(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:40, :40] - 20
    star = np.exp(-0.5 * (x**2 + y**2) / 9) * 40
    image = (rng.normal(size=(6, 3, 40, 40)) + star).astype(np.float32)
    axis = np.arange(25) - 12
    # FWHM 4.7, 1.9 and 4.7 px: the names say nothing, the PSFs do.
    kernels = np.stack([np.exp(-0.5 * (axis[:, None] ** 2 + axis**2) / s**2) for s in (2.0, 0.8, 2.0)])
    catalog = {"ra": np.arange(6) + 10.0, "dec": np.zeros(6)}
    write_cutouts(tmp_path / "c", image, "gri", catalog, psf=kernels, variance=np.ones_like(image))
    options = {"cutouts": str(tmp_path / "c"), "output": str(tmp_path / "t"), "psf": "none", "workers": 0}
    preprocess(PreprocessConfig.make(options))
    report(ReportConfig.make({"source": tmp_path / "t", "output": tmp_path / "page"}))
    page = (tmp_path / "page" / "index.html").read_text()
    assert "Red i, green r, blue g; beside it r in grey." in page
    assert set(re.findall(r'alt="Colour picture[^"]*" width="(\d+)" height="(\d+)"', page)) == {("82", "40")}
    # Three curves and their names in every plot of a measure by band.
    assert page.count('class="legend">r (') == page.count('class="legend">g (') >= 2


def test_the_page_of_scores_says_which_band_is_which_colour(tmp_path: Path) -> None:
    tensors = make_tensors(tmp_path / "tensors", (10, 10), size=24, dtype=np.float32)
    scores = make_scores(tmp_path / "scores", tensors)
    report(ReportConfig.make({"source": scores, "output": tmp_path / "page"}))
    assert "Red i, green r, blue g." in (tmp_path / "page" / "index.html").read_text()


def test_the_legend_has_room_for_eight_names() -> None:
    names = ["VIS", "DECAM_g", "DECAM_r", "DECAM_i", "DECAM_z", "NIR_Y", "NIR_J", "NIR_H"]
    svg = plots.histogram_plot("Sky noise", "nJy", [(name, np.arange(12345.0)) for name in names])
    height = int(re.search(r'viewBox="0 0 360 (\d+)"', svg)[1])
    places = [(int(x), int(y)) for x, y in re.findall(r'<text x="(\d+)" y="(\d+)" class="legend">', svg)]
    texts = re.findall(r'class="legend">([^<]*)<', svg)
    assert [text.split(" ")[0] for text in texts] == names
    top = int(re.search(r'class="axis" d="M46 (\d+)V', svg)[1])
    for k, ((x, y), text) in enumerate(zip(places, texts, strict=True)):
        assert x + 6.2 * len(text) <= 360
        assert y < top
        for other, (x2, y2) in zip(texts[:k], places[:k], strict=True):
            assert y != y2 or x2 + 6.2 * len(other) < x
    assert height - top == 260 - 40
    assert len(set(re.findall(r'class="curve (c\d)"', svg))) == 8
    one = plots.histogram_plot("h", "x", [("g", np.arange(9.0))])
    assert 'viewBox="0 0 360 260"' in one
