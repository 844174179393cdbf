"""The manifest of an artefact: its identity, its checksums, and the names of the files beside it."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ripple.config import Config, canonical_json
from ripple.errors import ConfigError, InputError, IntegrityError, OtherInputsError
from ripple.storage.schema import check_layout

if TYPE_CHECKING:
    pass
from typing import TYPE_CHECKING

SCHEMA = 1
MAX_MANIFEST_BYTES = 1 << 28
REDO = "restore it from a copy, or remove the directory and run again"


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
        Size and digest of the file.
    extra
        Facts of the unit as JSON values, e.g. `{"rejected": {"12": ["no_dataset", ""]}, "profile": {...}}`.
    """

    name: str
    rows: int
    bytes: int
    sha256: str
    extra: dict[str, Any] = field(default_factory=dict)


def software() -> dict[str, str]:
    """Versions of what decides bytes; a run is resumed only by the same ones."""
    names = ("numpy", "scipy", "h5py", "pyarrow", "torch", "lsst-images", "lsst-daf-butler")
    found = {"python": platform.python_version(), "ripple": metadata.version("ripple-lsst")}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def identity_of(kind: str, config: Config, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two runs the same artefact, as JSON values."""
    core = {
        "kind": kind,
        "schema": SCHEMA,
        "verb": config.verb,
        "config": config.canonical(),
        "config_digest": config.digest(),
        "inputs": dict(inputs),
    }
    plain: dict[str, Any] = json.loads(canonical_json(core))
    return plain


def refuse_other(directory: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise when the directory was begun with another kind, config or inputs; names the first difference."""
    verb = str(new["verb"])
    for key, label in (
        ("kind", "kind"),
        ("schema", "schema"),
        ("config", verb),
        ("inputs", "inputs"),
        ("units", "units"),
    ):
        difference = first_difference(old.get(key), new[key], label)
        if difference is not None:
            kind = ConfigError if label in ("kind", verb) else OtherInputsError
            raise kind(
                f"{directory} was made with another configuration or other inputs: {difference}",
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
    same = old == new and type(old) is type(new)
    return None if same else f"{label}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = "absent" if value is _ABSENT else json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def content_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of all of the manifest but `software` and the digest itself: the identity of the content."""
    core = {key: value for key, value in manifest.items() if key not in ("digest", "seal", "software")}
    return hashlib.sha256(canonical_json(core)).hexdigest()


def render(manifest: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest, or of another record: any other bytes are damage. `seal` covers everything."""
    open_part = {key: value for key, value in manifest.items() if key != "seal"}
    seal = hashlib.sha256(canonical_json(open_part)).hexdigest()
    return json.dumps({**open_part, "seal": seal}, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def unseal(path: Path, data: bytes) -> dict[str, Any]:
    """What `render` made bytes of.

    Raises
    ------
    IntegrityError
        Other bytes than `render` makes.
    """
    try:
        value: dict[str, Any] = json.loads(data)
        whole = isinstance(value, dict) and render(value) == data
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise IntegrityError(f"{path}: damaged", hint=REDO)
    return value


def parse_manifest(path: Path, data: bytes) -> dict[str, Any]:
    """The manifest in `data`, its seal and its layout verified.

    Raises
    ------
    IntegrityError
        Damaged, or not what `ripple.storage.schema` asks for.
    InputError
        Of another schema.
    """
    damaged = IntegrityError(f"{path}: damaged", hint=REDO)
    if len(data) > MAX_MANIFEST_BYTES:
        raise damaged
    manifest = unseal(path, data)
    if manifest.get("digest") != content_digest(manifest):
        raise damaged
    if manifest.get("schema") != SCHEMA:
        raise InputError(f"{path}: schema {manifest.get('schema')}, this version reads {SCHEMA}")
    check_layout(path, manifest)
    return manifest


JOURNAL, INDEX, METRICS, MANIFEST = ".journal", "index.parquet", "metrics.json", "manifest.json"
