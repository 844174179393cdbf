"""What `ripple export` says about all rows of a zarr or webdataset export, and one such row as a cutout.

Both layouts have one header, the attributes of the zarr group or `dataset.json`:

    bands, pixel_scale, unit, class_map   as in the artefact
    mask_planes                           name of each bit of `mask`
    wcs                                   tract -> CRVAL in deg, zero-based CRPIX on its grid, CD in deg/px
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.errors import ConfigError, DataError
from ripple.imaging.bands import match
from ripple.sky.geometry import Tan
from ripple.stages.formats.foreign_cutout import ForeignCutout, Understood
from ripple.stages.formats.mask_meaning import planes_of_mask

#: Planes of a row: `(B, H, W)`, and `psf` `(B, K, K)`. `missing` is 1 where there is no pixel.
PLANES = ("image", "variance", "mask", "valid", "missing", "psf")
# Columns that an import makes anew from id, position, tract and pixels.
_MADE_ANEW = frozenset(
    ("index", "id", "ra", "dec", "tract", "patch", "x", "y", "x0", "y0", "dx", "dy", "label", "band_mask")
)


@dataclass(frozen=True, slots=True)
class Header:
    """What all rows of an export share.

    Parameters
    ----------
    bands
        Names of the bands to import, in order.
    chosen
        Which of the `count` bands of the export they are.
    count
        Bands of the export.
    pixel_scale
        Arcsec.
    unit
        `nJy`, or what tensors are in.
    classes
        Class names by label value; empty when the export has none.
    mask_planes
        Bit of each plane of `mask`.
    wcs
        Projection by tract, PARENT frame.
    notes
        What the user should know.
    """

    bands: tuple[str, ...]
    chosen: tuple[int, ...]
    count: int
    pixel_scale: float
    unit: str
    classes: tuple[str, ...]
    mask_planes: dict[str, int]
    wcs: dict[int, Tan]
    notes: tuple[str, ...] = ()


def read_header(
    facts: Mapping[str, Any], bands: tuple[str, ...], classes: tuple[str, ...], where: str
) -> Header:
    """The header of an export.

    Parameters
    ----------
    facts
        The JSON object.
    bands, classes
        What the user asks for; empty takes everything as it is.
    where
        File, for messages.

    Raises
    ------
    DataError
        The header is not one that `ripple export` writes, or its classes are not those of the user.
    ConfigError
        A band is not in the export.
    """
    try:
        said = tuple(str(name) for name in facts["bands"])
        scale, unit = float(facts["pixel_scale"]), str(facts["unit"])
        names, notes = _class_names({str(k): str(v) for k, v in facts["class_map"].items()}, where)
        planes = {str(name): bit for bit, name in enumerate(facts.get("mask_planes", ()))}
        wcs = {int(tract): _tan(values) for tract, values in facts.get("wcs", {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise DataError(
            f"{where}: this is not the header of a ripple export ({type(err).__name__}: {err})",
            hint="give what `ripple export` wrote",
        ) from None
    if not said or len(set(said)) != len(said) or not (np.isfinite(scale) and scale > 0):
        raise DataError(f"{where}: bands {', '.join(said) or 'none'} of {scale} arcsec per pixel")
    if classes and names and classes != names:
        raise DataError(f"{where}: its classes are {', '.join(names)}, not {', '.join(classes)}")
    return Header(
        bands or said, _places(bands, said, where), len(said), scale, unit, names, planes, wcs, notes
    )


def _places(bands: tuple[str, ...], said: tuple[str, ...], where: str) -> tuple[int, ...]:
    """Which of the bands `said` each of `bands` means; all of them when it is empty."""
    found = [match(band, said) for band in bands]
    if "" in found:
        raise ConfigError(f"{where}: no band {bands[found.index('')]!r}", hint=f"it has {', '.join(said)}")
    if len(set(found)) != len(found):
        raise ConfigError(f"{where}: {', '.join(bands)} are {', '.join(found)}, one of them twice")
    return tuple(said.index(name) for name in found or said)


def _class_names(class_map: Mapping[str, str], where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names by label value, and a note where the map has gaps and therefore names nothing."""
    names = [class_map.get(str(k), "") for k in range(len(class_map))]
    if all(names):
        return tuple(names), ()
    given = ", ".join(f"{label}: {name}" for label, name in sorted(class_map.items()))
    return (), (f"{where}: the class map names only {given}; name every class with --classes",)


