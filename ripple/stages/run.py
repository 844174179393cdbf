"""`ripple run`: the chain that one YAML file describes, stage after stage.

    OUT/sky  OUT/cutouts  OUT/labelled  OUT/tensors  OUT/model  OUT/scores  OUT/report

A stage that is finished with the same options and inputs is left alone. One that was made with the same
options from other inputs, because a stage before it was made again, is removed and made again. One that was
made with other options is refused or, with `redo`, moved aside (`OUT/tensors.old-1`) and made again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

from pydantic import Field

from ripple.config import Config, canonical_json, key_lines, load_yaml, problems, suggest
from ripple.errors import ConfigError, IntegrityError, OtherInputsError, OtherOptionsError
from ripple.learn.config import ScoreConfig, TrainConfig
from ripple.runtime.summary import Summary, plain
from ripple.stages.fetch.config import FetchConfig
from ripple.stages.fetch.fetch import fetch
from ripple.stages.inject.config import InjectConfig
from ripple.stages.inject.inject import inject
from ripple.stages.preprocess.config import PreprocessConfig
from ripple.stages.preprocess.preprocess import preprocess
from ripple.stages.report.config import ReportConfig
from ripple.stages.report.report import report
from ripple.stages.simulate.config import SimulateConfig
from ripple.stages.simulate.simulate import simulate
from ripple.storage.files import make_directory, read_whole, write_error, write_single
from ripple.storage.manifest import first_difference, is_finished, read_manifest
from ripple.storage.writer import is_begun

#: Stage -> directory in the output, in the order of the chain.
CHAIN: dict[str, str] = {
    "simulate": "sky",
    "fetch": "cutouts",
    "inject": "labelled",
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


@dataclass(frozen=True, slots=True)
class StageState:
    """What a run would do with a stage: `left`, `made`, `resumed`, `changed` or `follows`; and why."""

    name: str
    action: Literal["left", "made", "resumed", "changed", "follows"]
    why: str


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain that was read from a file and checked: stages in order, with their options."""

    config: RunConfig
    options: dict[str, dict[str, Any]]
    other: tuple[str, ...] = ()

    @property
    def output(self) -> Path:
        """The directory of all stages."""
        return Path(self.config.output)


def read_chain(path: Path, overrides: dict[str, Any], verbs: Collection[str] = ()) -> Chain:
    """The stages of a YAML file, validated before the first one costs an hour.

    Parameters
    ----------
    path
        YAML file; `{output}` in a value stands for the output directory, `{here}` for the folder of the file.
    overrides
        Options of `run` that win over the file.
    verbs
        All verbs: sections of those that are no stages are left alone.

    Raises
    ------
    ConfigError
        All unknown sections and keys, wrong values, and stages without their input, each with its line.
    """
    sections = load_yaml(path)
    wrong: list[tuple[tuple[str, ...], str]] = []
    known = {*CHAIN, "run", *verbs}
    wrong += [
        ((key,), f"unknown section {key!r}{suggest(key, list(known))}")
        for key in sections
        if key not in known
    ]
    for key in (key for key in sections if key in known):
        if not isinstance(sections[key], dict | None):
            wrong.append(((key,), f"{key!r} must be a mapping of options"))
            sections[key] = {}
    own = {**(sections.get("run") or {}), **overrides}
    wrong += [(("run", key), text) for key, text in problems(RunConfig, own)]
    config = RunConfig.make({} if wrong else own)
    if not config.output:
        wrong.append(((), "run: no output directory (give one with -o DIR)"))
    names = [name for name in CHAIN if name in sections and not (name == "train" and config.model)]
    options = {name: _options(name, sections[name], config, names) for name in names}
    for name in names:
        wrong += [((name, key), f"{name}: {text}") for key, text in problems(MODELS[name], options[name])]
    if wrong:
        raise ConfigError(_all_of(path, wrong))
    return Chain(config, options, tuple(key for key in sections if key not in CHAIN and key != "run"))


def _all_of(path: Path, wrong: Sequence[tuple[tuple[str, ...], str]]) -> str:
    """Every problem of a file in one message, with the lines."""
    lines = key_lines(path)
    said = []
    for where, text in wrong:
        line = lines.get(where) or lines.get(where[:1])
        said.append(f"line {line}: {text}" if line else text)
    return f"{path}: " + "; ".join(said)


