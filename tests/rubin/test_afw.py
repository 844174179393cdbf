"""The path through lsst.afw: against the truth where the stack is installed, with stand-ins elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from ripple.errors import Reason, UnreadableError
from ripple.rubin.afw import afw_active, from_exposure, open_with_afw
from ripple.rubin.cache import CachedFiles, PlaneCache
from ripple.rubin.coadd import NoPsf, PsfCells
from ripple.rubin.repository import Dataset
from ripple.sky.geometry import Box

DATA = Path(__file__).parents[3] / "shared" / "data"
BOX = Box(100, 200, 200, 330)


class NoInputsError(Exception):
    """What a CoaddPsf raises where no input lies."""


class Psf:
    """A Gaussian as wide as x says, on 9 px to the left of x = 150, on 11 px elsewhere, none beyond 190."""

    def computeKernelImage(self, point: SimpleNamespace) -> SimpleNamespace:  # noqa: N802
        if point.x > 190:
            raise NoInputsError
        half = 4 if point.x < 150 else 5
        y, x = np.mgrid[-half : half + 1, -half : half + 1]
        kernel = np.exp(-0.5 * (x**2 + y**2) / (point.x / 100) ** 2)
        return SimpleNamespace(array=kernel / kernel.sum(), getX0=lambda: -half, getY0=lambda: -half)


def exposure(
    *, mean: float | None = 2.0, unit: str = "", psf: object = None, sip: bool = False
) -> SimpleNamespace:
    def masked(factor: float) -> SimpleNamespace:
        mask = SimpleNamespace(
            array=np.ones(BOX.shape, np.int32), getMaskPlaneDict=lambda: {"SAT": 0, "EDGE": 3}
        )
        image = np.arange(BOX.width * BOX.height, dtype=np.float32).reshape(BOX.shape) * np.float32(factor)
        variance = np.full(BOX.shape, 4 * factor**2, np.float32)
        return SimpleNamespace(
            image=SimpleNamespace(array=image), variance=SimpleNamespace(array=variance), mask=mask
        )

    kind = "-SIP" if sip else ""
    cards = {"CTYPE1": f"RA---TAN{kind}", "CTYPE2": f"DEC--TAN{kind}", "CRVAL1": 53.0, "CRVAL2": -28.0}
    cards |= {"CRPIX1": 151.0, "CRPIX2": 251.0, "CD1_1": -5.5e-5, "CD2_2": 5.5e-5, "A_ORDER": 0, "B_ORDER": 0}
    label = SimpleNamespace(hasBandLabel=lambda: True, bandLabel="r")
    calib = SimpleNamespace(getCalibrationMean=lambda: mean, calibrateImage=lambda planes: masked(mean))
    bounds = SimpleNamespace(
        getBeginX=lambda: BOX.x0, getBeginY=lambda: BOX.y0, getEndX=lambda: BOX.x1, getEndY=lambda: BOX.y1
    )
    return SimpleNamespace(
        getBBox=lambda: bounds, getPhotoCalib=lambda: None if mean is None else calib, getPsf=lambda: psf,
        getMetadata=lambda: SimpleNamespace(toDict=lambda: {"BUNIT": unit} if unit else {}),
        getMaskedImage=lambda: masked(1.0), getFilter=lambda: label,
        getWcs=lambda: SimpleNamespace(getFitsMetadata=lambda precise: SimpleNamespace(toDict=lambda: cards)),
    )  # fmt: skip


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> None:
    """`lsst.geom.Point2D`, where the stack is absent."""
    if not afw_active():
        geom = ModuleType("lsst.geom")
        geom.Point2D = lambda x, y: SimpleNamespace(x=x, y=y)
        monkeypatch.setitem(sys.modules, "lsst.geom", geom)


def made(**options: object):
    return from_exposure(exposure(**options), name="f", digest="00", no_psf=(NoInputsError,))


def test_exposure_becomes_a_coadd():
    coadd = made()
    assert coadd.box == BOX
    assert coadd.band == "r"
    inner = Box(110, 210, 115, 213)
    np.testing.assert_array_equal(coadd.image(inner)[0], 2 * (10 * BOX.width + np.arange(10, 15)))
    assert (coadd.variance() == 16).all()
    assert (coadd.mask(planes=("EDGE", "SAT")) == 2).all()
    np.testing.assert_allclose(coadd.projection.pixel_to_sky(150, 250), (53.0, -28.0))
    assert coadd.psf == NoPsf("the file has no PSF")


def test_unit_and_projection_are_checked():
    for options, reason in (
        ({"mean": None}, Reason.WRONG_UNIT),
        ({"mean": 57.5, "unit": "nJy"}, Reason.WRONG_UNIT),
        ({"sip": True}, Reason.WRONG_WCS),
    ):
        with pytest.raises(UnreadableError) as caught:
            made(**options)
        assert caught.value.reason == reason
    assert made(mean=1.0, unit="nJy").image()[0, 1] == 1


@pytest.mark.usefixtures("points")
def test_kernels_are_those_at_the_cutout_centres():
    coadd = made(psf=Psf())
    boxes = [Box.around(120.3, 220.0, 16), Box.around(170.0, 300.4, 16), Box.around(195.0, 250.0, 16)]
    psf = coadd.psf_near(boxes)
    assert isinstance(psf, PsfCells)
    middle = [(b.x0 + 8, b.y0 + 8) for b in boxes]
    cells = psf.index(*zip(*middle, strict=True))
    np.testing.assert_array_equal(cells, [[0, 0], [0, 1], [-1, -1]])
    assert psf.kernels.shape == (1, 3, 11, 11)
    first = psf.kernels[0, 0]
    assert (first[0] == 0).all()
    np.testing.assert_allclose(first.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(first[5, 6] / first[5, 5], np.exp(-0.5 / 1.2**2), rtol=1e-6)
    assert (psf.index([121], [220]) == -1).all()
    grid = coadd.psf
    assert isinstance(grid, PsfCells)
    assert grid.kernels.shape == (3, 2, 11, 11)
    np.testing.assert_array_equal(grid.index([101, 199, 200], [201, 329, 201]), [[0, 0], [2, 1], [0, 1]])


@pytest.mark.usefixtures("points")
def test_the_survey_asks_for_kernels_at_its_cutouts_too():
    files = CachedFiles("repo", PlaneCache(1 << 20))
    coadd = made(psf=Psf())
    boxes = [Box.around(120.3, 220.0, 16)]
    exact, cached = coadd.psf_near(boxes), files._cached(coadd, "uuid").psf_near(boxes)
    np.testing.assert_array_equal(cached.kernels, exact.kernels)
    assert cached.kernels.shape == (1, 1, 9, 9)


@pytest.mark.skipif(
    not afw_active(), reason="lsst.afw is not installed here: the path through the stack is not run"
)
@pytest.mark.skipif(not DATA.exists(), reason=f"no reference data in {DATA}")
def test_every_psf_of_the_truth_through_the_stack():
    from lsst.daf.butler import Butler

    repo = str(DATA / "afw_repo")
    butler = Butler.from_config(repo, collections="truth/all")
    with np.load(DATA / "afw_cutouts.npz") as npz:
        c = dict(npz)
    for i in np.flatnonzero(c["cut_status"] == "ok")[::7]:
        kind, patch, band = str(c["cut_dataset_type"][i]), int(c["cut_patch"][i]), str(c["cut_band"][i])
        ref = butler.find_dataset(kind, skymap="truth_rings_v1", tract=3828, patch=patch, band=band)
        dataset = Dataset(str(ref.id), ref.run, kind, "ExposureF", 3828, patch, band, "", -1)
        coadd = open_with_afw(dataset, repo=repo)
        box = Box(
            int(c["cut_x0"][i]), int(c["cut_y0"][i]), int(c["cut_x0"][i]) + 64, int(c["cut_y0"][i]) + 64
        )
        np.testing.assert_allclose(coadd.image(box)[32, 32], c["cut_photocalib_njy"][i], rtol=1e-6)
        psf = coadd.psf_near([box])
        assert isinstance(psf, PsfCells)
        h, w = int(c["cut_psf_h"][i]), int(c["cut_psf_w"][i])
        np.testing.assert_allclose(psf.kernels[0, 0], c["psf_kernel"][i, :h, :w], atol=1e-7)
