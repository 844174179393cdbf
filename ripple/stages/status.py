"""`ripple status`: how far a directory is that RIPPLe is writing, or was when it stopped."""

from __future__ import annotations

import platform
import re
import time
from contextlib import suppress
from pathlib import Path

import psutil

from ripple.config import Json
from ripple.errors import InputError
from ripple.runtime.summary import Summary, size
from ripple.storage.lock import LOCK, is_locked
from ripple.storage.manifest import is_finished, read_manifest
from ripple.storage.writer import Begun, read_begun


def status(directory: Path) -> Summary:
    """What is done, what is left, who writes.

    Raises
    ------
    InputError
        The directory does not exist, or RIPPLe did not begin it.
    """
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory")
    if is_finished(directory):
        manifest = read_manifest(directory)
        counts = manifest.get("counts") or {}
        return Summary("status", str(directory), {"state": "finished", "kind": manifest["kind"], **counts})
    begun = read_begun(directory)
    if begun is None:
        stages = {p.name: _state(p) for p in sorted(directory.iterdir()) if p.is_dir()}
        known = {name: state for name, state in stages.items() if state}
        if not known:
            raise InputError(f"{directory}: RIPPLe has not begun anything there")
        return Summary("status", str(directory), known)
    return Summary("status", str(directory), _progress(directory, begun), notes=_next(directory))


def _state(directory: Path) -> str:
    """One line about a directory inside that of a `run`; empty when it is not of RIPPLe."""
    if is_finished(directory):
        return "finished"
    begun = read_begun(directory)
    if begun is None:
        return "being written" if is_locked(directory) else ""
    share = f"{len(begun.records)} of {begun.units} units"
    return f"{share}, {'being written' if is_locked(directory) else 'interrupted'}"


def _progress(directory: Path, begun: Begun) -> Json:
    running = is_locked(directory)
    rows = sum(record.rows for record in begun.records.values())
    facts: Json = {
        "state": "running" if running else "interrupted",
        "verb": begun.verb,
        "units": f"{len(begun.records):,} of {begun.units:,}",
        "rows": rows,
        "on disk": size(sum(record.bytes for record in begun.records.values())),
    }
    times = sorted(p.stat().st_mtime for p in directory.glob("shard-*"))
    if times:
        facts["last unit"] = f"{max(0.0, time.time() - times[-1]):,.0f} s ago"
    if running and len(times) > 1 and times[-1] > times[0]:
        each = (times[-1] - times[0]) / (len(times) - 1)
        left = each * (begun.units - len(begun.records))
        facts["rate"] = f"{rows / len(times) / each:,.3g} rows/s"
        facts["time left"] = f"about {left:,.0f} s"
    return facts | (_writer(directory) if running else {})


def _writer(directory: Path) -> Json:
    """Who holds the lock, and the memory of that process and its workers where it is on this machine."""
    holder = (directory / LOCK).read_text(errors="replace").strip()
    facts: Json = {"written by": holder or "unknown process"}
    found = re.match(r"pid (\d+) on (\S+)", holder)
    if found and found[2] == platform.node():
        with suppress(psutil.Error):  # it may have just ended
            process = psutil.Process(int(found[1]))
            family = [process, *process.children(recursive=True)]
            facts["memory"] = size(sum(p.memory_info().rss for p in family))
    return facts


def _next(directory: Path) -> tuple[str, ...]:
    if is_locked(directory):
        return ()
    return ("run the same command again: it goes on where it stopped",)
