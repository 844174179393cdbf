"""`ripple doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click


@click.command("doctor", epilog="Example: ripple doctor --repo sky/repo --collections mini")
@click.option("--repo", help="Also check this Butler repository: path, label or URL.")
@click.option("--collections", help="Collections to search, comma-separated.")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON on stdout.")
def command(repo: str | None, collections: str | None, as_json: bool) -> int:
    """Check the environment, and a repository when one is given; no optional package is needed."""
    from rich.table import Table
    from rich.text import Text

    from ripple.runtime.summary import plain, screen
    from ripple.stages.doctor import environment, repository

    checks = environment()
    if repo:
        names = tuple(c.strip() for c in (collections or "").split(",") if c.strip())
        checks += repository(repo, names)
    failed = [c for c in checks if c.level == "fail"]
    if as_json:
        click.echo(json.dumps([asdict(c) for c in checks]))
    else:
        table = Table(show_header=False, box=None)
        colours = {"ok": "green", "note": "yellow", "fail": "red"}
        for check in checks:
            level = Text(check.level, style=colours[check.level])
            # As Text: square brackets in paths and messages are not markup.
            table.add_row(level, Text(plain(check.name)), Text(plain(check.detail)))
        screen(answer=True).print(table)
    return 3 if failed else 0  # as for other problems with inputs
