"""Options of `ripple explain`; no torch here, so that its help is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ripple.config import Config, neutral


class ExplainConfig(Config):
    """Options of `ripple explain`."""

    verb: ClassVar[str] = "explain"

    # The digests of model and tensors are in the identity of the pages.
    model: Path = neutral(description="Model directory.")
    tensors: tuple[Path, ...] = neutral(
        min_length=1, description="Tensor artefacts with the rows to explain."
    )
    output: Path = neutral(description="Directory of the pages.")

    ids: tuple[str, ...] = Field((), description="Rows to explain by id; default: the best-scored ones.")
    top: Annotated[int, Field(ge=0, le=500)] = Field(10, description="Best-scored rows to explain.")
    training: tuple[Path, ...] = Field(
        (), description="Tensors the model was trained on, for stamps of neighbours; default: as recorded."
    )
    before: Path | None = Field(None, description="Another model, for its latent space beside this one.")
    neighbours: Annotated[int, Field(ge=1, le=50)] = Field(6, description="Nearest training rows to show.")
    steps: Annotated[int, Field(ge=2)] = Field(64, description="Steps of the integrated gradients.")
    points: Annotated[int, Field(ge=10)] = Field(800, description="Rows of the latent space to draw.")
    embedding: Literal["pca", "umap"] = Field(
        "pca", description="Map of the latent space; umap needs the extra `explain`."
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Of the choice of rows and of UMAP.")

    device: str = neutral("auto", description="cpu, cuda, cuda:1; auto takes CUDA when there is some.")
