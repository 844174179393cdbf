"""Row 26: a file server with faults. Bytes come whole or not at all, and the token goes to its host alone."""

from __future__ import annotations

import os
import random
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from faultlib import Tally
from rows import named, row, trials_in_time
from verbs import VERB_ROWS

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

#: Faults that may pass, and those that last.
TRANSIENT = ("500", "502", "503", "504", "408", "429", "cut", "hang up", "slow")
LASTING = ("401", "403", "404", "410", "418", "page", "wrong length", "other scheme", "loop")


def _action(kind: str, rng: random.Random, size: int) -> tuple[str, Any]:
    """What the server of `test_remote` does for a fault."""
    if kind.isdigit():
        return "status", (int(kind), {"Retry-After": "0"} if kind == "429" else {})
    return {
        "cut": ("cut", rng.randrange(size)), "hang up": ("hang_up", None), "slow": ("silent", 0.6),
        "page": ("page", None), "wrong length": ("announce", rng.choice([size - 1, size + 1, 0, 5 * size])),
        "other scheme": ("redirect", rng.choice(["ftp://127.0.0.1/x", "file:///etc/passwd", "gopher://x/"])),
        "loop": ("redirect", "/again"),
    }[kind]  # fmt: skip


@row("26", "a file server that fails, cuts, stalls, lies, redirects", full=200, gate=12, into=VERB_ROWS)
def network_faults(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    from http_server import BODY, CANARY, QUICK, serve

    from ripple.rubin.remote import TOKEN_VARIABLES, RemoteFile, token_for

    policy = replace(QUICK, idle=0.2)
    os.environ[TOKEN_VARIABLES[0]] = CANARY
    try:
        with contextmanager(serve)() as server, contextmanager(serve)() as other:
            repo = f"http://127.0.0.1:{server.server_port}/api"
            for trial in trials_in_time(trials):
                tally.trials = trial + 1
                kinds = _kinds(trial, rng)
                server.script = [_action(kind, rng, len(BODY)) for kind in kinds]
                if kinds == ["loop"]:
                    server.script *= 9
                away = trial % 5 == 4 and kinds[0] in TRANSIENT
                if away:  # to another host, which fails in the same way
                    server.script, other.script = [("redirect", other.url())] * 9, server.script
                url = server.url()
                file = RemoteFile(
                    url, name="patch", size=len(BODY), policy=policy, token=token_for(url, repo)
                )
                span = (rng.randrange(len(BODY) - 1000), 1000) if rng.random() < 0.4 else None
                _one(tally, file, span, kinds, BODY)
                if other.tokens() or len(server.tokens()) != len(server.seen) or (away and not other.seen):
                    tally.silent += 1
                    tally.note(f"{kinds}: the token went elsewhere, or not to its host")
                for one in (server, other):
                    one.script, one.seen = [], []
    finally:
        del os.environ[TOKEN_VARIABLES[0]]


def _kinds(trial: int, rng: random.Random) -> list[str]:
    """One to three faults that pass, four of them, or one that lasts."""
    if trial % 3 == 2:
        return [rng.choice(LASTING)]
    return rng.choices(TRANSIENT, k=4 if trial % 6 == 1 else rng.randint(1, 3))


def _one(tally: Tally, file: Any, span: tuple[int, int] | None, kinds: list[str], body: bytes) -> None:
    from ripple.errors import SourceError, UnreadableError

    want = body if span is None else body[span[0] : span[0] + span[1]]
    start = time.monotonic()
    try:
        data = file.read_all() if span is None else file.read_range(*span)
        if data != want:
            tally.silent += 1
            tally.note(f"{kinds} {span}: {len(data)} bytes that are not those of the file")
        # A range is not held against the length of the whole; a body longer than asked for is cut to size.
        elif (kinds[0] in LASTING and not (span is not None and kinds == ["wrong length"])) or len(kinds) > 3:
            tally.silent += 1
            tally.note(f"{kinds} {span}: read in spite of them")
    except (SourceError, UnreadableError) as err:
        named(tally, str(err), "patch")
        if kinds[0] in TRANSIENT and len(kinds) <= 3:
            tally.lost += 1
            tally.note(f"{kinds} {span}: given up: {err}")
    if time.monotonic() - start > 10:
        tally.hung += 1
        tally.note(f"{kinds}: {time.monotonic() - start:.0f} s")
