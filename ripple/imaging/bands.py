"""Names of bands: how cameras and surveys spell them, and their wavelengths.

A band keeps the name that its user gives it; these tables only tell which names mean the same filter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

#: How each camera or survey writes the filter `b`; where one spelling fits two, the first wins.
SPELLINGS: tuple[tuple[str, str], ...] = (
    ("HSC", r"HSC[-_ ](?P<b>[grizy])2?"),
    ("DECam", r"(?P<b>[ugrizY]) DECam\b.*"),
    ("DES, DECaLS", r"(?:DECam|DES|DECaLS|DELVE)[-_ .](?P<b>[ugrizY])"),
    ("BASS, MzLS", r"(?:BASS|MzLS|90prime|BOK|LEGACY|LS|DR\d+)[-_ .](?P<b>[ugrizy])d?"),
    ("MegaCam", r"(?P<b>[ugriyz])\.MP\d{4}"),
    ("CFHTLS", r"(?:CFHTLS|CFHT|MegaCam|MegaPrime)[-_ .](?P<b>[ugriyz])"),
    ("Pan-STARRS", r"(?P<b>[grizy])\.0{5}|(?:PS1?|PanSTARRS)[-_ .](?P<b2>[grizy])|(?P<b3>[grizy])P1"),
    ("SDSS", r"SDSS[-_ .](?P<b>[ugriz])|(?P<b2>[ugriz])[-_ .]?SDSS|(?P<b3>[ugriz])'"),
    ("KiDS", r"(?:KiDS|OCAM|OmegaCAM)[-_ .](?P<b>[ugri])(?:[-_ .]SDSS)?"),
    ("LSST", r"(?:LSST|LSSTCam|LSSTComCam|Rubin)[-_ .](?P<b>[ugrizy])"),
    ("LSSTCam", r"(?P<b>[ugrizy])_\d{1,2}"),
    ("imSim", r"(?P<b>[ugrizy])_sim_\d\.\d"),
    ("Euclid VIS", r"(?:Euclid[-_ .])?(?P<b>VIS)"),
    ("Euclid NISP", r"(?:Euclid[-_ .])?(?:NISP|NIR)[-_ .](?P<b>[YJH])"),
    ("VISTA", r"(?:VISTA|VIKING|VHS|VIDEO|UltraVISTA|VIRCAM)[-_ .](?P<b>[ZYJHK]s?)"),
    ("UKIRT, 2MASS", r"(?:UKIDSS|WFCAM|2MASS|UHS)[-_ .](?P<b>[ZYJHK]s?)"),
    ("WISE", r"(?:un)?(?:WISE[-_ .])?(?P<b>W[1-4])"),
    ("HST, JWST", r"(?:[A-Z\d]+[-_/ .])*(?P<b>F\d{3,4}(?:W2|LP|[WMNX]))"),
    ("any", r"(?P<b>[UGRIZugrizyYJHK]|Ks)(?:[-_ ]?band)?"),
)
_PATTERNS = tuple(re.compile(pattern, re.IGNORECASE) for _, pattern in SPELLINGS)
#: Central wavelengths, nm: Rubin (u to y), Euclid (VIS, Y, J, H), VISTA (Z, K, Ks), WISE.
WAVELENGTHS: dict[str, float] = {
    "u": 368, "g": 480, "r": 622, "VIS": 715, "i": 754, "z": 869, "Z": 878, "y": 971, "Y": 1081, "J": 1367,
    "H": 1769, "K": 2201, "Ks": 2144, "W1": 3368, "W2": 4618, "W3": 12082, "W4": 22194,
}  # fmt: skip
# Optical filters of HST are numbered in nm, infrared ones and those of JWST in units of 10 nm.
_IN_NM = frozenset(
    (
        218, 225, 250, 275, 300, 336, 390, 410, 435, 438, 439, 450, 475, 547, 555, 606, 621, 625, 689, 702,
        763, 775, 791, 814, 845, 850,
    )
)  # fmt: skip
_KEEP_CASE = {name.lower(): name for name in WAVELENGTHS if len(name) > 1}


def canonical(name: str) -> str:
    """The filter that a spelling means: `HSC-I2` is i, `g.MP9401` and `DECAM_g` are g, `NIR_H` is H.

    An unknown name stays as it is. A bare `Y` stays Y (of Euclid, VISTA or DECam), a bare `y` stays y.
    """
    text = name.strip()
    for pattern in _PATTERNS:
        found = pattern.fullmatch(text)
        if found:
            band = next(part for part in found.groups() if part)
            return _case(band, of_hsc=pattern is _PATTERNS[0])
    return text


def _case(band: str, *, of_hsc: bool) -> str:
    """A band as it is usually written: u, g, r, i, z in lower case, J, H, K in upper case."""
    if len(band) > 1:
        return _KEEP_CASE.get(band.lower(), band.upper())
    if band in "yY":
        return "y" if of_hsc else band
    return band.upper() if band.upper() in "JHK" else band.lower()


def is_known(name: str) -> bool:
    """Whether a name is a filter of these tables."""
    return math.isfinite(wavelength(name))


def wavelength(name: str) -> float:
    """Central wavelength of a band in nm, NaN for an unknown name."""
    band = canonical(name)
    number = re.fullmatch(r"F(\d{3,4})(?:W2|LP|[WMNX])", band)
    if number:
        value = int(number[1])
        return float(value if value in _IN_NM else 10 * value)
    return float(WAVELENGTHS.get(band, math.nan))


def by_wavelength(names: Iterable[str]) -> tuple[str, ...]:
    """Bands from blue to red; unknown ones keep their order after the known ones."""
    return tuple(sorted(names, key=lambda name: (math.isnan(w := wavelength(name)), w if w == w else 0.0)))


def match(said: str, bands: Iterable[str]) -> str:
    """Which of `bands` a spelling means; empty when none, or when two of them fit.

    The same spelling fits best, then the same filter, then the same filter but for the case of its letter.
    """
    names = tuple(bands)
    if said.strip() in names:
        return said.strip()
    same = [b for b in names if canonical(b) == canonical(said)]
    alike = same or [b for b in names if canonical(b).lower() == canonical(said).lower()]
    return alike[0] if len(alike) == 1 else ""
