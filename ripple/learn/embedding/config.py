"""Options of `ripple embed`; this module does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ripple.config import Config, neutral, setting
from ripple.learn.config import ENGINE, Crop, ReorderBands, Resample, ScoreConfig


class EmbedConfig(Config):
    """Options of `ripple embed`."""

    verb: ClassVar[str] = "embed"

    # Neutral, because the digests of model and tensors are recorded: paths do not matter.
    model: Path = neutral(description="Model directory.")
    tensors: tuple[Path, ...] = neutral(min_length=1, description="Tensor artefacts to embed.")
    output: Path = neutral(description="Directory for the embeddings.")

    crop: Crop = False
    reorder_bands: ReorderBands = False
    resample: Resample = False
    tta: bool = Field(
        True,
        description="Average the scores beside the embeddings over the 8 quarter turns and flips, unless the "
        "network is invariant; embeddings are always those of the upright images.",
    )
    rows_per_shard: Annotated[int, Field(ge=1, le=1 << 22)] = setting(
        65_536, description="Shards of the tensors are put together up to so many rows."
    )

    batch_size: Annotated[int, Field(ge=1)] = setting(256, neutral=True, description="Rows per batch.")
    device: str = neutral("auto", description="cpu, cuda or cuda:1; auto uses a GPU if there is one.")
    engine: Literal["auto", "torch", "onnx"] = neutral("auto", description=ENGINE)
    threads: Annotated[int, Field(ge=0)] = neutral(0, description="CPU threads; 0 for all cores.")

    def scoring(self) -> ScoreConfig:
        """The options of `ripple score` that give the same outputs of the network."""
        shared = {name: getattr(self, name) for name in type(self).model_fields if name != "rows_per_shard"}
        return ScoreConfig.make(shared)
