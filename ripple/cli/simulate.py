"""`ripple simulate`."""

from __future__ import annotations

import click

from ripple.cli.options import config_options
from ripple.stages.simulate.config import SimulateConfig


@click.command("simulate", epilog="Example: ripple simulate sky --patches 4 --bands gri --seed 7")
@config_options(SimulateConfig, arguments=("output",))
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
def command(config: SimulateConfig, as_json: bool) -> None:
    """Make a mini-survey with strong lenses: a real Butler repository OUTPUT/repo, and OUTPUT/truth.parquet.

    Lenses and look-alikes share one population of red ellipticals; lenses are far more frequent than in
    nature.
    """
    from ripple.stages.simulate.simulate import simulate

    simulate(config).print(as_json=as_json)
