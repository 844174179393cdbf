"""Write the pages of docs/reference that come from the code: command line, configuration, flags, Python.

python scripts/reference_pages.py
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from pydantic import TypeAdapter

import ripple
from ripple import errors
from ripple.cli import GROUPS, ErrorOutput, group
from ripple.cli.verbs import STAGES
from ripple.config import Config, is_setting
from ripple.imaging.quality.flags import DEFAULT_REJECT, Flag
from ripple.imaging.quality.judge import Thresholds
from ripple.notebook.verbs import stage_of
from ripple.runtime.summary import SummaryOutput
from ripple.stages.doctor import Check
from ripple.stages.locate.locate import Location
from ripple.stages.plan.estimate import DryRun

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"
MADE = "*Written by `python scripts/reference_pages.py`; a test compares.*\n"


def cell(text: Any) -> str:
    """Text for a cell of a Markdown table."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(map(cell, row))} |" for row in rows)]) + "\n"


# Command line ---------------------------------------------------------


def command_line() -> str:
    """Every verb with its arguments and flags, as `--help` has them."""
    context = click.Context(group, info_name="ripple", **group.context_settings)
    parts = [
        "# Command line\n",
        "Flags win over the YAML of `-c`; options without a flag are given with `--set NAME=VALUE` and are on the\n"
        "page [configuration](configuration.md). `ripple VERB --help` prints the same.\n",
        MADE,
        "## Completion in the shell\n",
        '`eval "$(_RIPPLE_COMPLETE=bash_source ripple)"` in `~/.bashrc` completes verbs, flags and values; with\n'
        "`zsh_source` in `~/.zshrc`, and `_RIPPLE_COMPLETE=fish_source ripple | source` for fish.\n",
    ]
    for title, verbs in GROUPS.items():
        parts.append(f"## {title}\n")
        for verb in verbs:
            command = group.get_command(context, verb)
            assert command is not None
            parts += _verb(command, verb, context)
    return "\n".join(parts)


def _verb(command: click.Command, verb: str, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=verb, parent=parent)
    yield f"### ripple {verb}\n"
    yield inspect.cleandoc(command.help or "") + "\n"
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```sh\nripple {verb} {usage}\n{(command.epilog or '').removeprefix('Example: ')}\n```\n"
    rows = []
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context)):
            rows.append((f"`{record[0]}`", record[1]))
    yield table(("flag", "meaning"), rows)


# Configuration --------------------------------------------------------


def models() -> dict[str, type[Config]]:
    """Section of the YAML -> model of its options."""
    found = {verb: stage_of(verb)[1] for verb in STAGES}
    return {model.verb: model for model in found.values()}


def configuration() -> str:
    """Every option of the YAML with type, default and meaning."""
    parts = [
        "# Configuration\n",
        "One YAML file serves all verbs: a section per verb, named like it. `ripple VERB -c FILE` reads its own\n"
        "section, `ripple run -c FILE` all of them. In Python the same words are keywords:\n"
        '`ripple.preprocess("cutouts", output="tensors", psf="match")`. An option with *no* in the column *flag* has no\n'
        "flag of its own; `--set NAME=VALUE` sets it. One with *no* in the column *bytes* changes speed or messages, but no byte\n"
        "of the output.\n",
        MADE,
    ]
    for verb, model in models().items():
        parts += [
            f"## {verb}\n",
            table(("option", "type", "default", "flag", "bytes", "meaning"), _options(model)),
        ]
    parts += [
        "## quality\n",
        "A mapping under `preprocess`: `quality: {max_bad: 0.2}`, or `--set quality.max_bad=0.2`.\n",
        table(("option", "type", "default", "flag", "bytes", "meaning"), _options(Thresholds)),
    ]
    return "\n".join(parts)


