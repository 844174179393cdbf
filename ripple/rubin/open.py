"""From a planned dataset to an open coadd: local file, object store or http, one function."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from ripple.errors import UnreadableError
from ripple.rubin.afw import afw_active, open_with_afw
from ripple.rubin.coadd import Coadd, naming
from ripple.rubin.formats.cell_coadd import HEAD_BYTES, open_cell_coadd, read_cell_coadd
from ripple.rubin.formats.containers import as_fits, container_of, unpack
from ripple.rubin.formats.exposure import PLANES, open_exposure
from ripple.rubin.formats.fits import Memory, Ranges, check_signature, read_hdu, walk
from ripple.rubin.remote import open_remote, read_remote
from ripple.rubin.repository import Dataset, label, local_path
from ripple.runtime.profile import Profile


class CoaddFiles(Protocol):
    """Where the coadds of a repository are opened."""

    def open(self, dataset: Dataset, *, sparse: bool) -> Coadd:
        """Open a dataset, whole or for a few boxes; errors as for `open_dataset`."""
        ...


@dataclass(frozen=True, slots=True)
class RepositoryFiles:
    """Opens each file anew; those that are read whole are hashed by another thread meanwhile.

    Parameters
    ----------
    repo
        Butler repository, as in `open_dataset`.
    beside
        Where to hash; None hashes when the digest is first needed.
    profile
        Gets what hashing costs.
    """

    repo: str
    beside: Executor | None = None
    profile: Profile = field(default_factory=Profile)

    def open(self, dataset: Dataset, *, sparse: bool) -> Coadd:
        """Open a dataset; errors as for `open_dataset`."""
        coadd = open_dataset(dataset, sparse, repo=self.repo)

        def digest() -> str:
            with self.profile.time("digest"):
                found = coadd.digest
            self.profile.count("digest", bytes=coadd.bytes_read())
            return found

        # Ranges are still being fetched while boxes are read, so their digest is known only at the end.
        if sparse or self.beside is None:
            return replace(coadd, read_digest=digest)
        # SHA-256 releases the interpreter: it runs beside the decoding (docs/engine.md).
        return replace(coadd, read_digest=self.beside.submit(digest).result)


def open_dataset(dataset: Dataset, sparse: bool, *, repo: str) -> Coadd:
    """Open a dataset.

    Parameters
    ----------
    dataset
        As planned; its size was recorded by the Butler.
    sparse
        Fetch only the bytes under the boxes that are read later; else the whole file now, and what is
        hashed is what is decoded. A dataset with a known digest is always read whole.
    repo
        Butler repository, to resolve a dataset whose address was not kept (signed URLs are secrets).

    Raises
    ------
    UnreadableError
        Missing, cut short, damaged, not a coadd, or not the file of its recorded digest; names the file.
    SourceError
        A remote repository refuses access or does not answer.
    """
    # With the stack, its own formatter reads ExposureF: only afw evaluates every kind of PSF.
    if dataset.storage_class.startswith("Exposure") and afw_active():
        coadd = open_with_afw(dataset, repo=repo)
        _check_sha256(coadd.name, dataset, coadd.digest)
        return coadd
    name = label(dataset)
    path = local_path(dataset.uri)
    # A digest covers the whole file: bytes that were never fetched cannot be checked.
    if sparse and not dataset.sha256:
        size, read = _local_ranges(path, name) if path else _remote_ranges(dataset, repo)
        _check_size(name, size, dataset.size)
        return open_coadd_sparse(read, name=name, size=size)
    data = _read_local(path, name) if path else read_remote(dataset, repo=repo)
    _check_size(name, len(data), dataset.size)
    # These very bytes are decoded below, so what is checked cannot change in between.
    _check_digests(name, dataset, data)
    return open_coadd(data, name=name)


def _check_size(name: str, found: int, recorded: int) -> None:
    if recorded >= 0 and found != recorded:
        raise UnreadableError(
            f"{name}: it has {found} bytes, the Butler recorded {recorded}",
            hint="the file was cut short or replaced; restore it",
        )


def _check_digests(name: str, dataset: Dataset, data: bytes) -> None:
    """Compare the bytes that will be decoded with the list of --digests and the Butler's checksum."""
    if dataset.sha256:
        _check_sha256(name, dataset, hashlib.sha256(data).hexdigest())
    # Only BLAKE2b is recorded by the Butler; another length would be another algorithm.
    if len(dataset.checksum) == 128 and hashlib.blake2b(data).hexdigest() != dataset.checksum:
        raise UnreadableError(
            f"{name}: dataset {dataset.uuid}: BLAKE2b is not {dataset.checksum}, which the Butler recorded",
            hint="the file is damaged or was replaced; restore it",
        )


def _check_sha256(name: str, dataset: Dataset, found: str) -> None:
    if dataset.sha256 and found != dataset.sha256:
        raise UnreadableError(
            f"{name}: dataset {dataset.uuid}: SHA-256 is {found}, the trusted digest is {dataset.sha256}",
            hint="the file is damaged or was replaced; restore it, or renew the list of --digests",
        )


