#!/usr/bin/env python3
"""astrocut and Cutana on the pixels of the fetch benchmark, one line each with ours beside it.

    python -m venv VENV && VENV/bin/pip install astrocut cutana
    .venv/bin/python scripts/bench/peers.py --venv VENV --directory DIR [--rounds 3] [--per-patch 500 5000]

They get the image plane alone, as uncompressed FITS, four bands as a set of four files, and cut 64 px stamps:

- `astrocut`: one `FITSCutout` of the four files per target, in memory (a sample: it takes tens of milliseconds each);
- `cutana`: its orchestrator with one worker, no normalisation, float32 Zarr; checks that open files switched off;
- `cutana direct`: `create_cutouts_direct`, which stays in memory and which its authors advise for small batches;
- `ripple in memory`: `ripple.open_survey(REPO).cutouts(table)`, from the compressed coadds: image, variance, mask, PSFs, margins;
- `ripple`: the whole of `ripple fetch --workers 1` from the compressed coadds: image, variance, mask, PSF, index,
  digests.

`DIR` is the directory of `scripts/bench/fetch.py`, whose repository and targets are used (made when missing).
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from fetch import BANDS, PATCHES, SIZE, SKYMAP, TRACT, make_targets, repository, ripple_fetch

ASTROCUT = """
import json, sys, time
from astropy.coordinates import SkyCoord
from astrocut import FITSCutout
sets = json.load(sys.stdin)
t, done = time.perf_counter(), 0
for files, rows in sets:
    for ra, dec in rows:
        cut = FITSCutout(files, SkyCoord(ra, dec, unit="deg"), 64)
        assert len(cut.fits_cutouts[0]) == 1 + len(files)
        done += 1
print(json.dumps({"seconds": time.perf_counter() - t, "done": done}))
"""

MEMORY = """
import json, os, sys, time
import ripple
targets, root = sys.argv[1:3]
survey = ripple.open_survey(root, collections="mini")
t = time.perf_counter()
found = survey.cutouts(targets, size=64)
print(json.dumps({"seconds": time.perf_counter() - t, "done": len(found.batch), "cpu": sum(os.times()[:4])}))
"""

CUTANA = """
import json, os, sys, time
import pandas as pd
from cutana import Orchestrator, create_cutouts_direct, get_default_config
catalogue, out, how, bands = sys.argv[1:5]
config = get_default_config()
config.source_catalogue, config.output_dir, config.output_format = catalogue, out, "zarr"
config.target_resolution, config.data_type, config.normalisation_method = 64, "float32", "none"
config.apply_flux_conversion, config.skip_fits_check = False, True
config.selected_extensions = [{"name": "PRIMARY", "ext": "PrimaryHDU"}]
config.channel_weights = {b: [float(b == other) for other in bands] for b in bands}  # by file name
config.max_workers, config.loadbalancer.initial_workers = 1, 1
config.loadbalancer.skip_memory_calibration_wait = True
config.console_log_level = "ERROR"
t = time.perf_counter()
if how == "direct":
    results = create_cutouts_direct(pd.read_csv(catalogue), config, max_workers=1)
    done, shape = sum(len(r["cutouts"]) for r in results), results[0]["cutouts"].shape[1:]
else:
    result = Orchestrator(config).run()
    assert result["status"] == "completed", result
    done, shape = result["total_sources"], None
