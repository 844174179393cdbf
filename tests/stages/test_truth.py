"""Cutouts of the repository that the LSST pipelines wrote, against what afw itself gives for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ripple.imaging.batch import CutoutBatch, concatenate
from ripple.rubin.open import open_coadd
from ripple.sky.geometry import Box
from ripple.stages.fetch.config import FetchConfig
from ripple.stages.fetch.fetch import fetch
from ripple.storage.artefact import open_artefact
from ripple.storage.shard_reader import unpack_cutouts

BANDS = ("g", "r", "i", "z")


@pytest.fixture(scope="module")
def truth(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "afw_cutouts.npz") as data:
        return {name: data[name] for name in data.files}


@pytest.fixture(scope="module")
def cut(shared: Path, truth: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 41 positions, fetched from `deepCoadd_calexp` in four bands."""
    directory = tmp_path_factory.mktemp("truth")
    lines = ["id,ra,dec"]
    lines += [f"{k},{a!r},{d!r}" for k, (a, d) in enumerate(zip(truth["pos_ra_deg"].tolist(), truth["pos_dec_deg"].tolist(), strict=True))]  # fmt: skip  # noqa: E501
    (directory / "targets.csv").write_text("\n".join(lines) + "\n")
    fetch(
        FetchConfig.make({
            "repo": str(shared / "afw_repo"), "collections": ["truth/all"], "skymap": "truth_rings_v1",
            "dataset_type": "deepCoadd_calexp", "bands": list(BANDS), "duplicate_radius": 0,
            "targets": str(directory / "targets.csv"), "output": str(directory / "out"), "workers": 0,
            "margin": 0,
        })
    )  # fmt: skip
    return directory / "out"


@pytest.fixture(scope="module")
def batch(cut: Path) -> CutoutBatch:
    artefact = open_artefact(cut, "cutouts")
    return concatenate([unpack_cutouts(artefact.read(k)) for k in range(len(artefact.shards))])


def rows_of(truth: dict[str, np.ndarray], batch: CutoutBatch) -> list[tuple[int, int, int]]:
    """(row of the table, row of the batch, band) for every cutout that both have."""
    at = {int(i): k for k, i in enumerate(batch.catalog["index"])}
    return [
        (t, at[int(truth["cut_pos"][t])], BANDS.index(str(truth["cut_band"][t])))
        for t in np.flatnonzero(truth["cut_dataset_type"] == "deepCoadd_calexp")
        if truth["cut_status"][t] != "missing" and int(truth["cut_pos"][t]) in at
    ]


def test_every_position_is_delivered_or_named(truth: dict[str, np.ndarray], cut: Path) -> None:
    index = open_artefact(cut, "cutouts").index()
    for kind, status, reason in zip(
        truth["pos_kind"].tolist(), index["status"].to_pylist(), index["reason"].to_pylist(), strict=True
    ):
        if kind == "patch_not_registered":
            assert (status, reason) == ("rejected", "no_patch")
        elif kind == "no_dataset_in_patch":
            assert (status, reason) in (("rejected", "no_dataset"), ("partial", "outside"))
        elif kind == "inside":
            assert (status, reason) in (("ok", ""), ("partial", "missing_band"))
        else:
            assert status in ("ok", "partial")


def test_pixels_are_those_of_afw_in_njy(truth: dict[str, np.ndarray], batch: CutoutBatch) -> None:
    compared = 0
    for t, row, b in rows_of(truth, batch):
        inside = np.unpackbits(truth["inside"][t], axis=-1).astype(bool)
        image, calib = truth["image"][t], truth["cut_calib_mean"][t]
        assert (batch.catalog["x0"][row], batch.catalog["y0"][row]) == (
            np.floor(truth["pos_x"][truth["cut_pos"][t]] + 0.5) - 32,
            np.floor(truth["pos_y"][truth["cut_pos"][t]] + 0.5) - 32,
        )
        here = batch.image[row, b]
        assert (np.isnan(here) == np.isnan(image))[inside].all()
        if truth["cut_calib_const"][t]:
            good = inside & np.isfinite(image)
            np.testing.assert_allclose(here[good], image[good] * calib, rtol=1e-6, atol=1e-6)
            variance = truth["variance"][t][good] * calib**2
            np.testing.assert_allclose(batch.variance[row, b][good], variance, rtol=1e-6)
        centre = truth["cut_photocalib_njy"][t]
        if inside[32, 32] and np.isfinite(centre):
            np.testing.assert_allclose(here[32, 32], centre, rtol=1e-6, atol=1e-6)
        compared += 1
    assert compared > 130


