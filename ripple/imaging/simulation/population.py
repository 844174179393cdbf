"""What is on the simulated sky: deflectors, lensed sources, look-alikes, field galaxies and stars.

Lenses and look-alikes have a red elliptical at their centre, drawn from one population, and their class is
drawn independently of it: the deflector alone says nothing about whether it lenses. They differ in what
surrounds it. Other targets, if there are any, are galaxies and stars as the field has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.imaging.simulation.colours import blue_magnitudes, from_colours, red_magnitudes
from ripple.imaging.simulation.lensing import ARCSEC, Deflector, comoving_distance, einstein_radius
from ripple.imaging.simulation.observing import PIXEL_SCALE, flux
from ripple.imaging.simulation.profiles import Arms, Knot, Lensed, Point, Ring, Sersic, Shape
from ripple.imaging.simulation.sources import (
    COUNTS,
    Source,
    draw_source,
    half_light_radius,
    mass_of_light,
    power_law,
)
from ripple.sky.geometry import Box

Array = NDArray[np.floating[Any]]
UGRIZY = ("u", "g", "r", "i", "z", "y")

#: Classes of the targets that are not lenses, and their shares among those.
LOOKALIKES: dict[str, float] = {
    "elliptical": 0.36, "chance": 0.20, "spiral": 0.17, "ring": 0.14, "merger": 0.13,
}  # fmt: skip

#: By how much the light around some look-alikes is fainter than arcs, mag, where sources are even: that of
#: rings and spirals is spread over more sky, that of mergers is not all there is.
SPREAD = {"ring": -0.8, "spiral": -1.5, "merger": 0.3}

#: Classes of ordinary targets and their shares: a disk with a bulge, an early type, two of these that
#: overlap, a star.
ORDINARY: dict[str, float] = {"disk": 0.60, "early": 0.20, "blend": 0.12, "star": 0.08}
#: i magnitudes of ordinary targets: as many of each as counts of galaxies say, down to the faintest that a
#: search looks at.
ORDINARY_I = (18.5, 23.5)

#: Einstein radii of the survey, arcsec.
THETA_E = (0.6, 2.5)
#: Field galaxies and stars per square arcmin.
FIELD_DENSITY, STAR_DENSITY = 20.0, 4.0


@dataclass(frozen=True, slots=True)
class Painted:
    """Something to paint: shapes that share a centre.

    Parameters
    ----------
    x, y
        Centre, PARENT pixels.
    parts
        Shape and its six fluxes (ugrizy, nJy; before lensing for `Lensed`).
    row
        Row of the target whose surroundings this is (arcs, ring, companions), -1 for anything else.
    """

    x: float
    y: float
    parts: tuple[tuple[Shape, tuple[float, ...]], ...]
    row: int = -1


@dataclass(frozen=True)
class Scene:
    """Everything on a block of sky.

    Parameters
    ----------
    painted
        What to paint.
    targets
        Columns of the T targets: `x`, `y`, `kind` (class name), `z_lens`, `z_source`, `sigma_v` (km/s),
        `theta_E` (arcsec), `q`, `re` (arcsec), `lens_mags` (T, 6), `source_mags` (T, 6), `beta` (arcsec),
        `shear`; NaN where it does not apply. With sources of a survey also `source_kind`, empty likewise, and
        `around_i`: total i magnitude of what surrounds the deflector.
    field
        Columns of the other objects: `x`, `y`, `star` (bool), `mags` (F, 6), `re` (arcsec).
    """

    painted: tuple[Painted, ...]
    targets: dict[str, NDArray[Any]]
    field: dict[str, NDArray[Any]]


def draw_scene(
    patches: Sequence[Box],
    outer: Box,
    *,
    per_patch: int,
    lens_fraction: float,
    seed: int,
    ordinary: float = 0.0,
    sources: str = "even",
) -> Scene:
    """Draw a block of sky.

    Parameters
    ----------
    patches
        Inner boxes of the patches that get targets; PARENT pixels.
    outer
        Where there are pixels at all.
    per_patch
        Targets per patch.
    lens_fraction
        Share of the targets that are lenses.
    seed
        Same seed, same sky.
    ordinary
        Share of `ORDINARY` among the targets that are no lenses.
    sources
        `even`: magnitudes evenly, all blue with one knot; `survey`: those of `sources`.
    """
    # Streams by number: 1 targets, 2 surroundings of each, 3 field, 4 ordinary targets, 6 sources of a
    # survey; a change in one leaves the others alone.
    rng = np.random.default_rng([seed, 1])
    x, y = _target_positions(rng, patches, per_patch)
    targets = {"x": x, "y": y, **draw_deflectors(rng, len(x))}
    # Independent of the deflectors drawn before: nothing about them tells the class.
    targets["kind"] = _classes(rng, len(x), lens_fraction)
    targets["source_mags"] = blue_magnitudes(rng, _source_i(rng, len(x)))
    kept = _survey_sources(targets, seed) if sources == "survey" else []
    plain = _make_ordinary(np.random.default_rng([seed, 4]), targets, ordinary)
    painted = [part for parts in plain.values() for part in parts]
    painted += [_deflector_light(targets, k) for k in range(len(x)) if k not in plain]
    for k in range(len(x)):
        if kept and targets["kind"][k] == "lens":
            painted.append(_lensed(targets, k, kept[k].shape))
        else:
            painted += _surroundings(np.random.default_rng([seed, 2, k]), targets, k)
    lens = targets["kind"] == "lens"
    # Drawn for all, so that lenses and others use the same random numbers; told for lenses only.
    for key in ("theta_E", "z_source", "beta", "shear"):
        targets[key] = np.where(lens, targets[key], np.nan)
    targets["source_mags"] = np.where(lens[:, None], targets["source_mags"], np.nan)
    if kept:
        targets["source_kind"] = np.where(lens, targets["source_kind"], "")
    field, others = _field(np.random.default_rng([seed, 3]), outer, x, y)
    return Scene(tuple(painted) + tuple(others), targets, field)


def _target_positions(
    rng: np.random.Generator, patches: Sequence[Box], per_patch: int
) -> tuple[Array, Array]:
    """A loose grid: as many slots per patch as needed, positions shaken, so that cutouts seldom overlap."""
    side = int(np.ceil(np.sqrt(per_patch)))
    xs, ys = [], []
    for box in patches:
        step = box.width / side  # px between slots
        # side² may exceed per_patch: which slots stay empty is random.
        slot = np.sort(rng.permutation(side * side)[:per_patch])
        shake = rng.uniform(-0.16, 0.16, (2, per_patch)) * step
        xs.append(box.x0 - 0.5 + (slot % side + 0.5) * step + shake[0])
        ys.append(box.y0 - 0.5 + (slot // side + 0.5) * step + shake[1])
    return np.concatenate(xs), np.concatenate(ys)


def _classes(rng: np.random.Generator, count: int, lens_fraction: float) -> NDArray[np.str_]:
    """Class names with exact shares, in random order."""
    lenses = round(count * lens_fraction)
    other = _in_shares(LOOKALIKES, count - lenses)
    return rng.permutation(np.concatenate([np.full(lenses, "lens"), other]))


def _in_shares(shares: dict[str, float], count: int) -> NDArray[np.str_]:
    """`count` names, each as often as its share says, one after the other."""
    names, edges = list(shares), np.cumsum(list(shares.values()))
    place = (np.arange(count) + 0.5) / max(count, 1)
    return np.array(names)[np.minimum(np.searchsorted(edges, place), len(names) - 1)]


def draw_deflectors(rng: np.random.Generator, count: int) -> dict[str, NDArray[Any]]:
    """Massive ellipticals, each with the source redshift and Einstein radius it would have if it lensed.

    Notes
    -----
    Velocity dispersion around 265 km/s; luminosity by Faber-Jackson (L ~ sigma⁴, 0.35 mag scatter); size ~
    L^0.6 with 0.12 dex scatter; colours of passive galaxies at the redshift. Pairs whose Einstein radius
    leaves `THETA_E` are drawn again, for every class alike.
    """
    keep: dict[str, list[Array]] = {"z_lens": [], "z_source": [], "sigma_v": [], "theta_E": []}
    have = 0
    while have < count:
        n = 2 * count + 64  # most are refused below
        z = np.clip(rng.normal(0.55, 0.17, n), 0.25, 0.95)
        sigma = np.clip(rng.normal(265.0, 45.0, n), 170.0, 420.0)
        zs = source_redshifts(rng, z)
        theta = einstein_radius(sigma, z, zs)
        # A lens is found in proportion to its cross-section; so is every deflector here.
        ok = (theta > THETA_E[0]) & (theta < THETA_E[1])
        ok &= rng.uniform(0.0, 1.0, n) < np.clip(theta / 1.4, 0.0, 1.0) ** 2
        have += int(ok.sum())
        for key, value in zip(keep, (z, zs, sigma, theta), strict=True):
            keep[key].append(value[ok])
    out: dict[str, NDArray[Any]] = {k: np.concatenate(v)[:count] for k, v in keep.items()}
    comoving = comoving_distance(out["z_lens"])
    absolute = -22.1 - 10.0 * np.log10(out["sigma_v"] / 265.0) + rng.normal(0.0, 0.35, count)
    # Luminosity distance in units of 10 pc, from Mpc.
    modulus = 5.0 * np.log10(comoving * (1.0 + out["z_lens"]) * 1e5)
    # 0.6 z: a crude K correction in i.
    out["lens_mags"] = red_magnitudes(rng, absolute + modulus + 0.6 * out["z_lens"], out["z_lens"])
    kpc = 10.0 ** (0.72 - 0.24 * (absolute + 22.1) + rng.normal(0.0, 0.12, count))
    # Angular diameter distance = comoving / (1 + z); arcsec.
    out["re"] = kpc / 1000.0 * (1.0 + out["z_lens"]) / comoving * ARCSEC
    out["n"] = rng.choice([3.0, 4.0, 5.0], count, p=[0.3, 0.5, 0.2])
    out["q"] = 0.5 + 0.5 * rng.beta(2.2, 1.4, count)
    out["angle"] = rng.uniform(0.0, np.pi, count)
    # sqrt of a uniform number: evenly over a disk of 0.85 Einstein radii in the source plane.
    out["beta"] = 0.85 * out["theta_E"] * np.sqrt(rng.uniform(0.0, 1.0, count))
    out["shear"] = np.clip(rng.rayleigh(0.04, count), 0.0, 0.15)
    return out


def source_redshifts(rng: np.random.Generator, z_lens: Array) -> Array:
    """`(N,)` redshifts of sources, well behind deflectors at `z_lens` `(N,)`."""
    return np.asarray(np.clip(z_lens + 0.3 + rng.gamma(3.0, 0.4, len(z_lens)), 0.6, 4.0))


def _survey_sources(t: dict[str, NDArray[Any]], seed: int) -> list[Source]:
    """The source of each target; fills their columns.

    Look-alikes have one as well: what surrounds them is as bright as its images would be, and as red.
    """
    kept = []
    for k in range(len(t["x"])):
        rng = np.random.default_rng([seed, 6, k])
        found = draw_source(rng, _mass(rng, t, k), float(t["z_source"][k]), PIXEL_SCALE)
        assert found is not None  # Einstein radii of `THETA_E` magnify one candidate in seven enough
        kept.append(found)
    t["source_mags"] = np.array([s.mags for s in kept])
    t["source_kind"] = np.array([s.kind for s in kept])
    t["around_i"] = np.array([s.lensed_i for s in kept])
    t["beta"] = np.array([np.hypot(s.shape.source.dx, s.shape.source.dy) for s in kept]) * PIXEL_SCALE
    return kept


def _source_i(rng: np.random.Generator, count: int) -> Array:
    """Unlensed i magnitudes of sources, from easy to invisible."""
    return rng.uniform(22.2, 27.2, count)


def _make_ordinary(
    rng: np.random.Generator, t: dict[str, NDArray[Any]], share: float
) -> dict[int, list[Painted]]:
    """Make some targets that are no lenses ordinary ones, in place; their light by row."""
    others = np.flatnonzero(t["kind"] != "lens")
    rows = np.sort(rng.permutation(others)[: round(share * len(others))])
    kinds = rng.permutation(_in_shares(ORDINARY, len(rows)))
    light: dict[int, list[Painted]] = {}
    for k, kind in zip(rows.tolist(), kinds.tolist(), strict=True):
        f = _field_light(rng, power_law(rng, 2, *ORDINARY_I, COUNTS), np.array([kind == "star", False]))
        blue = np.array([kind == "disk" or (kind == "blend" and rng.uniform() < 0.75), rng.uniform() < 0.75])
        f["mags"] = np.where(blue[:, None] & ~f["star"][:, None], f["blue"], f["mags"])
        distance, around = rng.uniform(0.7, 2.5) / PIXEL_SCALE, rng.uniform(0.0, 2.0 * np.pi)
        f["x"] = t["x"][k] + np.array([0.0, distance * np.cos(around)])
        f["y"] = t["y"][k] + np.array([0.0, distance * np.sin(around)])
        parts = 2 if kind == "blend" else 1
        light[k] = [_field_object(rng, f, blue, j) for j in range(parts)]
        t["kind"][k], t["lens_mags"][k], t["re"][k] = kind, f["mags"][0], f["re"][0]
        for name in ("z_lens", "sigma_v", "q"):
            t[name][k] = np.nan  # those of a deflector that is not there
    return light


def _fluxes(mags: Array) -> tuple[float, ...]:
    return tuple(float(f) for f in flux(mags))


def _deflector_light(t: dict[str, NDArray[Any]], k: int) -> Painted:
    shape = Sersic(float(t["n"][k]), float(t["re"][k]) / PIXEL_SCALE, float(t["q"][k]), float(t["angle"][k]))
    return Painted(float(t["x"][k]), float(t["y"][k]), ((shape, _fluxes(t["lens_mags"][k])),))


def _surroundings(rng: np.random.Generator, t: dict[str, NDArray[Any]], k: int) -> list[Painted]:
    """What surrounds deflector k, by its class."""
    build: dict[str, Callable[[np.random.Generator, dict[str, NDArray[Any]], int], list[Painted]]] = {
        "lens": _arcs,
        "chance": _chance_alignment,
        "ring": _blue_ring,
        "spiral": _spiral,
        "merger": _merger,
    }
    kind = str(t["kind"][k])
    found = build[kind](rng, t, k) if kind in build else []
    return [replace(p, row=k) for p in found]


def _mass(rng: np.random.Generator, t: dict[str, NDArray[Any]], k: int) -> Deflector:
    """The mass of deflector k."""
    return Deflector(
        float(t["theta_E"][k]) / PIXEL_SCALE,
        *mass_of_light(rng, float(t["q"][k]), float(t["angle"][k])),
        *(float(t["shear"][k]) * np.array([np.cos(a := rng.uniform(0, 2 * np.pi)), np.sin(a)])),
    )


def _lensed(t: dict[str, NDArray[Any]], k: int, shape: Lensed) -> Painted:
    return Painted(float(t["x"][k]), float(t["y"][k]), ((shape, _fluxes(t["source_mags"][k])),), k)


def _arcs(rng: np.random.Generator, t: dict[str, NDArray[Any]], k: int) -> list[Painted]:
    lens = _mass(rng, t, k)
    around, beta = rng.uniform(0.0, 2.0 * np.pi), float(t["beta"][k]) / PIXEL_SCALE
    re = half_light_radius(rng) / PIXEL_SCALE
    n, (q, angle) = float(rng.choice([0.7, 1.0, 1.5])), _tilt(rng, 0.4)
    source = Sersic(n, re, q, angle, beta * float(np.cos(around)), beta * float(np.sin(around)))
    knot = rng.normal(0.0, 0.5 * source.re, 2)  # a star-forming region off the centre
    knots = (Knot(float(rng.uniform(0.0, 0.35)), float(knot[0]), float(knot[1])),)
    return [_lensed(t, k, Lensed(lens, source, knots))]


def _around_i(rng: np.random.Generator, t: dict[str, NDArray[Any]], k: int) -> float:
    """Total i magnitude of the light around a look-alike: a source with a typical magnification."""
    if "around_i" in t:
        return float(t["around_i"][k])
    typical = _source_i(rng, 1)[0] - 2.5 * np.log10(np.clip(rng.lognormal(np.log(4.5), 0.5), 1.5, 25.0))
    return float(typical) + SPREAD.get(str(t["kind"][k]), 0.0)


def _around_mags(rng: np.random.Generator, t: dict[str, NDArray[Any]], k: int, i_mag: float) -> Array:
    """Magnitudes of light around a look-alike: blue, or of the colours of its own source of a survey."""
    if "around_i" in t:
        return np.asarray(t["source_mags"][k] + (i_mag - t["source_mags"][k, 3]))
    return np.asarray(blue_magnitudes(rng, np.array([i_mag]))[0])


def _tilt(rng: np.random.Generator, least: float) -> tuple[float, float]:
    """Axis ratio between `least` and 1, and position angle."""
    return float(rng.uniform(least, 1.0)), float(rng.uniform(0.0, np.pi))


def _chance_alignment(rng: np.random.Generator, t: dict[str, NDArray[Any]], k: int) -> list[Painted]:
    """One to three unrelated galaxies where arcs would be."""
    count = int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))
    total, share = _around_i(rng, t, k), rng.dirichlet(np.full(count, 2.0))
    out = []
    for part in share:
        distance, around = rng.uniform(0.8, 3.2) / PIXEL_SCALE, rng.uniform(0.0, 2.0 * np.pi)
        shape = Sersic(
            1.0,
            float(rng.uniform(0.15, 0.6)) / PIXEL_SCALE,
            float(rng.uniform(0.25, 1.0)),
            float(rng.uniform(0, np.pi)),
        )
        mags = _around_mags(rng, t, k, total - 2.5 * float(np.log10(max(part, 0.02))))
        x, y = t["x"][k] + distance * np.cos(around), t["y"][k] + distance * np.sin(around)
        out.append(Painted(float(x), float(y), ((shape, _fluxes(mags)),)))
    return out


def _blue_ring(rng: np.random.Generator, t: dict[str, NDArray[Any]], k: int) -> list[Painted]:
    radius = rng.uniform(0.8, 2.6) / PIXEL_SCALE
    width, (q, angle) = float(radius * rng.uniform(0.12, 0.3)), _tilt(rng, 0.55)
    shape = Ring(
        float(radius), width, q, angle, float(rng.uniform(0.0, 0.6)), float(rng.uniform(0.0, 2 * np.pi))
    )
    mags = _around_mags(rng, t, k, _around_i(rng, t, k))
    return [Painted(float(t["x"][k]), float(t["y"][k]), ((shape, _fluxes(mags)),))]


def _spiral(rng: np.random.Generator, t: dict[str, NDArray[Any]], k: int) -> list[Painted]:
    """A blue disk with arms around the red centre, seen nearly face on."""
    count = int(rng.choice([2, 3, 4], p=[0.6, 0.2, 0.2]))
    scale, hole = (float(rng.uniform(*r)) / PIXEL_SCALE for r in ((0.8, 1.5), (0.6, 1.2)))
    pitch, contrast, phase = (float(rng.uniform(*r)) for r in ((0.2, 0.5), (0.7, 0.97), (0.0, 2 * np.pi)))
    shape = Arms(scale, count, pitch, contrast, hole, *_tilt(rng, 0.55), phase)
    mags = _around_mags(rng, t, k, _around_i(rng, t, k))
    return [Painted(float(t["x"][k]), float(t["y"][k]), ((shape, _fluxes(mags)),))]


def _merger(rng: np.random.Generator, t: dict[str, NDArray[Any]], k: int) -> list[Painted]:
    """A second galaxy, red or blue, close by, and a tidal tail."""
    distance, around = rng.uniform(1.0, 2.8) / PIXEL_SCALE, rng.uniform(0.0, 2.0 * np.pi)
    x, y = t["x"][k] + distance * np.cos(around), t["y"][k] + distance * np.sin(around)
    mags, red, fainter = _second_galaxy(rng, t, k)
    second = Sersic(2.0 if red else 1.0, float(rng.uniform(0.25, 0.7)) / PIXEL_SCALE, *_tilt(rng, 0.4))
    scale, hole = (float(rng.uniform(*r)) / PIXEL_SCALE for r in ((0.8, 1.6), (1.0, 1.6)))
    pitch, phase = float(rng.uniform(0.5, 1.0)), float(rng.uniform(0.0, 2 * np.pi))
    tail = Arms(scale, 1, pitch, 1.0, hole, *_tilt(rng, 0.5), phase)
    tail_mags = _around_mags(rng, t, k, _around_i(rng, t, k) + fainter)
    return [
        Painted(float(x), float(y), ((second, _fluxes(mags)),)),
        Painted(float(t["x"][k]), float(t["y"][k]), ((tail, _fluxes(tail_mags)),)),
    ]


def _second_galaxy(rng: np.random.Generator, t: dict[str, NDArray[Any]], k: int) -> tuple[Array, bool, float]:
    """Magnitudes of the galaxy that merges, whether it is red, and by how much the tail is the fainter."""
    if "around_i" in t:
        # It and the tail together are as bright as arcs.
        share = float(rng.uniform(0.5, 0.9))
        i_mag = _around_i(rng, t, k) - 2.5 * float(np.log10(share))
        fainter = -2.5 * float(np.log10(1.0 - share))
        return _around_mags(rng, t, k, i_mag), t["source_kind"][k] == "red", fainter
    # [3] is i: 0.7 to 3 mag fainter than the central galaxy.
    i_mag = float(t["lens_mags"][k][3] + rng.uniform(0.7, 3.0))
    if rng.uniform() < 0.5:
        return red_magnitudes(rng, np.array([i_mag]), t["z_lens"][k : k + 1])[0], True, 0.0
    return _around_mags(rng, t, k, i_mag + 0.7), False, 0.0


def _field(
    rng: np.random.Generator, outer: Box, tx: Array, ty: Array
) -> tuple[dict[str, NDArray[Any]], list[Painted]]:
    """Galaxies and stars everywhere, the bright ones kept off the targets."""
    from scipy.spatial import cKDTree

    area = outer.width * outer.height * (PIXEL_SCALE / 60.0) ** 2
    galaxies, stars = int(rng.poisson(FIELD_DENSITY * area)), int(rng.poisson(STAR_DENSITY * area))
    i_mag = np.concatenate(
        [power_law(rng, galaxies, 20.5, 26.0, 0.3), power_law(rng, stars, 15.8, 24.0, 0.1)]
    )
    star = np.arange(len(i_mag)) >= galaxies
    x, y = rng.uniform(outer.x0, outer.x1, len(i_mag)), rng.uniform(outer.y0, outer.y1, len(i_mag))
    gap, _ = cKDTree(np.stack([tx, ty], 1)).query(np.stack([x, y], 1))
    # A neighbour bright enough to change what a target looks like would make its class wrong.
    keep = gap * PIXEL_SCALE > np.where(star, 4.0, np.where(i_mag < 24.0, 3.2, 1.0))
    blue = rng.uniform(0.0, 1.0, len(i_mag)) < 0.75
    light = _field_light(rng, i_mag, star)
    mags = np.where((blue & ~star)[:, None], light["blue"], light["mags"])
    field = {"x": x[keep], "y": y[keep], "star": star[keep], "mags": mags[keep], "re": light["re"][keep]}
    blue = blue[keep]
    return field, [_field_object(rng, field, blue, k) for k in range(len(blue))]


def _field_light(rng: np.random.Generator, i_mag: Array, star: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """Magnitudes `(N, 6)` of stars and early types, `blue` of disks; `re`, the half-light radii in arcsec."""
    z = np.clip(rng.gamma(3.0, 0.25, len(i_mag)), 0.1, 1.0)
    blue, red = blue_magnitudes(rng, i_mag), red_magnitudes(rng, i_mag, z)
    mags = np.where(star[:, None], _star_magnitudes(rng, i_mag), red)
    size = 0.45 * 10 ** (-0.1 * (i_mag - 23.0)) * rng.lognormal(0, 0.3, len(z))
    return {"star": star, "mags": mags, "blue": blue, "re": np.where(star, 0.0, np.clip(size, 0.08, 1.6))}


def _star_magnitudes(rng: np.random.Generator, i_mag: Array) -> NDArray[np.float64]:
    """Magnitudes along the stellar locus, after the colours of Ivezic et al. 2007, AJ 134, 973."""
    gr = rng.uniform(0.25, 1.45, len(i_mag))
    ri = np.where(gr < 1.3, 0.35 * gr, rng.uniform(0.5, 1.6, len(i_mag)))
    return from_colours(i_mag, 0.8 + 1.1 * gr, gr, ri, 0.55 * ri, 0.3 * ri)


def _field_object(
    rng: np.random.Generator, f: dict[str, NDArray[Any]], blue: NDArray[np.bool_], k: int
) -> Painted:
    x, y, fluxes = float(f["x"][k]), float(f["y"][k]), _fluxes(f["mags"][k])
    if f["star"][k]:
        return Painted(x, y, ((Point(), fluxes),))
    angle, re = float(rng.uniform(0, np.pi)), float(f["re"][k]) / PIXEL_SCALE
    q = float(rng.uniform(0.3, 1.0))
    if not blue[k]:
        return Painted(x, y, ((Sersic(4.0, re, 0.5 + 0.5 * q, angle), fluxes),))
    # A disk with a redder bulge that holds a tenth to a third of the i light.
    share = float(rng.uniform(0.1, 0.33)) * np.array([0.3, 0.5, 0.8, 1.0, 1.1, 1.2])
    bulge, disk = Sersic(2.0, 0.4 * re, 0.5 + 0.5 * q, angle), Sersic(1.0, re, q, angle)
    parts = [(disk, 1.0 - share), (bulge, share)]
    return Painted(x, y, tuple((s, tuple(float(v) for v in w * np.array(fluxes))) for s, w in parts))
