"""FITS stamps as their owners hold them: the right pixels in the right band, or refused by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

from ripple.cli import run
from ripple.errors import ConfigError, DataError
from ripple.stages.formats.config import ImportConfig
from ripple.stages.formats.import_cutouts import import_cutouts
from ripple.storage.artefact import Artefact, open_artefact, verify
from ripple.storage.shards import cutouts_of

SIZE = 16
SCALE = 0.2
EUCLID = ("VIS", "g", "r", "i", "z", "Y", "J", "H")
SPELLED = {
    "u": "u.MP9301", "g": "g.MP9401", "r": "HSC-R2", "i": "i_sim_1.4", "z": "DES_z", "y": "HSC-Y",
    "VIS": "VIS", "Y": "NIR_Y", "J": "NISP-J", "H": "NIR_H",
}  # fmt: skip


def ramp(value: float = 0.0, size: int = SIZE) -> np.ndarray:
    """Pixels that all differ, about a value that tells the band."""
    y, x = np.mgrid[:size, :size]
    return (value + 1e-3 * (x + size * y)).astype(np.float32)


def wcs_cards(
    kind: str = "RA---TAN,DEC--TAN", scale: float = SCALE, size: int = SIZE, **more: Any
) -> fits.Header:
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = kind.split(",")
    header["CRVAL1"], header["CRVAL2"] = 150.0, 2.0
    header["CRPIX1"] = header["CRPIX2"] = size // 2 + 1.0
    header["CD1_1"], header["CD2_2"] = -scale / 3600, scale / 3600
    header.update(more)
    return header


def plane(data: np.ndarray, name: str = "", **cards: Any) -> fits.ImageHDU:
    hdu = fits.ImageHDU(data, wcs_cards(size=data.shape[-1]), name=name or None)
    hdu.header.update({"BUNIT": "nJy"} | cards)
    return hdu


def write(path: Path, hdus: Sequence[Any], **primary: Any) -> Path:
    first = fits.PrimaryHDU()
    first.header.update(primary)
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList([first, *hdus]).writeto(path)
    return path


def imported(source: Path, **options: Any) -> Artefact:
    output = options.pop("output", source.parent / f"{source.name}-out")
    config = {"source": source, "output": output, "format": "fits", **options}
    import_cutouts(ImportConfig.make(config))
    assert verify(output) == []
    return open_artefact(output)


def rejected(artefact: Artefact) -> list[str]:
    index = artefact.index()
    pairs = zip(index["status"].to_pylist(), index["detail"].to_pylist(), strict=True)
    return [detail for status, detail in pairs if status == "rejected"]


# Bands and roles -----------------------------------------------------

ROLES = {
    "sci/var": ("SCI", "VAR", "MASK", lambda v: v),
    "image/variance": ("IMAGE", "VARIANCE", "MASK", lambda v: v),
    "image/invvar": ("image", "invvar", "dqmask", lambda v: 1 / v),
    "rms": ("SCI", "RMS", "FLAGS", np.sqrt),
    "weight": ("SCI", "WHT", "DQ", lambda v: 1 / v),
}
PLACES = ("EXTNAME", "EXTTYPE", "FILTER", "primary", "file name")
CASES = [
    (place, role, bands, order)
    for place, role, bands, order in itertools.product(
        PLACES, ROLES, (("g",), ("i", "r", "g"), EUCLID), ("forward", "backward", "mixed")
    )
    # EXTTYPE has the words of afw only; the primary header says one band.
    if not (place == "EXTTYPE" and role != "image/variance") and not (place == "primary" and len(bands) > 1)
]


def matrix_files(folder: Path, place: str, role: str, bands: Sequence[str], order: str) -> None:
    """One row in the given way of saying what is what; band k is about k + 1, with variance (k + 1)**2."""
    image, noise, mask, of_variance = ROLES[role]
    hdus: list[tuple[str, str, fits.ImageHDU]] = []
    for k, band in enumerate(bands):
        flagged = np.zeros((SIZE, SIZE), np.int32)
        flagged[k, 0] = 1
        variance = np.full((SIZE, SIZE), (k + 1.0) ** 2)
        for word, data in ((image, ramp(k + 1)), (noise, of_variance(variance)), (mask, flagged)):
            upper = band.upper() if len(band) == 1 and band in "ugrizy" else band
            name = {"EXTNAME": f"{upper}_{word}", "EXTTYPE": ""}.get(
                place, "" if place == "file name" else word
            )
            cards: dict[str, Any] = {"BUNIT": ""}
            if place == "EXTTYPE":
                cards["EXTTYPE"] = word
            if place in ("FILTER", "EXTTYPE"):
                cards["FILTER"] = SPELLED[band]
            hdus.append((band, word, plane(data, name, **cards)))
    if order != "forward":
        hdus = hdus[::-1] if order == "backward" else [*hdus[1::2], *hdus[0::2]]
    if place == "file name":
        for band, word, hdu in hdus:
            write(folder / f"obj-{word}-{band}.fits", [hdu], BUNIT="nJy")
    else:
        primary = {"FILTER": SPELLED[bands[0]]} if place == "primary" else {}
        write(folder / "obj.fits", [hdu for *_, hdu in hdus], BUNIT="nJy", **primary)


@pytest.mark.parametrize(("place", "role", "bands", "order"), CASES)
def test_every_way_to_say_a_band(
    place: str, role: str, bands: tuple[str, ...], order: str, tmp_path: Path
) -> None:
    matrix_files(tmp_path / "in", place, role, bands, order)
    asked = {"forward": bands, "backward": bands[::-1], "mixed": (*bands[1::2], *bands[0::2])}[order]
    for named in (asked, ()):
        batch = cutouts_of(imported(tmp_path / "in", bands=named), 0)
        assert set(batch.bands) == set(bands)
        assert not named or batch.bands == asked
        for j, band in enumerate(batch.bands):
            k = bands.index(band)
            np.testing.assert_array_equal(batch.image[0, j], ramp(k + 1), err_msg=band)
            np.testing.assert_allclose(batch.variance[0, j], (k + 1.0) ** 2, rtol=1e-6, err_msg=band)
            assert np.argwhere(batch.mask[0, j]).tolist() == [[k, 0]]
        for path in (tmp_path / "in-out").iterdir():
            path.unlink()


def test_two_places_that_differ_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.fits", [plane(ramp(), "G_SCI", FILTER="r.MP9601"), plane(ramp(), "I_SCI")])
    write(tmp_path / "in" / "b.fits", [plane(ramp(), "SCI_G", EXTTYPE="VARIANCE"), plane(ramp(), "SCI_I")])
    write(tmp_path / "in" / "c.fits", [plane(ramp(), "SCI_G"), plane(ramp(), "SCI_I")])
    found = imported(tmp_path / "in", bands=("g", "i"))
    said = rejected(found)
    assert "a.fits, HDU 1 (G_SCI): EXTNAME says G and FILTER says r.MP9601" in said[0]
    assert "b.fits, HDU 1 (SCI_G): its name says image, the card EXTTYPE says variance" in said[1]
    assert found.index()["status"].to_pylist()[2] == "ok"
    # Left out on request, the card says nothing any more.
    found = imported(
        write(tmp_path / "d" / "a.fits", [plane(ramp(), "G_SCI", FILTER="r")]), ignore_cards=("FILTER",)
    )
    assert found.bands == ("g",)


def test_the_same_filter_by_two_names(tmp_path: Path) -> None:
    psf = np.outer(*[np.exp(-0.5 * (np.arange(11) - 5.0) ** 2)] * 2)
    hdus = [plane(ramp(1), "SCI", FILTER="DECAM_g"), plane(psf, "PSF", FILTER="DES_G")]
    batch = cutouts_of(imported(write(tmp_path / "in" / "a.fits", hdus), bands=("g",)), 0)
    np.testing.assert_allclose(batch.psf[batch.psf_index[0, 0]], psf / psf.sum(), rtol=1e-5)


@pytest.mark.parametrize("names", [("o_g", "o-g", "o_G"), ("o_g_sci", "o-g")])
def test_files_of_one_band_are_never_chosen_from(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in (*names, "p_g"):
        write(tmp_path / "in" / f"{name}.fits", [plane(ramp())])
    found = imported(tmp_path / "in")
    assert "two pictures are the image of g" in rejected(found)[0]
    assert found.index()["id"].to_pylist() == ["o", "p"]


def test_unnamed_pictures_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.fits", [plane(ramp(k)) for k in range(3)])
    with pytest.raises(DataError, match="does not say which of the bands g, r, i it is"):
        imported(tmp_path / "in", bands=("g", "r", "i"))
    write(tmp_path / "two" / "a.fits", [plane(ramp(k)) for k in range(2)])
    with pytest.raises(DataError, match="two pictures are the image of g"):
        imported(tmp_path / "two", bands=("g",))


@pytest.mark.parametrize("text", ["grz", "g,r,z", "g r z"])
def test_cubes_say_their_bands(tmp_path: Path, text: str) -> None:
    cube = np.stack([ramp(k + 1) for k in range(3)])
    write(tmp_path / "in" / "a.fits", [plane(cube)], BANDS=text)
    found = cutouts_of(imported(tmp_path / "in", bands=("z", "g")), 0)
    np.testing.assert_array_equal(found.image[0], cube[[2, 0]])


def test_a_band_in_no_row_is_an_error_and_in_some_rows_partial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in" / "a.fits", [plane(ramp(), "SCI", FILTER="NIR_Y"), plane(ramp(), "VIS")])
    write(tmp_path / "in" / "b.fits", [plane(ramp(), "VIS")])
    with pytest.raises(DataError, match="no row has a picture in u"):
        imported(tmp_path / "in", bands=("VIS", "Y", "u"))
    argv = ["import", str(tmp_path / "in"), "--format", "fits", "--bands", "VIS,Y"]
    assert run([*argv, "-o", str(tmp_path / "in-out")]) == 0  # the failed output can be written again
    assert open_artefact(tmp_path / "in-out").index()["status"].to_pylist() == ["ok", "partial"]
    assert "1 rows lack a band" in capsys.readouterr().err


# Cards and units -----------------------------------------------------

AB = 3630.7805


@pytest.mark.parametrize(
    ("cards", "factor"),
    [
        ({"BUNIT": "MJy"}, 1e15), ({"BUNIT": "mJy"}, 1e6), ({"BUNIT": "uJy"}, 1e3), ({"BUNIT": "Jy"}, 1e9),
        ({"BUNIT": "nanomaggy"}, AB), ({"BUNIT": "nanomaggies", "MAGZERO": 22.5}, AB),
        ({"BUNIT": "adu", "FLUXMAG0": 63095734448.0194}, 10 ** (0.4 * (31.4 - 27))),
        ({"BUNIT": "adu", "MAGZP": 27.0}, 10 ** (0.4 * (31.4 - 27))),
        ({"BUNIT": "electron/s", "ZEROPOINT": 25.0}, 10 ** (0.4 * 6.4)),
        ({"BUNIT": "counts", "PHOTZP": 30.0}, 10 ** (0.4 * 1.4)),
        ({"BUNIT": "", "MAGZERO": 31.4}, 1.0), ({"BUNIT": "MJy/sr"}, 1e15 * (SCALE / 206264.806) ** 2),
        ({"BUNIT": "10**-29 erg s-1 cm-2 Hz-1"}, 1e3),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["primary", "extension"])
def test_units(tmp_path: Path, cards: dict[str, Any], factor: float, where: str) -> None:
    image, noise = plane(ramp(1), "SCI", FILTER="g"), plane(np.full((SIZE, SIZE), 4.0), "VAR", FILTER="g")
    for hdu in (image, noise):
        del hdu.header["BUNIT"]
        hdu.header.update(cards if where == "extension" and hdu is image else {})
    path = write(tmp_path / "in" / "a.fits", [noise, image], **(cards if where == "primary" else {}))
    batch = cutouts_of(imported(path), 0)
    np.testing.assert_allclose(batch.image[0, 0], ramp(1) * factor, rtol=2e-6)
    np.testing.assert_allclose(batch.variance[0, 0], 4.0 * factor**2, rtol=2e-6)


def test_rows_of_different_units_are_each_converted(tmp_path: Path) -> None:
    for name, cards in {
        "a": {"BUNIT": "uJy"}, "b": {"BUNIT": "nJy"}, "c": {"BUNIT": "adu"},
        "d": {"BUNIT": "adu", "MAGZERO": 27.0}, "e": {"BUNIT": "furlong"},
        "f": {"BUNIT": "nJy", "MAGZERO": 27.0},
        "g": {"BUNIT": "adu", "MAGZERO": 999.0}, "h": {"BUNIT": "nJy", "BSOFTEN": 2.5},
    }.items():  # fmt: skip
        write(tmp_path / "in" / f"{name}.fits", [plane(ramp(1), "SCI", FILTER="g", **cards)])
    found = imported(tmp_path / "in")
    assert found.index()["reason"].to_pylist() == ["", "", "wrong_unit", "", *["wrong_unit"] * 4]
    details = rejected(found)
    assert details[0] == "g do not say their flux unit"
    assert "BUNIT is 'furlong'" in details[1] or "furlong" in details[1]
    assert "BUNIT nJy means 1 nJy, MAGZERO 27 means 57.5" in details[2]
    assert "no AB zero point" in details[3]
    image = cutouts_of(found, 0).image[:, 0, 0, 0]
    np.testing.assert_allclose(image, [1000, 1, 10 ** (0.4 * 4.4)], rtol=1e-6)
    # What the user says fills the gap, and contradicts nobody silently.
    found = imported(tmp_path / "in", zero_points=(27.0,), output=tmp_path / "again")
    assert found.index()["status"].to_pylist() == ["rejected", "rejected", "ok", "ok", *["rejected"] * 4]


# Projections ---------------------------------------------------------


def sky_of(header: fits.Header, x: float, y: float) -> SkyCoord:
    return WCS(header).pixel_to_world(x, y).icrs


@pytest.mark.parametrize(
    "header",
    [
        wcs_cards("GLON-TAN,GLAT-TAN"), wcs_cards(EQUINOX=1950.0), wcs_cards(RADECSYS="FK4"),
        wcs_cards(RADESYS="FK5", EQUINOX=1975.0), wcs_cards(EPOCH=1950.0), wcs_cards(LONPOLE=150.0),
        wcs_cards("RA---SIN,DEC--SIN"), wcs_cards("RA---ZEA,DEC--ZEA", CRPIX1=9000.0),
        wcs_cards("DEC--TAN,RA---TAN", CRVAL1=2.0, CRVAL2=150.0),
        wcs_cards("RA---TPV,DEC--TPV", PV1_1=1.0, PV1_7=30.0, PV2_1=1.0, PV2_7=30.0, CRPIX1=400.0),
        wcs_cards("RA---TAN-SIP,DEC--TAN-SIP", A_ORDER=2, B_ORDER=2, A_2_0=2e-4, B_0_2=-1e-4),
    ],
)  # fmt: skip
def test_positions_of_any_projection(tmp_path: Path, header: fits.Header) -> None:
    hdu = fits.ImageHDU(ramp(1), header, name="SCI_G")
    hdu.header["BUNIT"] = "nJy"
    found = imported(write(tmp_path / "in" / "a.fits", [hdu]))
    batch = cutouts_of(found, 0)
    truth = sky_of(header, SIZE // 2, SIZE // 2)
    here = SkyCoord(batch.catalog["ra"][0], batch.catalog["dec"][0], unit="deg")
    assert truth.separation(here).arcsec < 0.01 * SCALE
    tan = batch.wcs[int(batch.catalog["tract"][0])]
    x0, y0 = int(batch.catalog["x0"][0]), int(batch.catalog["y0"][0])
    for x, y in ((0, 0), (15, 3), (7, 15)):  # the projection of the shard holds all over the cutout
        ra, dec = (float(v) for v in tan.pixel_to_sky(x + x0, y + y0))
        if not found.index()["detail"].to_pylist()[0]:
            assert sky_of(header, x, y).separation(SkyCoord(ra, dec, unit="deg")).arcsec < 0.011 * SCALE


def test_a_distorted_cutout_is_resampled_and_says_so(tmp_path: Path) -> None:
    header = wcs_cards("RA---TAN-SIP,DEC--TAN-SIP", size=48, A_ORDER=2, B_ORDER=2, A_2_0=1e-3, B_0_2=5e-4)
    wcs = WCS(header)
    y, x = np.mgrid[:48, :48].astype(float)
    sky = wcs.pixel_to_world(x, y)
    place = SkyCoord(150.0002, 2.0003, unit="deg")
    east, north = (np.gradient(v) for v in (sky.ra.deg, sky.dec.deg))
    area = np.abs(east[1] * north[0] - east[0] * north[1]) * (3600 / SCALE) ** 2  # of each pixel
    light = area * np.exp(-0.5 * (sky.separation(place).arcsec / 0.6) ** 2)
    hdu = fits.ImageHDU((light + 1e-6 * ramp(0, 48)).astype(np.float32), header, name="SCI_G")
    hdu.header["BUNIT"] = "nJy"
    path = write(tmp_path / "in" / "a.fits", [hdu])
    found = imported(path)
    batch, index = cutouts_of(found, 0), found.index()
    assert "resampled onto a gnomonic projection: TAN-SIP ICRS is" in index["detail"].to_pylist()[0]
    assert index["resampled"].to_pylist() == [1.0]
    tan = batch.wcs[int(batch.catalog["tract"][0])]
    px, py = (float(v) for v in tan.sky_to_pixel(150.0002, 2.0003))
    good = np.nan_to_num(batch.image[0, 0])
    yy, xx = np.mgrid[:48, :48]
    assert (good * xx).sum() / good.sum() == pytest.approx(px - batch.catalog["x0"][0], abs=0.005)
    assert (good * yy).sum() / good.sum() == pytest.approx(py - batch.catalog["y0"][0], abs=0.005)
    with pytest.raises(DataError, match="it would have to be resampled onto a gnomonic projection"):
        imported(path, resample=False, output=tmp_path / "no")


def test_placeholders_are_no_positions(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for k in range(4):
        hdu = plane(rng.normal(size=(SIZE, SIZE)).astype(np.float32), "SCI_G", CRVAL1=0.0, CRVAL2=0.0)
        write(tmp_path / "in" / f"{k}.fits", [hdu])
    index = imported(tmp_path / "in", pixel_scale=0.2).index()
    assert index["status"].to_pylist() == ["ok"] * 4
    assert np.isnan(index["ra"].to_numpy()).all()


# One grid, one scale -------------------------------------------------


def blob(size: int, x: float, y: float, sigma: float, flux: float = 100.0) -> np.ndarray:
    yy, xx = np.mgrid[:size, :size]
    r2 = (xx - x) ** 2 + (yy - y) ** 2
    return (flux * np.exp(-0.5 * r2 / sigma**2) / (2 * np.pi * sigma**2) + 1e-6 * ramp(0, size)).astype(
        np.float32
    )


def test_bands_on_other_grids_are_refused_or_aligned(tmp_path: Path) -> None:
    psf = np.outer(*[np.exp(-0.5 * ((np.arange(21) - 10.0) / 1.5) ** 2)] * 2)
    hdus = [
        plane(blob(64, 32, 32, 4.0), "SCI_G"), plane(blob(64, 42, 32, 4.0), "SCI_R", CRPIX1=43.0),
        plane(blob(40, 20, 20, 2.0), "SCI_I", CD1_1=-2 * SCALE / 3600, CD2_2=2 * SCALE / 3600),
        plane(psf, "PSF_I"), plane(np.full((40, 40), 1.0), "VAR_I"),
    ]  # fmt: skip
    path = write(tmp_path / "in" / "a.fits", hdus)
    with pytest.raises(DataError, match="r lies on another pixel grid than g: they are 10 px apart; --align"):
        imported(path, bands=("g", "r", "i"))
    found = imported(path, bands=("g", "r", "i"), align=True)
    batch = cutouts_of(found, 0)
    for k in range(3):
        image = np.nan_to_num(batch.image[0, k])
        yy, xx = np.mgrid[:64, :64]
        assert image.sum() == pytest.approx(100, rel=2e-3)
        assert [(image * v).sum() / image.sum() for v in (xx, yy)] == pytest.approx([32, 32], abs=0.02)
    assert "r was resampled onto the grid of g, 10 px away" in found.index()["detail"].to_pylist()[0]
    kernel = batch.psf[batch.psf_index[0, 2]].astype(float)  # twice as wide in smaller pixels
    axis = np.arange(len(kernel)) - len(kernel) // 2
    assert np.sqrt((kernel.sum(axis=0) * axis**2).sum()) == pytest.approx(3.0, rel=0.02)
    # A pixel of a quarter of the area has a quarter of the flux; interpolation leaves less noise.
    assert 0.2 / 16 < np.nanmedian(batch.variance[0, 2]) < 1 / 16


def test_rows_of_another_scale(tmp_path: Path) -> None:
    for name, scale in (("a", 0.2), ("b", 0.2), ("c", 0.168)):
        hdu = plane(blob(63, 31, 31, 1.2 / scale), "SCI_G", CD1_1=-scale / 3600, CD2_2=scale / 3600)
        write(tmp_path / "in" / f"{name}.fits", [hdu])
    found = imported(tmp_path / "in")
    assert rejected(found) == ["its pixels are 0.168 arcsec, not 0.2; --align resamples it"]
    for scale in (0.2, 0.25):
        output = tmp_path / f"aligned-{scale}"
        found = imported(tmp_path / "in", align=True, pixel_scale=scale, size=48, output=output)
        batch = cutouts_of(open_artefact(output), 0)
        assert batch.pixel_scale == scale
        assert {round(tan.pixel_scale, 6) for tan in batch.wcs.values()} == {scale}
        for image in batch.image[:, 0]:
            r2 = sum((v - 24.0) ** 2 for v in np.mgrid[:48, :48])
            flux = np.nansum(image)
            assert flux == pytest.approx(100, rel=5e-3)
            assert np.sqrt(np.nansum(image * r2) / flux / 2) == pytest.approx(1.2 / scale, rel=0.03)


# PSFs, masks, fill values --------------------------------------------


def gaussian(h: int, w: int, y: float, x: float, sigma: float = 1.8) -> np.ndarray:
    yy, xx = np.mgrid[:h, :w]
    return np.exp(-0.5 * ((yy - y) ** 2 + (xx - x) ** 2) / sigma**2)


def test_psfs_of_any_size(tmp_path: Path) -> None:
    shapes = {
        "a": (25, 25, 12, 12), "b": (29, 29, 14, 14), "c": (41, 43, 20, 21), "d": (42, 42, 21, 21),
        "e": (42, 42, 20.5, 20.5), "f": (26, 31, 12, 15), "g": (41, 41, 3, 30),
    }  # fmt: skip
    for name, (h, w, y, x) in shapes.items():
        psf = plane(gaussian(h, w, y, x), "PSF_G")
        write(tmp_path / "in" / f"{name}.fits", [psf, plane(ramp(1), "SCI_G")])
    found = imported(tmp_path / "in")
    batch, index = cutouts_of(found, 0), found.index()
    side = batch.psf.shape[-1]
    assert side == 43
    truth = gaussian(side, side, side // 2, side // 2)
    for k in range(6):
        kernel = batch.psf[batch.psf_index[k, 0]]
        np.testing.assert_allclose(kernel, truth / truth.sum(), atol=2e-7)
    assert batch.psf_index[6, 0] == -1
    assert (
        index["detail"].to_pylist()[6].startswith("the PSF of g is not used: its light is centred on pixel")
    )
    assert index["has_psf"].to_pylist() == [True] * 6 + [False]


def test_mask_bits_are_named_or_refused(tmp_path: Path) -> None:
    mask = np.zeros((SIZE, SIZE), np.int32)
    mask[0, 0], mask[1, 1], mask[2, 2] = 1, 32, 2**9
    path = write(tmp_path / "in" / "a.fits", [plane(ramp(1), "SCI_G"), plane(mask, "MASK_G")])
    with pytest.raises(DataError, match=r"nobody says what the bits 0, 5, 9 of the mask mean; .*--mask-bits"):
        imported(path)
    batch = cutouts_of(imported(path, mask_bits=("BAD=0", "DETECTED=5")), 0)
    assert np.argwhere(batch.mask[0, 0] & batch.bits("BAD")).tolist() == [[0, 0]]
    assert np.argwhere(batch.mask[0, 0] & batch.bits("DETECTED")).tolist() == [[1, 1]]
    with pytest.raises(ConfigError, match="no mask plane 'BADD'"):
        imported(path, mask_bits=("BADD=0",))
    # Of arrays, too.
    np.savez(tmp_path / "a.npz", image=ramp(1)[None, None], mask=mask[None, None])
    common = {"format": "arrays", "bands": ("g",), "pixel_scale": 0.2, "unit": "nJy"}
    with pytest.raises(DataError, match="bits 0, 5, 9"):
        imported(tmp_path / "a.npz", **common)
    batch = cutouts_of(imported(tmp_path / "a.npz", mask_bits=("SAT=9",), **common), 0)
    assert np.argwhere(batch.mask[0, 0]).tolist() == [[2, 2]]


def filled(kind: str) -> Callable[[np.ndarray], np.ndarray]:
    def put(image: np.ndarray) -> np.ndarray:
        out = image.copy()
        match kind:
            case "constant":
                out[:] = 100
            case "huge":
                out[4:9, 4:9] = 1e16
            case "-999":
                out[0, :] = -999
            case "frame":
                out[:, :3] = 0
                out[-2:] = 0
        return out

    return put


@pytest.mark.parametrize("kind", ["constant", "huge", "-999", "frame", "none"])
def test_fill_values_are_no_data(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(5)
    sky = rng.normal(0, 10, (2, SIZE, SIZE)).astype(np.float32)
    spoiled = filled(kind)(sky[0])
    path = write(tmp_path / "in" / "a.fits", [plane(spoiled, "SCI_G"), plane(sky[1], "SCI_R")])
    if kind == "constant":
        with pytest.raises(DataError, match="no row has a picture in g"):
            imported(path)
        return
    found = imported(path)
    batch = cutouts_of(found, 0)
    np.testing.assert_array_equal(np.isnan(batch.image[0, 0]), spoiled != sky[0])
    np.testing.assert_array_equal(batch.mask[0, 0] & batch.bits("NO_DATA") != 0, spoiled != sky[0])
    np.testing.assert_array_equal(batch.image[0, 1], sky[1])
    assert ("was taken for no data" in found.index()["detail"].to_pylist()[0]) == (kind != "none")


def test_true_zeros_and_counts_stay(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    counts = rng.poisson(3.0, (SIZE, SIZE)).astype(np.float32)
    noiseless = np.maximum(gaussian(SIZE, SIZE, 8, 8).astype(np.float32) - 0.01, 0)
    for name, image in (("counts", counts), ("noiseless", noiseless)):
        batch = cutouts_of(imported(write(tmp_path / name / "a.fits", [plane(image, "SCI_G")])), 0)
        np.testing.assert_array_equal(batch.image[0, 0], image)


# What is said --------------------------------------------------------


def test_dry_run_says_what_each_picture_was_taken_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hdus = [
        plane(ramp(1), "SCI", EXTTYPE="IMAGE"), plane(np.full((SIZE, SIZE), 2.0), "RMS", BUNIT="nanomaggy"),
        plane(np.zeros((SIZE, SIZE), np.int32), "MASK", MP_BAD=0), plane(gaussian(21, 23, 10, 11), "PSF"),
        plane(ramp(3), "MODEL"),
    ]  # fmt: skip
    hdus[0].header["BUNIT"] = "nanomaggy"
    write(tmp_path / "in" / "a.fits", hdus, FILTER="g.MP9401", MAGZERO=22.5)
    write(tmp_path / "in" / "b.fits", [plane(ramp(1), "SCI", FILTER="g", BUNIT="furlong")])
    argv = [
        "import",
        str(tmp_path / "in"),
        "--format",
        "fits",
        "-o",
        str(tmp_path / "out"),
        "--dry-run",
        "--json",
    ]
    assert run(argv) == 0
    assert not (tmp_path / "out").exists()
    text = capsys.readouterr().out
    for part in (
        "image of g: BUNIT nmgy: x 3630.78 to nJy; 0.2 arcsec, TAN ICRS", "rms of g: noise of the image",
        "mask of g: bits named by MP_ cards", "psf of g: 23 x 21 px", "a.fits, HDU 5 (MODEL)",
        "not used of g", "wrong_unit",
    ):  # fmt: skip
        assert part in text, part


def test_nothing_is_said_of_astropy(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Old cards make astropy warn; the user has not written the file."""
    header = wcs_cards(RADECSYS="FK5", EQUINOX=2000.0)
    header["DATE-OBS"] = "31/12/98"
    hdu = fits.ImageHDU(ramp(1), header, name="SCI_G")
    hdu.header["BUNIT"] = "nJy"
    imported(write(tmp_path / "in" / "a.fits", [hdu]))
    assert not [w for w in recwarn if "FITS" in str(w.message)]
    assert u.nJy  # the units that the test speaks of
