"""`ripple inject`: lensed sources painted into real cutouts; deflector and surroundings stay real.

A deflector's mass follows the light at the centre of its cutout (axis ratio and angle from second moments);
its Einstein radius, the source and the position of the source are drawn. Or a file gives all of that. Arcs
are convolved with the row's own PSF in each band and bring their photon noise along. Rows that are not chosen
stay as they are.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import scipy
from numpy.typing import NDArray

from ripple.config import suggest
from ripple.errors import CatalogueError, ConfigError, DataError, IntegrityError
from ripple.imaging.batch import CutoutBatch
from ripple.imaging.psf.shape import fwhm
from ripple.imaging.quality.measure import usable
from ripple.imaging.simulation.lensed import light, picture_light
from ripple.imaging.simulation.lensing import Deflector, einstein_radius, image_count
from ripple.imaging.simulation.observing import BANDS, flux, magnitude, noise_sigma
from ripple.imaging.simulation.population import UGRIZY, blue_magnitudes, source_redshifts
from ripple.imaging.simulation.profiles import Complex, Lensed, Sersic, shift
from ripple.runtime.profile import Profile, peak_rss
from ripple.runtime.summary import Summary
from ripple.stages.inject.config import InjectConfig
from ripple.stages.inject.lenses import REDSHIFTS, Lenses, read_lenses
from ripple.stages.inject.sources import Sources, read_sources
from ripple.stages.plan.select import matching
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.checksums import listed
from ripple.storage.files import stage, write_atomic
from ripple.storage.map_shards import ShardResult, Workers, map_shards, need_of
from ripple.storage.shard_reader import unpack_cutouts
from ripple.storage.shard_writer import pack_cutouts
from ripple.storage.shards import cutouts_of
from ripple.storage.writer import ArtefactWriter, Finished, create

#: Columns of floats that injection adds to the catalogue, besides `label`, `injected` and `arc_mag_<band>`.
MEASURES = (
    "theta_E", "theta_E_over_seeing", "source_mag", "magnification", "images", "arc_snr", "arc_sb", "host_bad"
)  # fmt: skip
#: The same for each band.
OF_BANDS = ("arc_mag", "arc_snr", "arc_sb", "depth")
#: Share of hosts that get a source unless said otherwise, and the label that it brings.
FRACTION, LENS = 0.5, 1
#: Lenses beyond are none of galaxies, and distances end at a redshift of 6.
MOST_DISTANT = 3.0
#: Planes convolved at a time.
CHUNK = 8


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One shard to paint into, and where to write the result."""

    cutouts: str
    shard: int
    directory: str
    name: str
    config: InjectConfig
    lenses: Lenses | None
    sources: str  # SHA-256 of the pictures
    hosts: NDArray[np.bool_] | None


def inject(config: InjectConfig) -> Summary:
    """Paint lensed sources into a cutout artefact.

    Raises
    ------
    ConfigError
        No input or output is given, the colours of sources are not known in a band, or a fraction is given
        beside lenses with ids.
    CatalogueError
        The lenses or the condition on hosts cannot be used.
    DataError
        No cutout meets that condition.
    RippleError
        As listed in `ripple.errors`.
    """
    if not config.cutouts or not config.output:
        raise ConfigError(
            "inject: cutouts or output are missing", hint="give both: ripple inject CUTOUTS -o DIR"
        )
    start = time.perf_counter()
    cutouts = open_artefact(Path(config.cutouts), "cutouts")
    lenses = _lenses(config, cutouts)
    # The file may have changed since this process last read it.
    read_sources.cache_clear()
    sources = read_sources(Path(config.sources), cutouts.bands) if config.sources else None
    hosts = _hosts(config, cutouts)
    _require_masses(config, cutouts)
    inputs = {"cutouts": cutouts.digest} | ({} if lenses is None else {"lenses": lenses.sha256})
    inputs |= {} if sources is None else {"sources": sources.sha256}
    opened = create(
        Path(config.output), kind="cutouts", config=config, inputs=inputs, units=len(cutouts.shards)
    )
    if isinstance(opened, Finished):
        return _summary(config, opened.artefact.index(), lenses, 0.0)
    with opened as writer:
        profile = Profile()
        workers = Workers.of(config, need_of(cutouts))

        def task(k: int) -> ShardTask:
            return ShardTask(
                str(cutouts.directory),
                k,
                str(writer.directory),
                writer.name(k),
                config,
                lenses,
                "" if sources is None else sources.sha256,
                None if hosts is None else hosts[k],
            )

        tasks = {k: task(k) for k in writer.todo()}
        rows = [shard.rows for shard in cutouts.shards]
        peak = map_shards(make_shard, tasks, writer, rows, workers, profile, "inject")
        index = _index(cutouts, writer)
        seconds = time.perf_counter() - start
        names = [writer.name(k) for k in range(len(cutouts.shards))]
        extra = [arcs_name(name) for name in names] if config.keep_arcs else []
        if config.card:
            from ripple.stages.inject import card  # loads plots and pages

            card.write_card(config, cutouts, writer.directory, names, index)
            extra += card.NAMES
        beside = listed(writer.directory, extra)
        metrics = {"operations": profile.operations, "seconds": seconds, "peak_rss": peak}
        writer.finish(index, metrics, cutouts.attributes, files=beside)
    return _summary(config, index, lenses, seconds)


