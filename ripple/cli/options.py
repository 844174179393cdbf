"""Click options made from a configuration model, so that flags and YAML keys are the same list.

`@config_options(FetchConfig)` adds one flag per field plus `-c/--config`, and calls the command with a
validated `config`. A field `psf_fwhm` becomes `--psf-fwhm`; a tuple of strings is given comma-separated; a
bool becomes `--x/--no-x`; a mapping or a `setting` has no flag: it stands in the YAML, or in `--set`.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Union

import click
import yaml
from pydantic.fields import FieldInfo

from ripple.config import Config, is_setting, load_yaml, suggest
from ripple.errors import ConfigError

#: Arguments of a command that are no fields of its model.
_OWN = ("config_file", "settings")


def config_options(
    model: type[Config],
    *,
    short: dict[str, str] | None = None,
    arguments: tuple[str, ...] = (),
    of: type[Config] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a click callback so that it receives `config: model`.

    Parameters
    ----------
    model
        Fields become flags; `description` becomes the help text.
    short
        Field -> short flag, as in `{"output": "-o"}`.
    arguments
        Fields that are positional arguments instead of flags.
    of
        The model of another verb whose section of the YAML is read: what only that verb uses is left out.
    """
    names = short or {}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            given = {k: v for k, v in kwargs.items() if k in model.model_fields and not _absent(v)}
            rest = {k: v for k, v in kwargs.items() if k not in model.model_fields and k not in _OWN}
            found = section(kwargs.get("config_file"), (of or model).verb)
            if of is not None:
                found = {
                    k: v for k, v in found.items() if k in model.model_fields or k not in of.model_fields
                }
            values = {**found, **given}
            config = model.make(_with_settings(values, kwargs.get("settings") or (), model))
            return function(*args, config=config, **rest)

        wrapped: Callable[..., Any] = wrapper
        for name, info in reversed(model.model_fields.items()):
            if _is_setting(info):
                continue
            if name in arguments:
                nargs = -1 if _is_tuple(info.annotation) else 1
                wrapped = click.argument(name, nargs=nargs, required=False, metavar=name.upper())(wrapped)
                continue
            flag = "--" + name.rstrip("_").replace("_", "-")  # `import_` is a word of Python without its line
            kind = _strip_none(info.annotation)
            decls = [names[name]] if name in names else []
            shown = info.description or ""
            if not info.is_required() and info.default not in (None, "", (), False):
                value = info.default
                shown += f"  [default: {','.join(map(str, value)) if isinstance(value, tuple) else value}]"
            if kind is bool:
                wrapped = click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=shown)(wrapped)
            else:
                wrapped = click.option(*decls, flag, name, default=None, type=_click_type(kind), help=shown)(
                    wrapped
                )
        if settings := [name for name, info in model.model_fields.items() if _is_setting(info)]:
            wrapped = click.option(
                "--set",
                "settings",
                multiple=True,
                metavar="NAME=VALUE",
                help=f"An option of the YAML that has no flag; may be repeated: {', '.join(settings)}.",
            )(wrapped)
        return click.option(
            "-c",
            "--config",
            "config_file",
            type=click.Path(path_type=Path),
            help="YAML file; flags win over it.",
        )(wrapped)

    return decorate


def section(path: Path | None, verb: str) -> dict[str, Any]:
    """The verb's section of a YAML file, empty without a file.

    Raises
    ------
    ConfigError
        A top-level key that is no verb, or a section that is no mapping.
    """
    if path is None:
        return {}
    from ripple.cli import VERBS

    whole = load_yaml(path)
    for key in whole:
        if key not in VERBS:
            raise ConfigError(f"{path}: unknown key {key!r}" + suggest(key, list(VERBS)))
    value = whole.get(verb, {})
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {verb!r} must be a mapping of options")
    return value


def _absent(value: Any) -> bool:
    return value is None or value == ()


def _strip_none(annotation: Any) -> Any:
    if typing.get_origin(annotation) in (Union, types.UnionType):
        kinds = [k for k in typing.get_args(annotation) if k is not type(None)]
        return kinds[0] if len(kinds) == 1 else str
    if typing.get_origin(annotation) is typing.Annotated:
        return _strip_none(typing.get_args(annotation)[0])
    return annotation


def _is_mapping(annotation: Any) -> bool:
    kind = _strip_none(annotation)
    return typing.get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, Config))


def _is_setting(info: FieldInfo) -> bool:
    """Whether a field has no flag: mappings, and what is changed once in a project."""
    return _is_mapping(info.annotation) or is_setting(info.json_schema_extra)


def _with_settings(values: dict[str, Any], settings: tuple[str, ...], model: type[Config]) -> dict[str, Any]:
    """`values` with what `--set NAME=VALUE` and `--set MAPPING.KEY=VALUE` give."""
    out = dict(values)
    fields = {name: info for name, info in model.model_fields.items() if _is_setting(info)}
    for text in settings:
        place, equals, value = text.partition("=")
        name, dot, key = place.strip().replace("-", "_").partition(".")
        if not equals or name not in fields or bool(dot) != _is_mapping(fields[name].annotation):
            example = f"{name}.KEY=VALUE" if name in fields and not dot else "NAME=VALUE"
            raise ConfigError(f"--set {text}{suggest(name, list(fields))}", hint=f"use --set {example}")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--set {text}: the value is not valid YAML") from None
        if dot:
            inner = out.get(name) or {}
            if not isinstance(inner, dict):
                raise ConfigError(f"{model.verb}: {name!r} must be a mapping")
            parsed = {**inner, key: parsed}
        out[name] = parsed
    return out


def _is_tuple(annotation: Any) -> bool:
    return typing.get_origin(_strip_none(annotation)) is tuple


def _click_type(kind: Any) -> Any:
    if typing.get_origin(kind) is Literal:
        return click.Choice([str(v) for v in typing.get_args(kind)])
    return kind if kind in (int, float) else str
