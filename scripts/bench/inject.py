#!/usr/bin/env python3
"""What painting arcs costs: rows per second and core, and the same lenses in a loop of lenstronomy.

    .venv/bin/python scripts/bench/inject.py                   # 400 rows of 4 bands x 64 px, seconds
    .venv/bin/python scripts/bench/inject.py --peer 40         # beside them the first 40 with lenstronomy

Rows of blank sky with a PSF of their own in each band, two cells of the coadd in each: about what cells of 150 px give
cutouts of 64 px. CPU time, not wall-clock time, of a process with one thread (set OMP_NUM_THREADS=1). The loop of lenstronomy: an image of each
lens (SIE or EPL and SHEAR, SERSIC_ELLIPSE, a knot as a second one) in each band, convolved with the PSF; pixels sampled
5 x 5, and the PSF of one cell; no noise, no measures. Prints Markdown.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from ripple.imaging.batch import MASK_PLANES, CutoutBatch
from ripple.imaging.simulation.observing import BANDS, moffat, noise_sigma
from ripple.imaging.simulation.profiles import KNOT_SIZE, Lensed
from ripple.stages.inject.config import InjectConfig
from ripple.stages.inject.inject import inject_batch
from ripple.stages.inject.paint import draw_lensed

NAMES, SIZE, KERNEL, SCALE = ("g", "r", "i", "z"), 64, 41, 0.2
SAMPLES = 5  # of lenstronomy, along the side of a pixel


def blank(rows: int) -> CutoutBatch:
    """Blank sky; the lower half of each cutout lies in another cell."""
    rng = np.random.default_rng(4)
    sigma = np.array([noise_sigma(b) for b in NAMES])[None, :, None, None]
    shape = (rows, len(NAMES), SIZE, SIZE)
    image = (sigma * rng.standard_normal(shape)).astype(np.float32)
    psf = [
        moffat(KERNEL, BANDS[b].fwhm / SCALE * rng.uniform(0.9, 1.1), *rng.uniform(-0.03, 0.03, 2))
        for _ in range(2 * rows)
        for b in NAMES
    ]
    index = np.arange(2 * rows * len(NAMES), dtype=np.int32).reshape(rows, 2, len(NAMES))
    cells = [(n, b, 0, SIZE // 2, 0, SIZE, index[n, 1, b]) for n in range(rows) for b in range(len(NAMES))]
    catalog = {
        "index": np.arange(rows, dtype=np.int64), "id": np.arange(rows), "ra": np.zeros(rows),
        "dec": np.zeros(rows), "dx": np.zeros(rows, np.float32), "dy": np.zeros(rows, np.float32),
    }  # fmt: skip
    return CutoutBatch(
        NAMES, image, np.broadcast_to(sigma**2, shape).astype(np.float32), np.zeros(shape, np.uint32),
        MASK_PLANES, np.array(psf, np.float32), index[:, 0].copy(), catalog, psf_cells=np.array(cells, np.int32),
    )  # fmt: skip


def peer(batch: CutoutBatch, rows: int) -> float:
    """Rows per second of CPU time of lenstronomy."""
    from lenstronomy.Data.imaging_data import ImageData
    from lenstronomy.Data.psf import PSF
    from lenstronomy.ImSim.image_model import ImageModel
    from lenstronomy.LensModel.lens_model import LensModel
    from lenstronomy.LightModel.light_model import LightModel
    from lenstronomy.Util.param_util import phi_q2_ellipticity

    rng = np.random.default_rng(7)
    lens, light = LensModel(["SIE", "SHEAR"]), LightModel(["SERSIC_ELLIPSE", "SERSIC_ELLIPSE"])
    start = time.process_time()
    for n in range(rows):
        theta = float(rng.uniform(0.6, 2.5)) / SCALE
        lensed: Lensed = draw_lensed(rng, theta, 0.8, 0.3, SCALE)
        e1, e2 = phi_q2_ellipticity(lensed.lens.angle, lensed.lens.q)
        mass = [
            {"theta_E": theta, "e1": e1, "e2": e2},
            {"gamma1": lensed.lens.gamma1, "gamma2": lensed.lens.gamma2},
        ]
        s = lensed.source
        e1, e2 = phi_q2_ellipticity(s.angle, s.q)
        source = [
            {"amp": 1.0, "R_sersic": s.re * np.sqrt(s.q), "n_sersic": s.n, "e1": e1, "e2": e2,
             "center_x": s.dx, "center_y": s.dy},
            {"amp": 1.0, "R_sersic": KNOT_SIZE * s.re, "n_sersic": s.n, "e1": 0.0, "e2": 0.0,
             "center_x": s.dx + lensed.knots[0].dx, "center_y": s.dy + lensed.knots[0].dy},
        ]  # fmt: skip
        for b in range(len(NAMES)):
            data = ImageData(
                image_data=np.zeros((SIZE, SIZE)), ra_at_xy_0=-32.0, dec_at_xy_0=-32.0,
                transform_pix2angle=np.eye(2), background_rms=1.0, exposure_time=1.0,
            )  # fmt: skip
            psf = PSF("PIXEL", kernel_point_source=batch.psf[batch.psf_index[n, b]].astype(float))
            model = ImageModel(
                data, psf, lens, source_model_class=light, kwargs_numerics={"supersampling_factor": SAMPLES}
            )
            model.image(mass, source)
    return rows / (time.process_time() - start)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--peer", type=int, default=0, help="rows painted by lenstronomy as well")
    args = parser.parse_args()
    batch = blank(args.rows)
    config = InjectConfig(fraction=1.0)
    inject_batch(batch.take(slice(0, 4)), config)  # what is compiled or tabulated once
    start = time.process_time()
    inject_batch(batch, config)
    mine = args.rows / (time.process_time() - start)
    print("| | rows/s/core |\n|---|---|")
    print(f"| ripple inject, {len(NAMES)} bands x {SIZE} px, two cells in each | {mine:.0f} |")
    if args.peer:
        other = peer(batch, args.peer)
        print(f"| a loop of lenstronomy, one cell | {other:.1f} |\n| ratio | {mine / other:.0f} |")


if __name__ == "__main__":
    main()
