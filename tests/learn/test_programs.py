"""ONNX programs of others, run as they are: their scores are those of their own forward pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from models import make_contract, make_model
from numpy.typing import NDArray
from torch import nn
from toys import write_toys

from ripple import write_cutouts
from ripple.cli import run
from ripple.errors import ConfigError, ContractError, IntegrityError
from ripple.learn.config import ExportModelConfig, ImportModelConfig, ScoreConfig
from ripple.learn.data.dataset import TensorDataset
from ripple.learn.model.architecture import NAMES, Architecture
from ripple.learn.model.contract import ArchitectureRecord
from ripple.learn.model.exchange import export_model, import_model
from ripple.learn.model.network import build
from ripple.learn.model.weights import load_model
from ripple.learn.scoring.forward import member_outputs
from ripple.learn.scoring.score import score
from ripple.storage.artefact import verify

pytest.importorskip("onnxscript")
IMAGE = 3 * torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Finder(nn.Module):
    """A network that is none of ours: a sequential head, two outputs or one, a sigmoid or a softmax."""

    def __init__(self, outputs: int, last: str = "") -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 5, stride=2), nn.LeakyReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, outputs),
        )  # fmt: skip
        self.last = last

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits, or probabilities."""
        out: torch.Tensor = self.net(image)
        return out.softmax(1) if self.last == "softmax" else out.sigmoid() if self.last == "sigmoid" else out


def write_program(path: Path, net: nn.Module, *, dynamo: bool = True, rows: int | None = None) -> Path:
    """An ONNX file, of any number of rows or of a fixed one; by the newer exporter or the older."""
    image, net = torch.zeros(rows or 2, 3, 32, 32), net.eval()
    if dynamo:
        free = None if rows else {"image": {0: torch.export.Dim("n")}}
        torch.onnx.export(net, (image,), str(path), dynamo=True, dynamic_shapes=free, external_data=False)
    else:
        axes = {} if rows else {"image": {0: "n"}}
        torch.onnx.export(net, (image,), str(path), dynamo=False, input_names=["image"], dynamic_axes=axes)
    return path


def sidecar(
    path: Path, *, outputs: int = 1, changes: dict[str, Any] | None = None, **architecture: Any
) -> Path:
    record = make_contract().model_dump(mode="json", exclude_defaults=True)
    record.pop("members")
    record["architecture"] = {"name": "onnx", "bands": 3, "size": 32, "outputs": outputs, **architecture}
    path.write_text(json.dumps(record | (changes or {})))
    return path


def imported(
    tmp_path: Path, net: nn.Module, *, rows: int | None = None, dynamo: bool = True, **side: Any
) -> Path:
    source = write_program(tmp_path / "net.onnx", net, rows=rows, dynamo=dynamo)
    options = {"source": source, "sidecar": sidecar(tmp_path / "side.json", **side), "output": tmp_path / "m"}
    import_model(ImportModelConfig(**options))
    return tmp_path / "m"


@torch.inference_mode()
def scores(model: Path) -> torch.Tensor:
    return torch.sigmoid(load_model(model).nets[0](IMAGE))[:, 0]


