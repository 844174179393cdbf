# %% [markdown]
# # A model from elsewhere
#
# A network that was trained in another program becomes a model of RIPPLe when a sidecar file says what data
# it takes. From then on it is checked against the data, ranked, evaluated and exported like any other. No
# program of others is run: only the weights are read.

# %%
import time
from pathlib import Path

import numpy as np
import timm
import torch
import yaml

import ripple
from ripple.errors import ContractError

start = time.perf_counter()
ripple.simulate("sky", patches=4, targets=196, bands="gri", seed=7, lens_fraction=0.4)
where = {"repo": "sky/repo", "collections": "mini", "targets": "sky/truth.parquet", "bands": "gri"}
cutouts = ripple.fetch(**where, select="label == 0 or arc_sb < 26", size=48, output="cutouts")
tensors = ripple.preprocess(cutouts, output="tensors", psf="match")

# %% [markdown]
# ## Somebody else's training
#
# A ResNet-18 of `timm`, a few steps of plain PyTorch, a `state_dict` on disk. `ripple.TensorDataset` serves
# the tensors to any PyTorch code.

# %%
torch.manual_seed(0)
rows = ripple.TensorDataset("tensors")
net = timm.create_model("resnet18", num_classes=1, in_chans=3)
optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
for step in range(12):
    batch = [rows[int(k)] for k in np.random.default_rng(step).integers(0, len(rows), 32)]
    image = torch.stack([row["image"] for row in batch]).float()
    label = torch.stack([row["label"] for row in batch]).float()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(net(image)[:, 0], label)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
torch.save(net.state_dict(), "resnet18.pth")

# %% [markdown]
# ## The sidecar
#
# It names what no file of weights says: the network, the bands in order, size and pixel scale, how the pixels
# were normalised, and which output means a lens. Nothing is guessed.

# %%
sidecar = {
    "architecture": {"name": "resnet18", "bands": 3, "size": 48, "outputs": 1, "stem": "standard"},
    "bands": ["g", "r", "i"],
    "size": 48,
    "pixel_scale": 0.2,
    "unit": "nJy",
    "psf_fwhm": None,
    "normalization": tensors.attributes["normalization"],
    "class_map": {0: "nonlens", 1: "lens"},
    "output": "lens",
}
Path("resnet18.yaml").write_text(yaml.safe_dump(sidecar))
model = ripple.import_model("resnet18.pth", sidecar="resnet18.yaml", output="imported")
model

# %% [markdown]
# ## The same numbers
#
# Scores of the imported model are those of the network itself.

# %%
scores = ripple.score(model, tensors, output="imported-scores", tta=False)
best = scores.table()[0]
place = rows.column("id")[rows.rows].tolist().index(best["id"])
net.eval()
with torch.no_grad():
    theirs = torch.sigmoid(net(rows[place]["image"][None].float()))[0, 0].item()
print(f"ours {best['score']:.6f}, theirs {theirs:.6f}")
assert abs(best["score"] - theirs) < 1e-4

# %% [markdown]
# ## The contract
#
# Tensors of another kind are refused, by the name of what differs.

# %%
other = ripple.preprocess(cutouts, output="other-tensors", psf="match", normalize="zscore")
try:
    ripple.score(model, other, output="refused")
except ContractError as error:
    print(error)

# %% [markdown]
# ## On to others
#
# The model as ONNX, with its contract beside it; the export is compared with the network before it is
# written.

# %%
program = ripple.export_model(model, output="finder.onnx")
print(program, f"{program.stat().st_size / 1e6:.0f} MB", "and", program.with_suffix(".json"))
print(f"{time.perf_counter() - start:.0f} s; about one minute on 2 cores")
