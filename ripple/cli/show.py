"""`ripple show`."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("show", epilog="Example: ripple show cutouts --picture cutouts.png")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--metrics", is_flag=True, help="Costs by operation: calls, seconds, bytes; --picture draws them as well."
)
@click.option(
    "--picture",
    type=click.Path(path_type=Path),
    help="Draw random rows and histograms (with --metrics: time by operation, rate over time) to a PNG file.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the rows that --picture draws.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON on stdout.")
def command(directory: Path, metrics: bool, picture: Path | None, seed: int, as_json: bool) -> None:
    """Show what a directory that RIPPLe wrote contains: counts, rejections, sizes, costs, pictures."""
    from ripple.stages import show

    if metrics:
        rows = show.operations(directory)
        if picture is not None:
            show.cost_picture(directory, picture)
        _table(rows, as_json)
        return
    if picture is not None:
        drawn = show.picture(directory, picture, seed=seed)
        click.echo(f"{drawn} rows are drawn in {picture}", err=True)
        return
    show.describe(directory).print(as_json=as_json, answer=True)


def _table(rows: list[dict[str, object]], as_json: bool) -> None:
    """Print the costs: one line per operation, or JSON."""
    if as_json:
        click.echo(json.dumps(rows))
        return
    from rich.table import Table
    from rich.text import Text

    from ripple.runtime.summary import plain, screen

    # Operations have different counters; every one that occurs gets a column.
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(box=None)
    for name in names:
        table.add_column(plain(name), justify="left" if name == "operation" else "right")
    for row in rows:
        table.add_row(*(Text(plain(_cell(row.get(name)))) for name in names))
    screen(answer=True).print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
