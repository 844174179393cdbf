"""What each cutout gets: which lens, which source, of which mass; or why nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ripple.errors import CatalogueError
from ripple.imaging.batch import CutoutBatch
from ripple.stages.inject.config import InjectConfig
from ripple.stages.inject.lenses import Lenses
from ripple.stages.inject.masses import radius_of_mass
from ripple.stages.inject.paint import Light, drawn_light, drawn_picture, given_light, has_psf, survey_light
from ripple.stages.inject.sources import Sources

#: Share of hosts that get a source unless said otherwise; the label that it brings, and that of an arc that
#: nobody could see.
FRACTION, LENS, UNKNOWN = 0.5, 1, -1


@dataclass(frozen=True)
class Chosen:
    """The light that a row gets, None for none and then `why`; and its rows in the files, -1 for none."""

    light: Light | None
    lens_row: int
    source_row: int
    why: str


def generator(config: InjectConfig, batch: CutoutBatch, k: int) -> np.random.Generator:
    """The random numbers of row k, so that shards and workers do not matter."""
    # 21 keeps them apart from other uses of the seed.
    return np.random.default_rng([config.seed, 21, int(np.int64(batch.catalog["index"][k]))])


def chosen_light(
    batch: CutoutBatch,
    k: int,
    config: InjectConfig,
    lenses: Lenses | None,
    hosts: NDArray[np.bool_] | None,
    sources: Sources | None,
    sigma: NDArray[np.float64] | None,
    rng: np.random.Generator,
) -> Chosen:
    """What row k gets.

    Parameters
    ----------
    batch, k
        Cutouts, and the row.
    config, lenses, hosts, sources
        As in `inject_batch`.
    sigma
        `(N,)` velocity dispersions, where masses are those of the hosts.
    rng
        `generator` of the row; what it draws next is the noise.
    """
    # A painted lens has no label where nobody could see its arc.
    if any(name in batch.catalog and batch.catalog[name][k] == LENS for name in ("label", "injected")):
        return Chosen(None, -1, -1, "a lens already")
    if hosts is not None and not hosts[k]:
        return Chosen(None, -1, -1, "not a host")
    row, why = _lens(batch, k, config, lenses, rng)
    if why:
        return Chosen(None, row, -1, why)
    try:
        if lenses is None:
            return _drawn(batch, k, config, sources, sigma, rng)
        picture = -1 if lenses.pictures is None else int(lenses.pictures[row])
        return Chosen(given_light(batch, k, lenses, row, sources), row, picture, "")
    except CatalogueError as err:
        # One picture that cannot be read; it says which.
        return Chosen(None, row, -1, err.message)


def _lens(
    batch: CutoutBatch, k: int, config: InjectConfig, lenses: Lenses | None, rng: np.random.Generator
) -> tuple[int, str]:
    """Row of the lenses that row k gets, -1 for a drawn one or none; and why it gets none."""
    row = -1
    if lenses is not None and lenses.ids is not None:
        row = lenses.ids.get(str(batch.catalog["id"][k]), -1)
        if row < 0:
            return -1, "no lens has its id"
        if lenses.refused[row]:
            return row, f"lens: {lenses.refused[row]}"
    elif rng.uniform() >= (FRACTION if config.fraction is None else config.fraction):
        return -1, "not drawn"
    elif lenses is not None:
        row = int(rng.choice(lenses.usable))
    return row, "" if has_psf(batch, k) else "no PSF in a band with data"


def _drawn(
    batch: CutoutBatch,
    k: int,
    config: InjectConfig,
    sources: Sources | None,
    sigma: NDArray[np.float64] | None,
    rng: np.random.Generator,
) -> Chosen:
    """A drawn lens, with a source of the file or a drawn one."""
    z = np.nan if sigma is None else float(batch.catalog[config.lens_redshift][k])
    row, z_source = -1, np.nan
    if sources is not None:
        # Where the file has redshifts, a source must lie behind the host.
        known = bool(np.isfinite(sources.z).any())
        row = sources.draw(rng, z if known else np.nan)
        if row < 0:
            return Chosen(None, -1, -1, "no source lies behind it")
        z_source = float(sources.z[row])
    masses: dict[str, float] = {}
    if sigma is None:
        theta = float(rng.uniform(config.theta_min, config.theta_max))
    else:
        theta, z_source, mine, why = radius_of_mass(float(sigma[k]), z, z_source, config, rng)
        if why:
            return Chosen(None, -1, -1, why)
        masses = {"z_source": z_source, "lens_sigma_v": mine}
    if sources is not None:
        light: Light | None = drawn_picture(batch, k, theta, sources, row, rng)
    elif config.drawn_sources == "survey":
        light = survey_light(batch, k, theta, z_source, rng)
    else:
        light = drawn_light(batch, k, config, theta, rng)
    if light is None:
        return Chosen(None, -1, row, "no source of a survey is bright enough behind it")
    return Chosen(Light(light.spectrum, light.fluxes, light.facts | masses), -1, row, "")
