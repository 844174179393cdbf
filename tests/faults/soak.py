"""Row 41: many targets in many small units, faults in one of a hundred, and nothing grows.

python soak.py DIRECTORY PATCHES PER_PATCH       prints what was seen, as JSON
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fetching
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from faultlib import Tally, beside
from rows import row
from verbs import VERB_ROWS

from ripple.sky.skymap import known
from ripple.stages.simulate.simulate import SKYMAP

SIZE, TRACT = 16, 5063
#: Targets in a unit, at most.
UNIT = 200


# The survey ---------------------------------------------------------


def patch_ids(count: int) -> list[int]:
    """A block of patches in the middle of the tract, away from the next one."""
    skymap = known(SKYMAP)
    whole, side = skymap.tract_box(TRACT), skymap.patches.width
    columns = int(np.ceil(np.sqrt(count)))
    across, up = whole.width // side, whole.height // side
    corner = (up - columns) // 2 * across + (across - columns) // 2
    return [corner + k // columns * across + k % columns for k in range(count)]


def make_survey(directory: Path, ids: list[int]) -> None:
    """One band of coadds that hold little."""
    from ripple.imaging.simulation.defects import PLANES
    from ripple.rubin.write_repository import CoaddPlanes, MiniRepo

    skymap = known(SKYMAP)
    repo = MiniRepo(directory / "repo", skymap, TRACT, ids, ["r"])
    outer = skymap.patch_outer(TRACT, ids[0])
    ramp = np.add.outer(np.arange(outer.height), np.arange(outer.width)).astype("f4") % 97
    kernel = np.exp(-np.add.outer(np.arange(-10, 11) ** 2, np.arange(-10, 11) ** 2) / 8.0)
    cells = (outer.height // 150, outer.width // 150, 1, 1)
    kernels = np.tile(kernel / kernel.sum(), cells)

    def planes(patch: int, band: str) -> CoaddPlanes:
        shape = skymap.patch_outer(TRACT, patch).shape
        image = ramp[: shape[0], : shape[1]] + ids.index(patch)
        empty = np.zeros(shape, np.uint32)
        return CoaddPlanes(patch, band, image, np.ones(shape, "f4"), empty, PLANES, kernels)

    repo.put_coadds([(patch, "r") for patch in ids], planes, workers=2)


def make_targets(path: Path, ids: list[int], per_patch: int) -> None:
    """Positions all over the patches; one in a hundred where there is no survey."""
    skymap, rng = known(SKYMAP), np.random.default_rng(0)
    tan = skymap.tan(TRACT)
    positions = []
    for patch in ids:
        inner = skymap.patch_inner(TRACT, patch)
        x, y = rng.uniform(inner.x0, inner.x1 - 1, per_patch), rng.uniform(inner.y0, inner.y1 - 1, per_patch)
        positions.append(np.stack(tan.pixel_to_sky(x, y)))
    ra, dec = np.concatenate(positions, axis=1)
    dec[rng.random(len(ra)) < 0.01] = 60.0
    pq.write_table(pa.table({"id": np.arange(len(ra)), "ra": ra, "dec": dec}), path)


def damage(repo: Path, rng: random.Random, count: int) -> None:
    """So many coadds cut short, emptied, or replaced by a web page."""
    for k, path in enumerate(sorted(rng.sample(sorted(repo.rglob("*.fits")), count))):
        data = path.read_bytes()
        path.write_bytes((data[: len(data) // 2], b"", b"<html>sign in</html>" * 100)[k % 3])


# The run ------------------------------------------------------------


@contextmanager
def watched(directory: Path, seconds: float = 0.5) -> Iterator[list[dict[str, Any]]]:
    """Samples of this process and its workers: shards so far, resident bytes, descriptors, threads."""
    seen: list[dict[str, Any]] = []
    done = threading.Event()

    def sample() -> None:
        me = psutil.Process()
        while not done.wait(seconds):
            workers = []
            for child in me.children():
                try:
                    workers.append((child.pid, child.memory_info().rss, child.num_fds()))
                except psutil.Error:
                    continue  # it has just ended
            seen.append(
                {"shards": sum(1 for _ in directory.glob("shard-*")), "rss": me.memory_info().rss,
                 "fds": me.num_fds(), "threads": me.num_threads(), "workers": workers}
            )  # fmt: skip

    with beside(sample, done):
        yield seen


def main(directory: Path, patches: int, per_patch: int) -> None:
    """Fetch it all with two workers, some of which die."""
    from ripple.storage.artefact import open_artefact, verify
    from ripple.storage.law import check_law

    rng = random.Random(f"{patches}/{per_patch}")
    started = time.monotonic()
    ids = patch_ids(patches)
    make_survey(directory, ids)
    make_targets(directory / "truth.parquet", ids, per_patch)
    damage(directory / "repo", rng, max(1, patches // 100))
    made = time.monotonic() - started
    temporary = Path(tempfile.gettempdir())
    before = set(temporary.iterdir())
    doomed = rng.sample(range(patches), max(1, patches // 100))
    output = directory / "cutouts"
    fds = psutil.Process().num_fds()
    fault = {"units": doomed, "how": "SIGKILL", "times": 1}
    with fetching.faulty(directory, rows=UNIT, size=SIZE, bands=1, **fault), watched(output) as seen:
        fetching.run(directory, output, bands=["r"], size=SIZE, duplicate_radius=0.0)
    artefact = open_artefact(output, "cutouts")
    index = artefact.index()
    check_law(index, [s.rows for s in artefact.shards], asked=patches * per_patch)
    facts = {
        "made": made, "seconds": time.monotonic() - started - made, "units": len(artefact.shards),
        "targets": index.num_rows, "counts": artefact.manifest["counts"], "problems": verify(output),
        "killed": len(list((directory / "marks").iterdir())), "seen": seen,
        "fds": [fds, psutil.Process().num_fds()],
        "left": sorted(p.name for p in output.iterdir() if p.name.startswith(".tmp-")),
        "strays": sorted(p.name for p in set(temporary.iterdir()) - before if "ripple" in p.name),
    }  # fmt: skip
    sys.stdout.write(json.dumps(facts))


# The row ------------------------------------------------------------


def growth(values: list[float], shards: list[int], units: int) -> float:
    """Relative growth between the second fifth of a run and the last: medians, for samples are noisy."""
    middle = [v for v, k in zip(values, shards, strict=True) if 0.2 * units <= k < 0.4 * units]
    late = [v for v, k in zip(values, shards, strict=True) if 0.8 * units <= k < units]
    return float(np.median(late) / np.median(middle) - 1) if middle and late else 0.0


@row("41", "soak: targets in small units, 1 % of workers, files and positions at fault", full=100_000,
     gate=1200, into=VERB_ROWS)  # fmt: skip
def soak(tally: Tally, rng: random.Random, trials: int, directory: Path) -> None:
    patches = max(6, min(500, trials // UNIT))
    argv = [sys.executable, "-c", "import sys, soak; from pathlib import Path; soak.main("
            "Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))",
            str(directory), str(patches), str(trials // patches)]  # fmt: skip
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    with (directory / "said").open("wb") as said, (directory / "facts").open("wb") as out:
        done = subprocess.run(argv, stdout=out, stderr=said, env={**os.environ, "PYTHONPATH": paths})
    tally.trials = trials
    if done.returncode != 0:
        tally.lost += 1
        tally.note((directory / "said").read_text()[-500:])
        return
    facts = json.loads((directory / "facts").read_text())
    judge(tally, facts, trials // patches * patches)


def judge(tally: Tally, facts: dict[str, Any], asked: int) -> None:
    """The law holds, the faults happened, and neither memory, descriptors nor temporaries grow."""
    seen, units = facts.pop("seen"), facts["units"]
    shards = [s["shards"] for s in seen]
    parent = growth([s["rss"] for s in seen], shards, units)
    busy = [max((w[1] for w in s["workers"]), default=0) for s in seen]
    workers = growth([float(b) for b in busy], shards, units)
    descriptors = growth([float(s["fds"]) for s in seen], shards, units)
    rates = f"parent {parent:.3f}, workers {workers:.3f}, descriptors {descriptors:.3f}"
    tally.note(f"{facts}; growth of {rates}; {seen[-1]['rss'] >> 20} MiB, {len(seen)} samples")
    if facts["targets"] != asked or not facts["counts"].get("rejected"):
        tally.lost += 1
    if facts["problems"]:
        tally.silent += 1
    if facts["killed"] < 1 or facts["left"] or facts["strays"] or facts["fds"][1] > facts["fds"][0] + 2:
        tally.hung += 1
    if max(parent, workers, descriptors) > 0.05:
        tally.hung += 1
