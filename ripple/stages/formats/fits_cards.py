"""Cards of a FITS header that describe the object: id, label and classes, position, place in a tract."""

from __future__ import annotations

import json

from astropy.io import fits

from ripple.errors import DataError
from ripple.storage.labels import plain_class, read_labels

_POSITION_CARDS = (("OBJ_RA", "OBJ_DEC"), ("RA_OBJ", "DEC_OBJ"), ("RA_TARG", "DEC_TARG"))


def classes_of(header: fits.Header) -> tuple[str, ...]:
    """Class names by label value of the card `CLASSES`, a JSON list; empty without one."""
    try:
        found = json.loads(str(header.get("CLASSES", "[]")))
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(name, str) and name for name in found):
        raise ValueError("the card CLASSES is no JSON list of names")
    return tuple(found)


def label_of(header: fits.Header, classes: tuple[str, ...]) -> int:
    """Label of the card `LABEL`, -1 without one."""
    value = header.get("LABEL")
    # A card without a value is `Undefined`, and unknown.
    if not isinstance(value, str | int | float):
        return -1
    said = classes_of(header)
    if said and tuple(map(plain_class, said)) != tuple(map(plain_class, classes)):
        raise ValueError(f"its classes are {', '.join(said)}, not {', '.join(classes)}")
    try:
        labels, names = read_labels([value], classes, "LABEL")
    except DataError as err:
        raise ValueError(f"{err.message}; {err.hint}") from None
    if names and not classes:  # a name alone does not tell the classes of the whole folder
        raise ValueError(f"LABEL is {value!r}; name the classes with --classes")
    return int(labels[0])


def scale_of(header: fits.Header) -> float | None:
    """Arcsec per pixel of the card `PIXSCALE`, None without one."""
    value = header.get("PIXSCALE")
    return (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None
    )


def own_bands(header: fits.Header) -> tuple[str, ...]:
    """Bands of a file of `ripple export`, under the names that they had; empty for other files."""
    text = str(header.get("BANDS", ""))
    return tuple(text.split(",")) if header.get("ORIGIN") == "RIPPLe" and text else ()


def position_of(header: fits.Header) -> tuple[float, float] | None:
    """Deg of the object by its own cards, or None."""
    for ra, dec in _POSITION_CARDS:
        if isinstance(header.get(ra), float | int) and isinstance(header.get(dec), float | int):
            return float(header[ra]), float(header[dec])
    return None


def identity_of(header: fits.Header, name: str) -> str:
    """The object's own card, else the file name. RIPPLe's own files escape what FITS text cannot hold."""
    value = str(header.get("OBJID", header.get("OBJECTID", name)))
    return value.encode("ascii").decode("unicode_escape") if header.get("ORIGIN") == "RIPPLe" else value


def place_of(header: fits.Header) -> tuple[int, int, int] | None:
    """Tract and first pixel, which files of `ripple export` have."""
    cards = [header.get(name) for name in ("TRACT", "X0", "Y0")]
    return (int(cards[0]), int(cards[1]), int(cards[2])) if all(isinstance(c, int) for c in cards) else None
