"""Models with random weights, and their contracts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from toys import BANDS, NORMALIZATION

from ripple.learn.model.contract import ArchitectureRecord, Contract, Member
from ripple.learn.model.network import build
from ripple.learn.model.weights import save_model
from ripple.storage.checksums import listed
from ripple.storage.manifest import MANIFEST, content_digest, render


def make_model(directory: Path, *, name: str = "d4cnn", members: int = 1, **changes: Any) -> Path:
    """A model with random weights."""
    fields: dict[str, Any] = {
        "architecture": ArchitectureRecord(name=name, bands=3, size=32, outputs=1, width=2),
        "bands": BANDS, "size": 32, "pixel_scale": 0.2, "unit": "nJy", "psf_fwhm": 1.2,
        "normalization": NORMALIZATION, "class_map": {"0": "nonlens", "1": "lens"}, "output": "lens",
        "members": tuple(Member(file="model.safetensors", bytes=0, sha256="") for _ in range(members)),
    }  # fmt: skip
    contract = Contract(**(fields | changes))
    states = []
    for seed in range(members):
        torch.manual_seed(seed)
        net = build(contract.architecture.architecture())
        torch.nn.init.normal_(net.head.weight)
        states.append(net.state_dict())
    save_model(directory, contract, states)
    return directory


def make_contract(**changes: Any) -> Contract:
    fields: dict[str, Any] = {
        "architecture": ArchitectureRecord(name="d4cnn", bands=3, size=32, outputs=1, width=1),
        "bands": BANDS, "size": 32, "pixel_scale": 0.2, "unit": "nJy", "psf_fwhm": 1.2,
        "normalization": NORMALIZATION, "class_map": {"0": "nonlens", "1": "lens"}, "output": "lens",
        "members": (Member(file="model.safetensors", bytes=0, sha256=""),),
    }  # fmt: skip
    return Contract(**(fields | changes))


SMALL: dict[str, Any] = {
    "width": 2, "epochs": 3, "batch_size": 32, "nside": 512, "draws": 20, "threads": 1, "lr": 0.01,
}  # fmt: skip


def list_again(model: Path) -> None:
    """Another manifest for the files as they are: what somebody who means harm would write."""
    manifest = json.loads((model / MANIFEST).read_bytes())
    manifest["files"] = {name: list(entry) for name, entry in listed(model, manifest["files"]).items()}
    (model / MANIFEST).write_bytes(render({**manifest, "digest": content_digest(manifest)}))