def _lenses(config: InjectConfig, cutouts: Artefact) -> Lenses | None:
    """The lenses of the user; None when they are drawn."""
    _check_bands(cutouts)
    if not config.lenses:
        return None
    lenses = read_lenses(Path(config.lenses), cutouts.bands)
    if lenses.ids is None:
        return lenses
    if config.fraction is not None:
        raise ConfigError(
            "inject: --fraction, but the lenses have ids", hint="every cutout they name gets one"
        )
    known = {str(value) for value in cutouts.index()["id"].to_pylist()}
    if not known.intersection(lenses.ids):
        raise ConfigError(
            f"{config.lenses}: no cutout has one of its ids, such as {next(iter(lenses.ids))!r}",
            hint="leave out the column id to draw from the lenses",
        )
    return lenses


def _hosts(config: InjectConfig, cutouts: Artefact) -> list[NDArray[np.bool_]] | None:
    """Which rows of each shard meet the condition on hosts; None without one."""
    if not config.hosts:
        return None
    index = cutouts.index()
    try:
        met = matching(index, config.hosts).to_numpy()
    except (CatalogueError, ConfigError) as err:
        # The same language as that of --select, which it was written for.
        raise type(err)(err.message.replace("--select", "--hosts"), hint=err.hint) from None
    shard, row = index["shard"].to_numpy(), index["row"].to_numpy()
    out = [np.zeros(record.rows, bool) for record in cutouts.shards]
    for k, mask in enumerate(out):
        mask[row[shard == k]] = met[shard == k]
    if not any(mask.any() for mask in out):
        raise DataError(f"{cutouts.directory}: no cutout meets --hosts {config.hosts!r}")
    return out


def _check_bands(cutouts: Artefact) -> None:
    unknown = [band for band in cutouts.bands if band not in tuple("ugrizy")]
    if unknown:
        raise ConfigError(
            f"{cutouts.directory}: colours and photon noise of sources are not known in band {unknown[0]!r}",
            hint="they are known in u, g, r, i, z and y",
        )


def make_shard(task: ShardTask) -> ShardResult:
    """Inject into one shard and write it under a temporary name: what a worker does."""
    profile = Profile()
    cutouts = open_artefact(Path(task.cutouts), "cutouts")
    batch = cutouts_of(cutouts, task.shard)
    arcs = np.zeros(batch.image.shape, np.float32) if task.config.keep_arcs else None
    # Pictures are read by each worker, which is cheaper than to send them with each shard.
    sources = read_sources(Path(task.config.sources), batch.bands) if task.sources else None
    if sources is not None and sources.sha256 != task.sources:
        raise IntegrityError(f"{task.config.sources} changed during the run", hint="start again")
    with profile.time("inject"):
        painted = inject_batch(batch, task.config, task.lenses, task.hosts, arcs, sources)
    if arcs is not None:
        # Before the shard: where that is finished, its arcs are there.
        out = io.BytesIO()
        np.save(out, arcs)
        write_atomic(Path(task.directory) / arcs_name(task.name), out.getbuffer())
    data = pack_cutouts(painted, {"cutouts_sha256": cutouts.shards[task.shard].sha256})
    staged = stage(Path(task.directory), task.name, data)
    return ShardResult(staged, len(painted), profile.operations, peak_rss())


def arcs_name(shard: str) -> str:
    """Name of the file with the arcs of a shard, `shard-00000.h5`."""
    return f"arcs-{shard.removeprefix('shard-').partition('.')[0]}.npy"


