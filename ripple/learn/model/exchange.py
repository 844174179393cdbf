"""Import models from elsewhere and export ours: `ripple import-model` and `ripple export-model`.

Weights of a network we know can come from a `state_dict` (safetensors, or what `torch.save` wrote, read with
`weights_only`), from TorchScript or from ONNX. A sidecar says what data the model takes: it is the contract
without digests, and nothing is guessed. Weights go into our network, and TorchScript is never run; an ONNX
file is run as it is, by ONNX Runtime, if the sidecar says that the network is `onnx`.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from ripple.config import load_yaml
from ripple.errors import ConfigError, ContractError, IntegrityError, WriteError
from ripple.imaging.normalize import SOFTENED, transform
from ripple.learn.config import ExportModelConfig, ImportModelConfig
from ripple.learn.model.architecture import Architecture
from ripple.learn.model.contract import CONTRACT, Contract, Member, read_limited, require_weights
from ripple.learn.model.network import Net, build, timm_state
from ripple.learn.model.program import program_net
from ripple.learn.model.weights import (
    MAX_WEIGHT_BYTES,
    Model,
    fit_state,
    load_model,
    member_file,
    parse_weights,
    save_model,
)
from ripple.learn.scoring.forward import member_outputs
from ripple.runtime.summary import Summary
from ripple.storage.files import TEMPORARY, make_directory, remove_temporaries, write_single
from ripple.storage.labels import lens_label, lens_map
from ripple.storage.lock import LOCK, lock, unlock
from ripple.storage.manifest import MANIFEST

#: Largest difference of outputs between a model and its export; of outputs above 1, relative to them.
PARITY = 1e-5
#: Keys under which checkpoints of training scripts keep the weights, beside optimiser and epoch.
NESTED_KEYS = ("state_dict", "model_state_dict", "model", "net", "ema", "weights")
#: Prefixes left behind by wrappers: DataParallel, torch.compile, and modules that hold a network.
PREFIXES = ("module.", "model.", "net.", "nets.0.", "encoder.", "backbone.", "_orig_mod.")
#: Names that torch's exporter gives to constants of the program, which are not weights.
CONSTANT = re.compile(r"val_\d+")


# --- import -------------------------------------------------------------------------------------------------


def import_model(config: ImportModelConfig) -> Summary:
    """Make a model directory from a foreign checkpoint.

    Raises
    ------
    ConfigError
        There is no sidecar, or the output directory holds something else.
    ContractError
        The sidecar lacks a field or contradicts itself; the message names it.
    IntegrityError
        The file is damaged, holds more than weights, or the weights do not fit the network.
    """
    _refuse_other_files(config.output)
    contract, lens = read_sidecar(config.sidecar, config.lens_class)
    notes = []
    if contract.uncertainty is not None:
        # It judges by distances to the features of the training rows, which are in no checkpoint.
        contract = contract.model_copy(update={"uncertainty": None})
        notes.append("the model says nothing about unusual rows: no checkpoint carries its training rows")
    arch = contract.architecture.architecture()
    if arch.is_program:
        return _import_program(config, contract, lens, notes)
    net = build(arch)
    state = rename_weights(read_state(config.source), arch, net, lens)
    if config.source.suffix == ".onnx":
        # Exporters fold batch norms into convolutions by default.
        _fit_onnx(net, unfolded(state, arch, net), config.source)
    else:
        fit_state(net, state, str(config.source))
    facts: dict[str, int | str] = {
        "network": arch.name,
        "lens": _lens_line(contract),
        "parameters": sum(p.numel() for p in net.parameters()),
        "from": contract.origin,
    }
    done_before = not _save_once(config.output, contract, net.state_dict())
    return Summary("import-model", str(config.output), facts, done_before=done_before, notes=tuple(notes))


def _import_program(config: ImportModelConfig, contract: Contract, lens: int, notes: list[str]) -> Summary:
    """Make a model directory whose network is the ONNX file itself."""
    if config.source.suffix != ".onnx":
        raise ConfigError(
            f"{config.source} is no .onnx file, which a sidecar with architecture.name: onnx is about",
            hint="torch.onnx.export writes one, of TorchScript programs too",
        )
    # The label of a lens in the sidecar says which output means one; in the contract it is always 1.
    record = contract.architecture.model_copy(update={"lens": lens} if contract.output == "lens" else {})
    contract = contract.model_copy(update={"architecture": record})
    try:
        data = read_limited(config.source, MAX_WEIGHT_BYTES)
    except FileNotFoundError:
        raise ConfigError(f"the checkpoint {config.source} does not exist") from None
    program_net(data, record.architecture(), str(config.source))  # refused before anything is written
    facts: dict[str, int | str] = {
        "network": "ONNX program",
        "lens": _lens_line(contract),
        "bytes": len(data),
        "from": contract.origin,
    }
    done_before = not _save_once(config.output, contract, data)
    return Summary("import-model", str(config.output), facts, done_before=done_before, notes=tuple(notes))


def _lens_line(contract: Contract) -> str:
    """Which class the scores are about, for the user to check."""
    if contract.output == "regression":
        return "none, the model regresses"
    at, lens = contract.ranked()
    name = contract.class_map[str(at)]
    return f"class {name}" if lens else f"every class but {name}"


def _refuse_other_files(output: Path) -> None:
    """Refuse a directory with files of others; what a killed import left behind its lock file may stay."""
    if not output.is_dir() or (output / MANIFEST).exists():
        return
    names = sorted(path.name for path in output.iterdir())
    ours = {member_file(0), member_file(0, "onnx"), CONTRACT} if LOCK in names else set()
    if others := [name for name in names if name not in ours and not name.startswith((LOCK, TEMPORARY))]:
        raise ConfigError(
            f"{output} already holds {others[0]}, which is not part of a model", hint="give a new directory"
        )


def _save_once(output: Path, contract: Contract, state: dict[str, Tensor] | bytes) -> bool:
    """Write the model; False when the output holds the same model already.

    Raises
    ------
    ConfigError
        The output holds another model.
    """
    make_directory(output)
    handle = lock(output)
    try:
        # Under the lock: two imports at once must not both find the directory empty.
        remove_temporaries(output)
        if not (output / MANIFEST).exists():
            save_model(output, contract, [state])
            return True
        model = load_model(output)
    finally:
        unlock(handle)
    # `members` has checksums that the new contract does not have yet; the weights are compared instead.
    same = model.contract.model_copy(update={"members": contract.members}) == contract.consistent()
    if same and isinstance(state, bytes):
        same = hashlib.sha256(state).hexdigest() == model.contract.members[0].sha256
    elif same and not isinstance(state, bytes):
        old = model.nets[0].state_dict()
        same = all(torch.equal(state[key], old[key]) for key in state)
    if len(model.nets) != 1 or not same:
        raise ConfigError(f"{output} already holds another model", hint="give a new directory")
    return False


def read_sidecar(path: Path, lens_class: str = "") -> tuple[Contract, int]:
    """The contract that a sidecar describes, and which of two classes its network calls the lens.

    `members` and checksums are filled in when it is saved. Label 1 of the contract of a lens finder is the
    lens, whatever its number in the sidecar; `threshold` and `calibration` are about the lens.

    Parameters
    ----------
    path
        YAML or JSON.
    lens_class
        Name of the class that is ranked, where neither the sidecar nor its name says so.
    """
    if not path.exists():
        raise ConfigError(
            f"the sidecar {path} does not exist", hint="write one with the fields of model.json"
        )
    fields = load_yaml(path)
    member = Member(file="model.safetensors", bytes=0, sha256="")
    # The sidecar may name its origin, but never its members: those are what is imported.
    given = {"origin": "ripple import-model", **fields, "members": (member,)}
    if lens_class:
        given["lens_class"] = lens_class
    if given.get("output") == "lens" and not given.get("class_map"):
        raise ContractError(
            f"{path}: class_map is missing, and nothing else says which class a large output means",
            hint="write class_map: {0: nonlens, 1: lens} if it means a lens, {0: lens, 1: nonlens} if not",
        )
    try:
        contract, lens = Contract.model_validate(_text_keys(given)), 1
        if contract.output == "lens":
            own = lens_map(contract.class_map, contract.lens_class, name=str(path))
            if not set(contract.class_map) <= {"0", "1"}:
                raise ContractError(f"{path}: class_map: the labels of two classes are 0 and 1")
            lens = lens_label(contract.class_map, contract.lens_class, name=str(path), option="--lens-class")
            contract = contract.model_copy(update={"class_map": own})
        return contract.consistent(), lens
    except ConfigError as err:
        raise ContractError(err.message, hint=err.hint) from None
    except ContractError as err:
        raise ContractError(f"{path}: {err.message}", hint=err.hint) from None
    except ValidationError as err:
        first = err.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ContractError(f"{path}: {field}: {first['msg']}", hint="see model.json of any model") from None


def _text_keys(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with the labels of `class_map` as text: YAML reads `0: nonlens` as a number."""
    classes = fields.get("class_map")
    if not isinstance(classes, dict):
        return fields
    return {**fields, "class_map": {str(k): v for k, v in classes.items()}}


