"""The contract of a model: what data it takes, readable and checked without torch."""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ripple.config import canonical_json
from ripple.errors import ConfigError, ContractError, InputError, IntegrityError
from ripple.imaging.batch import TensorBatch
from ripple.imaging.convolve import FILL
from ripple.imaging.normalize import SOFTENED
from ripple.learn.config import PsfInput
from ripple.learn.model.architecture import NAMES, TIMM_NAME, Architecture, Stem
from ripple.learn.model.calibrate import Calibration, ClassCalibration
from ripple.learn.model.provenance import Columns, Split, verdicts
from ripple.learn.model.uncertainty import Uncertainty
from ripple.storage.artefact import Artefact
from ripple.storage.checksums import read_verified
from ripple.storage.files import REDO
from ripple.storage.labels import lens_label, ranked_class, same_classes
from ripple.storage.manifest import files_of, read_manifest
from ripple.storage.schema import ClassMap

Output = Literal["lens", "classes", "regression"]
CONTRACT = "model.json"
MAX_CONTRACT_BYTES = 16 << 20
#: Origin of a model that was trained here.
TRAINED = "ripple train"


class Strict(BaseModel):
    """Frozen, no unknown keys, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_Positive = Annotated[float, Field(gt=0)]


class ArchitectureRecord(Strict):
    """`architecture.Architecture` in JSON."""

    name: str
    bands: int = Field(ge=1, le=64)
    size: int = Field(ge=8, le=2048)
    outputs: int = Field(ge=1, le=1000)
    stem: Stem = "small"
    width: int = Field(8, ge=1, le=256)
    dropout: float = Field(0.0, ge=0, lt=1)
    gives: Literal["logits", "probabilities"] = "logits"
    lens: Literal[0, 1] = 1

    @property
    def is_program(self) -> bool:
        """Whether the network is an ONNX program, see `Architecture`."""
        return self.architecture().is_program

    def architecture(self) -> Architecture:
        """The value that `network.build` takes; what cannot be a name is refused."""
        if not TIMM_NAME.fullmatch(self.name):
            raise ContractError(
                f"architecture.name: {self.name[:100]!r} cannot be a name",
                hint="a name of timm, or one of " + ", ".join(NAMES),
            )
        return Architecture(**self.model_dump())


class Member(Strict):
    """One set of weights: file, size, SHA-256, the seed it was trained with and its best epoch."""

    file: str = Field(pattern=r"^(model|member-\d+)\.(safetensors|onnx)$")
    bytes: int
    sha256: str
    seed: int = 0
    epoch: int = 0


class Judged(Strict):
    """How many rows the metrics rest on, and whether they are unseen (`test`) or nobody can say."""

    rows: int
    split: Literal["test", "unknown"] = "test"


class Known(BaseModel):
    """What readers need of `Contract.training`, which may say more."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)


class _Options(Known):
    tensors: tuple[str, ...] = ()
    fractions: tuple[float, float, float]
    split_seed: int
    split_column: str | None


class _Adapted(Known):
    method: str
    rows: int


class Training(Known):
    """The layout of `Contract.training`: `inputs` are digests of tensors, `config` the options of `train`.

    `grades` are digests of the candidates whose grades it learnt from.
    """

    inputs: tuple[str, ...] = ()
    config: _Options | None = None
    notes: tuple[str, ...] = ()
    grades: tuple[str, ...] = ()
    rows: dict[str, dict[str, int]] = {}
    adaptation: _Adapted | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.inputs and self.config is None:
            raise ValueError("inputs without the config they were trained with")
        return self


