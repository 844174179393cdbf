"""Many cutouts in a notebook: a sequence of cutouts, and a table of what became of each requested row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
from astropy.table import MaskedColumn, Table
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ripple.errors import ConfigError
from ripple.imaging.batch import CutoutBatch, TensorBatch
from ripple.imaging.stitch import seam_map
from ripple.notebook import drawing, files, html
from ripple.notebook.cutout import Cutout, _names
from ripple.notebook.tables import table_of
from ripple.sky.geometry import Box
from ripple.stages.preprocess.batch import DataConstants, preprocess_batch
from ripple.stages.preprocess.config import PreprocessConfig
from ripple.storage.artefact import Artefact
from ripple.storage.outcomes import Outcomes


@dataclass(frozen=True, repr=False, eq=False)
class Cutouts:
    """Many targets: the cutouts that could be made, and the outcome of each requested row.

    `len`, iteration and indexing are over the cutouts, in the order in which their rows were requested;
    `table` has all requested rows. An integer gives a `Cutout`; a slice, a list of numbers or a boolean mask
    (one value per cutout or one per requested row) gives `Cutouts`.

    Parameters
    ----------
    batch
        The cutouts; `batch.catalog["index"]` is their position among the requested rows, ascending.
    outcomes
        The outcome of each requested row.
    requested
        Columns of the requested rows, each `(N,)`: `id`, `ra`, `dec` (deg ICRS), and those of the user.
    class_map
        Label value -> class name; empty when unlabelled.
    patch_boxes
        (tract, patch) -> outer box of the patches that were read; empty when they are not known.
    margin
        Pixels of `batch` on each side beyond what was asked for: `to_tensors` and the verbs match PSFs with
        them; pictures and single cutouts are without them.
    """

    batch: CutoutBatch
    outcomes: Outcomes
    requested: dict[str, NDArray[Any]]
    class_map: Mapping[str, str] = field(default_factory=dict)
    patch_boxes: Mapping[tuple[int, int], Box] = field(default_factory=dict)
    margin: int = 0

    @cached_property
    def _shown(self) -> CutoutBatch:
        """The batch without margins; views."""
        return self.batch.trimmed(self.margin)

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands, in order."""
        return self.batch.bands

    @property
    def table(self) -> Table:
        """A row per requested row: its columns, `status`, `reason`, `detail`, and its number as `cutout`."""
        words = {
            name: np.asarray(values.to_pylist(), str) for name, values in self.outcomes.columns().items()
        }
        number = np.full(len(self.outcomes), -1)
        number[self._rows] = np.arange(len(self))
        place = MaskedColumn(number, mask=number < 0)
        return table_of({**self.requested, **words, "cutout": place})

    @property
    def _rows(self) -> NDArray[np.int64]:
        """`(n,)` requested row of each cutout."""
        return np.asarray(self.batch.catalog["index"], np.int64)

    def __len__(self) -> int:
        return len(self.batch)

    def __iter__(self) -> Iterator[Cutout]:
        return (self[k] for k in range(len(self)))

    @overload
    def __getitem__(self, which: int) -> Cutout: ...
    @overload
    def __getitem__(self, which: slice | Sequence[int] | NDArray[Any]) -> Self: ...
    def __getitem__(self, which: Any) -> Cutout | Self:
        if isinstance(which, int | np.integer):
            if not -len(self) <= which < len(self):
                raise IndexError(f"cutout {which} of {len(self)}")
            return self._one(int(which) % len(self))
        if isinstance(which, slice):
            return self._some(np.arange(len(self))[which])
        chosen = np.asarray(which)
        if chosen.dtype != bool:
            return self._some(np.arange(len(self))[chosen.astype(np.int64)])
        if len(chosen) == len(self.outcomes):
            chosen = chosen[self._rows]
        if len(chosen) != len(self):
            raise IndexError(
                f"a mask of {len(chosen)} values for {len(self)} cutouts of {len(self.outcomes)} rows"
            )
        return self._some(np.flatnonzero(chosen))

    def _one(self, k: int) -> Cutout:
        batch = self._shown
        tract, patch, x0, y0 = (int(batch.catalog[n][k]) for n in ("tract", "patch", "x0", "y0"))
        height, width = batch.image.shape[2:]
        box = Box(x0, y0, x0 + width, y0 + height)
        patches = {p: outer for (t, p), outer in self.patch_boxes.items() if t == tract}
        return Cutout(
            bands=batch.bands,
            image=batch.image[k],
            variance=batch.variance[k],
            mask=batch.mask[k],
            mask_planes=batch.mask_planes,
            psf=_kernels(batch, k),
            box=box,
            projection=batch.wcs.get(tract),
            tract=tract,
            patch=patch,
            outcome=self.outcomes[int(self._rows[k])],
            seams=seam_map(box, patch, patches) if patches else None,
            id=batch.catalog["id"][k].item(),
            ra=float(batch.catalog["ra"][k]),
            dec=float(batch.catalog["dec"][k]),
            pixel_scale=batch.pixel_scale,
        )

    def _some(self, cutouts: NDArray[np.int64]) -> Self:
        rows = self._rows[cutouts]
        order = np.argsort(rows, kind="stable")  # cutouts stay in the order of the requested rows
        rows, cutouts = rows[order], cutouts[order]
        outcomes = Outcomes(len(rows))
        for k in np.flatnonzero(~self.outcomes.has("ok")[rows]).tolist():
            outcomes.add([k], self.outcomes[int(rows[k])])
        batch = self.batch.take(cutouts)
        batch.catalog["index"] = np.arange(len(rows), dtype=np.int64)
        requested = {name: values[rows] for name, values in self.requested.items()}
        return type(self)(batch, outcomes, requested, self.class_map, self.patch_boxes, self.margin)

    # ---- pictures

    def __repr__(self) -> str:
        height, width = self._shown.image.shape[2:]
        missing = len(self.outcomes) - len(self)
        return (
            f"<Cutouts: {len(self)} of {len(self.outcomes)} rows, {_names(self.bands)}, "
            f"{width} x {height} px ({width * self.batch.pixel_scale:.1f} arcsec)"
            + (f", {missing} rejected>" if missing else ">")
        )

    def _repr_html_(self) -> str:
        height, width = self._shown.image.shape[2:]
        facts: dict[str, Any] = {
            "requested": len(self.outcomes), "cutouts": len(self), "partial": self.outcomes.count("partial"),
            "rejected": self.outcomes.count("rejected"), "bands": " ".join(self.bands),
            "size": f"{width} x {height} px, {width * self.batch.pixel_scale:.1f} arcsec",
            "memory": f"{3 * self.batch.image.nbytes / 1e6:.1f} MB",  # image, variance and mask
        }  # fmt: skip
        reasons = self.outcomes.reasons()
        if reasons:
            facts["reasons"] = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
        picture = drawing.png_of(self.plot(), dpi=50) if len(self) else None
        alt = f"Colour pictures of the first {min(len(self), drawing.MOST)} cutouts"
        return html.page("Cutouts", facts, picture, alt)

    def plot(
        self,
        n: int = 25,
        *,
        rgb: Sequence[str] | None = None,
        labels: str | Sequence[Any] | None = None,
        stretch: float = 8.0,
        ax: Any = None,
    ) -> Figure:
        """Draw the first cutouts in colour, all with one stretch.

        Parameters
        ----------
        n
            Number of cutouts at most.
        rgb
            Bands to draw, `"gri"` or a list: the reddest is red. By default chosen among all.
        labels
            Texts above the pictures: a column of `table`, or one value per cutout. By default the ids.
        stretch
            Linear range in units of the sky noise of all cutouts that are drawn.
        ax
            Matplotlib axes, one per cutout that is drawn; a new figure by default.

        Returns
        -------
        The matplotlib figure.

        Raises
        ------
        ConfigError
            There is no cutout, no such band or column, or the axes are not as many as the pictures.
        """
        count = min(n, len(self))
        if count < 1:
            raise ConfigError("there is no cutout to draw")
        drawn = drawing.composite(self._shown.image[:count], self.bands, rgb=rgb, stretch=stretch)
        figure, axes = drawing.panels(ax, count, columns=int(np.ceil(np.sqrt(count))), inches=1.5)
        for picture, axis, text in zip(drawn.rgb, axes, self._labels(labels, count), strict=True):
            drawing.show(axis, picture, text)
        drawing.scale_bar(axes[0], self._shown.image.shape[3], self.batch.pixel_scale)
        if ax is None:
            figure.supxlabel(drawn.legend, fontsize=8)
        return figure

    def _labels(self, labels: str | Sequence[Any] | None, count: int) -> list[str]:
        if labels is None:
            labels = "id"
        if not isinstance(labels, str):
            values = list(labels)
            if len(values) < count:
                raise ConfigError(f"{len(values)} labels for {count} pictures")
            return [str(value) for value in values[:count]]
        table = self.table
        if labels not in table.colnames:
            raise ConfigError(f"no column {labels!r}", hint=f"there are {', '.join(table.colnames)}")
        values = table[labels][self._rows[:count]]
        return [f"{v:.3g}" if values.dtype.kind == "f" else str(v) for v in values]

    # ---- other forms

    def to_tensors(self, **options: Any) -> TensorBatch:
        """PSF-matched, judged and normalised, as `ripple preprocess` does it.

        Parameters
        ----------
        options
            Those of `ripple preprocess`: `psf="match"`, `normalize="asinh"`, `softening=3.0`, ... What the
            verb measures on the whole data set (noise correlation, duplicates) is measured on these cutouts;
            `scope` `dataset` needs the verb.

        Returns
        -------
        tensors
            `image` `(N, B, H, W)` float32 or float16, `valid`, and the columns of quality and normalisation
            in `catalog`; `ripple.denormalize` gives fluxes again.

        Raises
        ------
        ConfigError
            An option that does not exist, or a wrong value.
        """
        config = PreprocessConfig.make(options)
        constants = DataConstants(margin=self.margin, class_map=self.class_map)
        return preprocess_batch(self.batch, config, constants)

    def to_fits(self, directory: str | Path) -> Path:
        """Write a FITS file per cutout, and `catalog.csv`, as `ripple export --format fits` does.

        Parameters
        ----------
        directory
            New, or written by the same call before.
        """
        return files.fits_directory(self._shown, Path(directory), self.class_map)

    def write(self, directory: str | Path) -> Artefact:
        """Write the cutouts as an artefact, which all verbs take; rows without a cutout are not written.

        Parameters
        ----------
        directory
            New, or written by the same call before.

        Raises
        ------
        DataError
            Two rows have the same id.
        """
        return files.write(self.batch, Path(directory), self.class_map, self.margin)


