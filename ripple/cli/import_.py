"""`ripple import`."""

from __future__ import annotations

import click

from ripple.cli.options import config_options
from ripple.stages.formats.config import ImportConfig


@click.command("import", epilog="Example: ripple import lenses/ --format deeplense -o tensors")
@config_options(ImportConfig, short={"output": "-o"}, arguments=("source",))
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
def command(config: ImportConfig, as_json: bool) -> None:
    """Import cutouts in other formats: DeepLense folders, arrays, FITS, Multimodal Universe files."""
    from ripple.stages.formats.import_cutouts import import_cutouts

    import_cutouts(config).print(as_json=as_json)
