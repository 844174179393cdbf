"""A model on disk: weights as safetensors, and the contract that says what data they are for.

    MODEL/model.safetensors        weights of the first member
    MODEL/member-1.safetensors     further members of an ensemble
    MODEL/latent.safetensors       features of training rows, for distances
    MODEL/history.csv, evaluation.json, curves.png    of models that were trained here
    MODEL/model.json               the contract, written last: no contract, no model. It lists all files

Weights count only when their digest is the one in the contract, their names and shapes are those of the
network the contract names, and every number is finite. Nothing here unpickles.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from ripple.config import canonical_json
from ripple.cutouts import TensorBatch
from ripple.errors import ContractError, InputError, IntegrityError
from ripple.files import make_directory, write_atomic
from ripple.learn.calibrate import Calibration
from ripple.learn.network import NAMES, Architecture, Net, Stem, build
from ripple.learn.uncertainty import Uncertainty
from ripple.listing import listed
from ripple.manifest import render, unseal

Output = Literal["lens", "classes", "regression"]
CONTRACT = "model.json"
MAX_CONTRACT_BYTES = 16 << 20
MAX_HEADER_BYTES = 16 << 20
MAX_WEIGHT_BYTES = 4 << 30
MAX_BANK_BYTES = 1 << 30
BANK_FILE = "latent.safetensors"
#: What lies beside the weights when it was made.
BESIDE = (BANK_FILE, "history.csv", "evaluation.json", "curves.png")


class Strict(BaseModel):
    """Frozen, no unknown keys, no NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ArchitectureRecord(Strict):
    """`network.Architecture` in JSON."""

    name: str
    bands: int = Field(ge=1, le=64)
    size: int = Field(ge=8, le=2048)
    outputs: int = Field(ge=1, le=1000)
    stem: Stem = "small"
    width: int = Field(8, ge=1, le=256)
    dropout: float = Field(0.0, ge=0, lt=1)

    def architecture(self) -> Architecture:
        """The value that `network.build` takes; unknown names are refused."""
        if self.name not in NAMES:
            raise ContractError(
                f"architecture.name: {self.name!r} is unknown", hint="known are " + ", ".join(NAMES)
            )
        return Architecture(**self.model_dump())


class Member(Strict):
    """One set of weights: file, size, SHA-256, the seed it was trained with and its best epoch."""

    file: str = Field(pattern=r"^(model|member-\d+)\.safetensors$")
    bytes: int
    sha256: str
    seed: int = 0
    epoch: int = 0


class SkySplit(Strict):
    """How the sky was divided, and the cells whose rows the network was trained or validated on."""

    seed: int
    nside: int
    fractions: tuple[float, float, float]
    train: tuple[int, ...] = ()
    validation: tuple[int, ...] = ()


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
    """The layout of `Contract.training`: `inputs` are digests of tensors, `config` the options of `train`."""

    inputs: tuple[str, ...] = ()
    config: _Options | None = None
    notes: tuple[str, ...] = ()
    rows: dict[str, dict[str, int]] = {}
    adaptation: _Adapted | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.inputs and self.config is None:
            raise ValueError("inputs without the config they were trained with")
        return self


