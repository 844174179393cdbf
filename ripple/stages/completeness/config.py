"""Options of `ripple completeness`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ripple.config import Config, neutral, setting


class CompletenessConfig(Config):
    """Options of `ripple completeness`."""

    verb: ClassVar[str] = "completeness"

    scores: tuple[str, ...] = neutral((), description="Directories of scores of injected rows, of one model.")
    output: Path = neutral(description="Directory for the selection function and its page.")
    by: tuple[str, ...] = Field(
        ("theta_E", "arc_snr"),
        min_length=1,
        max_length=3,
        description="One to three columns; theta_E_over_seeing is known, too.",
    )
    bins: str = Field(
        "",
        description="Edges, 'theta_E=0.5,1,2; arc_snr=5,20,80', or a number of bins with equally many rows "
        "for each column; by default as many as the rows allow.",
    )
    threshold: float | None = Field(
        None, description="Score from which a row is found; by default the threshold of the model."
    )
    probability: float | None = Field(
        None, gt=0.0, lt=1.0, description="Probability from which a row is found, instead of a score."
    )
    top: int | None = Field(None, ge=1, description="Rows up to this rank are found, instead of a score.")
    of: Literal["injected", "lenses"] = Field(
        "injected", description="Completeness of injected rows, or of those labelled as lenses."
    )
    interval: Literal["clopper-pearson", "wilson"] = Field(
        "clopper-pearson", description="95 % intervals of the bins."
    )
    fit: Literal["best", "monotone", "logistic"] = Field(
        "best",
        description="Smooth function: boosted trees that rise where they must, a logistic regression, or the "
        "better of both in cross-validation.",
    )
    area_deg2: float | None = Field(
        None,
        gt=0.0,
        description="Footprint: sky from which all rows come, for false positives per deg², effective area "
        "and volume, and the number of lenses.",
    )
    density: float | None = Field(
        None,
        gt=0.0,
        description="Lenses per deg² of a population like that of the rows, for the number that would be "
        "found in the footprint.",
    )
    catalogue: str = neutral(
        "",
        description="Table with a column id of all lenses there were: those that are no row were not in the "
        "catalogue that was searched, and are lost.",
    )
    candidates: str = neutral(
        "",
        description="Candidates of ripple consensus, of these scores: found is then what people graded as a "
        "lens, too.",
    )
    all_rows: bool = Field(False, description="Also rows on sky that the model was trained on.")
    grade: float = setting(
        0.5, gt=0.0, lt=1.0, description="Probability from which a candidate counts as graded a lens."
    )
    level: float = setting(0.5, gt=0.0, lt=1.0, description="Completeness that the statement is about.")
    least: int = setting(10, ge=1, description="Rows that a bin needs for a number.")
    folds: int = setting(5, ge=2, description="Parts of the cross-validation.")
    draws: int = setting(40, ge=10, description="Bootstrap replicates behind the limits of the statement.")
    seed: int = setting(0, ge=0, description="Seed of the cross-validation and the bootstrap.")

    @model_validator(mode="after")
    def _one_cut(self) -> CompletenessConfig:
        if sum(cut is not None for cut in (self.threshold, self.probability, self.top)) > 1:
            raise ValueError("give one of threshold, probability and top")
        if len(set(self.by)) < len(self.by):
            raise ValueError("by names a column twice")
        if self.density is not None and self.area_deg2 is None:
            raise ValueError("density needs area_deg2, the footprint")
        return self
