"""The manifest of an artefact: what makes two runs the same, the seal on its bytes, the conservation law."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ripple import __version__
from ripple.config import Config, canonical_json
from ripple.errors import ConfigError, InputError, IntegrityError

if TYPE_CHECKING:
    import pyarrow as pa

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
    found = {"python": platform.python_version(), "ripple": __version__}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def identity_of(kind: str, config: Config, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two runs the same artefact, as JSON values."""
    core = {
        "kind": kind, "schema": SCHEMA, "verb": config.verb, "config": config.canonical(),
        "config_digest": config.digest(), "inputs": dict(inputs),
    }  # fmt: skip
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
            raise ConfigError(
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
    """The bytes of a manifest: any other bytes are damage. `seal` covers everything, `software` too."""
    open_part = {key: value for key, value in manifest.items() if key != "seal"}
    seal = hashlib.sha256(canonical_json(open_part)).hexdigest()
    return json.dumps({**open_part, "seal": seal}, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def parse_manifest(path: Path, data: bytes) -> dict[str, Any]:
    damaged = IntegrityError(f"{path}: damaged", hint=REDO)
    if len(data) > MAX_MANIFEST_BYTES:
        raise damaged
    try:
        manifest: dict[str, Any] = json.loads(data)
        whole = isinstance(manifest, dict) and render(manifest) == data
    except (ValueError, RecursionError):
        raise damaged from None
    if not whole or manifest.get("digest") != content_digest(manifest):
        raise damaged
    if manifest.get("schema") != SCHEMA:
        raise InputError(f"{path}: schema {manifest.get('schema')}, this version reads {SCHEMA}")
    if not _well_formed(manifest):
        raise IntegrityError(f"{path}: not the layout of a manifest")
    return manifest


def _well_formed(manifest: Mapping[str, Any]) -> bool:
    """Types and names: a shard's name is made of its number, never a path from elsewhere."""
    shards, index, suffix = manifest.get("shards"), manifest.get("index"), manifest.get("suffix")
    if not isinstance(shards, list) or not isinstance(index, dict) or not isinstance(suffix, str):
        return False
    if not re.fullmatch(r"\.[a-z0-9]{1,10}", suffix) or not isinstance(manifest.get("kind"), str):
        return False
    wanted = {"name": str, "rows": int, "bytes": int, "sha256": str, "extra": dict}
    return all(
        isinstance(shard, dict)
        and set(shard) == set(wanted)
        and all(isinstance(shard[key], kind) for key, kind in wanted.items())
        and shard["name"] == f"shard-{k:05d}{suffix}"
        for k, shard in enumerate(shards)
    ) and {"rows", "bytes", "sha256"} <= set(index)


def check_law(index: pa.Table, shard_rows: list[int], *, asked: int | None = None) -> dict[str, int]:
    """The conservation law: accepted + rejected = asked for, and every row of every shard is somebody's.

    Columns `index` (distinct), `status` (`ok`, `partial` or `rejected`), `reason`, `shard`, `row` are
    required. A row with `shard >= 0` lies there; `ok` and `partial` rows must lie somewhere, `rejected` ones
    give a reason.

    Returns
    -------
    dict
        `asked`, `ok`, `partial`, `rejected`.

    Raises
    ------
    IntegrityError
        Names the first row or column at fault.
    """
    lacking = [
        name for name in ("index", "status", "reason", "shard", "row") if name not in index.column_names
    ]
    if lacking:
        raise IntegrityError(f"index has no column {lacking[0]!r}")
    number, shard, row = (index[name].to_numpy() for name in ("index", "shard", "row"))
    status = np.asarray(index["status"].to_pylist(), "U8")
    reason = np.array([value or "" for value in index["reason"].to_pylist()], np.str_)
    if asked is not None and len(number) != asked:
        raise IntegrityError(f"{asked} targets were asked for, the index has {len(number)}")
    known, counts = np.unique(number, return_counts=True)
    _law(counts > 1, known, "is there more than once")
    _law(~np.isin(status, ("ok", "partial", "rejected")), number, "has an unknown status")
    _law((status != "rejected") & (shard < 0), number, "is accepted and in no shard")
    _law((status == "rejected") & (reason == ""), number, "is rejected without a reason")
    placed = shard >= 0
    starts = np.concatenate([[0], np.cumsum(shard_rows, dtype=np.int64)])
    _law(placed & ((shard >= len(shard_rows)) | (row < 0)), number, "points outside the shards")
    at = shard[placed].astype(np.int64)
    _law(
        row[placed] >= np.asarray(shard_rows, np.int64)[at],
        number[placed],
        "points behind the end of its shard",
    )
    filled = np.bincount(starts[at] + row[placed], minlength=int(starts[-1]))
    if len(filled) and (filled != 1).any():
        first = int(np.flatnonzero(filled != 1)[0])
        k = int(np.searchsorted(starts, first, side="right")) - 1
        raise IntegrityError(
            f"row {first - starts[k]} of shard {k} belongs to {filled[first]} targets, not 1"
        )
    return {"asked": len(number)} | {
        name: int((status == name).sum()) for name in ("ok", "partial", "rejected")
    }


def _law(bad: Any, number: Any, what: str) -> None:
    if bad.any():
        raise IntegrityError(f"index row {int(number[bad][0])} {what}")
