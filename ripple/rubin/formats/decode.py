"""Image HDUs to arrays: our own decoder of tile-compressed images, bit-identical to the C library and faster.

Tiles of GZIP_1, GZIP_2, RICE_1 and NOCOMPRESS (FITS Standard 4.0, section 10) are inflated by libdeflate and
written straight into the output by compiled loops; quantised floats undergo the arithmetic of CFITSIO. Only
tiles under the wanted window are touched. Whatever is unusual (HCOMPRESS, PLIO, scaled integers) goes to
astropy, and the image says so in `note`.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.errors import UnreadableError
from ripple.rubin.formats.fits import TYPE_SIZES, Hdu, Source, columns

# BITPIX (FITS 4.0, section 4.4.1.1) to numpy; the byte order is set where bytes are read.
_BITPIX_TYPES = {8: "u1", 16: "i2", 32: "i4", 64: "i8", -32: "f4", -64: "f8"}
# ZQUANTIZ to the number that `decode_loops.dequantize` takes.
_DITHER = {"": 0, "NO_DITHER": 0, "SUBTRACTIVE_DITHER_1": 1, "SUBTRACTIVE_DITHER_2": 2}
_BATCH_BYTES = 65536  # bytes given to a compiled loop at once; with the output they fit the cache
_TINY_BYTES = 2048  # below this many bytes zlib starts faster than libdeflate
_GZIP_BYTES = 18  # header and trailer of a gzip stream (RFC 1952)
_FEW_TILES = 64  # up to so many tiles numpy is done before numba is loaded
# Columns of the tile table (section 10.1.2); a file may have more, which no decoder needs.
_WANTED_COLUMNS = (
    "COMPRESSED_DATA",
    "GZIP_COMPRESSED_DATA",
    "UNCOMPRESSED_DATA",
    "ZSCALE",
    "ZZERO",
    "ZBLANK",
)
# P and Q are the two integers of a descriptor, (length, offset), not the data themselves.
_COLUMN_TYPES = {"P": ">u4", "Q": ">u8", "D": ">f8", "E": ">f4", "J": ">i4"}

#: What astropy has raised on damaged bytes; it has no common class for them.
_ASTROPY_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    AttributeError,
    AssertionError,
    MemoryError,
    struct.error,
    zlib.error,
)

Array = NDArray[Any]
Window = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Image:
    """An image HDU of which any window can be read.

    Parameters
    ----------
    shape
        Numpy shape. For windows all axes but the last count as one: `height = prod(shape[:-1])`.
    dtype
        Type of the pixels, native byte order.
    read
        `read(y0, y1, x0, x1)` gives the `(y1 - y0, x1 - x0)` pixels of a half-open window.
    note
        Why astropy decodes it, empty when our own decoder does.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[int, int, int, int], Array]
    note: str = ""

    @property
    def height(self) -> int:
        """Rows, all axes but the last taken together."""
        return prod(self.shape[:-1])

    @property
    def width(self) -> int:
        """Pixels of the last axis."""
        return self.shape[-1]

    def all(self) -> Array:
        """All pixels, in `shape`."""
        return self.read(0, self.height, 0, self.width).reshape(self.shape)


def open_image(hdu: Hdu, source: Source, *, name: str) -> Image:
    """The image in an HDU, compressed or not; decodes nothing yet.

    Parameters
    ----------
    hdu
        An image, or a binary table with `ZIMAGE = T`.
    source
        The file.
    name
        File and plane, for messages.

    Raises
    ------
    UnreadableError
        When the header describes no image. Reading a window raises it when tiles are damaged.
    """
    compressed = hdu.header.get("ZIMAGE") is True
    z = "Z" if compressed else ""
    bitpix, axes = hdu.integer(f"{z}BITPIX"), hdu.integer(f"{z}NAXIS")
    shape = tuple(hdu.integer(f"{z}NAXIS{k}") for k in range(axes, 0, -1))
    if bitpix not in _BITPIX_TYPES or not shape or min(shape) < 1:
        raise UnreadableError(f"{name}: cannot read an image of BITPIX {bitpix} and shape {shape}")
    file_type = np.dtype(_BITPIX_TYPES[bitpix])
    result = _pixel_type(hdu, file_type)
    if result is None:
        return _with_astropy(hdu, source, name, shape, f"{name}: scaled pixels, decoded by astropy")
    if not compressed:
        plain = _PlainImage(hdu, source, name, shape, file_type, result)
        return Image(shape, result, plain.read)
    unusual = _why_astropy(hdu, shape, file_type)
    if unusual:
        return _with_astropy(hdu, source, name, shape, f"{name}: {unusual}, decoded by astropy")
    tiles = _TiledImage.describe(hdu, source, name, shape, file_type, result)
    return Image(shape, result, tiles.read)


