"""`ripple status`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("status", epilog="Example: ripple status cutouts")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print as JSON on stdout.")
def command(directory: Path, as_json: bool) -> None:
    """How far DIRECTORY is, while a verb writes it and after one was killed; also of the output of `run`."""
    from ripple.stages.status import status

    status(directory).print(as_json=as_json, answer=True)
