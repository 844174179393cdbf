"""A directory of many files that appears whole or not at all: reports and exports.

The files are written into a directory beside the target, `NAME.partial`, with a note of what they were made
from, and the directory is renamed at the end. A directory that is there already is the same, or refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ripple.artefact import write_atomic
from ripple.config import canonical_json
from ripple.errors import ConfigError, WriteError
from ripple.manifest import first_difference

NOTE = "ripple.json"


def write_tree(output: Path, identity: Mapping[str, Any], build: Callable[[Path], None]) -> bool:
    """Make `output` with `build`, unless it was made from the same identity before.

    Parameters
    ----------
    output
        Directory to make; may exist when empty.
    identity
        JSON values that decide the content.
    build
        Writes the files into the directory it is given.

    Returns
    -------
    False when the same directory was there already.

    Raises
    ------
    ConfigError
        `output` was made from something else; names the first difference.
    WriteError
        `output` holds other files, or cannot be written.
    """
    wanted: dict[str, Any] = json.loads(canonical_json(dict(identity)))
    if _made_before(output, wanted):
        return False
    partial = output.with_name(output.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        build(partial)
        write_atomic(partial / NOTE, json.dumps(wanted, indent=1, sort_keys=True).encode() + b"\n")
        if output.is_dir():
            output.rmdir()
        partial.rename(output)
    except OSError as err:
        raise WriteError(f"{output}: {err.strerror or err}", hint="free space or give another -o") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _made_before(output: Path, wanted: dict[str, Any]) -> bool:
    note = output / NOTE
    if note.is_file():
        try:
            found = json.loads(note.read_bytes())
        except ValueError:
            raise ConfigError(f"{note}: damaged", hint="remove the directory and run again") from None
        difference = first_difference(found, wanted, str(wanted.get("verb", "options")))
        if difference is not None:
            raise ConfigError(
                f"{output} was made with other options or from other data: {difference}",
                hint="give another output directory, or remove this one",
            )
        return True
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise WriteError(f"{output} holds files that are not ours", hint="give a new or empty directory")
    return False
