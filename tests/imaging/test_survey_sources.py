"""Sources of a survey: counts, magnification bias, and what surrounds look-alikes."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ripple.imaging.simulation import colours
from ripple.imaging.simulation.lensed import magnification
from ripple.imaging.simulation.lensing import Deflector
from ripple.imaging.simulation.observing import PIXEL_SCALE, flux, magnitude
from ripple.imaging.simulation.population import Scene, draw_scene
from ripple.imaging.simulation.profiles import Lensed, Sersic, transform
from ripple.imaging.simulation.render import stamp_size
from ripple.imaging.simulation.sources import (
    BRIGHT,
    CLUMP,
    COUNTS,
    FAINT,
    LEAST,
    LIMIT,
    Source,
    clumps,
    draw_kind,
    draw_source,
    power_law,
)
from ripple.sky.geometry import Box

THETA = 1.3 / PIXEL_SCALE


@cache
def kept() -> list[Source]:
    """Sources behind one deflector."""
    lens = Deflector(THETA, 0.8, 0.4, 0.03, -0.02)
    found = [draw_source(np.random.default_rng([1, k]), lens, 1.5, PIXEL_SCALE) for k in range(400)]
    assert None not in found
    return [source for source in found if source is not None]


@cache
def sky(seed: int = 20) -> Scene:
    """Four patches, half of the targets lenses."""
    patches = [Box(600 * k, 0, 600 * (k + 1), 600) for k in range(4)]
    how: dict[str, Any] = {"per_patch": 144, "lens_fraction": 0.5, "seed": seed, "sources": "survey"}
    return draw_scene(patches, Box(0, 0, 2400, 600), **how)


def slope(mags: NDArray[np.floating], low: float, high: float) -> float:
    """Of `10^(slope m)` between two magnitudes."""
    edges = np.linspace(low, high, 7)
    counts, _ = np.histogram(mags, edges)
    middle = 0.5 * (edges[1:] + edges[:-1])
    return float(np.polyfit(middle, np.log10(counts), 1, w=np.sqrt(counts))[0])


def test_counts_have_their_slope() -> None:
    mags = power_law(np.random.default_rng(0), 20_000, BRIGHT, FAINT, COUNTS)
    assert mags.min() >= BRIGHT
    assert mags.max() <= FAINT
    assert slope(mags, 23.0, FAINT) == pytest.approx(0.31, abs=0.02)


def test_magnification_of_a_small_source() -> None:
    """A point within the Einstein radius of an isothermal sphere is magnified 2 theta_E / b times."""
    for b in (2.0, 5.0):
        source = Sersic(1.0, 0.1, 1.0, 0.0, b, 0.0)
        assert magnification(Lensed(Deflector(8.0, 1.0, 0.0), source)) == pytest.approx(16.0 / b, rel=0.01)


def test_fainter_sources_are_magnified_more() -> None:
    gain = np.array([source.magnification for source in kept()])
    i_mag = np.array([source.mags[3] for source in kept()])
    lensed = np.array([source.lensed_i for source in kept()])
    assert gain.min() >= LEAST
    assert lensed.max() <= LIMIT
    faint = i_mag > np.median(i_mag)
    assert gain[faint].mean() > 1.3 * gain[~faint].mean()
    # Behind any magnification counts keep their slope.
    assert slope(lensed, 22.0, LIMIT) == pytest.approx(0.31, abs=0.08)


def test_magnification_bias_is_that_of_the_counts() -> None:
    """Galaxies down to a limit that the magnification moves: a uniform draw, weighted by their number."""
    rng = np.random.default_rng(3)
    lens, gain = Deflector(THETA, 0.8, 0.4, 0.03, -0.02), []
    for _ in range(1500):
        b, turn = THETA * np.sqrt(rng.uniform()), rng.uniform(0.0, 2.0 * np.pi)
        re = np.clip(rng.lognormal(np.log(0.24), 0.35), 0.08, 0.6) / PIXEL_SCALE
        source = Sersic(
            1.0, re, rng.uniform(0.4, 1.0), rng.uniform(0, np.pi), b * np.cos(turn), b * np.sin(turn)
        )
        gain.append(magnification(Lensed(lens, source)))
    uniform = np.array(gain)
    uniform = uniform[uniform >= LEAST]
    number = 10.0 ** (COUNTS * np.minimum(LIMIT + 2.5 * np.log10(uniform), FAINT)) - 10.0 ** (COUNTS * BRIGHT)
    found = np.array([source.magnification for source in kept()])
    assert found.mean() > uniform.mean() + 0.5
    assert found.mean() == pytest.approx(np.average(uniform, weights=number), rel=0.1)


def test_shares_of_red_and_clumpy_sources() -> None:
    rng = np.random.default_rng(5)
    for z, passive in ((0.7, 0.15), (2.0, 0.05), (3.0, 0.05)):
        kinds = np.array([draw_kind(rng, z) for _ in range(4000)])
        assert (kinds == "red").mean() == pytest.approx(passive, abs=0.015)
        assert (kinds[kinds != "red"] == "clumpy").mean() == pytest.approx(0.6, abs=0.03)
    drawn = [clumps(rng, 1.2) for _ in range(4000)]
    assert np.mean([len(found) for found in drawn]) == pytest.approx(2.0, abs=0.06)
    assert max(len(found) for found in drawn) <= 8
    assert min(knot.share for found in drawn for knot in found) >= CLUMP
    assert np.mean([sum(knot.share for knot in found) for found in drawn]) == pytest.approx(0.19, abs=0.01)
    for source in kept():
        assert bool(source.shape.knots) == (source.kind == "clumpy")
        assert source.shape.smooth > 0


def test_red_sources_are_redder_at_every_redshift() -> None:
    rng, i_mag = np.random.default_rng(2), np.full(200, 25.0)
    blue = colours.blue_magnitudes(rng, i_mag)
    for z in (0.7, 1.0, 1.5, 2.0, 3.0):
        red = colours.passive_magnitudes(rng, i_mag, np.full(200, z))
        assert np.percentile(red[:, 1] - red[:, 4], 5) > np.percentile(blue[:, 1] - blue[:, 4], 95), z


def test_passive_colours_are_those_of_the_spectrum() -> None:
    pytest.importorskip("galsim")
    from ripple.stages.inject import spectra

    elliptical = spectra.read_spectrum(spectra.spectrum_file("CWW_E_ext"))
    mags = spectra.ab_magnitudes(elliptical, colours._PASSIVE_Z, tuple("ugrizy"))
    np.testing.assert_allclose(colours._PASSIVE_COLOURS, -np.diff(mags, axis=1).T, atol=0.006)


def surroundings(scene: Scene) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Total i magnitude and g - i of what surrounds look-alikes, by row of the target; NaN for none."""
    light = np.zeros((len(scene.targets["x"]), 6))
    for p in scene.painted:
        if p.row >= 0 and scene.targets["kind"][p.row] != "lens":
            light[p.row] += np.sum([fluxes for _, fluxes in p.parts], axis=0)
    mags = np.where(light > 0, magnitude(np.maximum(light, 1e-9)), np.nan)
    return mags[:, 3], mags[:, 1] - mags[:, 3]


