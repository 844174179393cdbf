"""A model says what data it takes; whatever breaks that, or the model itself, is refused by name."""

from __future__ import annotations

import dataclasses
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import list_again, make_contract, make_model
from toys import BANDS, NORMALIZATION, toy_batch, write_toys

from ripple.cli import run
from ripple.errors import ContractError, InputError, IntegrityError, RippleError
from ripple.imaging.batch import TensorBatch
from ripple.learn.model.contract import ArchitectureRecord, Conversion, Facts, check, load_contract
from ripple.learn.model.network import build
from ripple.learn.model.weights import convert, load_model, parse_weights, save_model
from ripple.storage.manifest import unseal

NONE = Conversion()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    contract = make_contract()
    torch.manual_seed(0)
    save_model(tmp_path / "model", contract, [build(contract.architecture.architecture()).state_dict()])
    return tmp_path / "model"


def facts(**changes: Any) -> Facts:
    batch: TensorBatch = toy_batch(2, 0)
    return dataclasses.replace(Facts.of(batch), **changes)


def test_fitting_data_pass() -> None:
    check(make_contract(), facts(), NONE, "x")
    check(make_contract(), facts(class_map={}), NONE, "x")  # unlabelled data can be scored
    check(make_contract(psf_fwhm=None), facts(psf_fwhm=float("nan")), NONE, "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bands": ("i", "r", "g")}, r"bands is \('i', 'r', 'g'\).*--reorder-bands"),
        ({"bands": ("g", "r", "z")}, r"bands is .*fetch these bands"),
        ({"size": (48, 48)}, r"size is \(48, 48\), the model takes 32 \(--crop"),
        ({"size": (24, 24)}, r"size is .*larger cutouts are needed"),
        (
            {"pixel_scale": 0.168},
            r"pixel_scale is 0.168, the model takes 0.2 \(preprocess with --pixel-scale 0.2",
        ),
        ({"unit": "adu"}, "unit is adu"),
        ({"psf_fwhm": 0.9}, "psf_fwhm is 0.9, the model takes 1.2"),
        ({"psf_fwhm": float("nan")}, "psf_fwhm is nan"),
        ({"normalization": {"method": "log"}}, "normalization.method is log, the model takes asinh"),
        (
            {"normalization": NORMALIZATION | {"scale": {"g": 2.0, "r": 1.0, "i": 1.0}}},
            r"normalization.scale.g is 2.0, the model takes 1.0",
        ),
        ({"class_map": {"0": "star", "1": "lens"}}, "class_map is .*'0': 'star'"),
    ],
)
def test_misfits_are_refused_by_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check(make_contract(), facts(**change), NONE, "shard-00000.h5")


def test_conversions_are_explicit_and_right() -> None:
    contract = make_contract(
        bands=("i", "g"), architecture=ArchitectureRecord(name="d4cnn", bands=2, size=32, outputs=1, width=1)
    )
    have = facts(size=(41, 40))
    check(contract, have, Conversion(crop=True, reorder_bands=True), "x")
    image = torch.arange(2 * 3 * 41 * 40, dtype=torch.float32).reshape(2, 3, 41, 40)
    out = convert(image, contract, have)
    assert out.shape == (2, 2, 32, 32)
    # The target stays in pixel S // 2, and the bands are those of the model.
    assert torch.equal(out[:, :, 16, 16], image[:, [2, 0], 20, 20])


def test_resampling_keeps_a_source_where_it_is() -> None:
    contract, have = make_contract(pixel_scale=0.2), facts(pixel_scale=0.1, size=(64, 64))
    check(contract, have, Conversion(resample=True), "x")
    y, x = np.mgrid[:64, :64]
    blob = np.exp(-(((x - 31.5) ** 2 + (y - 31.5) ** 2) / 50)).astype(np.float32)
    out = convert(torch.from_numpy(np.tile(blob, (1, 3, 1, 1))), contract, have)[0, 0].numpy()
    assert out.shape == (32, 32)
    centre = (out * np.arange(32)).sum() / out.sum()
    assert centre == pytest.approx(15.5, abs=0.01)
    assert 4 * out.sum() == pytest.approx(blob.sum(), rel=1e-3)


def test_contract_round_trip(model: Path) -> None:
    loaded = load_model(model)
    assert loaded.contract.bands == BANDS
    assert loaded.contract == load_contract(model)
    save_model(model.parent / "again", loaded.contract, [loaded.nets[0].state_dict()])
    for name in ("model.json", "model.safetensors"):
        assert (model.parent / "again" / name).read_bytes() == (model / name).read_bytes()


