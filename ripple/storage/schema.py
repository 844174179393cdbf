"""What a manifest must contain: one model of all manifests, and one of the `attributes` of each kind.

A manifest may come from other people: its seal says that it is what they wrote, not that it is right. It is
checked once, when it is opened, and readers then rely on the keys that are named here. Further keys are
allowed, so that manifests of later versions can be read; they are shown and passed on, but never used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ripple.errors import IntegrityError
from ripple.storage.labels import LABEL

#: Rows are bounded by the bytes of their shard, so that no wrong number leads to a huge allocation.
ROWS_PER_BYTE = 64

#: Up to 2**62, so that sums stay within 64 bits.
Count = Annotated[int, Field(ge=0, le=1 << 62)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
#: A file beside the manifest, never a path.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Side = Annotated[int, Field(ge=1, le=1 << 20)]
#: Label as text -> class name.
ClassMap = dict[Annotated[str, Field(pattern=LABEL)], Annotated[str, Field(min_length=1)]]


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) != len(names):
        raise ValueError("a band occurs twice")
    return names


Bands = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=100)]],
    Field(min_length=1, max_length=64),
    AfterValidator(_distinct),
]


class _Part(BaseModel):
    """Strict: neither `true` nor `"5"` counts as a number."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")


class _Shard(_Part):
    # A record becomes a `ShardRecord`, which takes no other fields.
    model_config = ConfigDict(extra="forbid")

    name: str
    rows: Count
    bytes: Count
    sha256: Sha256
    extra: dict[str, Any]

    @model_validator(mode="after")
    def _bounded(self) -> _Shard:
        if self.rows > ROWS_PER_BYTE * self.bytes:
            raise ValueError(f"{self.rows} rows in {self.bytes} bytes")
        return self


def is_record(value: object) -> bool:
    """Whether these are the fields of a `ShardRecord`."""
    try:
        _Shard.model_validate(value)
    except ValidationError:
        return False
    return True


class _Index(_Part):
    rows: Count
    bytes: Count
    sha256: Sha256


class _Counts(_Part):
    asked: Count
    ok: Count
    partial: Count
    rejected: Count


class _Record(_Part):
    """What every manifest has, also those of models, pages, exports and surveys."""

    kind: str
    verb: str
    config: dict[str, Any]
    inputs: dict[str, Any]
    software: dict[str, str]
    files: dict[str, Annotated[list[Any], Field(min_length=2, max_length=2)]] = {}


class _Manifest(_Record):
    suffix: Annotated[str, Field(pattern=r"^\.[a-z0-9]{1,10}$")]
    shards: list[_Shard]
    index: _Index
    counts: _Counts
    attributes: dict[str, Any]

    @model_validator(mode="after")
    def _named(self) -> _Manifest:
        # Shards are opened by number; any other name could lead out of the directory.
        for k, shard in enumerate(self.shards):
            if shard.name != f"shard-{k:05d}{self.suffix}":
                raise ValueError(f"shard {k} is named {shard.name[:100]!r}")
        return self


class _Images(_Part):
    """Attributes of `cutouts` and `tensors`; `size` is a side, `[height, width]`, or null if rows differ."""

    bands: Bands
    size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    margin: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    class_map: ClassMap = {}
    source_sha256: dict[str, str] = {}
    notes: list[str] = []


class _Sorted(_Part):
    name: Name
    sha256: Sha256


class _Model(_Part):
    origin: str


# Of scores: the parts that reports and `ripple show` read.
class _Measure(_Part):
    value: float | None
    low: float = 0.0
    high: float = 0.0
    reason: str = ""


class _Judged(_Part):
    rows: Count
    split: Literal["test", "unknown"]


class _Stress(_Part):
    worst: str
    flip_rate: float


class _Visible(_Part):
    arc_sb_below: float
    lenses: int


class _Scores(_Part):
    bands: Bands
    rows: Count
    sorted: _Sorted
    model: _Model
    evaluation: dict[str, Any] = {}
    prevalence: Annotated[float, Field(gt=0, lt=1)] | None = None
    judged: _Judged | None = None
    stress: _Stress | None = None
    visible: _Visible | None = None
    lens_labels: list[Annotated[int, Field(ge=0, lt=10**6)]] = [1]

    @model_validator(mode="after")
    def _measures(self) -> _Scores:
        # Everything that looks like a measure is drawn in reports.
        found = [
            *self.evaluation.values(),
            (self.visible.model_extra or {}).get("auroc") if self.visible else 0,
        ]
        for measure in found:
            if isinstance(measure, dict) and ({"low", "value"} & measure.keys()):
                _Measure.model_validate(measure)
        return self


class _ModelName(_Part):
    digest: Sha256
    origin: str


class _Embeddings(_Part):
    bands: Bands
    rows: Count
    features: Annotated[int, Field(ge=1, le=1 << 20)]
    model: _ModelName


class _ScoreConfig(_Part):
    tensors: list[str] = []  # those of a search were never written


class _ScoreInputs(_Part):
    model: str
    tensors: list[str] = []


class _TensorInputs(_Part):
    cutouts: str | None = None


#: Kind of artefact -> key of the manifest -> what it must contain.
KINDS: dict[str, dict[str, type[BaseModel]]] = {
    "cutouts": {"attributes": _Images},
    "tensors": {"attributes": _Images, "inputs": _TensorInputs},
    "scores": {"attributes": _Scores, "inputs": _ScoreInputs, "config": _ScoreConfig},
    "embeddings": {"attributes": _Embeddings, "inputs": _ScoreInputs},
}


def check_layout(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raise when a manifest lacks a key that readers need, or has a value of the wrong kind there.

    Raises
    ------
    IntegrityError
        Names the file and the first such key.
    """
    _check(path, "", _Record, manifest)
    if manifest["kind"] in KINDS:
        _check(path, "", _Manifest, manifest)
    for key, model in KINDS.get(manifest["kind"], {}).items():
        _check(path, key, model, manifest[key])
    # Reports pair the tensors of a score with their checksums by position.
    if manifest["kind"] == "scores":
        named, known = (len(manifest[key].get("tensors", ())) for key in ("config", "inputs"))
        if named != known:
            raise IntegrityError(f"{path}: {named} tensors in config, but {known} in inputs", hint=HINT)


HINT = "it was not written by RIPPLe, or by a version that does not fit this one"


def _check(path: Path, key: str, model: type[BaseModel], value: Any) -> None:
    try:
        model.model_validate(value)
    except ValidationError as err:
        # One problem is enough to act on; values of a damaged file have no place in a message.
        first = err.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part)[:100] for part in (key, *first["loc"]) if part != "")
        raise IntegrityError(
            f"{path}: {place or 'manifest'}: {first['msg'].removeprefix('Value error, ')[:200]}", hint=HINT
        ) from None
