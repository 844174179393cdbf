"""CellCoadd files: what we read is what `lsst.images` reads, and damage is one clear error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cellfiles import CELL, CELLS, KERNEL, MISSING, X0, Y0, write_cell_coadd
from hypothesis import given, settings
from hypothesis import strategies as st

from ripple.errors import DataError, Reason, UnreadableError
from ripple.imaging.batch import MASK_PLANES
from ripple.rubin.coadd import Coadd, NoPsf, PsfCells, canonical_planes, renumber
from ripple.rubin.formats.fits import walk
from ripple.rubin.open import open_coadd, open_coadd_sparse
from ripple.sky.geometry import Box

SHARED = Path(__file__).parents[3] / "shared" / "data"
TRUTH = ["deep_coadd_cell_r", "deep_coadd_cell_i", "deep_coadd_cell_lossy16_r", "deep_coadd_cell_lossy16_i"]
SIZE = CELLS * CELL
WHOLE = Box(X0, Y0, X0 + SIZE, Y0 + SIZE)


def same_bits(a: np.ndarray, b: np.ndarray) -> None:
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(
        np.ascontiguousarray(a).view(np.uint32), np.ascontiguousarray(b).view(np.uint32)
    )


def sparse(data: bytes) -> Coadd:
    return open_coadd_sparse(lambda at, n: data[at : at + n], name="file.fits", size=len(data))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, Any]]:
    """Name -> bytes of a file and the object that `lsst.images` reads from it."""
    from lsst.images.cells import CellCoadd
    from lsst.images.serialization import read_archive

    found = {}
    for name, lossy in (("lossless", False), ("lossy", True)):
        path = tmp_path_factory.mktemp("cells") / f"{name}.fits"
        write_cell_coadd(path, lossy=lossy)
        found[name] = (path.read_bytes(), read_archive(path, CellCoadd))
    return found


@pytest.mark.parametrize("name", ["lossless", "lossy"])
@pytest.mark.parametrize("opened", [lambda data: open_coadd(data, name="file.fits"), sparse])
def test_planes_are_those_of_lsst_images(files: dict[str, tuple[bytes, Any]], name: str, opened: Any) -> None:
    data, theirs = files[name]
    ours = opened(data)
    assert ours.box == WHOLE
    assert ours.band == "r"
    same_bits(ours.image(), theirs.image.array)
    same_bits(ours.variance(), theirs.variance.array)
    expected = np.zeros((SIZE, SIZE), np.uint32)
    for plane in theirs.mask.schema.names:
        expected |= theirs.mask.get(plane).astype(np.uint32) << MASK_PLANES.index(plane)
    np.testing.assert_array_equal(ours.mask(), expected)
    assert ours.notes == ()


@pytest.mark.parametrize("name", ["lossless", "lossy"])
@settings(max_examples=25, deadline=None)
@given(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1), st.integers(1, 80), st.integers(1, 80))
def test_any_box_is_the_slice_of_the_plane(
    files: dict[str, tuple[bytes, Any]], name: str, x: int, y: int, width: int, height: int
) -> None:
    data, theirs = files[name]
    box = Box(X0 + x, Y0 + y, X0 + x + width, Y0 + y + height) & WHOLE
    for ours in (open_coadd(data, name="file.fits"), sparse(data)):
        same_bits(ours.image(box), theirs.image.array[WHOLE.slices(box)])
        same_bits(ours.variance(box), theirs.variance.array[WHOLE.slices(box)])
        np.testing.assert_array_equal(ours.mask(box), ours.mask()[WHOLE.slices(box)])


def test_missing_cell_is_zero_infinite_and_without_psf(files: dict[str, tuple[bytes, Any]]) -> None:
    ours = open_coadd(files["lossless"][0], name="file.fits")
    i, j = MISSING
    hole = Box(X0 + j * CELL, Y0 + i * CELL, X0 + (j + 1) * CELL, Y0 + (i + 1) * CELL)
    assert ours.missing == (hole,)
    assert (ours.image(hole) == 0).all()
    assert np.isposinf(ours.variance(hole)).all()
    psf = ours.psf
    assert isinstance(psf, PsfCells)
    assert psf.index([hole.x0, hole.x1 - 1], [hole.y0, hole.y1 - 1]).tolist() == [[-1, -1], [-1, -1]]
    assert np.isnan(psf.kernels[MISSING]).all()


def test_psf_is_that_of_the_cell(files: dict[str, tuple[bytes, Any]]) -> None:
    data, theirs = files["lossless"]
    psf = open_coadd(data, name="file.fits").psf
    assert isinstance(psf, PsfCells)
    assert psf.kernels.shape == (CELLS, CELLS, KERNEL, KERNEL)
    x = np.array([X0, X0 + 49.4, X0 + 49.6, X0 + 75.0, X0 + 149.0])
    y = np.array([Y0, Y0 + 49.4, Y0 + 49.6, Y0 + 149.0, Y0 + 149.4])
    cells = psf.index(x, y)
    assert cells.tolist() == [[0, 0], [0, 0], [1, 1], [2, 1], [2, 2]]
    for k, (i, j) in enumerate(cells.tolist()):
        kernel = theirs.psf.compute_kernel_image(x=x[k], y=y[k]).array
        np.testing.assert_array_equal(psf.kernels[i, j], kernel.astype(np.float32))
        assert psf.kernels[i, j].sum() == pytest.approx(1, abs=1e-6)
    outside = psf.index([X0 - 1.0, X0 - 0.6, X0 + 200.0, np.nan], [Y0, Y0, Y0, Y0])
    assert (outside == -1).all()
    assert psf.index([X0 - 0.4], [Y0 - 0.4]).tolist() == [[0, 0]]  # a pixel reaches half a pixel around


def test_psf_near_reads_only_the_cells_under_the_boxes(files: dict[str, tuple[bytes, Any]]) -> None:
    data, _ = files["lossless"]
    box = Box(X0 + 40, Y0 + 60, X0 + 60, Y0 + 70)  # cells (1, 0) and (1, 1)
    whole = open_coadd(data, name="file.fits").psf
    near = sparse(data).psf_near([box])
    assert isinstance(near, PsfCells)
    assert isinstance(whole, PsfCells)
    there = np.isfinite(near.kernels[..., 0, 0])
    assert np.argwhere(there).tolist() == [[1, 0], [1, 1]]
    np.testing.assert_array_equal(near.kernels[there], whole.kernels[there])


def test_projection_is_that_of_lsst_images(files: dict[str, tuple[bytes, Any]]) -> None:
    data, theirs = files["lossless"]
    tan = open_coadd(data, name="file.fits").projection
    x, y = np.random.default_rng(1).uniform(0, 27600, (2, 100))
    ra, dec = tan.pixel_to_sky(x, y)
    sky = theirs.sky_projection.pixel_to_sky(x=x, y=y)
    assert np.abs(ra - sky.ra.deg).max() < 1e-9
    assert np.abs(dec - sky.dec.deg).max() < 1e-9


def test_sparse_reads_little_and_its_digest_says_what(files: dict[str, tuple[bytes, Any]]) -> None:
    data, _ = files["lossless"]
    box = Box(X0 + 10, Y0 + 110, X0 + 20, Y0 + 120)

    def read(order: list[str]) -> Coadd:
        coadd = sparse(data)
        for plane in order:
            getattr(coadd, plane)(box)
        return coadd

    one, two = read(["image", "variance"]), read(["image", "variance"])
    assert one.digest == two.digest != read(["image"]).digest
    again = one.bytes_read()
    one.image(box)
    assert one.bytes_read() == again
    whole = open_coadd(data, name="file.fits")
    assert whole.bytes_read() == len(data)
    assert len(whole.digest) == 64


def test_noise_realisations_are_not_fetched(tmp_path: Path) -> None:
    write_cell_coadd(tmp_path / "noisy.fits", noise=3)
    data = (tmp_path / "noisy.fits").read_bytes()
    coadd = sparse(data)
    coadd.image(), coadd.variance(), coadd.mask(), coadd.psf
    assert coadd.bytes_read() < 0.6 * len(data)


def test_box_outside_the_file_is_refused(files: dict[str, tuple[bytes, Any]]) -> None:
    coadd = open_coadd(files["lossless"][0], name="file.fits")
    for box in (Box(X0 - 1, Y0, X0 + 5, Y0 + 5), Box(X0, Y0, X0, Y0), Box(0, 0, 5, 5)):
        with pytest.raises(DataError, match=r"file\.fits"):
            coadd.image(box)


def test_more_planes_than_one_hdu_holds(tmp_path: Path) -> None:
    theirs = write_cell_coadd(tmp_path / "many.fits", planes=40)
    ours = open_coadd((tmp_path / "many.fits").read_bytes(), name="many.fits")
    assert set(ours.mask_planes) == set(theirs.mask.schema.names)
    names = ("EXTRA05", "NO_DATA", "EXTRA30")
    mask = ours.mask(planes=names)
    for bit, plane in enumerate(names):
        np.testing.assert_array_equal((mask >> bit) & 1, theirs.mask.get(plane))
    with pytest.raises(DataError, match="do not fit in 32 bits"):
        ours.mask()


def test_renumber_moves_every_plane_to_its_bit() -> None:
    rng = np.random.default_rng(2)
    for dtype in ("u1", "i2", "u2", "i4", "u4", "u8"):
        width = np.dtype(dtype).itemsize * 8
        mask = rng.integers(0, 2**width - 1, (70, 90), dtype=np.uint64).astype(dtype)
        names = list(MASK_PLANES[: min(width, len(MASK_PLANES))])
        schema = dict(zip(names, rng.permutation(width)[: len(names)].tolist(), strict=True))
        out = renumber(mask, schema, MASK_PLANES)
        for name, bit in schema.items():
            expected = (mask.astype(np.uint64) >> np.uint64(bit)) & np.uint64(1)
            np.testing.assert_array_equal((out >> MASK_PLANES.index(name)) & 1, expected)
        assert not (out >> len(names)).any()


def test_planes_of_other_names_take_the_next_bits() -> None:
    assert canonical_planes({"ZEBRA": 0, "NO_DATA": 1}, {"ALPHA": 3}) == (*MASK_PLANES, "ALPHA", "ZEBRA")


@pytest.mark.parametrize("unit", ["uJy", "adu"])
def test_other_units_are_refused(tmp_path: Path, unit: str) -> None:
    write_cell_coadd(tmp_path / "unit.fits", unit=unit)
    with pytest.raises(UnreadableError, match=f"unit {unit}") as caught:
        open_coadd((tmp_path / "unit.fits").read_bytes(), name="unit.fits")
    assert caught.value.reason is Reason.WRONG_UNIT


def edited(data: bytes, change: Any) -> bytes:
    """The file with its tree changed, padded to the old length."""
    hdu = next(h for h in walk(data, name="file.fits") if h.extname == "JSON")
    start = data.index(b"{", hdu.data)
    length = int.from_bytes(data[hdu.data : hdu.data + 4], "big")
    tree = json.loads(data[start : start + length])
    change(tree)
    text = json.dumps(tree, separators=(",", ":")).encode()
    assert len(text) <= length
    return data[:start] + text.ljust(length) + data[start + length :]


def shifted(tree: Any) -> None:
    tree["image"]["yx0"] = [12801, 14600]


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        (lambda t: t["image"]["data"].pop("unit"), Reason.WRONG_UNIT, "no unit"),
        (lambda t: t["variance"]["data"].pop("unit"), Reason.WRONG_UNIT, "no unit"),
        (shifted, Reason.WRONG_WCS, "starts at"),
        (lambda t: t.pop("psf"), Reason.UNREADABLE_SOURCE, "no psf"),
        (lambda t: t.pop("image"), Reason.UNREADABLE_SOURCE, "no image"),
        (lambda t: t["image"].update(yx0="a"), Reason.UNREADABLE_SOURCE, "yx0"),
        (lambda t: t["mask"].update(data=[]), Reason.UNREADABLE_SOURCE, "mask of 0"),
        (lambda t: t["psf"]["bounds"]["grid"]["cell_shape"].update(x=0), Reason.UNREADABLE_SOURCE, "PSF"),
        (lambda t: t["psf"]["array"].update(source="fits:NO"), Reason.UNREADABLE_SOURCE, "no HDU"),
        (lambda t: t.update(min_read_version=2), Reason.UNREADABLE_SOURCE, "version 2"),
        (lambda t: t["psf"]["bounds"].update(missing=[1]), Reason.UNREADABLE_SOURCE, "missing"),
    ],
)
def test_a_tree_that_says_something_else(
    files: dict[str, tuple[bytes, Any]], change: Any, reason: Reason, message: str
) -> None:
    with pytest.raises(UnreadableError, match=message) as caught:
        open_coadd(edited(files["lossless"][0], change), name="file.fits")
    assert caught.value.reason is reason
    assert "file.fits" in str(caught.value)


def test_background_that_was_subtracted_is_noted(files: dict[str, tuple[bytes, Any]]) -> None:
    def change(tree: Any) -> None:
        tree["backgrounds"] = {"subtracted": "sky"}

    coadd = open_coadd(edited(files["lossless"][0], change), name="file.fits")
    assert coadd.notes == ("file.fits: background sky was subtracted",)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["lossless", "lossy"]), st.integers(0, 2**31), st.integers(1, 255), st.booleans())
def test_any_flipped_byte_is_an_error_or_pixels(
    files: dict[str, tuple[bytes, Any]], name: str, where: int, flip: int, ranges: bool
) -> None:
    data = bytearray(files[name][0])
    data[where % len(data)] ^= flip
    try:
        coadd = sparse(bytes(data)) if ranges else open_coadd(bytes(data), name="file.fits")
        shape = coadd.box.shape
        assert coadd.image().shape == coadd.variance().shape == coadd.mask().shape == shape
        assert isinstance(coadd.psf, PsfCells | NoPsf)
    except (UnreadableError, DataError) as error:
        assert "file.fits" in str(error) or "mask planes" in str(error)  # noqa: PT017


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_truncated_file_is_one_clear_error(
    files: dict[str, tuple[bytes, Any]], where: int, ranges: bool
) -> None:
    data = files["lossless"][0]
    cut = data[: where % (len(data) - 2880)]
    with pytest.raises(UnreadableError, match=r"file\.fits"):
        sparse(cut) if ranges else open_coadd(cut, name="file.fits")


def test_web_page_is_not_a_coadd() -> None:
    page = b"<html>503 Service Unavailable</html>"
    for opened in (sparse, lambda data: open_coadd(data, name="file.fits")):
        with pytest.raises(UnreadableError, match="not a FITS file"):
            opened(page)


def test_opening_loads_neither_lsst_nor_astropy_nor_numba(tmp_path: Path) -> None:
    write_cell_coadd(tmp_path / "coadd.fits")
    code = (
        "import sys; from ripple.rubin.open import open_coadd;"
        f"open_coadd(open({str(tmp_path / 'coadd.fits')!r}, 'rb').read(), name='x');"
        "print([m for m in ('lsst', 'astropy', 'numba', 'torch') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def truth() -> tuple[Any, Any]:
    if not (SHARED / "cell_coadd.npz").exists():
        pytest.skip("reference data made by the LSST pipelines are not beside this checkout")
    return np.load(SHARED / "cell_coadd.npz"), json.loads((SHARED / "cell_coadd.json").read_text())


def truth_file(key: str) -> bytes:
    kind, band = key.rsplit("_", 1)
    (path,) = (SHARED / "afw_repo" / "truth" / "extra" / kind).glob(f"*/*/{band}/*.fits")
    return path.read_bytes()


@pytest.mark.parametrize("key", TRUTH)
def test_reference_planes_bit_for_bit(truth: tuple[Any, Any], key: str) -> None:
    arrays, facts = truth
    data = truth_file(key)
    ours = open_coadd(data, name=key)
    same_bits(ours.image(), arrays[f"{key}_image"])
    same_bits(ours.variance(), arrays[f"{key}_variance"])
    assert ours.mask_planes == facts[key]["mask_planes"]
    np.testing.assert_array_equal(ours.mask(), arrays[f"{key}_mask"].astype(np.uint32))
    x0, y0, x1, y1 = facts[key]["sub_bbox_inclusive_xy"]
    few = sparse(data)
    same_bits(few.image(Box(x0, y0, x1 + 1, y1 + 1)), arrays[f"{key}_sub_image"])
    assert few.bytes_read() < 0.2 * len(data)


@pytest.mark.parametrize("key", TRUTH[:2])
def test_reference_psf_and_projection(truth: tuple[Any, Any], key: str) -> None:
    arrays, _ = truth
    coadd = open_coadd(truth_file(key), name=key)
    x, y = arrays[f"{key}_psf_x"], arrays[f"{key}_psf_y"]
    psf = coadd.psf
    assert isinstance(psf, PsfCells)
    cells = psf.index(x, y)
    errors = arrays[f"{key}_psf_error"] != ""
    assert ((cells == -1).all(axis=1) == errors).all()
    for (i, j), kernel in zip(cells[~errors].tolist(), arrays[f"{key}_psf_kernel"][~errors], strict=True):
        np.testing.assert_array_equal(psf.kernels[i, j], kernel.astype(np.float32))
    ra, dec = coadd.projection.pixel_to_sky(x, y)
    assert np.abs(ra - arrays[f"{key}_psf_ra_deg"]).max() < 1e-9
    assert np.abs(dec - arrays[f"{key}_psf_dec_deg"]).max() < 1e-9


@pytest.mark.parametrize("kind", ["deep_coadd_cell", "deep_coadd_cell_lossy16"])
def test_cutout_equals_butler_get_with_a_box(truth: tuple[Any, Any], kind: str) -> None:
    from lsst.daf.butler import Butler
    from lsst.images import Box as LsstBox
    from lsst.images import Interval

    data = truth_file(f"{kind}_r")
    with Butler.from_config(str(SHARED / "afw_repo"), collections="truth/all", writeable=False) as butler:
        for x0, y0 in [(14600, 12800), (14870, 12830), (15036, 13236), (14963, 13001)]:
            area = LsstBox(y=Interval(start=y0, stop=y0 + 64), x=Interval(start=x0, stop=x0 + 64))
            theirs = butler.get(
                kind, band="r", skymap="truth_cells_v1", tract=3828, patch=4005, parameters={"bbox": area}
            )
            box = Box(x0, y0, x0 + 64, y0 + 64)
            for ours in (sparse(data), open_coadd(data, name=kind)):
                same_bits(ours.image(box), theirs.image.array)
                same_bits(ours.variance(box), theirs.variance.array)
                mask = ours.mask(box)
                for plane, bit in ours.mask_planes.items():
                    np.testing.assert_array_equal((mask >> bit) & 1, theirs.mask.get(plane))