@pytest.mark.parametrize("rows", [None, 1, 4])
def test_a_logit_whatever_the_rows_of_the_program(tmp_path: Path, rows: int | None) -> None:
    net = Finder(1)
    with torch.inference_mode():
        want = net(IMAGE).sigmoid()[:, 0]
    torch.testing.assert_close(scores(imported(tmp_path, net, rows=rows)), want, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("last", ["", "softmax"])
@pytest.mark.parametrize("lens", [0, 1])
def test_two_outputs_of_the_older_exporter(tmp_path: Path, last: str, lens: int) -> None:
    net = Finder(2, last)
    names = {str(lens): "lens", str(1 - lens): "galaxy"}
    gives = "probabilities" if last else "logits"
    model = imported(tmp_path, net, dynamo=False, gives=gives, changes={"class_map": names})
    with torch.inference_mode():
        out = net(IMAGE)
        want = (out if last else out.softmax(1))[:, lens]
    torch.testing.assert_close(scores(model), want, atol=1e-5, rtol=0)
    assert load_model(model).contract.class_map == {"0": "galaxy", "1": "lens"}


def test_a_sigmoid_and_the_means_of_imagenet(tmp_path: Path) -> None:
    net, mean, std = Finder(1, "sigmoid"), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    changes = {"input_mean": mean, "input_std": std}
    model = imported(tmp_path, net, gives="probabilities", changes=changes)
    with torch.inference_mode():
        want = net((IMAGE - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])[:, 0]
    torch.testing.assert_close(scores(model), want, atol=1e-5, rtol=0)


#: Ways to make numbers of fluxes `(n, 3, S, S)` nJy that networks of others want, as a sidecar says them.
CONSTANTS: dict[str, Any] = {
    "method": "asinh", "scope": "dataset", "offset": {"g": 1.0, "r": 2.0, "i": 3.0},
    "scale": {"g": 5.0, "r": 10.0, "i": 20.0},
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "imagenet": {
        "normalization": {"method": "minmax", "scope": "row"},
        "input_mean": [0.485, 0.456, 0.406], "input_std": [0.229, 0.224, 0.225],
    },
    "each image and band": {
        "normalization": {"method": "minmax", "scope": "band"},
        "input_mean": [0.5, 0.4, 0.3], "input_std": [0.25, 0.2, 0.1],
    },
    "constants": {"normalization": CONSTANTS},
    "constants and means": {
        "normalization": CONSTANTS, "input_mean": [0.1, 0.2, 0.3], "input_std": [1.0, 2.0, 3.0],
    },
}  # fmt: skip


def numbers_of(flux: NDArray[np.float64], way: dict[str, Any]) -> NDArray[np.float64]:
    """The same by hand."""
    how = way["normalization"]
    if how["method"] == "minmax":
        axes = (1, 2, 3) if how["scope"] == "row" else (2, 3)
        low, high = (f(flux, axis=axes, keepdims=True) for f in (np.min, np.max))
        out = (flux - low) / (high - low)
    else:
        offset, scale = (
            np.array([how[name][b] for b in "gri"])[:, None, None] for name in ("offset", "scale")
        )
        out = np.arcsinh((flux - offset) / scale)
    mean, std = (np.array(way.get(f"input_{n}", [d] * 3)) for n, d in (("mean", 0.0), ("std", 1.0)))
    return (out - mean[:, None, None]) / std[:, None, None]


@pytest.mark.parametrize("name", WAYS)
def test_fluxes_become_what_the_network_of_others_wants(tmp_path: Path, name: str) -> None:
    """From cutouts to scores by `preprocess --model`, with a sidecar that says what matters and no more."""
    rng, net = np.random.default_rng(0), Finder(1, "sigmoid")
    light = np.exp(-((np.mgrid[:32, :32] - 16) ** 2).sum(0) / 20) * rng.uniform(18, 120, (12, 3, 1, 1))
    flux = (rng.normal(0, 3, light.shape) + light).astype(np.float32)
    catalog = {"id": np.arange(12), "ra": 53 + 0.01 * np.arange(12), "dec": np.full(12, -27.0)}
    write_cutouts(tmp_path / "c", flux, "gri", catalog, variance=np.full_like(flux, 9), pixel_scale=0.2)
    record = {
        "architecture": {"name": "onnx", "bands": 3, "size": 32, "outputs": 1, "gives": "probabilities"},
        "bands": ["g", "r", "i"], "size": 32, "pixel_scale": 0.2, "unit": "nJy", "psf_fwhm": None,
        "pixels": {"psf": "none"}, "class_map": {"0": "nonlens", "1": "lens"}, "output": "lens",
    }  # fmt: skip
    (tmp_path / "s.json").write_text(json.dumps(record | WAYS[name]))
    source, base = write_program(tmp_path / "net.onnx", net), str(tmp_path)
    for arguments in (
        ["import-model", str(source), "--sidecar", f"{base}/s.json", "-o", f"{base}/m"],
        ["preprocess", f"{base}/c", "--model", f"{base}/m", "-o", f"{base}/t", "--dtype", "float32"],
        ["score", f"{base}/m", f"{base}/t", "-o", f"{base}/s", "--no-tta"],
    ):
        assert run([*arguments, "-q"]) == 0, arguments
    table = pq.read_table(tmp_path / "s" / "scores.parquet").sort_by("index")
    with torch.inference_mode():
        want = net(torch.from_numpy(numbers_of(flux.astype(np.float64), WAYS[name])).float())[:, 0].numpy()
    np.testing.assert_allclose(table["score"].to_numpy(), want, atol=1e-5)


def test_it_is_scored_through_the_command_line_and_can_be_verified(tmp_path: Path) -> None:
    net = Finder(1)
    source = write_program(tmp_path / "net.onnx", net)
    arguments = ["import-model", str(source), "--sidecar", str(sidecar(tmp_path / "s.json")), "-o"]
    assert run([*arguments, str(tmp_path / "m"), "-q"]) == 0
    assert run([*arguments, str(tmp_path / "m"), "-q"]) == 0  # again does nothing
    verify(tmp_path / "m")
    tensors = write_toys(tmp_path / "tensors", shards=1, rows=20)
    score(ScoreConfig(model=tmp_path / "m", tensors=(tensors,), output=tmp_path / "scores", tta=False))
    table = pq.read_table(tmp_path / "scores" / "scores.parquet").sort_by("index")
    data = TensorDataset(tensors)
    with torch.inference_mode():
        want = net(torch.from_numpy(data.read(data.rows)).float()).sigmoid()[:, 0].numpy()
    np.testing.assert_allclose(table["score"].to_numpy(), want, atol=1e-5)


def test_what_a_program_cannot_do_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(imported(tmp_path, Finder(1)))
    tensors = str(write_toys(tmp_path / "tensors", shards=1, rows=40))
    out = str(tmp_path / "out")
    for arguments in (
        ["train", tensors, "--init", model, "-o", out],
        ["export-model", model, "-o", str(tmp_path / "again.onnx")],
        ["explain", model, tensors, "-o", out],
        ["embed", model, tensors, "-o", out],
        ["score", model, tensors, "-o", out, "--precision", "bf16"],
    ):
        assert run(arguments) == 2, arguments
        assert "is an ONNX program" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"size": 16}, ContractError, "size"),
        ({"outputs": 3}, ContractError, "outputs"),
        ({"bands": 4}, ContractError, "bands"),
    ],
)
def test_a_sidecar_that_does_not_fit(
    tmp_path: Path, change: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        imported(tmp_path, Finder(1), **change)
    assert not (tmp_path / "m").exists()


def test_damaged_programs_are_refused(tmp_path: Path) -> None:
    model = imported(tmp_path, Finder(1))
    data = bytearray((model / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (model / "model.onnx").write_bytes(data)
    with pytest.raises(IntegrityError, match="digest"):
        load_model(model)
    (tmp_path / "cut.onnx").write_bytes(data[:100])
    side = sidecar(tmp_path / "side.json")
    with pytest.raises(IntegrityError, match="ONNX Runtime cannot read it"):
        import_model(ImportModelConfig(source=tmp_path / "cut.onnx", sidecar=side, output=tmp_path / "n"))
    (tmp_path / "net.pt2").write_bytes(b"PK")
    plain = sidecar(tmp_path / "plain.json", name="resnet18")
    with pytest.raises(IntegrityError, match="could run code"):
        import_model(ImportModelConfig(source=tmp_path / "net.pt2", sidecar=plain, output=tmp_path / "n"))


@pytest.mark.parametrize(
    "name", ["resnet50", "convnext_nano", "mobilenetv3_small_100", "deit_tiny_patch16_224"]
)
def test_networks_of_timm_are_built_and_imported(tmp_path: Path, name: str) -> None:
    import timm

    torch.manual_seed(0)
    fixed = {"img_size": 32} if "deit" in name else {}
    theirs = timm.create_model(name, in_chans=3, num_classes=2, **fixed).eval()
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    record = {"name": name, "stem": "standard"}
    side = sidecar(tmp_path / "side.json", **record)
    import_model(ImportModelConfig(source=tmp_path / "net.pth", sidecar=side, output=tmp_path / "m"))
    with torch.inference_mode():
        want = theirs(IMAGE).softmax(1)[:, 1]
    torch.testing.assert_close(scores(tmp_path / "m"), want, atol=1e-5, rtol=0)


class Joined(nn.Module):
    """A backbone of timm and a head of its own: as Zoobot saves it, or sequential."""

    def __init__(self, name: str, head: str) -> None:
        super().__init__()
        import timm

        torch.manual_seed(0)
        self.encoder = timm.create_model(name, num_classes=0)
        linear = nn.Linear(self.encoder.num_features, 2)
        layers = {"dropout": nn.Dropout(0.5), "linear": linear}
        self.head = nn.Sequential(*layers.values()) if head == "sequential" else nn.ModuleDict(layers)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Two logits."""
        out: torch.Tensor = self.encoder(image)
        for layer in self.head.children():
            out = layer(out)
        return out


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "head", "suffix"),
    [
        ("convnext_nano", "zoobot", ".pth"),
        ("convnext_nano", "zoobot", ".pt"),
        ("resnet18", "sequential", ".pth"),
    ],
)
def test_a_backbone_with_a_head_of_its_own(tmp_path: Path, name: str, head: str, suffix: str) -> None:
    net, source = Joined(name, head).eval(), tmp_path / f"net{suffix}"
    if suffix == ".pt":
        torch.jit.save(torch.jit.trace(net, torch.zeros(1, 3, 32, 32)), source)
    else:
        torch.save({"state_dict": net.state_dict(), "epoch": 3}, source)
    side = sidecar(tmp_path / "side.json", name=name, stem="standard")
    import_model(ImportModelConfig(source=source, sidecar=side, output=tmp_path / "m"))
    with torch.inference_mode():
        want = net(IMAGE).softmax(1)[:, 1]
    torch.testing.assert_close(scores(tmp_path / "m"), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_networks_of_torchvision_are_imported(tmp_path: Path, name: str) -> None:
    import torchvision

    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(num_classes=2).eval()
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    side = sidecar(tmp_path / "side.json", name=name, stem="standard")
    import_model(ImportModelConfig(source=tmp_path / "net.pth", sidecar=side, output=tmp_path / "m"))
    with torch.inference_mode():
        want = theirs(IMAGE).softmax(1)[:, 1]
    torch.testing.assert_close(scores(tmp_path / "m"), want, atol=1e-5, rtol=0)


# Each export takes some 5 s: by default one of them.
@pytest.mark.parametrize("name", ["d4cnn", *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES[1:])])
def test_our_own_exports_come_back_as_weights_and_as_programs(tmp_path: Path, name: str) -> None:
    record = ArchitectureRecord(name=name, bands=3, size=32, outputs=1, width=2)
    own = load_model(make_model(tmp_path / "own", architecture=record))
    export_model(ExportModelConfig(model=tmp_path / "own", output=tmp_path / "out" / "net.onnx"))
    contract = json.loads((tmp_path / "out" / "net.json").read_text())
    del contract["members"]
    program = {"name": "onnx", "bands": 3, "size": 32, "outputs": 1}
    with torch.inference_mode():
        # The program has the eight orientations in it.
        want = {"w": own.nets[0](IMAGE)[:, 0], "p": member_outputs(own.nets, IMAGE)[0].mean(1)[:, 0]}
    for kind, architecture in (("w", contract["architecture"]), ("p", program)):
        side = tmp_path / f"{kind}.json"
        side.write_text(json.dumps(contract | {"architecture": architecture}))
        source = tmp_path / "out" / "net.onnx"
        import_model(ImportModelConfig(source=source, sidecar=side, output=tmp_path / kind))
        torch.testing.assert_close(scores(tmp_path / kind), want[kind].sigmoid(), atol=1e-5, rtol=0)


def test_unknown_networks_are_named_with_near_ones() -> None:
    with pytest.raises(ConfigError, match="resnet50"):
        build(Architecture("resnet51", 3, 64, 1))
    with pytest.raises(ConfigError, match="cannot take images of 64 px"):
        build(Architecture("inception_v3", 3, 64, 1))
