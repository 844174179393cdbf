"""Write a small but real Butler repository: dimension records, `CellCoadd` datasets, an object table."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.errors import WorkerError
from ripple.runtime.pool import WorkerFailure, ordered_map
from ripple.sky.geometry import Box, Tan
from ripple.sky.skymap import RingsSkyMap
from ripple.storage.files import is_full

RUN = "mini"
COADD = "deep_coadd"
OBJECT = "object"
INSTRUMENT = "RippleCam"


@dataclass(frozen=True)
class CoaddPlanes:
    """One (patch, band) to be written.

    Parameters
    ----------
    patch
        Sequential patch id.
    band
        Name of the band.
    image, variance
        `(H, W)` float32 over the outer box of the patch, nJy and nJy².
    mask
        `(H, W)` unsigned integer, bit k for `planes[k]`; the planes are those of DP2.
    planes
        Names of the mask planes, by bit.
    kernels
        `(cy, cx, K, K)` float64 PSF per cell, NaN where the cell is missing.
    """

    patch: int
    band: str
    image: NDArray[np.float32]
    variance: NDArray[np.float32]
    mask: NDArray[np.unsignedinteger[Any]]
    planes: tuple[str, ...]
    kernels: NDArray[np.float64]


class MiniRepo:
    """A new Butler repository for one tract of a sky map.

    Parameters
    ----------
    root
        Directory of the repository; must not exist.
    skymap
        The sky map; registered with the hash that `lsst.skymap` would give it.
    tract
        The tract.
    patches
        Patches to register.
    bands
        Bands to register, each with a physical filter of instrument `RippleCam`.
    """

    def __init__(
        self, root: Path, skymap: RingsSkyMap, tract: int, patches: Sequence[int], bands: Sequence[str]
    ) -> None:
        from lsst.daf.butler import Butler, DatasetType

        self.root, self.skymap, self.tract = root, skymap, tract
        # A SQLite registry and a file datastore, the defaults of `makeRepo`.
        self._butler = Butler.from_config(Butler.makeRepo(str(root)), writeable=True, run=RUN)
        self._register_dimensions(patches, bands)
        universe = self._butler.dimensions
        self._coadd = DatasetType(COADD, ("band", "skymap", "tract", "patch"), "CellCoadd", universe=universe)
        self._object = DatasetType(OBJECT, ("skymap", "tract"), "ArrowAstropy", universe=universe)
        for kind in (self._coadd, self._object):
            self._butler.registry.registerDatasetType(kind)

    def _register_dimensions(self, patches: Sequence[int], bands: Sequence[str]) -> None:
        """Dimension records, as `RingsSkyMap.register` and an instrument would insert them."""
        name, tan, table = self.skymap.name, self.skymap.tan(self.tract), self.skymap.table
        records: dict[str, list[dict[str, Any]]] = {
            "skymap": [
                {
                    "name": name,
                    "hash": self.skymap.sha1(),
                    "tract_max": len(table.ids),
                    "patch_nx_max": int(table.nx.max()),
                    "patch_ny_max": int(table.ny.max()),
                }
            ],
            "tract": [
                {"skymap": name, "id": self.tract, "region": polygon(tan, self.skymap.tract_box(self.tract))}
            ],
            # Filled below, each with the polygon of its outer box.
            "patch": [],
            # Bands exist only through physical filters, and those only through an instrument.
            "instrument": [
                {
                    "name": INSTRUMENT,
                    "detector_max": 1,
                    "visit_max": 1,
                    "exposure_max": 1,
                    "class_name": "lsst.obs.base.Instrument",
                }
            ],
            "physical_filter": [{"instrument": INSTRUMENT, "name": f"{b}_sim", "band": b} for b in bands],
        }
        for patch in sorted(patches):
            column, row = self.skymap.patch_xy(self.tract, patch)
            region = polygon(tan, self.skymap.patch_outer(self.tract, patch))
            records["patch"].append(
                {
                    "skymap": name,
                    "tract": self.tract,
                    "id": int(patch),
                    "cell_x": int(column),
                    "cell_y": int(row),
                    "region": region,
                }
            )
        for element, rows in records.items():
            self._butler.registry.insertDimensionData(element, *rows)

    def _ref(self, kind: Any, data_id: Mapping[str, str | int]) -> Any:
        """A dataset reference whose UUID follows from type, data ID and run alone."""
        from lsst.daf.butler import DatasetIdGenEnum, DatasetRef

        expanded = self._butler.registry.expandDataId(data_id, dimensions=kind.dimensions)
        # Random UUIDs would make two runs of the same simulation differ.
        return DatasetRef(kind, expanded, run=RUN, id_generation_mode=DatasetIdGenEnum.DATAID_TYPE_RUN)

    def put_coadds(
        self,
        keys: Sequence[tuple[int, str]],
        planes: Callable[[int, str], CoaddPlanes],
        *,
        workers: int = 0,
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        """Write coadds and register them.

        Parameters
        ----------
        keys
            (patch, band) of each coadd.
        planes
            The pixels of a (patch, band). Called in a thread of this process, roughly in order of the keys,
            perhaps twice.
        workers
            Processes that compress and write, which takes a second for a coadd; 0 writes in this one.
        advance
            Called after each coadd.

        Raises
        ------
        WorkerError
            A coadd could not be written.

        Notes
        -----
        The SQLite registry has one writer. As in batch production, workers put into a `QuantumBackedButler`,
        which writes files and no registry; this process then registers all of them at once.
        """
        refs = tuple(self._ref(self._coadd, self._data_id(*key)) for key in keys)
        tasks = _WriteTasks(str(self.root), self.skymap, self.tract, tuple(keys), refs, planes)
        # closing: when one coadd fails, the workers of the others end at once.
        with closing(ordered_map(_write_coadd, tasks, workers=workers)) as written:
            for k, failure in written:
                if isinstance(failure, WorkerFailure):
                    patch, band = keys[k]
                    raise WorkerError(f"patch {patch}, band {band} was not written: {failure.message}")
                advance()
        from lsst.daf.butler import FileDataset

        files = [FileDataset(self._butler.getURI(ref, predict=True), ref) for ref in refs]
        # transfer=None: the files are where the datastore expects them already.
        self._butler.ingest(*files, transfer=None)  # records their sizes

    def _data_id(self, patch: int, band: str) -> dict[str, str | int]:
        return {"skymap": self.skymap.name, "tract": self.tract, "patch": patch, "band": band}

    def put_objects(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Write the object table of the tract."""
        from astropy.table import Table

        data_id: dict[str, str | int] = {"skymap": self.skymap.name, "tract": self.tract}
        self._butler.put(Table(dict(columns)), self._ref(self._object, data_id))


