"""Cutouts in Python: `survey = ripple.open_survey("dp2", collections="dp2"); survey.cutout(ra=, dec=)`.

A `Survey` keeps decoded planes in memory, for repeated questions about a region; `ripple fetch` is for many
targets.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripple.errors import InputError
from ripple.imaging.batch import CutoutBatch, concatenate
from ripple.imaging.stitch import seam_map
from ripple.rubin.cache import CacheCounts, CachedFiles, PlaneCache
from ripple.rubin.repository import open_repository
from ripple.sky.geometry import Box, Tan
from ripple.stages.fetch.planes import read_batch
from ripple.stages.fetch.task import unit_task
from ripple.stages.plan.config import Selection
from ripple.stages.plan.plan import Plan
from ripple.stages.plan.planner import Planner
from ripple.stages.plan.tables import UserTable
from ripple.stages.plan.targets import DEC_NAMES, RA_NAMES, Columns, Targets, from_table
from ripple.storage.outcomes import Outcome, Outcomes

if TYPE_CHECKING:
    from astropy.wcs import WCS


@dataclass(frozen=True)
class Cutout:
    """One target in all bands.

    Parameters
    ----------
    bands
        Names of the B bands, in order.
    image, variance
        `(B, H, W)` float32, nJy and nJy²; NaN where there is no pixel.
    mask
        `(B, H, W)` uint32; bit k is `mask_planes[k]`.
    mask_planes
        Names of the bits, lowest first.
    psf
        `(B, K, K)` float32, sum 1; NaN for a band without a PSF.
    box
        Pixels in the tract (PARENT frame).
    projection
        Projection of the tract.
    tract, patch
        Where the position lies.
    outcome
        `ok` or `partial`, and why.
    seams
        `(H, W)` int32 patch of each pixel, -1 for none; valid where all bands have the same patches.
    """

    bands: tuple[str, ...]
    image: NDArray[np.float32]
    variance: NDArray[np.float32]
    mask: NDArray[np.uint32]
    mask_planes: tuple[str, ...]
    psf: NDArray[np.float32]
    box: Box
    projection: Tan
    tract: int
    patch: int
    outcome: Outcome
    seams: NDArray[np.int32]

    @property
    def wcs(self) -> WCS:
        """The projection of the array (LOCAL pixels) as an `astropy.wcs.WCS`."""
        from astropy.io.fits import Header
        from astropy.wcs import WCS

        # From PARENT to LOCAL pixels: the first pixel of the array becomes (0, 0).
        local = replace(
            self.projection, x0=self.projection.x0 - self.box.x0, y0=self.projection.y0 - self.box.y0
        )
        return WCS(Header(local.cards()))

    def plot(self, path: str | Path | None = None) -> Any:
        """One panel per band on a common asinh scale; the matplotlib figure, saved to `path` if given."""
        from matplotlib.figure import Figure  # not pyplot, which would keep every figure in memory

        figure = Figure(figsize=(2.4 * len(self.bands), 2.6), layout="constrained")
        noise = np.nanmedian(np.sqrt(self.variance[np.isfinite(self.variance)])) if self.image.size else 1.0
        for k, band in enumerate(self.bands):
            axis = figure.add_subplot(1, len(self.bands), k + 1)
            # Linear up to about twice the noise, logarithmic above; the same for all bands.
            axis.imshow(np.arcsinh(self.image[k] / (2 * noise)), origin="lower", cmap="gray", vmin=-1, vmax=5)
            axis.set_title(band)
            axis.set_axis_off()
        if path is not None:
            figure.savefig(path)
        return figure


@dataclass(frozen=True)
class Cutouts:
    """Many targets: the cutouts that could be made, and the outcome of each requested row.

    Parameters
    ----------
    batch
        Delivered rows; `batch.catalog["index"]` is their position among the requested ones.
    outcomes
        The outcome of each requested row.
    """

    batch: CutoutBatch
    outcomes: Outcomes


@dataclass
class Survey:
    """An open repository that keeps decoded planes in memory. Use it as a context manager, or `close` it.

    Parameters
    ----------
    planner
        Knows the sky map, the bands and which coadds exist.
    cache
        Decoded planes.
    """

    planner: Planner
    cache: PlaneCache
    _stack: ExitStack = field(default_factory=ExitStack)
    _files: CachedFiles = field(init=False)
    # Planner and Butler are not made for several threads; one question is answered at a time.
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self._files = CachedFiles(self.planner.repository.name, self.cache)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the repository."""
        self._stack.close()

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands that have coadds."""
        return self.planner.bands

    @property
    def counts(self) -> CacheCounts:
        """Hits, misses, evictions and size of the plane cache."""
        return self.cache.counts()

    def cutout(self, ra: float, dec: float, *, size: int = 64, bands: Iterable[str] | None = None) -> Cutout:
        """Cut out one position.

        Parameters
        ----------
        ra, dec
            Deg ICRS.
        size
            Pixels per side.
        bands
            Bands in order, `"gri"` or a list; all by default.

        Raises
        ------
        InputError
            There is no cutout; the message has the reason.
        """
        with self._lock:
            wanted = tuple(bands) if bands is not None else self.bands
            plan = self._plan(_targets({"ra": [ra], "dec": [dec]}), size, wanted)
            found = self._read(plan)
        if not len(found.batch):
            why = found.outcomes[0]
            raise InputError(f"no cutout at ra {ra}, dec {dec}: {why.reason}: {why.detail}")
        batch, row = found.batch, 0
        tract = int(batch.catalog["tract"][row])
        x0, y0 = int(batch.catalog["x0"][row]), int(batch.catalog["y0"][row])
        side = batch.psf.shape[-1] if len(batch.psf) else 1
        # The batch has each distinct kernel once; here one per band.
        psf = np.full((len(batch.bands), side, side), np.nan, np.float32)
        for k, m in enumerate(batch.psf_index[row]):
            if m >= 0:
                psf[k] = batch.psf[m]
        own, patch = Box(x0, y0, x0 + size, y0 + size), int(batch.catalog["patch"][row])
        seams = seam_map(own, patch, {p: box for (t, p), box in plan.patch_boxes.items() if t == tract})
        return Cutout(
            batch.bands,
            batch.image[row],
            batch.variance[row],
            batch.mask[row],
            batch.mask_planes,
            psf,
            own,
            batch.wcs[tract],
            tract,
            patch,
            found.outcomes[0],
            seams,
        )

    def cutouts(self, table: Any, *, size: int = 64, bands: Iterable[str] | None = None) -> Cutouts:
        """Cut out many positions.

        Parameters
        ----------
        table
            A mapping of arrays, a structured array, an astropy, Arrow or pandas table, with columns that are
            recognised as on the command line: `ra` and `dec` (ICRS, in their unit, else deg) or sky
            coordinates, and optionally ids. Masked and repeated rows are refused as there.
        size
            Pixels per side.
        bands
            Bands in order; all by default.
        """
        with self._lock:
            plan = self._plan(_targets(table), size, tuple(bands) if bands is not None else self.bands)
            return self._read(plan)

    def _plan(self, targets: Targets, size: int, bands: tuple[str, ...]) -> Plan:
        """A plan for these bands; the planner remembers which datasets exist."""
        unknown = [b for b in bands if b not in self.bands]
        if unknown:
            raise InputError(f"no band {unknown[0]!r}", hint=f"there are {', '.join(self.bands)}")
        # The planner knows all bands; reading is limited to these, and judges the rows by what it read.
        plan = self.planner.plan(replace(targets, size=np.full(len(targets), size, np.int32)))
        return replace(plan, bands=bands)

    def _read(self, plan: Plan) -> Cutouts:
        """Read all units of a plan in this process, through the cache."""
        outcomes = Outcomes(len(plan.targets))
        # Rejected rows of the plan are in no unit.
        for rows, outcome in plan.outcomes.groups("rejected"):
            outcomes.add(rows, outcome)
        batches = []
        for unit in plan.units:
            # As `fetch` reads it, so that the pixels are the same.
            reading, batch = read_batch(unit_task(self.planner.selection, plan, unit), self._files)
            outcomes.put(unit.rows, reading.outcomes)
            batches.append(batch)
        if not batches:
            raise InputError(f"no cutout can be made: {', '.join(outcomes.reasons())}")
        return Cutouts(concatenate(batches), outcomes)


def open_survey(
    repo: str,
    *,
    collections: str | Iterable[str] = (),
    dataset_type: str | None = None,
    skymap: str | None = None,
    cache_bytes: int = 2 << 30,
) -> Survey:
    """Open a Butler repository for cutouts.

    Parameters
    ----------
    repo
        Path, label or URL.
    collections
        Collections in search order.
    dataset_type
        Coadd dataset type; recognised by default.
    skymap
        Sky map; needed when the repository has several.
    cache_bytes
        Decoded planes to keep in memory, bytes at most.

    Raises
    ------
    RippleError
        The repository cannot be opened, or does not have what is named.

    Examples
    --------
    >>> survey = ripple.open_survey("dp2", collections="dp2")  # doctest: +SKIP
    >>> survey.cutout(ra=53.16, dec=-27.79, size=64, bands="gri").plot("lens.png")  # doctest: +SKIP
    """
    names = (collections,) if isinstance(collections, str) else tuple(collections)
    selection = Selection.make(
        {"repo": repo, "collections": names, "dataset_type": dataset_type, "skymap": skymap}
    )
    # Closed at once when the planner fails, else with the survey.
    with ExitStack() as stack:
        repository = stack.enter_context(open_repository(repo, names))
        return Survey(Planner(selection, repository), PlaneCache(cache_bytes), stack.pop_all())


def _targets(table: Any) -> Targets:
    """Targets from any kind of table; positions without unit are in deg."""
    found = UserTable.in_memory(table)
    if not found.columns.num_rows:
        raise InputError("the table has no rows")
    angles = {*RA_NAMES, *DEC_NAMES}
    plain = {
        name: "deg"
        for name in found.columns.column_names
        if name.lower() in angles and not pa.types.is_string(found.columns[name].type)
    }
    found = replace(found, units=plain | found.units)
    return from_table(found, Columns(), source={"name": "cutouts"}, duplicate_radius=0.0)