class Contract(Strict):
    """What a model is, and what data it takes.

    `lens_class` names the class that is ranked where it is not called lens. Label 1 of a lens finder is the
    lens. `output` is "lens" (one logit), "classes" (one logit per entry of `class_map`) or "regression"
    (`targets`, standardised with `target_mean` and `target_std`). `psf_fwhm` is None when the PSF was not
    homogenised. `pixels` is what they went through before they were normalised, see `pixels_of`; empty when
    nobody says. `noise_correlation` is that of the sky of the first tensors, by band, `(L, L)` coefficients
    at lags of up to L // 2 px: what readers elsewhere need to measure a noise; None for white noise.
    `input_mean` and `input_std`, by band, are subtracted and divided by after the normalisation, as networks
    of others want it (those of ImageNet after min-max); empty for none. With `psf_input` width, the network
    takes twice as many planes: after the bands, one for each of them with the FWHM of its PSF in arcsec, 0
    for none; `psf_seen` are the narrowest and the widest that it was trained on, by band.
    `split` says which rows were held out and what sky the others are on, None for a model from elsewhere;
    `calibration` is that of a lens finder, `class_calibration` that of several classes;
    `ancestors` the same of the models it was fine-tuned from. `judged` are the rows behind `metrics`.
    `threshold` is the operating point on `score`, chosen on validation sky.
    """

    schema_version: Literal[1] = 1
    architecture: ArchitectureRecord
    bands: tuple[str, ...] = Field(min_length=1)
    size: int
    pixel_scale: float = Field(gt=0)
    unit: str
    psf_fwhm: float | None
    normalization: dict[str, Any]
    pixels: dict[str, Any] = {}
    noise_correlation: dict[str, list[list[float]]] | None = None
    input_mean: tuple[float, ...] = ()
    input_std: tuple[_Positive, ...] = ()
    psf_input: PsfInput = "none"
    psf_seen: tuple[tuple[float, float], ...] = ()
    class_map: ClassMap
    lens_class: str = ""
    output: Output
    targets: tuple[str, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    threshold: float = 0.5
    calibration: Calibration = Calibration()
    class_calibration: ClassCalibration = ClassCalibration()
    uncertainty: Uncertainty | None = None
    split: Split | None = None
    ancestors: tuple[Split, ...] = ()
    members: tuple[Member, ...] = Field(min_length=1, max_length=100)
    training: dict[str, Any] = {}
    gates: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    judged: Judged | None = None
    licence: str = ""
    origin: str = TRAINED

    def digest(self) -> str:
        """SHA-256 that identifies the model in what is made with it.

        Fields at their defaults do not count: a later version with a new field gives the same digest.
        """
        return digest_of(self.model_dump(mode="json", exclude_defaults=True))

    @property
    def planes(self) -> tuple[str, ...]:
        """Names of the planes that the network takes: the bands, and the PSF of each where it sees them."""
        return self.bands + tuple(f"PSF of {band}" for band in self.bands if self.psf_input != "none")

    def ranked(self) -> tuple[int, bool]:
        """The label that `score` is about, and whether it is its probability (see `ranked_class`).

        Raises
        ------
        ConfigError
            No class is called lens, and `lens_class` names none.
        """
        if self.output == "lens":
            at = lens_label(self.class_map, self.lens_class, name=CONTRACT, option="lens_class")
            return at, True
        return ranked_class(self.class_map, self.lens_class, name=CONTRACT)

    def lens_labels(self) -> tuple[int, ...]:
        """The labels of what is searched for: of the lens, or of every class but the one that means none."""
        if self.output == "regression":
            return ()
        at, lens = self.ranked()
        return (at,) if lens else tuple(k for k in range(len(self.class_map)) if k != at)

    def verdicts(self, digest: str, columns: Columns, rows: int) -> NDArray[np.int8]:
        """`(N,)` what this model and its ancestors used rows for; see `provenance.verdicts`."""
        return verdicts((self.split or Split(), *self.ancestors), digest, columns, rows)

    def consistent(self) -> Self:
        """Refuse a contract whose fields contradict each other, naming the field."""
        arch = self.architecture
        outputs = {"lens": 1, "classes": len(self.class_map), "regression": len(self.targets)}[self.output]
        for name, want, have in (
            ("architecture.bands", len(self.planes), arch.bands),
            ("architecture.size", self.size, arch.size),
            ("architecture.outputs", outputs, arch.outputs),
            ("target_mean", len(self.targets), len(self.target_mean)),
            ("target_std", len(self.targets), len(self.target_std)),
        ):
            if want != have:
                raise ContractError(f"{CONTRACT}: {name} is {have}, the other fields need {want}")
        for name in ("input_mean", "input_std"):
            if self.input_mean or self.input_std:
                have = len(getattr(self, name))
                if self.psf_input != "none":
                    raise ContractError(f"{CONTRACT}: {name} cannot be used with psf_input {self.psf_input}")
                if have != len(self.bands):
                    raise ContractError(f"{CONTRACT}: {name} has {have} numbers for {len(self.bands)} bands")
        if self.psf_seen and len(self.psf_seen) != len(self.bands):
            raise ContractError(
                f"{CONTRACT}: psf_seen has {len(self.psf_seen)} ranges for {len(self.bands)} bands"
            )
        if len(set(self.bands)) != len(self.bands):
            raise ContractError(f"{CONTRACT}: bands {list(self.bands)} repeat")
        try:
            if self.output == "lens" and self.ranked()[0] != 1:
                raise ContractError(f"{CONTRACT}: class_map {self.class_map}: 1 is not the lens")
            if self.output == "classes":
                self.ranked()
        except ConfigError as err:
            raise ContractError(err.message, hint=err.hint) from None
        arch.architecture()
        try:
            Training.model_validate(self.training)
        except ValidationError as err:
            first = err.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(str(part)[:100] for part in ("training", *first["loc"]))
            raise ContractError(f"{CONTRACT}: {place}: {first['msg'][:200]}") from None
        return self


@dataclass(frozen=True)
class Facts:
    """The part of a tensor set that a contract speaks about.

    Parameters
    ----------
    bands, size, pixel_scale, unit, psf_fwhm, normalization, class_map
        As in `TensorBatch`; `size` is `(H, W)`.
    pixels
        From `pixels_of`.
    psf_known
        Whether the tensors say how wide the PSFs of their rows are.
    """

    bands: tuple[str, ...]
    size: tuple[int, int]
    pixel_scale: float
    unit: str
    psf_fwhm: float
    normalization: dict[str, Any]
    class_map: dict[str, str]
    pixels: dict[str, Any]
    psf_known: bool = False

    @classmethod
    def of(cls, batch: TensorBatch, artefact: Artefact | None = None) -> Facts:
        """The facts of one shard, with what its artefact says about its pixels."""
        h, w = batch.image.shape[2:]
        return cls(
            batch.bands,
            (h, w),
            batch.pixel_scale,
            batch.unit,
            batch.psf_fwhm,
            dict(batch.normalization),
            dict(batch.class_map),
            pixels_of(artefact) if artefact else {},
            all(f"psf_fwhm_{band}" in batch.catalog for band in batch.bands),
        )

    def agree(self, other: Facts, name: str) -> None:
        """Refuse shards that cannot be used together.

        Raises
        ------
        ContractError
            Names the field and both values.
        """
        for key, mine in asdict(self).items():
            theirs = getattr(other, key)
            if key == "class_map" and (not (mine and theirs) or same_classes(mine, theirs)):
                continue  # unlabelled, or numbered in another order
            if key == "pixels" and not (mine and theirs):
                continue  # nobody says how they were made
            if key == "psf_known":
                continue  # who needs it asks for it
            if not _same(mine, theirs):
                raise ContractError(f"{name}: {key} is {theirs}, the tensors before it have {mine}")


def pixels_of(artefact: Artefact) -> dict[str, Any]:
    """What the pixels of tensors went through before they were normalised, as their manifest says it.

    `psf` is `none`, `match` (each row to its broadest band) or `width` (all rows to `psf_fwhm`); where PSFs
    were matched, also the options of the matching, the `margin` in pixels that it could use around a stamp,
    and how the correlation of the noise was taken. `fill` is how bad pixels were filled, see
    `imaging.convolve.fill`. Empty for tensors that were not made by `preprocess`.
    """
    config = artefact.manifest.get("config", {})
    psf = config.get("psf") if artefact.manifest.get("verb") == "preprocess" else None
    if psf is None:
        return {}
    if psf == "none":
        return {"psf": "none", "fill": FILL}
    names = ["psf_tolerance", "noise_correlation"]
    kind = "match" if psf == "match" else "width"
    names += ["psf_profile", "psf_beta"] if kind == "width" else []
    found = {name: config[name] for name in names if name in config}
    return {"psf": kind, "margin": artefact.attributes.get("trimmed", 0), "fill": FILL, **found}


@dataclass(frozen=True, slots=True)
class Conversion:
    """What the user allows to be done to data that do not fit: nothing, unless said.

    Parameters
    ----------
    crop
        Cut larger images down to the size of the model, around their centre.
    reorder_bands
        Pick the bands of the model by name.
    resample
        Interpolate images of another pixel scale.
    """

    crop: bool = False
    reorder_bands: bool = False
    resample: bool = False


def check(contract: Contract, facts: Facts, allowed: Conversion, name: str) -> None:
    """Refuse data that break the contract.

    Parameters
    ----------
    contract
        Of the model.
    facts
        Of the data.
    allowed
        Conversions the user asked for.
    name
        What to call the data in the message.

    Raises
    ------
    ContractError
        Names the field, both values and the conversion that would help.
    """
    if contract.bands != facts.bands:
        present = set(contract.bands) <= set(facts.bands)
        if not (allowed.reorder_bands and present):
            hint = "--reorder-bands picks them by name" if present else "fetch these bands"
            raise _broken("bands", name, facts.bands, contract.bands, hint)
    same_scale = math.isclose(facts.pixel_scale, contract.pixel_scale, rel_tol=1e-3)
    if not same_scale and not allowed.resample:
        hint = f"preprocess with --pixel-scale {contract.pixel_scale:g}, or use --resample"
        raise _broken("pixel_scale", name, facts.pixel_scale, contract.pixel_scale, hint)
    side = tuple(scaled_side(s, facts, contract) for s in facts.size)
    if side != (contract.size, contract.size) and not (allowed.crop and min(side) >= contract.size):
        larger = f"larger cutouts are needed, or preprocess with --size {contract.size}, which pads them"
        hint = "--crop cuts to the centre" if min(side) >= contract.size else larger
        raise _broken("size", name, side, contract.size, hint)
    if facts.unit != contract.unit:
        raise _broken("unit", name, facts.unit, contract.unit, "preprocess in the unit of the model")
    if not _same_width(facts.psf_fwhm, contract.psf_fwhm):
        hint = "preprocess with --psf set to that of the model"
        raise _broken("psf_fwhm", name, facts.psf_fwhm, contract.psf_fwhm, hint)
    if contract.psf_input != "none" and not facts.psf_known:
        hint = "tensors of `ripple preprocess` have psf_fwhm_<band> when their cutouts have PSFs"
        raise _broken("psf_input", name, "not known", contract.psf_input, hint)
    ours, other = (effective(n, contract.unit) for n in (contract.normalization, facts.normalization))
    if field := _first_difference(ours, other, "normalization"):
        where, mine, theirs = field
        raise _broken(where, name, theirs, mine, "preprocess with the constants of the model")
    # Tensors from elsewhere say nothing about this; `unsaid` tells the user.
    want, have = contract.pixels, facts.pixels
    if want and have and want.get("psf") != have.get("psf"):
        want, have = ({"psf": p.get("psf")} for p in (want, have))  # all else follows from it
    if contract.origin != TRAINED:  # a sidecar may say no more than psf: none
        have = {key: have[key] for key in want if key in have}
    if want and have and (field := _first_difference(want, have, "pixels")):
        where, mine, theirs = field
        hint = "preprocess as the tensors of the model were: " + said(contract.pixels)
        raise _broken(where, name, theirs, mine, hint)
    if contract.output != "regression" and not _known_classes(facts.class_map, contract.class_map):
        raise _broken("class_map", name, facts.class_map, contract.class_map, "labels mean something else")


def effective(normalization: Mapping[str, Any], unit: str) -> dict[str, Any]:
    """What of a normalisation decides about pixel values: a sidecar need not say more.

    A softening belongs to methods whose scale is a noise, and `unit` is that of the data anyway.
    """
    idle = {"unit"} if normalization.get("unit") == unit else set()
    if normalization.get("method") not in SOFTENED or normalization.get("scope") == "dataset":
        idle.add("softening")
    return {key: value for key, value in normalization.items() if key not in idle}


def said(pixels: Mapping[str, Any]) -> str:
    """What pixels went through, in words: `psf match, margin 8, ...`."""
    first = sorted(pixels, key=lambda name: (name != "psf", name))
    return ", ".join(f"{name} {pixels[name]}" for name in first)


def unsaid(contract: Contract, artefact: Artefact) -> str:
    """What to tell the user about tensors that do not say how their pixels were made; empty if they do."""
    if not contract.pixels or pixels_of(artefact):
        return ""
    made = said(contract.pixels)
    return f"{artefact.directory} does not say how its pixels were made; those of the model: {made}"


def _known_classes(have: Mapping[str, str], want: Mapping[str, str]) -> bool:
    """Whether labels can be translated by name: same classes in any order, only the lens named, or none."""
    return not have or dict(have) == {"1": want.get("1")} or same_classes(have, want)


def _broken(field: str, name: str, have: Any, want: Any, hint: str) -> ContractError:
    return ContractError(f"{name}: {field} is {have}, the model takes {want}", hint=hint)


def scaled_side(side: int, facts: Facts, contract: Contract) -> int:
    """Side after resampling to the pixel scale of the model."""
    if math.isclose(facts.pixel_scale, contract.pixel_scale, rel_tol=1e-3):
        return side
    return int(side * facts.pixel_scale / contract.pixel_scale + 1e-6)


def _same_width(have: float, want: float | None) -> bool:
    if want is None or math.isnan(have):
        return want is None and math.isnan(have)
    return abs(have - want) <= 0.02


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-5)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return _first_difference(dict(a), dict(b), "") is None
    return bool(a == b)


