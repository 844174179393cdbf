"""The manifest: the last file of every directory that RIPPLe writes; without it, the directory is unfinished.

Cutouts, tensors, scores, models, pages, exports and simulated surveys have one. It says what the content
depends on (`verb`, `config`, `inputs`), lists the files with size and SHA-256, and is sealed: a manifest with
any other bytes is damaged.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

from ripple.config import Json, canonical_json
from ripple.errors import InputError, IntegrityError, OtherInputsError, OtherOptionsError, WriteError
from ripple.storage.checksums import FileList, check_size, parse_listing
from ripple.storage.files import REDO, read_whole, write_atomic
from ripple.storage.lock import is_locked
from ripple.storage.schema import check_layout

#: Version of the layout of manifests.
SCHEMA = 1
MANIFEST, INDEX, METRICS, JOURNAL = "manifest.json", "index.parquet", "metrics.json", ".journal"
#: Mark of a directory that is being written as a whole (`directory.py`).
MARK = ".tree"
#: An unfinished directory has one of these: an artefact, a model, a survey.
BEGUN = (JOURNAL, ".train/run.json", "simulate.json")
#: A larger file is damaged, or meant to use up the memory.
MAX_MANIFEST_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One committed unit.

    Parameters
    ----------
    name
        File name inside the artefact.
    rows
        Rows in the file.
    bytes, sha256
        Size and checksum of the file.
    extra
        Facts of the unit as JSON values, e.g. `{"rejected": {"12": ["no_dataset", ""]}, "profile": {...}}`.
    """

    name: str
    rows: int
    bytes: int
    sha256: str
    extra: Json = field(default_factory=dict)


class Identity(TypedDict):
    """What two directories with the same content have in common; `schema` is that of the manifest."""

    kind: str
    schema: int
    verb: str
    config_digest: str
    config: Json
    inputs: Json


def software() -> dict[str, str]:
    """Versions of the software that the bytes depend on; a run can only be resumed with the same ones."""
    # The distributions' metadata, so that nothing has to be imported.
    names = ("numpy", "scipy", "h5py", "pyarrow", "torch", "lsst-images", "lsst-daf-butler")
    found = {"python": platform.python_version(), "ripple": metadata.version("ripple-lsst")}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def identity_of(kind: str, verb: str, config: Mapping[str, Any], inputs: Mapping[str, Any]) -> Identity:
    """What two directories must have in common to have the same content, as JSON values.

    Parameters
    ----------
    kind
        `cutouts`, `tensors`, `scores`, `embeddings`, `model`, `page`, `export`, `survey`, `grades` or
        `candidates`.
    verb
        The command.
    config
        Its options that change bytes, as `Config.canonical` gives them.
    inputs
        What else the bytes depend on, with checksums.
    """
    # Through JSON and back: tuples become lists, as they will be when the manifest is read.
    plain: Json = json.loads(canonical_json({"config": dict(config), "inputs": dict(inputs)}))
    digest = hashlib.sha256(canonical_json(plain["config"])).hexdigest()
    return {
        "kind": kind,
        "schema": SCHEMA,
        "verb": verb,
        "config_digest": digest,
        "config": plain["config"],
        "inputs": plain["inputs"],
    }


