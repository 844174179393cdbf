"""An artefact directory: one writer, units committed atomically, the manifest last.

    DIR/.lock             flock of the writer; its text names the holder
    DIR/.journal          one line per committed unit while the artefact is unfinished
    DIR/shard-00000.h5    unit 0, and so on
    DIR/index.parquet     one row per target asked for
    DIR/metrics.json      what it cost; not hashed
    DIR/manifest.json     the commit: no manifest, not finished

Commit of a file: a temporary beside it (`O_EXCL`, `O_NOFOLLOW`), fsync, rename, fsync of the directory. A
journal line follows the rename, so a unit counts only when a line names it and the file hashes to that line;
anything else is done again. No clock decides anything.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ripple.config import Config, canonical_json
from ripple.errors import ConfigError, InputError, IntegrityError, WriteError
from ripple.files import (
    LOCK,
    TEMPORARY,
    Staged,
    hash_file,
    is_locked,
    lock,
    make_directory,
    opened,
    parse_parquet,
    publish,
    read_whole,
    remove_temporaries,
    stage,
    unlock,
    write_atomic,
    write_error,
)
from ripple.layout import check_layout, is_record
from ripple.listing import FileList, check_size, compare, differing, parse_listing, read_verified
from ripple.manifest import (
    REDO,
    Law,
    ShardRecord,
    check_law,
    content_digest,
    first_difference,
    identity_of,
    parse_manifest,
    refuse_other,
    render,
    software,
    unseal,
)

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "Artefact", "ArtefactWriter", "Finished", "ShardRecord", "Staged", "check_law", "create", "open_artefact",
    "stage", "verify", "write_atomic",
]  # fmt: skip

JOURNAL, INDEX, METRICS, MANIFEST = ".journal", "index.parquet", "metrics.json", "manifest.json"
#: Keys of a unit's `extra` that differ from run to run: kept in the journal, never in the manifest.
VOLATILE = ("profile",)


# Journal ------------------------------------------------------------


def _line(value: Mapping[str, Any]) -> bytes:
    """A journal line that carries its own checksum: a damaged line is no line."""
    body = canonical_json(value)
    return hashlib.sha256(body).hexdigest()[:16].encode() + b" " + body + b"\n"


def _parse_journal(data: bytes) -> tuple[dict[str, Any] | None, dict[int, ShardRecord]]:
    """Header and last record of each unit; torn and damaged lines are skipped."""
    header: dict[str, Any] | None = None
    records: dict[int, ShardRecord] = {}
    for number, line in enumerate(data.split(b"\n")[:-1]):
        mark, _, body = line.partition(b" ")
        if hashlib.sha256(body).hexdigest()[:16].encode() != mark:
            continue
        value = json.loads(body)
        if not isinstance(value, dict):
            continue
        if number == 0:
            header = value
        elif isinstance(unit := value.pop("unit", None), int) and is_record(value):
            records[unit] = ShardRecord(**value)
    return (header, records) if header is not None else (None, {})


# Writing ------------------------------------------------------------


class ArtefactWriter:
    """The one writer of an unfinished artefact; a context manager made by `create`.

    Leaving the block without `finish` keeps what is committed; the next `create` resumes.

    Attributes
    ----------
    directory
        The artefact.
    units
        Number of units that make it whole.
    """

    def __init__(
        self, directory: Path, identity: dict[str, Any], units: int, suffix: str, handle: int
    ) -> None:
        self.directory, self.units = directory, units
        self._identity, self._suffix, self._lock = identity, suffix, handle
        self._records: dict[int, ShardRecord] = {}
        self._journal = -1
        self._broken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the lock."""
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1
        if self._lock >= 0:
            unlock(self._lock)
            self._lock = -1

    def name(self, unit: int) -> str:
        """File name of a unit."""
        return f"shard-{unit:05d}{self._suffix}"

    def done(self, unit: int) -> ShardRecord | None:
        """The record of a unit committed by an earlier run whose file still hashes to it, else None."""
        record = self._records.get(unit)
        if record is None or record.name != self.name(unit):
            return None
        try:
            found = hash_file(self.directory / record.name)
        except IntegrityError:
            found = (-1, "")
        if found != (record.bytes, record.sha256):
            del self._records[unit]
            return None
        return record

    def record(self, unit: int) -> ShardRecord:
        """The record of a unit that is committed, by this run or an earlier one."""
        return self._records[unit]

    def commit(
        self, unit: int, data: bytes | memoryview | Staged, rows: int, extra: Mapping[str, Any]
    ) -> ShardRecord:
        """Publish a unit: the file first, then its journal line.

        Parameters
        ----------
        unit
            0 <= unit < units.
        data
            The file's bytes, or what `stage` returned in a worker on this file system.
        rows
            Rows in it.
        extra
            Facts as JSON values; `extra["profile"]` stays out of the manifest.

        Raises
        ------
        WriteError
            Disk full, no permission, I/O error; the unit does not count.
        """
        if self._broken or self._lock < 0 or not 0 <= unit < self.units:
            raise WriteError(f"{self.directory}: unit {unit} cannot be committed", hint="run again to resume")
        path = self.directory / self.name(unit)
        staged = data if isinstance(data, Staged) else stage(self.directory, path.name, data)
        record = ShardRecord(path.name, rows, staged.bytes, staged.sha256, json.loads(canonical_json(extra)))
        line = _line({"unit": unit, **asdict(record)})
        publish(path, staged)
        self._append(line)
        self._records[unit] = record
        return record

    def forget(self) -> None:
        """Drop what is committed: after a change of the inputs that was noticed too late."""
        self._broken = True
        with suppress(OSError):
            (self.directory / JOURNAL).unlink()

    def _append(self, line: bytes) -> None:
        # After a failure the end of the journal is unknown: nothing more is committed, a resume rewrites it.
        self._broken = True
        try:
            if os.write(self._journal, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._journal)
        except OSError as err:
            raise write_error(self.directory / JOURNAL, err, len(line)) from None
        self._broken = False

    def finish(
        self,
        index: pa.Table | Iterable[pa.Table],
        metrics: Mapping[str, Any],
        attributes: Mapping[str, Any],
        *,
        asked: int | None = None,
    ) -> None:
        """Check the conservation law, then write index, metrics and manifest.

        Parameters
        ----------
        index
            One row per target asked for, whole or in parts that need not be in memory together; see
            `check_law`.
        metrics
            Per operation and per reason; not hashed.
        attributes
            Facts of the whole, as JSON values; part of the digest.
        asked
            Number of targets asked for, when known independently of `index`.

        Raises
        ------
        IntegrityError
            A unit is missing, or the law does not hold; the message names the first row at fault; or
        attributes that no reader would take.
        WriteError
            As in `commit`.
        """
        missing = [unit for unit in range(self.units) if unit not in self._records]
        if missing:
            raise IntegrityError(f"{self.directory}: unit {missing[0]} is not committed", hint="run again")
        shards = [self._records[unit] for unit in range(self.units)]
        law = Law([shard.rows for shard in shards])
        data = _parquet(index, law)
        counts = law.counts(asked)
        write_atomic(self.directory / INDEX, data)
        write_atomic(self.directory / METRICS, render(_plain(metrics)))
        manifest: dict[str, Any] = {
            **self._identity, "suffix": self._suffix, "shards": [_stable(shard) for shard in shards],
            "index": {"rows": counts["asked"], "bytes": len(data),
                      "sha256": hashlib.sha256(data).hexdigest()},
            "counts": counts, "attributes": json.loads(canonical_json(attributes)), "software": software(),
        }  # fmt: skip
        manifest["digest"] = content_digest(manifest)
        check_layout(self.directory / MANIFEST, manifest)
        self._publish_manifest(render(manifest))
        _tidy(self.directory)

    def _publish_manifest(self, data: bytes) -> None:
        try:
            write_atomic(self.directory / MANIFEST, data)
        except WriteError:
            # Renamed, perhaps, but not known to be on disk: a failed fsync must not pass for a commit later.
            with suppress(OSError):
                (self.directory / MANIFEST).unlink()
            raise


