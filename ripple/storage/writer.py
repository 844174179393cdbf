"""Writing an artefact: each unit is committed atomically and noted in a journal; the manifest comes last."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from ripple.config import Config, canonical_json
from ripple.errors import ConfigError, IntegrityError, WriteError
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.checksums import FileList
from ripple.storage.files import (
    TEMPORARY,
    Staged,
    hash_file,
    make_directory,
    publish,
    read_whole,
    remove_temporaries,
    stage,
    write_atomic,
    write_error,
)
from ripple.storage.law import Law
from ripple.storage.lock import LOCK, lock, unlock
from ripple.storage.manifest import (
    INDEX,
    JOURNAL,
    MANIFEST,
    METRICS,
    Identity,
    ShardRecord,
    first_difference,
    identity_of,
    refuse_other,
    render,
    software,
    write_manifest,
)
from ripple.storage.parquet import TableWriter
from ripple.storage.schema import is_record

#: Keys of a unit's `extra` that differ from run to run: kept in the journal, never in the manifest.
VOLATILE = ("profile",)


# Journal ------------------------------------------------------------


def _line(value: Mapping[str, Any]) -> bytes:
    """A journal line, which begins with its own checksum, so that damaged lines can be ignored."""
    body = canonical_json(value)
    return hashlib.sha256(body).hexdigest()[:16].encode() + b" " + body + b"\n"


def _parse_journal(data: bytes) -> tuple[dict[str, object] | None, dict[int, ShardRecord]]:
    """Header and last record of each unit; incomplete and damaged lines are skipped."""
    header: dict[str, object] | None = None
    records: dict[int, ShardRecord] = {}
    # What follows the last newline is a line whose writer was killed.
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
    # Without a header it is not known what the records belong to.
    return (header, records) if header is not None else (None, {})


# Writing ------------------------------------------------------------


class ArtefactIdentity(Identity):
    """The identity of an artefact: also the number of its units."""

    units: int


class ArtefactWriter:
    """The only writer of an unfinished artefact; a context manager that `create` returns.

    Leaving the block without `finish` keeps what is committed; the next `create` resumes.

    Attributes
    ----------
    directory
        The artefact.
    units
        Number of units of the complete artefact.
    """

    def __init__(
        self, directory: Path, identity: ArtefactIdentity, units: int, suffix: str, handle: int
    ) -> None:
        self.directory, self.units = directory, units
        self._identity, self._suffix, self._lock = identity, suffix, handle
        self._records: dict[int, ShardRecord] = {}
        self._journal = -1  # file descriptor; -1 when closed
        self._broken = False  # after a failure nothing more is committed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock."""
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
        """The record of a unit that an earlier run committed, if its file still has that checksum."""
        record = self._records.get(unit)
        # Another suffix: the directory was begun for another kind of file.
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

    def todo(self) -> list[int]:
        """Units that are not committed, or whose file has changed since."""
        return [unit for unit in range(self.units) if self.done(unit) is None]

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
            Facts as JSON values; `extra["profile"]` does not get into the manifest.

        Raises
        ------
        WriteError
            Disk full, no permission, I/O error; the unit is then not committed.
        """
        if self._broken or self._lock < 0 or not 0 <= unit < self.units:
            raise WriteError(f"{self.directory}: unit {unit} cannot be committed", hint="run again to resume")
        path = self.directory / self.name(unit)
        staged = data if isinstance(data, Staged) else stage(self.directory, path.name, data)
        record = ShardRecord(path.name, rows, staged.bytes, staged.sha256, json.loads(canonical_json(extra)))
        # Made before the file has its name: facts that JSON cannot hold must not leave a file without a line.
        line = _line({"unit": unit, **asdict(record)})
        publish(path, staged)
        self._append(line)
        self._records[unit] = record
        return record

    def forget(self) -> None:
        """Discard what is committed, after a change of the inputs that was noticed too late."""
        self._broken = True
        with suppress(OSError):
            (self.directory / JOURNAL).unlink()

    def _append(self, line: bytes) -> None:
        # After a failure the end of the journal is unknown: nothing more is committed; a resume rewrites it.
        self._broken = True
        try:
            # A short write means a full disk, which only the next write would report.
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
        files: FileList | None = None,
    ) -> None:
        """Check the conservation law, then write index, metrics and manifest.

        Parameters
        ----------
        index
            One row per requested target, as a whole or in parts that need not be in memory together; see
            `check_law`.
        metrics
            What the run cost; not hashed.
        attributes
            Facts about all rows, as JSON values; part of the digest.
        asked
            Number of targets that were requested, when known independently of `index`.
        files
            Further files of the content, with size and SHA-256.

        Raises
        ------
        IntegrityError
            A unit is missing, the law does not hold (names the first wrong row), or no reader would accept
            the attributes.
        WriteError
            As in `commit`.
        """
        missing = [unit for unit in range(self.units) if unit not in self._records]
        if missing:
            raise IntegrityError(f"{self.directory}: unit {missing[0]} is not committed", hint="run again")
        shards = [self._records[unit] for unit in range(self.units)]
        # Checked before anything is written: an index that does not add up is never published.
        law = Law([shard.rows for shard in shards])
        data = _parquet(index, law)
        counts = law.counts(asked)
        write_atomic(self.directory / INDEX, data)
        write_atomic(self.directory / METRICS, render(_plain(metrics)))
        facts = {
            "suffix": self._suffix,
            "shards": [asdict(_stable(shard)) for shard in shards],
            "index": {
                "rows": counts["asked"],
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            },
            "counts": counts,
            "attributes": dict(attributes),
            "files": dict(files or {}),
        }
        write_manifest(self.directory, self._identity, facts)
        _tidy(self.directory)


def _tidy(directory: Path) -> None:
    """Remove what only an unfinished artefact needs; the lock is held, so nobody writes a temporary file."""
    remove_temporaries(directory)
    with suppress(OSError):
        (directory / JOURNAL).unlink()


def _plain(metrics: Mapping[str, Any]) -> dict[str, object]:
    """The metrics as JSON values: text for other types, null for numbers that are not finite."""
    text = json.dumps(metrics, default=str)
    plain: dict[str, object] = json.loads(text, parse_constant=lambda _: None)
    return plain


def _stable(shard: ShardRecord) -> ShardRecord:
    """A record without what differs from run to run, so that equal runs give equal manifests."""
    return replace(shard, extra={key: value for key, value in shard.extra.items() if key not in VOLATILE})


def _parquet(index: pa.Table | Iterable[pa.Table], law: Law) -> memoryview:
    """The bytes of an index; each part is checked as it is written."""
    sink = io.BytesIO()
    out: TableWriter | None = None
    for part in [index] if isinstance(index, pa.Table) else index:
        law.add(part)
        out = out or TableWriter(sink, part.schema)
        out.write(part)
    if out is None:
        raise IntegrityError("the index has no columns")
    out.close()
    return sink.getbuffer()


@dataclass(frozen=True, slots=True)
class Finished:
    """What `create` returns when the same artefact is finished already."""

    artefact: Artefact


def create(
    directory: Path, *, kind: str, config: Config, inputs: Mapping[str, Any], units: int, suffix: str = ".h5"
) -> ArtefactWriter | Finished:
    """Begin an artefact, resume it, or find that it is finished.

    Parameters
    ----------
    directory
        Made when missing.
    kind
        `cutouts`, `tensors` or `scores`.
    config
        Its `canonical` part must equal that of the run which began the directory.
    inputs
        What the bytes depend on besides `config`, as JSON values with checksums.
    units
        Number of units.
    suffix
        Of the shard files.

    Raises
    ------
    ConfigError
        The directory was begun with another config, inputs or software; names the first difference.
    LockedError
        Another process is writing the directory.
    WriteError
        The directory cannot be made or written, or contains something else.
    """
    identity: ArtefactIdentity = {
        **identity_of(kind, config.verb, config.canonical(), inputs),
        "units": units,
    }
    _make_directory(directory)
    handle = lock(directory)
    writer: ArtefactWriter | None = None
    try:
        if (directory / MANIFEST).is_file():
            artefact = open_artefact(directory)
            refuse_other(directory, artefact.manifest, identity)
            _tidy(directory)  # its writer may have been killed just before doing this
            return Finished(artefact)
        writer = ArtefactWriter(directory, identity, units, suffix, handle)
        _begin(writer, identity)
        return writer
    finally:
        # The writer keeps the lock; without one it is released, whatever happened.
        if writer is None or writer._journal < 0:
            unlock(handle)


@dataclass(frozen=True, slots=True)
class Begun:
    """An artefact that was begun and is not finished: verb, number of units, those that are committed."""

    verb: str
    units: int
    records: dict[int, ShardRecord]


def read_begun(directory: Path) -> Begun | None:
    """What the journal of an unfinished artefact says; None where there is none."""
    path = directory / JOURNAL
    header, records = _parse_journal(read_whole(path)) if path.is_file() else (None, {})
    if header is None:
        return None
    units = header.get("units")
    return Begun(str(header.get("verb", "")), units if isinstance(units, int) else len(records), records)


def is_begun(directory: Path) -> bool:
    """Whether an artefact was begun here and is not finished."""
    return read_begun(directory) is not None


def _begin(writer: ArtefactWriter, identity: ArtefactIdentity) -> None:
    """Clean up after a killed run, take over its records, and open a clean journal."""
    directory, path = writer.directory, writer.directory / JOURNAL
    header, records = _parse_journal(read_whole(path)) if path.exists() else (None, {})
    if header is not None:
        refuse_other(directory, header, identity)
        drift = first_difference(header.get("software"), software(), "software")
        if drift is not None:
            # Other versions may give other pixels; one artefact must not mix them.
            hint = "finish it with the versions it was begun with, or remove it"
            raise ConfigError(f"{directory} was begun with different software: {drift}", hint=hint)
    known = {unit: record for unit, record in records.items() if record.name == writer.name(unit)}
    remove_temporaries(directory)
    # Rewritten without damaged and repeated lines, so that appending is safe again.
    lines = [_line({"unit": unit, **asdict(record)}) for unit, record in sorted(known.items())]
    write_atomic(path, b"".join([_line({**identity, "software": software()}), *lines]))
    writer._records = known
    try:
        writer._journal = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as err:
        raise write_error(path, err, 0) from None


def _make_directory(directory: Path) -> None:
    """Make the directory, or raise when it has files but none that RIPPLe writes first."""
    make_directory(directory)
    try:
        names = {entry.name for entry in os.scandir(directory)}
    except OSError as err:
        raise write_error(directory, err, 0) from None
    ours = {LOCK, JOURNAL, MANIFEST}
    if names and not names & ours and not all(name.startswith(TEMPORARY) for name in names):
        raise WriteError(
            f"{directory} contains files that RIPPLe did not write", hint="give a new or empty directory"
        )