def inject_batch(
    batch: CutoutBatch,
    config: InjectConfig,
    lenses: Lenses | None = None,
    hosts: NDArray[np.bool_] | None = None,
    keep: NDArray[np.float32] | None = None,
    sources: Sources | None = None,
) -> CutoutBatch:
    """Paint lensed sources into a share of the rows.

    Parameters
    ----------
    batch
        Cutouts in nJy, in bands among ugrizy.
    config
        What to paint, and how often. What a row gets depends only on the seed and the row's `index`.
    lenses
        Of the user; None: drawn.
    hosts
        `(N,)` rows that may get a lens, besides those that are labelled as lenses; None: all.
    keep
        `(N, B, H, W)` zeros, which are filled with the arcs in nJy, without noise.
    sources
        Pictures to lens instead of smooth profiles, by drawn lenses.

    Returns
    -------
    batch
        Copies of image and variance, and new columns: `label` (1 if injected; else as before, or 0),
        `injected` (uint8), `theta_E` (arcsec), `theta_E_over_seeing` (mean FWHM of the bands), `source_mag`
        (i), `magnification`, `images` (of the centre of the source), `arc_mag_<band>` (lensed total),
        `arc_snr_<band>` and `arc_snr` (matched filter, best band), `arc_sb_<band>` and `arc_sb` (mag/arcsec²,
        flux-weighted mean, bluest band), NaN where nothing was injected, and with lenses of the user
        `z_lens` and `z_source`; of every row `depth_<band>` (5 sigma, point source), `seam` (1: it lies in
        several cells) and `host_bad` (largest share of pixels in a band that are no measurement), all before
        anything was painted; `lens_row` (row of the lenses, -1 for none), with pictures `source_row`
        likewise, and `not_injected` (why nothing was painted, empty where it was). Rows without a PSF in a
        band that has data are left out.
    """
    n, image, variance = len(batch), batch.image.copy(), batch.variance.copy()
    injected = np.zeros(n, np.uint8)
    names = (*MEASURES, *(f"{name}_{band}" for name in OF_BANDS for band in batch.bands))
    measured = {name: np.full(n, np.nan) for name in names} | host_facts(batch)
    if config.theta_from:
        measured["z_source"] = _redshifts(batch, "z_source")
    if lenses is not None:
        # A catalogue may know the redshifts of its galaxies; those of painted lenses are those of the file.
        measured |= {name: _redshifts(batch, name) for name in REDSHIFTS}
    # Real cutouts are hardly ever lenses: without labels, those that were not painted count as no lens.
    label = np.asarray(batch.catalog.get("label", np.zeros(n, np.int64))).copy()
    # Of the PSFs of the centres only: cells bring as many again.
    used = np.unique(batch.psf_index[batch.psf_index >= 0])
    widths = np.full(len(batch.psf), np.nan)
    widths[used] = fwhm(batch.psf[used]) * batch.pixel_scale
    lens_row, why = np.full(n, -1, np.int64), [""] * n
    source_row = np.full(n, -1, np.int64)
    for k in range(n):
        # A generator per row, so that shards and workers do not matter; 21 keeps it apart from other uses of
        # the seed.
        rng = np.random.default_rng([config.seed, 21, int(np.int64(batch.catalog["index"][k]))])
        why[k] = "" if hosts is None or hosts[k] else "not a host"
        if label[k] == LENS:
            why[k] = "a lens already"
        if not why[k]:
            lens_row[k], why[k] = _chosen(batch, k, config, lenses, rng)
        theta, z_source = np.nan, np.nan
        if not why[k] and lenses is None:
            theta, z_source, why[k] = _einstein_radius(batch, k, config, rng)
        if why[k]:
            continue
        if lenses is not None:
            arcs, facts = paint_given(batch, k, lenses, int(lens_row[k]))
        elif sources is not None:
            source_row[k] = int(rng.choice(sources.usable()))
            arcs, facts = paint_picture(batch, k, theta, sources, int(source_row[k]), rng)
        else:
            arcs, facts = _paint(batch, k, config, theta, rng)
        _add(image[k], variance[k], arcs, _gain(batch, k), rng)
        injected[k] = 1
        if keep is not None:
            keep[k] = arcs
        if config.theta_from:
            facts["z_source"] = z_source
        facts |= {
            **arc_facts(arcs, batch.variance[k], batch),
            **_over_seeing(facts["theta_E"], batch, k, widths),
        }
        for name, value in facts.items():
            measured[name][k] = value
    label[injected == 1] = LENS
    seam = np.isin(np.arange(n), batch.psf_cells[:, 0]).astype(np.uint8)
    made = {
        "label": label,
        "injected": injected,
        "seam": seam,
        "lens_row": lens_row,
        "not_injected": np.array(why),
    }
    if sources is not None:
        made["source_row"] = source_row
    catalog = {**batch.catalog, **made, **measured}
    return replace(batch, image=image, variance=variance, catalog=catalog)


