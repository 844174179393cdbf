"""`ripple preprocess`."""

from __future__ import annotations

import click

from ripple.cli.options import config_options
from ripple.stages.preprocess.config import PreprocessConfig


@click.command(
    "preprocess", epilog="Example: ripple preprocess cutouts -o tensors --psf match --normalize asinh"
)
@config_options(PreprocessConfig, short={"output": "-o"}, arguments=("cutouts",))
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
def command(config: PreprocessConfig, as_json: bool) -> None:
    """Cutouts to tensors: bad pixels filled, PSFs matched, fluxes normalised, every row judged."""
    from ripple.stages.preprocess.preprocess import preprocess

    preprocess(config).print(as_json=as_json)