class Contract(Strict):
    """What a model is, and what data it takes.

    `output` is "lens" (one logit), "classes" (one logit per entry of `class_map`) or "regression" (`targets`,
    standardised with `target_mean` and `target_std`). `psf_fwhm` is None when the PSF was not homogenised.
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
    class_map: dict[str, str]
    output: Output
    targets: tuple[str, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    threshold: float = 0.5
    calibration: Calibration = Calibration()
    uncertainty: Uncertainty | None = None
    split: SkySplit | None = None
    members: tuple[Member, ...] = Field(min_length=1, max_length=100)
    training: dict[str, Any] = {}
    gates: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    licence: str = ""
    origin: str = "ripple train"

    def digest(self) -> str:
        """SHA-256 that identifies the model in what is made with it.

        Fields at their defaults do not count: a later version with a new field gives the same digest.
        """
        return _digest(self.model_dump(mode="json", exclude_defaults=True))

    def consistent(self) -> Self:
        """Refuse a contract whose fields contradict each other, naming the field."""
        arch = self.architecture
        outputs = {"lens": 1, "classes": len(self.class_map), "regression": len(self.targets)}[self.output]
        for name, want, have in (
            ("architecture.bands", len(self.bands), arch.bands),
            ("architecture.size", self.size, arch.size),
            ("architecture.outputs", outputs, arch.outputs),
            ("target_mean", len(self.targets), len(self.target_mean)),
            ("target_std", len(self.targets), len(self.target_std)),
        ):
            if want != have:
                raise ContractError(f"{CONTRACT}: {name} is {have}, the other fields need {want}")
        if len(set(self.bands)) != len(self.bands):
            raise ContractError(f"{CONTRACT}: bands {list(self.bands)} repeat")
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
    """

    bands: tuple[str, ...]
    size: tuple[int, int]
    pixel_scale: float
    unit: str
    psf_fwhm: float
    normalization: dict[str, Any]
    class_map: dict[str, str]

    @classmethod
    def of(cls, batch: TensorBatch) -> Facts:
        """The facts of one shard."""
        h, w = batch.image.shape[2:]
        return cls(
            batch.bands, (h, w), batch.pixel_scale, batch.unit, batch.psf_fwhm,
            dict(batch.normalization), dict(batch.class_map),
        )  # fmt: skip

    def agree(self, other: Facts, name: str) -> None:
        """Refuse shards that cannot be used together.

        Raises
        ------
        ContractError
            Names the field and both values.
        """
        for key, mine in asdict(self).items():
            theirs = getattr(other, key)
            if not _same(mine, theirs) and not (key == "class_map" and not (mine and theirs)):
                raise ContractError(f"{name}: {key} is {theirs}, the tensors before it have {mine}")


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
        raise _broken("pixel_scale", name, facts.pixel_scale, contract.pixel_scale, "--resample interpolates")
    side = tuple(_scaled(s, facts, contract) for s in facts.size)
    if side != (contract.size, contract.size) and not (allowed.crop and min(side) >= contract.size):
        hint = "--crop cuts to the centre" if min(side) >= contract.size else "fetch larger cutouts"
        raise _broken("size", name, side, contract.size, hint)
    if facts.unit != contract.unit:
        raise _broken("unit", name, facts.unit, contract.unit, "preprocess in the unit of the model")
    if not _same_width(facts.psf_fwhm, contract.psf_fwhm):
        hint = "preprocess with --psf set to that of the model"
        raise _broken("psf_fwhm", name, facts.psf_fwhm, contract.psf_fwhm, hint)
    if field := _first_difference(contract.normalization, facts.normalization, "normalization"):
        where, mine, theirs = field
        raise _broken(where, name, theirs, mine, "preprocess with the constants of the model")
    if facts.class_map and contract.output != "regression" and facts.class_map != contract.class_map:
        raise _broken("class_map", name, facts.class_map, contract.class_map, "labels mean something else")


def _broken(field: str, name: str, have: Any, want: Any, hint: str) -> ContractError:
    return ContractError(f"{name}: {field} is {have}, the model takes {want}", hint=hint)


def _scaled(side: int, facts: Facts, contract: Contract) -> int:
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


def convert(image: Tensor, contract: Contract, facts: Facts) -> Tensor:
    """Images of data that passed `check`, as the network takes them.

    Parameters
    ----------
    image
        `(n, B', H', W')` float32.
    contract, facts
        Of the model and of the data.

    Returns
    -------
    `(n, B, size, size)` float32.
    """
    if contract.bands != facts.bands:
        image = image[:, [facts.bands.index(band) for band in contract.bands]]
    if not math.isclose(facts.pixel_scale, contract.pixel_scale, rel_tol=1e-3):
        side = [_scaled(s, facts, contract) for s in facts.size]
        image = torch.nn.functional.interpolate(
            image, size=side, mode="bicubic", align_corners=False, antialias=True
        )
    # A target sits in pixel S // 2 of a stamp of side S, before and after.
    y, x = (s // 2 - contract.size // 2 for s in image.shape[2:])
    return image[:, :, y : y + contract.size, x : x + contract.size]


# --- writing and reading ---------------------------------------------------------------------------


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(record)).hexdigest()


def member_file(k: int) -> str:
    """Name of the weights of member k."""
    return "model.safetensors" if k == 0 else f"member-{k}.safetensors"


