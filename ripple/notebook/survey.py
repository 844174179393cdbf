"""Cutouts in Python: `survey = ripple.open_survey("dp2", collections="dp2"); survey.cutout(ra, dec)`.

A `Survey` keeps decoded planes in memory, for repeated questions about a region; `ripple fetch` is for many
targets.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from astropy.table import Table
from matplotlib.figure import Figure

from ripple.errors import InputError, RippleError
from ripple.imaging.batch import concatenate
from ripple.notebook import drawing, html
from ripple.notebook.cutout import Cutout
from ripple.notebook.cutouts import Cutouts, in_order, no_cutouts
from ripple.notebook.positions import pixels_of, single, targets_of
from ripple.notebook.tables import table_of
from ripple.rubin.cache import CacheCounts, CachedFiles, PlaneCache
from ripple.rubin.repository import open_repository
from ripple.runtime.profile import Profile
from ripple.runtime.summary import progress
from ripple.stages.fetch.planes import read_batch
from ripple.stages.fetch.task import unit_task, user_columns
from ripple.stages.plan.config import Selection
from ripple.stages.plan.estimate import estimate
from ripple.stages.plan.plan import Plan
from ripple.stages.plan.planner import Planner
from ripple.stages.plan.targets import Targets
from ripple.storage.outcomes import Outcomes

#: Tracts whose object tables are searched for an id; a tract of Rubin has about a million objects.
_SEARCHED = 8
#: Tracts that the map of a survey draws at most.
_DRAWN = 500


@dataclass(repr=False, eq=False)
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
    # Id of an object -> deg ICRS, of the objects that were listed so far.
    _objects: dict[Any, tuple[float, float]] = field(default_factory=dict)
    _tracts: tuple[int, ...] | None = None
    _closed: bool = False

    def __post_init__(self) -> None:
        self._files = CachedFiles(self.planner.repository.name, self.cache)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the repository; questions after that are an `InputError`."""
        self._closed = True
        self._stack.close()

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands that have coadds."""
        return self.planner.bands

    @property
    def pixel_scale(self) -> float:
        """Arcsec per pixel."""
        return self.planner.skymap.tan(int(self.planner.skymap.table.ids[0])).pixel_scale

    @property
    def tracts(self) -> tuple[int, ...]:
        """Tracts that have coadds, ascending."""
        if self._tracts is None:
            self._check_open()
            with self._lock:
                planner = self.planner
                self._tracts = planner.repository.tracts(planner.dataset_type, planner.skymap_name)
        return self._tracts

    @property
    def counts(self) -> CacheCounts:
        """Hits, misses, evictions and size of the plane cache."""
        return self.cache.counts()

    def _check_open(self) -> None:
        if self._closed:
            raise InputError(
                f"the survey {self.planner.repository.name} is closed",
                hint="open it again: ripple.open_survey",
            )

    def __repr__(self) -> str:
        planner = self.planner
        where = ", ".join(planner.repository.collections)
        return (
            f"<Survey {planner.repository.name} ({where}): {planner.dataset_type} of {planner.skymap_name}, "
            f"bands {' '.join(self.bands)}>"
        )

    def _repr_html_(self) -> str:
        planner, counts = self.planner, self.counts
        facts = {
            "repository": planner.repository.name,
            "collections": ", ".join(planner.repository.collections),
            "coadds": planner.dataset_type,
            "sky map": f"{planner.skymap_name}, {self.pixel_scale:.3f} arcsec per pixel",
            "bands": " ".join(self.bands),
            "planes in memory": f"{counts.planes}, {counts.hits} hits, {counts.misses} misses",
        }
        try:
            facts["tracts"] = f"{len(self.tracts)} with coadds"
            picture = drawing.png_of(self.plot())
        except RippleError:  # a closed or unreachable repository still has a name and bands
            picture = None
        return html.page("Survey", facts, picture, "Map of the tracts that have coadds")

    def plot(self, ax: Any = None) -> Figure:
        """Draw the outlines of the tracts that have coadds, ra to the left.

        Parameters
        ----------
        ax
            Matplotlib axes; a new figure by default.
        """
        figure, (axis,) = drawing.panels(ax, 1, columns=1, inches=3.6)
        skymap = self.planner.skymap
        for tract in self.tracts[:_DRAWN]:
            box = skymap.tract_box(tract)
            x = np.array([box.x0, box.x1, box.x1, box.x0, box.x0], float)
            ra, dec = skymap.tan(tract).pixel_to_sky(
                x, np.array([box.y0, box.y0, box.y1, box.y1, box.y0], float)
            )
            ra = (ra - ra[0] + 180) % 360 - 180 + ra[0]  # an outline that crosses ra 0 stays in one piece
            axis.fill(ra, dec, alpha=0.3)
            if len(self.tracts) <= 20:
                axis.text(ra[:4].mean(), dec[:4].mean(), str(tract), ha="center", va="center", fontsize=8)
        axis.set_axis_on()
        axis.invert_xaxis()
        # A degree of right ascension is shorter than one of declination; near the poles the map is rough.
        axis.set_aspect(1 / max(np.cos(np.radians(np.mean(axis.get_ylim()))), 0.1))
        axis.set_xlabel("ra, deg")
        axis.set_ylabel("dec, deg")
        return figure

    # ---- questions

    def cutout(
        self,
        *position: Any,
        ra: float | None = None,
        dec: float | None = None,
        size: Any = 64,
        bands: Iterable[str] | None = None,
    ) -> Cutout:
        """Cut out one position.

        Parameters
        ----------
        position
            A `SkyCoord`, right ascension and declination, or the id of an object: one that `objects` has
            listed, or any one where the survey has few tracts.
        ra, dec
            Deg ICRS, instead of `position`.
        size
            Pixels per side, or an angle: `12.8 * u.arcsec`, `"12.8arcsec"`.
        bands
            Bands in order, `"gri"` or a list; all by default.

        Raises
        ------
        InputError
            There is no such object, or no cutout; the message has the reason.
        """
        if ra is not None and dec is not None and not position:
            position = (ra, dec)
        elif ra is not None or dec is not None or not 1 <= len(position) <= 2:
            raise InputError(
                "one position is needed", hint="give a SkyCoord, ra and dec, or the id of an object"
            )
        columns = self._position(position)
        with self._lock:
            plan = self._plan(targets_of(columns), size, bands)
            found = self._read(plan)
        if not len(found):
            why = found.outcomes[0]
            at = ", ".join(f"{name} {values[0]}" for name, values in columns.items())
            raise InputError(f"no cutout at {at}: {why.reason}: {why.detail}")
        return found[0]

    def _position(self, position: tuple[Any, ...]) -> dict[str, list[Any]]:
        """The columns of a table of one row."""
        if len(position) == 2:
            return {"ra": [float(position[0])], "dec": [float(position[1])]}
        sky = single(position[0])
        if sky is not None:
            return {"ra": [sky[0]], "dec": [sky[1]]}
        identifier = position[0].item() if isinstance(position[0], np.generic) else position[0]
        if not isinstance(identifier, int | str):
            raise InputError(
                f"a {type(identifier).__name__} is no position", hint="give a SkyCoord, or ra and dec"
            )
        ra, dec = self._place_of(identifier)
        return {"id": [identifier], "ra": [ra], "dec": [dec]}

    def _place_of(self, identifier: int | str) -> tuple[float, float]:
        """Deg ICRS of an object of the repository's object table."""
        if identifier not in self._objects and len(self.tracts) <= _SEARCHED:
            self.objects()
        if identifier not in self._objects:
            raise InputError(
                f"{self.planner.repository.name}: no object {identifier!r} is known",
                hint="list the objects around it with survey.objects(region), or give its position",
            )
        return self._objects[identifier]

    def cutouts(self, table: Any, *, size: Any = 64, bands: Iterable[str] | None = None) -> Cutouts:
        """Cut out many positions.

        Parameters
        ----------
        table
            Sky coordinates; a mapping of arrays, a structured array, an astropy, Arrow or pandas table; or
            the path of a table. Columns are recognised as on the command line: `ra` and `dec` (ICRS, in their
            unit, else deg) or sky coordinates, and optionally ids. Single rows without a usable position, and
            those that repeat an id, are rejected with the reason.
        size
            As in `cutout`.
        bands
            Bands in order; all by default.

        Returns
        -------
        cutouts
            Also when some or all rows are rejected: `table` has the reason of each. `batch` has the margin
            that `ripple fetch` reads by default, for the matching of PSFs.
        """
        with self._lock:
            return self._read(self._plan(targets_of(table), size, bands))

    def plan(self, table: Any, *, size: Any = 64, bands: Iterable[str] | None = None) -> Table:
        """What `cutouts` would do, without reading a pixel.

        Parameters
        ----------
        table, size, bands
            As in `cutouts`.

        Returns
        -------
        table
            A row per requested row: `id`, `ra`, `dec` (deg), `tract`, `patch`, `x`, `y` (pixels of the
            tract), `status`, `reason`, `detail`. `meta` has `read_bytes`, `write_bytes`, `memory_bytes` and
            `seconds` of a `ripple fetch` with one worker.
        """
        with self._lock:
            plan = self._plan(targets_of(table), size, bands)
        words = {n: np.asarray(values.to_pylist(), str) for n, values in plan.outcomes.columns().items()}
        places: dict[str, Any] = {"tract": plan.tract, "patch": plan.patch, "x": plan.x, "y": plan.y}
        found = table_of(
            {"id": plan.targets.id, "ra": plan.targets.ra, "dec": plan.targets.dec, **places, **words}
        )
        cost = estimate(plan)
        names = ("read_bytes", "write_bytes", "memory_bytes", "seconds")
        found.meta.update({name: getattr(cost, name) for name in names})
        return found

    def objects(self, region: str | None = None, *, select: str | None = None) -> Table:
        """The objects of the repository's own object table.

        Parameters
        ----------
        region
            `"CIRCLE ra dec r"`, `"POLYGON ra dec ..."` or `"RANGE ra0 ra1 dec0 dec1"`, deg; all tracts by
            default, which is a lot of objects in a real survey.
        select
            Condition on columns: `"i_cModelMag < 22 and extendedness == 1"`.

        Returns
        -------
        table
            `id`, `ra`, `dec` (deg ICRS) and the other columns that were read: all of a narrow table, of a
            wide one those in `select`. `cutouts` takes it.

        Raises
        ------
        InputError
            The repository has no object table there, or no column of this name.
        """
        self._check_open()
        wanted = {"region": region, "select": select}
        with self._lock:
            selection = Selection.make({**self.planner.selection.model_dump(), **wanted})
            found = Planner(selection, self.planner.repository).targets()
        where = zip(found.ra.tolist(), found.dec.tolist(), strict=True)
        self._objects.update(zip(found.id.tolist(), where, strict=True))
        # `tract` and `patch` were renamed to make room for those that a plan adds.
        extra = {name.removeprefix("input_"): values for name, values in user_columns(found.extra).items()}
        return table_of({**extra, "id": found.id, "ra": found.ra, "dec": found.dec})

    def _plan(self, targets: Targets, size: Any, bands: Iterable[str] | None) -> Plan:
        """A plan for these bands; the planner remembers which datasets exist."""
        self._check_open()
        wanted = tuple(bands) if bands is not None else self.bands
        unknown = [b for b in wanted if b not in self.bands]
        if unknown:
            raise InputError(f"no band {unknown[0]!r}", hint=f"there are {', '.join(self.bands)}")
        side = pixels_of(size, self.pixel_scale)
        # The planner knows all bands; reading is limited to these, and judges the rows by what it read.
        plan = self.planner.plan(replace(targets, size=np.full(len(targets), side, np.int32)))
        return replace(plan, bands=wanted)

    def _read(self, plan: Plan) -> Cutouts:
        """Read all units of a plan in this process, through the cache."""
        outcomes = Outcomes(len(plan.targets))
        # Rejected rows of the plan are in no unit.
        for rows, outcome in plan.outcomes.groups("rejected"):
            outcomes.add(rows, outcome)
        batches = []
        # A bar for what is done at once would only leave an empty line in a notebook.
        several = len(plan.units) > 1
        with progress(len(plan.targets), "cutouts") if several else nullcontext(int) as advance:
            for unit in plan.units:
                # As `fetch` reads it, so that the pixels are the same.
                task = unit_task(self.planner.selection, plan, unit)
                read = read_batch(task, self._files, Profile())
                outcomes.put(unit.rows, read.reading.outcomes)
                batches.append(read.batch)
                advance(len(unit.rows))
        targets = plan.targets
        requested = {"id": targets.id, "ra": targets.ra, "dec": targets.dec, **user_columns(targets.extra)}
        batch = (
            in_order(concatenate(batches))
            if batches
            else no_cutouts(plan.bands, int(plan.reach[0]), self.pixel_scale)
        )
        return Cutouts(batch, outcomes, requested, targets.class_map, plan.patch_boxes, plan.margin)


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
    >>> survey.cutout(53.12, -27.54, size=64, bands="gri")  # doctest: +SKIP
    """
    names = (collections,) if isinstance(collections, str) else tuple(collections)
    selection = Selection.make(
        {"repo": str(repo), "collections": names, "dataset_type": dataset_type, "skymap": skymap}
    )
    # Closed at once when the planner fails, else with the survey.
    with ExitStack() as stack:
        repository = stack.enter_context(open_repository(str(repo), names))
        return Survey(Planner(selection, repository), PlaneCache(cache_bytes), stack.pop_all())
