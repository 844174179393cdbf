"""`ripple run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.command("run", epilog="Example: ripple run -c configs/demo.yaml -o demo-output")
@click.option(
    "-c",
    "--config",
    "path",
    required=True,
    type=click.Path(path_type=Path),
    help="YAML file with a section per stage.",
)
@click.option("-o", "--output", help="Directory for the output of all stages.")
@click.option("--model", help="Score with this model instead of training one.")
@click.option("--json", "as_json", is_flag=True, help="Print the summaries as JSON on stdout.")
def command(path: Path, output: str | None, model: str | None, as_json: bool) -> None:
    """Run the chain of stages in one YAML file; finished stages are not run again."""
    from ripple.stages.run import print_outcome, run_chain

    # Flags win over the file, as for every verb.
    overrides: dict[str, Any] = {k: v for k, v in {"output": output, "model": model}.items() if v is not None}
    outcome = run_chain(path, overrides, lambda line: click.echo(f"==> {line}", err=True))
    if as_json:
        click.echo(
            json.dumps([{k: getattr(s, k) for k in s.__slots__} for s in outcome.summaries], default=str)
        )
    else:
        print_outcome(outcome)