def _pixel_type(hdu: Hdu, stored: np.dtype[Any]) -> np.dtype[Any] | None:
    """Type of the pixels after BZERO (FITS 4.0, section 4.4.2.5, table 11); None when they are scaled."""
    scale, zero = hdu.number("BSCALE", 1.0), hdu.number("BZERO", 0.0)
    if scale == 1.0 and zero == 0.0:
        return stored
    # Unsigned pixels are stored signed, less half the range; for single bytes it is the other way round.
    half = 2.0 ** (8 * stored.itemsize - 1)
    if scale == 1.0 and stored.kind == "i" and zero == half:
        return np.dtype(f"u{stored.itemsize}")
    if scale == 1.0 and stored == np.uint8 and zero == -half:
        return np.dtype("i1")
    return None


def _flip_sign_bit(pixels: Array, result: np.dtype[Any]) -> Array:
    """Pixels as stored to `result`: adding half the range is flipping the sign bit."""
    if pixels.dtype == result:
        return pixels
    bits = pixels.view(f"u{pixels.dtype.itemsize}")
    bits ^= bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
    return bits.view(result)


def _why_astropy(hdu: Hdu, shape: tuple[int, ...], stored: np.dtype[Any]) -> str:
    """Why this compressed image must go to astropy; empty when our decoder reads it."""
    algorithm = hdu.text("ZCMPTYPE")
    found = columns(hdu)
    quantized = stored.kind == "f" and "ZSCALE" in found
    tile = _tile_shape(hdu, shape)
    if algorithm not in ("GZIP_1", "GZIP_2", "RICE_1", "RICE_ONE", "NOCOMPRESS"):
        return f"{algorithm} tiles"
    # All axes but the last become one, so a tile may not reach from one plane of a cube into the next.
    if any(n > 1 for n in tile[:-2]) or (len(shape) > 2 and tile[-2] > 1 and shape[-2] % tile[-2]):
        return f"tiles of shape {tile}"
    if "COMPRESSED_DATA" not in found or found["COMPRESSED_DATA"][1] not in ("PB", "QB"):
        return "tiles that are not bytes"
    if quantized and (hdu.text("ZQUANTIZ") not in _DITHER or "ZZERO" not in found):
        return f"quantisation {hdu.text('ZQUANTIZ')}"
    if stored.kind == "f" and not quantized and ({"ZBLANK"} & {*found, *hdu.header}):
        return "ZBLANK in floats that are not quantised"
    # Rice codes integers only, so floats must be quantised; CFITSIO has no Rice code of 8 bytes.
    if algorithm.startswith("RICE") and ((stored.kind == "f") != quantized or stored == np.int64):
        return f"Rice-coded {stored.name}"
    if algorithm.startswith("RICE") and quantized and _compression_parameter(hdu, "BYTEPIX", 4) != 4:
        return "short quantised integers"
    return ""


def _compression_parameter(hdu: Hdu, key: str, default: int) -> int:
    """A compression parameter of the `ZNAMEn`, `ZVALn` cards."""
    for k in range(1, 100):
        if f"ZNAME{k}" not in hdu.header:
            break
        if hdu.text(f"ZNAME{k}") == key:
            return hdu.integer(f"ZVAL{k}")
    return default


