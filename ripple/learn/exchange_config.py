"""Options of `ripple import-model` and `ripple export-model`; no torch here."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from ripple.config import Config


class ImportModelConfig(Config):
    """Options of `ripple import-model`."""

    verb: ClassVar[str] = "import-model"

    source: Path = Field(description="Checkpoint: .safetensors, .pt/.pth (state_dict or TorchScript), .onnx.")
    sidecar: Path = Field(description="YAML or JSON with the fields of the contract (see model.json).")
    output: Path = Field(description="Model directory to write.")


class ExportModelConfig(Config):
    """Options of `ripple export-model`."""

    verb: ClassVar[str] = "export-model"

    model: Path = Field(description="Model directory.")
    output: Path = Field(description="File to write; a contract is written beside it.")
    format: Literal["onnx", "torchscript"] = Field("onnx", description="onnx or torchscript.")