def test_masks_are_equal_plane_by_plane(
    shared: Path, truth: dict[str, np.ndarray], batch: CutoutBatch
) -> None:
    planes = json.loads((shared / "afw_truth.json").read_text())["mask_planes_in_memory"]
    for t, row, b in rows_of(truth, batch):
        inside = np.unpackbits(truth["inside"][t], axis=-1).astype(bool)
        for name, bit in planes.items():
            theirs = truth["mask"][t] >> bit & 1
            ours = (batch.mask[row, b] & batch.bits(name)) != 0
            if name in batch.mask_planes:
                np.testing.assert_array_equal(ours[inside], theirs[inside].astype(bool))


def test_psfs_are_those_of_afw_where_one_is_claimed(truth: dict[str, np.ndarray], batch: CutoutBatch) -> None:
    claimed = 0
    for t, row, b in rows_of(truth, batch):
        m = batch.psf_index[row, b]
        if m < 0:
            assert truth["cut_psf_type"][t] in ("CoaddPsf", "") or truth["cut_psf_status"][t] != "ok"
            continue
        h, w = truth["cut_psf_h"][t], truth["cut_psf_w"][t]
        side = batch.psf.shape[-1]
        padded = np.zeros((side, side))
        y, x = side // 2 + truth["cut_psf_y0"][t], side // 2 + truth["cut_psf_x0"][t]
        padded[y : y + h, x : x + w] = truth["psf_kernel"][t][:h, :w]
        np.testing.assert_allclose(batch.psf[m], padded, atol=1e-7)
        claimed += 1
    assert claimed > 10


def test_boxes_at_borders_and_corners_are_the_crop_of_the_mosaic(
    shared: Path, truth: dict[str, np.ndarray], batch: CutoutBatch
) -> None:
    files = sorted((shared / "afw_repo/truth/coadd/deepCoadd_calexp").rglob("*.fits"))
    opened = [(p.parts[-2], open_coadd(p.read_bytes(), name=p.name)) for p in files]
    planes = [(band, coadd.box, coadd.image()) for band, coadd in opened]
    at = {int(i): k for k, i in enumerate(batch.catalog["index"])}
    patches = truth["pos_patches_touching_box"].tolist()
    seen = 0
    for k, kind in enumerate(truth["pos_kind"].tolist()):
        if not kind.startswith("patch_") or k not in at:
            continue
        row = at[k]
        x0, y0 = int(batch.catalog["x0"][row]), int(batch.catalog["y0"][row])
        stamp = Box(x0, y0, x0 + 64, y0 + 64)
        for b, band in enumerate(BANDS):
            if not batch.catalog["band_mask"][row] >> b & 1:
                continue
            candidates = [(box, plane) for name, box, plane in planes if name == band]
            mosaic = np.full((64, 64), np.nan, np.float32)
            for box, plane in candidates:
                common = stamp & box
                if not common.empty:
                    mosaic[stamp.slices(common)] = plane[box.slices(common)]
            if band == "r" and "2812" in patches[k].split(";"):
                # Its spatially varying calibration makes this file's nJy differ from its neighbours': named.
                assert batch.catalog["seam_difference"][row] > 1
                continue
            np.testing.assert_allclose(batch.image[row, b], mosaic, rtol=1e-6)
            seen += 1
        assert batch.catalog["n_patches"][row] > 1
    assert seen > 10