@dataclass(frozen=True)
class _WriteTasks(Sequence[Any]):
    """The tasks of `_write_coadd`; pixels are painted when a worker is ready for them."""

    root: str
    skymap: RingsSkyMap
    tract: int
    keys: tuple[tuple[int, str], ...]
    refs: tuple[Any, ...]
    planes: Callable[[int, str], CoaddPlanes]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, k: Any) -> Any:
        return self.root, self.skymap, self.tract, self.refs[k].to_json(), self.planes(*self.keys[k])


def _write_coadd(task: tuple[str, RingsSkyMap, int, str, CoaddPlanes]) -> None:
    """Write the file of one coadd (in a worker)."""
    from lsst.daf.butler import DatasetRef, DimensionUniverse

    root, skymap, tract, text, planes = task
    ref = DatasetRef.from_json(text, universe=DimensionUniverse())
    try:
        _file_butler(root, (ref,)).put(cell_coadd(planes, skymap, tract), ref)
    except Exception as err:
        if is_full(err):  # a worker returns only a message, and the Butler's own does not say so
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        raise


def _file_butler(root: str, refs: Sequence[Any]) -> Any:
    """A butler that writes the files of some references and does not touch the registry."""
    from lsst.daf.butler import QuantumBackedButler

    kinds = {ref.datasetType.name: ref.datasetType for ref in refs}
    ids = [ref.id for ref in refs]
    universe = refs[0].dimensions.universe
    return QuantumBackedButler.from_predicted(root, [], ids, universe, {}, dataset_types=kinds)


