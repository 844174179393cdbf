"""The inputs of a quantum, as the planner sees a repository: one patch, and those around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
from lsst.daf.butler import DeferredDatasetHandle
from lsst.resources import ResourcePath
from lsst.sphgeom import Region

from ripple.rubin.repository import (
    Dataset,
    PatchRecord,
    corners,
    dataset_of,
    file_facts,
    in_order,
    read_object_table,
    readable,
    without_query,
)


@dataclass(frozen=True)
class QuantumInputs:
    """The coadds of a patch and of those around it, and the object table of its tract; an `Inventory`.

    Parameters
    ----------
    coadds
        One per patch and band, sorted by patch and band.
    patch
        The patch of the quantum.
    skymap, sha1, tracts_of_skymap
        Name of the sky map, SHA-1 of its configuration, and its number of tracts.
    tract, region
        The tract, and its outer region.
    patches
        Patches of the coadds, as registered, by number.
    survey_bands
        Bands that the survey has, here or elsewhere.
    objects
        Object table of the tract, if there is one.
    """

    coadds: tuple[Dataset, ...]
    patch: int
    skymap: str
    sha1: bytes
    tracts_of_skymap: int
    tract: int
    region: Region
    patches: tuple[PatchRecord, ...]
    survey_bands: tuple[str, ...]
    objects: DeferredDatasetHandle | None = None

    @classmethod
    def of(
        cls,
        coadds: Sequence[DeferredDatasetHandle],
        patch: int,
        objects: DeferredDatasetHandle | None,
        survey_bands: Sequence[str],
    ) -> Self:
        """The inputs behind the handles of a quantum; no file is opened.

        Parameters
        ----------
        coadds
            Handles of coadds of one tract, among them at least one of the patch.
        patch
            The patch of the quantum.
        objects
            Handle of the object table of the tract.
        survey_bands
            Bands that the survey has; none for those of the coadds of the patch.
        """
        # Handles promise that data IDs have their records.
        records: list[Any] = [handle.dataId.records for handle in coadds]
        skymap, tract = records[0]["skymap"], records[0]["tract"]
        patches = {int(found["patch"].id): found["patch"] for found in records}
        datasets = sorted((_dataset(handle) for handle in coadds), key=lambda d: (d.patch, d.band))
        return cls(
            tuple(datasets),
            patch,
            str(skymap.name),
            bytes(skymap.hash or b""),
            int(skymap.tract_max or 0),
            int(tract.id),
            tract.region,
            tuple(
                PatchRecord(number, int(found.cell_x), int(found.cell_y), corners(found.region))
                for number, found in sorted(patches.items())
            ),
            in_order(survey_bands or [d.band for d in datasets if d.patch == patch]),
            objects,
        )

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.skymap} {self.tract}/{self.patch}"

    @property
    def collections(self) -> tuple[str, ...]:
        """The runs of the coadds."""
        return tuple(sorted({dataset.run for dataset in self.coadds}))

    def coadd_type(self, name: str | None) -> str:
        """The dataset type of the coadds: the connection of the task decides it, not `name`."""
        return self.coadds[0].dataset_type

    def object_type(self, name: str | None) -> str:
        """The dataset type of the object table, decided by the connection as well."""
        assert self.objects is not None
        return str(self.objects.ref.datasetType.name)

    def skymaps(self) -> dict[str, tuple[bytes, int]]:
        """The sky map: SHA-1 of its configuration, and number of tracts."""
        return {self.skymap: (self.sha1, self.tracts_of_skymap)}

    def skymap_name(self, dataset_type: str, name: str | None) -> str:
        """The sky map of the coadds."""
        return self.skymap

    def tracts(self, dataset_type: str, skymap: str) -> tuple[int, ...]:
        """The tract."""
        return (self.tract,)

    def bands(self, dataset_type: str, skymap: str) -> tuple[str, ...]:
        """Bands of the survey, in order."""
        return self.survey_bands

    def datasets(
        self, dataset_type: str, skymap: str, tracts: Iterable[int], bands: Iterable[str], where: str | None
    ) -> list[Dataset]:
        """The coadds in these bands, where the tract is wanted."""
        wanted = set(bands)
        return [d for d in self.coadds if d.band in wanted] if self.tract in set(tracts) else []

    def head(self, dataset: Dataset, size: int) -> bytes:
        """The first `size` bytes of a coadd, all of them when `size` is negative.

        Raises
        ------
        UnreadableError
            The file is missing or cannot be read.
        """
        with readable(dataset):
            return bytes(ResourcePath(dataset.uri).read(size))

    def registered_patches(self, skymap: str, tracts: Iterable[int]) -> set[tuple[int, int]]:
        """(tract, patch) of the patches of the coadds."""
        return {(self.tract, record.patch) for record in self.patches}

    def registered_tracts(self, skymap: str) -> set[int]:
        """The tract."""
        return {self.tract}

    def tract_regions(self, skymap: str) -> dict[int, Region]:
        """Outer region of the tract."""
        return {self.tract: self.region}

    def patch_records(self, skymap: str, tract: int) -> list[PatchRecord]:
        """The patches of the coadds."""
        return list(self.patches)

    def object_tables(
        self, dataset_type: str, skymap: str, tracts: Iterable[int], wanted: Callable[[list[str]], list[str]]
    ) -> Iterator[tuple[str, pa.Table]]:
        """(dataset id, Arrow table) of the object table; errors as for `read_object_table`."""
        assert self.objects is not None
        ref = self.objects.ref
        yield str(ref.id), read_object_table(self.objects.butler, ref, wanted, self.name)


def _dataset(handle: DeferredDatasetHandle) -> Dataset:
    """The coadd behind a handle, with address and size, as `Repository.datasets` gives it."""
    butler, ref = handle.butler, handle.ref
    # As in `Repository`: the records of the datastore have what a file is checked against.
    facts: dict[Any, tuple[int, str]] = {}
    for data in butler._datastore.export_records([ref]).values():
        facts.update(file_facts(data.records))
    return dataset_of(ref, without_query(str(butler.getURI(ref))), *facts.get(ref.id, (-1, "")))
