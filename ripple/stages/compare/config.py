"""Options of `ripple compare`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from ripple.config import Config, neutral, setting


class CompareConfig(Config):
    """Options of `ripple compare`."""

    verb: ClassVar[str] = "compare"

    scores: tuple[str, ...] = neutral((), description="Two or more directories of scores of the same rows.")
    output: Path = neutral(description="Directory of the page.")
    names: tuple[str, ...] = Field(
        (), description="Names of the models; by default those of the directories."
    )
    moved: int = Field(24, ge=0, le=500, description="Rows to show whose rank differs most.")
    fpr: float = Field(0.01, gt=0, lt=1, description="False positive rate of the confusion matrices.")
    draws: int = setting(500, ge=10, description="Bootstrap replicates of the differences.")
    nside: int = setting(2048, ge=1, description="HEALPix side of the cells of sky that are drawn together.")
    seed: int = setting(0, ge=0, description="Seed of the bootstrap.")
