"""Attribution against what must hold, and the pages in full."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import write_toys

from ripple.cli import run
from ripple.errors import ConfigError, DataError
from ripple.learn.config import ExplainConfig, TrainConfig
from ripple.learn.explain import attribution
from ripple.learn.explain.explain import embed, explain
from ripple.learn.model.architecture import Architecture
from ripple.learn.model.network import Net, build
from ripple.learn.training.train import train


class Linear(torch.nn.Module):
    """A backbone whose only feature is the weighted sum of the pixels."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.weight).sum((1, 2, 3))[:, None]


def first(outputs: torch.Tensor) -> torch.Tensor:
    return outputs[:, 0]


@pytest.fixture(scope="module")
def network() -> Net:
    torch.manual_seed(0)
    net = build(Architecture(bands=3, size=32, width=2)).eval()
    torch.nn.init.normal_(net.head.weight)
    return net


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_a_linear_network_is_its_weights() -> None:
    weight = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    net = Net(Linear(weight), 1, 1)
    torch.nn.init.ones_(net.head.weight)
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(attribution.saliency(net, x, first), weight.expand_as(x))
    parts = attribution.integrated_gradients(net, x, first, baseline=torch.zeros_like(x), steps=2)
    assert torch.allclose(parts, weight * x, atol=1e-6)
    gone = attribution.band_ablation(net, x, first)
    middle = x.flatten(2).median(2).values
    expected = ((middle[..., None, None] - x) * weight).sum((2, 3))
    assert torch.allclose(gone, expected, atol=1e-4)


def test_integrated_gradients_are_complete(network: Net, image: torch.Tensor) -> None:
    parts = attribution.integrated_gradients(network, image, first, steps=256)
    empty = image.flatten(2).median(2).values[..., None, None].expand_as(image)
    with torch.no_grad():
        change = first(network(image)) - first(network(empty))
    assert torch.allclose(parts.sum((1, 2, 3)), change, atol=0.02 * float(change.abs().max()) + 1e-3)


def test_the_same_as_captum(network: Net, image: torch.Tensor) -> None:
    captum = pytest.importorskip("captum.attr")
    theirs = captum.IntegratedGradients(network).attribute(
        image, torch.zeros_like(image), target=0, n_steps=128, method="riemann_middle"
    )
    ours = attribution.integrated_gradients(
        network, image, first, baseline=torch.zeros_like(image), steps=128
    )
    assert torch.allclose(ours, theirs.float(), atol=2e-3 * float(theirs.abs().max()))
    slope = captum.Saliency(network).attribute(image, target=0, abs=False)
    assert torch.allclose(attribution.saliency(network, image, first), slope, atol=1e-6)
    layer = captum.LayerGradCam(network, network.backbone.blocks[1])  # 4 x 4 of 32 x 32
    theirs = layer.attribute(image, target=0, relu_attributions=True)
    theirs = torch.nn.functional.interpolate(theirs, (32, 32), mode="bilinear", align_corners=False)[:, 0]
    found = attribution.grad_cam(network, image, first)
    assert found is not None
    if float(theirs.detach().amax()) > 0:
        assert np.corrcoef(found.flatten(), theirs.detach().flatten())[0, 1] > 0.7


def test_maps_turn_with_the_image(network: Net, image: torch.Tensor) -> None:
    a = attribution.activation(network, image)
    b = attribution.activation(network, torch.rot90(image, 1, (-2, -1)))
    assert a is not None
    assert b is not None
    assert torch.allclose(torch.rot90(a, 1, (-2, -1)), b, atol=1e-4)
    assert a.shape == (4, 32, 32)


def test_a_transformer_has_no_plane(image: torch.Tensor) -> None:
    net = Net(Linear(torch.ones(3, 32, 32)), 1, 1)
    assert attribution.grad_cam(net, image, first) is None


def test_principal_components_lie_along_the_spread() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4)) * np.array([1.0, 10.0, 0.1, 3.0])
    config = ExplainConfig.make({"model": "m", "tensors": ["t"], "output": "o"})
    flat = embed(x, config)
    assert abs(np.corrcoef(flat[:, 0], x[:, 1])[0, 1]) > 0.99
    assert abs(np.corrcoef(flat[:, 1], x[:, 3])[0, 1]) > 0.99
    assert embed(x[:, :1], config).shape == (500, 2)


# --- pages ------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, Any]]] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))


HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("explain")
    ids = np.array([HOSTILE, *[f"obj{k}" for k in range(1, 120)]])
    norms = {f"norm_offset_{b}": np.zeros(120) for b in "gri"} | {
        f"norm_scale_{b}": np.ones(120) for b in "gri"
    }
    tensors = write_toys(base / "t", shards=2, rows=120, catalog_extra={"id": ids, **norms})
    train(TrainConfig.make({
        "tensors": [str(tensors)], "output": str(base / "m"), "width": 2, "epochs": 2, "nside": 512,
        "draws": 20, "threads": 1, "lr": 0.01, "batch_size": 32, "gate_rows": 100,
    }))  # fmt: skip
    return tensors, base / "m"


def test_pages(made: tuple[Path, Path], tmp_path: Path) -> None:
    tensors, model = made
    arguments = [
        "explain",
        str(model),
        str(tensors),
        "--top",
        "2",
        "--set",
        "steps=4",
        "-o",
        str(tmp_path / "why"),
    ]
    assert run([*arguments, "--before", str(model)]) == 0
    names = sorted(p.name for p in (tmp_path / "why").glob("*.html"))
    assert names == ["candidate-0001.html", "candidate-0002.html", "index.html"]
    text = (tmp_path / "why" / "candidate-0001.html").read_text()
    for words in ("integrated gradients", "Grad-CAM", "saliency", "Nearest training rows", "Bands"):
        assert words in text
    assert text.count("data:image/png") == 5 + 6
    page = Tags()
    page.feed((tmp_path / "why" / "index.html").read_text())
    assert sum(tag == "svg" for tag, _ in page.found) == 4
    links = [a["href"] for tag, a in page.found if tag == "a"]
    assert links == names[:2]
    again = explain(ExplainConfig.make({
        "model": str(model), "tensors": [str(tensors)], "top": 2, "steps": 4, "before": str(model),
        "output": str(tmp_path / "why"),
    }))  # fmt: skip
    assert again.done_before


def test_hostile_ids_are_text(made: tuple[Path, Path], tmp_path: Path) -> None:
    tensors, model = made
    explain(ExplainConfig.make({
        "model": str(model), "tensors": [str(tensors)], "ids": [HOSTILE], "steps": 2,
        "output": str(tmp_path / "why"),
    }))  # fmt: skip
    text = (tmp_path / "why" / "candidate-0001.html").read_text()
    assert HOSTILE not in text
    page = Tags()
    page.feed(text)
    assert sum(tag == "script" for tag, _ in page.found) == 1
    policy = next(a["content"] for tag, a in page.found if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_what_is_refused(made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, model = made
    options = {"model": str(model), "tensors": [str(tensors)], "output": str(tmp_path / "why")}
    with pytest.raises(DataError, match="no accepted row has the id 'nobody'"):
        explain(ExplainConfig.make(options | {"ids": ["nobody"]}))
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    with pytest.raises(ConfigError, match="umap needs the package"):
        explain(ExplainConfig.make(options | {"embedding": "umap", "top": 0}))
