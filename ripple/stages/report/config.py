"""Options of `ripple report`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from ripple.config import Config, neutral, setting


class ReportConfig(Config):
    """Options of `ripple report`."""

    verb: ClassVar[str] = "report"

    source: Path = neutral(description="Scores, tensors or cutouts to report on.")
    output: Path = neutral(description="Directory of the page.")
    top: int = Field(300, ge=1, le=5000, description="Best-ranked rows to show with a stamp.")
    missed: int = Field(24, ge=0, description="True lenses with the lowest rank to show as well.")
    model: Path | None = Field(None, description="Model directory; default: `model` beside the scores.")
    stretch: float = setting(8.0, gt=0, description="Linear range of the colour stamps, in sky noise.")
    softening: float = setting(8.0, gt=0, description="Q of the asinh stretch: larger is more logarithmic.")
    csv_rows: int = setting(100_000, ge=0, description="Rows of candidates.csv at most.")
