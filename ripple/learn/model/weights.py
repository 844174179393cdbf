"""A model on disk: weights as safetensors, and the contract that says what data they are for.

    MODEL/model.safetensors        weights of the first member
    MODEL/member-1.safetensors     further members of an ensemble
    MODEL/model.onnx               in the place of weights: a program of others
    MODEL/latent.safetensors       features of training rows, for distances
    MODEL/history.csv, evaluation.json, curves.png    of models that were trained here
    MODEL/model.json               the contract
    MODEL/manifest.json            lists all files, written last: no manifest, no model

Weights count only when their digest is the one in the contract, their names and shapes are those of the
network the contract names, and every number is finite. Nothing here unpickles.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from ripple.errors import IntegrityError
from ripple.learn.model.architecture import Architecture
from ripple.learn.model.contract import (
    CONTRACT,
    Contract,
    Facts,
    digest_of,
    load_contract,
    read_limited,
    scaled_side,
)
from ripple.learn.model.distance import placed
from ripple.learn.model.network import Net, build
from ripple.learn.model.program import program_net
from ripple.storage.checksums import listed
from ripple.storage.files import make_directory, write_atomic
from ripple.storage.manifest import identity_of, write_manifest

MAX_HEADER_BYTES = 16 << 20
MAX_WEIGHT_BYTES = 4 << 30
MAX_BANK_BYTES = 1 << 30
BANK_FILE = "latent.safetensors"
HOST = torch.device("cpu")
#: What lies beside the weights when it was made.
BESIDE = (BANK_FILE, "history.csv", "evaluation.json", "curves.png")


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
        side = [scaled_side(s, facts, contract) for s in facts.size]
        image = torch.nn.functional.interpolate(
            image, size=side, mode="bicubic", align_corners=False, antialias=True
        )
    # A target sits in pixel S // 2 of a stamp of side S, before and after.
    y, x = (s // 2 - contract.size // 2 for s in image.shape[2:])
    return image[:, :, y : y + contract.size, x : x + contract.size]


def member_file(k: int, suffix: str = "safetensors") -> str:
    """Name of the weights of member k."""
    return f"model.{suffix}" if k == 0 else f"member-{k}.{suffix}"


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


def save_model(
    directory: Path, contract: Contract, states: Sequence[Mapping[str, Tensor] | bytes]
) -> Contract:
    """Write a model directory; the manifest comes last and lists the files, those of `BESIDE` too.

    Parameters
    ----------
    directory
        Where; made when absent.
    contract
        Its `members` give seed and epoch of each state; file, size and digest are filled in here.
    states
        Weights of the members, or programs.

    Returns
    -------
    The contract as written.
    """
    make_directory(directory)
    members = []
    for k, (state, member) in enumerate(zip(states, contract.members, strict=True)):
        if isinstance(state, bytes):
            name, data = member_file(k, "onnx"), state
            write_atomic(directory / name, data)
        else:
            name = member_file(k)
            data = save_weights(directory / name, state)
        facts = {"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        members.append(member.model_copy(update=facts))
    final = contract.model_copy(update={"members": tuple(members)}).consistent()
    stored = final.model_dump(mode="json")
    record = {"digest": digest_of(stored), "contract": stored}
    write_atomic(directory / CONTRACT, json.dumps(record, indent=1, sort_keys=True).encode() + b"\n")
    identity = identity_of(
        "model",
        final.origin.removeprefix("ripple "),
        final.training.get("config") or {},
        {"training": list(final.training.get("inputs") or ()), "contract": final.digest()},
    )
    names = (CONTRACT, *(m.file for m in members), *BESIDE)
    write_manifest(directory, identity, {"files": listed(directory, names)})
    return final


def load_weights(path: Path, arch: Architecture, *, sha256: str | None = None) -> Net:
    """A network with weights from a safetensors file, every one of them checked, or an ONNX program.

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
    if arch.is_program:
        return program_net(data, arch, str(path))
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


@dataclass(frozen=True)
class Bank:
    """Features of training rows: what distances are measured to.

    Parameters
    ----------
    features
        `(E, m, F)` float32, of each of E members, on the host.
    row, label
        `(m,)` int64 global row number over the training tensors, and label, on the host.
    device
        Where distances are computed.
    """

    features: Tensor
    row: Tensor
    label: Tensor
    device: torch.device = HOST

    @cached_property
    def places(self) -> Tensor:
        """`(E, m, F + 1)` as `distance` takes them, on the device: computed once for all batches."""
        return placed(self.features.to(self.device))

    def to(self, device: torch.device) -> Bank:
        """The bank with distances computed on a device."""
        return replace(self, device=device)


class Sealed(TypedDict):
    """Size and SHA-256 of a file."""

    bytes: int
    sha256: str


def save_bank(directory: Path, bank: Bank) -> Sealed:
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
        nets = tuple(laid_out(net, device).to(device) for net in self.nets)
        bank = None if self.bank is None else self.bank.to(device)
        return replace(self, nets=nets, bank=bank)


def laid_out(net: Net, device: torch.device) -> Net:
    """The network, its kernels in the memory layout that a device computes convolutions in; the same numbers.

    On GPUs channels vary fastest ("channels last"), as tensor cores take them. What a convolution gives has
    the layout of its kernel, so that all after the first one follow and nothing is copied.
    """
    # Kernels of d4cnn are made at every call from weights with five axes, and its norms split the channels.
    plain = all(parameter.ndim <= 4 for parameter in net.parameters())
    if device.type == "cuda" and plain:
        net.to(memory_format=torch.channels_last)
    return net


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
    nets = tuple(
        load_weights(directory / m.file, arch, sha256=m.sha256).standardise(
            contract.input_mean, contract.input_std
        )
        for m in contract.members
    )
    return Model(directory, contract, nets, load_bank(directory, contract))