def _tile_shape(hdu: Hdu, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Tile shape in numpy order; rows by default (section 10.1.1)."""
    axes = len(shape)
    # ZTILE1 counts along the fastest axis, which is the last one in numpy.
    tile = tuple(hdu.integer(f"ZTILE{k}", shape[-1] if k == 1 else 1) for k in range(axes, 0, -1))
    if min(tile) < 1:
        raise UnreadableError(f"{hdu.label}: damaged, tiles of shape {tile}")
    # Writers may leave ZTILEn larger than the image; the tile then ends with it.
    return tuple(min(t, n) for t, n in zip(tile, shape, strict=True))


def _row_type(hdu: Hdu) -> np.dtype[Any]:
    """Structure of a table row: the columns that matter here, in file byte order."""
    # Offsets are given, so columns in between stay unread whatever their type.
    names, types, offsets = [], [], []
    for column, (offset, code) in columns(hdu).items():
        kind = _COLUMN_TYPES.get(code[0]) if column in _WANTED_COLUMNS else None
        if column in _WANTED_COLUMNS and kind is None:
            raise UnreadableError(f"{hdu.label}: cannot read column {column} of type {code}")
        if kind is not None:
            names.append(column)
            types.append((kind, (2,)) if code[0] in "PQ" else kind)
            offsets.append(offset)
    row = {"names": names, "formats": types, "offsets": offsets, "itemsize": hdu.integer("NAXIS1")}
    try:
        return np.dtype(row)  # type: ignore[call-overload, no-any-return]
    except (ValueError, OverflowError) as error:
        raise UnreadableError(f"{hdu.label}: rows too short for their columns") from error


def _with_astropy(hdu: Hdu, source: Source, name: str, shape: tuple[int, ...], note: str) -> Image:
    """An image that astropy decodes whole, now; windows are slices of it."""
    from astropy.io import fits

    blob = bytes(source(hdu.start, hdu.data + hdu.size - hdu.start))
    # The padding of the last HDU may be missing in the file, and astropy insists on whole blocks.
    blob += bytes(hdu.end - hdu.start - len(blob))
    try:
        if hdu.header.get("ZIMAGE") is True:
            table = fits.BinTableHDU.fromstring(blob)
            pixels = np.asarray(fits.CompImageHDU(bintable=table).data)
        else:
            pixels = np.asarray(fits.ImageHDU.fromstring(blob).data)
    except (*_ASTROPY_ERRORS, fits.VerifyError) as error:
        text = " ".join(str(error).split())[:200]
        raise UnreadableError(f"{name}: astropy cannot decode it: {text}") from error
    if pixels.dtype.kind not in "iuf" or pixels.size != prod(shape):
        raise UnreadableError(f"{name}: damaged, {pixels.size} pixels of {pixels.dtype} for {shape}")
    flat = pixels.astype(pixels.dtype.newbyteorder("="), copy=False).reshape(-1, shape[-1])
    return Image(shape, flat.dtype, lambda y0, y1, x0, x1: flat[y0:y1, x0:x1].copy(), note)


@dataclass(frozen=True, slots=True)
class _PlainImage:
    """Pixels that lie uncompressed in the file."""

    hdu: Hdu
    source: Source
    name: str
    shape: tuple[int, ...]
    stored: np.dtype[Any]
    result: np.dtype[Any]

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Array:
        width, size = self.shape[-1], self.stored.itemsize
        _check_window((y0, y1, x0, x1), prod(self.shape[:-1]), width, self.name)
        # Checked here, since a damaged NAXIS would otherwise ask for gigabytes or for the next HDU.
        if prod(self.shape) * size > self.hdu.size:
            raise UnreadableError(f"{self.name}: the header promises more pixels than the HDU holds")
        # Whole rows lie next to each other: one span instead of one per row.
        if x1 - x0 == width:
            spans = [(self.hdu.data + y0 * width * size, (y1 - y0) * width * size)]
        else:
            spans = [(self.hdu.data + (y * width + x0) * size, (x1 - x0) * size) for y in range(y0, y1)]
        big = self.stored.newbyteorder(">")
        rows = [np.frombuffer(view, big) for view in self.source.many(spans)]
        return _flip_sign_bit(np.concatenate(rows).astype(self.stored).reshape(y1 - y0, x1 - x0), self.result)


@dataclass(frozen=True, slots=True)
class _TiledImage:
    """A tile-compressed image; axes before the last are taken together."""

    hdu: Hdu
    source: Source
    name: str
    height: int
    width: int
    tile: tuple[int, int]  # height, width in pixels
    stored: np.dtype[Any]
    result: np.dtype[Any]
    row: np.dtype[Any]  # one row of the tile table

    @classmethod
    def describe(
        cls,
        hdu: Hdu,
        source: Source,
        name: str,
        shape: tuple[int, ...],
        stored: np.dtype[Any],
        result: np.dtype[Any],
    ) -> _TiledImage:
        """From the header, checking that the table has one row per tile and can hold so many pixels."""
        full = _tile_shape(hdu, shape)
        tile = (full[-2] if len(full) > 1 else 1, full[-1])
        height, width = prod(shape[:-1]), shape[-1]
        tiles = -(-height // tile[0]) * -(-width // tile[1])
        # DEFLATE, the densest of the codes, gives at most 1032 bytes for one.
        possible = height * width * stored.itemsize <= 1100 * hdu.size
        if tiles != hdu.integer("NAXIS2") or not possible:
            raise UnreadableError(
                f"{name}: {hdu.integer('NAXIS2')} tiles cannot hold {height}x{width} pixels"
            )
        return cls(hdu, source, name, height, width, tile, stored, result, _row_type(hdu))

    def read(self, y0: int, y1: int, x0: int, x1: int) -> Array:
        _check_window((y0, y1, x0, x1), self.height, self.width, self.name)
        rows, jobs = self._jobs(y0, y1, x0, x1)
        first = int(rows[0])
        # One read from the first to the last row that is needed: rows are a few dozen bytes each.
        start = self.hdu.data + first * self.row.itemsize
        table = np.frombuffer(self.source(start, (int(rows[-1]) + 1 - first) * self.row.itemsize), self.row)
        table = table[rows - first]
        out = np.empty((y1 - y0, x1 - x0), self.stored)
        # Length 0 marks a tile that the encoder could not quantise; another column holds it (section 10.1.3).
        coded = table["COMPRESSED_DATA"][:, 0] > 0
        if not coded.all():
            self._decode_fallback(table[~coded], jobs[~coded], out)
            rows, table, jobs = rows[coded], table[coded], jobs[coded]
        descriptors, algorithm = table["COMPRESSED_DATA"], self.hdu.text("ZCMPTYPE")
        if "ZSCALE" in (self.row.names or ()) and self.stored.kind == "f":
            self._decode_quantized(self._views(descriptors, jobs), rows, table, jobs, out)
        elif algorithm.startswith("RICE"):
            self._decode_rice(self._views(descriptors, jobs), jobs, out)
        elif not (algorithm.startswith("GZIP") and self._decode_tiny(descriptors, jobs, out, algorithm)):
            self._decode_lossless(self._views(descriptors, jobs), jobs, out, algorithm)
        return _flip_sign_bit(out, self.result)

    def _jobs(self, y0: int, y1: int, x0: int, x1: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Table rows of the tiles under a window, and their jobs (see `decode_loops`), `start` left 0."""
        th, tw = self.tile
        across = -(-self.width // tw)
        ty, tx = np.mgrid[y0 // th : -(-y1 // th), x0 // tw : -(-x1 // tw)].reshape(2, -1)
        top, left = ty * th, tx * tw
        # A job: start, height and width of the tile, y0 y1 x0 x1 wanted of it, row and column in `out`.
        jobs = np.zeros((len(ty), 9), np.int64)
        # Tiles at the upper and right edge end with the image.
        jobs[:, 1], jobs[:, 2] = np.minimum(th, self.height - top), np.minimum(tw, self.width - left)
        jobs[:, 3], jobs[:, 4] = np.maximum(y0 - top, 0), np.minimum(y1 - top, jobs[:, 1])
        jobs[:, 5], jobs[:, 6] = np.maximum(x0 - left, 0), np.minimum(x1 - left, jobs[:, 2])
        jobs[:, 7], jobs[:, 8] = top + jobs[:, 3] - y0, left + jobs[:, 5] - x0
        return ty * across + tx, jobs

    def _spans(
        self, descriptors: Array, jobs: NDArray[np.int64], size: int = 1
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Offsets in the file and lengths of tiles, from `(length, offset)` in the heap."""
        heap = self.hdu.data + self.hdu.integer(
            "THEAP", self.hdu.integer("NAXIS1") * self.hdu.integer("NAXIS2")
        )
        if not self.hdu.data <= heap <= self.hdu.data + self.hdu.size:
            raise UnreadableError(f"{self.name}: damaged, the heap lies outside its table")
        lengths, offsets = descriptors[:, 0].astype(np.int64) * size, descriptors[:, 1].astype(np.int64)
        # No encoder expands by so much: a longer tile is a damaged descriptor.
        if (
            (lengths > 16 * jobs[:, 1] * jobs[:, 2] + 4096).any()
            or (lengths < 0).any()
            or (offsets < 0).any()
        ):
            raise UnreadableError(f"{self.name}: damaged, a tile is longer than its pixels")
        if len(lengths) and int((offsets + lengths).max()) + heap > self.hdu.data + self.hdu.size:
            raise UnreadableError(f"{self.name}: damaged, a tile lies outside its table")
        return offsets + heap, lengths

    def _views(self, descriptors: Array, jobs: NDArray[np.int64], size: int = 1) -> list[memoryview]:
        """Bytes of tiles, parameters as in `_spans`."""
        offsets, lengths = self._spans(descriptors, jobs, size)
        return self.source.many(list(zip(offsets.tolist(), lengths.tolist(), strict=True)))

    def _inflate(self, views: list[memoryview], jobs: NDArray[np.int64], algorithm: str, size: int) -> Array:
        """Bytes of consecutive tiles, `size` per pixel; sets the start of each job."""
        lengths = jobs[:, 1] * jobs[:, 2] * size
        jobs[:, 0] = np.cumsum(lengths) - lengths
        if algorithm == "NOCOMPRESS":
            pieces: list[bytes | bytearray | memoryview] = list(views)
        else:
            pieces = [_gunzip(view, n, self.name) for view, n in zip(views, lengths.tolist(), strict=True)]
        if [len(piece) for piece in pieces] != lengths.tolist():
            raise UnreadableError(f"{self.name}: damaged, a tile does not have the pixels of its shape")
        return np.frombuffer(pieces[0] if len(pieces) == 1 else b"".join(pieces), np.uint8)

    def _decode_lossless(
        self, views: list[memoryview], jobs: NDArray[np.int64], out: Array, algorithm: str
    ) -> None:
        size = out.itemsize
        # Inflate and place in turns, so that the inflated bytes are still in the cache when they are moved.
        batch = max(1, _BATCH_BYTES // (self.tile[0] * self.tile[1] * size))
        for k in range(0, len(views), batch):
            part = jobs[k : k + batch]
            raw = self._inflate(views[k : k + batch], part, algorithm, size)
            _place_tiles(raw, part, algorithm == "GZIP_2", out, few=len(views) <= _FEW_TILES)

    def _decode_tiny(self, descriptors: Array, jobs: NDArray[np.int64], out: Array, algorithm: str) -> bool:
        """Decode many tiny tiles that follow one another, as one gzip stream; False when they do not.

        A PSF plane has 19,844 tiles of one row: a call for each costs more than the tiles (docs/engine.md).
        """
        sizes = jobs[:, 1] * jobs[:, 2] * out.itemsize
        if len(jobs) < 2 or sizes.max() >= _TINY_BYTES:
            return False
        offsets, lengths = self._spans(descriptors, jobs)
        # Only back to back do the tiles make one gzip stream of many members (RFC 1952, section 2.2).
        if lengths.min() < _GZIP_BYTES or (offsets[1:] != offsets[:-1] + lengths[:-1]).any():
            return False
        stream = self.source(int(offsets[0]), int(lengths.sum()))
        # The last four bytes of a member are ISIZE, the bytes it inflates to, little-endian.
        last = np.cumsum(lengths)[:, None] - np.arange(4, 0, -1)
        stated = np.frombuffer(stream, np.uint8)[last].view("<u4")[:, 0]
        if (stated != sizes).any():
            raise UnreadableError(f"{self.name}: damaged, a tile does not have the pixels of its shape")
        jobs[:, 0] = np.cumsum(sizes) - sizes
        raw = _gunzip_members(stream, int(sizes.sum()), self.name)
        _place_tiles(raw, jobs, algorithm == "GZIP_2", out, few=len(jobs) <= _FEW_TILES)
        return True

    def _decode_fallback(self, table: Array, jobs: NDArray[np.int64], out: Array) -> None:
        """Tiles that the encoder could not quantise: floats under GZIP_1, or uncompressed."""
        for k in range(len(table)):
            for column, algorithm in (
                ("GZIP_COMPRESSED_DATA", "GZIP_1"),
                ("UNCOMPRESSED_DATA", "NOCOMPRESS"),
            ):
                if column in (self.row.names or ()) and table[column][k, 0] > 0:
                    code = columns(self.hdu)[column][1]
                    views = self._views(
                        table[column][k : k + 1], jobs[k : k + 1], TYPE_SIZES[code[1:] or "B"]
                    )
                    self._decode_lossless(views, jobs[k : k + 1], out, algorithm)
                    break
            else:
                raise UnreadableError(f"{self.name}: damaged, a tile has no data")

    def _tile_integers(self, view: memoryview, job: NDArray[np.int64]) -> NDArray[np.int32]:
        """The flat integers of one tile of Rice-coded pixels or quantised floats."""
        from ripple.rubin.formats import decode_loops

        algorithm = self.hdu.text("ZCMPTYPE")
        out = np.empty((int(job[1]), int(job[2])), np.int32)
        if algorithm.startswith("RICE"):
            size = _compression_parameter(self.hdu, "BYTEPIX", 4)
            block = _compression_parameter(self.hdu, "BLOCKSIZE", 32)
            if size not in (1, 2, 4) or not 1 <= block <= 65536:
                raise UnreadableError(
                    f"{self.name}: damaged, Rice code of {size}-byte pixels in blocks of {block}"
                )
            # Whole words with at least three of zeros behind them, as `unrice` wants them.
            words = np.frombuffer(bytes(view) + bytes(16 - len(view) % 4), ">u4").astype(np.uint32)
            flat = out.reshape(-1)
            if not decode_loops.unrice(
                words, len(view), out.size, block, size, _leading_zeros(), flat.view(np.uint32)
            ):
                raise UnreadableError(f"{self.name}: damaged, a Rice-coded tile ends too early")
            # 2-byte pixels come back as uint16 bits: the round trip through int16 restores the sign.
            return flat.astype(np.int16).astype(np.int32) if size == 2 else flat
        # A job for the whole tile: dithering counts its pixels from the first, wanted or not.
        whole = np.array([[0, *out.shape, 0, out.shape[0], 0, out.shape[1], 0, 0]], np.int64)
        raw = self._inflate([view], whole, algorithm, 4)
        decode_loops.unpack(raw, whole, algorithm == "GZIP_2", out.view(np.uint32))
        return out.reshape(-1)

    def _decode_rice(self, views: list[memoryview], jobs: NDArray[np.int64], out: Array) -> None:
        for view, job in zip(views, jobs, strict=True):
            _, h, w, y0, y1, x0, x1, row, column = job.tolist()
            pixels = self._tile_integers(view, job).reshape(h, w)[y0:y1, x0:x1]
            out[row : row + y1 - y0, column : column + x1 - x0] = pixels.astype(self.stored)

    def _decode_quantized(
        self, views: list[memoryview], rows: Array, table: Array, jobs: NDArray[np.int64], out: Array
    ) -> None:
        from ripple.rubin.formats import decode_loops

        random, starts = _random_sequence()
        dither, seed = _DITHER[self.hdu.text("ZQUANTIZ")], self.hdu.integer("ZDITHER0", 1)
        scale, zero = table["ZSCALE"].astype(float), table["ZZERO"].astype(float)
        # Files write the blank value under either name; a column of it goes before both.
        key = "ZBLANK" if "ZBLANK" in self.hdu.header else "BLANK"
        column = "ZBLANK" in (self.row.names or ())
        has_blank = column or key in self.hdu.header
        # Clipping keeps a value that no int32 pixel can have out of the way of the pixels.
        always = min(max(self.hdu.integer(key, 0), -(2**40)), 2**40)
        blank = table["ZBLANK"] if column else np.full(len(rows), always)
        for k, view in enumerate(views):
            # Each tile starts at its own place in the random sequence: row plus ZDITHER0 (section 10.2.1).
            first = (int(rows[k]) + seed - 1) % len(random)
            decode_loops.dequantize(
                self._tile_integers(view, jobs[k]),
                jobs[k],
                scale[k],
                zero[k],
                first,
                dither,
                random,
                starts,
                has_blank,
                int(blank[k]),
                out,
            )


def _check_window(window: Window, height: int, width: int, name: str) -> None:
    y0, y1, x0, x1 = window
    if not (0 <= y0 < y1 <= height and 0 <= x0 < x1 <= width):
        raise ValueError(f"{name}: window {window} is not inside {height}x{width} pixels")


def _place_tiles(raw: Array, jobs: NDArray[np.int64], shuffled: bool, out: Array, *, few: bool) -> None:
    """Inflated tiles into `out`; `few` of them by numpy, since loading numba takes half a second."""
    if few:
        _place_with_numpy(raw, jobs, shuffled, out)
        return
    from ripple.rubin.formats import decode_loops

    if shuffled and out.itemsize == 4:
        decode_loops.unshuffle4(raw, jobs, out.view(np.uint32))
    else:
        decode_loops.unpack(raw, jobs, shuffled, out.view(f"u{out.itemsize}"))


def _place_with_numpy(raw: Array, jobs: NDArray[np.int64], shuffled: bool, out: Array) -> None:
    """The same as `decode_loops.unpack`, by numpy."""
    size, into = out.itemsize, out.view(f"u{out.itemsize}")
    for start, h, w, y0, y1, x0, x1, row, column in jobs.tolist():
        tile = raw[start : start + h * w * size]
        # GZIP_2 puts all first bytes first, then all second ones: size, h, w instead of h, w, size.
        tile = tile.reshape(size, h, w).transpose(1, 2, 0) if shuffled else tile.reshape(h, w, size)
        pixels = np.ascontiguousarray(tile[y0:y1, x0:x1]).view(f">u{size}")
        into[row : row + y1 - y0, column : column + x1 - x0] = pixels[..., 0]


def _gunzip_members(stream: memoryview, size: int, name: str) -> Array:
    """What a gzip stream of many members holds: exactly `size` bytes, all checksums verified."""
    from zlib_ng import gzip_ng, zlib_ng

    out = np.empty(size, np.uint8)
    damage: Any = zlib_ng.error
    try:
        with gzip_ng.GzipNGFile(fileobj=io.BytesIO(stream)) as file:
            count = file.readinto(memoryview(out))
            # A further byte would mean that the tiles hold more than the header says.
            if count != size or file.read(1):
                raise UnreadableError(f"{name}: damaged, its tiles do not have the pixels of their shapes")
    except (OSError, EOFError, zlib.error, damage) as error:
        raise UnreadableError(f"{name}: damaged, a tile does not inflate: {error}") from error
    return out


def _gunzip(view: memoryview, size: int, name: str) -> bytes | bytearray:
    """A gzip stream of at most `size` bytes, its checksum verified."""
    import deflate

    try:
        if size < _TINY_BYTES:
            # 31 = 15 (the largest window) + 16 (a gzip header, with its CRC checked).
            return zlib.decompress(view, wbits=31, bufsize=size)
        return deflate.gzip_decompress(view, size)
    except (zlib.error, deflate.DeflateError) as error:
        raise UnreadableError(f"{name}: damaged, a tile does not inflate: {error}") from error


@functools.cache
def _leading_zeros() -> NDArray[np.uint8]:
    """Leading zero bits of each byte."""
    return np.array([8 - value.bit_length() for value in range(256)], np.uint8)


@functools.cache
def _random_sequence() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The 10000 numbers r of the dithering (FITS 4.0, appendix I; Park & Miller 1988), and `int(500 r)`."""
    seed, sequence = 1, np.empty(10000, np.float32)
    for k in range(len(sequence)):
        seed = 16807 * seed % 2147483647
        sequence[k] = seed / 2147483647
    return sequence, (sequence * np.float32(500)).astype(np.int64)
