"""`ripple train`."""

from __future__ import annotations

import click

from ripple.cli.options import config_options
from ripple.learn.config import TrainConfig


@click.command("train", epilog="Example: ripple train tensors --network d4cnn --seeds 3 -o model")
@config_options(TrainConfig, short={"output": "-o"}, arguments=("tensors",))
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
def command(config: TrainConfig, as_json: bool) -> None:
    """Learn to find lenses in TENSORS, judged on sky that was not trained on."""
    from ripple.learn.training.train import train

    train(config).print(as_json=as_json)
