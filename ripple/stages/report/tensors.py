"""The page about tensors, or cutouts: what was accepted and rejected, and the measures behind it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripple.imaging.bands import by_wavelength
from ripple.imaging.quality.flags import flag_names
from ripple.report.cards import Card, Table, Tile, csv_bytes, data_uri, render
from ripple.report.cutout_pictures import pictures_of_rows
from ripple.report.plots import COLOURS, histogram_plot
from ripple.stages.report.config import ReportConfig
from ripple.stages.report.figures import numbers
from ripple.storage.artefact import Artefact

#: Index columns to draw: start of the name, to which the band is added, title, unit.
MEASURES = (
    ("psf_fwhm_", "PSF width before matching", "FWHM, arcsec"),
    ("psf_after_", "PSF width matched to", "FWHM, arcsec"),  # computed, see `_values`
    ("noise_", "Sky noise", "nJy per pixel"),
    ("qc_signal_", "Brightest block", "sigma"),
)


def tensors_page(artefact: Artefact, config: ReportConfig) -> dict[str, bytes]:
    """The files of the page, by name."""
    index = artefact.index()
    status = np.array(index["status"].to_pylist())
    # Partial rows are accepted; what they lack is in their flags.
    reason = np.where(
        status == "rejected", np.array([r or "" for r in index["reason"].to_pylist()]), "accepted"
    )
    bands = artefact.bands
    flags = Counter(flag for names in _flags(index) for flag in names)
    verdicts = Counter(reason.tolist())
    shown = sampled(index, reason, config.top)
    cards, legend = _cards(artefact, index.take(shown), reason[shown], config)
    page = render(
        "tensors.html.j2",
        title=f"Quality of {artefact.kind}",
        digest=artefact.digest[:16],
        lead=f"{index.num_rows:,} targets in {', '.join(bands)}, {artefact.rows:,} of them with pixels.",
        facts=[
            Tile("targets", f"{index.num_rows:,}"),
            Tile("accepted", f"{(status != 'rejected').sum():,}"),
            Tile("rejected", f"{(status == 'rejected').sum():,}"),
        ],
        plots=_plots(index, bands),
        tables=[_counted("Verdicts", "verdict", verdicts), _counted("Quality flags", "flag", flags)],
        cards=cards,
        reasons=sorted(set(reason[shown])),
        cards_note=f"{len(shown):,} rows, about the same number of each verdict. {legend}",
        provenance=[f"{artefact.kind} {artefact.digest[:16]}"],
    )
    return {"index.html": page, "candidates.csv": csv_bytes(_flat(index).slice(0, config.csv_rows))}


def sampled(index: pa.Table, verdict: NDArray[np.str_], count: int) -> NDArray[np.int64]:
    """Rows with pixels to show: about the same number of each verdict, spread evenly over the index."""
    placed = np.flatnonzero(index["shard"].to_numpy() >= 0)  # -1: without pixels
    kinds = [placed[verdict[placed] == v] for v in np.unique(verdict[placed])]
    left, chosen = count, []
    # Rare verdicts first: the places that they do not fill go to the more common ones.
    for k, rows in enumerate(sorted(kinds, key=len)):
        share = min(len(rows), left // (len(kinds) - k))
        chosen.append(rows[np.linspace(0, len(rows) - 1, share).astype(int)] if share else rows[:0])
        left -= share
    return np.sort(np.concatenate(chosen)) if chosen else placed


def _flags(index: pa.Table) -> list[list[str]]:
    """Names of the quality flags of each row."""
    if "qc" not in index.column_names:
        return [[] for _ in range(index.num_rows)]
    return [flag_names(int(value or 0)) for value in index["qc"].to_pylist()]


def _plots(index: pa.Table, bands: tuple[str, ...]) -> list[str]:
    """A histogram of each measure that the index has, by band."""
    out = []
    for prefix, title, unit in MEASURES:
        groups = [(band, _values(index, prefix, band)) for band in by_wavelength(bands)]
        groups = [(band, values[np.isfinite(values)]) for band, values in groups]
        values = np.concatenate([v for _, v in groups]) if groups else np.zeros(0)
        if len(values):
            # Without the outermost rows: one bad PSF would leave a single bar.
            low, high = np.percentile(values, (0.5, 99.5))
            inside = (float(low), float(high))
            out.append(histogram_plot(title, unit, groups[:COLOURS], x_range=inside))
    return out


def _values(index: pa.Table, prefix: str, band: str) -> NDArray[np.float64]:
    """A column of the index; the width after matching is that before, divided by `psf_sharpening`."""
    if prefix != "psf_after_":
        return numbers(index, prefix + band)
    return numbers(index, f"psf_fwhm_{band}") / numbers(index, f"psf_sharpening_{band}")


def _counted(title: str, name: str, counts: Counter[str]) -> Table:
    """A table of counts, the largest first."""
    rows = tuple((key, f"{n:,}") for key, n in counts.most_common())
    return Table(title, (name, "rows"), rows or (("none", "0"),))


def _cards(
    artefact: Artefact, table: pa.Table, verdict: NDArray[np.str_], config: ReportConfig
) -> tuple[list[Card], str]:
    """A card for each row of `table`, and which bands are which colours."""
    shard, row = (numbers(table, name).astype(np.int64) for name in ("shard", "row"))
    drawn = pictures_of_rows([artefact], shard, row, stretch=config.stretch, softening=config.softening)
    pictures = drawn.images
    ra, dec = numbers(table, "ra"), numbers(table, "dec")
    ids, flags = table["id"].to_pylist(), _flags(table)
    cards = [
        Card(
            id=str(ids[k]),
            rank=k + 1,
            ra=float(ra[k]),
            dec=float(dec[k]),
            picture=data_uri(pictures[k]),
            width=pictures[k].shape[1],
            height=pictures[k].shape[0],
            kind=str(verdict[k]),
            # Flags of accepted rows only inform; on a card they would look like a rejection.
            flags=tuple(flags[k]) if verdict[k] != "accepted" else (),
        )
        for k in range(table.num_rows)
    ]
    return cards, drawn.legend


def _flat(table: pa.Table) -> pa.Table:
    """The table without nested columns, which CSV cannot hold."""
    return table.select([f.name for f in table.schema if not pa.types.is_nested(f.type)])
