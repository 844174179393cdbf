"""Making a plan: targets, their tracts and patches, which coadds exist for them, and units of work."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ripple.config import Json, suggest
from ripple.errors import InputError, Reason, RegionError
from ripple.rubin.regions import Region, grid, parse_region, tracts_near
from ripple.rubin.repository import Dataset, Inventory, open_repository
from ripple.rubin.skymap import resolve_skymap
from ripple.sky.coverage import Coverage, packed, unpacked
from ripple.sky.geometry import Box
from ripple.sky.skymap import Float, Int, ObservedSkyMap
from ripple.stages.plan.config import Selection, check_selection, side_of
from ripple.stages.plan.places import (
    Place,
    covered_bands,
    elsewhere,
    leaving,
    locate,
    patches_across,
    patches_under,
    pieces,
)
from ripple.stages.plan.plan import Plan
from ripple.stages.plan.select import columns_of
from ripple.stages.plan.tables import UserTable, read_table, table_digest
from ripple.stages.plan.targets import DEC_NAMES, LABEL_NAMES, RA_NAMES, Columns, Targets, from_table
from ripple.stages.plan.units import divide
from ripple.storage.outcomes import Outcome, Outcomes, Status
from ripple.storage.python_tables import ID_NAMES

#: Of object tables with more columns than this, only those that are used are read.
WIDE_TABLE = 64


class Planner:
    """Plans for one selection, in one open repository.

    Parameters
    ----------
    selection
        The options of the user.
    repository
        Open repository, or another inventory of the sky.
    """

    def __init__(self, selection: Selection, repository: Inventory) -> None:
        self.selection, self.repository = selection, repository
        self.notes: list[str] = []
        # Tract -> its datasets: several steps and several plans ask for the same tracts.
        self._known: dict[int, list[Dataset]] = {}
        self.region: Region | None = parse_region(selection.region) if selection.region else None
        self.dataset_type = repository.coadd_type(selection.dataset_type)
        self.skymap_name = repository.skymap_name(self.dataset_type, selection.skymap)
        self.bands = self._bands()
        self.skymap, self.skymap_source = resolve_skymap(
            repository, self.skymap_name, self.dataset_type, selection.tract or None
        )
        for tract in selection.tract:
            self.skymap.patch_xy(tract, selection.patch or (0,))  # raises when an id does not exist

    def plan(self, targets: Targets | None = None) -> Plan:
        """The plan for these targets, or for those of the selection; may be called again for others."""
        targets = self.targets() if targets is None else targets
        self.notes += targets.notes
        # All tracts of a sky map have the same pixel scale.
        scale = self.skymap.tan(int(self.skymap.table.ids[0])).pixel_scale
        side = side_of(self.selection.size, scale)
        size = np.full(len(targets), side, np.int32) if targets.size is None else targets.size
        reach = size + np.int32(2 * self.selection.margin)
        place = locate(self.skymap, targets.ra, targets.dec)
        away = leaving(self.skymap, place, reach)
        if self.selection.cross_tract != "whole":
            away = away[:0]
        moving, other = elsewhere(self.skymap, away, targets.ra, targets.dec, place, reach)
        tracts = ({int(t) for t in np.unique(place.tract)} | {int(t) for t in np.unique(other.tract)}) - {-1}
        datasets = {(d.tract, d.patch, d.band): d for d in self._datasets(tracts)}
        have = self._have(datasets)
        # First what covers each box in its own tract; then some boxes move to a neighbour that has more.
        covered = self._cover(place, reach, have)
        self._move(moving, other, place, covered, reach, have)
        outcomes = self._judge(targets, place, covered, {t for t, _ in have})
        rejected = outcomes.has("rejected")
        cross = self._cross(targets, place, reach, rejected)
        datasets = self._needed(datasets, place, reach, rejected, cross)
        _say_what_completes(outcomes, cross, datasets)
        # Tracts of rejected targets as well: the manifest records the projections of all.
        projections = sorted(
            {t for t, _, _ in datasets} | set(np.unique(place.tract[place.tract >= 0]).tolist())
        )
        wanted = np.flatnonzero(~rejected)
        units = divide(self.skymap, place, size, reach, wanted, self._file_bytes(), len(self.bands))
        return Plan(
            bands=self.bands,
            skymap=self.skymap_name,
            repo=self.selection.repo,
            collections=self.repository.collections,
            dataset_type=self.dataset_type,
            targets=targets,
            tract=place.tract,
            patch=place.patch,
            x=place.x,
            y=place.y,
            size=size,
            projections={int(t): self.skymap.tan(int(t)) for t in projections},
            patch_boxes={(t, p): self.skymap.patch_outer(t, p) for t, p, _ in datasets},
            datasets=datasets,
            units=units,
            outcomes=outcomes,
            margin=self.selection.margin,
            cross=cross,
            skymap_source=self.skymap_source,
            gaps=self._gaps(place, have, targets),
            notes=tuple(dict.fromkeys(self.notes)),
        )

    def _bands(self) -> tuple[str, ...]:
        there = self.repository.bands(self.dataset_type, self.skymap_name)
        unknown = [b for b in self.selection.bands if b not in there]
        if unknown:
            raise InputError(
                f"{self.repository.name}: no {self.dataset_type} of {self.skymap_name} has band"
                f" {unknown[0]!r}{suggest(unknown[0], list(there))}",
                hint=f"it has {', '.join(there)}",
            )
        return self.selection.bands or there

    # ---- targets

    def targets(self) -> Targets:
        """The targets of the selection: a grid, a table, or the object table of the repository."""
        selection = self.selection
        if selection.grid is not None:
            return self._grid(selection.grid)
        columns = Columns(
            selection.id_column,
            selection.ra_column,
            selection.dec_column,
            selection.label_column,
            selection.size_column,
            selection.ra_unit,
            selection.classes,
        )
        if selection.targets is not None:
            path = Path(selection.targets)
            cone = self.region.circle() if self.region else None
            table = read_table(path, cone=cone, id_column=selection.id_column, hdu=selection.hdu)
            source = {"name": path.name, "sha256": table.sha256}
        else:
            table, source = self._objects()
            # The schemas of Rubin's object tables say degrees, their files do not.
            columns = replace(columns, ra_unit=columns.ra_unit or "deg")
        restricted = self.region is not None or bool(selection.tract)
        targets = from_table(
            table,
            columns,
            source=source,
            select=selection.select,
            keep=self._inside if restricted else None,
            duplicate_radius=selection.duplicate_radius,
            strict=selection.strict,
        )
        if source.get("sha256") == "":  # many files: their ids and positions identify the targets
            return replace(targets, source=source | {"sha256": _digest(targets)})
        return targets

    def _inside(self, ra: Float, dec: Float) -> NDArray[np.bool_]:
        """Which positions lie in the region, tracts and patches of the selection; `(N,)`."""
        keep = np.ones(len(ra), bool) if self.region is None else self.region.contains(ra, dec)
        if self.selection.tract:
            place = locate(self.skymap, ra, dec)
            keep &= np.isin(place.tract, self.selection.tract)
            if self.selection.patch:
                keep &= np.isin(place.patch, self.selection.patch)
        return keep

    def _grid(self, step: float) -> Targets:
        """Blind windows as targets; the id packs tract, row and column."""
        tracts = np.array(self.selection.tract, np.int64) if self.selection.tract else None
        patches = np.array(self.selection.patch, np.int64) if self.selection.patch else None
        # A sky map observed from its coadds knows only some tracts: no formula gives those of a region.
        if tracts is None and isinstance(self.skymap, ObservedSkyMap) and self.region is not None:
            tracts = tracts_near(self.skymap, self.region)
        none = RegionError(
            f"{self.repository.name}: no {self.dataset_type} lies in the selection",
            hint="a blind grid needs coadds: another --region or --tract",
        )
        boxes = None
        if tracts is not None:
            boxes = self._boxes(set(tracts.tolist()))
            # No grid over the whole of a tract that has none.
            tracts = tracts[np.isin(tracts, list(boxes))]
            if not len(tracts):
                raise none
        tract, column, row, ra, dec = grid(
            self.skymap, step, region=self.region, tracts=tracts, patches=patches, boxes=boxes
        )
        there = self._seen(ra, dec)
        if not there.any():
            raise none
        tract, column, row = (values[there] for values in (tract, column, row))
        ra, dec = ra[there], dec[there]
        extra = pa.table({"grid_column": column.astype(np.int32), "grid_row": row.astype(np.int32)})
        source = {"name": "grid", "step": step, "windows": len(ra)}
        # 20 bits each for row and column. A window has the same id whatever the region.
        return Targets((tract << 40) | (row << 20) | column, ra, dec, extra, source=source)

    def _boxes(self, tracts: set[int]) -> dict[int, Box]:
        """Of each tract that has coadds, the box around their pixels."""
        found: dict[int, Box] = {}
        for d in self._datasets(tracts):
            box = self.skymap.patch_outer(d.tract, d.patch)
            found[d.tract] = found.get(d.tract, box) | box
        return found

    def _seen(self, ra: Float, dec: Float) -> NDArray[np.bool_]:
        """`(N,)` positions that a coadd of some band has."""
        place = locate(self.skymap, ra, dec)
        tracts = {int(t) for t in np.unique(place.tract)} - {-1}
        have = self._have({(d.tract, d.patch, d.band): d for d in self._datasets(tracts)})
        return np.asarray(self._cover(place, np.ones(len(ra), np.int32), have).centre != 0)

    def _objects(self) -> tuple[UserTable, Json]:
        """The Butler's own object tables of the selected tracts, and what identifies them."""
        kind = self.repository.object_type(self.selection.object_type)
        there = self.repository.tracts(kind, self.skymap_name)
        tracts: Any = self.selection.tract or there
        if self.region is not None and not self.selection.tract:
            tracts = set(tracts_near(self.skymap, self.region).tolist()) & set(there)
            if not tracts:
                raise RegionError(
                    f"region {self.region.text!r}: no {kind} of {self.repository.name} lies there",
                    hint=f"it has {len(there)} tracts with one, {there[0]} to {there[-1]}",
                )
        found: list[pa.Table] = []
        digests: dict[str, str] = {}
        for uuid, table in self.repository.object_tables(kind, self.skymap_name, tracts, self._wanted):
            # The UUID names a dataset, not its bytes: another file under it gives other targets.
            digests[uuid] = table_digest(UserTable.of(table).columns)
            found.append(table)
        # Tables of different tracts may lack columns of each other: nulls there.
        whole = pa.concat_tables(found, promote_options="default")
        return UserTable.of(whole), {"name": kind, "datasets": digests}

    def _wanted(self, there: list[str]) -> list[str]:
        """Columns of an object table to read: all of a narrow one, else those that are used or recognised."""
        if len(there) <= WIDE_TABLE:
            return there
        s = self.selection
        names = {s.id_column, s.ra_column, s.dec_column, s.label_column, s.size_column}
        names |= set(columns_of(s.select)) if s.select else set()
        known = {n.lower() for n in (*ID_NAMES, *RA_NAMES, *DEC_NAMES, *LABEL_NAMES)}
        return [n for n in there if n in names or n.lower() in known]

    # ---- places

    def _move(
        self,
        rows: Int,
        other: Place,
        place: Place,
        covered: Coverage,
        reach: NDArray[np.int32],
        have: dict[tuple[int, int], int],
    ) -> None:
        """Move rows, in place, to another tract that has the whole box in all bands that their own has."""
        if not len(rows):
            return
        there = self._cover(other, reach[rows], have)
        # One bit per band: no band that the centre has here may be lost by moving.
        centre = covered.centre[rows]
        better = ((there.whole & centre) == centre) & (there.whole > 0)
        if better.any():
            self.notes.append(
                f"{better.sum()} targets are cut from a neighbouring tract, which holds their whole box"
            )
        for name in ("tract", "patch", "x", "y"):
            getattr(place, name)[rows[better]] = getattr(other, name)[better]
        covered.centre[rows[better]] = there.centre[better]
        covered.whole[rows[better]] = there.whole[better]

    # ---- what exists

    def _datasets(self, tracts: set[int]) -> list[Dataset]:
        """The coadds of these tracts in the bands of the plan; each tract is queried once."""
        found = self.repository.datasets(
            self.dataset_type, self.skymap_name, tracts - set(self._known), self.bands, self.selection.where
        )
        # Tracts without datasets are remembered as well.
        self._known |= {tract: [] for tract in tracts if tract not in self._known}
        for dataset in found:
            self._known[dataset.tract].append(dataset)
        return [dataset for tract in sorted(tracts) for dataset in self._known[tract]]

    def _have(self, datasets: dict[tuple[int, int, str], Dataset]) -> dict[tuple[int, int], int]:
        """(tract, patch) -> bands that have a coadd, one bit per band in the order of the plan."""
        have: dict[tuple[int, int], int] = {}
        for tract, patch, band in datasets:
            have[tract, patch] = have.get((tract, patch), 0) | 1 << self.bands.index(band)
        return have

    def _cover(self, place: Place, reach: NDArray[np.int32], have: dict[tuple[int, int], int]) -> Coverage:
        return covered_bands(self.skymap, place, reach, have, len(self.bands))

    def _judge(self, targets: Targets, place: Place, covered: Coverage, tracts: set[int]) -> Outcomes:
        """What is already known about each row: rejected, partial or ok, with the reason."""
        full = (1 << len(self.bands)) - 1
        outcomes = Outcomes(len(targets))
        for row, (reason, text) in targets.rejected.items():
            outcomes.add([row], Outcome("rejected", reason, text))
        nowhere = f"the position lies in no tract of {self.skymap_name} that has coadds"
        outcomes.add(place.tract < 0, Outcome("rejected", Reason.NO_TRACT, nowhere))
        empty = np.flatnonzero((covered.centre == 0) & (place.tract >= 0))
        for rows, outcome in self._empty(place, empty, tracts):
            outcomes.add(rows, outcome)
        # The centre decides whether a band is missing: its pixels are the object's.
        short = np.flatnonzero((covered.centre != 0) & (covered.centre != full))
        lacking: Status = "rejected" if self.selection.require_all_bands else "partial"
        for bits, rows in _by_value(covered.centre[short], short):
            outcomes.add(rows, Outcome(lacking, Reason.MISSING_BAND, self._lacking(bits)))
        cut = np.flatnonzero((covered.centre != 0) & (covered.whole != covered.centre))
        outside: Status = "rejected" if self.selection.edge == "reject" else "partial"
        # One outcome per set of bands, not per row: rows with the same text share it.
        for bits, rows in _by_value((covered.centre & ~covered.whole)[cut], cut):
            text = f"part of the box has {self._lacking(~bits)}"
            outcomes.add(rows, Outcome(outside, Reason.OUTSIDE, text))
        return outcomes

    def _lacking(self, bits: int) -> str:
        """The bands whose bit is not set, as in `no g, r`."""
        return "no " + ", ".join(b for k, b in enumerate(self.bands) if not bits >> k & 1)

    def _empty(self, place: Place, rows: Int, tracts: set[int]) -> Iterator[tuple[Int, Outcome]]:
        """Outcomes of rows whose position no dataset covers; `tracts` are those that have some."""
        bare = ~np.isin(place.tract[rows], sorted(tracts))
        # The registry tells tracts without coadds from tracts that do not exist; asked only when needed.
        known = self.repository.registered_tracts(self.skymap_name) if bare.any() else set()
        for piece in pieces(rows[bare]):
            for tract, some in _by_value(place.tract[piece], piece):
                if tract in known:
                    yield (
                        some,
                        Outcome("rejected", Reason.NO_DATASET, f"no {self.dataset_type} in tract {tract}"),
                    )
                else:
                    yield some, Outcome("rejected", Reason.NO_PATCH, f"tract {tract} is not registered")
        rows = rows[~bare]
        if not len(rows):
            return
        registered = self.repository.registered_patches(
            self.skymap_name, set(np.unique(place.tract[rows]).tolist())
        )
        for piece in pieces(rows):
            for key, some in _by_value(packed(place.tract[piece], place.patch[piece]), piece):
                ((tract, patch),) = unpacked([key])
                where = f"tract {tract} patch {patch}"
                if (tract, patch) in registered:
                    yield some, Outcome("rejected", Reason.NO_DATASET, f"no {self.dataset_type} of {where}")
                else:
                    yield some, Outcome("rejected", Reason.NO_PATCH, f"{where} is not registered")

    def _gaps(
        self, place: Place, have: dict[tuple[int, int], int], targets: Targets
    ) -> dict[tuple[int, int], tuple[str, ...]]:
        """Bands that the inner patches of targets lack, in tracts that have coadds."""
        some = np.isin(place.tract, sorted({t for t, _ in have}))
        keys = np.unique(packed(place.tract[some], place.patch[some]))
        gaps = {}
        for tract, patch in unpacked(keys.tolist()):
            bits = have.get((tract, patch), 0)
            missing = tuple(b for k, b in enumerate(self.bands) if not bits >> k & 1)
            if missing:
                gaps[tract, patch] = missing
        return gaps

    def _cross(
        self, targets: Targets, place: Place, reach: NDArray[np.int32], rejected: NDArray[np.bool_]
    ) -> dict[int, tuple[tuple[int, int], ...]]:
        """Patches of other tracts under the boxes of rows that are to be completed by resampling."""
        if self.selection.cross_tract != "resample":
            return {}
        rows = [row for row in leaving(self.skymap, place, reach).tolist() if not rejected[row]]
        return {row: patches_across(self.skymap, place, int(reach[row]), row) for row in rows}

    def _needed(
        self,
        datasets: dict[tuple[int, int, str], Dataset],
        place: Place,
        reach: NDArray[np.int32],
        rejected: NDArray[np.bool_],
        cross: dict[int, tuple[tuple[int, int], ...]],
    ) -> dict[tuple[int, int, str], Dataset]:
        """The datasets that at least one box reaches into."""
        wanted = patches_under(self.skymap, place, reach, np.flatnonzero(~rejected))
        others = {pair for patches in cross.values() for pair in patches}
        # Neighbouring tracts in which no target lies have not been queried yet.
        extra = {d[0] for d in others} - {t for t, _, _ in datasets}
        more = {(d.tract, d.patch, d.band): d for d in self._datasets(extra)} if extra else {}
        wanted |= others
        return {k: v for k, v in sorted((datasets | more).items()) if k[:2] in wanted}

    def _file_bytes(self) -> dict[tuple[int, int], int]:
        """Bytes of the files of all bands of each patch."""
        total: Counter[tuple[int, int]] = Counter()
        for datasets in self._known.values():
            for d in datasets:
                total[d.tract, d.patch] += max(0, d.size)  # -1: unknown
        return total


