"""The verbs as functions with the keywords of the YAML: `ripple.preprocess("cutouts", output="tensors")`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_origin

from pydantic.fields import FieldInfo

from ripple.cli.verbs import STAGES, Verb
from ripple.config import Config
from ripple.errors import ConfigError
from ripple.notebook.artefact import Artefact, open_directory
from ripple.notebook.model import Model
from ripple.runtime.summary import plain

#: Name in Python -> verb, where it differs: `import` is a keyword, and `ripple.report` is a package.
_NAMES = {"import_cutouts": "import", "write_report": "report"}
#: Verbs whose output is an artefact or a model, which is returned opened; others return the path.
_OPENED = (
    "fetch", "preprocess", "inject", "train", "score", "search", "committee", "embed", "import",
    "import-model",
)  # fmt: skip
_INDENT = "    "


def stage_of(verb: str) -> tuple[Verb, type[Config]]:
    """The stage of a verb, and the model of its options."""
    stage = STAGES[verb]
    return stage, _load(stage.options)


def verb_of(name: str) -> str:
    """The verb that a function is named after."""
    return _NAMES.get(name, name.replace("_", "-"))


def function(name: str) -> Callable[..., Any]:
    """The function of a public name: `fetch`, `train`, `import_cutouts`, ..."""
    verb = verb_of(name)
    stage, model = stage_of(verb)

    def call(*arguments: Any, **options: Any) -> Any:
        config = model.make(_values(name, stage, arguments, options))
        if getattr(config, "dry_run", False):
            return _load(stage.function)(config).facts
        for note in _load(stage.function)(config).notes:
            print(f"{verb}: {plain(note)}", file=sys.stderr)  # what the command line says, too
        output = Path(str(options["output"] if "output" in options else _plain(arguments[-1])))
        return open_directory(output) if verb in _OPENED else output

    call.__name__ = call.__qualname__ = name
    call.__module__ = "ripple"
    call.__doc__ = _doc(stage, model, opened=verb in _OPENED)
    call.__signature__ = _signature(stage, model)  # type: ignore[attr-defined]
    return call


def _values(name: str, stage: Verb, arguments: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """The options as values of the model; positional arguments are those of the command line."""
    if len(arguments) > len(stage.arguments):
        said = ", ".join(stage.arguments) or "none"
        raise ConfigError(f"{name}: {len(arguments)} positional arguments, but it takes {said}")
    given = dict(zip(stage.arguments, arguments, strict=False))
    if twice := given.keys() & options.keys():
        raise ConfigError(f"{name}: {twice.pop()} is given twice")
    fields = _load(stage.options).model_fields
    return {
        key: _several(key, _plain(value)) if _is_tuple(fields, key) else _plain(value)
        for key, value in {**given, **options}.items()
    }


def _is_tuple(fields: Mapping[str, FieldInfo], key: str) -> bool:
    """Whether an option takes several values."""
    return key in fields and get_origin(fields[key].annotation) is tuple


def _several(key: str, value: Any) -> Any:
    """A text for an option that takes several: one value, or the letters of `bands="gri"`."""
    if not isinstance(value, str):
        return value
    if key != "bands":
        return (value,)
    parts = tuple(part.strip() for part in value.split(","))
    return tuple(value) if set(value) <= set("ugrizy") else parts


def _plain(value: Any) -> Any:
    """Opened directories and paths as text, also within lists."""
    if isinstance(value, Artefact | Model):
        return str(value.directory)
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    return str(value) if isinstance(value, Path) else value


def _signature(stage: Verb, model: type[Config]) -> inspect.Signature:
    """What completion and `help()` show: the options with their defaults."""
    kinds = inspect.Parameter
    parameters = []
    for name, info in sorted(model.model_fields.items(), key=lambda item: item[0] not in stage.arguments):
        default = kinds.empty if info.is_required() else info.default
        kind = kinds.POSITIONAL_OR_KEYWORD if name in stage.arguments else kinds.KEYWORD_ONLY
        # Python wants no parameter without a default behind one with a default.
        if kind is kinds.POSITIONAL_OR_KEYWORD:
            default = kinds.empty
        parameters.append(kinds(name, kind, default=default))
    return inspect.Signature(parameters)


def _doc(stage: Verb, model: type[Config], *, opened: bool) -> str:
    """The text of `help()`: the help of the verb, and every option with its description."""
    lines = [stage.help, "", "Parameters", "----------"]
    for name, info in model.model_fields.items():
        lines += [name, f"{_INDENT}{info.description}"]
    returned = "The output, opened as by `ripple.open`." if opened else "The path of the output."
    lines += [
        "",
        "Returns",
        "-------",
        returned,
        "",
        "Raises",
        "------",
        "RippleError",
        f"{_INDENT}As the verb.",
    ]
    return "\n".join(lines)


def _load(place: str) -> Any:
    """The object at `module:name`."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