def _tan(values: Any) -> Tan:
    ra0, dec0, x0, y0, a, b, c, d = (float(v) for v in values)
    if not np.isfinite([ra0, dec0, x0, y0, a, b, c, d]).all():
        raise ValueError(f"projection {values}")
    return Tan(ra0, dec0, x0, y0, (a, b, c, d))


def exported_cutout(
    header: Header, planes: Mapping[str, NDArray[Any]], facts: Mapping[str, Any], label: int, file: str
) -> ForeignCutout:
    """One row of an export as a cutout.

    Parameters
    ----------
    header
        What all rows share.
    planes
        Those of `PLANES` that the row has, all bands of the export.
    facts
        Columns of the row; None or NaN where there is no value.
    label
        -1 when unknown.
    file
        Its name, for what was understood.

    Raises
    ------
    ValueError
        The planes do not fit to each other or to the header.
    """
    image = np.asarray(planes["image"], np.float32)
    for name, plane in planes.items():
        fits = plane.shape[0] == header.count if name == "psf" else plane.shape == image.shape
        if plane.ndim != 3 or image.shape[0] != header.count or not fits:
            raise ValueError(
                f"{name} has shape {plane.shape}, the image {image.shape}, of {header.count} bands"
            )
    take = {name: plane[list(header.chosen)] for name, plane in planes.items()}
    image = np.asarray(take["image"], np.float32)
    if "missing" in take:
        image = np.where(take["missing"] != 0, np.float32(np.nan), image)
    mask = bad = None
    if "mask" in take and header.mask_planes:
        mask = planes_of_mask(take["mask"], header.mask_planes, meaning="bad", where="mask", complete=True)
    elif "valid" in take:
        bad = take["valid"] == 0
    variance = np.asarray(take["variance"], np.float32) if "variance" in take else None
    wcs, place = _placed(header, facts)
    return ForeignCutout(
        id=str(facts["id"]),
        image=image,
        # NaN throughout is what an artefact without variance holds.
        variance=None if variance is None or np.isnan(variance).all() else variance,
        bad=bad,
        mask=mask,
        psf=_kernels(take["psf"]) if "psf" in take else None,
        ra=_number(facts.get("ra")),
        dec=_number(facts.get("dec")),
        label=label,
        wcs=wcs,
        place=place,
        to_njy=np.ones(len(header.bands)) if header.unit == "nJy" else None,
        columns={
            name: value
            for name, value in facts.items()
            # NaN is no value.
            if name not in _MADE_ANEW and isinstance(value, int | float | str) and value == value
        },
        understood=_understood(header, take, file),
    )


def _understood(header: Header, planes: Mapping[str, NDArray[Any]], file: str) -> tuple[Understood, ...]:
    """What each array was taken for."""
    unit = header.unit if header.unit == "nJy" else f"no unit, {header.unit}"
    meaning = {
        "image": ("image", f"{unit}, {header.pixel_scale:g} arcsec"),
        "variance": ("variance", "nJy²"),
        "mask": ("mask", f"{len(header.mask_planes)} planes by name"),
        "valid": ("mask" if "mask" not in planes else "not used", "0 is bad"),
        "missing": ("mask", "1 is no pixel"),
        "psf": ("psf", " x ".join(map(str, planes["psf"].shape[1:])) + " px" if "psf" in planes else ""),
    }
    bands = " ".join(header.bands)
    return tuple(Understood(file, name, meaning[name][0], bands, meaning[name][1]) for name in planes)


def _placed(header: Header, facts: Mapping[str, Any]) -> tuple[Tan | None, tuple[int, int, int] | None]:
    """Projection in pixels of the cutout, and its tract and first pixel; None when they are not known."""
    try:
        tract, x0, y0 = (int(facts[name]) for name in ("tract", "x0", "y0"))
    except (KeyError, TypeError):
        return None, None
    tan = header.wcs.get(tract)
    if tan is None:
        return None, None
    return Tan(tan.ra0, tan.dec0, tan.x0 - x0, tan.y0 - y0, tan.cd), (tract, x0, y0)


def _kernels(psf: NDArray[Any]) -> tuple[NDArray[np.float32] | None, ...]:
    """One kernel per band; NaN stands for none."""
    return tuple(np.asarray(k, np.float32) if np.isfinite(k).all() else None for k in psf)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
