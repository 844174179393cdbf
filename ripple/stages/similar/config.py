"""Options of `ripple similar`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, model_validator

from ripple.config import Config, neutral


class SimilarConfig(Config):
    """Options of `ripple similar`."""

    verb: ClassVar[str] = "similar"

    embeddings: Path = neutral(description="Embeddings to search.")
    like: tuple[str, ...] = Field((), description="Ids of rows to look for the like of.")
    unlike: tuple[str, ...] = Field(
        (), description="Ids of counter-examples: rows nearer to one of them are left out."
    )
    examples: Path | None = Field(
        None, description="Embeddings by the same model that have the rows of --like and --unlike."
    )
    to: Path | None = Field(
        None,
        description="Embeddings by the same model, or the same ones: find pairs of rows that look alike.",
    )
    above: float | None = Field(
        None, gt=-1, le=1, description="Only rows, or pairs, of at least this similarity."
    )
    top: int = Field(
        100, ge=1, le=1_000_000,
        description="Number of rows to give; with --to only of the lines on the screen.",
    )  # fmt: skip
    select: str | None = Field(None, description="Condition on columns of the embeddings.")
    region: str | None = Field(
        None, description="Only rows in CIRCLE ra dec r, RANGE ra0 ra1 dec0 dec1 or POLYGON ra dec ..., deg."
    )
    rejected: bool = Field(False, description="Also rows that quality control rejected.")
    output: Path | None = neutral(
        None, description="File for the table: .csv, .parquet or .vot; the screen by default."
    )

    @model_validator(mode="after")
    def _together(self) -> Self:
        if bool(self.like) == (self.to is not None):
            raise ValueError("give --like ID for rows that look alike, or --to EMBEDDINGS for pairs")
        if self.to is not None and (self.unlike or self.examples):
            raise ValueError(f"--{'unlike' if self.unlike else 'examples'} belongs to --like")
        if self.to is not None and self.above is None:
            raise ValueError("--to needs --above, for example --above 0.999: the least similarity of a pair")
        if twice := set(self.like) & set(self.unlike):
            raise ValueError(f"{min(twice)!r} is given to --like and to --unlike")
        return self