def _require_masses(config: InjectConfig, cutouts: Artefact) -> None:
    """Refuse `theta_from` where the cutouts lack its columns."""
    names = cutouts.index().column_names
    for name in (config.theta_from, config.lens_redshift) if config.theta_from else ():
        if name not in names:
            raise CatalogueError(
                f"--theta-from: the cutouts have no column {name!r}{suggest(name, names)}",
                hint="fetch with a catalogue that has the velocity dispersion and the redshift",
            )


def _redshifts(batch: CutoutBatch, name: str) -> NDArray[np.float64]:
    """A column of the catalogue; NaN where it has none, or no numbers."""
    column = batch.catalog.get(name)
    if column is None or column.dtype.kind not in "iuf":
        return np.full(len(batch), np.nan)
    return np.array(column, np.float64)


def host_facts(batch: CutoutBatch) -> dict[str, NDArray[np.float64]]:
    """Depth of each band, 5 sigma for a point source, and the largest share of unusable pixels, `(N,)` each.

    The noise is that of the median pixel and is taken to be white; the area is that of a matched filter, `1 /
    sum PSF²`. NaN without a PSF, a variance, or any data.
    """
    area = 1.0 / np.maximum((batch.psf.astype(np.float64) ** 2).sum(axis=(1, 2)), 1e-12)
    good = usable(batch)
    present = np.isfinite(batch.image).any(axis=(2, 3))
    share = np.where(present, 1.0 - good.mean(axis=(2, 3)), np.nan)
    facts = {"host_bad": np.where(present.any(axis=1), np.where(present, share, 0.0).max(axis=1), np.nan)}
    for b, band in enumerate(batch.bands):
        index = batch.psf_index[:, b]
        depth = np.full(len(batch), np.nan)
        for k in np.flatnonzero(index >= 0):
            noise = batch.variance[k, b][good[k, b] & np.isfinite(batch.variance[k, b])]
            if len(noise):
                depth[k] = float(magnitude(5.0 * np.sqrt(float(np.median(noise)) * area[index[k]])))
        facts[f"depth_{band}"] = depth
    return facts


