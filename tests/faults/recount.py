"""Row 42: an artefact counted again by a script that knows nothing of RIPPLe."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import faultlib
import fetching
import verbs
from faultlib import Tally
from rows import row
from verbs import VERB_ROWS

SCRIPT = Path(__file__).parents[2] / "scripts/recount"


@row(
    "42", "independent recount of digests, counts and pixel boxes (boxes)", full=1000, gate=50, into=VERB_ROWS
)
def recount(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    assert verbs.SKY is not None
    here, repo = directory / "cutouts", verbs.SKY / "repo"
    with fetching.faulty(directory):
        fetching.run(verbs.SKY, here, workers=0)
    text = SCRIPT.read_text()
    assert "import ripple" not in text
    assert "from ripple" not in text
    argv = [sys.executable, str(SCRIPT), str(here), str(repo), "--boxes", str(trials), "--seed", "7"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    tally.trials = trials
    if done.returncode != 0 or f"{trials} boxes, 0 differ" not in done.stdout:
        tally.silent += 1
        tally.note((done.stdout + done.stderr)[-400:])
    # It must see what it is there to see.
    shard = sorted(here.glob("shard-*"))[0]
    with faultlib.flipped_bit(shard, rng):
        blind = subprocess.run([*argv[:4], "--boxes", "0"], capture_output=True, text=True, timeout=600)
    if blind.returncode == 0:
        tally.silent += 1
        tally.note("a flipped bit went unseen")
