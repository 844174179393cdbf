"""Reading a finished artefact: cutouts, tensors or scores.

    DIR/.lock             flock of the writer; its text names the process that holds it
    DIR/.journal          one line per committed unit while the artefact is unfinished
    DIR/shard-00000.h5    unit 0, and so on
    DIR/index.parquet     one row per requested target
    DIR/metrics.json      what it cost; not hashed
    DIR/manifest.json     the commit: without a manifest, the artefact is not finished

Commit of a file: a temporary beside it (`O_EXCL`, `O_NOFOLLOW`), fsync, rename, fsync of the directory. A
journal line follows the rename, so a unit counts only when a line names it and the file has the checksum in
that line; anything else is done again. Nothing depends on clocks, which may differ between machines.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ripple.config import Json
from ripple.errors import IntegrityError
from ripple.storage.checksums import FileList, compare, differing, parse_listing, read_verified
from ripple.storage.files import REDO, hash_file, opened, parse_parquet, read_large, read_whole
from ripple.storage.law import check_law
from ripple.storage.manifest import (
    INDEX,
    MANIFEST,
    MARK,
    METRICS,
    ShardRecord,
    check_files,
    files_of,
    read_manifest,
    unseal,
)
from ripple.storage.schema import KINDS
from ripple.storage.shard_reader import psf_fault

# Reading ------------------------------------------------------------

# Path, SHA-256 and inode of shards that this process has verified: readers open them again and again.
_verified: set[tuple[str, str, int]] = set()


@dataclass(frozen=True, slots=True)
class Artefact:
    """A finished artefact.

    Parameters
    ----------
    directory
        Where it is.
    manifest
        Its manifest, sealed and of known layout.
    shards
        The units, in order.
    """

    directory: Path
    manifest: Json
    shards: tuple[ShardRecord, ...]

    @property
    def kind(self) -> str:
        """`cutouts`, `tensors` or `scores`."""
        return str(self.manifest["kind"])

    @property
    def attributes(self) -> Json:
        """Facts about all rows, as `ripple.storage.schema` describes them."""
        return dict(self.manifest["attributes"])

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands, in the order of axis 1 of the shards."""
        return tuple(self.manifest["attributes"]["bands"])

    @property
    def inputs(self) -> Json:
        """What the content depends on besides the options."""
        return dict(self.manifest["inputs"])

    @property
    def digest(self) -> str:
        """SHA-256 that identifies the content; the next stage records it as its input."""
        return str(self.manifest["digest"])

    @property
    def rows(self) -> int:
        """Rows in all shards."""
        return sum(shard.rows for shard in self.shards)

    def index(self) -> pa.Table:
        """The index, verified.

        Raises
        ------
        IntegrityError
            Its bytes differ from those that were written.
        """
        path, entry = self.directory / INDEX, self.manifest["index"]
        data = read_verified(path, (entry["bytes"], entry["sha256"]))
        try:
            table = parse_parquet(data)
            table.validate(full=True)
        except (pa.ArrowException, OSError, ValueError) as err:
            # The bytes are those that were written, but another program may have written them.
            reason = " ".join(str(err).split())[:200]
            raise IntegrityError(f"{path}: cannot be read as a table: {reason}") from None
        return table

    def shard_path(self, k: int) -> Path:
        """Path of shard `k`; not verified, see `verified_path`."""
        return self.directory / self.shards[k].name

    def verified_path(self, k: int) -> Path:
        """Path of shard `k` after comparing its SHA-256, once per process and file; for memory-mapping.

        Raises
        ------
        IntegrityError
            Its bytes differ from those that were written.
        """
        path = self.shard_path(k)
        # With the inode: a file that was replaced is verified again.
        with opened(path) as file:
            key = (str(path.absolute()), self.shards[k].sha256, os.fstat(file.fileno()).st_ino)
        if key not in _verified:
            self.checked_path(k)
            _verified.add(key)
        return path

    def recheck(self) -> None:
        """Compare the SHA-256 of every shard once more, for readers that have mapped them for a long time.

        Raises
        ------
        IntegrityError
            A shard has changed.
        """
        for k in range(len(self.shards)):
            self.checked_path(k)

    def checked_path(self, k: int) -> Path:
        """Path of shard `k` after comparing its SHA-256, on every call; errors as for `read`."""
        path, shard = self.shard_path(k), self.shards[k]
        compare(path, hash_file(path), (shard.bytes, shard.sha256))
        return path

    def read(self, k: int) -> memoryview:
        """The bytes of shard `k`, compared with their SHA-256 on every call.

        Raises
        ------
        IntegrityError
            They differ from those that were written.
        """
        path, shard = self.shard_path(k), self.shards[k]
        data = read_large(path)
        compare(path, (len(data), hashlib.sha256(data).hexdigest()), (shard.bytes, shard.sha256))
        return data

    def metrics(self) -> Json:
        """What the run cost; empty when the file is missing, as it is not part of the content.

        It differs from run to run, so it has a seal of its own instead of a checksum in the manifest. Files
        of earlier versions have neither a seal nor a final newline; one damaged byte cannot imitate that.

        Raises
        ------
        IntegrityError
            The file is damaged.
        """
        path = self.directory / METRICS
        if not path.exists() and not path.is_symlink():
            return {}
        data = read_whole(path)
        if b'"seal"' in data or data[-1:] in (b"\n", b""):
            return {key: value for key, value in unseal(path, data).items() if key != "seal"}
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            raise IntegrityError(
                f"{path}: damaged", hint="remove it; it only says what the run cost"
            ) from None
        return value if isinstance(value, dict) else {}

    def files(self) -> FileList:
        """Further files that belong to the content, with size and SHA-256."""
        return parse_listing(self.directory / MANIFEST, self.manifest.get("files", {}))

    def read_file(self, name: str) -> bytes:
        """The bytes of one of `files`, verified.

        Raises
        ------
        IntegrityError
            The manifest does not list it, or its bytes differ from those that were written.
        """
        path, expected = self.directory / name, self.files().get(name)
        if expected is None:
            raise IntegrityError(f"{path}: the manifest does not list it", hint=REDO)
        return read_verified(path, expected)