@pytest.mark.parametrize(
    ("change", "field"),
    [({"size": 48}, "architecture.size"), ({"bands": ("g",)}, "architecture.bands"),
     ({"output": "classes"}, "architecture.outputs"), ({"bands": ("g", "g", "r")}, "repeat")],
)  # fmt: skip
def test_contradictions_are_refused(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    with pytest.raises(ContractError, match=field):
        make_contract(**change).consistent()


def test_no_contract_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it has no manifest"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_every_mutation_is_refused(model: Path, name: str) -> None:
    path = model / name
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for k in range(150):
        data = bytearray(whole)
        at = int(rng.integers(len(data)))
        if k % 3 == 0:
            data = data[:at]
        else:
            data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(data))
        if name == "model.json" and _same_json(bytes(data), whole):
            continue  # a blank turned into another blank
        with pytest.raises(RippleError):
            load_model(model)


def _same_json(a: bytes, b: bytes) -> bool:
    try:
        return bool(json.loads(a) == json.loads(b))
    except ValueError:
        return False


def test_edited_contract_is_refused(model: Path) -> None:
    record = json.loads((model / "model.json").read_text())
    record["contract"]["class_map"] = {"0": "lens", "1": "nonlens"}
    (model / "model.json").write_text(json.dumps(record))
    with pytest.raises(IntegrityError, match="were written"):
        load_model(model)
    list_again(model)
    with pytest.raises(IntegrityError, match="digest"):
        load_model(model)


def _hostile() -> dict[str, bytes]:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (print, ("code ran",))

    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    outside = json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 1 << 40]}}).encode()
    huge = json.dumps({"w": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 16]}}).encode()
    return {
        "pickle": pickle.dumps(Bomb()),
        "empty": b"",
        "zip": b"PK\x03\x04" + bytes(100),
        "header bomb": struct.pack("<Q", 1 << 40) + b"{}",
        "header beyond the file": struct.pack("<Q", 1000) + b"{}",
        "no json": struct.pack("<Q", 8) + b"notjson!",
        "deep json": struct.pack("<Q", 100_000) + b"[" * 100_000,
        "offset outside": struct.pack("<Q", len(outside)) + outside + bytes(16),
        "huge shape": struct.pack("<Q", len(huge)) + huge + bytes(16),
        "hole": struct.pack("<Q", len(header)) + header + bytes(64),
    }


@pytest.mark.parametrize("kind", sorted(_hostile()))
def test_hostile_weights_are_refused(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(IntegrityError, match="not a safetensors file"):
        parse_weights(_hostile()[kind], "model.safetensors")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "kind", "nan"])
def test_weights_of_another_network_are_refused(tmp_path: Path, fault: str) -> None:
    contract = make_contract()
    state = dict(build(contract.architecture.architecture()).state_dict())
    match fault:
        case "missing":
            del state["head.bias"]
        case "extra":
            state["zz"] = torch.zeros(1)
        case "shape":
            state["head.bias"] = torch.zeros(2)
        case "kind":
            state["head.bias"] = torch.zeros(1, dtype=torch.int64)
        case "nan":
            state["head.bias"] = torch.tensor([float("nan")])
    save_model(tmp_path / "m", contract, [state])
    with pytest.raises(IntegrityError, match=r"zz|head\.bias"):
        load_model(tmp_path / "m")


def test_pixels_made_otherwise_are_refused_by_name() -> None:
    matched = {"psf": "match", "margin": 8, "psf_tolerance": 0.003, "noise_correlation": "measured"}
    contract = make_contract(pixels=matched)
    check(contract, facts(pixels=dict(matched)), Conversion(), "data")
    check(contract, facts(), Conversion(), "data")  # nobody says: `score` tells the user
    check(make_contract(), facts(pixels=matched), Conversion(), "data")
    for name, other in (
        ("psf", "none"),
        ("margin", 0),
        ("noise_correlation", "white"),
        ("psf_tolerance", 0.1),
    ):
        with pytest.raises(ContractError, match=rf"data: pixels.{name} is .*, the model takes") as err:
            check(contract, facts(pixels={**matched, name: other}), Conversion(), "data")
        assert "psf match, margin 8" in err.value.hint


# --- models from elsewhere, and out ---------------------------------------------------------------------


def sidecar(path: Path, **changes: Any) -> Path:
    record = make_contract(**changes).model_dump(mode="json")
    for key in (
        "members",
        "training",
        "gates",
        "metrics",
        "calibration",
        "split",
        "schema_version",
        "origin",
    ):
        del record[key]
    path.write_text(json.dumps(record))
    return path


RESNET = ArchitectureRecord(name="resnet18", bands=3, size=32, outputs=1, stem="standard")


