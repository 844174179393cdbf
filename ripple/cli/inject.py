"""`ripple inject`."""

from __future__ import annotations

import click

from ripple.cli.options import config_options
from ripple.stages.inject.config import InjectConfig


@click.command("inject", epilog="Example: ripple inject cutouts -o labelled --fraction 0.3 --seed 7")
@config_options(InjectConfig, short={"output": "-o"}, arguments=("cutouts",))
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
def command(config: InjectConfig, as_json: bool) -> None:
    """Paint lensed sources into a share of real cutouts, through their own PSFs, and label them."""
    from ripple.stages.inject.inject import inject

    inject(config).print(as_json=as_json)
