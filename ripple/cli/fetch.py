"""`ripple fetch`."""

from __future__ import annotations

import click

from ripple.cli.options import config_options
from ripple.stages.fetch.config import FetchConfig


@click.command(
    "fetch",
    epilog="Example: ripple fetch --repo dp2 --collections dp2 --bands gri --size 64 "
    "--region 'CIRCLE 53.1 -27.8 0.1' --select 'i_cModelFlux > 1000' -o cutouts",
)
@config_options(FetchConfig, short={"output": "-o"})
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
def command(config: FetchConfig, as_json: bool) -> None:
    """Cut stamps out of Butler coadds: one box for all bands, in nJy, with mask, variance, PSF."""
    from ripple.stages.fetch.fetch import fetch

    fetch(config).print(as_json=as_json)
