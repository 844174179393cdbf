"""`ripple explain`."""

from __future__ import annotations

import click

from ripple.cli.options import config_options
from ripple.learn.config import ExplainConfig


@click.command("explain", epilog="Example: ripple explain model tensors --top 20 -o why")
@config_options(ExplainConfig, short={"output": "-o"}, arguments=("model", "tensors"))
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
def command(config: ExplainConfig, as_json: bool) -> None:
    """Why MODEL thinks so of rows of TENSORS: a page per row, and one about the model."""
    from ripple.learn.explain.explain import explain

    explain(config).print(as_json=as_json)