def test_brightness_and_colour_of_the_surroundings_do_not_tell_a_lens() -> None:
    from scipy.stats import ks_2samp

    scene = sky()
    t, lens = scene.targets, scene.targets["kind"] == "lens"
    around, colour = surroundings(scene)
    here = np.isfinite(around)
    steps = [0.1, 0.25, 0.5, 0.75, 0.9]
    found = np.quantile(around[here], steps) - np.quantile(t["around_i"][lens], steps)
    assert np.abs(found).max() < 0.3
    # Whatever the class: 0.02 where one of three companions has next to no light.
    np.testing.assert_allclose(around[here], t["around_i"][here], atol=0.02)
    arcs = (t["source_mags"][:, 1] - t["source_mags"][:, 3])[lens]
    assert ks_2samp(colour[here], arcs).pvalue > 0.01
    assert abs((colour[here] > 1.3).mean() - (arcs > 1.3).mean()) < 0.04  # red ones


def test_painted_arcs_are_as_bright_as_was_foreseen() -> None:
    t = sky().targets
    arcs = [p for p in sky().painted if p.row >= 0 and isinstance(p.parts[0][0], Lensed)]
    assert len(arcs) == (t["kind"] == "lens").sum()
    for p in arcs[:25]:
        shape, fluxes = p.parts[0]
        seen = magnitude(transform(shape, stamp_size(p))[0, 0].real * fluxes[3])
        assert seen == pytest.approx(t["around_i"][p.row], abs=0.005)
        assert fluxes[3] == pytest.approx(flux(t["source_mags"][p.row, 3]))


def test_deflectors_and_field_are_those_of_the_even_sky() -> None:
    patches, outer = [Box(0, 0, 600, 600)], Box(0, 0, 600, 600)
    how: dict[str, Any] = {"per_patch": 36, "lens_fraction": 0.3, "seed": 8}
    even, survey, again = (
        draw_scene(patches, outer, **how, sources=kind) for kind in ("even", "survey", "survey")
    )
    for name in ("x", "kind", "lens_mags", "theta_E", "z_source"):
        np.testing.assert_array_equal(even.targets[name], survey.targets[name])
    np.testing.assert_array_equal(even.field["mags"], survey.field["mags"])
    assert "source_kind" not in even.targets
    lens = survey.targets["kind"] == "lens"
    assert set(survey.targets["source_kind"][lens]) <= {"blue", "clumpy", "red"}
    assert set(survey.targets["source_kind"][~lens]) == {""}
    assert survey.painted == again.painted
