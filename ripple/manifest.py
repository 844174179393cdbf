"""The manifest of an artefact: what makes two runs the same, the seal on its bytes, the conservation law."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ripple import __version__
from ripple.config import Config, canonical_json
from ripple.errors import ConfigError, InputError, IntegrityError, OtherInputsError
from ripple.layout import check_layout

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
        Damaged, or not what `ripple.layout` asks for.
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


def check_law(index: pa.Table, shard_rows: Sequence[int], *, asked: int | None = None) -> dict[str, int]:
    """The conservation law: accepted + rejected = asked for, and every row of every shard is somebody's.

    Columns `index` (distinct), `status` (`ok`, `partial` or `rejected`), `reason`, `shard`, `row` are
    required. A row with `shard >= 0` lies there; `ok` and `partial` rows must lie somewhere, `rejected` ones
    give a reason.

    Parameters
    ----------
    index
        One row per target.
    shard_rows
        Rows of each shard.
    asked
        Number of targets asked for, when known independently of `index`.

    Returns
    -------
    dict
        `asked`, `ok`, `partial`, `rejected`.

    Raises
    ------
    IntegrityError
        Names the first row or column at fault.
    """
    law = Law(shard_rows)
    law.add(index)
    return law.counts(asked)


#: Rows looked at together: their words are Python objects for a moment, a hundred bytes a row.
_PIECE = 65_536


class Law:
    """The conservation law over an index that comes in parts; a few bytes for each row are kept."""

    def __init__(self, shard_rows: Sequence[int]) -> None:
        self._rows = np.asarray(shard_rows, np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._rows, dtype=np.int64)])
        self._filled = np.zeros(int(self._starts[-1]), np.uint8)
        self._numbers: list[NDArray[np.int64]] = []
        self._counts = dict.fromkeys(("asked", "ok", "partial", "rejected"), 0)

    def add(self, index: pa.Table) -> None:
        """The next part; raises `IntegrityError` as `check_law` does."""
        import pyarrow as pa

        lacking = [k for k in ("index", "status", "reason", "shard", "row") if k not in index.column_names]
        if lacking:
            raise IntegrityError(f"index has no column {lacking[0]!r}")
        for name in ("index", "shard", "row"):
            column = index[name]
            if not pa.types.is_integer(column.type) or column.null_count:
                raise IntegrityError(f"index column {name!r} is {column.type}, not whole numbers throughout")
        for at in range(0, index.num_rows, _PIECE):
            self._add(index.slice(at, _PIECE))

    def _add(self, index: pa.Table) -> None:
        number, shard, row = (index[name].to_numpy() for name in ("index", "shard", "row"))
        status = np.asarray(index["status"].to_pylist(), "U8")
        bare = np.array([not value for value in index["reason"].to_pylist()], bool)
        self._numbers.append(number)
        _law(~np.isin(status, ("ok", "partial", "rejected")), number, "has an unknown status")
        _law((status != "rejected") & (shard < 0), number, "is accepted and in no shard")
        _law((status == "rejected") & bare, number, "is rejected without a reason")
        placed = shard >= 0
        _law(placed & ((shard >= len(self._rows)) | (row < 0)), number, "points outside the shards")
        at = shard[placed].astype(np.int64)
        _law(row[placed] >= self._rows[at], number[placed], "points behind the end of its shard")
        self._fill(self._starts[at] + row[placed])
        self._counts["asked"] += len(number)
        for name in ("ok", "partial", "rejected"):
            self._counts[name] += int((status == name).sum())

    def _fill(self, rows: NDArray[np.int64]) -> None:
        """Count how many own each row, up to 255."""
        known, count = np.unique(rows, return_counts=True)
        self._filled[known] = np.minimum(self._filled[known] + count, 255)

    def counts(self, asked: int | None = None) -> dict[str, int]:
        """After the last part: `asked`, `ok`, `partial`, `rejected`; raises as `check_law` does."""
        if asked is not None and self._counts["asked"] != asked:
            raise IntegrityError(f"{asked} targets were asked for, the index has {self._counts['asked']}")
        number = np.concatenate(self._numbers) if self._numbers else np.zeros(0, np.int64)
        if (np.diff(number) <= 0).any():
            known, count = np.unique(number, return_counts=True)
            _law(count > 1, known, "is there more than once")
        if (self._filled != 1).any():
            first = int(np.flatnonzero(self._filled != 1)[0])
            k = int(np.searchsorted(self._starts, first, side="right")) - 1
            raise IntegrityError(
                f"row {first - self._starts[k]} of shard {k} belongs to {self._filled[first]} targets, not 1"
            )
        return dict(self._counts)


def _law(bad: Any, number: Any, what: str) -> None:
    if bad.any():
        raise IntegrityError(f"index row {int(number[bad][0])} {what}")
