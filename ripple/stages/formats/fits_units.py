"""Flux units of FITS headers: nanojansky per unit of the pixels, from BUNIT and zero points."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import astropy.units as u
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning

#: AB magnitude of 1 nJy.
NJY_ZERO_POINT = 31.4
#: Cards with the AB magnitude of one count.
ZERO_POINT_CARDS = ("MAGZERO", "MAGZP", "MAGZPT", "ZEROPOINT", "ZPT", "PHOTZP")
#: Statements that differ by less are the same, magnitudes.
SAME_ZERO_POINT = 0.01
# Spellings that `astropy.units` does not know, in lower case.
_SPELLINGS = {
    "nanomaggies": "nmgy", "nanomaggie": "nmgy", "nmaggy": "nmgy", "njy": "nJy", "nanojansky": "nJy",
    "ujy": "uJy", "microjansky": "uJy", "jy": "Jy", "jansky": "Jy", "counts": "ct", "count": "ct",
    "adu": "adu",
    "dn": "adu", "adus": "adu", "e-": "electron", "electrons": "electron", "counts/s": "ct / s",
    "cps": "ct / s", "adu/s": "adu / s", "dn/s": "adu / s", "e-/s": "electron / s",
    "electrons/s": "electron / s",
}  # fmt: skip
_COUNTS = (u.adu, u.ct, u.electron, u.adu / u.s, u.ct / u.s, u.electron / u.s, u.dimensionless_unscaled)


class WrongUnitError(ValueError):
    """A unit that cannot be used, or that two cards say differently."""


@dataclass(frozen=True, slots=True)
class Flux:
    """How pixels become nanojansky.

    Parameters
    ----------
    factor
        nJy per unit; None when nothing says it.
    text
        What said so, for people.
    unit
        What BUNIT says; None without it.
    """

    factor: float | None
    text: str
    unit: u.UnitBase | None = None


def flux_of(header: fits.Header, where: str, pixel_scale: float | None) -> Flux:
    """What a header says of the flux unit of its pixels.

    Parameters
    ----------
    header
        With the cards of the primary header that hold for it.
    where
        File and HDU, for messages.
    pixel_scale
        Arcsec, for surface brightness; None when unknown.

    Raises
    ------
    WrongUnitError
        The unit is not known, or two cards say different things.
    """
    if "BSOFTEN" in header:
        raise WrongUnitError(
            f"{where}: the pixels are asinh magnitudes (BSOFTEN, as in stacks of Pan-STARRS), no fluxes: "
            "convert them first"
        )
    unit = unit_of(header, where)
    found: dict[str, float] = {}
    if unit is not None and unit not in _COUNTS:
        found[f"BUNIT {unit.to_string()}"] = _njy(unit, where, pixel_scale)
    for card, point in _zero_points(header, where).items():
        found[f"{card} {header[card]:g}"] = 10 ** (0.4 * (NJY_ZERO_POINT - point))
    if not found:
        return Flux(None, f"{unit.to_string() or 'no unit'}, no zero point" if unit else "no unit", unit)
    if max(found.values()) > min(found.values()) * 10 ** (0.4 * SAME_ZERO_POINT):
        said = ", ".join(f"{name} means {factor:.6g} nJy" for name, factor in found.items())
        raise WrongUnitError(f"{where}: {said}: these are different units")
    name, factor = next(iter(found.items()))
    return Flux(factor, name, unit)


def unit_of(header: fits.Header, where: str) -> u.UnitBase | None:
    """BUNIT as a unit; None without it."""
    text = str(header.get("BUNIT", "")).strip().replace("µ", "u")
    if not text:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            return u.Unit(_SPELLINGS.get(text.lower().replace(" ", ""), text))
        except (ValueError, TypeError):
            raise WrongUnitError(f"{where}: BUNIT is {text!r}, which is no unit that astropy knows") from None


def _njy(unit: u.UnitBase, where: str, pixel_scale: float | None) -> float:
    """Nanojansky per unit of flux density or, with a pixel scale, of surface brightness."""
    with u.add_enabled_equivalencies(u.zero_point_flux(1 * u.AB)):
        if unit.is_equivalent(u.nJy):
            return float((1 * unit).to_value(u.nJy))
        area = u.Unit("arcsec2")
        if (unit * area).is_equivalent(u.nJy):
            if pixel_scale is None:
                raise WrongUnitError(f"{where}: BUNIT is {unit}, which needs the pixel scale")
            return float((1 * unit * area).to_value(u.nJy) * pixel_scale**2)
    raise WrongUnitError(f"{where}: BUNIT is {unit}, which is no flux density")


def _zero_points(header: fits.Header, where: str) -> dict[str, float]:
    """Card -> AB magnitude of one unit."""
    found: dict[str, float] = {}
    for card in ZERO_POINT_CARDS:
        value = header.get(card)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[card] = float(value)
    # FLUXMAG0 of afw: counts of magnitude zero.
    counts = header.get("FLUXMAG0")
    if isinstance(counts, int | float) and not isinstance(counts, bool):
        if not counts > 0:
            raise WrongUnitError(f"{where}: FLUXMAG0 is {counts}")
        found["FLUXMAG0"] = 2.5 * math.log10(counts)
    for card, point in found.items():
        if not 5 < point < 50:
            raise WrongUnitError(f"{where}: {card} is {header[card]}, which is no AB zero point")
    return found


def variance_factor(header: fits.Header, where: str, flux: Flux, role: str) -> float:
    """What brings a variance, an rms or an inverse variance to the unit of its image.

    A plane without a unit, or with a copy of the image's, is in that of the image.

    Raises
    ------
    WrongUnitError
        Its unit is not that of a noise of the image.
    """
    unit = unit_of(header, where)
    if unit is None or flux.unit is None or unit == flux.unit:
        return 1.0
    power = {"variance": 2, "ivar": -2, "rms": 1}[role]
    try:
        return float((1 * unit).to_value(flux.unit**power))
    except u.UnitConversionError:
        raise WrongUnitError(
            f"{where}: BUNIT is {unit}, which is no {role} of an image in {flux.unit}"
        ) from None
