"""A finder in a notebook: what data it takes, how good it was on unseen sky, how it learned."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from matplotlib.figure import Figure

from ripple.config import Json
from ripple.errors import InputError
from ripple.learn.model.contract import Contract, load_contract
from ripple.notebook import drawing, html
from ripple.notebook.cutout import _names
from ripple.notebook.tables import table_of
from ripple.stages.show import describe
from ripple.storage import artefact as storage
from ripple.storage.checksums import read_verified
from ripple.storage.manifest import files_of, read_manifest

_HISTORY = "history.csv"


@dataclass(frozen=True, repr=False, eq=False)
class Model:
    """A finished model directory; nothing here needs torch.

    Parameters
    ----------
    directory
        Where it is.
    contract
        What it is, and what data it takes: bands, size in pixels, pixel scale in arcsec, unit, normalisation.
    """

    directory: Path
    contract: Contract

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands that it takes, in order."""
        return self.contract.bands

    def __repr__(self) -> str:
        c, n = self.contract, len(self.contract.members)
        return (
            f"<Model {self.directory}: {c.architecture.name}{f' x {n}' if n > 1 else ''}, {_names(c.bands)}, "
            f"{c.size} px of {c.pixel_scale:g} arcsec>"
        )

    def _repr_html_(self) -> str:
        c = self.contract
        facts: dict[str, Any] = {
            "network": f"{c.architecture.name}, {len(c.members)} member{'s' if len(c.members) > 1 else ''}",
            "takes": f"{' '.join(c.bands)}, {c.size} x {c.size} px of {c.pixel_scale:g} arcsec, {c.unit}",
            "normalisation": c.normalization.get("method", "unknown"),
            "PSF FWHM": "not of one width" if c.psf_fwhm is None else f"{c.psf_fwhm:g} arcsec",
            "classes": ", ".join(f"{label}: {name}" for label, name in sorted(c.class_map.items())),
            "threshold": f"{c.threshold:.4g}",
            "origin": c.origin,
        }
        for name in ("auroc", "pr_auc", "ece"):
            if (text := _measure(c.metrics.get(name))) is not None:
                facts[name] = text
        picture = drawing.png_of(self.plot()) if _HISTORY in self._files() else None
        return html.page(f"Model {self.directory.name}", facts, picture, "Loss and metrics by epoch")

    def _files(self) -> dict[str, tuple[int, str]]:
        return files_of(self.directory, read_manifest(self.directory, "model"))

    def summary(self) -> Json:
        """What `ripple show --json` prints, and the metrics on unseen sky."""
        return {**describe(self.directory).record()["facts"], "metrics": dict(self.contract.metrics)}

    def verify(self) -> list[str]:
        """Read every byte and compare checksums; a line per problem, none when all is well."""
        return storage.verify(self.directory)

    def table(self) -> Table:
        """How it learned: a row per member and epoch.

        Raises
        ------
        InputError
            The model was not trained here.
        """
        files = self._files()
        if _HISTORY not in files:
            raise InputError(f"{self.directory}: the model was not trained here: there is no {_HISTORY}")
        text = read_verified(self.directory / _HISTORY, files[_HISTORY]).decode()
        rows = list(csv.DictReader(io.StringIO(text)))
        names = rows[0] if rows else ()
        return table_of({name: _numbers([row[name] for row in rows]) for name in names})

    def plot(self, ax: Any = None) -> Figure:
        """Draw the losses by epoch; members are lines.

        Parameters
        ----------
        ax
            Matplotlib axes; a new figure by default.

        Raises
        ------
        InputError
            The model was not trained here.
        """
        table = self.table()
        figure, (axis,) = drawing.panels(ax, 1, columns=1, inches=3.6)
        seed = np.asarray(table["seed"])
        losses = [name for name in table.colnames if "loss" in name and table[name].dtype.kind == "f"]
        for name, colour in zip(losses, ("C0", "C1", "C2", "C3"), strict=False):
            for k, number in enumerate(np.unique(seed)):
                rows = seed == number
                axis.plot(table["epoch"][rows], table[name][rows], color=colour, label=None if k else name)
        axis.set_axis_on()
        axis.set_xlabel("epoch")
        axis.set_ylabel("loss")
        axis.legend(fontsize=8)
        return figure


def open_model(directory: Path) -> Model:
    """Open a finished model; errors as in `load_contract`."""
    return Model(directory, load_contract(directory))


def _measure(value: Any) -> str | None:
    """A metric with its interval, as the contract records it."""
    if isinstance(value, dict) and isinstance(value.get("value"), float):
        low, high = value.get("low"), value.get("high")
        interval = f" ({low:.3f} to {high:.3f})" if isinstance(low, float) and isinstance(high, float) else ""
        return f"{value['value']:.3f}{interval}"
    return f"{value:.3f}" if isinstance(value, float) else None


def _numbers(cells: list[str]) -> Any:
    """A column of CSV as numbers where all cells are; an empty cell is NaN."""
    try:
        values = np.array([float(cell) if cell else np.nan for cell in cells])
    except ValueError:
        return np.array(cells)
    return values.astype(np.int64) if len(values) and (values == np.floor(values)).all() else values
