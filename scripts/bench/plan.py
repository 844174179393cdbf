"""Cost of locating and planning: a million positions, as rates and ratios.

    python scripts/bench/plan.py [--targets 1000000] [--patches 2000]

Locating is compared with a loop over single positions and sky map objects, the way lsst.skymap is used from
Python: a cached tract object per tract, its WCS an AST frame set, a patch object with its boxes for each
answer. The plan is made of a table in a real repository whose coadds are registered in six bands, over many
patches. Times are CPU times of this process, wall times in brackets.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from ripple.runtime.profile import peak_rss
from ripple.sky.geometry import Box
from ripple.sky.skymap import RingsSkyMap, known
from ripple.stages.plan.config import Selection
from ripple.stages.plan.planner import make_plan

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))


@dataclass
class Patch:
    """A patch object, made for each answer as lsst.skymap does."""

    index: int
    inner: Box
    outer: Box


class Tract:
    """A tract object: projection by AST, patches by arithmetic on boxes."""

    def __init__(self, skymap: RingsSkyMap, number: int) -> None:
        from starlink import Ast

        self.skymap, self.number = skymap, number
        self.box = skymap.tract_box(number)
        channel = Ast.FitsChan()
        for key, value in (skymap.tan(number).cards() | {"NAXIS": 2}).items():
            text = f"'{value}'" if isinstance(value, str) else repr(value)
            channel.putfits(f"{key:<8}= {text:>20}", True)
        channel.clear("Card")
        self.wcs = channel.read()

    def find_patch(self, ra: float, dec: float) -> tuple[Patch, float, float]:
        """The patch whose inner box holds a position, and the pixel."""
        (x,), (y,) = self.wcs.tran([[math.radians(ra)], [math.radians(dec)]], False)
        x, y = x - 1, y - 1
        i, j = (math.floor(v + 0.5) // self.skymap.patches.width for v in (x, y))
        size, border = self.skymap.patches.width, self.skymap.patches.border
        inner = Box(i * size, j * size, (i + 1) * size, (j + 1) * size)
        if not self.box.contains(inner):
            raise LookupError(f"({ra}, {dec}) is not in tract {self.number}")
        return Patch(j * (self.box.width // size) + i, inner, inner.grown(border)), x, y


class Objects:
    """A ring map that answers for one position at a time."""

    def __init__(self, skymap: RingsSkyMap) -> None:
        self.skymap = skymap
        self.height = math.pi / (skymap.rings + 1)
        self.counts = [
            int(2 * math.pi * math.cos(min(abs(start), abs(start + self.height))) / self.height) + 1
            for k in range(skymap.rings)
            for start in [self.height * (k + 0.5) - 0.5 * math.pi]
        ]
        self.tracts: dict[int, Tract] = {}

    def find_tract(self, ra: float, dec: float) -> Tract:
        """The tract whose inner region holds a position."""
        r, d = math.radians(ra), math.radians(dec)
        edge = self.height * 0.5 - 0.5 * math.pi
        if d < edge:
            number = 0
        elif d > -edge:
            number = sum(self.counts) + 1
        else:
            ring = int((d - edge) / self.height)
            slot = int(r % (2 * math.pi) / (2 * math.pi / self.counts[ring]) + 0.5) % self.counts[ring]
            number = sum(self.counts[:ring], slot + 1)
        if number not in self.tracts:
            self.tracts[number] = Tract(self.skymap, number)
        return self.tracts[number]


def locate(count: int) -> None:
    """Whole columns against one position at a time."""
    skymap = known("lsst_cells_v2")
    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(0, 360, count), np.degrees(np.arcsin(rng.uniform(-1, 1, count)))
    skymap.find_tract(ra[:10], dec[:10])  # makes the table of tracts
    wall, start = time.perf_counter(), time.process_time()
    tract, patch, x, y = skymap.locate(ra, dec)
    fast, wall = (time.process_time() - start) / count, time.perf_counter() - wall
    few, objects = min(count, 5000), Objects(skymap)
    pairs = list(zip(ra[:few].tolist(), dec[:few].tolist(), strict=True))
    for position in pairs:
        objects.find_tract(*position)  # so that making the objects is not counted
    start = time.process_time()
    single = []
    for position in pairs:
        home = objects.find_tract(*position)
        found, px, py = home.find_patch(*position)
        single.append((home.number, found.index, px, py))
    slow = (time.process_time() - start) / few
    assert [s[:2] for s in single] == list(zip(tract[:few].tolist(), patch[:few].tolist(), strict=True))
    gap = np.abs(np.array([s[2:] for s in single]) - np.stack([x, y], axis=1)[:few]).max()
    print(f"locate      {count:,} positions: {1 / fast:,.0f} /s, {fast * 1e9:.0f} ns each ({wall:.2f} s)")
    print(
        f"  one object a time: {1 / slow:,.0f} per second, {slow * 1e6:.1f} us each; ratio {slow / fast:,.0f}"
    )
    print(f"  same tracts and patches, pixels within {gap:.1e}")


def plan(count: int, patches: int) -> None:
    """A table of targets over a block of patches, six bands."""
    from repos import add_coadds, make_repo

    skymap = known("lsst_cells_v2")
    tracts = list(range(5063, 5063 + -(-patches // 100)))
    pairs = [(t, p) for t in tracts for p in range(100)][:patches]
    rng = np.random.default_rng(2)
    which = rng.integers(0, len(pairs), count)
    tract, patch = np.array(pairs)[which].T
    inner = rng.uniform(0, 3000, (2, count))
    x, y = patch % 10 * 3000 + inner[0], patch // 10 * 3000 + inner[1]
    ra, dec = np.empty(count), np.empty(count)
    for t in tracts:
        mine = tract == t
        ra[mine], dec[mine] = skymap.tan(t).pixel_to_sky(x[mine], y[mine])
    with tempfile.TemporaryDirectory() as folder:
        root, table = Path(folder) / "repo", Path(folder) / "targets.parquet"
        make_repo(root, skymap, pairs, digest=skymap.sha1())
        add_coadds(root, skymap.name, "run", [(t, p, b) for t, p in pairs for b in "ugrizy"])
        ids = np.arange(count)
        pyarrow.parquet.write_table(pa.table({"id": ids, "ra": ra, "dec": dec, "mag": ids * 1.0}), table)
        values = {"repo": str(root), "collections": ["run"], "targets": str(table), "select": "mag >= 0"}
        before = peak_rss()
        wall, start = time.perf_counter(), time.process_time()
        found = make_plan(Selection.make(values))
        seconds, wall = time.process_time() - start, time.perf_counter() - wall
    rows = sum(len(u.rows) for u in found.units)
    print(f"plan        {count:,} targets, {len(pairs):,} patches, {len(found.datasets):,} datasets:")
    print(f"  {seconds:.1f} s ({wall:.1f} s), {count / seconds:,.0f} targets per second")
    print(f"  {len(found.units):,} units with {rows:,} rows, {found.outcomes.count('rejected'):,} rejected")
    print(f"  peak memory of the process {peak_rss() / 1e9:.2f} GB ({before / 1e9:.2f} GB before)")


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--targets", type=int, default=1_000_000)
    parser.add_argument("--patches", type=int, default=2000)
    given = parser.parse_args()
    locate(given.targets)
    plan(given.targets, given.patches)


if __name__ == "__main__":
    main()
