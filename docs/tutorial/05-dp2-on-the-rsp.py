# %% [markdown]
# # DP2 on the Rubin Science Platform
#
# From the object table of DP2 to a page of candidates, in a notebook with 32 GB, without an installation by
# hand. Here it runs on a simulated repository with the same kinds of data; on the platform two cells differ,
# which have the tags `here` and `rsp`.

# %%
import resource
import time

import ripple

# %% tags=["rsp"]
# On the platform, once: !pip install --user "ripple-lsst[learn]"
# Then these lines instead of those of the next cell:
# repository = {"repo": "dp2", "collections": "dp2"}
# region, finder = "CIRCLE 53.12 -27.54 0.05", "/path/to/a/model"

# %% tags=["here"]
ripple.simulate("sky", patches=4, targets=196, bands="gri", seed=7, lens_fraction=0.4)
repository = {"repo": "sky/repo", "collections": "mini"}
region, finder = "CIRCLE 53.12 -27.55 0.03", None

# %%
start = time.perf_counter()
bands, size = "gri", 48
select = "refExtendedness == 1 and i_cModelMag < 22"

# %% [markdown]
# ## What is there?
#
# `doctor` on the command line checks the environment and the repository. From Python, a survey shows its
# bands and tracts, and a plan what a fetch will cost, before a pixel is read.

# %%
survey = ripple.open_survey(**repository, cache_bytes=2 << 30)
galaxies = survey.objects(region, select=select)
plan = survey.plan(galaxies, size=size, bands=bands)
print(f"{len(galaxies)} galaxies, {plan.meta['read_bytes'] / 1e6:.0f} MB to read")
print({status: int((plan["status"] == status).sum()) for status in ("ok", "partial", "rejected")})

# %% [markdown]
# A first look at the brightest ones:

# %%
brightest = galaxies[galaxies["i_cModelMag"].argsort()][:9]
survey.cutouts(brightest, size=size, bands=bands).plot(labels="i_cModelMag")

# %% [markdown]
# ## Cutouts and tensors
#
# The memory of all workers together stays below the limit; what was finished is not done again when the
# server is shut down in between: run the cell once more.

# %%
survey.close()
cutouts = ripple.fetch(
    **repository,
    region=region,
    select=select,
    bands=bands,
    size=size,
    memory="4GiB",
    workers=2,
    output="dp2-cutouts",
)
tensors = ripple.preprocess(cutouts, output="dp2-tensors", psf="match", memory="4GiB", workers=2)
print(cutouts)
print(tensors)

# %% [markdown]
# Rejected rows stay in the table, with the reason:

# %%
print(tensors.summary()["reasons"] or "no row was rejected")

# %% [markdown]
# ## Candidates
#
# With a model that was trained before. Here the one of the first tutorial is trained if it is not there; the
# model of a paper is made by `ripple.import_model`.

# %%
if finder is None:
    where = {**repository, "targets": "sky/truth.parquet", "bands": bands, "size": size}
    labelled = ripple.fetch(**where, select="label == 0 or arc_sb < 26", output="cutouts")
    labelled = ripple.preprocess(labelled, output="tensors", psf="match")
    finder = ripple.train(labelled, output="model", width=3, epochs=12, batch_size=32, seed=1, draws=200)
scores = ripple.score(finder, tensors, output="dp2-scores")
scores.table()["rank", "id", "ra", "dec", "score", "probability"][:5]

# %%
scores.plot(n=9)

# %% [markdown]
# A page to grade them on, one file without a server; download it or open it in JupyterLab.

# %%
print(ripple.write_report(scores, output="dp2-report"))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(f"{time.perf_counter() - start:.0f} s; about half a minute on 2 cores where the model is there")
print(f"at most {peak:.1f} GB in this process")
