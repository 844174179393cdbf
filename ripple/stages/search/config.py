"""Options of `ripple search`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ripple.config import Config, neutral, setting
from ripple.imaging.quality.judge import Thresholds
from ripple.learn.config import ENGINE, OpenFraction, Precision
from ripple.stages.fetch.config import FetchConfig

#: Options of a selection that the model decides.
DECIDED = ("bands", "size", "size_column", "margin")


class SearchConfig(FetchConfig):
    """Options of `ripple search`: a selection as for `fetch`, and how to score.

    Bands, size and margin of the cutouts, and everything else that the network has to find in its pixels, are
    those of the model.
    """

    verb: ClassVar[str] = "search"

    model: Path = neutral(Path(), description="Model directory.")  # its digest is recorded, not its path
    output: str = neutral("", description="Directory for the scores.")
    keep: str = neutral(
        "",
        description="Write cutouts and tensors of the best: a number, or those above a probability, P>0.5.",
    )
    embeddings: bool = neutral(
        False,
        description="Also write what the network sees in each row, for `ripple similar`: OUTPUT/embeddings.",
    )
    # The model decides these: settings have no flags, and values are refused.
    bands: tuple[str, ...] = setting((), description="Those of the model.")
    size: int | str = setting(64, description="That of the model.")
    size_column: str | None = setting(None, description="All cutouts have the size of the model.")
    margin: int = setting(0, description="That of the model.")
    separation: float = Field(
        5.0,
        gt=0,
        description="With --grid: windows closer than this, arcsec, see one object, and the best is kept.",
    )
    refine: bool = Field(
        True,
        description="With --grid: place detections to a pixel by finer windows around the best, for which "
        "their patches are read again.",
    )
    missing_band: Literal["reject", "flag", "ignore"] = Field(
        "flag", description="Rows that lack some band get zeros there: reject them, flag them, or neither."
    )
    quality: Thresholds = Field(
        Thresholds.make({}), description="Thresholds of quality flags, and which flags reject."
    )
    zero_point: tuple[str, ...] = Field((), description="Magnitudes to add per band, as in g:0.023,r:0.001.")
    registration: bool = Field(True, description="Check that the bands show the same sky the same way up.")
    tta: bool = Field(
        True, description="Average over the 8 quarter turns and flips, unless the network is invariant."
    )
    precision: Precision = "fp32"
    rank_by: str = Field("", description="Class to rank by; default: the lens class.")
    prevalence: OpenFraction | None = Field(
        None,
        description="Fraction of lenses among the sources, for `probability`; default: that of "
        "lenses_per_deg2 and sources_per_deg2.",
    )
    lenses_per_deg2: Annotated[float, Field(gt=0)] = setting(6.0, description="True lenses per deg^2 of sky.")
    sources_per_deg2: Annotated[float, Field(gt=0)] = setting(
        1e4, description="Extended sources per deg^2 of sky that would be scored."
    )
    top: Annotated[int, Field(ge=0)] = Field(
        100, description="Number of best rows to write to top.csv; 0 for none."
    )
    device: str = neutral("auto", description="cpu, cuda or cuda:1; auto uses a GPU if there is one.")
    engine: Literal["auto", "torch", "onnx"] = neutral("auto", description=ENGINE)
    batch_size: Annotated[int, Field(ge=1)] = setting(256, neutral=True, description="Rows per batch.")

    @model_validator(mode="before")
    @classmethod
    def _left_to_the_model(cls, values: Any) -> Any:
        given = [name for name in DECIDED if isinstance(values, dict) and name in values]
        if given:
            raise ValueError(f"{given[0]} is that of the model: leave it out")
        return values

    @field_validator("keep")
    @classmethod
    def _number_or_limit(cls, value: str) -> str:
        if value and kept_of(value) is None:
            raise ValueError(f"{value!r} is neither a number of rows nor a limit like P>0.5")
        return value


def kept_of(keep: str) -> int | float | None:
    """The number of rows, or the probability that they exceed; None where it is neither."""
    text = keep.replace(" ", "")
    if text.isdecimal() and int(text) > 0:
        return int(text)
    match = re.fullmatch(r"[Pp]>(0?\.\d+|0|1e-\d+)", text)
    return float(match[1]) if match else None


def only[C: Config](model: type[C], config: Config, **values: object) -> C:
    """The options of another verb: those that both have, and `values`."""
    shared = {name: getattr(config, name) for name in model.model_fields if hasattr(config, name)}
    return model.make({**shared, **values})