def _tidy(directory: Path) -> None:
    """Remove what only an unfinished artefact needs; the lock is held, so no temporary has a writer."""
    remove_temporaries(directory)
    with suppress(OSError):
        (directory / JOURNAL).unlink()


def _plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values: text for what JSON does not know, null for numbers that are not finite."""
    text = json.dumps(metrics, default=str)
    plain: dict[str, Any] = json.loads(text, parse_constant=lambda _: None)
    return plain


def _stable(shard: ShardRecord) -> dict[str, Any]:
    record = asdict(shard)
    record["extra"] = {key: value for key, value in shard.extra.items() if key not in VOLATILE}
    return record


def _parquet(index: pa.Table | Iterable[pa.Table], law: Law) -> memoryview:
    """The file of an index, whose parts are checked as they pass."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    out: Any = None
    for part in [index] if isinstance(index, pa.Table) else index:
        law.add(part)
        out = out or pq.ParquetWriter(sink, part.schema, compression="zstd")
        out.write_table(part.combine_chunks())
    if out is None:
        raise IntegrityError("an index without columns")
    out.close()
    return sink.getbuffer()


@dataclass(frozen=True, slots=True)
class Finished:
    """What `create` returns when the same artefact is there already."""

    artefact: Artefact


def create(
    directory: Path, *, kind: str, config: Config, inputs: Mapping[str, Any], units: int, suffix: str = ".h5"
) -> ArtefactWriter | Finished:
    """Begin, resume, or find finished.

    Parameters
    ----------
    directory
        Made when missing.
    kind
        `cutouts`, `tensors` or `scores`.
    config
        Its `canonical` part must equal that of the run which began the directory.
    inputs
        What the bytes depend on besides `config`, as JSON values with digests.
    units
        Number of units.
    suffix
        Of the shard files.

    Raises
    ------
    ConfigError
        Begun with another config, other inputs or other software; names the first difference.
    LockedError
        Another process is writing.
    WriteError
        The directory cannot be made or written, or holds something else.
    """
    identity = {**identity_of(kind, config, inputs), "units": units}
    _make_directory(directory)
    handle = lock(directory)
    writer: ArtefactWriter | None = None
    try:
        if (directory / MANIFEST).is_file():
            artefact = open_artefact(directory)
            refuse_other(directory, artefact.manifest, identity)
            _tidy(directory)  # its writer may have been killed just before it did this
            return Finished(artefact)
        writer = ArtefactWriter(directory, identity, units, suffix, handle)
        _begin(writer, identity)
        return writer
    finally:
        if writer is None or writer._journal < 0:
            unlock(handle)


