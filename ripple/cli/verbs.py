"""Verbs that run one stage: their options, the function that takes them, and the text of `--help`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import click

from ripple.cli.options import config_options


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb that takes the options of one model, calls one function, and prints the summary.

    Parameters
    ----------
    options, function
        `module:name` of the model and of the function; text, so that nothing is imported before it is used.
    help
        What it does, for `--help`.
    example
        A command line.
    arguments
        Fields that are positional arguments.
    """

    options: str
    function: str
    help: str
    example: str
    arguments: tuple[str, ...] = ()


# In the order of `ripple --help`; the first lines there are shorter, and in `ripple.cli.GROUPS`.
STAGES: dict[str, Verb] = {
    "simulate": Verb(
        "ripple.stages.simulate.config:SimulateConfig",
        "ripple.stages.simulate.simulate:simulate",
        "Simulate a small survey with lenses: a Butler repository OUTPUT/repo, and OUTPUT/truth.parquet.\n\n"
        "Lenses and look-alikes share one population of red ellipticals; lenses are far more frequent "
        "than in nature.",
        "ripple simulate sky --patches 4 --bands gri --seed 7",
        ("output",),
    ),
    "fetch": Verb(
        "ripple.stages.fetch.config:FetchConfig",
        "ripple.stages.fetch.fetch:fetch",
        "Cut targets out of Butler coadds: the same box in all bands, in nJy, with variance, mask and PSF.",
        "ripple fetch --repo dp2 --collections dp2 --bands gri --size 64 "
        "--region 'CIRCLE 53.12 -27.54 0.1' --select 'i_cModelFlux > 1000' -o cutouts",
    ),
    "preprocess": Verb(
        "ripple.stages.preprocess.config:PreprocessConfig",
        "ripple.stages.preprocess.preprocess:preprocess",
        "Cutouts to tensors: bad pixels filled, PSFs matched, fluxes normalised, every row judged.",
        "ripple preprocess cutouts -o tensors --psf match --normalize asinh",
        ("cutouts",),
    ),
    "inject": Verb(
        "ripple.stages.inject.config:InjectConfig",
        "ripple.stages.inject.inject:inject",
        "Paint lensed sources into a share of real cutouts, through their own PSFs, and label them.",
        "ripple inject cutouts -o labelled --fraction 0.3 --seed 7",
        ("cutouts",),
    ),
    "train": Verb(
        "ripple.learn.config:TrainConfig",
        "ripple.learn.training.train:train",
        "Train a lens finder on TENSORS, and evaluate it on sky that it was not trained on.",
        "ripple train tensors --network d4cnn --seeds 3 -o model",
        ("tensors",),
    ),
    "score": Verb(
        "ripple.learn.config:ScoreConfig",
        "ripple.learn.scoring.score:score",
        "Rank the rows of TENSORS with MODEL; tensors that differ from what the model needs are refused.",
        "ripple score model tensors --evaluate -o scores",
        ("model", "tensors"),
    ),
    "search": Verb(
        "ripple.stages.search.config:SearchConfig",
        "ripple.stages.search.search:search",
        "Score a piece of sky with MODEL, from coadds to ranked candidates in one pass.\n\n"
        "The scores are those of fetch, preprocess and score, but neither cutouts nor tensors are written, "
        "except those of the best rows with --keep.",
        "ripple search model --repo dp2 --collections dp2 --tract 5063 --select 'i_cModelFlux > 1000' "
        "--workers 8 --keep 200 -o found",
        ("model",),
    ),
    "committee": Verb(
        "ripple.stages.committee.config:CommitteeConfig",
        "ripple.stages.committee.committee:committee",
        "Combine SCORES of the same objects by several models, each with its own tensors, to one ranking.\n\n"
        "Rows are found by their ids and lie in the tensors of the first member; the result is read like any "
        "scores.",
        "ripple committee scores-a scores-b -o scores-both",
        ("scores",),
    ),
    "explain": Verb(
        "ripple.learn.config:ExplainConfig",
        "ripple.learn.explain.explain:explain",
        "Explain the scores that MODEL gives to rows of TENSORS: a page per row, and one about the model.",
        "ripple explain model tensors --top 20 -o why",
        ("model", "tensors"),
    ),
    "compare": Verb(
        "ripple.stages.compare.config:CompareConfig",
        "ripple.stages.compare.compare:compare",
        "Compare SCORES of the same rows by several models, on rows that none of them was trained on: "
        "differences with intervals, curves, and the rows whose rank differs most.",
        "ripple compare scores-a scores-b -o comparison",
        ("scores",),
    ),
    "report": Verb(
        "ripple.stages.report.config:ReportConfig",
        "ripple.stages.report.report:report",
        "Write a page with ranked colour pictures, metrics and plots, on which candidates can be graded.",
        "ripple report scores -o report",
        ("source",),
    ),
    "vet": Verb(
        "ripple.stages.vet.config:VetConfig",
        "ripple.stages.vet.vet:vet",
        "Let several people grade the best rows of SCORES in the browser, known lenses and non-lenses hidden "
        "among them.\n\n"
        "Prints a link per grader and serves on 127.0.0.1 until Ctrl-C. Grades are on disk at once, and the "
        "same command resumes.",
        "ripple vet scores --graders ann,bob -o grades",
        ("scores",),
    ),
    "completeness": Verb(
        "ripple.stages.completeness.config:CompletenessConfig",
        "ripple.stages.completeness.completeness:completeness",
        "The selection function: which painted lenses were found, from SCORES of rows of `ripple inject`.\n\n"
        "Writes completeness in bins with intervals, a smooth function on a grid, what was lost at which "
        "stage, and the false positives. Rows on sky that the model was trained on do not count.",
        "ripple completeness injected-scores --by theta_E,arc_snr --area-deg2 0.4 -o selection",
        ("scores",),
    ),
    "consensus": Verb(
        "ripple.stages.consensus.config:ConsensusConfig",
        "ripple.stages.consensus.consensus:consensus",
        "Fuse the grades of several people: candidates with a probability and its interval, what is known "
        "about each grader from hidden tests, and what to look at again.",
        "ripple consensus grades -o candidates",
        ("grades",),
    ),
    "match": Verb(
        "ripple.stages.match.config:MatchConfig",
        "ripple.stages.match.match:match",
        "Compare a search with known lenses from a table: which are recovered, and for each miss the reason "
        "(not covered, no object, rejected, low score, graded down).",
        "ripple match scores candidates --known lenses.csv -o matched",
        ("sources",),
    ),
    "embed": Verb(
        "ripple.learn.embedding.config:EmbedConfig",
        "ripple.learn.embedding.embed:embed",
        "The features that MODEL sees in each row of TENSORS, as vectors that `ripple similar` searches.",
        "ripple embed model tensors -o embeddings",
        ("model", "tensors"),
    ),
    "import": Verb(
        "ripple.stages.formats.config:ImportConfig",
        "ripple.stages.formats.import_cutouts:import_cutouts",
        "Import cutouts in other formats: DeepLense folders, arrays, FITS, Multimodal Universe files.",
        "ripple import lenses/ --format deeplense -o tensors",
        ("source",),
    ),
    "export": Verb(
        "ripple.stages.formats.config:ExportConfig",
        "ripple.stages.formats.export:export",
        "Write tensors or cutouts as DeepLense folders, Multimodal Universe files, WebDataset, Zarr or FITS.",
        "ripple export tensors --format deeplense -o lenses",
        ("source",),
    ),
    "import-model": Verb(
        "ripple.learn.config:ImportModelConfig",
        "ripple.learn.model.exchange:import_model",
        "Make a model from the weights in SOURCE and a sidecar file that says which data they need.",
        "ripple import-model resnet18.pth --sidecar model.yaml -o model",
        ("source",),
    ),
    "export-model": Verb(
        "ripple.learn.config:ExportModelConfig",
        "ripple.learn.model.exchange:export_model",
        "Write MODEL as ONNX or as a program of torch.export (pt2), with its contract beside it.",
        "ripple export-model model -o finder.onnx",
        ("model",),
    ),
}


def command(name: str) -> click.Command:
    """The click command of a verb; its stage is imported when it runs, so that `--help` is quick."""
    verb = STAGES[name]

    def run(config: Any, as_json: bool) -> None:
        _load(verb.function)(config).print(as_json=as_json)

    run.__doc__ = verb.help
    # Click takes the text of `--help` from the docstring.
    short = {} if "output" in verb.arguments else {"output": "-o"}
    run = config_options(_load(verb.options), short=short, arguments=verb.arguments)(run)
    run = click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")(run)
    return click.command(name, epilog=f"Example: {verb.example}")(run)


def _load(place: str) -> Any:
    """The object at `module:name`."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
