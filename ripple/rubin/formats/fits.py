"""A minimal FITS walker: headers and byte offsets of the HDUs of a file, without touching its data.

FITS Standard 4.0, sections 3 and 4. The parser allocates nothing that the file asks for: every length is
checked against the bytes that are there.
"""

from __future__ import annotations

import bisect
import hashlib
import math
import re
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ripple.errors import UnreadableError

#: FITS files come in blocks of this many bytes (section 3.1).
BLOCK = 2880

#: Bytes of one element of each binary table type (section 7.3.1).
TYPE_SIZES = {
    "L": 1, "X": 1, "B": 1, "I": 2, "J": 4, "K": 8, "A": 1, "E": 4, "D": 8, "C": 8, "M": 16, "P": 8, "Q": 16
}  # fmt: skip

Value = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Hdu:
    """Header of one HDU and where it lies.

    Parameters
    ----------
    header
        Value of each keyword (the first, if it repeats); HIERARCH keywords without the prefix.
    start
        Offset of the header in the file, bytes.
    data
        Offset of the data, bytes.
    size
        Bytes of the data with heap, without padding.
    """

    header: Mapping[str, Value]
    start: int
    data: int
    size: int

    @property
    def extname(self) -> str:
        """Upper-case EXTNAME, empty when there is none."""
        return str(self.header.get("EXTNAME", "")).upper()

    @property
    def kinds(self) -> frozenset[str]:
        """Upper-case EXTNAME and EXTTYPE, as far as they are there; HSC and old afw files have no EXTNAME."""
        found = {self.extname, self.text("EXTTYPE").upper()}
        # CFITSIO calls a compressed image so when nobody names it.
        return frozenset(found - {"", "COMPRESSED_IMAGE"})

    @property
    def label(self) -> str:
        """HDU, for messages."""
        return f"HDU {self.extname or self.text('EXTTYPE') or 'PRIMARY'}"

    @property
    def end(self) -> int:
        """Offset of the next HDU."""
        return self.data + -(-self.size // BLOCK) * BLOCK

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer card; `UnreadableError` when it is absent without default, or not an integer."""
        value = self.header.get(key, default)
        # Some writers give integers as 1.0; a bool is an int to Python and not to FITS.
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UnreadableError(f"{self.label}: card {key} is {value!r}, not an integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A numeric card; `UnreadableError` when it is absent without default, or not a finite number."""
        value = self.header.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UnreadableError(f"{self.label}: card {key} is {value!r}, not a finite number")
        return float(value)

    def text(self, key: str, default: str = "") -> str:
        """A string card without trailing blanks."""
        return str(self.header.get(key, default)).rstrip()


class Source(Protocol):
    """Bytes of a file."""

    def __call__(self, offset: int, length: int) -> memoryview:
        """Exactly `length` bytes; `UnreadableError` when they are not there."""
        ...

    def many(self, spans: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Several `(offset, length)` at once."""
        ...


class Memory:
    """A file that lies in memory.

    Parameters
    ----------
    data
        The whole file.
    name
        File, for messages.
    """

    def __init__(self, data: bytes | memoryview, name: str) -> None:
        self.view = memoryview(data).cast("B")
        self.name = name

    def __call__(self, offset: int, length: int) -> memoryview:
        """`length` bytes from `offset`; `UnreadableError` when the file ends before."""
        if offset < 0 or length < 0 or offset + length > len(self.view):
            raise UnreadableError(
                f"{self.name}: truncated or damaged, it has {len(self.view)} bytes and points to bytes "
                f"{offset}..{offset + length}"
            )
        return self.view[offset : offset + length]

    def many(self, spans: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Several `(offset, length)`."""
        size, view = len(self.view), self.view
        for offset, length in spans:
            if offset < 0 or length < 0 or offset + length > size:
                self(offset, length)  # raises
        return [view[offset : offset + length] for offset, length in spans]

    def digest(self) -> str:
        """sha256 (hex) of the file."""
        return hashlib.sha256(self.view).hexdigest()

    def bytes_read(self) -> int:
        """Bytes of the file."""
        return len(self.view)


class Ranges:
    """A file of which only byte ranges are fetched; each byte at most once. Thread-safe.

    Parameters
    ----------
    reader
        `reader(offset, length) -> bytes`; may give fewer bytes only at the end of the file.
    name
        File, for messages.
    ahead
        Smallest fetch in bytes: a round trip costs more than reading these.
    gap
        Neighbouring ranges with at most this many unwanted bytes between them are fetched as one.
    """

    def __init__(
        self, reader: Callable[[int, int], bytes], name: str, *, ahead: int = 8192, gap: int = 16384
    ) -> None:
        self.name = name
        self._reader = reader
        self._ahead = ahead
        self._gap = gap
        # Offsets and bytes of the fetched ranges, sorted by offset, so that a lookup is a bisection.
        self._starts: list[int] = []
        self._pieces: list[bytes] = []
        self._lock = threading.Lock()

    def __call__(self, offset: int, length: int) -> memoryview:
        """`length` bytes from `offset`, fetched unless they are known."""
        return self.many([(offset, length)])[0]

    def many(self, spans: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Several `(offset, length)`, in as few fetches as `gap` allows."""
        if not spans:
            return []
        # When one piece holds them all, slices of one view save a lookup for each of thousands of tiles.
        low = min(offset for offset, _ in spans)
        extent = max(offset + length for offset, length in spans) - low
        with self._lock:
            whole = self._known(low, extent)
            if whole is None:
                missing = sorted(span for span in spans if self._known(*span) is None)
                for start, stop in _merged(missing, self._gap):
                    self._fetch(start, stop - start)
                whole = self._known(low, extent)
            if whole is None:
                return [self._view(*span) for span in spans]
            return [whole[offset - low : offset - low + length] for offset, length in spans]

    def digest(self) -> str:
        """`ranges:` and sha256 (hex) over the ranges fetched so far, in file order: offset, length, bytes."""
        # Offset and length go into the hash: the same bytes from elsewhere in the file are not the same.
        total = hashlib.sha256()
        with self._lock:
            for start, piece in zip(self._starts, self._pieces, strict=True):
                total.update(struct.pack("<qq", start, len(piece)))
                total.update(piece)
        return "ranges:" + total.hexdigest()

    def bytes_read(self) -> int:
        """Bytes fetched so far."""
        with self._lock:
            return sum(len(piece) for piece in self._pieces)

    def _view(self, offset: int, length: int) -> memoryview:
        view = self._known(offset, length)
        if view is None:
            raise UnreadableError(
                f"{self.name}: truncated or damaged, it ends before bytes {offset}..{offset + length}"
            )
        return view

    def _known(self, offset: int, length: int) -> memoryview | None:
        k = bisect.bisect_right(self._starts, offset) - 1
        # Ranges may overlap, so an earlier and longer one can hold what the nearest does not.
        for i in range(k, -1, -1):
            inside = offset - self._starts[i]
            if length >= 0 and inside + length <= len(self._pieces[i]):
                return memoryview(self._pieces[i])[inside : inside + length]
        return None

    def _fetch(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0:
            raise UnreadableError(f"{self.name}: damaged, it points to {length} bytes at {offset}")
        # Not checked for its length here: `_view` says what is missing.
        piece = bytes(self._reader(offset, max(length, self._ahead)))
        k = bisect.bisect_right(self._starts, offset)
        self._starts.insert(k, offset)
        self._pieces.insert(k, piece)


def _merged(spans: Sequence[tuple[int, int]], gap: int) -> list[tuple[int, int]]:
    """Sorted `(offset, length)` as `(start, stop)`, neighbours joined."""
    out: list[tuple[int, int]] = []
    for offset, length in spans:
        if out and offset <= out[-1][1] + gap:
            out[-1] = (out[-1][0], max(out[-1][1], offset + length))
        else:
            out.append((offset, offset + length))
    return out


def walk(data: bytes | memoryview, *, name: str) -> tuple[Hdu, ...]:
    """All HDUs of a FITS file in memory.

    Parameters
    ----------
    data
        The whole file.
    name
        File, for messages.

    Raises
    ------
    UnreadableError
        When the bytes are not FITS, or end before the data that a header announces.
    """
    read = Memory(data, name)
    view = read.view
    check_signature(view, name)
    hdus: list[Hdu] = []
    offset = 0
    while offset < len(view):
        if hdus and bytes(view[offset : offset + 8]) != b"XTENSION":
            break  # special records after the last HDU (section 3.5)
        hdu = read_hdu(read, offset, name=name)
        # Raises when the file ends before the data that the header announces.
        read(hdu.data, hdu.size)
        hdus.append(hdu)
        offset = hdu.end
    return tuple(hdus)


def check_signature(start: memoryview, name: str) -> None:
    """Raise `UnreadableError` unless these first bytes can be those of a FITS file."""
    if bytes(start[:9]) != b"SIMPLE  =":
        raise UnreadableError(f"{name}: not a FITS file, it starts with {bytes(start[:16])!r}")


def read_hdu(read: Source, offset: int, *, name: str, most: int = 2000) -> Hdu:
    """The HDU whose header starts at `offset`; reads at most `most` blocks of header."""
    # The limit ends a header without END before it has read a whole file as cards.
    blocks: list[bytes] = []
    for k in range(most):
        blocks.append(bytes(read(offset + k * BLOCK, BLOCK)))
        if any(blocks[-1][i : i + 8] == b"END     " for i in range(0, BLOCK, 80)):
            return parse_hdu(b"".join(blocks), offset, name=name)
    raise UnreadableError(f"{name}: the header at byte {offset} has no END")


def parse_hdu(header: bytes, offset: int, *, name: str) -> Hdu:
    """The HDU of a complete header (whole blocks, with END) that starts at `offset` of its file."""
    try:
        cards = dict(_cards(header.decode("ascii")))
    except (UnicodeDecodeError, ValueError) as error:
        raise UnreadableError(f"{name}: damaged FITS header at byte {offset}: {error}") from error
    hdu = Hdu(cards, offset, offset + len(header), 0)  # its checked card readers give the size
    return Hdu(cards, offset, hdu.data, _data_size(hdu, name))


def columns(hdu: Hdu) -> dict[str, tuple[int, str]]:
    """Columns of a binary table: name -> offset in the row, and type code (`PB`, `D`, `A`, ...)."""
    found: dict[str, tuple[int, str]] = {}
    offset = 0
    for k in range(1, hdu.integer("TFIELDS") + 1):
        # TFORM is rT, with r = 1 when it is left out; P and Q add the type of their elements.
        match = re.match(r"(\d*)([LXBIJKAEDCMPQ])([A-Z]?)", hdu.text(f"TFORM{k}"))
        if match is None:
            raise UnreadableError(f"{hdu.label}: column format {hdu.text(f'TFORM{k}')!r}")
        repeat = int(match[1] or 1)
        found[hdu.text(f"TTYPE{k}").upper()] = (offset, match[2] + (match[3] if match[2] in "PQ" else ""))
        offset += -(-repeat // 8) if match[2] == "X" else repeat * TYPE_SIZES[match[2]]
    return found


def _data_size(hdu: Hdu, name: str) -> int:
    """Bytes of data (FITS 4.0, equation 2)."""
    axes = [hdu.integer(f"NAXIS{k + 1}") for k in range(hdu.integer("NAXIS"))]
    if not axes:
        return 0
    size = 1  # a Python integer: absurd axes cannot overflow
    for n in axes:
        size *= n
    size = abs(hdu.integer("BITPIX")) // 8 * hdu.integer("GCOUNT", 1) * (hdu.integer("PCOUNT", 0) + size)
    # Negative axes could multiply to a plausible size.
    if min(axes) < 0 or size < 0:
        raise UnreadableError(f"{name}: negative size in the header at byte {hdu.start}")
    return size


def _cards(text: str) -> Iterator[tuple[str, Value]]:
    """Keyword and value of each card, first occurrence last so that a dict keeps it."""
    found: list[tuple[str, Value]] = []
    for i in range(0, len(text), 80):
        card = text[i : i + 80]
        if card.startswith("END     "):
            break
        # ESO convention for keywords longer than eight characters; afw writes them.
        if card.startswith("HIERARCH ") and "=" in card:
            key, _, rest = card[9:].partition("=")
        elif card[8:10] == "= ":
            key, rest = card[:8], card[10:]
        elif card.startswith("CONTINUE") and found and isinstance(found[-1][1], str):
            # A string that ends with & goes on in the next card (section 4.2.1.2).
            found[-1] = (found[-1][0], found[-1][1].rstrip().removesuffix("&") + str(_value(card[8:])))
            continue
        else:
            continue  # COMMENT, HISTORY, blank
        value = _value(rest)
        if value is not None:
            found.append((key.strip(), value))
    return reversed(found)


def _value(text: str) -> Value | None:
    """Value field of a card (section 4.2); None when it is undefined."""
    text = text.strip()
    if text.startswith("'"):
        return _string(text)
    word = text.split("/", 1)[0].strip()
    if not word:
        return None
    if word in ("T", "F"):
        return word == "T"
    try:
        return int(word)
    except ValueError:
        pass
    try:
        # D is the Fortran exponent of double precision (section 4.2.4).
        return float(word.replace("D", "E").replace("d", "e"))
    except ValueError:
        return word  # complex numbers and the like, which nothing here reads


def _string(text: str) -> str:
    """A quoted string, with doubled quotes undone and trailing blanks removed."""
    out: list[str] = []
    i = 1
    while i < len(text):
        # A quote inside a string is written twice; a single one ends it.
        if text[i] != "'":
            out.append(text[i])
        elif text[i + 1 : i + 2] == "'":
            out.append("'")
            i += 1
        else:
            break
        i += 1
    return "".join(out).rstrip()
