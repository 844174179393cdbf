"""Row 1 for `search`: killed with all of its workers at random moments, then run again to the same bytes."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow.parquet as pq
import verbs
from faultlib import Tally
from models import make_model
from rows import row
from verbs import RIPPLE, VERB_ROWS, killed, preprocess_argv, reference

from ripple.learn.model.contract import ArchitectureRecord, pixels_of
from ripple.storage.artefact import open_artefact


def model_in(directory: Path) -> Path:
    """A small network that takes what `preprocess` makes of cutouts of 48 px in gri."""
    tensors = directory / "tensors"
    reference(preprocess_argv(verbs.fetched(directory), tensors), tensors)
    made = open_artefact(tensors)
    return make_model(
        directory / "model",
        architecture=ArchitectureRecord(name="d4cnn", bands=3, size=48, outputs=1, width=1),
        size=48, psf_fwhm=None, pixels=pixels_of(made), threshold=0.0,
        normalization=made.attributes["normalization"],
        noise_correlation=made.attributes["noise_correlation"],
    )  # fmt: skip


def search_argv(model: Path, output: Path, *more: str, workers: int) -> list[str]:
    assert verbs.SKY is not None
    where = ["--repo", str(verbs.SKY / "repo"), "--collections", "mini"]
    return [*RIPPLE, "search", str(model), *where, *more, "--workers", str(workers), "-o", str(output)]


@row("1", "search --embeddings: kill -9 at random moments, resume", full=20, gate=2, into=VERB_ROWS)
def search_killed(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    model = model_in(directory)
    targets = ["--targets", str(verbs.SKY) + "/truth.parquet", "--embeddings"]
    killed(tally, rng, trials, directory, lambda out, n: search_argv(model, out, *targets, workers=n))


@row("1", "search --grid: kill -9 at random moments, resume", full=20, gate=2, into=VERB_ROWS)
def blind_killed(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    model = model_in(directory)
    truth = pq.read_table(str(verbs.SKY) + "/truth.parquet")
    ra, dec = (truth[name].to_numpy().mean() for name in ("ra", "dec"))
    grid = ["--region", f"CIRCLE {ra} {dec} 0.006", "--grid", "16"]
    killed(tally, rng, trials, directory, lambda out, n: search_argv(model, out, *grid, workers=n))
