"""`ripple run`: the chain that one YAML file describes, stage after stage.

    OUT/sky  OUT/cutouts  OUT/tensors  OUT/model  OUT/scores  OUT/report

A stage that is finished with the same options and inputs is left alone. One that was made with the same
options from other inputs, because a stage before it was made again, is removed and made again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypedDict

from pydantic import Field

from ripple.config import Config, load_yaml, suggest
from ripple.errors import ConfigError, IntegrityError, OtherInputsError
from ripple.learn.config import ScoreConfig, TrainConfig
from ripple.runtime.summary import Summary, plain
from ripple.stages.fetch.config import FetchConfig
from ripple.stages.fetch.fetch import fetch
from ripple.stages.preprocess.config import PreprocessConfig
from ripple.stages.preprocess.preprocess import preprocess
from ripple.stages.report.config import ReportConfig
from ripple.stages.report.report import report
from ripple.stages.simulate.config import SimulateConfig
from ripple.stages.simulate.simulate import simulate
from ripple.storage.files import make_directory, read_whole, write_error, write_single
from ripple.storage.manifest import is_finished
from ripple.storage.writer import is_begun

#: Stage -> directory in the output, in the order of the chain.
CHAIN: dict[str, str] = {
    "simulate": "sky",
    "fetch": "cutouts",
    "preprocess": "tensors",
    "train": "model",
    "score": "scores",
    "report": "report",
}
#: What the stages cost, in the output.
MEMORY = "run.json"


class RunConfig(Config):
    """Options of `ripple run` itself; the stages have sections of their own."""

    verb: ClassVar[str] = "run"

    output: str = Field("", description="Directory for the output of all stages.")
    model: str | None = Field(None, description="Score with this model instead of training one.")


class StageCost(TypedDict):
    """What a stage took in an earlier run, seconds, and the facts of its summary."""

    seconds: float
    facts: dict[str, object]


@dataclass(frozen=True, slots=True)
class ChainResult:
    """What the chain did: a summary per stage, in order; `spent`: seconds of verbs, also of old runs."""

    summaries: tuple[Summary, ...]
    output: Path
    seconds: float
    spent: dict[str, float] = field(default_factory=dict)

    @property
    def done_before(self) -> bool:
        """True when there was nothing to do."""
        return all(s.done_before for s in self.summaries)


def run_chain(
    path: Path, overrides: dict[str, Any], announce: Callable[[str], None] = lambda _: None
) -> ChainResult:
    """Run the stages that the file has sections for.

    Parameters
    ----------
    path
        YAML file; `{output}` in a value stands for the output directory.
    overrides
        Options of `run` that win over the file.
    announce
        Called with one line before each stage.

    Raises
    ------
    ConfigError
        An unknown stage or key, or a stage without its input.
    IntegrityError
        `run.json` of an earlier run is damaged.
    RippleError
        Whatever a stage raises.
    """
    sections = load_yaml(path)
    for key in sections:
        if key not in (*CHAIN, "run"):
            raise ConfigError(f"{path}: unknown stage {key!r}" + suggest(key, list(CHAIN)))
    own = sections.get("run") or {}
    if not isinstance(own, dict):
        raise ConfigError(f"{path}: 'run' must be a mapping of options")
    config = RunConfig.make({**own, **overrides})
    if not config.output:
        raise ConfigError("run: no output directory", hint="give one with -o DIR")
    out = Path(config.output)
    names = [name for name in CHAIN if name in sections and not (name == "train" and config.model)]
    # All sections are validated before the first stage costs an hour.
    options = {name: _options(name, sections[name], config, names) for name in names}
    for name in names:
        _stage(name, options[name])
    memory = _remembered(out)
    start = time.perf_counter()
    summaries: list[Summary] = []
    for name in names:
        announce(f"{name} -> {out / CHAIN[name]}")
        summaries.append(_made(name, options[name], out / CHAIN[name]))
    spent = _remember(out, memory, summaries)
    return ChainResult(tuple(summaries), out, time.perf_counter() - start, spent)


def _options(name: str, section: Any, config: RunConfig, names: list[str]) -> dict[str, Any]:
    """The section with its directories filled in where it does not name them."""
    if section is not None and not isinstance(section, dict):
        raise ConfigError(f"{name!r} must be a mapping of options")
    out = Path(config.output)
    at = {stage: str(out / directory) for stage, directory in CHAIN.items()}
    wiring: dict[str, dict[str, Any]] = {
        "simulate": {"output": at["simulate"]},
        "fetch": {"output": at["fetch"]}
        | ({"repo": f"{at['simulate']}/repo", "collections": ["mini"]} if "simulate" in names else {}),
        "preprocess": {"cutouts": at["fetch"], "output": at["preprocess"]},
        "train": {"tensors": [at["preprocess"]], "output": at["train"]},
        "score": {"model": config.model or at["train"], "tensors": [at["preprocess"]], "output": at["score"]},
        "report": {"source": at["score"], "output": at["report"]},
    }
    return wiring[name] | {k: _filled(v, out) for k, v in (section or {}).items()}


def _filled(value: Any, out: Path) -> Any:
    if isinstance(value, str):
        return value.replace("{output}", str(out))
    if isinstance(value, list):
        return [_filled(v, out) for v in value]
    return value


def _stage(name: str, options: dict[str, Any]) -> Callable[[], Summary]:
    """The stage as a call without arguments, its options validated."""
    match name:
        case "simulate":
            simulation = SimulateConfig.make(options)
            return lambda: simulate(simulation)
        case "fetch":
            selection = FetchConfig.make(options)
            return lambda: fetch(selection)
        case "preprocess":
            preparation = PreprocessConfig.make(options)
            return lambda: preprocess(preparation)
        case "train":
            training = TrainConfig.make(options)
            return lambda: _train(training)
        case "score":
            scoring = ScoreConfig.make(options)
            return lambda: _score(scoring)
        case _:
            page = ReportConfig.make(options)
            return lambda: report(page)


def _train(config: Any) -> Summary:
    from ripple.learn.training.train import train

    return train(config)


def _score(config: Any) -> Summary:
    from ripple.learn.scoring.score import score

    return score(config)


def _made(name: str, options: dict[str, Any], usual: Path) -> Summary:
    """Run a stage; what it made in its usual place from inputs that have changed since is made again."""
    try:
        return _stage(name, options)()
    except OtherInputsError:
        if str(usual) != str(options["output"]) or not _clear(usual):
            raise
        return _stage(name, options)()


def _clear(directory: Path) -> bool:
    """Remove what a stage made; False where no record of ours vouches for it, or a link leads elsewhere."""
    ours = is_finished(directory) or is_begun(directory) or (directory / ".train" / "run.json").is_file()
    if directory.is_symlink() or not ours:
        return False
    try:
        shutil.rmtree(directory)
    except OSError as err:
        raise write_error(directory, err) from None
    return True


def _remembered(out: Path) -> dict[str, StageCost]:
    """`run.json`: what the stages of earlier runs cost, by verb; empty before the first run."""
    path = out / MEMORY
    if not path.exists():
        return {}
    try:
        found = json.loads(read_whole(path))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(
        isinstance(stage, dict) and isinstance(stage.get("seconds"), int | float) for stage in found.values()
    ):
        raise IntegrityError(f"{path}: damaged", hint="remove it; it only holds what the stages cost")
    return found


def _remember(out: Path, memory: dict[str, StageCost], summaries: list[Summary]) -> dict[str, float]:
    """Keep the seconds of each stage for the next closing screen, and return them."""
    fresh: dict[str, StageCost] = {
        s.verb: {"seconds": s.seconds, "facts": s.facts} for s in summaries if not s.done_before
    }
    both = memory | fresh
    make_directory(out)  # every stage may have a place of its own
    write_single(out / MEMORY, json.dumps(both, indent=1, sort_keys=True, default=str).encode())
    return {verb: float(stage["seconds"]) for verb, stage in both.items()}


def print_outcome(outcome: ChainResult) -> None:
    """The closing screen: a line per stage, then what matters of each."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(stderr=True)
    table = Table(title="ripple run", title_justify="left", box=None)
    for column in ("stage", "seconds", "result"):
        table.add_column(column)
    for s in outcome.summaries:
        facts = ", ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v}" for k, v in s.facts.items())
        seconds = outcome.spent.get(s.verb, 0.0)
        table.add_row(s.verb, f"{seconds:.1f}{' (before)' if s.done_before else ''}", Text(plain(facts)))
        if s.rejections:
            reasons = ", ".join(f"{k} {v:,}" for k, v in sorted(s.rejections.items(), key=lambda i: -i[1]))
            table.add_row("", "", Text(plain(f"reasons: {reasons}"), style="dim"))
    console.print(table)
    if outcome.done_before:
        console.print("everything was already finished: nothing to do")
    else:
        console.print(f"{outcome.seconds:.0f} s in all")
    page = outcome.output / CHAIN["report"] / "index.html"
    if page.exists():
        console.print(Text(f"report: {page.resolve()}", style="bold"))