def polygon(tan: Tan, box: Box) -> Any:
    """The `lsst.sphgeom.ConvexPolygon` of a box of pixels, outer edges included."""
    from lsst.sphgeom import ConvexPolygon, LonLat, UnitVector3d

    # Outer edges: a pixel reaches half a pixel beyond its centre.
    x = np.array([box.x0, box.x1, box.x1, box.x0]) - 0.5
    y = np.array([box.y0, box.y0, box.y1, box.y1]) - 0.5
    ra, dec = tan.pixel_to_sky(x, y)
    return ConvexPolygon([UnitVector3d(LonLat.fromDegrees(a, d)) for a, d in zip(ra, dec, strict=True)])


def cell_coadd(planes: CoaddPlanes, skymap: RingsSkyMap, tract: int) -> Any:
    """A `CellCoadd` that covers the outer box of a patch."""
    import astropy.units as u
    from lsst.images import YX, Image, Mask, MaskSchema, get_legacy_deep_coadd_mask_planes
    from lsst.images.cells import CellCoadd, CellPointSpreadFunction

    box = _box(skymap.patch_outer(tract, planes.patch))
    # The descriptions of the planes, which files carry beside their names, are those of DP2.
    known = {plane.name: plane for plane in get_legacy_deep_coadd_mask_planes().values()}
    schema = MaskSchema([known[name] for name in planes.planes])
    patch, bounds = _grid(planes, skymap, tract)
    return CellCoadd(
        Image(planes.image, bbox=box, unit=u.nJy),
        mask=Mask(
            _mask_bytes(planes.mask, schema.mask_size), schema=schema, yx0=YX(y=box.y.start, x=box.x.start)
        ),
        variance=Image(planes.variance, bbox=box, unit=u.nJy**2),
        sky_projection=_projection(skymap, tract),
        band=planes.band,
        psf=CellPointSpreadFunction(planes.kernels, bounds),
        patch=patch,
    )


def _grid(planes: CoaddPlanes, skymap: RingsSkyMap, tract: int) -> tuple[Any, Any]:
    """Patch definition, and bounds of its cell grid with the missing cells."""
    from lsst.images import YX
    from lsst.images.cells import CellGrid, CellGridBounds, CellIJ, PatchDefinition

    box = _box(skymap.patch_outer(tract, planes.patch))
    size = box.x.size // planes.kernels.shape[1]  # px per cell
    grid = CellGrid(bbox=box, cell_shape=YX(y=size, x=size))
    column, row = skymap.patch_xy(tract, planes.patch)
    inner = _box(skymap.patch_inner(tract, planes.patch))
    patch = PatchDefinition(
        id=planes.patch, index=YX(y=int(row), x=int(column)), inner_bbox=inner, cells=grid
    )
    # A cell without PSF is a missing cell, as in real coadds.
    missing_cells = np.argwhere(np.isnan(planes.kernels[:, :, 0, 0]))
    missing = frozenset(CellIJ(i=int(i), j=int(j)) for i, j in missing_cells)
    return patch, CellGridBounds(grid=grid, bbox=box, missing=missing)


def _projection(skymap: RingsSkyMap, tract: int) -> Any:
    import astropy.wcs
    from astropy.io.fits import Header
    from lsst.images import SkyProjection, TractFrame

    whole = _box(skymap.tract_box(tract))
    # Through FITS cards: the form in which `lsst.images` takes a projection.
    wcs = astropy.wcs.WCS(Header(skymap.tan(tract).cards()))
    return SkyProjection.from_fits_wcs(
        wcs, TractFrame(skymap=skymap.name, tract=tract, bbox=whole), pixel_bounds=whole
    )


def _box(box: Box) -> Any:
    from lsst.images import Box as LsstBox
    from lsst.images import Interval

    return LsstBox(y=Interval(start=box.y0, stop=box.y1), x=Interval(start=box.x0, stop=box.x1))


def _mask_bytes(mask: NDArray[np.unsignedinteger[Any]], size: int) -> NDArray[np.uint8]:
    """`(H, W, size)` bytes of a mask, least significant first, as `lsst.images.Mask` holds it."""
    # lsst.images keeps masks as bytes, eight planes in each.
    shifts = np.arange(size, dtype=mask.dtype) * 8
    return np.asarray((mask[:, :, None] >> shifts) & 0xFF, np.uint8)
