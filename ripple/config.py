"""Base of the options, one frozen model per verb, and the YAML they are read from.

A configuration file has one section per verb, named like the verb (`fetch:`, `preprocess:`, ...). The same
file serves `ripple run` and `-c` of each single verb. Flags win over the file.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import types
import typing
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ripple.errors import ConfigError

#: A JSON object: manifests, reports and what `--json` prints.
Json = dict[str, Any]

# No configuration comes near these; a hostile file must not fill the memory (aliases of aliases).
MAX_YAML_BYTES = 256 * 1024
MAX_YAML_NODES = 1000


def neutral(default: Any = ..., **kwargs: Any) -> Any:
    """A field that changes speed or messages but never a byte of the output: not in the digest."""
    return Field(default, json_schema_extra={"neutral": True}, **kwargs)


def setting(default: Any = ..., *, neutral: bool = False, **kwargs: Any) -> Any:
    """A field for the YAML and `--set NAME=VALUE`, without a flag: changed once in a project, if ever."""
    return Field(default, json_schema_extra={"setting": True, "neutral": neutral}, **kwargs)


class Config(BaseModel):
    """Base of the per-verb models: frozen, unknown keys refused, a digest of what changes the output.

    Every field carries a `description`: it is the `--help` text of the flag made from it.
    """

    # NaN and infinity have no JSON, and a threshold of NaN would never be exceeded.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    verb: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _lists_as_text(cls, values: Any) -> Any:
        """`bands: gri` and `collections: a, b` in a YAML file, as on the command line."""
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        return {
            name: listed(name, value)
            if isinstance(value, str) and name in fields and _is_list(fields[name].annotation)
            else value
            for name, value in values.items()
        }

    @classmethod
    def make(cls, values: dict[str, Any]) -> Self:
        """Validate `values`; unknown or wrong keys become a `ConfigError` that names them.

        Raises
        ------
        ConfigError
            Names the key, what is wrong with it, and the nearest known key.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as err:
            # `from None`: pydantic's own text names classes that a user does not know.
            raise ConfigError(f"{cls.verb}: " + "; ".join(_say_error(cls, e) for e in err.errors())) from None

    def canonical(self) -> dict[str, Any]:
        """The fields that change the output, as JSON values."""
        # Neutral options may differ between a run and its resumption.
        skip = {k for k, f in type(self).model_fields.items() if _is_neutral(f.json_schema_extra)}
        return self.model_dump(mode="json", exclude=skip)

    def digest(self) -> str:
        """SHA-256 of `canonical`, hexadecimal."""
        return hashlib.sha256(canonical_json(self.canonical())).hexdigest()


