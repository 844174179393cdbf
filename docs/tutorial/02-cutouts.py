# %% [markdown]
# # Cutouts for people who want only cutouts
#
# One object, a thousand objects, FITS files and tables; what the PSF and the mask of a cutout are. No network
# is trained here, and nothing needs PyTorch.
#
# The data are a small simulated survey in a real Butler repository, so that every cell runs on a laptop. On
# the Rubin Science Platform leave out `ripple.simulate` and open DP2 instead: `survey =
# ripple.open_survey("dp2", collections="dp2")`.

# %%
import time

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord

import ripple

start = time.perf_counter()
ripple.simulate("sky", patches=4, targets=196, bands="gri", seed=7, lens_fraction=0.4)
survey = ripple.open_survey("sky/repo", collections="mini")
survey

# %% [markdown]
# ## Which objects are there?
#
# `survey.objects` reads the object table of the repository, for a region and with a condition on its columns.
# It returns an astropy table.

# %%
galaxies = survey.objects("CIRCLE 53.14 -27.57 0.015", select="refExtendedness == 1 and i_cModelMag < 21")
galaxies["id", "ra", "dec", "i_cModelMag"]

# %% [markdown]
# ## One cutout
#
# By position, by sky coordinates, or by the id of an object; the size in pixels or as an angle.

# %%
galaxy = galaxies[abs(galaxies["i_cModelMag"] - 20).argmin()]
cut = survey.cutout(galaxy["id"], size=64)
again = survey.cutout(SkyCoord(galaxy["ra"], galaxy["dec"], unit="deg"), size=12.8 * u.arcsec)
assert np.array_equal(cut.image, again.image, equal_nan=True)
cut

# %% [markdown]
# All bands are cut from the same pixels of the tract. `cut.image` is in nJy, `cut.variance` in nJy², both
# `(bands, height, width)`; NaN where there is no pixel.

# %%
print(cut.bands, cut.image.shape, cut.image.dtype)
print(cut.wcs.wcs.ctype, f"{cut.pixel_scale:.2f} arcsec per pixel")

# %%
cut.plot("bands")

# %% [markdown]
# ### Which PSF did I get?
#
# Coadds of DP2 consist of cells of 150 pixels, and each cell has a PSF of its own: `cut.psf` is that of the
# cell with the target, one per band, with a sum of 1. Its full width at half maximum in arcsec:

# %%
print({band: round(width, 2) for band, width in cut.psf_fwhm.items()})
cut.plot("psf")

# %% [markdown]
# ### A flux
#
# Within a circle around the target, in nJy; beside it the model flux of the whole galaxy from the object
# table. The error takes pixels for independent, which those of coadds are not: it is a lower limit.

# %%
flux = cut.flux(2.5 * u.arcsec)
flux["model"] = [galaxy[f"{band}_cModelFlux"] for band in cut.bands] * u.nJy
flux

# %% [markdown]
# ### For other software
#
# A FITS file; `CCDData` of astropy with WCS, uncertainty and mask; `MaskedImage` of `lsst.images`.

# %%
print(cut.to_fits("galaxy.fits", overwrite=True))
print(cut.to_nddata()["i"].uncertainty.uncertainty_type, cut.to_nddata()["i"].unit)
print(cut.to_lsst()["i"].bbox)

# %% [markdown]
# ## Many cutouts
#
# `survey.cutouts` takes a table of any kind, sky coordinates, or the path of a table. What was simulated is
# in `sky/truth.parquet`: lenses (label 1) and look-alikes (label 0).

# %%
many = survey.cutouts("sky/truth.parquet", size=48)
many

# %% [markdown]
# Every requested row is accounted for: `table` has one line for each, with its status and the reason.

# %%
table = many.table
print(len(table), "requested,", len(many), "cutouts")
table[table["status"] != "ok"]["id", "ra", "dec", "status", "reason", "detail"]

# %% [markdown]
# `many` is a sequence: `many[0]` is a cutout, `many[10:20]` and `many[mask]` are cutouts again.

# %%
lenses = many[(table["label"] == 1) & (table["status"] == "ok")]
lenses.plot(n=9, labels="theta_E")

# %% [markdown]
# The number above each picture is the Einstein radius in arcsec.
#
# ### What does the mask say?
#
# `cut.mask` has one bit per plane, `cut.mask_planes` their names; `cut.good` are the pixels that `ripple
# preprocess` would use. DETECTED, for example, is no fault. Here is the cutout with the smallest usable share
# of all that have every band:

# %%
complete = many[table["status"] == "ok"]
worst = min(complete, key=lambda one: one.good.mean())
print({band: f"{share:.1%}" for band, share in zip(worst.bands, worst.good.mean(axis=(1, 2)), strict=True)})
worst.plot("mask")

# %% [markdown]
# ## To disk
#
# FITS files with a `catalog.csv`; or an artefact, which is what all verbs of RIPPLe read and write: HDF5
# files with checksums.

# %%
folder = lenses[:5].to_fits("lenses")
print(sorted(path.name for path in folder.iterdir()))
lenses.write("lens-cutouts")
artefact = ripple.open("lens-cutouts")
print(artefact.verify() or "every byte is as it was written")
artefact[lenses[3].id]

# %% [markdown]
# ## A hundred thousand
#
# A `Survey` keeps decoded coadds in memory, for repeated questions about a region. For many targets use the
# verb: it works in several processes, goes on where it was interrupted, and writes to disk as it goes. On the
# command line this is
#
# ```sh
# ripple fetch --repo sky/repo --collections mini --targets sky/truth.parquet --bands gri --size 48 -o cutouts
# ```
#
# and in Python the same words:

# %%
cutouts = ripple.fetch(
    repo="sky/repo",
    collections="mini",
    targets="sky/truth.parquet",
    bands="gri",
    size=48,
    output="many-cutouts",
)
cutouts

# %% [markdown]
# ## How long it took

# %%
survey.close()
print(f"{time.perf_counter() - start:.0f} s; about 30 s on 2 cores, most of it for the simulation")