def is_begun(directory: Path) -> bool:
    """Whether an artefact was begun here and is not finished."""
    path = directory / JOURNAL
    return path.is_file() and _parse_journal(read_whole(path))[0] is not None


def _begin(writer: ArtefactWriter, identity: dict[str, Any]) -> None:
    """Clean up after a killed run, take over its records, and open a clean journal."""
    directory, path = writer.directory, writer.directory / JOURNAL
    header, records = _parse_journal(read_whole(path)) if path.exists() else (None, {})
    if header is not None:
        refuse_other(directory, header, identity)
        drift = first_difference(header.get("software"), software(), "software")
        if drift is not None:
            hint = "finish it with the versions it was begun with, or remove it"
            raise ConfigError(f"{directory} was begun with other software: {drift}", hint=hint)
    known = {unit: record for unit, record in records.items() if record.name == writer.name(unit)}
    remove_temporaries(directory)
    lines = [_line({"unit": unit, **asdict(record)}) for unit, record in sorted(known.items())]
    write_atomic(path, b"".join([_line({**identity, "software": software()}), *lines]))
    writer._records = known
    try:
        writer._journal = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as err:
        raise write_error(path, err, 0) from None


def _make_directory(directory: Path) -> None:
    make_directory(directory)
    try:
        names = {entry.name for entry in os.scandir(directory)}
    except OSError as err:
        raise write_error(directory, err, 0) from None
    ours = {LOCK, JOURNAL, MANIFEST}
    if names and not names & ours and not all(name.startswith(TEMPORARY) for name in names):
        raise WriteError(f"{directory} holds files that are not ours", hint="give a new or empty directory")


