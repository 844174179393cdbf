"""`ripple export`."""

from __future__ import annotations

import click

from ripple.cli.options import config_options
from ripple.stages.formats.config import ExportConfig


@click.command("export", epilog="Example: ripple export tensors --format deeplense -o lenses")
@config_options(ExportConfig, short={"output": "-o"}, arguments=("source",))
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
def command(config: ExportConfig, as_json: bool) -> None:
    """Write tensors or cutouts in the layout of DeepLense, MMU, WebDataset, Zarr or as FITS stamps."""
    from ripple.stages.formats.export import export

    export(config).print(as_json=as_json)
