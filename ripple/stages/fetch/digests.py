"""Checksums of source files: those that the user trusts, and those of what a run has read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ripple.errors import InputError, SourceError
from ripple.storage.artefact import open_artefact

#: Marks the checksum of a file of which only ranges were read: it says nothing about the other bytes.
RANGES = "ranges:"
#: Bytes of a list of checksums: a gigabyte is ten million files.
_MAX_LIST = 1 << 30
_SHA256 = re.compile(r"[0-9a-f]{64}")


def trusted_digests(place: str) -> dict[str, str]:
    """Dataset UUID -> SHA-256 of the whole file, from an earlier fetch or from a list.

    Parameters
    ----------
    place
        A directory of cutouts, whose manifest records what was read for it, or a JSON file
        `{"<uuid>": "<sha256>", ...}`. Datasets of which that fetch read only ranges are left out.

    Raises
    ------
    InputError
        `place` is neither, or has no checksum of a whole file.
    IntegrityError
        The cutouts are damaged.
    """
    found = _recorded(place) if Path(place).is_dir() else _listed(place)
    # The Butler writes UUIDs in lower case; lists made elsewhere may not.
    whole = {uuid.lower(): digest for uuid, digest in found.items() if not digest.startswith(RANGES)}
    for uuid, digest in whole.items():
        if not _SHA256.fullmatch(digest):
            raise InputError(
                f"{place}: {uuid}: {digest[:80]!r} is not a SHA-256",
                hint="a SHA-256 has 64 digits, 0-9 and a-f",
            )
    if not whole:
        raise InputError(
            f"{place}: no checksum of a whole file there", hint="see --digests in ripple fetch --help"
        )
    return whole


def _recorded(directory: str) -> dict[str, str]:
    """The checksums in the manifest of an earlier fetch."""
    attributes = open_artefact(Path(directory), "cutouts").attributes
    recorded: dict[str, str] = attributes.get("source_sha256", {})
    return recorded


def _listed(file: str) -> dict[str, str]:
    """The checksums in a JSON file."""
    try:
        with Path(file).open("rb") as stream:
            # Never more than the limit: the path may be a device or a pipe.
            data = stream.read(_MAX_LIST + 1)
        values = json.loads(data) if len(data) <= _MAX_LIST else None
    except OSError as err:
        raise InputError(f"{file}: {err.strerror}", hint="--digests takes a file or a directory") from None
    except (ValueError, RecursionError) as err:
        raise InputError(f"{file}: cannot be read as JSON: {str(err)[:200]}") from None
    if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
        raise InputError(
            f"{file}: is not a list of checksums", hint='write {"<dataset uuid>": "<sha256>", ...}'
        )
    return values


def merge_digests(records: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """What the units have read of each file, as one checksum per dataset.

    Parameters
    ----------
    records
        UUID -> checksum, one map per unit.

    Returns
    -------
    digests
        The file's SHA-256 when a unit read all of it; else `ranges:` and a SHA-256 over what was read.

    Raises
    ------
    SourceError
        Two units read the whole file and found different bytes: the output mixes two versions of it.
    """
    whole: dict[str, str] = {}
    parts: dict[str, set[str]] = {}
    for record in records:
        for uuid, digest in record.items():
            if digest.startswith(RANGES):
                parts.setdefault(uuid, set()).add(digest)
            elif whole.setdefault(uuid, digest) != digest:
                raise SourceError(
                    f"dataset {uuid} changed while it was read: SHA-256 {whole[uuid]}, then {digest}",
                    hint="this output mixes both versions; fetch again into another directory",
                )
    # The checksum of the whole file wins: it also covers the ranges.
    found = {uuid: _joined(digests) for uuid, digests in parts.items()} | whole
    return dict(sorted(found.items()))


def _joined(digests: set[str]) -> str:
    """One checksum for the ranges that several units read, whatever their order."""
    if len(digests) == 1:
        return next(iter(digests))
    return RANGES + hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
