"""`ripple verify`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("verify", epilog="Example: ripple verify cutouts")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
def command(directory: Path, as_json: bool) -> None:
    """Verify the checksums of a directory that RIPPLe wrote; with damage, names the files and exits with 4.

    DIRECTORY contains cutouts, tensors, scores, a model, a page, an export or a simulated survey.
    """
    from ripple.stages.verify import verify_directory

    verify_directory(directory).print(as_json=as_json, answer=True)
