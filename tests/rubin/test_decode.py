"""Our tile decoder against astropy and CFITSIO (fitsio): the same bits for whatever those two write."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fitsio
import numpy as np
import pytest
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ripple.errors import UnreadableError
from ripple.rubin.formats import decode
from ripple.rubin.formats.decode import Image, open_image
from ripple.rubin.formats.fits import Memory, Ranges, walk

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module", autouse=True, params=["numpy", "numba"])
def loops(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything once with the loops for few tiles and once with those for many."""
    before, decode._FEW_TILES = decode._FEW_TILES, 1 << 40 if request.param == "numpy" else -1
    yield
    decode._FEW_TILES = before


def ours(data: bytes, hdu: int = 1) -> Image:
    hdus = walk(data, name="test.fits")
    if hdu >= len(hdus):
        raise UnreadableError("test.fits: the image is not there at all")
    return open_image(hdus[hdu], Memory(data, "test.fits"), name="test.fits")


def with_astropy(data: bytes, hdu: int = 1) -> np.ndarray:
    with fits.open(io.BytesIO(data)) as file:
        pixels = np.asarray(file[hdu].data)
    return pixels.astype(pixels.dtype.newbyteorder("="))


def with_fitsio(data: bytes, hdu: int = 1) -> np.ndarray:
    path = Path(fitsio_scratch) / "test.fits"
    path.write_bytes(data)
    return np.asarray(fitsio.read(str(path), ext=hdu))


fitsio_scratch = ""


@pytest.fixture(scope="module", autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory) -> None:
    global fitsio_scratch
    fitsio_scratch = str(tmp_path_factory.mktemp("fitsio"))


def same_bits(a: np.ndarray, b: np.ndarray) -> None:
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(
        np.ascontiguousarray(a).view(f"u{a.dtype.itemsize}"),
        np.ascontiguousarray(b).view(f"u{b.dtype.itemsize}"),
    )


def astropy_file(pixels: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    options.setdefault("quantize_level", 0.0)
    hdu = fits.CompImageHDU(pixels, name="IMAGE", **options)
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(out)
    return out.getvalue()


def fitsio_file(pixels: np.ndarray, **options: Any) -> bytes:
    path = Path(fitsio_scratch) / "written.fits"
    path.unlink(missing_ok=True)
    fitsio.write(str(path), pixels, **options)
    return path.read_bytes()


def shapes() -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(1, 40), st.integers(1, 40))


