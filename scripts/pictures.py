"""Write docs/pictures: the page of a report, a grid of cutouts, and an example of each flag and reason.

    python scripts/pictures.py          # in a temporary directory; five minutes on two cores
    python scripts/pictures.py DIR      # or in DIR, where verbs that are done are not run again

All of it is drawn from the simulated survey of the tutorials. The page needs Chromium.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

import ripple
from ripple.imaging.quality.flags import Flag

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures"


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(sys.argv[1] if len(sys.argv) > 1 else scratch)
        FOLDER.mkdir(exist_ok=True)
        ripple.simulate("sky", patches=4, targets=196, bands="gri", seed=7, lens_fraction=0.4)
        where = {"repo": "sky/repo", "collections": "mini", "targets": "sky/truth.parquet"}
        cutouts = ripple.fetch(**where, bands="gri", size=64, margin=10, output="cutouts")
        tensors = ripple.preprocess("cutouts", output="tensors", psf="match")
        ripple.train("tensors", output="model", width=4, epochs=15)
        ripple.score("model", "tensors", output="scores", evaluate=True)
        ripple.write_report("scores", output="report")
        save("cutouts.png", drawn(cutouts.plot(n=12)))
        save("flags.png", drawn(examples(cutouts, flagged(tensors))))
        save("reasons.png", drawn(examples(cutouts, reasons(cutouts))))
        # Of a page the colours are few, and it is by far the largest picture.
        save("report.png", page(Path("report/index.html").resolve()), colours=64)


def save(name: str, picture: Image.Image, colours: int = 128) -> None:
    """As PNG with few colours and without times, so that pictures stay small."""
    picture.convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(FOLDER / name, optimize=True)


def drawn(figure: Figure) -> Image.Image:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=80)
    return Image.open(data)


def page(path: Path) -> Image.Image:
    """What a browser shows of the cards of a page."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("pictures: no chromium on this machine")
    shot = Path("report.png").resolve()
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--force-device-scale-factor=1",
    ]
    size = ["--window-size=1540,2400", f"--screenshot={shot}"]
    subprocess.run([browser, *flags, *size, path.as_uri()], check=True, capture_output=True, timeout=120)
    whole = Image.open(shot)
    return whole.resize((720, round(720 * whole.height / whole.width)), Image.Resampling.LANCZOS)


def flagged(tensors: Any) -> Iterator[tuple[str, int, str]]:
    """Flag, id and band of the row that shows it best: one that has few other flags, and pixels."""
    table = tensors.table()
    table = table[table["shard"] >= 0]
    bits = {band: np.asarray(table[f"qc_flags_{band}"]).astype(np.int64) for band in tensors.bands}
    # No band of the simulated survey is shifted: a row with that flag is a false alarm, and no example.
    for flag in (flag for flag in Flag if flag is not Flag.REGISTRATION):
        found = [
            (bin(int(row)).count("1"), k, band)
            for band, values in bits.items()
            for k, row in enumerate(values)
            if row >> flag & 1 and (flag is Flag.MISSING_BAND or not row >> Flag.MISSING_BAND & 1)
        ]
        if found:
            _, k, band = min(found)
            yield flag.label, int(table["id"][k]), band


def reasons(cutouts: Any) -> Iterator[tuple[str, int, str]]:
    """Reason, id and band of a row that has pixels."""
    table = cutouts.table()
    table = table[(table["shard"] >= 0) & (table["status"] != "ok")]
    for reason in sorted(set(table["reason"])):
        rows = table[table["reason"] == reason]
        share = [np.isnan(cutouts[str(name)].image).mean(axis=(1, 2)) for name in rows["id"][:10]]
        k, band = np.unravel_index(np.argmax(share), (len(share), len(cutouts.bands)))
        yield str(reason), int(rows["id"][k]), cutouts.bands[band]


def examples(cutouts: Any, chosen: Iterator[tuple[str, int, str]]) -> Figure:
    """A panel each: the band on an asinh scale of its noise, pixels without data in red."""
    rows = list(chosen)
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.45 * lines), layout="constrained")
    axes = np.atleast_1d(figure.subplots(lines, columns)).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (name, identifier, band) in zip(axes, rows, strict=False):
        cut = cutouts[str(identifier)]
        image = cut.image[cut.bands.index(band)]
        axis.set_facecolor("#c44")
        axis.set_title(f"{name} ({band})", fontsize=9)
        sky = 1.48 * float(np.nanmedian(abs(image))) if np.isfinite(image).any() else 1.0
        sky = sky or 1.0
        shown = np.ma.masked_invalid(np.arcsinh(image / sky))
        colours = matplotlib.colormaps["gray"].with_extremes(bad="#c44")
        axis.imshow(shown, origin="lower", cmap=colours, vmin=-1.5, vmax=4, interpolation="nearest")
    return figure


if __name__ == "__main__":
    main()
