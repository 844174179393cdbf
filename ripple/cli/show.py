"""`ripple show`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
@click.option("--failures", is_flag=True, help="List the rows that are not ok: status, reason, detail.")
@click.option("--rows", metavar="ID,ID", help="List the rows with these ids, or draw them with --picture.")
@click.option("--columns", metavar="NAME,NAME", help="Columns of the list; default: the usual ones.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the list: .csv or .parquet.")
@click.option("--rgb", metavar="BANDS", help="Bands of blue, green and red of --picture, for example gri.")
@click.option("--mask", metavar="PLANE", help="Outline the pixels of this mask plane in --picture.")
@click.option("--seed", default=0, show_default=True, help="Seed of the rows that --picture draws.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON on stdout.")
def command(
    directory: Path,
    metrics: bool,
    picture: Path | None,
    failures: bool,
    rows: str | None,
    columns: str | None,
    output: Path | None,
    rgb: str | None,
    mask: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Show what a directory that RIPPLe wrote contains: counts, rows, sizes, costs, pictures."""
    from ripple.errors import ConfigError
    from ripple.stages import show

    if picture is None and (rgb or mask):
        raise ConfigError(f"--{'rgb' if rgb else 'mask'} needs --picture FILE.png")
    ids = _words(rows)
    listed = failures or columns is not None or output is not None or (bool(ids) and picture is None)
    if listed:
        from ripple.stages.rows import rows_of

        _list(rows_of(directory, failures=failures, ids=ids, columns=_words(columns)), output, as_json)
        return

    if metrics:
        costs = show.operations(directory)
        if picture is not None:
            show.cost_picture(directory, picture)
        _table(costs, as_json)
        large = [f"{row['operation']} {row['share']:.0%}" for row in costs if row["share"] > show.LARGE]
        if large and not as_json:
            click.echo(f"over a fifth of the time: {', '.join(large)}")
        return
    if picture is not None:
        how = show.PictureOptions(tuple(ids), tuple(_bands(rgb)), mask, seed)
        drawn = show.picture(directory, picture, how)
        click.echo(f"{drawn} rows are drawn in {picture}", err=True)
        return
    show.describe(directory).print(as_json=as_json, answer=True)


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _bands(text: str | None) -> list[str]:
    """Bands apart by commas, or run together as `gri`."""
    words = _words(text)
    return list(words[0]) if len(words) == 1 and len(words[0]) == 3 else words


def _list(table: Any, output: Path | None, as_json: bool) -> None:
    """Print rows, or write them."""
    from ripple.stages.rows import as_records, write_rows

    if output is not None:
        write_rows(table, output)
        click.echo(f"{table.num_rows:,} rows are in {output}", err=True)
    elif as_json:
        click.echo(json.dumps(as_records(table)))
    else:
        _table(as_records(table), as_json=False)
        click.echo(f"{table.num_rows:,} rows", err=True)


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
        numbers = all(isinstance(row.get(name), int | float | None) for row in rows)
        table.add_column(plain(name), justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(Text(plain(_cell(row.get(name)))) for name in names))
    screen(answer=True).print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