def _read_local(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise UnreadableError(f"{name}: {err.strerror}", hint=f"check that {path} can be read") from None


def _local_ranges(path: Path, name: str) -> tuple[int, Callable[[int, int], bytes]]:
    """Size of a file, and a function that reads ranges of it; the file stays open as long as that lives."""
    try:
        file = path.open("rb", buffering=0)
    except OSError as err:
        raise UnreadableError(f"{name}: {err.strerror}", hint=f"check that {path} can be read") from None

    def read(offset: int, length: int) -> bytes:
        try:
            # pread has no position, so that threads can share the file.
            return os.pread(file.fileno(), length, offset)
        except (OSError, ValueError, OverflowError) as err:
            raise UnreadableError(f"{name}: cannot read {length} bytes at offset {offset}: {err}") from None

    return os.fstat(file.fileno()).st_size, read


def _remote_ranges(dataset: Dataset, repo: str) -> tuple[int, Callable[[int, int], bytes]]:
    """As `_local_ranges`; stores without byte ranges over http are read whole."""
    if urlsplit(dataset.uri).scheme in ("", "http", "https"):
        file = open_remote(dataset, repo=repo)
        if file.size < 0:
            file.read_range(0, 1)  # a remote Butler records no size: the answer tells it
        return file.size, file.read_range
    data = read_remote(dataset, repo=repo)
    return len(data), lambda offset, length: data[offset : offset + length]


def open_coadd_sparse(reader: Callable[[int, int], bytes], *, name: str, size: int) -> Coadd:
    """Open a coadd of which only what is needed is fetched: headers, the tree, and tiles under boxes.

    Parameters
    ----------
    reader
        `reader(offset, length) -> bytes`, a byte-range read; fewer bytes only at the end of the file.
    name
        File, for messages.
    size
        Bytes of the file. A file without INDEX (an ExposureF), or in another container, is read whole.

    Returns
    -------
    coadd
        Its digest is that of the ranges fetched so far.
    """
    ranges = Ranges(reader, name)
    # One fetch that later serves the primary header, the first header and its tile table.
    start = ranges(0, min(size, HEAD_BYTES))
    if container_of(start):
        return open_coadd(ranges(0, size), name=name)
    check_signature(start, name)
    with naming(name):
        # Only `lsst.images` writes the address of an INDEX, which tells where every HDU is.
        if "INDXADDR" in read_hdu(ranges, 0, name=name).header:
            return read_cell_coadd(ranges, name)
    return open_coadd(ranges(0, size), name=name)


def open_coadd(data: bytes | memoryview, *, name: str) -> Coadd:
    """Open a coadd file that lies in memory, choosing the reader by its content.

    Parameters
    ----------
    data
        The whole file: FITS, gzip around FITS, or JSON or HDF5 of `lsst.images`.
    name
        File, for messages.

    Returns
    -------
    coadd
        Its digest is that of `data`. JSON and HDF5 are read through `lsst.images`, as its notes say.

    Raises
    ------
    UnreadableError
        When the bytes are in none of these formats, are damaged, or are neither CellCoadd nor ExposureF.
    WriteError
        No room for a temporary copy of JSON or HDF5.
    """
    container = container_of(data)
    if container:
        return _open_container(data, container, name)
    with naming(name):
        hdus = walk(data, name=name)
        if "INDXADDR" in hdus[0].header:
            return open_cell_coadd(data, name=name)
        names = {kind for hdu in hdus for kind in hdu.kinds}
        if "ARCHIVE_INDEX" in names or names >= PLANES:
            return open_exposure(data, name=name)
    found = ", ".join(sorted(names)) or "none"
    raise UnreadableError(
        f"{name}: a FITS file with extensions {found} is neither a CellCoadd nor an ExposureF",
        hint="give the dataset type of coadds, e.g. deep_coadd",
    )


def _open_container(data: bytes | memoryview, container: str, name: str) -> Coadd:
    """A coadd in gzip, JSON or HDF5, with the digest and the bytes of the file itself."""
    if container == "gzip":
        inner = unpack(data, name=name)
        # A gzip file can be made that holds itself, for ever.
        if container_of(inner) == "gzip":
            raise UnreadableError(f"{name}: gzip inside gzip")
        coadd = open_coadd(inner, name=name)
        notes = coadd.notes
    else:
        coadd = open_cell_coadd(as_fits(data, name=name), name=name)
        slow = f"{name}: {container}, read through lsst.images, which is slower than FITS"
        notes = (*coadd.notes, slow)
    file = Memory(data, name)
    return replace(coadd, notes=notes, read_digest=file.digest, bytes_read=file.bytes_read)


def open_coadd_file(path: str | Path) -> Coadd:
    """Open a coadd file: `.fits`, `.fits.gz`, `.json`, `.sdf`, `.h5`; its content counts, not its name.

    Parameters
    ----------
    path
        A local file.

    Returns
    -------
    coadd
        Pixels float32 nJy and nJy², mask bits, PSF and projection, without a Butler.

    Raises
    ------
    UnreadableError, WriteError
        As for `open_coadd`.
    """
    file = Path(path)
    return open_coadd(_read_local(file, file.name), name=file.name)
