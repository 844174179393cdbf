"""`ripple verify`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

#: Reads everything and says what is wrong; takes what is called with the bytes just read.
Check = Callable[[Callable[[int], None]], list[str]]


@click.command("verify", epilog="Example: ripple verify cutouts")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
def command(directory: Path, as_json: bool) -> None:
    """Read every byte and compare it with what was written; exit 4 names the first thing that is damaged.

    DIRECTORY is an artefact, a model, or what report, explain or export made.
    """
    import time

    from ripple.errors import IntegrityError
    from ripple.runtime.summary import Summary, plain, progress

    start = time.perf_counter()
    facts, check = _opened(directory)
    with progress(facts["bytes"], "verify", "bytes") as advance:
        problems = check(advance)
    for problem in problems[1:21]:
        click.echo(f"also: {plain(problem)}", err=True)
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise IntegrityError(f"{problems[0]}{more}", hint="restore from a copy, or remove and run again")
    Summary("verify", str(directory), facts, seconds=time.perf_counter() - start).print(as_json=as_json)


def _opened(directory: Path) -> tuple[dict[str, Any], Check]:
    """What the directory says of itself, and how to check it: its record tells what it is."""
    from ripple.storage.artefact import open_artefact, verify
    from ripple.storage.checksums import differing, read_listing
    from ripple.storage.tree import NOTE, read_tree, verify_tree

    if (directory / NOTE).is_file():
        files = read_tree(directory)
        return _amount(files), partial(verify_tree, directory)
    model = directory / "model.json"  # the learning side has its name, and torch
    if model.is_file():
        record, files = read_listing(model)
        _lists_weights(model, record, files)
        return {**_amount(files), "digest": record.get("digest")}, partial(differing, directory, files)
    artefact = open_artefact(directory)
    size = sum(shard.bytes for shard in artefact.shards)
    facts = {"shards": len(artefact.shards), "rows": artefact.rows, "bytes": size, "digest": artefact.digest}
    return facts, partial(verify, directory)


def _lists_weights(path: Path, record: dict[str, Any], files: dict[str, tuple[int, str]]) -> None:
    """The list must have the weights, as the contract has them: the list alone is read."""
    from ripple.errors import IntegrityError

    try:
        members = {m["file"]: (m["bytes"], m["sha256"]) for m in record["contract"]["members"]}
    except (KeyError, TypeError):
        raise IntegrityError(f"{path}: no contract of a model") from None
    if not members or any(files.get(name) != entry for name, entry in members.items()):
        raise IntegrityError(f"{path}: its list of files has not the weights of its contract")


def _amount(files: dict[str, tuple[int, str]]) -> dict[str, Any]:
    return {"files": len(files), "bytes": sum(size for size, _ in files.values())}