def _chosen(
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
        row = int(rng.choice(lenses.usable()))
    return row, "" if _has_psf(batch, k) else "no PSF in a band with data"


def _einstein_radius(
    batch: CutoutBatch, k: int, config: InjectConfig, rng: np.random.Generator
) -> tuple[float, float, str]:
    """Einstein radius in arcsec and redshift of the source of row k (NaN unknown); and why it gets none."""
    if not config.theta_from:
        return float(rng.uniform(config.theta_min, config.theta_max)), np.nan, ""
    sigma, z = (float(batch.catalog[name][k]) for name in (config.theta_from, config.lens_redshift))
    if not (np.isfinite(sigma) and sigma > 0):
        return np.nan, np.nan, f"no velocity dispersion in {config.theta_from}"
    if not 0 < z < MOST_DISTANT:
        return np.nan, np.nan, f"no redshift of a lens in {config.lens_redshift}"
    # As far behind as the sources of `ripple simulate`.
    behind = source_redshifts(rng, np.array([z]))
    theta = float(einstein_radius(np.array([sigma]), np.array([z]), behind)[0])
    if not config.theta_min <= theta <= config.theta_max:
        return np.nan, np.nan, "its Einstein radius is outside theta_min and theta_max"
    return theta, float(behind[0]), ""


def _has_psf(batch: CutoutBatch, k: int) -> bool:
    """Whether row k has a PSF in every band that has data."""
    has_data = np.isfinite(batch.image[k]).any(axis=(1, 2))
    return bool(has_data.any() and (batch.psf_index[k][has_data] >= 0).all())


def _paint(
    batch: CutoutBatch, k: int, config: InjectConfig, theta: float, rng: np.random.Generator
) -> tuple[NDArray[np.float32], dict[str, float]]:
    """Arcs `(B, H, W)` in nJy, convolved with the PSFs of row k, and the parameters that were drawn."""
    i_mag = float(rng.uniform(config.source_bright, config.source_faint))
    # Colours of blue star-forming galaxies, in all of ugrizy; then those of the bands here.
    fluxes = flux(blue_magnitudes(rng, np.array([i_mag]))[0])[[UGRIZY.index(b) for b in batch.bands]]
    q, angle = light_shape(batch.image[k], batch.catalog, k)
    lensed = draw_lensed(rng, theta / batch.pixel_scale, q, angle, batch.pixel_scale)
    return _seen(batch, k, lensed, fluxes, {"theta_E": theta, "source_mag": i_mag})


def paint_picture(
    batch: CutoutBatch, k: int, theta: float, sources: Sources, row: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], dict[str, float]]:
    """As `_paint`, with a picture of the user in place of the profile, turned by a drawn angle."""
    q, angle = light_shape(batch.image[k], batch.catalog, k)
    drawn = draw_lensed(rng, theta / batch.pixel_scale, q, angle, batch.pixel_scale)
    s, turn = drawn.source, float(rng.uniform(0.0, 2.0 * np.pi))
    picture = sources.picture(row, batch.pixel_scale, turn, s.dx, s.dy)
    reach = 2.2 * drawn.lens.theta_e + 2.0 * picture.radius
    at = float(batch.catalog["dx"][k]), float(batch.catalog["dy"][k])
    spectrum = picture_light(drawn.lens, picture, grid_size(batch, reach), *at)
    seen, magnification = through_psf(spectrum, batch, k)
    mags = sources.mags[row]
    known = {
        "theta_E": theta,
        "source_mag": float(mags[batch.bands.index("i")]) if "i" in batch.bands else np.nan,
        "magnification": magnification,
        "images": float(image_count(drawn.lens, s.dx, s.dy)),
    }
    return seen * flux(mags)[:, None, None].astype(np.float32), known


def paint_given(
    batch: CutoutBatch, k: int, lenses: Lenses, row: int
) -> tuple[NDArray[np.float32], dict[str, float]]:
    """As `_paint`, with a lens of the user."""
    lensed, dx, dy = lenses.lensed(row, batch.pixel_scale)
    mags = lenses.mags[row]
    i_mag = float(mags[batch.bands.index("i")]) if "i" in batch.bands else np.nan
    known = {name: float(lenses.values[name][row]) for name in ("theta_E", *REDSHIFTS)} | {
        "source_mag": i_mag
    }
    return _seen(batch, k, lensed, flux(mags), known, dx, dy)


def _seen(
    batch: CutoutBatch,
    k: int,
    lensed: Lensed,
    fluxes: NDArray[np.float64],
    known: dict[str, float],
    dx: float = 0.0,
    dy: float = 0.0,
) -> tuple[NDArray[np.float32], dict[str, float]]:
    """Arcs in nJy of a source with these fluxes by band, and what is `known` of it with what was found."""
    seen, magnification = render(lensed, batch, k, dx, dy)
    images = float(image_count(lensed.lens, lensed.source.dx, lensed.source.dy))
    arcs = seen * fluxes[:, None, None].astype(np.float32)
    return arcs, {**known, "magnification": magnification, "images": images}


def _over_seeing(theta: float, batch: CutoutBatch, k: int, widths: NDArray[np.float64]) -> dict[str, float]:
    """Einstein radius over the mean FWHM of the PSFs of row k; `widths` are those of all PSFs, arcsec."""
    mine = widths[[index for index in batch.psf_index[k] if index >= 0]]
    seeing = float(mine[np.isfinite(mine)].mean()) if np.isfinite(mine).any() else np.nan
    return {"theta_E_over_seeing": theta / seeing}