def in_order(batch: CutoutBatch) -> CutoutBatch:
    """The rows sorted by `index`; the batch itself where they are."""
    index = np.asarray(batch.catalog["index"])
    return batch if (np.diff(index) > 0).all() else batch.take(np.argsort(index, kind="stable"))


def _kernels(batch: CutoutBatch, row: int) -> NDArray[np.float32]:
    """`(B, K, K)` PSF of each band, NaN where there is none; a batch has each distinct kernel once."""
    side = batch.psf.shape[-1] if len(batch.psf) else 1
    psf = np.full((len(batch.bands), side, side), np.nan, np.float32)
    for k, m in enumerate(batch.psf_index[row]):
        if m >= 0:
            psf[k] = batch.psf[m]
    return psf


def no_cutouts(bands: tuple[str, ...], side: int, pixel_scale: float) -> CutoutBatch:
    """A batch without rows."""
    planes = np.empty((0, len(bands), side, side), np.float32)
    kinds: dict[str, Any] = {"index": np.int64, "id": np.int64, "ra": float, "dec": float}
    kinds |= dict.fromkeys(("tract", "patch", "x0", "y0"), np.int32)
    return CutoutBatch(
        bands=bands,
        image=planes,
        variance=planes,
        mask=planes.astype(np.uint32),
        mask_planes=(),
        psf=np.empty((0, 1, 1), np.float32),
        psf_index=np.empty((0, len(bands)), np.int32),
        catalog={name: np.empty(0, kind) for name, kind in kinds.items()},
        pixel_scale=pixel_scale,
    )
