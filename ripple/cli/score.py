"""`ripple score`."""

from __future__ import annotations

import click

from ripple.cli.options import config_options
from ripple.learn.config import ScoreConfig


@click.command("score", epilog="Example: ripple score model tensors --evaluate -o scores")
@config_options(ScoreConfig, short={"output": "-o"}, arguments=("model", "tensors"))
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
def command(config: ScoreConfig, as_json: bool) -> None:
    """Rank the rows of TENSORS with MODEL; data that break the model's contract are refused."""
    from ripple.learn.scoring.score import score

    score(config).print(as_json=as_json)
