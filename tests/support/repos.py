"""Small Butler repositories whose coadds are only registered: enough to plan with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from astropy.table import Table
from lsst.daf.butler import Butler, CollectionType, Config, DatasetType
from lsst.sphgeom import ConvexPolygon, LonLat, UnitVector3d

from ripple.sky.geometry import Box, Tan
from ripple.sky.skymap import RingsSkyMap

DIMENSIONS = {"skymap", "tract", "patch", "band"}


def polygon(tan: Tan, box: Box) -> ConvexPolygon:
    """The sky region of a box of pixels, edges included, as lsst.skymap registers it."""
    x = np.array([box.x0, box.x1, box.x1, box.x0]) - 0.5
    y = np.array([box.y0, box.y0, box.y1, box.y1]) - 0.5
    ra, dec = tan.pixel_to_sky(x, y)
    return ConvexPolygon([UnitVector3d(LonLat.fromDegrees(a, b)) for a, b in zip(ra, dec, strict=True)])


def make_repo(root: Path, skymap: RingsSkyMap, patches: Iterable[tuple[int, int]], *, digest: bytes) -> None:
    """An empty repository with a sky map, and the tracts and patches (tract, patch) of it."""
    Butler.makeRepo(str(root), Config())
    pairs = sorted(patches)
    with Butler.from_config(str(root), writeable=True) as butler:
        table = skymap.table
        butler.registry.insertDimensionData(
            "skymap",
            {
                "name": skymap.name, "hash": digest, "tract_max": len(table.ids),
                "patch_nx_max": int(table.nx.max()), "patch_ny_max": int(table.ny.max()),
            },
        )  # fmt: skip
        tans = {tract: skymap.tan(tract) for tract, _ in pairs}
        butler.registry.insertDimensionData(
            "tract",
            *(
                {"skymap": skymap.name, "id": t, "region": polygon(tan, skymap.tract_box(t))}
                for t, tan in tans.items()
            ),
        )
        columns = [skymap.patch_xy(t, p) for t, p in pairs]
        butler.registry.insertDimensionData(
            "patch",
            *(
                {
                    "skymap": skymap.name, "tract": t, "id": p, "cell_x": int(i), "cell_y": int(j),
                    "region": polygon(tans[t], skymap.patch_outer(t, p)),
                }
                for (t, p), (i, j) in zip(pairs, columns, strict=True)
            ),
        )  # fmt: skip


def add_coadds(
    root: Path,
    skymap: str,
    run: str,
    coadds: Iterable[tuple[int, int, str]],
    *,
    dataset_type: str = "deep_coadd",
) -> None:
    """Register coadds (tract, patch, band) in a RUN, without files."""
    with Butler.from_config(str(root), writeable=True) as butler:
        kind = DatasetType(dataset_type, DIMENSIONS, "ExposureF", universe=butler.dimensions)
        butler.registry.registerDatasetType(kind)
        butler.collections.register(run, CollectionType.RUN)
        keys = [dict(zip(("skymap", "tract", "patch", "band"), (skymap, *c), strict=True)) for c in coadds]
        butler._registry.insertDatasets(kind, keys, run=run)


def add_objects(root: Path, skymap: str, run: str, tables: dict[int, Table]) -> None:
    """Put the object tables of tracts."""
    with Butler.from_config(str(root), run=run) as butler:
        kind = DatasetType("object", {"skymap", "tract"}, "ArrowAstropy", universe=butler.dimensions)
        butler.registry.registerDatasetType(kind)
        for tract, table in tables.items():
            butler.put(table, kind, skymap=skymap, tract=tract)


def add_chain(root: Path, name: str, children: list[str]) -> None:
    """A CHAINED collection."""
    with Butler.from_config(str(root), writeable=True) as butler:
        butler.collections.register(name, CollectionType.CHAINED)
        butler.collections.redefine_chain(name, children)
