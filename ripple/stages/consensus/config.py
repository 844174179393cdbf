"""Options of `ripple consensus`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from ripple.config import Config, neutral


class ConsensusConfig(Config):
    """Options of `ripple consensus`."""

    verb: ClassVar[str] = "consensus"

    grades: tuple[Path, ...] = neutral(description="Directories of grades of the same scores.")
    output: Path = neutral(description="Directory of the candidates.")
    with_scores: bool = Field(False, description="Use the probability of the network as one more grader.")
    second_round: int = Field(50, ge=0, description="Objects for a second round at most.")
    top: int = Field(100, ge=0, le=5000, description="Best candidates to show on the page.")
    seed: int = Field(1, ge=0, description="Seed of cross-validation and intervals.")
