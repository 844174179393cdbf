"""Search of embeddings in a notebook: `ripple.similar("embeddings", like=2738)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from astropy.table import Table

from ripple.notebook.artefact import Artefact
from ripple.notebook.tables import table_of_arrow
from ripple.stages.similar import similar as stage
from ripple.stages.similar.config import SimilarConfig


def similar(embeddings: str | Path | Artefact, *, like: Any = (), unlike: Any = (), **options: Any) -> Table:
    """Rows that look like others to the network, or pairs of rows that look the same.

    Parameters
    ----------
    embeddings
        A directory that `ripple.embed` wrote, or what it returned.
    like, unlike
        An id, or several.
    **options
        `examples`, `to`, `above`, `top`, `select`, `region`, `rejected` and `output` of `ripple similar`.

    Returns
    -------
    Most similar first: `similarity`, `id`, `score`, `ra`, `dec` (deg), and `split` and `label` where they are
    known; for pairs (`to`) also `separation` in arcsec, and the columns of the second row as `other_id`, ...

    Raises
    ------
    RippleError
        As the verb.
    """
    values = {name: _path(value) for name, value in options.items()}
    ids = {"like": _several(like), "unlike": _several(unlike)}
    config = SimilarConfig.make({"embeddings": _path(embeddings), **ids, **values})
    found = stage.similar(config)
    if config.output is not None:
        stage.write(found.table, config.output)
    return table_of_arrow(found.table)


def _path(value: Any) -> Any:
    if isinstance(value, Artefact):
        return str(value.directory)
    return str(value) if isinstance(value, Path) else value


def _several(ids: Any) -> tuple[str, ...]:
    """Ids as texts; one id is one, also a text with a comma."""
    return (str(ids),) if isinstance(ids, str) or not hasattr(ids, "__iter__") else tuple(map(str, ids))