def read_state(path: Path) -> dict[str, Tensor]:
    """Named tensors of a checkpoint, whatever its kind.

    Raises
    ------
    ConfigError
        The file does not exist.
    IntegrityError
        It is damaged, or holds more than weights.
    """
    try:
        data = read_limited(path, MAX_WEIGHT_BYTES)
    except FileNotFoundError:
        raise ConfigError(f"the checkpoint {path} does not exist") from None
    if path.suffix == ".safetensors":
        return parse_weights(data, str(path))
    if path.suffix == ".onnx":
        return _onnx_state(data, str(path))
    if path.suffix == ".pt2":
        # torch.export.load falls back to unpickling, which runs what the file says.
        raise IntegrityError(
            f"{path}: reading a program of torch.export could run code",
            hint="give the model directory, its ONNX export, or the state_dict as safetensors",
        )
    # TorchScript and torch.save share the suffix .pt and the zip container: the content decides.
    if _is_torchscript(data):
        return _script_state(data, str(path))
    return _torch_state(data, str(path))


def _torch_state(data: bytes, name: str) -> dict[str, Tensor]:
    try:
        # weights_only refuses all but tensors and plain containers; the format has no other reader.
        value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as err:
        text = " ".join(str(err).split())[:160]
        raise IntegrityError(
            f"{name} cannot be read as plain weights: {text}", hint="save model.state_dict() and nothing else"
        ) from None
    for key in NESTED_KEYS:
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    if not isinstance(value, dict) or not all(isinstance(v, Tensor) for v in value.values()):
        raise IntegrityError(f"{name} holds no state_dict", hint="save model.state_dict() and nothing else")
    return {str(k): v for k, v in value.items()}


