"""Directories that RIPPLe wrote, in a notebook: `ripple.open(directory)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from astropy.table import Row, Table
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ripple.config import Json
from ripple.errors import DataError, InputError, RippleError
from ripple.imaging.batch import CutoutBatch, TensorBatch
from ripple.imaging.normalize import denormalize
from ripple.notebook import drawing, html
from ripple.notebook.cutout import Cutout, _names
from ripple.notebook.cutouts import Cutouts
from ripple.notebook.model import Model, open_model
from ripple.notebook.tables import table_of_arrow
from ripple.report.cutout_pictures import Pictures, pictures_of_rows
from ripple.stages.report.report import ranked_table, tensor_artefacts
from ripple.stages.show import describe
from ripple.storage import artefact as storage
from ripple.storage.manifest import read_manifest
from ripple.storage.outcomes import Outcomes
from ripple.storage.schema import KINDS
from ripple.storage.shards import images_of


@dataclass(frozen=True, repr=False, eq=False)
class TensorRow:
    """One row of tensors.

    Parameters
    ----------
    id
        Identifier.
    bands
        Names of the B bands.
    image
        `(B, H, W)` float32 or float16, normalised, as the network sees it.
    valid
        `(B, H, W)` uint8, 1 where the pixel is a measurement.
    flux
        `(B, H, W)` float32, the normalisation undone; nJy when `unit` says so.
    unit
        Unit of `flux`.
    facts
        Columns of the row: quality measures, normalisation constants, the user's columns.
    """

    id: int | str
    bands: tuple[str, ...]
    image: NDArray[Any]
    valid: NDArray[np.uint8]
    flux: NDArray[np.float32]
    unit: str
    facts: dict[str, Any]

    def __repr__(self) -> str:
        height, width = self.image.shape[1:]
        verdict = "accepted" if self.facts.get("accept", 1) else "rejected"
        return f"<Tensor {self.id}: {_names(self.bands)}, {width} x {height} px, {verdict}>"

    def _repr_html_(self) -> str:
        shown = {k: v for k, v in self.facts.items() if k in ("ra", "dec", "accept", "qc", "label")}
        return html.page(repr(self)[1:-1], shown, drawing.png_of(self.plot()), f"Colour picture of {self.id}")

    def plot(self, *, bands: Sequence[str] | None = None, ax: Any = None, stretch: float = 8.0) -> Figure:
        """Draw the fluxes in colour; parameters as in `Cutout.plot`."""
        drawn = drawing.composite(self.flux[None], self.bands, rgb=bands, stretch=stretch)
        figure, (axis,) = drawing.panels(ax, 1, columns=1, inches=3.6)
        drawing.show(axis, drawn.rgb[0], drawn.legend)
        return figure


class Artefact(storage.Artefact):
    """A finished directory of cutouts, tensors or scores.

    `art["2738"]` is a row by its id: a `Cutout` of cutouts, a `TensorRow` of tensors, a row of the table of
    scores. What `ripple.storage.artefact.Artefact` offers (`bands`, `attributes`, `index`, `read`) is there,
    too.
    """

    __slots__ = ()

    def table(self) -> Table:
        """One row per requested row, in input order: position, status, reason, and all other columns."""
        return table_of_arrow(self.index())

    def summary(self) -> Json:
        """What `ripple show --json` prints: counts, sizes, options, and the number of rows by reason."""
        found = describe(self.directory).record()
        return {**found["facts"], "reasons": found["rejections"]}

    def verify(self) -> list[str]:
        """Read every byte and compare checksums; a line per problem, none when all is well."""
        return storage.verify(self.directory)

    def __getitem__(self, identifier: int | str) -> Any:
        shard, row = self._place(identifier)
        batch = _shard(self, shard)
        return (
            _cutout(self, batch, row, self._outcome(identifier))
            if isinstance(batch, CutoutBatch)
            else _tensor(batch, row)
        )

    def _place(self, identifier: int | str) -> tuple[int, int]:
        """Shard and row of an id."""
        found = self._row(identifier)
        if found["shard"] < 0:
            why = ": ".join(filter(None, (found["reason"], found.get("detail"))))
            raise InputError(f"{self.directory}: {identifier} has no pixels: {why}")
        return found["shard"], found["row"]

    def _outcome(self, identifier: int | str) -> Outcomes:
        found = self._row(identifier)
        return Outcomes.read_columns(
            {name: [found.get(name) or ""] for name in ("status", "reason", "detail")}
        )

    def _row(self, identifier: int | str) -> dict[str, Any]:
        index = _index(self)
        # Ids are text or exact integers; "2738" means either.
        ids = index["id"].cast(pa.string()).to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(ids == str(identifier))
        if not len(rows):
            first = ", ".join(map(str, ids[:3]))
            raise InputError(f"{self.directory}: no id {identifier!r}", hint=f"the first ones are {first}")
        found: dict[str, Any] = index.slice(int(rows[0]), 1).to_pylist()[0]
        return found

    def __repr__(self) -> str:
        counts, size = self.manifest["counts"], self.attributes.get("size")
        shape = (
            "" if size is None else f", {size} px" if isinstance(size, int) else f", {size[1]} x {size[0]} px"
        )
        return (
            f"<{self.kind.capitalize()} {self.directory}: {self.rows} of {counts['asked']} rows, "
            f"{_names(self.bands)}{shape}>"
        )

    def _repr_html_(self) -> str:
        found = describe(self.directory)
        facts, reasons = found.facts, found.rejections
        names = ("asked", "ok", "partial", "rejected", "bands", "size", "on disk", "written by")
        shown = {name: facts[name] for name in names if name in facts} | {"digest": self.digest[:16]}
        if reasons:
            shown["reasons"] = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
        try:
            picture = drawing.png_of(self.plot(), dpi=50) if self.rows else None
        except RippleError as err:  # for example scores whose tensors were removed
            picture, shown["picture"] = None, str(err)
        alt = f"Colour pictures of rows of {self.directory.name}"
        return html.page(f"{self.kind.capitalize()} {self.directory.name}", shown, picture, alt)

    def plot(self, n: int = 25, *, stretch: float = 8.0, ax: Any = None) -> Figure:
        """Draw the first rows that have pixels in colour, all with one stretch.

        Parameters
        ----------
        n
            Number of rows at most.
        stretch
            Linear range in units of the sky noise of the rows that are drawn.
        ax
            Matplotlib axes, one per row that is drawn; a new figure by default.

        Raises
        ------
        InputError
            No row has pixels.
        """
        index = _index(self)
        index = index.filter(pc.greater_equal(index["shard"], 0)).slice(0, n)
        shard, row = (index[name].to_numpy().astype(np.int64) for name in ("shard", "row"))
        labels = [str(value) for value in index["id"].to_pylist()]
        if self.kind == "cutouts":
            return _grid(_drawn(self, shard, row, stretch), labels, ax)
        return _grid(pictures_of_rows([self], shard, row, stretch=stretch, softening=8.0), labels, ax)


class Scores(Artefact):
    """Scored rows: `table` is ranked, best row first; `art["2738"]` is a row of it."""

    __slots__ = ()

    def table(self) -> Table:
        """One row per scored row, best first: rank, score, probability, position, and all other columns."""
        return table_of_arrow(_ranked(self))

    def __getitem__(self, identifier: int | str) -> Row:
        table = self.table()
        rows = np.flatnonzero(np.asarray(table["id"]).astype(str) == str(identifier))
        if not len(rows):
            raise InputError(f"{self.directory}: no row with id {identifier!r} was scored")
        return table[int(rows[0])]

    def plot(self, n: int = 25, *, stretch: float = 8.0, ax: Any = None) -> Figure:
        """Draw the best rows in colour with rank and score; parameters as in `Artefact.plot`.

        Raises
        ------
        DataError
            The tensors that were scored are missing or have changed.
        """
        best = _ranked(self).slice(0, n)
        shard, row = (best[name].to_numpy().astype(np.int64) for name in ("shard", "row"))
        labels = [
            f"{rank}: {score:.3f}"
            for rank, score in zip(best["rank"].to_pylist(), best["score"].to_pylist(), strict=True)
        ]
        sources = list(tensor_artefacts(self))
        return _grid(pictures_of_rows(sources, shard, row, stretch=stretch, softening=8.0), labels, ax)


def open_directory(directory: str | Path) -> Artefact | Model:
    """Open a directory that RIPPLe wrote: cutouts, tensors, scores, embeddings, or a model.

    Parameters
    ----------
    directory
        Written by `fetch`, `import`, `inject`, `preprocess`, `score`, `embed`, `train` or `import-model`.

    Raises
    ------
    InputError
        RIPPLe did not write the directory, it is not finished, or it is a page, an export or a survey.
    IntegrityError
        The manifest is damaged, or a file is missing or of another size.
    """
    path = Path(directory)
    kind = read_manifest(path)["kind"]
    if kind == "model":
        return open_model(path)
    if kind not in KINDS:
        what = {"page": "a page: open its index.html in a browser", "survey": "a survey: ripple.open_survey"}
        raise InputError(f"{path} is not an artefact but {what.get(kind, f'of kind {kind}')}")
    found = storage.open_artefact(path)
    return (Scores if kind == "scores" else Artefact)(found.directory, found.manifest, found.shards)


# Index and shards are asked for again and again in a notebook; the digest tells whether they are the same.
@lru_cache(maxsize=4)
def _index_of(directory: Path, digest: str) -> pa.Table:
    return storage.open_artefact(directory).index()


def _index(artefact: Artefact) -> pa.Table:
    return _index_of(artefact.directory.absolute(), artefact.digest)


@lru_cache(maxsize=4)
def _ranked_of(directory: Path, digest: str) -> pa.Table:
    return ranked_table(storage.open_artefact(directory))


def _ranked(artefact: Artefact) -> pa.Table:
    return _ranked_of(artefact.directory.absolute(), artefact.digest)


@lru_cache(maxsize=2)
def _shard_of(directory: Path, digest: str, k: int) -> CutoutBatch | TensorBatch:
    return images_of(storage.open_artefact(directory), k)


def _shard(artefact: Artefact, k: int) -> CutoutBatch | TensorBatch:
    return _shard_of(artefact.directory.absolute(), artefact.digest, k)


def _cutout(artefact: Artefact, batch: CutoutBatch, row: int, outcomes: Outcomes) -> Cutout:
    """One row without the margin, which serves only the matching of PSFs."""
    one = batch.take(np.array([row]))
    columns = {**one.catalog, "index": np.zeros(1, np.int64)}
    requested = {name: columns[name] for name in ("id", "ra", "dec")}
    margin = int(artefact.attributes.get("margin", 0))
    return Cutouts(replace(one, catalog=columns), outcomes, requested, margin=margin)[0]


def _tensor(batch: TensorBatch, row: int) -> TensorRow:
    facts = {name: values[row].item() for name, values in batch.catalog.items() if values.ndim == 1}
    one = replace(
        batch,
        image=batch.image[row : row + 1],
        valid=batch.valid[row : row + 1],
        catalog={name: values[row : row + 1] for name, values in batch.catalog.items()},
        variance=None,
    )
    try:
        flux, unit = denormalize(one)[0], batch.unit
    except DataError:  # normalised elsewhere, in an unknown way: shown as it is
        flux, unit = np.asarray(one.image[0], np.float32), "normalised"
    return TensorRow(facts["id"], batch.bands, one.image[0], one.valid[0], flux, unit, facts)


def _drawn(artefact: Artefact, shard: NDArray[np.int64], row: NDArray[np.int64], stretch: float) -> Pictures:
    """Colour pictures of rows of cutouts, without their margins; all with one stretch where of one size."""
    margin = int(artefact.attributes.get("margin", 0))
    inner = (slice(None), slice(margin, -margin or None), slice(margin, -margin or None))
    fluxes = [_shard(artefact, k).image[r][inner] for k, r in zip(shard.tolist(), row.tolist(), strict=True)]
    images: list[NDArray[np.uint8]] = [np.zeros((1, 1, 3), np.uint8)] * len(fluxes)
    legend = ""
    for shape in dict.fromkeys(flux.shape for flux in fluxes):
        alike = [k for k, flux in enumerate(fluxes) if flux.shape == shape]
        found = drawing.composite(np.stack([fluxes[k] for k in alike]), artefact.bands, stretch=stretch)
        legend = found.legend
        for k, picture in zip(alike, found.rgb, strict=True):
            images[k] = picture
    return Pictures(images, legend)


def _grid(drawn: Pictures, labels: Sequence[str], ax: Any) -> Figure:
    """Pictures with texts above them, and which band is which colour below."""
    if not drawn.images:
        raise InputError("no row has pixels to draw")
    count = len(drawn.images)
    figure, axes = drawing.panels(ax, count, columns=int(np.ceil(np.sqrt(count))), inches=1.5)
    for picture, axis, text in zip(drawn.images, axes, labels, strict=True):
        drawing.show(axis, picture, text)
    if ax is None:
        figure.supxlabel(drawn.legend, fontsize=8)
    return figure