def weight_bytes(state: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file of tensors."""
    from safetensors.torch import save

    data: bytes = save({k: v.detach().cpu().contiguous() for k, v in state.items()}, metadata)
    return data


def save_weights(path: Path, state: Mapping[str, Tensor]) -> bytes:
    """Write tensors as safetensors, atomically; returns the bytes written."""
    data = weight_bytes(state)
    write_atomic(path, data)
    return data


def save_model(directory: Path, contract: Contract, states: list[Mapping[str, Tensor]]) -> Contract:
    """Write a model directory; the contract comes last and lists the files, those of `BESIDE` too.

    Parameters
    ----------
    directory
        Where; made when absent.
    contract
        Its `members` give seed and epoch of each state; file, size and digest are filled in here.
    states
        Weights of the members.

    Returns
    -------
    The contract as written.
    """
    make_directory(directory)
    members = []
    for k, (state, member) in enumerate(zip(states, contract.members, strict=True)):
        data = save_weights(directory / member_file(k), state)
        facts = {"file": member_file(k), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        members.append(member.model_copy(update=facts))
    final = contract.model_copy(update={"members": tuple(members)}).consistent()
    stored = final.model_dump(mode="json")
    files = {m.file: (m.bytes, m.sha256) for m in members} | listed(directory, BESIDE)
    record = {"digest": _digest(stored), "contract": stored, "files": files}
    write_atomic(directory / CONTRACT, render(record))
    return final


def load_contract(directory: Path) -> Contract:
    """Read `model.json`.

    Raises
    ------
    InputError
        There is none.
    IntegrityError
        It is damaged or was edited.
    ContractError
        It contradicts itself.
    """
    path = directory / CONTRACT
    try:
        data = read_limited(path, MAX_CONTRACT_BYTES)
    except FileNotFoundError:
        raise InputError(f"{path}: not there", hint="train a model, or use `ripple import-model`") from None
    try:
        record = json.loads(data)
        contract = Contract.model_validate(record["contract"])
        intact = record["digest"] == _digest(record["contract"])
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError) as err:
        raise IntegrityError(f"{path}: not a contract: {' '.join(str(err).split())[:200]}") from None
    if not intact:
        raise IntegrityError(
            f"{path}: its digest does not fit its content", hint="`ripple import-model` makes new contracts"
        )
    if len(record) > 2:  # with a list of files: one seal is on all of it
        unseal(path, data)
    return contract.consistent()


def load_weights(path: Path, arch: Architecture, *, sha256: str | None = None) -> Net:
    """A network with weights from a safetensors file, every one of them checked.

    Parameters
    ----------
    path
        The file.
    arch
        Network that the weights must fit exactly.
    sha256
        Digest that the file must have; None for a file from elsewhere.

    Raises
    ------
    IntegrityError
        Other bytes, no safetensors, other names, shapes or kinds of number, or numbers that are not finite.
    """
    try:
        data = read_limited(path, MAX_WEIGHT_BYTES)
    except FileNotFoundError:
        raise IntegrityError(f"{path}: not there, the contract names it") from None
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise IntegrityError(f"{path}: {len(data)} bytes with another digest than the contract states")
    state = parse_weights(data, str(path))
    net = build(arch)
    fit_state(net, state, str(path))
    return net.eval()


def parse_weights(data: bytes, name: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file in memory; the header is bounded before it is parsed."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    header = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if not 2 <= header <= min(len(data) - 8, MAX_HEADER_BYTES):
        raise IntegrityError(f"{name}: not a safetensors file (header of {header} in {len(data)} bytes)")
    try:
        state: dict[str, Tensor] = load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError, AttributeError) as err:
        raise IntegrityError(f"{name}: not a safetensors file: {' '.join(str(err).split())[:150]}") from None
    # The library passes over what it does not know; nothing of ours holds anything else.
    known = {"dtype", "shape", "data_offsets"}
    for key, entry in json.loads(data[8 : 8 + header]).items():
        if key != "__metadata__" and not known >= entry.keys():
            more = min(entry.keys() - known)
            raise IntegrityError(f"{name}: tensor {key!r} has {more!r} in its header, which is not known")
    return state


def fit_state(net: Net, state: Mapping[str, Tensor], name: str) -> None:
    """Load weights after checking names, shapes, kinds and finiteness.

    Raises
    ------
    IntegrityError
        Names the first tensor that does not fit.
    """
    wanted = net.state_dict()
    for key in sorted(wanted.keys() | state.keys()):
        if key not in state or key not in wanted:
            what = "is missing" if key not in state else "does not belong to the network"
            raise IntegrityError(f"{name}: tensor {key!r} {what}", hint="the contract names another network")
        have, want = state[key], wanted[key]
        if have.shape != want.shape or have.is_floating_point() != want.is_floating_point():
            raise IntegrityError(
                f"{name}: tensor {key!r} is {have.dtype} {tuple(have.shape)}, "
                f"the network has {want.dtype} {tuple(want.shape)}"
            )
        if not bool(torch.isfinite(have).all()):
            raise IntegrityError(f"{name}: tensor {key!r} holds numbers that are not finite")
    net.load_state_dict(dict(state))


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


@dataclass(frozen=True)
class Bank:
    """Features of training rows: what distances are measured to.

    Parameters
    ----------
    features
        `(E, m, F)` float32, of each of E members.
    row, label
        `(m,)` int64 global row number over the training tensors, and label.
    """

    features: Tensor
    row: Tensor
    label: Tensor


def save_bank(directory: Path, bank: Bank) -> dict[str, Any]:
    """Write the features; returns their size and digest for the contract."""
    make_directory(directory)
    data = save_weights(
        directory / BANK_FILE, {"features": bank.features, "row": bank.row, "label": bank.label}
    )
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def load_bank(directory: Path, contract: Contract) -> Bank | None:
    """The features that the contract names; None when it names none.

    Raises
    ------
    IntegrityError
        Not there, other bytes, or other shapes.
    """
    if contract.uncertainty is None:
        return None
    path = directory / BANK_FILE
    try:
        data = read_limited(path, MAX_BANK_BYTES)
    except FileNotFoundError:
        raise IntegrityError(f"{path}: not there, the contract names it") from None
    if hashlib.sha256(data).hexdigest() != contract.uncertainty.sha256:
        raise IntegrityError(f"{path}: {len(data)} bytes with another digest than the contract states")
    found = parse_weights(data, str(path))
    if set(found) != {"features", "row", "label"} or found["features"].ndim != 3:
        raise IntegrityError(f"{path}: not a bank of features")
    features, row, label = found["features"], found["row"], found["label"]
    if not bool(torch.isfinite(features).all()) or not features.shape[1] == len(row) == len(label):
        raise IntegrityError(f"{path}: features that are not finite, or columns of different lengths")
    if len(features) != len(contract.members):
        raise IntegrityError(f"{path}: features of {len(features)} members, not {len(contract.members)}")
    return Bank(features, row, label)


@dataclass(frozen=True)
class Model:
    """A contract and its members, ready to score.

    Parameters
    ----------
    directory
        Where it came from.
    contract
        See `Contract`.
    nets
        The members, in evaluation mode.
    bank
        Features of training rows; None for models from elsewhere.
    """

    directory: Path
    contract: Contract
    nets: tuple[Net, ...]
    bank: Bank | None = None

    def to(self, device: torch.device) -> Model:
        """The model on a device."""
        return Model(self.directory, self.contract, tuple(net.to(device) for net in self.nets), self.bank)

    def answer(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What each of E members says of images as they are.

        Parameters
        ----------
        image
            `(n, B, size, size)`.

        Returns
        -------
        Outputs `(n, E, outputs)` and features `(E, n, F)`.
        """
        features = [net.features(image) for net in self.nets]
        outputs = [net.head(f) for net, f in zip(self.nets, features, strict=True)]
        return torch.stack(outputs, 1), torch.stack(features)


def load_model(directory: Path) -> Model:
    """Read a model directory; nothing is trusted before it is checked.

    Raises
    ------
    InputError
        No contract.
    IntegrityError
        Damaged contract or weights.
    """
    contract = load_contract(directory)
    arch = contract.architecture.architecture()
    nets = tuple(load_weights(directory / m.file, arch, sha256=m.sha256) for m in contract.members)
    return Model(directory, contract, nets, load_bank(directory, contract))
