"""`ripple import-model`."""

from __future__ import annotations

import click

from ripple.cli.options import config_options
from ripple.learn.config import ImportModelConfig


@click.command(
    "import-model", epilog="Example: ripple import-model resnet18.pth --sidecar model.yaml -o model"
)
@config_options(ImportModelConfig, short={"output": "-o"}, arguments=("source",))
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
def command(config: ImportModelConfig, as_json: bool) -> None:
    """Make a model from the weights in SOURCE and a sidecar that says what data they take."""
    from ripple.learn.model.exchange import import_model

    import_model(config).print(as_json=as_json)
