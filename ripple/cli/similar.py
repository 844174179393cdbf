"""`ripple similar`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ripple.cli.options import config_options
from ripple.stages.similar.config import SimilarConfig

if TYPE_CHECKING:
    from ripple.stages.similar.similar import Found

#: How numbers are printed; others as they are.
_FORMATS = {"similarity": ".6f", "separation": ",.2f", "score": ".4f", "ra": ".6f", "dec": "+.6f"}


@click.command(
    "similar", epilog="Example: ripple similar embeddings --like 2738,2741 --unlike 19 --top 200 -o alike.csv"
)
@config_options(SimilarConfig, short={"output": "-o"}, arguments=("embeddings",))
@click.option("--json", "as_json", is_flag=True, help="Print as JSON on stdout.")
def command(config: SimilarConfig, as_json: bool) -> None:
    """Rows of EMBEDDINGS that look like others to the network: an exact search by cosine similarity.

    With several examples, the similarity is the cosine with the nearest of --like; rows that are nearer to
    one of --unlike are left out. With --to, pairs of rows that look the same: near-duplicates, or leaks from
    training to test.
    """
    from ripple.runtime.summary import Summary
    from ripple.stages.similar.similar import as_records, similar, write

    found = similar(config)
    if config.output is not None:
        write(found.table, config.output)
        Summary("similar", str(config.output), found.facts, seconds=found.seconds).print(as_json=as_json)
    elif as_json:
        click.echo(json.dumps(as_records(found.table)))
    else:
        _print(found, config)


def _print(found: Found, config: SimilarConfig) -> None:
    """The rows for people, on stdout, and what they are on stderr."""
    from rich.table import Table
    from rich.text import Text

    from ripple.runtime.summary import plain, screen

    shown = found.table.slice(0, config.top)
    table = Table(box=None)
    for name in shown.column_names:
        table.add_column(plain(name), justify="left" if name.endswith(("id", "split")) else "right")
    for row in shown.to_pylist():
        table.add_row(*(Text(plain(_cell(name, value))) for name, value in row.items()))
    screen(answer=True).print(table)
    facts = [f"{value:,} {name}" for name, value in found.facts.items()]
    click.echo(f"{', '.join(facts)}; {found.seconds:.2f} s", err=True)
    if shown.num_rows < found.table.num_rows:
        click.echo(f"the first {shown.num_rows:,} are shown; -o FILE writes all", err=True)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    return format(value, _FORMATS.get(name.removeprefix("other_"), ""))