def _is_torchscript(data: bytes) -> bool:
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except (zipfile.BadZipFile, ValueError, OSError):
        return False
    # Only programs carry this member; a saved state_dict has data.pkl alone.
    return any(name.endswith("constants.pkl") for name in names)


def _script_state(data: bytes, name: str) -> dict[str, Tensor]:
    harmless = io.BytesIO(_without_code(data, name))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit itself is deprecated
            return dict(torch.jit.load(harmless, map_location="cpu").state_dict())
    except (RuntimeError, ValueError) as err:
        raise IntegrityError(
            f"{name} cannot be read as TorchScript: {str(err).splitlines()[0][:120]}"
        ) from None


def _without_code(data: bytes, name: str) -> bytes:
    """A copy of the archive; an archive that would run a method of the program when loaded is refused.

    `torch.jit.load` runs `__setstate__` in its interpreter, which can write files. A copy, because what was
    inspected must be what is loaded: two readers of zip files may see different members.
    """
    out = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
            members = old.infolist()
            # A zip bomb is refused by the sizes it declares, before anything is unpacked.
            if sum(m.file_size for m in members) > MAX_WEIGHT_BYTES:
                raise IntegrityError(f"{name} unpacks to more than {MAX_WEIGHT_BYTES} bytes")
            if len({m.filename for m in members}) != len(members):
                raise IntegrityError(f"{name}: two members of the archive have the same name")
            for member in members:
                content = old.read(member)
                if b"__setstate__" in content:
                    raise IntegrityError(
                        f"{name}: {member.filename} would run code when loaded",
                        hint="export the state_dict as safetensors",
                    )
                new.writestr(zipfile.ZipInfo(member.filename), content)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, ValueError, EOFError, RuntimeError) as err:
        raise IntegrityError(f"{name} cannot be read as TorchScript: {str(err)[:120]}") from None
    return out.getvalue()