def listed(name: str, text: str) -> list[str]:
    """The parts of a text between commas; bands may be run together (`gri`)."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    together = name == "bands" and len(parts) == 1 and set(parts[0]) <= set("ugrizy")
    return list(parts[0]) if together else parts


def _is_list(annotation: Any) -> bool:
    """Whether a field is a tuple, or a tuple or nothing."""
    kinds = typing.get_args(annotation) if typing.get_origin(annotation) is types.UnionType else (annotation,)
    return any(typing.get_origin(kind) is tuple for kind in kinds) and str not in kinds


def problems(cls: type[Config], values: dict[str, Any]) -> list[tuple[str, str]]:
    """Everything that is wrong with the options of a verb: the key, empty where it is the whole, and why."""
    try:
        cls.model_validate(values)
    except ValidationError as err:
        return [(str(e["loc"][0]) if e["loc"] else "", _say_error(cls, e)) for e in err.errors()]
    return []


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: the same value gives the same bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _is_neutral(extra: Any) -> bool:
    return isinstance(extra, dict) and bool(extra.get("neutral"))


def is_setting(extra: Any) -> bool:
    """Whether the `json_schema_extra` of a field is that of a `setting`."""
    return isinstance(extra, dict) and bool(extra.get("setting"))


def _say_error(cls: type[Config], error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        for name in error["loc"][:-1]:  # the mapping in which the key stands
            inner = cls.model_fields[name].annotation if name in cls.model_fields else None
            cls = inner if isinstance(inner, type) and issubclass(inner, Config) else cls
        return f"unknown key {key!r}" + suggest(str(error["loc"][-1]), list(cls.model_fields))
    if error["type"] == "missing":
        field = cls.model_fields.get(key)
        choices = typing.get_args(field.annotation) if field is not None else ()
        named = all(isinstance(choice, str) for choice in choices)
        return f"{key!r} is required" + (f": one of {', '.join(choices)}" if choices and named else "")
    # Our own validators say it in words; pydantic puts its name for them before.
    text = error["msg"].removeprefix("Value error, ")
    return f"{key!r}: {text}" if error["loc"] else text


def suggest(word: str, known: list[str]) -> str:
    """`; did you mean ...?` when a known word is near, else the empty string."""
    near = difflib.get_close_matches(word, known, n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration file: a mapping of verb names to mappings.

    Raises
    ------
    ConfigError
        The file cannot be read, is not YAML, is too large, or its aliases expand beyond the limits.
    """
    try:
        data = path.read_bytes()
    except OSError as err:
        raise ConfigError(f"{path}: {err.strerror}", hint="give a readable YAML file with -c") from None
    if len(data) > MAX_YAML_BYTES:
        raise ConfigError(
            f"{path}: the file has {len(data)} bytes", hint=f"at most {MAX_YAML_BYTES} are read"
        )
    try:
        # Composed nodes are counted before any value is built: that is where aliases would expand.
        nodes = sum(1 for _ in _walk_nodes(yaml.compose(data, Loader=yaml.SafeLoader)))
        value = _filled(yaml.safe_load(data), path)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as err:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(err).split())[:200]}") from None
    if nodes > MAX_YAML_NODES:
        raise ConfigError(f"{path}: more than {MAX_YAML_NODES} values after expansion")
    if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
        raise ConfigError(f"{path}: the top level must be a mapping of verb names to options")
    return value


#: Words in braces that stand for something: the output directory of `ripple run`, and the folder of the file.
PLACES = ("output", "here")


def _filled(value: Any, path: Path) -> Any:
    """Values with the folder of the file for `{here}`; other words in braces but `{output}` are refused."""
    if isinstance(value, dict):
        return {key: _filled(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, path) for item in value]
    if not isinstance(value, str):
        return value
    for word in re.findall(r"\{(\w+)\}", value):
        if word not in PLACES:
            raise ConfigError(
                f"{path}: {{{word}}} in {value!r} stands for nothing" + suggest(word, list(PLACES))
            )
    return value.replace("{here}", str(path.resolve().parent))


def key_lines(path: Path) -> dict[tuple[str, ...], int]:
    """Line of each key of a YAML file that `load_yaml` has read: of sections, and of the keys in them."""
    lines: dict[tuple[str, ...], int] = {}
    root = yaml.compose(path.read_bytes(), Loader=yaml.SafeLoader)
    for key, section in root.value if isinstance(root, yaml.MappingNode) else ():
        lines[(str(key.value),)] = key.start_mark.line + 1
        for inner, _ in section.value if isinstance(section, yaml.MappingNode) else ():
            lines[(str(key.value), str(inner.value))] = inner.start_mark.line + 1
    return lines


def _walk_nodes(node: Any) -> Any:
    """Walk composed nodes with aliases expanded, giving up just past the limit."""
    stack, seen = [node], 0
    # A stack, not recursion: nesting is bounded by the count alone.
    while stack and seen <= MAX_YAML_NODES:
        item = stack.pop()
        seen += 1
        yield item
        if item is not None and item.tag == "tag:yaml.org,2002:merge":
            raise yaml.YAMLError("merge keys (<<) are not allowed: they can multiply without bound")
        if isinstance(item, yaml.MappingNode):
            stack.extend(part for pair in item.value for part in pair)
        elif isinstance(item, yaml.SequenceNode):
            stack.extend(item.value)
