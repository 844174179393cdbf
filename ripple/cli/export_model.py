"""`ripple export-model`."""

from __future__ import annotations

import click

from ripple.cli.options import config_options
from ripple.learn.config import ExportModelConfig


@click.command("export-model", epilog="Example: ripple export-model model -o finder.onnx")
@config_options(ExportModelConfig, short={"output": "-o"}, arguments=("model",))
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
def command(config: ExportModelConfig, as_json: bool) -> None:
    """Write MODEL as ONNX or TorchScript, with its contract beside it."""
    from ripple.learn.model.exchange import export_model

    export_model(config).print(as_json=as_json)