def _foreign(path: Path, kind: str) -> torch.nn.Module:
    """A two-class ResNet-18 as a DeepLense student saves it."""
    import timm

    torch.manual_seed(3)
    net = timm.create_model("resnet18", in_chans=3, num_classes=2)
    net(3 + 2 * torch.randn(8, 3, 32, 32))  # so that the norms have something to fold
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
    net.eval()
    match kind:
        case "state_dict":
            torch.save(
                {"epoch": 7, "model_state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}},
                path,
            )
        case "torchscript":
            torch.jit.save(torch.jit.trace(net, torch.zeros(1, 3, 32, 32)), path)
        case "onnx":
            torch.onnx.export(net, (torch.zeros(1, 3, 32, 32),), str(path), dynamo=True, external_data=False)
        case "onnx, names lost":
            torch.onnx.export(net, (torch.zeros(1, 3, 32, 32),), str(path), dynamo=False)
    return net


@pytest.mark.parametrize("kind", ["state_dict", "torchscript", "onnx"])
def test_import_gives_the_scores_of_the_original(tmp_path: Path, kind: str) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    path = tmp_path / ("net.onnx" if kind == "onnx" else "net.pth")
    theirs = _foreign(path, kind)
    side = sidecar(tmp_path / "side.json", architecture=RESNET)
    assert run(["import-model", str(path), "--sidecar", str(side), "-o", str(tmp_path / "m")]) == 0
    model, image = load_model(tmp_path / "m"), torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        ours = torch.sigmoid(model.nets[0](image))[:, 0]
        torch.testing.assert_close(ours, theirs(image).softmax(1)[:, 1], atol=1e-6, rtol=0)


def test_onnx_without_names_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    _foreign(tmp_path / "net.onnx", "onnx, names lost")
    side = sidecar(tmp_path / "side.json", architecture=RESNET)
    found = run(
        ["import-model", str(tmp_path / "net.onnx"), "--sidecar", str(side), "-o", str(tmp_path / "m")]
    )
    assert found == 4
    assert "lost their names" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_import_refuses_code_and_half_sidecars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    side = sidecar(tmp_path / "side.json", architecture=RESNET)
    arguments = ["--sidecar", str(side), "-o", str(tmp_path / "m")]

    (tmp_path / "bomb.pth").write_bytes(_hostile()["pickle"])
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "other.pth").read_bytes()[:300])
    for name in ("bomb", "whole", "other", "cut"):
        assert run(["import-model", str(tmp_path / f"{name}.pth"), *arguments]) == 4, name
        assert "code ran" not in capsys.readouterr().out
    assert not (tmp_path / "m").exists()
    record = json.loads(side.read_text())
    del record["normalization"]
    side.write_text(json.dumps(record))
    assert run(["import-model", str(tmp_path / "other.pth"), *arguments]) == 3
    assert "normalization: Field required" in capsys.readouterr().err
    side.unlink()
    assert run(["import-model", str(tmp_path / "other.pth"), *arguments]) == 2


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_export_answers_as_the_model(model: Path, kind: str) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    target = model.parent / f"finder.{kind}"
    assert run(["export-model", str(model), "-o", str(target), "--format", kind]) == 0
    image = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        expected = load_model(model).nets[0](image).numpy()
    if kind == "onnx":
        import onnxruntime

        (got,) = onnxruntime.InferenceSession(target).run(None, {"image": image.numpy()})
    else:
        got = torch.export.load(target).module()(image).detach().numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert json.loads(target.with_suffix(".json").read_text())["bands"] == list(BANDS)


def test_nothing_unpickles() -> None:
    """`torch.load` and `pickle` stand nowhere but in the import of models, and there weights only."""
    for path in sorted((Path(__file__).parents[2] / "ripple").rglob("*.py")):
        text = path.read_text()
        assert "pickle.load" not in text, path
        if "torch.load(" in text:
            assert path.name == "exchange.py"
            assert text.count("torch.load(") == text.count("weights_only=True"), path


def test_models_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ripple.storage.manifest import content_digest, render

    model = make_model(tmp_path / "model")
    assert run(["export-model", str(model), "-o", str(tmp_path / "program.json")]) == 2
    assert "is where the contract of the export goes" in capsys.readouterr().err
    path = model / "manifest.json"
    record = unseal(path, path.read_bytes())
    record["files"].pop("model.safetensors")
    path.write_bytes(render({**record, "digest": content_digest(record)}))
    assert run(["verify", str(model)]) == 4
    assert "not the weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value"),
    [("training", {"inputs": 5}), ("training", {"inputs": ["a"]}), ("training", {"config": 5}),
     ("training", {"config": {"tensors": 5}}), ("training", {"adaptation": {"x": 1}}), ("pixel_scale", 0.0)],
)  # fmt: skip
def test_contracts_of_others(
    field: str, value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import hashlib

    from ripple.config import canonical_json

    model, toys = make_model(tmp_path / "model"), write_toys(tmp_path / "toys", shards=1, rows=20)
    contract = json.loads((model / "model.json").read_bytes())["contract"] | {field: value}
    record = {"contract": contract, "digest": hashlib.sha256(canonical_json(contract)).hexdigest()}
    (model / "model.json").write_text(json.dumps(record))
    list_again(model)
    for verb in ("score", "explain"):
        assert run([verb, str(model), str(toys), "-o", str(tmp_path / verb)]) in (2, 3, 4)
        said = capsys.readouterr().err
        assert field in said
        assert "model.json" in said
