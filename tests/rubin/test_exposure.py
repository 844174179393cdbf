"""afw ExposureF files without afw, against what afw itself gave for them."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from ripple.errors import Reason, UnreadableError
from ripple.rubin.coadd import Coadd, NoPsf, PsfCells
from ripple.rubin.formats.afw_wcs import read_wcs
from ripple.rubin.formats.fits import Hdu, walk
from ripple.rubin.open import open_coadd
from ripple.sky.geometry import Box

DATA = Path(__file__).parents[3] / "shared" / "data"

needs_data = pytest.mark.skipif(not (DATA / "afw_truth.json").exists(), reason=f"no reference data in {DATA}")


@cache
def truth() -> dict:
    return json.loads((DATA / "afw_truth.json").read_text())


@cache
def cutouts() -> dict[str, np.ndarray]:
    with np.load(DATA / "afw_cutouts.npz") as npz:
        return dict(npz)


@cache
def dataset(dataset_type: str, patch: int, band: str) -> dict:
    (found,) = (
        d for d in truth()["datasets"]
        if (d["dataset_type"], d["patch"], d["band"]) == (dataset_type, patch, band)
    )  # fmt: skip
    return found


def raw(dataset_type: str = "deepCoadd_calexp", patch: int = 2813, band: str = "r") -> bytes:
    return (DATA / "afw_repo" / dataset(dataset_type, patch, band)["path"]).read_bytes()


@cache
def opened(dataset_type: str = "deepCoadd_calexp", patch: int = 2813, band: str = "r") -> Coadd:
    return open_coadd(raw(dataset_type, patch, band), name=f"{dataset_type} {patch} {band}")


@cache
def counts(dataset_type: str, patch: int, band: str) -> Coadd:
    """The same file, read as if its counts were nJy, so that pixels can be compared bit for bit."""
    data = raw(dataset_type, patch, band)
    start = data.index(b"BUNIT   ") if b"BUNIT   " in data[:40000] else -1
    if start >= 0:
        return opened(dataset_type, patch, band)
    card = b"INHERIT =                    T".ljust(80)
    assert data.count(card) >= 3
    data = data.replace(card, b"BUNIT   = 'nJy     '".ljust(80), 1)
    for key in (b"HIERARCH PHOTOCALIB_ID =", b"HIERARCH ARCHIVE_ID_PHOTOCALIB ="):
        data = data.replace(key, key.replace(b"PHOTOCALIB", b"PHOTOCALIX"), 1)
    return open_coadd(data, name="counts")


def rows() -> list[int]:
    return [int(i) for i in np.flatnonzero(cutouts()["cut_status"] != "missing")] if DATA.exists() else []


def key_of(i: int) -> tuple[str, int, str]:
    c = cutouts()
    return str(c["cut_dataset_type"][i]), int(c["cut_patch"][i]), str(c["cut_band"][i])


def place(i: int) -> tuple[Box, tuple[slice, slice]]:
    """Box of a row, clipped to the patch, and where it lies in the 64 x 64 frame."""
    c = cutouts()
    inside = np.unpackbits(c["inside"][i], axis=-1).astype(bool)
    y, x = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    x0, y0 = int(c["cut_x0"][i]), int(c["cut_y0"][i])
    box = Box(x0, y0, x0 + int(c["cut_width"][i]), y0 + int(c["cut_height"][i]))
    return box, (slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1))


@needs_data
def test_every_row_has_the_pixels_of_afw_bit_for_bit():
    c = cutouts()
    assert len(rows()) == 212
    for i in rows():
        box, frame = place(i)
        coadd = counts(*key_of(i))
        np.testing.assert_array_equal(coadd.image(box), c["image"][i][frame], err_msg=str(key_of(i)))
        np.testing.assert_array_equal(coadd.variance(box), c["variance"][i][frame])


@needs_data
def test_every_row_has_the_masks_of_afw_plane_by_plane():
    c, memory = cutouts(), truth()["mask_planes_in_memory"]
    for i in rows():
        box, frame = place(i)
        coadd = opened(*key_of(i))
        assert coadd.mask_planes == dict(sorted(dataset(*key_of(i))["mask_planes_in_file"].items()))
        for plane in coadd.mask_planes:
            ours = coadd.mask(box, planes=(plane,)) & 1
            np.testing.assert_array_equal(ours, (c["mask"][i][frame] >> memory[plane]) & 1, err_msg=plane)


@needs_data
def test_every_row_is_calibrated_as_by_afw():
    c = cutouts()
    for i in rows():
        box, frame = place(i)
        coadd = opened(*key_of(i))
        image = np.full((64, 64), np.nan)
        image[frame] = coadd.image(box)
        expected = c["cut_photocalib_njy"][i]
        np.testing.assert_allclose(image[32, 32], expected, rtol=1e-6, equal_nan=True)
        before = counts(*key_of(i))
        with np.errstate(invalid="ignore", divide="ignore"):
            factor = coadd.image(box) / before.image(box)
            factor2 = coadd.variance(box) / before.variance(box)
        np.testing.assert_allclose(np.nanmedian(factor2), np.nanmedian(factor) ** 2, rtol=2e-3)
        if bool(c["cut_calib_const"][i]):
            np.testing.assert_allclose(factor[np.isfinite(factor)], c["cut_calib_mean"][i], rtol=1e-6)
            np.testing.assert_allclose(factor2[np.isfinite(factor2)], c["cut_calib_mean"][i] ** 2, rtol=1e-6)


@needs_data
def test_sky_positions_agree_with_afw():
    c = cutouts()
    tan = opened().projection
    ra, dec = tan.pixel_to_sky(c["wcs_x"], c["wcs_y"])
    np.testing.assert_allclose(ra, c["wcs_ra_deg"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(dec, c["wcs_dec_deg"], rtol=0, atol=1e-9)
    x, y = tan.sky_to_pixel(c["wcs_ra_deg"], c["wcs_dec_deg"])
    np.testing.assert_allclose(x, c["wcs_x"], atol=1e-6)
    np.testing.assert_allclose(y, c["wcs_y"], atol=1e-6)


@needs_data
def test_psf_is_that_of_afw_or_named():
    c = cutouts()
    compared = 0
    for i in rows():
        psf = opened(*key_of(i)).psf
        if c["cut_psf_type"][i] == "CoaddPsf":
            assert psf == NoPsf("CoaddPsf needs lsst.afw")
            continue
        assert isinstance(psf, PsfCells)
        assert (psf.index([c["cut_psf_cx"][i]], [c["cut_psf_cy"][i]]) == 0).all()
        h, w = int(c["cut_psf_h"][i]), int(c["cut_psf_w"][i])
        assert psf.kernels.shape == (1, 1, h, w)
        assert (c["cut_psf_x0"][i], c["cut_psf_y0"][i]) == (-(w // 2), -(h // 2))
        np.testing.assert_array_max_ulp(psf.kernels[0, 0], c["psf_kernel"][i, :h, :w].astype(np.float32), 1)
        compared += 1
    assert compared == 45


@needs_data
@pytest.mark.parametrize(
    "key",
    [
        ("deepCoadd_calexp", 2812, "r"),
        ("deep_coadd_lossy16", 2813, "i"),
        ("deep_coadd_nocompress", 2735, "r"),
    ],
)
def test_whole_planes_are_those_of_astropy(key):
    coadd = counts(*key)
    with fits.open(io.BytesIO(raw(*key))) as hdus:
        np.testing.assert_array_equal(coadd.image(), hdus["IMAGE"].data)
        np.testing.assert_array_equal(coadd.variance(), hdus["VARIANCE"].data)
        np.testing.assert_array_equal(coadd.read_mask(coadd.box), hdus["MASK"].data)


@needs_data
def test_boxes_and_bands():
    for d in truth()["datasets"]:
        if d["dataset_type"] not in ("deepCoadd_calexp", "deep_coadd_lossy16", "deep_coadd_nocompress"):
            continue
        coadd = opened(d["dataset_type"], d["patch"], d["band"])
        x0, y0, x1, y1 = d["bbox_inclusive"]
        assert coadd.box == Box(x0, y0, x1 + 1, y1 + 1)
        assert coadd.band == d["band"]
        whole = counts(d["dataset_type"], d["patch"], d["band"]).image()
        assert np.isnan(whole).sum() == d["n_nan"]
        np.testing.assert_allclose(np.nansum(whole, dtype=np.float64), d["sum_image"], rtol=1e-9)


def edited(data: bytes, old: bytes, new: bytes, count: int = 1) -> bytes:
    """`data` with header cards replaced, 80 bytes by 80."""
    at = data.index(old)
    assert len(new) <= 80
    for _ in range(count):
        at = data.index(old)
        data = data[:at] + new.ljust(80) + data[at + 80 :]
    return data


def read_all(data: bytes, name: str) -> Coadd:
    coadd = open_coadd(data, name=name)
    assert coadd.image().dtype == coadd.variance().dtype == np.float32
    assert coadd.mask().dtype == np.uint32
    assert isinstance(coadd.psf, PsfCells | NoPsf)
    return coadd


def failure(data: bytes, name: str = "patch.fits") -> UnreadableError:
    """The error of reading everything in a file; it names the file and says what to do or what is wrong."""
    with pytest.raises(UnreadableError) as caught:
        read_all(data, name)
    assert name in str(caught.value)
    return caught.value


def uncompressed() -> bytes:
    return raw("deep_coadd_nocompress", 2735, "r")


def plane_bytes(data: bytes, kind: str) -> tuple[int, int]:
    """Where the pixels of a plain plane lie: 400 x 400 x 4 bytes."""
    (hdu,) = (h for h in walk(data, name="x") if h.extname == kind)
    assert hdu.size == 640000
    return hdu.data, hdu.size


@needs_data
@pytest.mark.parametrize(
    "data", [b"", b"SIMPLE", b"<!DOCTYPE html><html>Sign in</html>" * 100, bytes(5760), b"\x1f\x8b" * 4000]
)  # fmt: skip
def test_what_is_not_fits_is_refused(data):
    assert failure(data).reason == Reason.UNREADABLE_SOURCE


@needs_data
def test_truncated_files_are_refused():
    data = raw()
    for part in (100, 2880, 8000, len(data) // 3, len(data) // 2, len(data) - 3000):
        assert failure(data[:part]).reason == Reason.UNREADABLE_SOURCE


@needs_data
def test_wrong_units_are_refused():
    nano = raw(band="z")
    assert opened(band="z").image().dtype == np.float32
    for unit in (b"Jy", b"mag", b"nJy/arcsec2", b"electron/s"):
        assert failure(edited(nano, b"BUNIT   =", b"BUNIT   = '" + unit + b"'")).reason == Reason.WRONG_UNIT
    claimed = edited(raw(), b"INHERIT =", b"BUNIT   = 'nJy     '")
    assert failure(claimed).reason == Reason.WRONG_UNIT  # with 57.5 nJy per count in the archive
    lost = raw()
    for key in (b"HIERARCH PHOTOCALIB_ID =", b"HIERARCH ARCHIVE_ID_PHOTOCALIB ="):
        lost = edited(lost, key, b"COMMENT")
    assert failure(lost).reason == Reason.WRONG_UNIT


@needs_data
def test_zero_point_of_old_files_is_used_only_there():
    old = raw()
    for key in (b"HIERARCH PHOTOCALIB_ID =", b"HIERARCH ARCHIVE_ID_PHOTOCALIB ="):
        old = edited(old, key, b"COMMENT")
    old = edited(old, b"HIERARCH LSST BUTLER N_INPUTS", b"FLUXMAG0= %20.10E" % 10**10.8)  # zero point 27
    assert failure(old).reason == Reason.WRONG_UNIT  # version 2 does not keep it there
    older = open_coadd(edited(old, b"HIERARCH EXPINFO_V", b"COMMENT"), name="old")
    np.testing.assert_allclose(older.image(), opened().image(), rtol=1e-6)
    np.testing.assert_allclose(older.variance(), opened().variance(), rtol=1e-6)


@needs_data
def test_nan_and_negative_planes_are_refused_and_single_pixels_are_not():
    data = bytearray(uncompressed())

    def filled(kind: str, pixel: bytes) -> bytes:
        start, size = plane_bytes(bytes(data), kind)
        return bytes(data[:start]) + pixel * (size // 4) + bytes(data[start + size :])

    nan, minus_one = (np.array([v], ">f4") for v in (np.nan, -1))
    assert "no finite pixel" in str(failure(filled("IMAGE", nan.tobytes())))
    assert "no finite pixel" in str(failure(filled("VARIANCE", nan.tobytes())))
    assert "negative" in str(failure(filled("VARIANCE", minus_one.tobytes())))
    start = plane_bytes(bytes(data), "VARIANCE")[0]
    data[start : start + 4] = minus_one.tobytes()
    coadd = open_coadd(bytes(data), name="one")
    assert np.isnan(coadd.variance()[0, 0])
    clean = open_coadd(uncompressed(), name="clean").variance()
    np.testing.assert_array_equal(coadd.variance()[1:], clean[1:])


KINDS = {
    "varying calibration": ("deepCoadd_calexp", 2812, "r"),
    "constant calibration": ("deep_coadd", 2735, "g"),
    "lossy16": ("deep_coadd_lossy16", 2813, "i"),
    "not compressed": ("deep_coadd_nocompress", 2735, "r"),
    "one cutout": None,
}


def without_names(data: bytes, *, tables: bool, version: int) -> bytes:
    """A copy as old pipelines and HSC wrote it: planes, and with `tables` all HDUs, have EXTTYPE only."""
    out = io.BytesIO()
    with fits.open(io.BytesIO(data), disable_image_compression=True) as hdus:
        for hdu in hdus[1:] if tables else hdus[1:4]:
            hdu.header.remove("EXTNAME")
            if "ZIMAGE" in hdu.header and not tables:
                hdu.header["EXTNAME"] = "COMPRESSED_IMAGE"  # what CFITSIO puts there
        if version == 0:
            hdus[0].header.remove("EXPINFO_V")
        else:
            hdus[0].header["EXPINFO_V"] = version
        hdus.writeto(out)
    return out.getvalue()


@needs_data
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tables", "version"), [(False, 2), (True, 1), (True, 0)])
def test_files_without_extname_are_read_by_exttype(kind: str, tables: bool, version: int):
    key = KINDS[kind]
    data = raw(*key) if key else (DATA / "afw_cutout_example.fits").read_bytes()
    named, unnamed = (
        open_coadd(d, name=kind) for d in (data, without_names(data, tables=tables, version=version))
    )
    for plane in ("image", "variance", "mask"):
        np.testing.assert_array_equal(getattr(unnamed, plane)(), getattr(named, plane)())
    for what in ("box", "projection", "band", "mask_planes"):
        assert getattr(unnamed, what) == getattr(named, what)
    if isinstance(named.psf, NoPsf):
        assert unnamed.psf == named.psf
    else:
        np.testing.assert_array_equal(unnamed.psf.kernels, named.psf.kernels)


@needs_data
def test_two_extensions_of_one_kind_are_refused():
    data = uncompressed()
    both = edited(data, b"EXTNAME = 'VARIANCE'", b"EXTNAME = 'IMAGE   '")
    assert "2 extensions IMAGE" in str(failure(both))
    alone = edited(
        edited(both, b"EXTTYPE = 'IMAGE   '", b"EXTTYPE = 'SCI     '"), b"EXTNAME = 'IMAGE   '", b"COMMENT"
    )
    assert "called IMAGE and VARIANCE" in str(failure(alone))


@needs_data
def test_the_filter_card_of_old_files_gives_the_band():
    for card, band in (("HSC-I2", "i"), ("g.MP9401", "g"), ("NONE", None), ("_unknown_", None)):
        data = raw()
        for key in (b"HIERARCH FILTER_ID =", b"HIERARCH ARCHIVE_ID_FILTER =", b"FILTER_ID"):
            data = edited(data, key, b"COMMENT") if key in data[:20000] else data
        data = edited(data, b"HIERARCH LSST BUTLER DATAID BAND", f"FILTER  = '{card}'".encode())
        assert open_coadd(data, name="old").band == band


@needs_data
def test_other_projections_are_refused_with_their_reason():
    data = raw()
    for old, new in (
        (b"CTYPE1  = 'RA---TAN'", b"CTYPE1  = 'RA---TAN-SIP'"),
        (b"CTYPE1  = 'RA---TAN'", b"CTYPE1  = 'GLON-TAN'"),
        (b"RADESYS = 'ICRS    '", b"RADESYS = 'FK5     '"),
        (b"CD1_1   =", b"CD1_1   =                   0."),
        (b"CRVAL2  =", b"CRVAL2  =                 120."),
        (b"CRVAL1A =", b"CRVAL1A =              14740.5"),
        (b"LTV1    =", b"LTV1    =              -14741."),
    ):
        assert failure(edited(data, old, new)).reason == Reason.WRONG_WCS, new


@needs_data
def test_planes_must_cover_the_same_pixels():
    data = uncompressed()
    start = plane_bytes(data, "VARIANCE")[0] - 2880 * 2
    head, rest = data[:start], data[start:]
    for old, new in (
        (b"CRVAL1A =", b"CRVAL1A =               14381."),
        (b"LTV1    =", b"LTV1    =              -14381."),
    ):
        rest = edited(rest, old, new)
    assert "VARIANCE" in str(failure(head + rest))


@needs_data
def test_mask_without_distinct_bits_is_refused():
    assert "MASK" in str(failure(edited(raw(), b"MP_SAT  =", b"MP_SAT  =                    0")))
    assert "MASK" in str(failure(edited(raw(), b"MP_SAT  =", b"MP_SAT  =                   77")))


def test_sip_agrees_with_astropy():
    from astropy.wcs import WCS

    header = fits.Header({
        "NAXIS": 2, "NAXIS1": 4000, "NAXIS2": 4000, "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP",
        "CRVAL1": 53.0, "CRVAL2": -28.0, "CRPIX1": 2000.5, "CRPIX2": 1990.25,
        "CD1_1": -5.5e-5, "CD1_2": 1e-6, "CD2_1": 2e-6, "CD2_2": 5.6e-5,
        "A_ORDER": 3, "A_2_0": 1e-7, "A_1_1": -2e-7, "A_0_3": 3e-11,
        "B_ORDER": 2, "B_0_2": -1e-7, "B_1_1": 4e-8,
    })  # fmt: skip
    wcs = read_wcs(Hdu(dict(header), 0, 0, 0), name="sip")
    x, y = np.meshgrid(np.linspace(0, 3999, 9), np.linspace(0, 3999, 9))
    ra, dec = WCS(header).all_pix2world(x, y, 0)
    ours = wcs.pixel_to_sky(x, y)
    np.testing.assert_allclose(ours[0], ra, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours[1], dec, rtol=0, atol=1e-9)


def table(name: str, columns: dict[str, tuple[str, object]]) -> fits.BinTableHDU:
    made = [fits.Column(key, form, array=np.array(values)) for key, (form, values) in columns.items()]
    hdu = fits.BinTableHDU.from_columns(made, name=name)
    hdu.header["AR_NAME"] = name
    return hdu


def archive_file(tmp_path: Path, *, kind: str = "ProductBoundedField") -> bytes:
    """An ExposureF made by hand: calibration by a product of two polynomials, a DoubleGaussianPsf."""
    index = [
        (1, 1, 0, 0, 1, "PhotoCalib"), (2, 2, 0, 0, 2, kind), (3, 3, 0, 0, 1, "ChebyshevBoundedField"),
        (4, 3, 0, 1, 1, "ChebyshevBoundedField"), (5, 4, 0, 0, 1, "DoubleGaussianPsf"),
    ]  # fmt: skip
    names = ("id", "cat.archive", "cat.persistable", "row0", "nrows", "name")
    entries = {n: ("64A" if n == "name" else "J", [row[k] for row in index]) for k, n in enumerate(names)}
    box = {"bbox_min_x": 100, "bbox_min_y": 200, "bbox_max_x": 119, "bbox_max_y": 229}
    polynomials = {"order_x": ("J", [1, 1])} | {n: ("J", [v, v]) for n, v in box.items()}
    polynomials["coefficients"] = ("4D", [[1.0, 0.02, -0.01, 0.005], [50.0, 0.0, 1.0, 0.0]])
    calib = {"flags": ("1X", [[False]]), "calibrationMean": ("D", [50.0]), "field": ("J", [2])}
    gaussians = {"dimensions_x": ("J", [21]), "dimensions_y": ("J", [25])}
    gaussians |= {"sigma1": ("D", [1.6]), "sigma2": ("D", [3.2]), "b": ("D", [0.1])}
    primary = fits.PrimaryHDU()
    cards = {"AR_HDU": 5, "HIERARCH PHOTOCALIB_ID": 1, "PSF_ID": 5, "HIERARCH EXPINFO_V": 2}
    primary.header.update(cards)
    wcs = {
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 53.0, "CRVAL2": -28.0, "CRPIX1": 10.0,
        "CRPIX2": 1.0, "CD1_1": -5.5e-5, "CD2_2": 5.5e-5, "CRVAL1A": 100.0, "CRVAL2A": 200.0, "INHERIT": True,
    }  # fmt: skip
    planes = []
    for name, dtype in (("IMAGE", "f4"), ("MASK", "i4"), ("VARIANCE", "f4")):
        planes.append(fits.ImageHDU(np.full((30, 25), 4, dtype), name=name))  # wider than the calibration
        planes[-1].header.update(wcs)
    planes[1].header["MP_SAT"] = 2
    path = tmp_path / f"{kind}.fits"
    tables = [
        table("ARCHIVE_INDEX", entries), table("PhotoCalib", calib | {"version": ("J", [1])}),
        table(kind, {"id": ("J", [3, 4])}), table("ChebyshevBoundedField", polynomials),
        table("DoubleGaussianPsf", gaussians),
    ]  # fmt: skip
    fits.HDUList([primary, *planes, *tables]).writeto(path)
    return path.read_bytes()


def test_product_of_calibration_fields_and_double_gaussian(tmp_path):
    coadd = open_coadd(archive_file(tmp_path), name="product")
    assert coadd.box == Box(100, 200, 125, 230)
    y, x = np.mgrid[200:230, 100:120]
    u, v = (x - 109.5) / 10, (y - 214.5) / 15
    calib = (1 + 0.02 * u - 0.01 * v + 0.005 * u * v) * (50 + v)
    np.testing.assert_allclose(coadd.image()[:, :20], 4 * calib, rtol=1e-6)
    np.testing.assert_allclose(coadd.variance()[:, :20], 4 * calib**2, rtol=1e-6)
    assert np.isnan(coadd.image()[:, 20:]).all()  # no calibration there
    assert (coadd.mask(planes=("SAT",)) == 1).all()
    psf = coadd.psf
    assert isinstance(psf, PsfCells)
    kernel = psf.kernels[0, 0]
    assert kernel.shape == (25, 25)
    assert (kernel[:, :2] == 0).all()  # 21 px wide in the file
    np.testing.assert_allclose(kernel.sum(), 1, rtol=1e-6)
    ratio = (np.exp(-0.5 * 9 / 1.6**2) + 0.1 * np.exp(-0.5 * 9 / 3.2**2)) / 1.1
    np.testing.assert_allclose(kernel[12, 15] / kernel[12, 12], ratio, rtol=1e-6)


def test_calibration_that_needs_afw_is_named(tmp_path):
    error = failure(archive_file(tmp_path, kind="TransformBoundedField"))
    assert error.reason == Reason.WRONG_UNIT
    assert "TransformBoundedField" in str(error)


def mutant(data: bytes, seed: int) -> bytes:
    """Bytes flipped, blocks zeroed, repeated, swapped or cut off; half of the hits are in headers."""
    rng = np.random.default_rng(seed)
    out = bytearray(data)
    heads = walk(data, name="x")
    for _ in range(rng.integers(1, 6)):
        kind = rng.integers(0, 6)
        hdu = heads[rng.integers(0, len(heads))]
        at = int(rng.integers(hdu.start, hdu.data)) if rng.random() < 0.5 else int(rng.integers(0, len(out)))
        at = min(at, len(out) - 1)
        if kind <= 2:
            out[at] = int(rng.integers(0, 256))
        elif kind == 3:
            digits = rng.integers(48, 58, 4, dtype=np.uint8).tobytes()
            out[at : at + 4] = digits
        elif kind == 4:
            length = int(rng.integers(1, 3000))
            out[at : at + length] = bytes(len(out[at : at + length]))
        elif rng.random() < 0.3:
            del out[max(at, 1) :]
    return bytes(out)


@needs_data
@pytest.mark.parametrize("kind", ["deepCoadd_calexp", "deep_coadd_lossy16", "small"])
def test_damaged_files_give_one_kind_of_error(kind, tmp_path):
    data = archive_file(tmp_path) if kind == "small" else raw(kind)

    @settings(max_examples=200 if kind == "small" else 60, deadline=None, derandomize=True, database=None)
    @given(st.integers(0, 2**32))
    def check(seed: int) -> None:
        problem = None
        try:
            read_all(mutant(data, seed), "mutant.fits")
        except UnreadableError as error:
            problem = str(error)
        assert problem is None or "mutant.fits" in problem

    check()
