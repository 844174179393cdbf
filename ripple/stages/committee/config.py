"""Options of `ripple committee`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ripple.config import Config, neutral


class CommitteeConfig(Config):
    """Options of `ripple committee`."""

    verb: ClassVar[str] = "committee"

    scores: tuple[str, ...] = neutral(
        (), description="Scores of the same objects by two or more models; the first gives rows and pictures."
    )
    output: Path = neutral(description="Directory for the scores of the committee.")
    rule: Literal["logit", "rank"] = Field(
        "logit",
        description="The score: logit (sigmoid of the mean logit) or rank (mean of the ranks, 0 to 1).",
    )
    top: Annotated[int, Field(ge=0)] = Field(
        100, description="Number of best rows to write to top.csv; 0 for none."
    )


class RecordedConfig(CommitteeConfig):
    """What the manifest keeps: also the tensors of the first member, in which the rows lie."""

    tensors: tuple[Path, ...] = ()
