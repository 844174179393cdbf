"""`ripple locate`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ripple.cli.options import config_options
from ripple.errors import ConfigError
from ripple.stages.locate.config import LocateConfig

if TYPE_CHECKING:
    from ripple.stages.locate.locate import Location


@click.command(
    "locate",
    # Declinations may begin with a minus sign, so what looks like an unknown option is a position.
    context_settings={"ignore_unknown_options": True},
    epilog="Example: ripple locate 53.12 -27.54 --skymap lsst_cells_v2 --size 64",
)
@config_options(LocateConfig, short={"output": "-o"}, arguments=("ra", "dec"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, one object per position.")
def command(config: LocateConfig, as_json: bool) -> None:
    """Sky position to tract, patch and pixel: one position, or a table of them."""
    from ripple.stages.locate.locate import as_json as lines
    from ripple.stages.locate.locate import locate_one, locate_table

    if config.targets is None:
        if config.output is not None:
            raise ConfigError(
                "locate: -o is only for tables", hint="leave it out: a single position is printed"
            )
        columns = ("hdu", "id_column", "ra_column", "dec_column", "select")
        if unread := [name for name in columns if getattr(config, name) is not None]:
            raise ConfigError(f"locate: --{unread[0].replace('_', '-')} needs --targets")
        found = locate_one(config)
        if as_json:
            sys.stdout.write(json.dumps(found) + "\n")
        else:
            _show(found)
        return
    if config.ra is not None:
        raise ConfigError(
            f"locate: both a position ({config.ra}) and --targets are given", hint="give one of them"
        )
    start = time.perf_counter()
    table = locate_table(config)
    if config.output is not None:
        _write(config, table, time.perf_counter() - start, as_json)
    elif as_json:
        sys.stdout.write(lines(table))
    else:
        from ripple.stages.locate.locate import as_bytes, printable

        sys.stdout.write(as_bytes(printable(table), Path("stdout.csv")).decode())


def _write(config: LocateConfig, table: Any, seconds: float, as_json: bool) -> None:
    from ripple.runtime.summary import Summary
    from ripple.stages.locate.locate import as_bytes
    from ripple.storage.files import write_single

    path = Path(str(config.output))
    write_single(path, as_bytes(table, path))
    # The time is measured without writing: it is the rate of the computation.
    facts = {"positions": table.num_rows, "rate": f"{table.num_rows / max(seconds, 1e-9):,.0f} positions/s"}
    Summary("locate", str(path), facts, seconds=seconds).print(as_json=as_json)


def _show(found: Location) -> None:
    """Print one position for people; on stdout, because it is the result and not a message."""
    lines = [f"sky map  {found['skymap']}", f"tract    {found['tract']}"]
    if found["patch"] < 0:
        lines.append("patch    none: the position lies outside the nearest tract")
    else:
        lines += [
            f"patch    {found['patch']}  (x {found['patch_x']}, y {found['patch_y']})",
            f"pixel    {found['x']:.3f}, {found['y']:.3f}  in the tract (PARENT)",
            f"         {found['local'][0]:.3f}, {found['local'][1]:.3f}  in the patch (LOCAL)",
            f"inner    {_box(found['inner'])}",
            f"outer    {_box(found['outer'])}",
        ]
    if "box" in found:
        # Then `fetch` completes it from the neighbouring patches.
        inside = "" if found["box"]["inside_patch"] else "  leaves the patch"
        lines += [
            f"box      {_box(found['box']['parent'])}  PARENT{inside}",
            f"         {_box(found['box']['local'])}  LOCAL",
        ]
    for other in found["others"]:
        lines.append(
            f"also in  tract {other['tract']} patch {other['patch']}  at {other['x']:.3f}, {other['y']:.3f}"
        )
    sys.stdout.write("\n".join(lines) + "\n")


def _box(corners: list[int]) -> str:
    return f"x {corners[0]} to {corners[2]}, y {corners[1]} to {corners[3]}"