def _onnx_state(data: bytes, name: str) -> dict[str, Tensor]:
    """Initialisers of an ONNX graph under their names in torch, the biases of convolutions too."""
    onnx, protobuf = _optional("onnx"), _optional("google.protobuf.message")
    try:
        graph = onnx.load_model_from_string(data).graph
        arrays = {t.name: onnx.numpy_helper.to_array(t).copy() for t in graph.initializer}
    except (protobuf.DecodeError, ValueError, TypeError, OSError) as err:
        raise IntegrityError(f"{name} cannot be read as ONNX: {' '.join(str(err).split())[:120]}") from None
    # The older exporter numbers its initialisers ("onnx::Conv_42"): which layer they were is gone.
    if any(key.startswith("onnx::") for key in arrays):
        raise IntegrityError(
            f"the weights in {name} have lost their names",
            hint="torch.onnx.export with dynamo=True keeps them; or run the file as it is, with "
            "architecture.name: onnx in the sidecar",
        )
    for node in graph.node:
        # The bias that a folded batch norm leaves behind is named by the exporter, not by torch.
        weight, bias = (*node.input, "", "", "")[1:3]  # inputs of a Conv: image, weight, and perhaps bias
        if node.op_type == "Conv" and weight.endswith(".weight") and bias in arrays:
            arrays[weight.removesuffix("weight") + "bias"] = arrays.pop(bias)
    weights = {key: array for key, array in arrays.items() if not CONSTANT.fullmatch(key)}
    return {key: torch.from_numpy(np.asarray(array)) for key, array in weights.items()}