def images(dtype: str, shape: tuple[int, int]) -> st.SearchStrategy[np.ndarray]:
    """Noise, constants, runs, extremes, NaN of any payload, infinities."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        elements: Any = st.floats(width=kind.itemsize * 8, allow_subnormal=True)
    else:
        info = np.iinfo(kind)
        elements = st.sampled_from([0, 1, 2, 3, 255, info.max, info.min]) | st.integers(info.min, info.max)
    return hnp.arrays(kind, shape, elements=elements, fill=st.nothing()) | hnp.arrays(
        kind, shape, elements=elements
    )


@st.composite
def cases(draw: st.DrawFn, dtypes: tuple[str, ...]) -> tuple[np.ndarray, tuple[int, int]]:
    shape = draw(shapes())
    tile = (draw(st.integers(1, shape[0])), draw(st.integers(1, shape[1])))
    return draw(images(draw(st.sampled_from(dtypes)), shape)), tile


@QUICK
@given(cases(("f4", "f8", "i4", "i2", "u1", "u2", "u4")), st.sampled_from(["GZIP_1", "GZIP_2"]))
def test_gzip_lossless(case: tuple[np.ndarray, tuple[int, int]], algorithm: str) -> None:
    pixels, tile = case
    data = astropy_file(pixels, compression_type=algorithm, tile_shape=tile)
    image = ours(data)
    assert not image.note
    same_bits(image.all(), pixels)
    same_bits(image.all(), with_astropy(data))
    same_bits(image.all(), with_fitsio(data))


@QUICK
@given(cases(("i4", "i2", "u1", "u2")))
def test_rice_integers(case: tuple[np.ndarray, tuple[int, int]]) -> None:
    pixels, tile = case
    data = astropy_file(pixels, compression_type="RICE_1", tile_shape=tile)
    image = ours(data)
    assert not image.note
    same_bits(image.all(), pixels)
    same_bits(image.all(), with_fitsio(data))


@QUICK
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(2, 160), st.integers(10, 160)),
    st.tuples(st.integers(1, 160), st.integers(10, 160)),
    st.sampled_from([-1, 1, 2]),
    st.sampled_from(["RICE_1", "GZIP_1", "GZIP_2"]),
    st.integers(1, 10000),
    st.sampled_from([16.0, 4.0, -0.25]),
    st.sampled_from(["f4", "f8"]),
)
def test_quantised_floats(
    seed: int, shape: tuple[int, int], tile: tuple[int, int], dither: int, algorithm: str, first: int,
    level: float, dtype: str,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    pixels = rng.normal(3, 10, shape).astype(dtype)
    pixels[rng.random(shape) < 0.05] = 0.0  # exact zeros survive SUBTRACTIVE_DITHER_2
    pixels[rng.random(shape) < 0.05] = np.nan
    pixels[: shape[0] // 3, : shape[1] // 3] = 7.0  # tiles that do not quantise are stored losslessly
    data = astropy_file(
        pixels, compression_type=algorithm, tile_shape=tuple(np.minimum(tile, shape)), quantize_method=dither,
        quantize_level=level, dither_seed=first,
    )  # fmt: skip
    image = ours(data)
    assert not image.note
    same_bits(image.all(), with_astropy(data))
    same_bits(image.all(), with_fitsio(data))
    assert (np.isnan(image.all()) == np.isnan(pixels)).all()
    if dither == 2 and level > 0:
        assert (image.all()[pixels == 0] == 0).all()


@pytest.mark.parametrize("dither", ["subtractive_dither_1", "subtractive_dither_2", "no_dither"])
@pytest.mark.parametrize("algorithm", ["rice", "gzip", "gzip_2"])
@pytest.mark.parametrize("tile", [(150, 150), (1, 301), (37, 64)])
def test_written_by_cfitsio(algorithm: str, dither: str, tile: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    pixels = rng.normal(0, 5, (290, 301)).astype("f4")
    pixels[10:20, 10:20] = np.nan
    pixels[100:110] = 0
    options = {"compress": algorithm, "tile_dims": tile, "qmethod": dither, "dither_seed": 99}
    data = fitsio_file(pixels, qlevel=8.0, **options)
    image = ours(data)
    assert not image.note
    same_bits(image.all(), with_fitsio(data))
    same_bits(image.all(), with_astropy(data))
    lossless = fitsio_file(pixels, qlevel=0, compress="gzip_2", tile_dims=tile)
    same_bits(ours(lossless).all(), with_astropy(lossless))  # CFITSIO writes NaN of another payload
    same_bits(ours(lossless).all(), with_fitsio(lossless))


def test_random_sequence_wraps_in_a_large_tile() -> None:
    pixels = np.random.default_rng(4).normal(0, 5, (130, 170)).astype("f4")  # 22100 pixels in one tile
    data = astropy_file(
        pixels, compression_type="RICE_1", tile_shape=(130, 170), quantize_method=1, quantize_level=8.0,
        dither_seed=9999,
    )  # fmt: skip
    same_bits(ours(data).all(), with_astropy(data))


@QUICK
@given(cases(("f4", "i4", "f8")), st.data())
def test_window_is_the_slice_of_the_whole(
    case: tuple[np.ndarray, tuple[int, int]], draw: st.DataObject
) -> None:
    pixels, tile = case
    data = astropy_file(pixels, compression_type="GZIP_2", tile_shape=tile)
    height, width = pixels.shape
    y0, x0 = draw.draw(st.integers(0, height - 1)), draw.draw(st.integers(0, width - 1))
    y1, x1 = draw.draw(st.integers(y0 + 1, height)), draw.draw(st.integers(x0 + 1, width))
    same_bits(ours(data).read(y0, y1, x0, x1), pixels[y0:y1, x0:x1])


def test_window_of_quantised_tiles_keeps_the_dithering() -> None:
    pixels = np.random.default_rng(5).normal(0, 5, (310, 320)).astype("f4")
    data = astropy_file(
        pixels, compression_type="RICE_1", tile_shape=(150, 150), quantize_method=2, quantize_level=16.0,
        dither_seed=321,
    )  # fmt: skip
    whole = with_astropy(data)
    for window in [(0, 1, 0, 1), (149, 151, 149, 151), (20, 84, 260, 320), (300, 310, 0, 320)]:
        y0, y1, x0, x1 = window
        same_bits(ours(data).read(*window), whole[y0:y1, x0:x1])


def test_only_tiles_under_the_window_are_fetched() -> None:
    pixels = np.random.default_rng(6).normal(0, 5, (900, 900)).astype("f4")
    data = astropy_file(pixels, compression_type="GZIP_2", tile_shape=(150, 150))
    fetched: list[tuple[int, int]] = []

    def reader(offset: int, length: int) -> bytes:
        fetched.append((offset, length))
        return data[offset : offset + length]

    source = Ranges(reader, "test.fits", ahead=0, gap=0)
    image = open_image(walk(data, name="test.fits")[1], source, name="test.fits")
    same_bits(image.read(310, 374, 310, 374), pixels[310:374, 310:374])
    tile = len(data) / 36
    assert source.bytes_read() < 1.2 * tile
    before = len(fetched)
    same_bits(image.read(320, 330, 320, 330), pixels[320:330, 320:330])
    assert len(fetched) == before  # known bytes are not fetched again


@given(
    st.binary(min_size=1, max_size=400),
    st.lists(st.lists(st.tuples(st.integers(0, 399), st.integers(1, 60)), max_size=6), max_size=12),
    st.integers(0, 30),
    st.integers(0, 30),
)
def test_ranges_are_the_bytes_of_the_file(
    data: bytes, requests: list[list[tuple[int, int]]], ahead: int, gap: int
) -> None:
    source = Ranges(lambda at, n: data[at : at + n], "test.fits", ahead=ahead, gap=gap)
    for spans in requests:
        if all(at + n <= len(data) for at, n in spans):
            assert [bytes(view) for view in source.many(spans)] == [data[at : at + n] for at, n in spans]
        else:
            with pytest.raises(UnreadableError, match=r"test\.fits"):
                source.many(spans)


@pytest.mark.parametrize("dtype", ["f8", "f4"])
def test_four_axes_in_tiny_tiles(dtype: str) -> None:
    psf = np.random.default_rng(7).normal(0, 1, (3, 4, 41, 41)).astype(dtype)
    psf[1, 2] = np.nan
    data = astropy_file(psf, compression_type="GZIP_2")
    image = ours(data)
    assert not image.note
    assert image.shape == psf.shape
    same_bits(image.all(), psf)
    row = (1 * 4 + 3) * 41
    same_bits(image.read(row, row + 41, 0, 41), psf[1, 3])


def test_damage_in_tiny_tiles_is_caught() -> None:
    psf = np.random.default_rng(7).normal(0, 1, (2, 2, 41, 41))
    data = bytearray(astropy_file(psf, compression_type="GZIP_2"))
    hdu = walk(bytes(data), name="test.fits")[1]
    heap = hdu.data + hdu.integer("NAXIS1") * hdu.integer("NAXIS2")
    first, second = np.frombuffer(data, ">i4", 4, hdu.data)[::2].tolist()
    assert len(data) > heap + first + second
    for where, said in [(heap + 40, "inflate"), (heap + first - 2, "pixels"), (heap + first + 1, "inflate")]:
        broken = bytearray(data)
        broken[where] ^= 1
        with pytest.raises(UnreadableError, match=said):
            ours(bytes(broken)).all()
    # A stream that holds more than it says must not be written out at any size.
    bomb = gzip.compress(bytes(50_000_000))[:-4] + (328).to_bytes(4, "little")
    with pytest.raises(UnreadableError, match=r"pixels|inflate"):
        decode._gunzip_members(memoryview(bomb), 328, "test.fits")


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"])
def test_uncompressed(dtype: str) -> None:
    pixels = (np.random.default_rng(8).normal(0, 100, (30, 50)) % 200).astype(dtype)
    out = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(pixels)]).writeto(out)
    image = ours(out.getvalue())
    assert not image.note
    same_bits(image.all(), pixels)
    same_bits(image.read(3, 20, 5, 9), pixels[3:20, 5:9])


@pytest.mark.parametrize("algorithm", ["HCOMPRESS_1", "PLIO_1"])
def test_unusual_tiles_go_to_astropy_with_a_note(algorithm: str) -> None:
    pixels = np.random.default_rng(9).integers(0, 200, (40, 50)).astype("i4")
    data = astropy_file(pixels, compression_type=algorithm, tile_shape=(20, 50))
    image = ours(data)
    assert algorithm in image.note
    same_bits(image.all(), pixels)
    same_bits(image.read(3, 20, 5, 9), pixels[3:20, 5:9])


def test_scaled_integers_go_to_astropy_with_a_note() -> None:
    out = io.BytesIO()
    hdu = fits.ImageHDU(np.arange(12, dtype="i2").reshape(3, 4))
    hdu.header["BSCALE"], hdu.header["BZERO"] = 0.5, 10.0
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(out)
    image = ours(out.getvalue())
    assert "scaled" in image.note
    np.testing.assert_array_equal(image.all(), 10 + 0.5 * np.arange(12).reshape(3, 4))


def test_window_outside_is_a_programming_error() -> None:
    data = astropy_file(np.zeros((10, 10), "f4"), compression_type="GZIP_2")
    with pytest.raises(ValueError, match="not inside"):
        ours(data).read(0, 11, 0, 10)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(["GZIP_2", "RICE_1"]), st.integers(0, 2**31), st.integers(1, 255), st.booleans())
def test_damage_is_an_error_or_pixels_never_a_crash(
    algorithm: str, where: int, flip: int, header: bool
) -> None:
    data = bytearray(_damageable(algorithm))
    data[2880 + where % ((2880 if header else len(data)) - 2880 * (not header))] ^= flip
    try:
        image = ours(bytes(data))
        assert image.all().shape == image.shape
    except UnreadableError:
        pass


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["GZIP_2", "RICE_1"]), st.integers(0, 2**31))
def test_truncation_is_one_clear_error(algorithm: str, where: int) -> None:
    data = _damageable(algorithm)
    hdu = walk(data, name="test.fits")[1]
    cut = data[: where % (hdu.data + hdu.size)]
    with pytest.raises(UnreadableError):
        ours(cut)


def _damageable(algorithm: str) -> bytes:
    if algorithm not in _made:
        pixels = np.random.default_rng(10).normal(0, 5, (60, 70)).astype("f4")
        level = 0.0 if algorithm == "GZIP_2" else 16.0
        _made[algorithm] = astropy_file(
            pixels, compression_type=algorithm, tile_shape=(20, 30), quantize_level=level, quantize_method=2,
            dither_seed=1,
        )  # fmt: skip
    return _made[algorithm]


_made: dict[str, bytes] = {}


def test_flipped_bit_in_a_gzip_tile_is_caught_by_its_checksum() -> None:
    data = bytearray(_damageable("GZIP_2"))
    hdu = walk(bytes(data), name="test.fits")[1]
    data[hdu.data + hdu.size - 30] ^= 1
    with pytest.raises(UnreadableError, match="does not inflate"):
        ours(bytes(data)).all()


def test_header_that_promises_a_terabyte_allocates_nothing() -> None:
    data = _damageable("GZIP_2").replace(b"ZNAXIS1 =                   70", b"ZNAXIS1 =              1000000")
    data = data.replace(b"ZNAXIS2 =                   60", b"ZNAXIS2 =              1000000")
    with pytest.raises(UnreadableError, match="cannot hold"):
        ours(data)


@pytest.mark.parametrize("start", [b"", b"<html><body>502 Bad Gateway", b"PK\x03\x04", b"\x00" * 2880])
def test_not_fits(start: bytes) -> None:
    with pytest.raises(UnreadableError, match="not a FITS file"):
        walk(start, name="page.fits")
