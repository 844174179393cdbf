# %% [markdown]
# # What would we have found?
#
# A list of candidates becomes a measurement when it comes with its completeness. Arcs are painted into real
# galaxies and searched like everything else: what comes back, over what was painted, is the selection
# function. This tutorial ends with the figure that belongs into the paper.
#
# The first cell is the first tutorial in short; steps that are finished are left as they are.

# %%
import itertools
import json
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet as pq
from astropy.table import Table

import ripple

start = time.perf_counter()
ripple.simulate("sky", patches=4, targets=196, bands="gri", seed=7, lens_fraction=0.4)
where = {"repo": "sky/repo", "collections": "mini", "targets": "sky/truth.parquet", "bands": "gri"}
cutouts = ripple.fetch(**where, select="label == 0 or arc_sb < 26", size=48, output="cutouts")
tensors = ripple.preprocess(cutouts, output="tensors", psf="match")
options = {"width": 3, "epochs": 12, "batch_size": 32, "seed": 1, "draws": 200}
model = ripple.train(tensors, output="model", **options)

# %% [markdown]
# ## Sky that nobody has seen
#
# Rows on sky that the model was trained on do not count. So here is another tract, without lenses: 784 red
# galaxies, some of them bare, others with spiral arms, rings or companions that look like arcs.

# %%
ripple.simulate("blank", patches=4, targets=196, bands="gri", seed=9, lens_fraction=0.0, tract=9813)
galaxies = ripple.fetch(
    repo="blank/repo",
    collections="mini",
    targets="blank/truth.parquet",
    bands="gri",
    size=48,
    output="galaxies",
)

# %% [markdown]
# ## Arcs
#
# `inject` paints lensed sources into a share of them, through the PSF of each cell and with photon noise.
# Einstein radii are those of the galaxies' velocity dispersions (`theta_from`), because a large ring around a
# small galaxy is not what a lens looks like. In a survey, `hosts` would take massive galaxies only, by colour
# and magnitude. Twice, with other sources, which gives more rows.

# %%
scores = []
for seed in (1, 2):
    painted = ripple.inject(
        galaxies, output=f"painted-{seed}", fraction=0.8, theta_from="sigma_v", seed=seed, card=seed == 1
    )
    ready = ripple.preprocess(painted, model=model, output=f"ready-{seed}")
    scores.append(ripple.score(model, ready, output=f"painted-scores-{seed}"))
index = painted.table()
arcs = index[index["injected"] == 1]
print(f"{len(arcs)} of {len(index)} rows have an arc")
arcs["id", "theta_E", "theta_E_over_seeing", "source_mag", "arc_mag_i", "arc_snr", "magnification"][:5]

# %% [markdown]
# Were they painted as they should be? `card` holds bright arcs against what was meant: their photon noise, in
# pixels and variance, the PSF of their cell, and their colours.

# %%
card = json.loads(Path("painted-1/realism.json").read_text())
checks = [
    (name, band, one.get("value", np.nan), one["verdict"])
    for name in ("photon_noise", "variance", "psf_width")
    for band, one in card["painting"][name].items()
]
print("colours:", card["painting"]["colours"]["verdict"])
Table(rows=checks, names=("check", "band", "ratio that should be 1", "verdict"))

# %% [markdown]
# ## The selection function
#
# Found is what quality control accepts and what reaches the cut of the list: here the score of the best tenth
# of the galaxies without an arc, because this network has seen so little. Two numbers decide most: how far
# the arc is from the deflector, in units of the seeing, and its S/N.

# %%
table = scores[0].table()
without = table[(table["injected"] == 0) & np.isfinite(table["score"])]
cut = float(np.quantile(without["score"], 0.9))
by = ("theta_E_over_seeing", "arc_snr")
selection = ripple.completeness(
    scores,
    output="selection",
    by=by,
    threshold=cut,
    bins="theta_E_over_seeing=0.5,1,1.4,2.3; arc_snr=3,10,20,40,80,160,600",
)
found = json.loads((Path(selection) / "completeness.json").read_text())
whole = found["losses"]["found"]
print(f"overall {whole['value']:.2f} ({whole['low']:.2f} to {whole['high']:.2f})")
print(found["statement"]["text"])
print("galaxies without an arc that pass:", found["false_positives"]["by_class"])

# %% [markdown]
# `selection/index.html` has all of that as a page. The intervals are exact for counts; a bin with few rows
# has a wide one, and one with fewer than 10 has no number.
#
# ## The figure
#
# Left: completeness as a smooth function, white where no arc was painted nearby. Right: the bins, each with
# its 95 % interval, and the function through them.

# %%
grid = pq.read_table(Path(selection) / "completeness.parquet").to_pydict()
x, y = (np.unique(grid[name]) for name in by)
smooth = np.reshape(grid["completeness"], (len(x), len(y)))
guess = np.reshape(grid["rows_near"], smooth.shape) == 0

figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
shown = np.ma.masked_where(guess, smooth)
shades = left.pcolormesh(x, y, shown.T, vmin=0, vmax=1, cmap="cividis", shading="nearest")
lines = left.contour(x, y, smooth.T, levels=np.arange(0.1, 1, 0.1), colors="white", linewidths=1)
left.clabel(lines, fmt="%.1f", fontsize="small")
left.set(yscale="log", xlabel="Einstein radius / seeing", ylabel="arc S/N (best band)")
figure.colorbar(shades, label="completeness")

edges = found["edges"]["theta_E_over_seeing"]
for k, (low, high) in enumerate(itertools.pairwise(edges)):
    cells = [c for c in found["bins"] if c["low"][0] == low and c["completeness"]["value"] is not None]
    middle = np.array([np.sqrt(c["low"][1] * c["high"][1]) for c in cells]) * 1.04**k
    value, bottom, top = (np.array([c["completeness"][n] for c in cells]) for n in ("value", "low", "high"))
    label = rf"{low:g} to {high:g} $\times$ seeing"
    right.errorbar(
        middle, value, (value - bottom, top - value), fmt="o", ms=4, capsize=2, color=f"C{k}", label=label
    )
    right.plot(y, smooth[np.argmin(np.abs(x - (low + high) / 2))], color=f"C{k}", lw=1)
right.set(xscale="log", ylim=(-0.02, 1.02), xlabel="arc S/N (best band)", ylabel="completeness")
right.legend(frameon=False, fontsize="small")
figure.savefig("selection.pdf")
plt.close(figure)  # or Jupyter shows it twice
figure

# %% [markdown]
# ## How many lenses would be found?
#
# A population times this function. Ten lenses per square degree, distributed as those painted here:

# %%
mine = np.stack([arcs[name] for name in by], axis=1)
near = [np.argmin(np.abs(axis[:, None] - mine[:, k]), axis=0) for k, axis in enumerate((x, y))]
share = smooth[near[0], near[1]].mean()
print(f"{10 * share:.1f} of 10 lenses per square degree are found")

# %% [markdown]
# It holds for the population that was painted: `lenses=FILE` paints yours, `sources=FILE` real galaxies, and
# *What would we have found?* (how-to) has the rest.

# %%
print(f"{time.perf_counter() - start:.0f} s; about two minutes on 2 cores, one after the first tutorial")
