"""The other containers of `lsst.images`: gzip around FITS, JSON (`.json`) and HDF5 (`.sdf`, `.h5`).

JSON and HDF5 are rewritten as plain FITS by `lsst.images` and then read like any CellCoadd, so that planes,
masks, PSFs and faults are judged by one reader. That happens in a process of its own: AST and HDF5 may end
theirs on a damaged file.
"""

from __future__ import annotations

import errno
import gzip
import io
import mmap
import tempfile
import zlib
from pathlib import Path

from ripple.errors import UnreadableError, WriteError
from ripple.runtime.pool import WorkerFailure, ordered_map

#: What the first bytes of a file say.
_SIGNATURES = {b"\x1f\x8b": "gzip", b"\x89HDF\r\n\x1a\n": "HDF5", b"{": "JSON"}
#: First bytes that tell a container.
HEAD_BYTES = 16
_MOST_BYTES = 1 << 33  # of an unpacked file: 40 times a patch with its noise realisations
_PIECE_BYTES = 1 << 24
# A patch of 3300 x 3300 pixels takes 12 s in JSON, 5 s in HDF5; loaded machines and disks take longer.
_DEADLINE_SECONDS = 900.0
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_PARTS = ("image", "mask", "variance", "sky_projection", "band", "psf", "backgrounds")


def container_of(head: bytes | memoryview) -> str:
    """`gzip`, `HDF5` or `JSON` by the first `HEAD_BYTES` of a file; empty for anything else, such as FITS."""
    start = bytes(head[:HEAD_BYTES]).lstrip(b" \t\r\n")  # JSON may begin with white space
    return next((kind for magic, kind in _SIGNATURES.items() if start.startswith(magic)), "")


def unpack(data: bytes | memoryview, *, name: str) -> bytes:
    """The file inside a gzip file; `UnreadableError` when it is cut short, damaged or absurdly large."""
    pieces, size = [], 0
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            while piece := file.read(_PIECE_BYTES):
                size += len(piece)
                # A few kilobytes of gzip can announce terabytes of zeros.
                if size > _MOST_BYTES:
                    raise UnreadableError(f"{name}: more than {_MOST_BYTES} bytes when unpacked")
                pieces.append(piece)
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableError(f"{name}: truncated or damaged, gzip cannot unpack it: {error}") from None
    return b"".join(pieces)


def as_fits(data: bytes | memoryview, *, name: str) -> memoryview:
    """The CellCoadd in a JSON or HDF5 file, as an uncompressed FITS file of `lsst.images`.

    Parameters
    ----------
    data
        The whole file.
    name
        File, for messages.

    Returns
    -------
    fits
        Without noise realisations, mask fractions, aperture corrections and provenance. It lies in a
        temporary file that has no name any more and vanishes with this view.

    Raises
    ------
    UnreadableError
        `lsst.images` cannot read it, or its process died, or took too long.
    WriteError
        There is no room for the temporary file.
    """
    with tempfile.TemporaryDirectory(prefix="ripple-", ignore_cleanup_errors=True) as folder:
        path = Path(folder, "coadd.fits")
        # No second try: a file that ends the process once would do so again.
        for _, result in ordered_map(
            _rewrite, [(bytes(data), str(path), name)], workers=1, retries=0, deadline=_DEADLINE_SECONDS
        ):
            if isinstance(result, WorkerFailure):
                raise UnreadableError(
                    f"{name}: truncated or damaged, lsst.images cannot read it: {result.message}",
                    hint="restore the file, or write it again as FITS",
                )
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _rewrite(task: tuple[bytes, str, str]) -> None:
    """Write the CellCoadd of a file `(bytes, path of the FITS file, name)`; runs in a worker."""
    # Here only, so that no other process loads AST for these files.
    from lsst.images.cells import CellCoadd
    from lsst.images.fits import write
    from lsst.images.serialization import open_archive

    data, path, name = task
    with open_archive(io.BytesIO(data)) as archive:
        if archive.info.schema_name != "cell_coadd":
            raise UnreadableError(
                f"{name}: data model {archive.info.schema_name}-{archive.info.schema_version}, "
                "not a cell_coadd of version 1"
            )
        parts = {part: archive.get_component(part) for part in _PARTS}
    coadd = CellCoadd(parts.pop("image"), **parts)
    try:
        # Uncompressed: it is read once, and bits stay as they are.
        write(coadd, path, compression_options=dict.fromkeys(("image", "mask", "variance", "psf")))
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise WriteError(
                f"{name}: no room for its FITS copy in {Path(path).parent.parent}",
                hint="set TMPDIR to a larger disk",
            ) from None
        raise
