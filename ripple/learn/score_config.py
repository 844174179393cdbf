"""Options of `ripple score`; no torch here, so that its help is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from ripple.config import Config, neutral

Fraction = Annotated[float, Field(gt=0, lt=1)]


class ScoreConfig(Config):
    """Options of `ripple score`."""

    verb: ClassVar[str] = "score"

    model: Path = neutral(description="Model directory.")  # its digest is among the inputs
    tensors: tuple[Path, ...] = Field(min_length=1, description="Tensor artefacts to score.")
    output: Path = neutral(description="Directory for the scores.")

    crop: bool = Field(False, description="Cut larger images to the size of the model.")
    reorder_bands: bool = Field(False, description="Pick the bands of the model by name.")
    resample: bool = Field(False, description="Interpolate images of another pixel scale.")
    tta: bool = Field(
        True, description="Mean over the 8 quarter turns and flips, unless the network has them."
    )
    mc_dropout: Annotated[int, Field(ge=0, le=1000)] = Field(
        0,
        description="Passes with dropout per member, for `spread`; the model must have been trained with it.",
    )
    prevalence: Fraction | None = Field(
        None, description="Fraction of lenses among the sources, for `probability`; default: as in training."
    )
    top: Annotated[int, Field(ge=0)] = Field(100, description="Rows of top.csv; 0 for none.")

    evaluate: bool = Field(False, description="Judge the scores of labelled rows on sky not trained on.")
    stress: bool = Field(
        False, description="Also disturb labelled rows of sky not trained on: the robustness card."
    )
    stress_rows: Annotated[int, Field(ge=1)] = Field(500, description="Rows that are disturbed.")
    attacked_rows: Annotated[int, Field(ge=1)] = Field(50, description="Rows of the one-pixel attack.")
    visible_sb: float = Field(
        26.0, description="Arcs brighter than this surface brightness (mag/arcsec^2) count as visible."
    )
    lenses_per_deg2: Annotated[float, Field(gt=0)] = Field(6.0, description="Lenses per deg^2 of real sky.")
    sources_per_deg2: Annotated[float, Field(gt=0)] = Field(
        1e4, description="Scored extended sources per deg^2 of real sky."
    )
    draws: Annotated[int, Field(ge=10)] = Field(500, description="Bootstrap replicates of the intervals.")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Of the bootstrap.")

    batch_size: Annotated[int, Field(ge=1)] = neutral(256, description="Rows per batch.")
    device: str = neutral("auto", description="cpu, cuda, cuda:1; auto takes CUDA when there is some.")
    threads: Annotated[int, Field(ge=0)] = neutral(0, description="CPU threads; 0 for all cores.")
