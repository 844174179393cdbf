"""`ripple vet --context`: the surroundings of the objects, from larger cutouts of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ripple.config import suggest
from ripple.errors import ConfigError, DataError
from ripple.report.cutout_pictures import RowFluxes, fluxes_of_rows
from ripple.sky.neighbours import separation
from ripple.stages.report.figures import numbers
from ripple.storage.artefact import Artefact
from ripple.storage.ids import check_distinct

#: A cutout and an object with one id lie within this, arcsec, or the ids are those of other objects.
SAME_PLACE = 1.0
#: Objects whose pixels are in memory at a time.
_PIECE = 64


def write_wide(
    path: Path, context: Artefact, objects: pa.Table, known: RowFluxes, side: int
) -> tuple[NDArray[np.bool_], float]:
    """Write the surroundings `(N, B, H, W)`, float32 nJy, as a numpy file, NaN where there are none.

    Parameters
    ----------
    path
        Of the file.
    context
        Cutouts; those without margin are what is shown.
    objects
        N rows with `id` (text), `ra` and `dec`.
    known
        Bands and pixel scale of the pictures of the objects.
    side
        Their width, px.

    Returns
    -------
    there, pixel_scale
        `(N,)` objects that have surroundings, and arcsec per pixel of these.

    Raises
    ------
    ConfigError
        The cutouts lack a band of the objects, or are no larger.
    DataError
        They have several sizes, no cutout or two of an object, or another one under its id.
    """
    lacking = [band for band in known.bands if band not in context.bands]
    if lacking:
        raise ConfigError(
            f"{context.directory} has no band {lacking[0]!r}{suggest(lacking[0], list(context.bands))}",
            hint=f"fetch it in {', '.join(known.bands)}",
        )
    shard, row = _places(context, objects)
    some = np.flatnonzero(shard >= 0)
    first = fluxes_of_rows([context], shard[some[:1]], row[some[:1]])
    height, width = first.image[0].shape[1:]
    if width * first.pixel_scale <= side * known.pixel_scale:
        raise ConfigError(
            f"{context.directory} shows {width * first.pixel_scale:.3g} arcsec, no more than the pictures of "
            f"the objects ({side * known.pixel_scale:.3g})",
            hint="fetch larger cutouts of the same objects",
        )
    bands = [first.bands.index(band) for band in known.bands]
    shape = (len(shard), len(bands), height, width)
    with path.open("xb") as file:
        form = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, form)
        for at in range(0, len(shard), _PIECE):
            piece = np.full((len(shard[at : at + _PIECE]), *shape[1:]), np.nan, "<f4")
            mine = np.flatnonzero(shard[at : at + _PIECE] >= 0)
            found = fluxes_of_rows([context], shard[at + mine], row[at + mine])
            for place, image in zip(mine.tolist(), found.image, strict=True):
                if image.shape[1:] != (height, width):
                    raise DataError(
                        f"{context.directory} has cutouts of several sizes", hint="fetch them with one --size"
                    )
                piece[place] = image[bands]
            file.write(piece.tobytes())
    return shard >= 0, first.pixel_scale


def _places(context: Artefact, objects: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`(N,)` shard and row of the cutout of each object, -1 where it has none."""
    index = context.index()
    index = index.filter(pc.greater_equal(index["shard"], 0))
    ids = pc.cast(index["id"], pa.string()).combine_chunks()
    wanted = pc.is_in(ids, value_set=objects["id"].combine_chunks())
    check_distinct(ids.filter(wanted), context.directory, "cutouts")
    at = np.asarray(pc.fill_null(pc.index_in(objects["id"], value_set=ids), -1).to_numpy(), np.int64)
    some = np.flatnonzero(at >= 0)
    if not len(some):
        raise DataError(
            f"{context.directory}: none of its {index.num_rows:,} ids is graded here",
            hint="fetch larger cutouts of the same objects",
        )
    places = [numbers(objects, name)[some] for name in ("ra", "dec")]
    places += [numbers(index, name)[at[some]] for name in ("ra", "dec")]
    apart = separation(*places)
    far = np.flatnonzero(apart > SAME_PLACE)  # without a position nothing is known
    if len(far):
        raise DataError(
            f"the id {objects['id'][int(some[far[0]])].as_py()!r} is another object in {context.directory}: "
            f"{apart[far[0]]:.3g} arcsec away ({len(far):,} such rows)",
            hint="give larger cutouts of the same objects",
        )
    out = np.full((2, len(at)), -1, np.int64)
    for mine, name in zip(out, ("shard", "row"), strict=True):
        mine[some] = index[name].to_numpy()[at[some]]
    return out[0], out[1]