def draw_lensed(rng: np.random.Generator, theta: float, q: float, angle: float, pixel_scale: float) -> Lensed:
    """A deflector whose mass follows the light, and a source that it images more than once.

    Parameters
    ----------
    rng
        Random generator.
    theta
        Einstein radius, pixels.
    q, angle
        Axis ratio and position angle (rad) of the light.
    pixel_scale
        Arcsec per pixel.
    """
    # External shear of a few per cent, in any direction.
    turn, gamma = rng.uniform(0.0, 2.0 * np.pi, 2), float(np.clip(rng.rayleigh(0.04), 0.0, 0.15))
    # Mass is rounder than light, with some scatter; the angles agree to about 7 deg (0.12 rad).
    mass_q = float(np.clip(1.0 - 0.8 * (1.0 - q) + rng.normal(0.0, 0.03), 0.45, 0.99))
    shear = gamma * float(np.cos(turn[0])), gamma * float(np.sin(turn[0]))
    lens = Deflector(theta, mass_q, angle + float(rng.normal(0.0, 0.12)), *shear)
    # Uniform in area within 0.85 Einstein radii, where a source has several images.
    beta = 0.85 * theta * float(np.sqrt(rng.uniform()))
    # Half-light radius around 0.24 arcsec, to pixels.
    re = float(np.clip(rng.lognormal(np.log(0.24), 0.35), 0.08, 0.6)) / pixel_scale
    tilt = float(rng.uniform(0.4, 1.0)), float(rng.uniform(0.0, np.pi))
    index = float(rng.choice([0.7, 1.0, 1.5]))
    source = Sersic(index, re, *tilt, beta * float(np.cos(turn[1])), beta * float(np.sin(turn[1])))
    # Up to 35 % of the light in a knot, as in star-forming galaxies: it makes arcs clumpy.
    knot = rng.normal(0.0, 0.5 * re, 2)
    return Lensed(lens, source, float(rng.uniform(0.0, 0.35)), float(knot[0]), float(knot[1]))


def light_shape(image: NDArray[np.float32], catalog: dict[str, NDArray[Any]], k: int) -> tuple[float, float]:
    """Axis ratio and position angle of the central light: weighted moments of the reddest band with data.

    Parameters
    ----------
    image
        `(B, H, W)` of row `k`.
    catalog
        Has `dx`, `dy`: the target's offset from the central pixel.
    k
        Row of the catalogue.

    Returns
    -------
    q, angle
        Axis ratio in [0.5, 1], rad from x. Moments are weighted with a Gaussian of 4 pixels, which makes
        objects rounder; the PSF does so too. `q` undoes neither, mass being rounder than light.
    """
    # In the reddest band the light of old stars, and so of the deflector, dominates.
    plane = next((p for p in image[::-1] if np.isfinite(p).any()), image[-1])
    height, width = plane.shape
    y, x = np.mgrid[:height, :width].astype(float)
    x -= width // 2 + float(catalog["dx"][k])
    y -= height // 2 + float(catalog["dy"][k])
    light = np.clip(np.nan_to_num(plane, nan=0.0, posinf=0.0, neginf=0.0), 0.0, None)
    weight = light * np.exp(-(x * x + y * y) / 32.0)
    total = float(weight.sum())
    if total <= 0.0:  # no light: a round deflector
        return 1.0, 0.0
    xx, yy, xy = (float((weight * m).sum()) / total for m in (x * x, y * y, x * y))
    e1, e2 = (xx - yy) / (xx + yy), 2.0 * xy / (xx + yy)
    # Below 0.6, so that a neighbour in the window does not give an extreme axis ratio.
    e = min(float(np.hypot(e1, e2)), 0.6)
    return max(float(np.sqrt((1.0 - e) / (1.0 + e))), 0.5), 0.5 * float(np.arctan2(e2, e1))


def render(
    lensed: Lensed, batch: CutoutBatch, k: int, dx: float = 0.0, dy: float = 0.0
) -> tuple[NDArray[np.float32], float]:
    """Arcs of a source of unit flux, convolved with the PSFs of a row, in each cell with that of the cell.

    Parameters
    ----------
    lensed
        The lens and its source, pixels.
    batch, k
        Cutouts, and the row.
    dx, dy
        Centre of the lens from the target, pixels.

    Returns
    -------
    seen
        `(B, H, W)` float32; zero in bands without a PSF. Its sum is the magnification if all arcs lie inside
        the cutout.
    magnification
        Lensed over unlensed flux.
    """
    # A source far outside is seen about where it is, and the lens may lie off the target.
    off = max(float(np.hypot(lensed.source.dx, lensed.source.dy)) - lensed.lens.theta_e, 0.0) + np.hypot(
        dx, dy
    )
    reach = 2.2 * lensed.lens.theta_e + 4.0 * lensed.source.re + off
    at = float(batch.catalog["dx"][k]) + dx, float(batch.catalog["dy"][k]) + dy
    return through_psf(light(lensed, grid_size(batch, reach), *at)[None], batch, k)


