"""`ripple report`."""

from __future__ import annotations

import click

from ripple.cli.options import config_options
from ripple.stages.report.config import ReportConfig


@click.command("report", epilog="Example: ripple report scores -o report")
@config_options(ReportConfig, short={"output": "-o"}, arguments=("source",))
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
def command(config: ReportConfig, as_json: bool) -> None:
    """Make a page with ranked colour stamps, metrics and plots, to judge candidates on."""
    from ripple.stages.report.report import report

    report(config).print(as_json=as_json)