def _optional(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(
            f"ONNX needs the package {module}, which is not installed", hint="install ripple-lsst[onnx]"
        ) from None


def rename_weights(
    state: dict[str, Tensor], arch: Architecture, net: Net, lens: int = 1
) -> dict[str, Tensor]:
    """Weights under our names: prefixes of wrappers removed, classifier -> head, two classes -> one logit.

    Parameters
    ----------
    state
        From `read_state`.
    arch
        Of the sidecar.
    net
        Built from it.
    lens
        Of a lens finder: the label that means a lens, 0 or 1.
    """
    own = net.state_dict()
    # Wrappers nest ("module.model."): one prefix at a time, until the names fit or none is left.
    while not set(own) <= set(state) and (p := next((p for p in PREFIXES if _all_start(state, p)), "")):
        state = {k.removeprefix(p): v for k, v in state.items()}
    state = _joined(state, net)
    # Exports of ours have our names already, even where a folded norm is missing.
    ours = any(key.startswith("backbone.") for key in state)
    if not set(own) <= set(state) and not ours and arch.name != "d4cnn":
        state = timm_state(arch, state)
    # Programs carry constants beside the weights: dropped. Batch counters do not affect a score and are often
    # left out: filled in from the new network.
    derived = {k for k, _ in net.named_buffers()} - set(own)  # computed when the network is built
    kept = {k: v for k, v in state.items() if k in own or k.startswith(("backbone.", "head."))}
    kept = {k: v for k, v in kept.items() if k not in derived}
    kept |= {k: v for k, v in own.items() if k.endswith("num_batches_tracked") and k not in kept}
    if arch.outputs == 1:
        # Softmax over two classes equals the sigmoid of the difference of the two logits. One logit is about
        # label 1: where that is no lens, its negative is about the lens.
        for key in ("head.weight", "head.bias"):
            if key in kept and kept[key].ndim and len(kept[key]) == 2:
                kept[key] = kept[key][lens : lens + 1] - kept[key][1 - lens : 2 - lens]
            elif key in kept and lens == 0:
                kept[key] = -kept[key]
    return kept


def _joined(state: dict[str, Tensor], net: Net) -> dict[str, Tensor]:
    """Weights of a network that was put together from a backbone and one linear layer, under our names.

    Those of Zoobot: `encoder.*` and `head.linear.weight`; of sequential heads: `backbone.*`, `fc.1.weight`.
    Other weights are returned as they are.
    """
    body = {f"backbone.{name}" for name in net.backbone.state_dict()}
    counters = {name for name in body if name.endswith("num_batches_tracked")}
    for prefix in PREFIXES:
        named = {_renamed(key, prefix): value for key, value in state.items()}
        rest = sorted(named.keys() - body)
        stem = rest[0].rpartition(".")[0] if rest else ""
        # What is left is one layer, and its weights are a matrix.
        linear = rest == [f"{stem}.bias", f"{stem}.weight"] and named[rest[1]].ndim == 2
        if linear and body - counters <= named.keys():
            bias, weight = (named.pop(key) for key in rest)
            return named | {"head.weight": weight, "head.bias": bias}
    return state


def _renamed(key: str, prefix: str) -> str:
    return "backbone." + key.removeprefix(prefix) if key.startswith(prefix) else key


def _all_start(state: dict[str, Tensor], prefix: str) -> bool:
    return bool(state) and all(key.startswith(prefix) for key in state)


def _fit_onnx(net: Net, state: dict[str, Tensor], path: Path) -> None:
    try:
        fit_state(net, state, str(path))
    except IntegrityError as err:
        raise IntegrityError(
            err.message, hint="torch.onnx.export with optimize=False does not change the weights"
        ) from None


def unfolded(state: dict[str, Tensor], arch: Architecture, net: Net) -> dict[str, Tensor]:
    """Put back, as identities, the batch norms that an exporter folded into the convolutions before them.

    Parameters
    ----------
    state
        From `rename_weights`.
    arch, net
        The network, and what it was built from.
    """
    state = dict(state)
    for norm, conv in _norms_after_convolutions(arch, net).items():
        module = net.get_submodule(norm)
        if f"{norm}.weight" in state or not isinstance(module, nn.BatchNorm2d):
            continue
        one = torch.ones(module.num_features)  # (C,)
        # The folded norm lives on in the convolution's weights and bias; our convolutions have no bias, so
        # the bias goes into the norm.
        state[f"{norm}.bias"] = state.pop(f"{conv}.bias", torch.zeros_like(one))
        state |= {f"{norm}.weight": one, f"{norm}.running_mean": torch.zeros_like(one)}
        state[f"{norm}.running_var"] = one - module.eps  # variance + eps = 1: exactly an identity
    return state


@torch.inference_mode()
def _norms_after_convolutions(arch: Architecture, net: Net) -> dict[str, str]:
    """Name of each batch norm that takes the output of a convolution -> name of that convolution.

    Found by running one image: the order of modules does not tell what is connected to what.
    """
    convolutions: list[tuple[Tensor, str]] = []
    found: dict[str, str] = {}

    def convolved(name: str) -> Any:
        return lambda _module, _given, output: convolutions.append((output, name))

    def normed(name: str) -> Any:
        def look(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
            for output, convolution in convolutions:
                if output is given[0]:  # the very tensor, not an equal one
                    found[name] = convolution

        return look

    hooks = [
        module.register_forward_hook(convolved(name))
        if isinstance(module, nn.Conv2d)
        else module.register_forward_pre_hook(normed(name))
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    net.eval()(torch.zeros(1, arch.bands, arch.size, arch.size))
    for hook in hooks:
        hook.remove()
    return found


# --- export -------------------------------------------------------------------------------------------------


class MemberMean(nn.Module):
    """Mean output of members and orientations, as `score` has it, as one network to export."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.nets = nn.ModuleList(model.nets)
        self.members = model.nets  # a plain tuple beside the list that registers the weights

    def forward(self, image: Tensor) -> Tensor:
        """`(n, B, size, size)` -> `(n, outputs)`: logits, or standardised quantities."""
        return member_outputs(self.members, image)[0].mean(1)


class FluxToScore(nn.Module):
    """From fluxes in nJy to what `score` prints, as one network: normalisation, members, turns, sigmoid.

    Parameters
    ----------
    model
        Normalised with constants of the data set, or with the noise of each row.

    Raises
    ------
    ConfigError
        Its normalisation takes other statistics of the pixels.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.mean, self.contract = MemberMean(model), model.contract
        how = model.contract.normalization
        self.method: Any = how.get("method")
        self.scope = how.get("scope")
        self.softening = float(how.get("softening", 1.0))
        self.needs_noise = self.scope in ("row", "band") and self.method in SOFTENED
        if not (self.needs_noise or self.scope == "dataset" or self.method == "none"):
            raise ConfigError(
                f"--with-preprocess: normalisation {self.method!r} with scope {self.scope!r} takes "
                "statistics of the good pixels of each row",
                hint="export without it, or train on tensors of --normalize asinh or --scope dataset",
            )
        if model.contract.psf_input != "none":
            raise ConfigError(
                "--with-preprocess: the network also takes the widths of the PSFs, which fluxes do not tell",
                hint="export without it: the planes with the widths come after those of the bands",
            )
        bands = model.contract.bands
        for name, missing in (("offset", 0.0), ("scale", 1.0)):
            values = how.get(name, {}) if self.scope == "dataset" else {}
            self.register_buffer(name, torch.tensor([float(values.get(b, missing)) for b in bands])[None])

    def forward(self, flux: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scores of rows with all bands, from fluxes `(n, B, size, size)` and sky noise `(n, B)`, nJy.

        The noise counts only with `needs_noise`.

        Returns
        -------
        `(n,)` scores of a lens finder, `(n, K)` probabilities of classes in balanced batches, or `(n, Q)`
        quantities in their units.
        """
        scale = self.scale
        if self.needs_noise:
            assert noise is not None
            # numpy's median: the mean of the two in the middle of an even number of bands.
            low, high = (noise.shape[1] - 1) // 2, noise.shape[1] // 2
            ranked = noise.sort(dim=1).values
            shared = (ranked[:, low : low + 1] + ranked[:, high : high + 1]) / 2
            scale = self.softening * (shared.expand_as(noise) if self.scope == "row" else noise)
        found: Tensor = self.mean(transform(flux, self.offset, scale, self.method))
        match self.contract.output:
            case "lens":
                return torch.sigmoid(found[:, 0])
            case "classes":
                return found.softmax(1)
        width, centre = torch.tensor(self.contract.target_std), torch.tensor(self.contract.target_mean)
        return found * width + centre


def example_inputs(model: Model, network: nn.Module) -> dict[str, Tensor]:
    """Four rows of input by name: two are traced, so that a batch size frozen into the program would show."""
    contract, generator = model.contract, torch.Generator().manual_seed(0)
    shape = (4, len(contract.planes), contract.size, contract.size)
    image = torch.randn(shape, generator=generator)
    if not isinstance(network, FluxToScore):
        return {"image": image}
    # Fluxes of a few noise levels, so that all of the normalisation is compared.
    noise = 1 + torch.rand(shape[:2], generator=generator)
    unit = noise if network.needs_noise else network.scale
    flux = {"flux": 5 * image * unit[..., None, None]}
    return flux | ({"noise": noise} if network.needs_noise else {})


def export_model(config: ExportModelConfig) -> Summary:
    """Write a model as ONNX or as a program of torch.export, its contract beside it, and compare the outputs.

    Raises
    ------
    ConfigError
        The output is another file, or the packages for ONNX are not installed.
    WriteError
        The outputs of the export differ from those of the model.
    """
    model = load_model(config.model)
    contract = model.contract
    require_weights(contract, str(config.model), "which is exported already")
    network = (FluxToScore(model) if config.with_preprocess else MemberMean(model)).eval()
    inputs = example_inputs(model, network)
    with torch.inference_mode():
        expected = network(*inputs.values()).numpy()
    data, got = (_to_onnx if config.format == "onnx" else _to_program)(network, inputs)
    # float32 has seven digits: a logit of 15 is not known to 1e-6.
    gap = float((np.abs(got - expected) / np.maximum(np.abs(expected), 1)).max())
    if not gap <= PARITY:  # written so that NaN fails too
        raise WriteError(
            f"{config.output} was not written: the outputs of the export differ from those of the model by "
            f"{gap:.2g}, at most {PARITY:g} is allowed"
        )
    if (config.output.parent / CONTRACT).exists():
        raise ConfigError(
            f"{config.output.parent} is a model directory, whose files are listed with checksums",
            hint="export to another directory",
        )
    beside = config.output.with_suffix(".json")
    if beside == config.output:
        raise ConfigError(
            f"{config.output} is where the contract of the export goes",
            hint="give another suffix, such as .onnx or .pt",
        )
    make_directory(config.output.parent)
    text = json.dumps(contract.model_dump(mode="json"), indent=1, sort_keys=True).encode()
    # The program comes last: an export that was killed has none, and the next run finishes it.
    files = {beside: text, config.output: data}
    missing = {path: content for path, content in files.items() if not _already_written(path, content)}
    for path, content in missing.items():
        write_single(path, content)
    facts = {
        "format": config.format,
        "members": len(model.nets),
        "bytes": len(data),
        "largest difference": gap,
    }
    return Summary("export-model", str(config.output), facts, done_before=not missing)


def _already_written(path: Path, data: bytes) -> bool:
    """Whether the file exists with these bytes.

    Raises
    ------
    ConfigError
        It exists with other bytes.
    """
    if not path.exists():
        return False
    if not path.is_file() or path.stat().st_size != len(data) or path.read_bytes() != data:
        raise ConfigError(f"{path} already exists and differs", hint="give another file name")
    return True


def _to_program(network: nn.Module, inputs: dict[str, Tensor]) -> tuple[bytes, NDArray[np.float32]]:
    rows, out = torch.export.Dim("n"), io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about PyTorch's own code, which nobody here can change
        two = tuple(value[:2] for value in inputs.values())
        program = torch.export.export(network, two, dynamic_shapes=tuple({0: rows} for _ in inputs))
        torch.export.save(program, out)
        # What was saved is compared, not what is in memory.
        again: Any = torch.export.load(io.BytesIO(out.getvalue())).module()
        return out.getvalue(), again(*inputs.values()).numpy()


def _to_onnx(network: nn.Module, inputs: dict[str, Tensor]) -> tuple[bytes, NDArray[np.float32]]:
    runtime = _optional("onnxruntime")
    _optional("onnxscript")  # needed by torch's exporter: better known before it starts
    rows = torch.export.Dim("n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            tuple(value[:2] for value in inputs.values()),
            dynamo=True,
            input_names=list(inputs),
            output_names=["score" if isinstance(network, FluxToScore) else "output"],
            dynamic_shapes={name: {0: rows} for name in inputs},
            verbose=False,
            # Weights keep their names and values, so that the file can be imported again; onnxruntime
            # optimises what it loads anyway.
            optimize=False,
        )
    if program is None:
        raise WriteError("torch.onnx.export returned no program")
    data: bytes = program.model_proto.SerializeToString()
    # On the CPU, as the model itself was run.
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return data, got
