"""`inject --card`: what was painted beside the galaxies it was painted into, and what gives it away.

A network that is trained on painted arcs may learn the painting. The shortcut tests of `ripple train` ask
that of its tensors; here they are asked of the cutouts, before anything is trained: rows with arcs against
the other rows, by what must not tell them apart. And the arcs themselves are held against what they should
be: their noise, their PSF, their colours.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripple.config import Json
from ripple.imaging.batch import CutoutBatch
from ripple.imaging.simulation.observing import magnitude
from ripple.report.cards import Table, Tile, render
from ripple.report.plots import Line, line_plot
from ripple.stages.inject import literature
from ripple.stages.inject.choose import chosen_light, generator
from ripple.stages.inject.config import InjectConfig
from ripple.stages.inject.lenses import Lenses
from ripple.stages.inject.masses import velocity_dispersions
from ripple.stages.inject.painting import Painted, examine
from ripple.stages.inject.sources import Sources
from ripple.stages.inject.verdicts import sentences, verdicts
from ripple.stages.report.figures import numbers
from ripple.storage.artefact import Artefact
from ripple.storage.files import write_atomic
from ripple.storage.shard_reader import unpack_cutouts
from ripple.storage.shards import cutouts_of

Float = NDArray[np.float64]
NAMES = ("realism.json", "realism.html")
#: AUROC that a shortcut must stay below, as in training; replicates of its interval; rows after which no more
#: shards are read, and rows of each kind at least.
LIMIT, DRAWS, ROWS, LEAST = 0.65, 200, 3000, 40
#: Radius of the aperture of the magnitudes of hosts, pixels.
APERTURE = 8
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
#: Features that know nothing of arcs.
BLIND = ("central_pixels", "pixel_noise")
BINS = 24
#: Name of a distribution: of sources before lensing, and of galaxies as seen, in arcsec.
SIZE = "half-light radius"
#: S/N of arcs that are looked at, and how many.
BRIGHT, EXAMINED = 20.0, 200
CHECKS = {"photon_noise": "photon noise", "variance": "variance", "psf_width": "width of the PSF"}


def write_card(
    config: InjectConfig,
    cutouts: Artefact,
    directory: Path,
    names: list[str],
    index: pa.Table,
    lenses: Lenses | None,
    sources: Sources | None,
) -> list[str]:
    """Write `NAMES` into the directory, and tell what is wrong.

    Parameters
    ----------
    config
        Of this run; its seed chooses the rows.
    cutouts
        As they were before: the light of the hosts.
    directory, names
        Of the shards that were written.
    index
        What was written.
    lenses, sources
        Of the user.
    """
    chosen = _chosen(index, config.seed)
    shard, row = index["shard"].to_numpy()[chosen], index["row"].to_numpy()[chosen]
    painted = index["injected"].to_numpy()[chosen] == 1
    seam = index["seam"].to_numpy()[chosen] == 1
    # Where cells meet there is no one PSF to compare with.
    bright = _bright(numbers(index, "arc_snr")[chosen], painted & ~seam, config.seed)
    checked: list[list[Painted]] = []
    hosts = np.full((len(chosen), len(cutouts.bands)), np.nan)
    sizes = np.full(len(chosen), np.nan)
    features: dict[str, list[Float]] = {}
    order = []
    for k in np.unique(shard).tolist():
        here = np.flatnonzero(shard == k)
        order.append(here)
        rows = row[here].astype(np.int64)
        before = cutouts_of(cutouts, k).take(rows)
        hosts[here], sizes[here] = host_magnitudes(before), host_sizes(before)
        mapped: Any = np.memmap(directory / names[k], np.uint8, mode="r")
        batch = unpack_cutouts(mapped).take(rows)
        checked += _examined(before, batch, np.flatnonzero(bright[here]), config, lenses, sources)
        for name, values in blind_features(batch).items():
            features.setdefault(name, []).append(values)
    back = np.argsort(np.concatenate(order)) if order else np.zeros(0, np.int64)
    made = {name: np.concatenate(parts)[back] for name, parts in features.items()}
    made["host_light"] = np.nan_to_num(hosts, nan=99.0)
    found: Json = {
        "rows": {"injected": int(painted.sum()), "not injected": int((~painted).sum())},
        "distributions": distributions(index, chosen, painted, hosts, sizes, cutouts.bands),
        "shortcuts": shortcuts(made, painted, config.seed),
        "painting": verdicts(checked, cutouts.bands, config.seed),
    }
    write_atomic(directory / NAMES[0], json.dumps(found, indent=1, sort_keys=True).encode())
    write_atomic(directory / NAMES[1], page(found, cutouts.digest))
    return findings(found)


def _bright(snr: Float, painted: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    """Rows whose arcs are looked at: some of those that are bright enough."""
    rows = np.flatnonzero(painted & (snr >= BRIGHT))
    out = np.zeros(len(snr), bool)
    out[np.random.default_rng([seed, 25]).permutation(rows)[:EXAMINED]] = True
    return out


def _examined(
    before: CutoutBatch,
    after: CutoutBatch,
    rows: NDArray[np.int64],
    config: InjectConfig,
    lenses: Lenses | None,
    sources: Sources | None,
) -> list[list[Painted]]:
    """Each row against the light that it was to get, which its seed draws again."""
    sigma = velocity_dispersions(before.catalog, config) if config.theta_from and len(rows) else None
    out = []
    for k in rows.tolist():
        rng = generator(config, before, k)
        light = chosen_light(before, k, config, lenses, None, sources, sigma, rng).light
        if light is not None:
            out.append(examine(before, after, k, light))
    return out


def findings(found: Json) -> list[str]:
    """What is wrong, in sentences."""
    gates = found["shortcuts"]["gates"] or {}
    bad = [name for name, gate in gates.items() if gate["verdict"] == "shortcut"]
    lines = [f"{name}: painted rows are told from others without looking for arcs." for name in bad]
    return lines + sentences(found["painting"])


def _chosen(index: pa.Table, seed: int) -> NDArray[np.int64]:
    """Rows of some shards, about `ROWS`, ascending: not those of labelled lenses that were not painted."""
    shard, painted = index["shard"].to_numpy(), index["injected"].to_numpy() == 1
    usable = (shard >= 0) & (painted | (numbers(index, "label") != 1))
    shards, counts = np.unique(shard[usable], return_counts=True)
    order = np.random.default_rng([seed, 22]).permutation(len(shards))
    # Shards until there are enough: each is read whole.
    some = order[: int(np.searchsorted(np.cumsum(counts[order]), ROWS)) + 1]
    return np.flatnonzero(usable & np.isin(shard, shards[some]))


def host_magnitudes(batch: CutoutBatch) -> Float:
    """`(N, B)` AB magnitudes within `APERTURE` pixels of the target; NaN without light."""
    height, width = batch.image.shape[2:]
    y, x = np.mgrid[:height, :width]
    inside = np.hypot(y - height // 2, x - width // 2) < APERTURE
    light = np.nan_to_num(batch.image[:, :, inside]).sum(axis=2, dtype=np.float64)
    return np.where(light > 0, magnitude(np.maximum(light, 1e-9)), np.nan)


def host_sizes(batch: CutoutBatch) -> Float:
    """`(N,)` radius in arcsec that holds half of that light, in the reddest band, as seen; NaN without."""
    height, width = batch.image.shape[2:]
    y, x = np.mgrid[:height, :width]
    r = np.hypot(y - height // 2, x - width // 2).ravel()
    order = np.argsort(r, kind="stable")
    order = order[r[order] < APERTURE]
    red = max(range(len(batch.bands)), key=lambda k: "ugrizy".find(batch.bands[k]))
    light = np.nan_to_num(batch.image[:, red]).reshape(len(batch), -1)[:, order].astype(np.float64)
    inside = np.cumsum(light, axis=1)
    at = (inside >= 0.5 * inside[:, -1:]).argmax(axis=1)
    return np.where(inside[:, -1] > 0, r[order][at] * batch.pixel_scale, np.nan)


def blind_features(batch: CutoutBatch) -> dict[str, Float]:
    """Features `(N, F)` by name that must not tell painted rows from others, in units of the noise."""
    from ripple.learn.evaluation.shortcuts import PIXEL_FEATURES  # loads torch

    variance = np.where(np.isfinite(batch.variance) & (batch.variance > 0), batch.variance, np.nan)
    with np.errstate(all="ignore"):
        noise = np.sqrt(np.nanmedian(np.nan_to_num(variance, nan=1.0), axis=(2, 3), keepdims=True))
    image = np.arcsinh(np.nan_to_num(batch.image / noise, posinf=0.0, neginf=0.0)).astype(np.float32)
    return {name: np.asarray(PIXEL_FEATURES[name](image), np.float64) for name in BLIND}


def shortcuts(features: dict[str, Float], painted: NDArray[np.bool_], seed: int) -> Json:
    """How well painted rows are told from others by each kind of features, or why nobody knows."""
    few = int(min(painted.sum(), (~painted).sum()))
    if few < LEAST:
        return {"gates": None, "reason": f"{few} rows of one kind, fewer than {LEAST}"}
    from ripple.learn.evaluation.shortcuts import gates_of  # loads torch

    # Half of each kind is fitted to, the other half judged.
    train = np.zeros(len(painted), bool)
    for kind in (painted, ~painted):
        rows = np.random.default_rng([seed, 23]).permutation(np.flatnonzero(kind))
        train[rows[: len(rows) // 2]] = True
    gates = gates_of(features, painted.astype(np.int64), train, limit=LIMIT, draws=DRAWS, seed=seed)
    return {"limit": LIMIT, "gates": {name: dict(gate) for name, gate in gates.items()}}


def distributions(
    index: pa.Table,
    chosen: NDArray[np.int64],
    painted: NDArray[np.bool_],
    hosts: Float,
    sizes: Float,
    bands: tuple[str, ...],
) -> Json:
    """Quantiles and histograms of the arcs, of the hosts that got one, and of the other rows."""
    out: Json = {}

    def add(name: str, **kinds: Float) -> None:
        values = {kind: v[np.isfinite(v)] for kind, v in kinds.items()}
        whole = np.concatenate(list(values.values()))
        if not len(whole):
            return
        low, high = (float(v) for v in np.quantile(whole, (0.01, 0.99)))
        edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
        out[name] = {"edges": edges.round(6).tolist(), "of": {
            kind: {
                "rows": len(v), "quantiles": np.quantile(v, QUANTILES).round(6).tolist(),
                "counts": np.histogram(v, edges)[0].tolist(),
            }
            for kind, v in values.items() if len(v)
        }}  # fmt: skip
        if name in literature.KNOWN:
            out[name]["literature"] = {k: list(v) for k, v in literature.KNOWN[name].items()}

    for name in ("theta_E", "theta_E_over_seeing", "source_mag", "arc_snr", "arc_sb", "magnification"):
        add(name, arcs=numbers(index, name)[chosen][painted])
    source = numbers(index, "source_re")[chosen]
    add(SIZE, **{"sources": source[painted], "their hosts": sizes[painted], "other rows": sizes[~painted]})
    arcs = np.stack([numbers(index, f"arc_mag_{band}")[chosen] for band in bands], axis=1)
    every = [(f"mag {b}", arcs[:, k], hosts[:, k]) for k, b in enumerate(bands)]
    every += [
        (f"{a} - {b}", arcs[:, k] - arcs[:, k + 1], hosts[:, k] - hosts[:, k + 1])
        for k, (a, b) in enumerate(pairwise(bands))
    ]
    for name, arc, host in every:
        add(name, **{"arcs": arc[painted], "their hosts": host[painted], "other rows": host[~painted]})
    return out


def page(found: Json, digest: str) -> bytes:
    """The HTML file."""
    rows, gates = found["rows"], found["shortcuts"]["gates"]
    bad = [name for name, gate in (gates or {}).items() if gate["verdict"] == "shortcut"]
    notes = findings(found)
    flaws = len(notes) - len(bad)
    if gates is None:
        notes.append(f"No shortcut tests: {found['shortcuts']['reason']}.")
    return render(
        "realism.html.j2",
        title="Realism of painted arcs",
        digest=digest[:16],
        lead=f"{rows['injected']:,} rows with arcs, {rows['not injected']:,} without.",
        notes=notes,
        facts=[
            Tile("shortcuts", "unknown" if gates is None else f"{len(bad)}", "of blind tests"),
            Tile("flaws", f"{flaws}", "of the painting"),
        ],
        plots=[_plot(name, known) for name, known in found["distributions"].items()],
        tables=[*_gates(gates, bad), *_painting(found["painting"]), _quantiles(found["distributions"])],
        provenance=[f"cutouts {digest[:16]}"],
    )


def _plot(name: str, known: Json) -> str:
    edges = np.array(known["edges"])
    middle, lines, top = (edges[1:] + edges[:-1]) / 2, [], 0.0
    for style, (kind, one) in zip(("c1", "c2", "faint"), known["of"].items(), strict=False):
        share = np.array(one["counts"]) / max(one["rows"], 1)
        top = max(top, float(share.max()))
        lines.append(Line(middle, share, kind, style, steps=True))
    theirs = known.get("literature", {})
    # The middle half of each, as a bar above the curves.
    for k, (kind, quantiles) in enumerate(theirs.items()):
        height = top * (1.08 + 0.07 * k)
        lines.append(Line(quantiles[1:4:2], [height, height], f"{kind}, 25 to 75 %", f"c{k + 3}"))
    ends = [edges[0], edges[-1], *(q for quantiles in theirs.values() for q in quantiles[1:4:2])]
    x_range, high = (float(min(ends)), float(max(ends))), top * (1.08 + 0.07 * len(theirs))
    return line_plot(name, name, "share", lines, x_range=x_range, y_range=(0.0, high or 1.0))


def _gates(gates: Json | None, bad: list[str]) -> list[Table]:
    if not gates:
        return []
    rows = tuple(
        (name, "{value:.3f} [{low:.3f}, {high:.3f}]".format(**gate["auroc"]), gate["verdict"])
        for name, gate in gates.items()
    )
    failed = frozenset(k for k, name in enumerate(gates) if name in bad)
    note = f"A shortcut has all of its interval above {LIMIT:g}."
    return [
        Table("Painted or not, without looking for arcs", ("", "AUROC, 95 %", "verdict"), rows, failed, note)
    ]


def _painting(checks: Json) -> list[Table]:
    rows: list[tuple[str, ...]] = []
    failed = set()
    for name, title in CHECKS.items():
        for band, one in checks[name].items():
            text = "{value:.3f} [{low:.3f}, {high:.3f}]".format(**one) if "value" in one else "–"
            if one["verdict"] == "flaw":
                failed.add(len(rows))
            rows.append((f"{title}, {band}", f"{one['rows']:,}", text, one["verdict"]))
    note = f"Ratios that should be 1, of arcs with S/N above {BRIGHT:g} in rows of one cell; 95 % intervals."
    tables = [
        Table(
            "Arcs against what they should be",
            ("", "rows", "ratio", ""),
            tuple(rows),
            frozenset(failed),
            note,
        )
    ]
    c = checks["colours"]
    if "redder" in c:
        wrong = frozenset({0}) if c["verdict"] != "ok" else frozenset()
        text = f"{c['redder']:.2f} [{c['redder_low']:.2f}, {c['redder_high']:.2f}]"
        row = (
            c["colour"],
            f"{c['rows']:,}",
            text,
            f"{c['spread']:.2f}, {c['spread_of_galaxies']:.2f}",
            c["verdict"],
        )
        note = (
            f"Redder than {c['bluest']:.2f}, the median of irregulars at redshifts of 0.8 to 3; spread: "
            "half of 16 to 84 %, of arcs and of irregular and Sbc galaxies (Coleman, Wu & Weedman 1980)."
        )
        head = ("", "rows", "share that is redder", "spread", "")
        tables.append(Table("Colours of arcs", head, (row,), wrong, note))
    return tables


def _quantiles(known: Json) -> Table:
    rows: list[tuple[str, ...]] = []
    for name, each in known.items():
        for kind, one in each["of"].items():
            rows.append((name, kind, f"{one['rows']:,}", *(f"{v:.3g}" for v in one["quantiles"])))
        for kind, quantiles in each.get("literature", {}).items():
            rows.append((name, kind, "", *(f"{v:.3g}" for v in quantiles)))
    note = (
        "Forecast: what Collett (2015, ApJ 811, 20) expects to be discoverable in the coadd of LSST. SLACS: "
        "59 lenses, as tabulated by Sonnenfeld. Both are what is found, not what there is on the sky."
    )
    head = ("", "of", "rows", *(f"{100 * q:g} %" for q in QUANTILES))
    return Table("Distributions", head, tuple(rows), note=note)