def run_chain(
    path: Path,
    overrides: dict[str, Any],
    announce: Callable[[str], None] = lambda _: None,
    *,
    verbs: Collection[str] = (),
    redo: bool = False,
) -> ChainResult:
    """Run the stages that the file has sections for.

    Parameters
    ----------
    path, overrides, verbs
        As for `read_chain`.
    announce
        Called with one line before each stage.
    redo
        Move a stage aside that was made with other options, and make it again.

    Raises
    ------
    ConfigError
        As for `read_chain`, or a stage was made with other options.
    IntegrityError
        `run.json` of an earlier run is damaged.
    RippleError
        Whatever a stage raises.
    """
    chain = read_chain(path, overrides, verbs)
    for key in chain.other:
        announce(f"section {key!r} is no stage of a run and is left alone")
    out = chain.output
    memory = _remembered(out)
    start = time.perf_counter()
    summaries: list[Summary] = []
    for name, options in chain.options.items():
        announce(f"{name} -> {out / CHAIN[name]}")
        summaries.append(_made(name, options, out / CHAIN[name], announce, redo=redo))
    spent = _remember(out, memory, summaries)
    return ChainResult(tuple(summaries), out, time.perf_counter() - start, spent)


def foreseen(chain: Chain) -> list[StageState]:
    """What a run would do with each stage, without doing it."""
    states: list[StageState] = []
    again = False
    for name, options in chain.options.items():
        state = _state(name, options, Path(options["output"]))
        if again and state.action == "left":
            state = StageState(name, "follows", "a stage before it is made again")
        again = again or state.action in ("made", "changed", "resumed")
        states.append(state)
    return states


def _state(name: str, options: dict[str, Any], directory: Path) -> StageState:
    if not is_finished(directory):
        begun = is_begun(directory)
        return StageState(name, "resumed" if begun else "made", "interrupted" if begun else "not there yet")
    config = MODELS[name].make(options)
    new = json.loads(canonical_json(config.canonical()))
    old = read_manifest(directory)["config"]
    changed = first_difference(old, new, name)
    return StageState(name, "changed", changed) if changed else StageState(name, "left", "finished")


def _options(name: str, section: Any, config: RunConfig, names: list[str]) -> dict[str, Any]:
    """The section with its directories filled in where it does not name them."""
    out = Path(config.output)
    at = {stage: str(out / directory) for stage, directory in CHAIN.items()}
    wiring: dict[str, dict[str, Any]] = {
        "simulate": {"output": at["simulate"]},
        "fetch": {"output": at["fetch"]}
        | ({"repo": f"{at['simulate']}/repo", "collections": ["mini"]} if "simulate" in names else {}),
        "inject": {"cutouts": at["fetch"], "output": at["inject"]},
        "preprocess": {"cutouts": at["inject" if "inject" in names else "fetch"], "output": at["preprocess"]},
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


#: Stage -> its options.
MODELS: dict[str, type[Config]] = {
    "simulate": SimulateConfig,
    "fetch": FetchConfig,
    "inject": InjectConfig,
    "preprocess": PreprocessConfig,
    "train": TrainConfig,
    "score": ScoreConfig,
    "report": ReportConfig,
}


def _stage(name: str, options: dict[str, Any]) -> Summary:
    """Run a stage."""
    config: Any = MODELS[name].make(options)
    match name:
        case "simulate":
            return simulate(config)
        case "fetch":
            return fetch(config)
        case "inject":
            return inject(config)
        case "preprocess":
            return preprocess(config)
        case "train":
            return _train(config)
        case "score":
            return _score(config)
        case _:
            return report(config)


def _train(config: Any) -> Summary:
    from ripple.learn.training.train import train

    return train(config)


def _score(config: Any) -> Summary:
    from ripple.learn.scoring.score import score

    return score(config)


def _made(
    name: str, options: dict[str, Any], usual: Path, announce: Callable[[str], None], *, redo: bool
) -> Summary:
    """Run a stage; what it made in its usual place from inputs that have changed since is made again."""
    try:
        return _stage(name, options)
    except OtherInputsError:
        if str(usual) != str(options["output"]) or not _clear(usual):
            raise
    except OtherOptionsError as err:
        if not redo:
            later = list(CHAIN)[list(CHAIN).index(name) + 1 :]
            hint = f"--redo moves it aside and makes it again, and what follows from it: {', '.join(later)}"
            raise OtherOptionsError(err.message, hint=hint if later else "--redo makes it again") from None
        aside = _moved_aside(Path(options["output"]))
        announce(f"{name}: {err.message.partition(': ')[2]}; the former one is now {aside}")
    return _stage(name, options)


def _moved_aside(directory: Path) -> Path:
    """Rename a directory that a stage made; refused where no record of ours vouches for it."""
    if directory.is_symlink() or not _is_ours(directory):
        raise ConfigError(f"{directory}: RIPPLe did not make it", hint="move it away yourself")
    number = 1
    while (aside := directory.with_name(f"{directory.name}.old-{number}")).exists():
        number += 1
    try:
        directory.rename(aside)
    except OSError as err:
        raise write_error(directory, err) from None
    return aside


def _is_ours(directory: Path) -> bool:
    return is_finished(directory) or is_begun(directory) or (directory / ".train" / "run.json").is_file()


def _clear(directory: Path) -> bool:
    """Remove what a stage made; False where no record of ours vouches for it, or a link leads elsewhere."""
    if directory.is_symlink() or not _is_ours(directory):
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
