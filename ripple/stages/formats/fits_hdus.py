"""What one FITS file says about its pictures: the role and the band of each HDU.

Nothing follows from the order of HDUs. A role or a band is said by the name of an HDU, by its cards, by those
of the primary header, or by the name of the file; where two of them differ, the row is refused.
"""

from __future__ import annotations

import gzip
import io
import re
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from numpy.typing import NDArray

from ripple.imaging.bands import canonical, is_known, match

#: Empty, image, variance, rms, ivar, mask, psf or other.
Role = str

#: Bytes of a gzipped file once unpacked; more is a damaged or hostile file.
MAX_UNPACKED = 1 << 32
#: Words that say a role, as parts of names of HDUs and files and as values of cards.
ROLE_WORDS: dict[str, Role] = {
    word: role
    for role, words in (
        ("image", "SCI SCIENCE IMAGE IMG FLUX DATA COADD"),
        ("variance", "VAR VARIANCE"),
        ("rms", "RMS ERR ERROR ERRORS SIGMA STD STDDEV NOISE UNC UNCERT UNCERTAINTY"),
        # Weight maps may lack a factor; the quality control compares them with the pixels.
        ("ivar", "IVAR INVVAR INVVARIANCE WHT WT WTMAP WGT WEIGHT WEIGHTS"),
        ("mask", "MASK MSK FLAG FLAGS DQ DQMASK BPM BITMASK"),
        ("psf", "PSF PSFEX KERNEL"),
        ("other", "MODEL BLOBMODEL RESID RESIDUAL CHI2 CHISQ SEG SEGM SEGMENTATION NEXP DEPTH GALDEPTH"),
        ("other", "PSFDEPTH PSFSIZE EXPMAP EXPTIME EXP SKY BKG BACKGROUND CTX CONTEXT COVERAGE MASKBITS"),
        # Parts of the noise and other planes of JWST.
        ("other", "POISSON RNOISE FLAT AREA CON WMAP"),
    )
    for word in words.split()
}  # fmt: skip
ROLE_CARDS = ("EXTTYPE", "IMTYPE", "PRODTYPE")
BAND_CARDS = ("BAND", "LSST BUTLER DATAID BAND", "FPA.FILTER", "FILTER", "FILTNAM", "FILTER1", "FILTER2")
#: Cards of the primary header that hold for all HDUs that do not have them.
INHERITED = (
    *BAND_CARDS, "BANDS", "BUNIT", "FLUXMAG0", "MAGZERO", "MAGZP", "MAGZPT", "ZEROPOINT", "ZPT", "PHOTZP",
    "GAIN",
    "OBJID", "OBJECTID", "LABEL", "CLASSES", "OBJ_RA", "OBJ_DEC", "RA_OBJ", "DEC_OBJ", "RA_TARG", "DEC_TARG",
    "TRACT", "X0", "Y0", "ORIGIN", "PIXSCALE",
)  # fmt: skip
# Names that FITS writers give to HDUs of which they know nothing.
_NO_NAMES = ("", "PRIMARY", "COMPRESSED_IMAGE")
_NO_FILTER = re.compile(r"|CLEAR\w*|NONE|OPEN|EMPTY|N/?A|UNKNOWN|UNDEFINED", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FileName:
    """What the name of a file says: its row, and role and band of what is in it; empty where it says none."""

    row: str
    role: Role = ""
    band: str = ""


@dataclass(frozen=True, slots=True)
class Plane:
    """One picture of a FITS file.

    Parameters
    ----------
    file, hdu
        Name of the file, and number and name of the HDU, for messages.
    role
        Empty when nothing says it.
    said
        Place and spelling of each mention of its band.
    data
        `(H, W)`, or `(B, H, W)` of a cube.
    header
        Its cards, and those of the primary header that hold for it.
    """

    file: str
    hdu: str
    role: Role
    said: tuple[tuple[str, str], ...]
    data: NDArray[Any]
    header: fits.Header

    @property
    def named(self) -> bool:
        """Whether the HDU has a name."""
        return self.hdu.endswith(")")

    @property
    def where(self) -> str:
        """File and HDU."""
        return f"{self.file}, {self.hdu}"


def planes_of(data: bytes, name: FileName, file: str, ignored: Collection[str] = ()) -> list[Plane]:
    """The pictures of a file; an HDU without pixels is a missing picture, not zeros.

    Parameters
    ----------
    data
        The file, gzipped or not.
    name
        What its name says.
    file
        Its name.
    ignored
        Cards to read as if they were not there.

    Raises
    ------
    ValueError
        Two places say different roles, or an HDU is neither an image nor a cube.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        # Without lazy loading: a truncated file must fail here, where the error is caught.
        with fits.open(
            io.BytesIO(_plain_fits(data)), memmap=False, lazy_load_hdus=False, ignore_missing_simple=False
        ) as hdus:
            primary = hdus[0].header
            planes = [
                _plane(hdu, k, primary, file, ignored)
                for k, hdu in enumerate(hdus)
                if isinstance(hdu, fits.PrimaryHDU | fits.ImageHDU | fits.CompImageHDU)
                and hdu.data is not None
                and hdu.data.size
                and hdu.data.ndim >= 2
            ]
    if name.role and len(planes) == 1:
        if planes[0].role not in ("", name.role):
            raise ValueError(f"{planes[0].where} is {planes[0].role}, the name of the file says {name.role}")
        planes = [replace(planes[0], role=name.role)]
    said = (("file name", name.band),) if name.band else ()
    return [replace(plane, said=plane.said + said) for plane in planes]


def _plane(hdu: Any, number: int, primary: fits.Header, file: str, ignored: Collection[str]) -> Plane:
    header = hdu.header.copy()
    if header.get("INHERIT") is not False:
        for card in INHERITED:
            if card in primary and not str(header.get(card, "")).strip():
                header[f"HIERARCH {card}" if " " in card or len(card) > 8 else card] = primary[card]
    for card in ignored:
        header.remove(card, ignore_missing=True, remove_all=True)
    name = "" if hdu.name in _NO_NAMES or "EXTNAME" in ignored else hdu.name
    label = f"HDU {number} ({hdu.name})" if name else f"HDU {number}"
    role, rest = _role_and_rest(name)
    said = [("EXTNAME", rest)] if rest else []
    for card in ROLE_CARDS:
        by_card = _role_and_rest(header[card])[0] if isinstance(header.get(card), str) else ""
        if role and by_card and by_card != role:
            raise ValueError(f"{file}, {label}: its name says {role}, the card {card} says {by_card}")
        role = role or by_card
    for card in BAND_CARDS:
        value = header.get(card)
        if isinstance(value, str) and not _NO_FILTER.fullmatch(value.strip()):
            said.append((card, value.strip()))
    return Plane(file, label, role, tuple(said), _native(hdu.data), header)


def _role_and_rest(name: str) -> tuple[Role, str]:
    """The role that a name says, and what else it says; `G_SCI` -> (image, G)."""
    words = [word for word in re.split(r"[^A-Za-z0-9.']+", name) if word]
    roles = [ROLE_WORDS.get(word.upper().rstrip("0123456789"), "") for word in words]
    rest = "_".join(word for word, role in zip(words, roles, strict=True) if not role)
    found = [role for role in roles if role]
    # As in `INVERSE_VARIANCE`, `PSF_IMAGE` and `MODEL_VAR`: the word that is less common decides.
    if "INVERSE" in map(str.upper, words):
        return "ivar", ""
    for special in ("other", "psf", "mask", "ivar", "rms", "variance"):
        if special in found:
            return special, rest
    return ("image", rest) if found else ("", rest)


def _plain_fits(data: bytes) -> bytes:
    """The bytes without gzip, which astropy only removes from files on disk."""
    if not data.startswith(b"\x1f\x8b"):
        return data
    # One byte more than allowed: a small file may unpack to any size.
    plain = gzip.GzipFile(fileobj=io.BytesIO(data)).read(MAX_UNPACKED + 1)
    if len(plain) > MAX_UNPACKED:
        raise ValueError(f"more than {MAX_UNPACKED} bytes when unpacked")
    return plain


def _native(data: NDArray[Any]) -> NDArray[Any]:
    """Two or three axes in the byte order of the machine; leading axes of length 1 are dropped."""
    squeezed = data
    while squeezed.ndim > 2 and squeezed.shape[0] == 1:
        squeezed = squeezed[0]
    if squeezed.ndim > 3:
        raise ValueError(f"an HDU of shape {data.shape} is neither an image nor a cube")
    return np.ascontiguousarray(squeezed, squeezed.dtype.newbyteorder("="))


# Bands ---------------------------------------------------------------


def band_of(plane: Plane, bands: Sequence[str]) -> str:
    """The band of a plane, under the name of `bands` where it is one of them; empty when nothing says it.

    Parameters
    ----------
    plane
        A picture.
    bands
        Names that the user gives; empty when the files name the bands.

    Raises
    ------
    ValueError
        Two places say different bands.
    """
    found: dict[str, str] = {}  # place -> band
    for place, spelling in plane.said:
        band = match(spelling, bands) or (canonical(spelling) if is_known(spelling) else "")
        # The rest of an HDU's name may say anything; a card or a file name was asked for a band.
        band = band or _within(spelling, bands) or (canonical(spelling) if place != "EXTNAME" else "")
        if band:
            found[place] = band
    # `Y` and `y` are one filter unless the user asks for both.
    if len({band.lower() for band in found.values()}) > 1:
        spelled = dict(plane.said)
        both = " and ".join(f"{place} says {spelled[place]}" for place in found)
        raise ValueError(f"{plane.where}: {both}: these are different bands")
    return next((band for band in found.values() if band in bands), next(iter(found.values()), ""))


def _within(text: str, bands: Sequence[str]) -> str:
    """The one band among the words of a text, as in `CUTOUT_G`; empty when none or several."""
    words = re.split(r"[_\-. ]", text)
    if len(words) == 1:
        return ""
    usual = bands or tuple("ugrizy")
    found = {match(word, usual) for word in words} - {""}
    return found.pop() if len(found) == 1 else ""


def file_name(path: str, bands: Sequence[str]) -> FileName:
    """Row, role and band of a file name without suffix: `x_i_var` is the variance of row x in i.

    Parameters
    ----------
    path
        Relative to the folder of the import, with slashes.
    bands
        Names that the user gives; without them, the known spellings count.
    """
    folder, slash, name = path.rpartition("/")
    pieces = re.split(r"([_\-.])", name)  # words and separators in turn
    words, role, band = pieces, "", ""
    while len(words) > 1:
        last = ROLE_WORDS.get(words[-1].upper(), "")
        if last and not role:
            role, words = last, words[:-2]
            continue
        # Two words first: `NIR_Y` is not Y of `NIR`.
        for count in (3, 1):
            spelled = "".join(words[-count:])
            hit = match(spelled, bands) if bands else (canonical(spelled) if is_known(spelled) else "")
            if hit and not band and len(words) > count:
                band, words = hit, words[: -count - 1]
                break
        else:
            break
    row = "".join(words)
    return FileName(folder + slash + row, role, band) if row else FileName(path)
