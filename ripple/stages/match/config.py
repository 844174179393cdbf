"""Options of `ripple match`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from ripple.config import Config, neutral


class MatchConfig(Config):
    """Options of `ripple match`."""

    verb: ClassVar[str] = "match"

    sources: tuple[Path, ...] = neutral(description="Scores, candidates, or both of the same search.")
    known: Path = neutral(description="Table of known lenses.")
    output: Path = neutral(description="Directory of the comparison.")
    radius: float = Field(1.5, gt=0, le=60, description="Arcsec within which an object is the known lens.")
    merge: float = Field(2.0, ge=0, le=60, description="Arcsec within which known lenses are one.")
    covered: float = Field(
        60.0, gt=0, le=3600, description="A position is covered if pixels of a row lie so near, arcsec."
    )
    top: int = Field(300, ge=1, description="Rows up to this rank are found.")
    probability: float = Field(0.5, ge=0, le=1, description="Candidates below this are graded down.")
    keep_nscs: bool = Field(False, description="Keep cluster candidates of NSCS, which are no galaxy lenses.")
    name_column: str | None = Field(None, description="Column of the names; several are apart by |.")
    ra_column: str | None = Field(None, description="Column of right ascension.")
    dec_column: str | None = Field(None, description="Column of declination.")
    ra_unit: Literal["deg", "hour"] | None = Field(
        None, description="Unit of right ascension when the table does not say it: deg or hour."
    )
    reference_column: str | None = Field(None, description="Column of the references.")
    grade_column: str | None = Field(None, description="Column of the grades.")