# Reading ------------------------------------------------------------

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
    manifest: dict[str, Any]
    shards: tuple[ShardRecord, ...]

    @property
    def digest(self) -> str:
        """SHA-256 that identifies the content: provenance of the next stage."""
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
            Its bytes are not those that were written.
        """
        import pyarrow as pa

        path, entry = self.directory / INDEX, self.manifest["index"]
        data = read_verified(path, (entry["bytes"], entry["sha256"]))
        try:
            table = parse_parquet(data)
            table.validate(full=True)
        except (pa.ArrowException, OSError, ValueError) as err:  # of an artefact made by others
            raise IntegrityError(f"{path}: not a table: {' '.join(str(err).split())[:200]}") from None
        return table

    def shard_path(self, k: int) -> Path:
        """Path of shard `k`; not verified, see `verified_path`."""
        return self.directory / self.shards[k].name

    def verified_path(self, k: int) -> Path:
        """Path of shard `k` after comparing its SHA-256, once per process and file; for memory-mapping.

        Raises
        ------
        IntegrityError
            Its bytes are not those that were written.
        """
        path, shard = self.shard_path(k), self.shards[k]
        with opened(path) as file:
            key = (str(path.absolute()), shard.sha256, os.fstat(file.fileno()).st_ino)
        if key not in _verified:
            compare(path, hash_file(path), (shard.bytes, shard.sha256))
            _verified.add(key)
        return path

    def recheck(self) -> None:
        """Compare the SHA-256 of every shard, whatever was compared before: for readers that mapped them.

        Raises
        ------
        IntegrityError
            A shard is no longer what was written.
        """
        for k, shard in enumerate(self.shards):
            path = self.shard_path(k)
            compare(path, hash_file(path), (shard.bytes, shard.sha256))

    def read(self, k: int) -> bytes:
        """The bytes of shard `k`, compared with their SHA-256 on every call.

        Raises
        ------
        IntegrityError
            They are not those that were written.
        """
        path, shard = self.shard_path(k), self.shards[k]
        return read_verified(path, (shard.bytes, shard.sha256))

    def metrics(self) -> dict[str, Any]:
        """What the run cost; empty when the file is gone (it is not part of the content).

        Its seal is its own, as it differs from run to run. Files without one (and without a final newline, so
        that no flip can pass for that) are of earlier versions.

        Raises
        ------
        IntegrityError
            Damaged.
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
                f"{path}: damaged", hint="remove it: it says only what the run cost"
            ) from None
        return value if isinstance(value, dict) else {}

    def files(self) -> FileList:
        """Further files that belong to the content, with size and SHA-256: the attribute `files`."""
        return parse_listing(self.directory / MANIFEST, self.manifest["attributes"].get("files", {}))

    def read_file(self, name: str) -> bytes:
        """The bytes of one of `files`, verified.

        Raises
        ------
        IntegrityError
            The manifest does not name it, or its bytes are not those that were written.
        """
        path, expected = self.directory / name, self.files().get(name)
        if expected is None:
            raise IntegrityError(f"{path}: the manifest has no digest of it", hint=REDO)
        return read_verified(path, expected)


def open_artefact(directory: Path, kind: str | None = None) -> Artefact:
    """Open a finished artefact: the manifest is verified, the shards are there with their sizes.

    Raises
    ------
    InputError
        No artefact, not finished, of another kind, or written by a newer version.
    IntegrityError
        The manifest is damaged, or a shard is missing or of another size.
    """
    path = directory / MANIFEST
    if not path.exists() and not path.is_symlink():
        raise _unfinished(directory)
    manifest = parse_manifest(path, read_whole(path))
    if kind is not None and manifest["kind"] != kind:
        raise InputError(f"{directory} holds {manifest['kind']}, not {kind}")
    artefact = Artefact(directory, manifest, tuple(ShardRecord(**shard) for shard in manifest["shards"]))
    for name, (size, _) in artefact.files().items():
        check_size(directory / name, size)
    if manifest["kind"] == "scores":
        with opened(directory / manifest["attributes"]["sorted"]["name"]):
            pass  # its size is not written down
    for k, shard in enumerate(artefact.shards):
        check_size(artefact.shard_path(k), shard.bytes)
    return artefact


def _unfinished(directory: Path) -> InputError:
    if not directory.is_dir():
        return InputError(f"{directory}: no such directory")
    if not (directory / JOURNAL).exists():
        return InputError(f"{directory}: no artefact, {MANIFEST} is missing")
    if is_locked(directory):
        return InputError(f"{directory} is not finished: it is being written", hint="wait for its writer")
    return InputError(f"{directory} is not finished", hint="run the command that began it again to resume")


def verify(directory: Path, advance: Callable[[int], None] | None = None) -> list[str]:
    """Read every byte and compare; what is wrong, in order, empty when all is whole.

    Parameters
    ----------
    directory
        A finished artefact.
    advance
        Called with the number of bytes just read.

    Raises
    ------
    InputError
        No artefact, or not finished.
    """
    try:
        artefact = open_artefact(directory)
    except IntegrityError as err:
        return [err.message]
    files = {shard.name: (shard.bytes, shard.sha256) for shard in artefact.shards}
    problems = differing(directory, files, advance)
    if artefact.manifest["kind"] == "scores":
        table = artefact.manifest["attributes"]["sorted"]
        path = directory / table["name"]
        try:
            if hash_file(path, advance)[1] != table["sha256"]:
                problems.append(f"{path}: SHA-256 is not that of the manifest")
        except IntegrityError as err:
            problems.append(err.message)
    try:
        problems += differing(directory, artefact.files(), advance)
        artefact.metrics()
    except IntegrityError as err:
        problems.append(err.message)
    try:
        check_law(artefact.index(), [shard.rows for shard in artefact.shards])
    except IntegrityError as err:
        named = str(directory / INDEX) in err.message
        problems.append(err.message if named else f"{directory / INDEX}: {err.message}")
    strays = sorted(
        e.name for e in os.scandir(directory) if e.name.startswith("shard-") and e.name not in files
    )
    return problems + [f"{directory / name}: not in the manifest" for name in strays]