def _first_difference(mine: Any, theirs: Any, path: str) -> tuple[str, Any, Any] | None:
    """Path and both values of the first difference of two JSON values; numbers agree to 1e-5."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key in sorted(mine.keys() | theirs.keys()):
            found = _first_difference(mine.get(key), theirs.get(key), f"{path}.{key}")
            if found:
                return found
        return None
    if isinstance(mine, list | tuple) and isinstance(theirs, list | tuple) and len(mine) == len(theirs):
        pairs = enumerate(zip(mine, theirs, strict=True))
        return next((d for k, (a, b) in pairs if (d := _first_difference(a, b, f"{path}[{k}]"))), None)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (mine, theirs))
    same = math.isclose(mine, theirs, rel_tol=1e-5, abs_tol=1e-12) if numbers else mine == theirs
    return None if same else (path, mine, theirs)


# --- writing and reading ---------------------------------------------------------------------------


def digest_of(record: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(canonical_json(record)).hexdigest()


def require_weights(contract: Contract, name: str, what: str) -> None:
    """Refuse an ONNX program where the weights of a network are needed.

    Raises
    ------
    ConfigError
        Names the model and what cannot be done with it.
    """
    if contract.architecture.is_program:
        raise ConfigError(f"{name} is an ONNX program, {what}", hint="import the weights of its network")


def load_contract(directory: Path) -> Contract:
    """Read the contract of a finished model.

    Raises
    ------
    InputError
        No model, or not finished.
    IntegrityError
        It is damaged or was edited.
    ContractError
        It contradicts itself.
    """
    files = files_of(directory, read_manifest(directory, "model"))
    path = directory / CONTRACT
    if CONTRACT not in files:
        raise IntegrityError(f"{path}: not in the manifest", hint=REDO)
    contract = parse_contract(path, read_verified(path, files[CONTRACT]))
    if any(files.get(m.file) != (m.bytes, m.sha256) for m in contract.members):
        raise IntegrityError(f"{path}: its members are not the weights in the manifest", hint=REDO)
    return contract


def parse_contract(path: Path, data: bytes) -> Contract:
    """The contract in the bytes of a `model.json`; errors as for `load_contract`."""
    try:
        if len(data) > MAX_CONTRACT_BYTES:
            raise ValueError(f"{len(data)} bytes, at most {MAX_CONTRACT_BYTES} are read")
        record = json.loads(data)
        contract = Contract.model_validate(record["contract"])
        intact = record["digest"] == digest_of(record["contract"])
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError) as err:
        raise IntegrityError(f"{path}: not a contract: {' '.join(str(err).split())[:200]}") from None
    if not intact:
        raise IntegrityError(
            f"{path}: its digest does not fit its content", hint="`ripple import-model` makes new contracts"
        )
    return contract.consistent()


def read_limited(path: Path, limit: int) -> bytes:
    """The bytes of a file, refused when larger than `limit`."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise IntegrityError(f"{path}: not a regular file")
        if found.st_size > limit:
            raise IntegrityError(f"{path}: {found.st_size} bytes, at most {limit} are read")
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as err:
        raise InputError(f"{path}: {err.strerror}") from None