def _options(model: type[Config]) -> list[tuple[Any, ...]]:
    rows = []
    for name, info in model.model_fields.items():
        extra = info.json_schema_extra
        neutral = isinstance(extra, dict) and extra.get("neutral")
        default = "required" if info.is_required() else _default(info.default)
        flag = "no" if is_setting(extra) or isinstance(info.default, Config) or model is Thresholds else ""
        rows.append(
            (f"`{name}`", _type(info.annotation), default, flag, "no" if neutral else "", info.description)
        )
    return rows


def _default(value: Any) -> str:
    if isinstance(value, Config):
        return "see below"
    if value in (None, "", ()):
        return ""
    return f"`{','.join(map(str, value))}`" if isinstance(value, tuple) else f"`{value}`"


def _type(kind: Any) -> str:
    """A type as an astronomer says it."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return ", ".join(map(str, inside))
    if origin is typing.Annotated:
        return _type(inside[0])
    if origin is tuple:
        kinds = [_type(part) for part in inside if part is not Ellipsis]
        return f"list of {kinds[0]}" if Ellipsis in inside else f"{len(kinds)} x {kinds[0]}"
    if inside:
        return " or ".join(_type(part) for part in inside if part is not type(None))
    names = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path"}
    return names.get(kind, getattr(kind, "__name__", str(kind)).lower())


# Flags and reasons ----------------------------------------------------


def flags_and_reasons() -> str:
    """Quality flags, reasons of the index, and exit codes."""
    said = _comments(Flag)
    flags = [
        (flag.value, f"`{flag.label}`", "yes" if flag.label in DEFAULT_REJECT else "", said[flag.name])
        for flag in Flag
    ]
    why = _comments(errors.Reason)
    reasons = [(f"`{reason.value}`", why[reason.name]) for reason in errors.Reason]
    return "\n".join([
        "# Flags, reasons, exit codes\n",
        MADE,
        "## Quality flags\n",
        "Bits of the column `qc` of tensors and scores; `qc_flags_BAND` has them for each band. `ripple preprocess` sets\n"
        "them, with the thresholds of the section [quality](configuration.md#quality); the third column says which reject a\n"
        "row by default.\n",
        table(("bit", "flag", "rejects", "set when"), flags),
        _examples("flags", "An example of each flag that the simulated survey has: the band that has it, black to white by flux, red without data"),
        "## Reasons\n",
        "The column `reason` of `index.parquet`: why a row is `partial` or `rejected`. `detail` beside it names the\n"
        "file or the value.\n",
        table(("reason", "meaning"), reasons),
        _examples("reasons", "An example of each reason of the simulated survey whose rows have pixels, drawn in the same way"),
        "## Exit codes\n",
        table(("code", "meaning"), _exit_codes()),
    ])  # fmt: skip


def _examples(name: str, said: str) -> str:
    """A picture that `scripts/pictures.py` draws."""
    return f"{said}\n(`python scripts/pictures.py`):\n\n![{said}](../pictures/{name}.png)\n"


def _comments(kind: type) -> dict[str, str]:
    """Member of an enumeration -> the comment behind it."""
    lines = inspect.getsource(kind).splitlines()
    found = (re.match(r"\s+([A-Z_]+) = [^#]+(?:# (.*))?$", line) for line in lines)
    return {match[1]: match[2] or "" for match in found if match}


def _exit_codes() -> list[tuple[Any, ...]]:
    codes: dict[int, str] = {0: "Done, or already done.", 1: "An error in RIPPLe itself; please report it."}
    for thing in vars(errors).values():
        if isinstance(thing, type) and issubclass(thing, errors.RippleError) and "exit_code" in vars(thing):
            codes.setdefault(thing.exit_code, inspect.cleandoc(thing.__doc__ or "").split("\n\n")[0])
    return [*sorted(codes.items()), ("130, 143", "Interrupted; the same command again goes on.")]


# Python ---------------------------------------------------------------


def python() -> str:
    """The public names with their signatures and what they say about themselves."""
    names = [name for name in dir(ripple) if not name.startswith("_")]
    things = {name: getattr(ripple, name) for name in names}
    classes = {name: thing for name, thing in things.items() if isinstance(thing, type)}
    parts = [
        "# Python\n",
        "`import ripple` loads nothing else; each name below is loaded when it is used. The functions named like verbs take\n"
        "the options of the page [configuration](configuration.md) as keywords.\n",
        MADE,
    ]
    for name, thing in things.items():
        if name in classes:
            continue
        parts += [f"## ripple.{name}\n", *_function(f"ripple.{name}", thing, short=_is_verb(name))]
    for name, thing in classes.items():
        parts += [f"## ripple.{name}\n", _text(thing.__doc__)]
        for member, value in vars(thing).items():
            if member.startswith("_") or not getattr(value, "__doc__", None) or _is_field(thing, member):
                continue
            if isinstance(value, property):
                parts += [f"### {name}.{member}\n", _text(value.__doc__)]
            elif callable(value):
                parts += [f"### {name}.{member}\n", *_function(f"{name}.{member}", value, short=False)]
    return "\n".join(parts)


def _is_verb(name: str) -> bool:
    return name in ripple._VERBS


def _is_field(kind: type, member: str) -> bool:
    return dataclasses.is_dataclass(kind) and member in {field.name for field in dataclasses.fields(kind)}


def _function(name: str, thing: Any, *, short: bool) -> list[str]:
    signature = "(...)" if short else str(inspect.signature(thing)).replace("'", "")
    text = (thing.__doc__ or "").split("\n\nParameters")[0] if short else thing.__doc__
    return [f"```python\n{name}{signature}\n```\n", _text(text)]


def _text(text: str | None) -> str:
    """A numpydoc text as Markdown: sections become bold lines, parameters a list."""
    lines = inspect.cleandoc(text or "").split("\n")
    out: list[str] = []
    inside = ""
    for k, line in enumerate(lines):
        if k + 1 < len(lines) and re.fullmatch(r"-{4,}", lines[k + 1]) and line:
            inside = line
            out += ["", f"**{line}**", ""]
        elif re.fullmatch(r"-{4,}", line):
            continue
        elif inside == "Examples" and line.startswith(">>>"):
            out.append(f"    {line.removeprefix('>>> ').split('  # doctest')[0]}")
        elif inside and line and not line.startswith(" ") and not line.startswith(">>>"):
            out.append(f"- `{line}`" if inside in ("Parameters", "Attributes", "Raises") else line)
        elif inside and line.startswith(" "):
            out.append(f"  {line.strip()}")
        else:
            out.append(line)
    return "\n".join(out).strip() + "\n"


# JSON -------------------------------------------------------------------

#: Who prints it -> its type.
OUTPUTS: dict[str, Any] = {
    "Verbs that make something; show, status, verify": SummaryOutput,
    "run": list[SummaryOutput],
    "plan": DryRun,
    "locate": Location,
    "doctor": list[Check],
    "show --failures, --rows, --columns; similar": list[dict[str, str | int | float | bool | None]],
    "Any verb that fails": ErrorOutput,
}


def json_outputs() -> str:
    """The JSON schema of what `--json` prints."""
    parts = [
        "# JSON\n",
        "`--json` prints one line on stdout, and messages stay on stderr. Numbers are numbers, and their unit ends their\n"
        "name. A command that fails prints the object of the last section and exits with the code in it; one that is\n"
        "used wrongly (an option that does not exist) prints nothing on stdout. `locate --targets` prints a line for each\n"
        "position.\n",
        MADE,
    ]
    for title, kind in OUTPUTS.items():
        schema = json.dumps(TypeAdapter(kind).json_schema(), indent=1)
        parts += [f"## {title}\n", f"```json\n{schema}\n```\n"]
    return "\n".join(parts)


PAGES = {
    "command-line.md": command_line,
    "configuration.md": configuration,
    "flags.md": flags_and_reasons,
    "json.md": json_outputs,
    "python.md": python,
}


def main() -> None:
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make())


if __name__ == "__main__":
    main()
