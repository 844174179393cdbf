"""`ripple run`: the chain that one YAML file describes, stage after stage.

    OUT/sky  OUT/cutouts  OUT/tensors  OUT/model  OUT/scores  OUT/report

A stage that is finished with the same options and inputs is left alone. A stage that runs makes those after
it run again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from ripple.config import Config, load_yaml, suggest
from ripple.errors import ConfigError
from ripple.profile import Summary, plain

#: Stage -> directory in the output, in the order of the chain.
CHAIN: dict[str, str] = {
    "simulate": "sky",
    "fetch": "cutouts",
    "preprocess": "tensors",
    "train": "model",
    "score": "scores",
    "report": "report",
}

#: Durations of the stages, in the output.
RECORD = "run.json"


class RunConfig(Config):
    """Options of `ripple run` itself; the stages have sections of their own."""

    verb: ClassVar[str] = "run"

    output: str = Field("", description="Directory for the output of all stages.")
    model: str | None = Field(None, description="Score with this model instead of training one.")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the chain did: one summary per stage, in order."""

    summaries: tuple[Summary, ...]
    output: Path
    seconds: float

    @property
    def done_before(self) -> bool:
        """True when there was nothing to do."""
        return all(s.done_before for s in self.summaries)


def run_chain(
    path: Path, overrides: dict[str, Any], announce: Callable[[str], None] = lambda _: None
) -> Outcome:
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
    start = time.perf_counter()
    summaries: list[Summary] = []
    for k, name in enumerate(names):
        announce(f"{name} -> {out / CHAIN[name]}")
        summary = _stage(name, options[name])()
        summaries.append(summary)
        if not summary.done_before:
            _clear(out, names[k + 1 :])
    outcome = Outcome(tuple(summaries), out, time.perf_counter() - start)
    _remember(outcome)
    return outcome


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
        "score": {
            "model": config.model or at["train"],
            "tensors": [at["preprocess"]],
            "output": at["score"],
        },
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
            from ripple.simulate import SimulateConfig, simulate

            simulation = SimulateConfig.make(options)
            return lambda: simulate(simulation)
        case "fetch":
            from ripple.fetch import FetchConfig, fetch

            selection = FetchConfig.make(options)
            return lambda: fetch(selection)
        case "preprocess":
            from ripple.preprocess import PreprocessConfig, preprocess

            preparation = PreprocessConfig.make(options)
            return lambda: preprocess(preparation)
        case "train":
            from ripple.learn.train_config import TrainConfig

            training = TrainConfig.make(options)
            return lambda: _train(training)
        case "score":
            from ripple.learn.score_config import ScoreConfig

            scoring = ScoreConfig.make(options)
            return lambda: _score(scoring)
        case _:
            from ripple.report import ReportConfig, report

            page = ReportConfig.make(options)
            return lambda: report(page)


def _train(config: Any) -> Summary:
    from ripple.learn.train import train

    return train(config)


def _score(config: Any) -> Summary:
    from ripple.learn.score import score

    return score(config)


def _clear(out: Path, later: list[str]) -> None:
    """Remove what later stages made from an output that has just been made again."""
    for name in later:
        directory = out / CHAIN[name]
        if any((directory / mark).exists() for mark in ("manifest.json", "model.json", "index.html")):
            shutil.rmtree(directory)


def _remember(outcome: Outcome) -> None:
    """Keep the seconds of each stage for the next closing screen."""
    from ripple.files import write_single

    path = outcome.output / RECORD
    before = _record(path)
    for summary in outcome.summaries:
        if not summary.done_before:
            before[summary.verb] = {"seconds": summary.seconds, "facts": summary.facts}
    write_single(path, json.dumps(before, indent=1, sort_keys=True, default=str).encode())


def _record(path: Path) -> dict[str, Any]:
    """What `_remember` kept; nothing when it is damaged: durations decide nothing."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _seconds(record: dict[str, Any], verb: str) -> float:
    stage = record.get(verb)
    seconds = stage.get("seconds") if isinstance(stage, dict) else None
    return float(seconds) if isinstance(seconds, float) else 0.0


def print_outcome(outcome: Outcome) -> None:
    """The closing screen: a line per stage, then what matters of each."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(stderr=True)
    record = _record(outcome.output / RECORD)
    table = Table(title="ripple run", title_justify="left", box=None)
    for column in ("stage", "seconds", "result"):
        table.add_column(column)
    for s in outcome.summaries:
        facts = ", ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v}" for k, v in s.facts.items())
        seconds = _seconds(record, s.verb)
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