def refuse_other(directory: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise when the directory was begun with another kind, config or inputs; names the first difference."""
    verb = str(new["verb"])
    # In this order, so that the message names the plainest difference; each with its word in the message.
    labels = {
        "kind": "kind",
        "verb": "verb",
        "schema": "schema",
        "config": verb,
        "inputs": "inputs",
        "units": "units",
    }
    for key, label in labels.items():
        difference = first_difference(old.get(key), new.get(key), label)
        if difference is not None:
            # `ripple run` makes a stage again when its inputs have changed, but not when its options have.
            kind = OtherOptionsError if label in ("kind", "verb", verb) else OtherInputsError
            raise kind(
                f"{directory} was written with different options or inputs: {difference}",
                hint="give another output directory, or remove this one",
            )


_ABSENT = object()


def first_difference(old: Any, new: Any, label: str) -> str | None:
    """The first key, in sorted order, at which two JSON values differ, as `fetch.size: 64 -> 96`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            found = first_difference(old.get(key, _ABSENT), new.get(key, _ABSENT), f"{label}.{key}")
            if found is not None:
                return found
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        found_all = (first_difference(a, b, f"{label}[{k}]") for k, (a, b) in pairs)
        return next((found for found in found_all if found is not None), None)
    same = old == new and type(old) is type(new)  # 1, 1.0 and true are equal in Python
    return None if same else f"{label}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    """A value as JSON, cut to 80 characters for a message."""
    text = "absent" if value is _ABSENT else json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def content_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest without `software` and the digest itself: the identity of the content."""
    core = {key: value for key, value in manifest.items() if key not in ("digest", "seal", "software")}
    return hashlib.sha256(canonical_json(core)).hexdigest()


def render(manifest: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest or another record; `seal` is a checksum of everything else in it."""
    open_part = {key: value for key, value in manifest.items() if key != "seal"}
    seal = hashlib.sha256(canonical_json(open_part)).hexdigest()
    return json.dumps({**open_part, "seal": seal}, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def unseal(path: Path, data: bytes) -> Json:
    """The record from which `render` made these bytes.

    Raises
    ------
    IntegrityError
        `render` would not give these bytes, so they are damaged.
    """
    try:
        value: Json = json.loads(data)
        # Byte by byte: JSON would also accept other spaces, and keys that occur twice.
        whole = isinstance(value, dict) and render(value) == data
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise IntegrityError(f"{path}: damaged", hint=REDO)
    return value


def parse_manifest(path: Path, data: bytes) -> Json:
    """The manifest in `data`, after verifying its seal and its layout.

    Raises
    ------
    IntegrityError
        It is damaged, or lacks something that `ripple.storage.schema` requires.
    InputError
        It has another schema.
    """
    damaged = IntegrityError(f"{path}: damaged", hint=REDO)
    if len(data) > MAX_MANIFEST_BYTES:
        raise damaged
    manifest = unseal(path, data)
    if manifest.get("digest") != content_digest(manifest):
        raise damaged
    if manifest.get("schema") != SCHEMA:
        raise InputError(f"{path}: schema {manifest.get('schema')}, but this version reads {SCHEMA}")
    check_layout(path, manifest)
    return manifest


def read_manifest(directory: Path, *kinds: str) -> Json:
    """The manifest of a finished directory, which must be one of `kinds` when any are given.

    Raises
    ------
    InputError
        The directory does not exist, is not finished, of another kind, or written by a newer version.
    IntegrityError
        The manifest is damaged.
    """
    path = directory / MANIFEST
    # A broken link does not exist, but is damage rather than an unfinished directory.
    if not path.exists() and not path.is_symlink():
        raise _unfinished(directory)
    manifest = parse_manifest(path, read_whole(path))
    if kinds and manifest["kind"] not in kinds:
        raise InputError(f"{directory} contains {manifest['kind']}, not {' or '.join(kinds)}")
    return manifest


def _unfinished(directory: Path) -> InputError:
    """What to tell the user about a directory without a manifest."""
    if not directory.is_dir():
        return InputError(f"{directory}: no such directory")
    if not any((directory / name).is_file() for name in BEGUN):
        return InputError(f"{directory} was not written by RIPPLe: it has no {MANIFEST}")
    if is_locked(directory):
        return InputError(
            f"{directory} is not finished: another process is writing it", hint="wait until it has finished"
        )
    return InputError(f"{directory} is not finished", hint="run the command that began it again to resume")


def is_finished(directory: Path) -> bool:
    """Whether the directory is finished, and every file has its size."""
    try:
        check_files(directory, read_manifest(directory))
    except (InputError, IntegrityError):
        return False
    return True


def files_of(directory: Path, manifest: Mapping[str, Any]) -> FileList:
    """Every file that a manifest lists, with size and SHA-256."""
    listed = parse_listing(directory / MANIFEST, manifest.get("files", {}))
    shards = {shard["name"]: (shard["bytes"], shard["sha256"]) for shard in manifest.get("shards", ())}
    if entry := manifest.get("index"):
        listed[INDEX] = (entry["bytes"], entry["sha256"])
    return shards | listed


def check_files(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Raise `IntegrityError` when a file that a manifest lists is missing or has another size."""
    for name, (size, _) in files_of(directory, manifest).items():
        check_size(directory / name, size)


def write_manifest(directory: Path, identity: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Finish a directory, in which everything else is on disk already.

    Parameters
    ----------
    directory
        Where the files are.
    identity
        From `identity_of`.
    facts
        `files` (name -> size and SHA-256) and, for artefacts, what `ripple.storage.schema` asks for.

    Raises
    ------
    WriteError
        The manifest could not be written; there is none then.
    IntegrityError
        No reader would accept these facts.
    """
    manifest: Json = {**identity, **facts, "software": software()}
    manifest = json.loads(canonical_json(manifest))
    manifest["digest"] = content_digest(manifest)
    # A mistake is found now, not by everybody who reads the directory later.
    check_layout(directory / MANIFEST, manifest)
    try:
        write_atomic(directory / MANIFEST, render(manifest))
    except WriteError:
        # It may have its name already, but after a failed fsync the directory must not look finished.
        with suppress(OSError):
            (directory / MANIFEST).unlink()
        raise
