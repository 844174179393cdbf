"""A Butler repository, opened read-only: collections, dataset types, sky maps, datasets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dataset:
    """One coadd of one patch and band.

    Parameters
    ----------
    uuid
        Butler dataset id.
    run
        The RUN collection that holds it.
    dataset_type, storage_class
        As registered.
    tract, patch, band
        Data ID.
    uri
        Where the file is, without query string; empty when it must be resolved again (signed addresses).
    size
        Bytes, as the Butler recorded them; -1 when it did not.
    checksum
        As the Butler recorded it, usually empty.
    """

    uuid: str
    run: str
    dataset_type: str
    storage_class: str
    tract: int
    patch: int
    band: str
    uri: str
    size: int
    checksum: str = ""
