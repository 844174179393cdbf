"""`ripple verify`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("verify", epilog="Example: ripple verify cutouts")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout.")
def command(directory: Path, as_json: bool) -> None:
    """Read every byte and compare it with what was written; exit 4 names the first thing that is damaged."""
    import time

    from ripple.artefact import open_artefact, verify
    from ripple.errors import IntegrityError
    from ripple.profile import Summary, plain, progress

    start = time.perf_counter()
    artefact = open_artefact(directory)
    total = sum(shard.bytes for shard in artefact.shards)
    with progress(total, "verify", "bytes") as advance:
        problems = verify(directory, advance)
    for problem in problems[1:21]:
        click.echo(f"also: {plain(problem)}", err=True)
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise IntegrityError(f"{problems[0]}{more}", hint="restore from a copy, or remove and run again")
    facts = {"shards": len(artefact.shards), "rows": artefact.rows, "bytes": total, "digest": artefact.digest}
    Summary("verify", str(directory), facts, seconds=time.perf_counter() - start).print(as_json=as_json)