def _digest(targets: Targets) -> str:
    """SHA-256 of ids and positions."""
    ids = targets.id if targets.id.dtype.kind in "iu" else np.strings.encode(targets.id, "utf-8")
    parts = (np.ascontiguousarray(column).tobytes() for column in (ids, targets.ra, targets.dec))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _by_value(values: NDArray[Any], rows: Int) -> Iterator[tuple[int, Int]]:
    """(value, rows that have it), by ascending value; rows keep their order."""
    order = np.argsort(values, kind="stable")
    known, start = np.unique(values[order], return_index=True)
    yield from zip(known.tolist(), np.split(rows[order], start[1:]) if len(known) else [], strict=True)


def _say_what_completes(
    outcomes: Outcomes,
    cross: Mapping[int, tuple[tuple[int, int], ...]],
    datasets: Mapping[tuple[int, int, str], Dataset],
) -> None:
    """Name the tracts from which boxes that lack a part in their own tract will be completed."""
    have = {(tract, patch) for tract, patch, _ in datasets}
    for row, pairs in cross.items():
        tracts = sorted({tract for tract, patch in pairs if (tract, patch) in have})
        if not tracts or outcomes[row].reason is not Reason.OUTSIDE:
            continue
        # How much they fill is known only when their pixels are read: until then the row stays partial.
        names = ", ".join(map(str, tracts))
        text = (
            f"{outcomes[row].detail} in its own tract; fetch fills it from tract {names} where that has data"
        )
        told = Outcomes(1)
        told.add([0], replace(outcomes[row], detail=text))
        outcomes.put(np.array([row]), told)


def make_plan(selection: Selection) -> Plan:
    """Find targets, their patches and what exists for them, and group them into units.

    Parameters
    ----------
    selection
        The options of the user.

    Raises
    ------
    ConfigError, InputError, SourceError
        The selection contradicts itself, names things that do not exist, or the repository cannot be reached.
        Problems with single targets are in `Plan.outcomes` instead.
    """
    check_selection(selection)
    with open_repository(selection.repo, selection.collections) as repository:
        return Planner(selection, repository).plan()
