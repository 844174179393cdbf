"""`ripple run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.command("run", epilog="Example: ripple run -c configs/demo.yaml -o demo-output")
@click.option(
    "-c", "--config", "path", type=click.Path(path_type=Path), help="YAML file with a section per stage."
)
@click.option("-o", "--output", help="Directory for the output of all stages.")
@click.option("--model", help="Score with this model instead of training one.")
@click.option(
    "--check", is_flag=True, help="Validate all sections, say everything that is wrong, run nothing."
)
@click.option("--dry-run", is_flag=True, help="Say which stages would be made, and why; run nothing.")
@click.option("--redo", is_flag=True, help="Move a stage made with other options aside, and make it again.")
@click.option("--examples", is_flag=True, help="List the configurations that come with RIPPLe.")
@click.option("--json", "as_json", is_flag=True, help="Print the summaries as JSON on stdout.")
def command(
    path: Path | None,
    output: str | None,
    model: str | None,
    check: bool,
    dry_run: bool,
    redo: bool,
    examples: bool,
    as_json: bool,
) -> None:
    """Run the chain of stages in one YAML file; finished stages are not run again."""
    if examples:
        _list_examples()
        return
    from ripple.cli import VERBS
    from ripple.errors import ConfigError
    from ripple.runtime.log import quiet, say
    from ripple.stages.run import foreseen, print_outcome, read_chain, run_chain

    if path is None:
        raise ConfigError("run: no configuration", hint="give a file with -c, or see --examples")
    # Flags win over the file, as for every verb.
    overrides: dict[str, Any] = {k: v for k, v in {"output": output, "model": model}.items() if v is not None}
    if check or dry_run:
        if check and "output" not in overrides:
            overrides["output"] = "output"  # a file may leave it to the command line
        chain = read_chain(path, overrides, VERBS)
        if check:
            click.echo(f"{path}: {', '.join(chain.options)}: nothing is wrong")
            return
        states = foreseen(chain)
        if as_json:
            click.echo(json.dumps([{"stage": s.name, "action": s.action, "why": s.why} for s in states]))
        else:
            for state in states:
                click.echo(f"{state.name:12}{WORDS[state.action]:34}{state.why}")
        return
    outcome = run_chain(path, overrides, lambda line: say(f"==> {line}"), verbs=VERBS, redo=redo)
    if as_json:
        click.echo(json.dumps([s.record() for s in outcome.summaries], default=str))
    elif not quiet():
        print_outcome(outcome)


#: What a run would do with a stage, for people.
WORDS = {
    "left": "is finished and stays",
    "made": "would be made",
    "resumed": "would go on where it stopped",
    "changed": "other options: needs --redo",
    "follows": "would be made again",
}


def _list_examples() -> None:
    """Path and first line of each configuration that comes with the package."""
    import ripple

    home = Path(ripple.__file__).parent
    # In the wheel they lie in the package, in a checkout beside it.
    folder = home / "configs" if (home / "configs").is_dir() else home.parent / "configs"
    for path in sorted(folder.glob("*.yaml")):
        first = path.read_text().splitlines()[0].lstrip("# ")
        click.echo(f"{path}\n    {first}")