def grid_size(batch: CutoutBatch, reach: float) -> int:
    """Side of the grid, even, on which light that reaches so far, pixels, goes through PSFs.

    The FFT is periodic: the grid holds cutout and arcs, and what wraps around is out of reach of the PSF.
    """
    side = max(batch.image.shape[2:])
    kernel = batch.psf.shape[-1] if len(batch.psf) else 1
    least = max(side, 2.0 * reach, reach + (side + kernel) / 2 + 1)
    return 2 * int(scipy.fft.next_fast_len(int(np.ceil(least / 2)), real=True))


def through_psf(spectrum: Complex, batch: CutoutBatch, k: int) -> tuple[NDArray[np.float32], float]:
    """What a row sees of light with a transform `(P, S, S // 2 + 1)`, and its flux.

    P is 1, for all bands, or their number. The flux is that at frequency 0, of several bands the mean.
    """
    height, width = batch.image.shape[2:]
    size, kernel = spectrum.shape[-2], batch.psf.shape[-1] if len(batch.psf) else 1
    y0, x0 = size // 2 - height // 2, size // 2 - width // 2
    seen = np.zeros((len(batch.bands), height, width), np.float32)
    # First all of each band with the PSF of the centre, then the parts that lie in other cells of the coadd.
    parts = [(b, 0, height, 0, width, index) for b, index in enumerate(batch.psf_index[k]) if index >= 0]
    first, last = np.searchsorted(batch.psf_cells[:, 0], (k, k + 1))
    parts += batch.psf_cells[first:last, 1:].tolist()
    # The centre of each PSF at pixel (0, 0), so that convolving does not shift.
    centred = spectrum * shift(size, -(size // 2) - kernel // 2, -(size // 2) - kernel // 2)
    # Some at a time: all parts in all bands would be megabytes.
    for start in range(0, len(parts), CHUNK):
        some = parts[start : start + CHUNK]
        psf = scipy.fft.rfft2(batch.psf[[part[5] for part in some]], s=(size, size))
        psf *= centred[[part[0] for part in some]] if len(centred) > 1 else centred
        whole = scipy.fft.irfft2(psf, s=(size, size))[:, y0 : y0 + height, x0 : x0 + width]
        for (b, top, bottom, left, right, _), plane in zip(some, whole, strict=True):
            seen[b, top:bottom, left:right] = plane[top:bottom, left:right]
    return seen, float(spectrum[:, 0, 0].real.mean())


def _gain(batch: CutoutBatch, k: int) -> NDArray[np.float64]:
    """Flux of one electron in each band, nJy: that of a DP2 coadd, scaled to the depth of this row."""
    out = np.zeros(len(batch.bands))
    for b, band in enumerate(batch.bands):
        good = batch.variance[k, b][np.isfinite(batch.variance[k, b])]
        # Twice the exposure: half the sky variance in nJy², and half the flux of an electron.
        if len(good):
            out[b] = BANDS[band].njy_per_electron * float(np.median(good)) / noise_sigma(band) ** 2
    return out


def _add(
    image: NDArray[np.float32],
    variance: NDArray[np.float32],
    arcs: NDArray[np.float32],
    gain: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    """Add arcs and their photon noise in place, to pixels that have data."""
    # Variance in nJy² of n electrons of g nJy each: n g² = flux * g. The FFT leaves tiny negative fluxes.
    photons = np.maximum(arcs, np.float32(0)) * gain[:, None, None].astype(np.float32)
    noise = rng.standard_normal(arcs.shape, np.float32) * np.sqrt(photons)
    good = np.isfinite(image) & np.isfinite(variance)
    np.add(image, arcs + noise, out=image, where=good)
    np.add(variance, photons, out=variance, where=good)


def arc_facts(
    arcs: NDArray[np.float32], variance: NDArray[np.float32], batch: CutoutBatch
) -> dict[str, float]:
    """Magnitude, matched-filter S/N and surface brightness of arcs as they were painted, in each band."""
    usable = np.isfinite(variance) & (variance > 0)
    ratio = np.divide(arcs**2, variance, out=np.zeros_like(arcs), where=usable)
    facts: dict[str, float] = {}
    for b, band in enumerate(batch.bands):
        total = float(arcs[b].sum(dtype=np.float64))
        mean = float((arcs[b] ** 2).sum(dtype=np.float64)) / total if total > 0 else np.nan
        facts[f"arc_mag_{band}"] = float(magnitude(total))
        # The S/N of a perfect template: sqrt(sum f² / var).
        facts[f"arc_snr_{band}"] = float(np.sqrt(ratio[b].sum(dtype=np.float64)))
        facts[f"arc_sb_{band}"] = float(magnitude(mean / batch.pixel_scale**2))
    blue = min(batch.bands, key="ugrizy".index)
    best = max(facts[f"arc_snr_{band}"] for band in batch.bands)
    return facts | {"arc_snr": best, "arc_sb": facts[f"arc_sb_{blue}"]}


def _index(cutouts: Artefact, writer: ArtefactWriter) -> pa.Table:
    """The index of the cutouts with the new columns; rows without pixels keep their label."""
    old = cutouts.index()
    shard, row = old["shard"].to_numpy(), old["row"].to_numpy()
    columns: dict[str, Any] = {name: old[name] for name in old.column_names}
    fresh: dict[str, NDArray[Any]] = {}
    for k in range(len(cutouts.shards)):
        path = writer.directory / writer.name(k)
        mapped: Any = np.memmap(path, np.uint8, mode="r")  # its pixels are not read
        catalog = unpack_cutouts(mapped).catalog  # the shard that was just written
        here = np.flatnonzero(shard == k)
        for name in _new_columns(catalog):
            # Texts of other shards may be longer.
            values = catalog[name].astype(object) if catalog[name].dtype.kind == "U" else catalog[name]
            if name not in fresh:
                fresh[name] = _blank(old, name, values.dtype)
            fresh[name][here] = values[row[here]]
    return pa.table(columns | {name: pa.array(values) for name, values in fresh.items()})


def _new_columns(catalog: dict[str, NDArray[Any]]) -> list[str]:
    """Names of the columns that injection adds or changes."""
    redshifts = [name for name in REDSHIFTS if name in catalog and catalog[name].dtype.kind == "f"]
    names = ("label", "injected", "seam", "lens_row", "not_injected", *MEASURES, *_of_bands(catalog))
    return [*names, *redshifts, *(["source_row"] if "source_row" in catalog else [])]


def _of_bands(catalog: dict[str, NDArray[Any]]) -> list[str]:
    """Columns of `OF_BANDS`: those whose name ends in a band that has all of them."""
    bands = [n.removeprefix("arc_mag_") for n in catalog if n.startswith("arc_mag_")]
    return [f"{name}_{b}" for name in OF_BANDS for b in sorted(bands) if f"arc_snr_{b}" in catalog]


def _blank(old: pa.Table, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The column for rows without pixels: the old label, NaN, 0, -1, or why nothing was painted."""
    if name in ("label", *REDSHIFTS) and name in old.column_names:
        return np.array(old[name].to_numpy(), dtype)
    if name == "not_injected":
        return np.full(old.num_rows, "no pixels", dtype)
    if name in ("lens_row", "source_row"):
        return np.full(old.num_rows, -1, dtype)
    return np.full(old.num_rows, np.nan if dtype.kind == "f" else 0, dtype)


def _summary(config: InjectConfig, index: pa.Table, lenses: Lenses | None, seconds: float) -> Summary:
    rows = int((index["shard"].to_numpy() >= 0).sum())
    injected = np.flatnonzero(index["injected"].to_numpy())
    facts: dict[str, int | str] = {"rows": rows, "injected": len(injected)}
    if len(injected):
        facts["arc S/N"] = f"median {np.median(index['arc_snr'].to_numpy()[injected]):.0f}"
    return Summary(
        "inject",
        config.output,
        facts,
        notes=() if lenses is None else _notes(config, index, lenses),
        seconds=seconds,
        done_before=seconds == 0,
    )


def _notes(config: InjectConfig, index: pa.Table, lenses: Lenses) -> tuple[str, ...]:
    """Lenses that were refused, or have no cutout."""
    notes = []
    if bad := [(k, why) for k, why in enumerate(lenses.refused) if why]:
        k, why = bad[0]
        notes.append(
            f"{config.lenses}: {len(bad):,} lenses cannot be painted, the first in row {k + 1}: {why}"
        )
    if lenses.ids is not None:
        absent = set(lenses.ids).difference(str(value) for value in index["id"].to_pylist())
        if absent:
            notes.append(f"{config.lenses}: {len(absent):,} ids have no cutout, such as {min(absent)}")
    return tuple(notes)