seconds = time.perf_counter() - t
print(json.dumps({"seconds": seconds, "done": done, "shape": shape, "cpu": sum(os.times()[:4])}))
"""


def images(root: Path, work: Path, patches: list[int]) -> dict[int, list[str]]:
    """Patch -> image planes of its bands as uncompressed FITS, made once."""
    from astropy.io import fits

    from ripple.rubin.open import open_coadd

    files: dict[int, list[str]] = {}
    for path in sorted(root.rglob("*.fits"), key=lambda p: (p.parts[-3], BANDS.index(p.parts[-2]))):
        patch, band = int(path.parts[-3]), path.parts[-2]
        if patch not in patches:
            continue
        out = work / "images" / f"{patch}-{band}.fits"
        files.setdefault(patch, []).append(str(out))
        if not out.exists():
            out.parent.mkdir(exist_ok=True)
            coadd = open_coadd(path.read_bytes(), name=path.name)
            header = fits.Header(coadd.projection.cards())
            header["CRPIX1"] -= coadd.box.x0
            header["CRPIX2"] -= coadd.box.y0
            fits.PrimaryHDU(coadd.image(), header).writeto(out)
    return files


def positions(targets: Path) -> dict[int, list[tuple[str, float, float]]]:
    """Patch -> id, right ascension and declination of its targets."""
    import numpy as np

    from ripple.sky.skymap import known

    skymap, table = known(SKYMAP), list(csv.DictReader(targets.open()))
    ra, dec = (np.array([float(row[c]) for row in table]) for c in ("ra", "dec"))
    x, y = skymap.tan(TRACT).sky_to_pixel(ra, dec)
    patch = skymap.find_patch(np.full(len(x), TRACT), x, y)
    found: dict[int, list[tuple[str, float, float]]] = {}
    for row, p in zip(table, patch.tolist(), strict=True):
        found.setdefault(p, []).append((row["id"], float(row["ra"]), float(row["dec"])))
    return found


def astrocut(
    python: str, files: dict[int, list[str]], rows: dict[int, list[tuple[str, float, float]]]
) -> float:
    """Targets per second, of a sample."""
    sets = [[files[p], [(ra, dec) for _, ra, dec in rows[p][:50]]] for p in files]
    return _rate([python, "-c", ASTROCUT], json.dumps(sets)).wall


def cutana(
    python: str, files: dict[int, list[str]], rows: dict[int, list[tuple[str, float, float]]], work: Path,
    how: str,
) -> float:  # fmt: skip
    """Targets per second."""
    out, catalogue = work / "cutana", work / "cutana.csv"
    shutil.rmtree(out, ignore_errors=True)
    with catalogue.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["SourceID", "RA", "Dec", "diameter_pixel", "fits_file_paths"])
        for patch, found in rows.items():
            writer.writerows([name, ra, dec, SIZE, json.dumps(files[patch])] for name, ra, dec in found)
    return _rate([python, "-c", CUTANA, str(catalogue), str(out), how, "".join(BANDS)], "")


class Rate(NamedTuple):
    """Targets per second by the clock, and per CPU-second of the whole process with its start."""

    wall: float
    cpu: float


def _rate(command: list[str], text: str) -> Rate:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    record = json.loads(done.stdout.strip().splitlines()[-1])
    return Rate(record["done"] / record["seconds"], record["done"] / record.get("cpu", record["seconds"]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--venv", type=Path, required=True, help="environment with astrocut and cutana")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="where results are written, by default in --directory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patches", type=int, default=2)
    parser.add_argument("--per-patch", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--no-astrocut", action="store_true")
    args = parser.parse_args()
    work, python = args.directory, str((args.venv / "bin" / "python").absolute())
    output = args.output or work
    output.mkdir(parents=True, exist_ok=True)
    patches, root = PATCHES[: args.patches], repository(work)
    files = images(root, work, patches)
    for per_patch in args.per_patch:
        targets, n = work / f"t{per_patch}.csv", per_patch * len(patches)
        make_targets(targets, patches, per_patch)
        rows = positions(targets)
        ours: list[float] = []
        theirs: dict[str, list[Rate]] = {"orchestrator": [], "direct": [], "memory": []}
        slow = None if args.no_astrocut else astrocut(python, files, rows)
        for _ in range(args.rounds):
            ours.append(n / ripple_fetch(root, targets, output / "out")[0])
            for how in ("orchestrator", "direct"):
                theirs[how].append(cutana(python, files, rows, output, how))
            theirs["memory"].append(_rate([sys.executable, "-c", MEMORY, str(targets), str(root)], ""))
        a = statistics.median(ours)
        b, c, d = (statistics.median(rate.wall for rate in rates) for rates in theirs.values())
        x, y = (statistics.median(rate.cpu for rate in theirs[how]) for how in ("direct", "memory"))
        print(f"peers, {per_patch}/patch, targets/s in {len(BANDS)} bands: ripple {a:.0f}; cutana {b:.0f} ({a / b:.1f}x)"
              + ("" if slow is None else f", astrocut {slow:.1f} ({a / slow:.0f}x)"))  # fmt: skip
        print(f"  in memory: ripple {d:.0f}, cutana direct {c:.0f} ({d / c:.2f}x); "
              f"targets per CPU-second with the start: {y:.0f} and {x:.0f} ({y / x:.2f}x)")  # fmt: skip


if __name__ == "__main__":
    main()