def open_artefact(directory: Path, kind: str | None = None) -> Artefact:
    """Open a finished artefact, after verifying the manifest and the sizes of all files.

    Raises
    ------
    InputError
        The directory is not an artefact, not finished, of another kind, or written by a newer version.
    IntegrityError
        The manifest is damaged, or a shard is missing or of another size.
    """
    manifest = read_manifest(directory, *([kind] if kind else KINDS))
    check_files(directory, manifest)
    return Artefact(directory, manifest, tuple(ShardRecord(**shard) for shard in manifest["shards"]))


def verify(directory: Path, advance: Callable[[int], None] | None = None) -> list[str]:
    """Read every byte of a finished directory and compare checksums.

    Parameters
    ----------
    directory
        An artefact, model, page, export or simulated survey.
    advance
        Called with the number of bytes just read.

    Returns
    -------
    problems
        One line per problem, in order; empty when all is well.

    Raises
    ------
    InputError
        RIPPLe did not write the directory, or it is not finished.
    """
    try:
        manifest = read_manifest(directory)
        files = files_of(directory, manifest)
    except IntegrityError as err:
        return [err.message]  # without a manifest, nothing can be compared
    problems = differing(directory, files, advance)
    # Only artefacts have rows, and so an index whose counts must add up.
    if manifest["kind"] in KINDS:
        problems += _check_artefact(directory, manifest)
    # Links count as files: what they lead to is not what was written.
    present = {
        p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_symlink() or p.is_file()
    }
    foreign = sorted(name for name in present - files.keys() if _is_stray(name, manifest["kind"]))
    return problems + [f"{directory / name}: not listed in the manifest" for name in foreign]


def _check_artefact(directory: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Problems beyond checksums: a damaged `metrics.json`, or an index whose rows do not add up."""
    artefact = Artefact(
        directory, dict(manifest), tuple(ShardRecord(**shard) for shard in manifest["shards"])
    )
    problems = []
    for check in (artefact.metrics, lambda: check_law(artefact.index(), [s.rows for s in artefact.shards])):
        try:
            check()
        except IntegrityError as err:
            # The law does not know which file its table came from.
            named = str(directory) in err.message
            problems.append(err.message if named else f"{directory / INDEX}: {err.message}")
    if manifest["kind"] == "cutouts":
        paths = map(artefact.shard_path, range(len(artefact.shards)))
        problems += [f"{path}: {text}" for path in paths if (text := psf_fault(path))]
    return problems


def _is_stray(name: str, kind: str) -> bool:
    """Whether an unlisted file should not be there: any file in a page or export, shards in an artefact."""
    # Users may put notes of their own beside the shards of an artefact.
    if name in (MANIFEST, MARK):
        return False
    return name.startswith("shard-") if kind in KINDS else kind in ("page", "export", "candidates")
