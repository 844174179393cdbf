"""A minimal FITS walker: headers and byte offsets of the HDUs of a file, without touching its data.

FITS Standard 4.0, sections 3 and 4. The parser allocates nothing that the file asks for: every length is
checked against the bytes that are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ripple.errors import UnreadableError

#: FITS files come in blocks of this many bytes (section 3.1).
BLOCK = 2880

Value = bool | int | float | str

#: `read(offset, length)` gives exactly `length` bytes of a file.
Read = Callable[[int, int], memoryview]


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
    def end(self) -> int:
        """Offset of the next HDU."""
        return self.data + -(-self.size // BLOCK) * BLOCK

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer card; `UnreadableError` when it is absent without default, or no integer."""
        value = self.header.get(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UnreadableError(f"HDU {self.extname or 'PRIMARY'}: card {key} is {value!r}, not an integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A numeric card; `UnreadableError` when it is absent without default, or no number."""
        value = self.header.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UnreadableError(f"HDU {self.extname or 'PRIMARY'}: card {key} is {value!r}, not a number")
        return float(value)

    def text(self, key: str, default: str = "") -> str:
        """A string card without trailing blanks."""
        return str(self.header.get(key, default)).rstrip()


def from_memory(data: bytes | memoryview, name: str) -> Read:
    """`Read` on a file that lies in memory; `UnreadableError` beyond its end."""
    view = memoryview(data).cast("B")

    def read(offset: int, length: int) -> memoryview:
        if offset < 0 or length < 0 or offset + length > len(view):
            raise UnreadableError(
                f"{name}: truncated, bytes {offset} to {offset + length} of {len(view)} are missing"
            )
        return view[offset : offset + length]

    return read


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
    view = memoryview(data).cast("B")
    if bytes(view[:9]) != b"SIMPLE  =":
        raise UnreadableError(f"{name}: not a FITS file, it starts with {bytes(view[:16])!r}")
    read = from_memory(view, name)
    hdus: list[Hdu] = []
    offset = 0
    while offset < len(view):
        if hdus and bytes(view[offset : offset + 8]) != b"XTENSION":
            break  # special records after the last HDU (section 3.5)
        hdu = read_hdu(read, offset, name=name)
        read(hdu.data, hdu.size)
        hdus.append(hdu)
        offset = hdu.end
    return tuple(hdus)


def read_hdu(read: Read, offset: int, *, name: str, most: int = 2000) -> Hdu:
    """The HDU whose header starts at `offset`; reads at most `most` blocks of header."""
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
    hdu = Hdu(cards, offset, offset + len(header), 0)
    return Hdu(cards, offset, hdu.data, _data_size(hdu, name))


def _data_size(hdu: Hdu, name: str) -> int:
    """Bytes of data (FITS 4.0, equation 2)."""
    axes = [hdu.integer(f"NAXIS{k + 1}") for k in range(hdu.integer("NAXIS"))]
    if not axes:
        return 0
    size = 1
    for n in axes:
        size *= n
    size = abs(hdu.integer("BITPIX")) // 8 * hdu.integer("GCOUNT", 1) * (hdu.integer("PCOUNT", 0) + size)
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
        if card.startswith("HIERARCH ") and "=" in card:
            key, _, rest = card[9:].partition("=")
        elif card[8:10] == "= ":
            key, rest = card[:8], card[10:]
        elif card.startswith("CONTINUE") and found and isinstance(found[-1][1], str):
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
        return float(word.replace("D", "E").replace("d", "e"))
    except ValueError:
        return word  # complex numbers and the like, which nothing here reads


def _string(text: str) -> str:
    """A quoted string, with doubled quotes undone and trailing blanks removed."""
    out: list[str] = []
    i = 1
    while i < len(text):
        if text[i] != "'":
            out.append(text[i])
        elif text[i + 1 : i + 2] == "'":
            out.append("'")
            i += 1
        else:
            break
        i += 1
    return "".join(out).rstrip()
