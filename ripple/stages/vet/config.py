"""Options of `ripple vet`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from pydantic import Field, model_validator

from ripple.config import Config, neutral, setting

ORDERS = ("shuffle", "rank", "uncertain", "disagree")
#: How an order begins that an id follows.
SIMILAR = "similar:"


class VetConfig(Config):
    """Options of `ripple vet`."""

    verb: ClassVar[str] = "vet"

    scores: Path = neutral(description="Scores whose best rows are graded.")
    output: Path = neutral(description="Directory of the grades; the same command resumes.")
    graders: tuple[str, ...] = neutral(("me",), description="Names of the people who grade, a link for each.")
    top: int = Field(300, ge=1, le=20_000, description="Best-ranked rows to grade.")
    # Neutral, because it is that of a grader: the objects are the same, and others may have another order.
    order: str = neutral(
        "shuffle",
        description="Order of the candidates of who is new: shuffle (each grader another), rank, uncertain "
        "(probability near one half), similar:ID (needs --embeddings), or disagree (what others graded "
        "differently).",
    )
    embeddings: Path | None = neutral(
        None, description="Embeddings with the row of --order similar:ID and the candidates."
    )
    # Neutral, because its digest is recorded, and a session that has wide fields goes on without them.
    context: Path | None = neutral(
        None,
        description="Larger cutouts of the same objects, found by id: one more view, of their surroundings.",
    )
    tests: bool = Field(
        True, description="Hide known lenses and non-lenses among the candidates, taken from labelled rows."
    )
    repeat: float = Field(0.05, ge=0, le=0.5, description="Share of the objects shown a second time.")
    training: bool = neutral(False, description="Tell the truth of a hidden test once it is graded.")
    hide_ids: bool = neutral(False, description="Show neither ids nor positions.")
    port: int = neutral(8050, ge=0, le=65_535, description="Port on 127.0.0.1; 0 takes a free one.")
    root_path: str = neutral("", description="Prefix under which a proxy serves the page.")
    import_: Path | None = neutral(
        None, description="grades.csv of a report page: add its grades as those of the one grader, and end."
    )
    seed: int = Field(1, ge=0, description="Seed of the choice of tests and of the orders.")
    stretch: float = setting(
        8.0, neutral=True, gt=0, description="Linear range of the pictures, in sky noise."
    )
    softening: float = setting(8.0, neutral=True, gt=0, description="Q of the asinh stretch.")

    @model_validator(mode="after")
    def _named(self) -> VetConfig:
        # A name is part of a link.
        bad = [name for name in self.graders if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", name)]
        if bad or not self.graders or len(set(self.graders)) != len(self.graders):
            which = f"{bad[0]!r} is" if bad else "they are"
            raise ValueError(
                f"graders: {which} not usable; give different names of letters, digits, - and _ "
                "(at most 32), as in --graders ann,bob"
            )
        if self.order not in ORDERS and not self.order.removeprefix(SIMILAR).strip():
            raise ValueError("order similar: needs an id, as in --order similar:2738")
        if self.order not in ORDERS and not self.order.startswith(SIMILAR):
            raise ValueError(f"order {self.order!r} is none of {', '.join(ORDERS)} and {SIMILAR}ID")
        if self.order.startswith(SIMILAR) != (self.embeddings is not None):
            raise ValueError("order similar:ID and embeddings belong together")
        if self.root_path and not re.fullmatch(r"(/[A-Za-z0-9._~@%-]+)+/?", self.root_path):
            raise ValueError("root_path must be a path such as /user/ann/proxy/8050")
        if self.import_ and len(self.graders) != 1:
            raise ValueError("import needs the one grader whose grades these are, as in --graders ann")
        return self
