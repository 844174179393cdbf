"""Stamps across the border of two cells of a coadd: which PSF is where, and stars whole after matching."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matched import homogenise
from stampmaker import SIGMA, make_batch, moffat

from ripple.errors import DataError
from ripple.imaging.batch import CutoutBatch, concatenate
from ripple.imaging.psf import match
from ripple.stages.fetch.config import FetchConfig
from ripple.stages.fetch.fetch import fetch
from ripple.stages.inject.config import InjectConfig
from ripple.stages.inject.inject import inject_batch
from ripple.storage.artefact import open_artefact
from ripple.storage.shard_reader import unpack_cutouts
from ripple.storage.shard_writer import pack_cutouts

SIZE, MARGIN = 64, 12
SIDE = SIZE + 2 * MARGIN


def across(border: int, width: float, beside: float, flux: float = 1.0) -> CutoutBatch:
    """A star in each of two bands; from column `border` on the first band has the PSF of another cell."""
    batch = make_batch(1, "gi", SIZE, MARGIN, noiseless=True)
    stamps = np.stack([moffat(w, 41, e) for w, e in ((width, 0.03), (5.6, 0.0), (beside, -0.03))])
    images = np.stack([_pasted(s) * flux for s in stamps])
    image = images[None, :2].copy()
    first, last = (border, SIDE) if border > SIDE // 2 else (0, border)
    image[0, 0, :, first:last] = images[2, :, first:last]
    parts = np.array([[0, 0, 0, SIDE, first, last, 2]], np.int32)
    return replace(
        batch, image=image.astype(np.float32), psf=stamps.astype(np.float32), psf_cells=parts,
        psf_index=np.array([[0, 1]], np.int32),
    )  # fmt: skip


def _pasted(stamp: np.ndarray) -> np.ndarray:
    out = np.zeros((SIDE, SIDE))
    half = stamp.shape[0] // 2
    out[SIDE // 2 - half : SIDE // 2 + half + 1, SIDE // 2 - half : SIDE // 2 + half + 1] = stamp
    return out


@pytest.mark.parametrize(("width", "beside"), [(4.0, 4.4), (4.4, 4.0), (4.2, 4.2)])
@pytest.mark.parametrize("offset", [-6, -2, 0, 1, 3, 7])
def test_a_star_across_cells_matches_the_other_band(width: float, beside: float, offset: int) -> None:
    batch = across(SIDE // 2 + offset, width, beside)
    good = np.ones(batch.image.shape, bool)

    def misfit(batch: CutoutBatch) -> float:
        plan = match.plan_matching(batch, "match")
        image, _, _ = homogenise(batch, plan, good, MARGIN)
        g, i = image[0]
        return float(np.abs(g - i).max() / i.max())

    before = misfit(replace(batch, psf_cells=batch.psf_cells[:0]))
    assert misfit(batch) < 0.017
    if width != beside and offset in (0, 1):
        assert before > 0.05


def test_light_is_kept_across_cells() -> None:
    for offset in (-9, 0, 9):
        batch = across(SIDE // 2 + offset, 4.0, 4.4, flux=1e4)
        plan = match.plan_matching(batch, "match")
        image, _, _ = homogenise(batch, plan, np.ones(batch.image.shape, bool), 0)
        assert abs(image[0, 0].sum() / 1e4 - 1) < 2e-3  # before, the two halves add up to 0.6 % more


@pytest.mark.parametrize("target", ["match", 1.25])
def test_predicted_variance_is_the_measured_one_in_both_cells(target: str | float) -> None:
    rng = np.random.default_rng(5)
    n = 60
    one = across(SIDE // 2 + 2, 4.0, 4.3)
    rows = np.arange(n)
    part = np.repeat(one.psf_cells, n, axis=0)
    part[:, 0] = rows
    batch = make_batch(n, "gi", SIZE, MARGIN, noiseless=True)
    batch = replace(
        batch, image=rng.normal(0, SIGMA, batch.image.shape).astype(np.float32), psf=one.psf,
        psf_index=np.repeat(one.psf_index, n, axis=0), psf_cells=part,
    )  # fmt: skip
    plan = match.plan_matching(batch, target)
    image, variance, _ = homogenise(batch, plan, np.ones(batch.image.shape, bool), MARGIN)
    pull = image / np.sqrt(variance)
    border = SIDE // 2 + 2 - MARGIN
    for part_of in (pull[:, 0, :, : border - 8], pull[:, 0, :, border + 8 :]):
        assert abs(part_of.std() - 1) < 0.03


def test_equal_psfs_need_no_kernel() -> None:
    batch = across(SIDE // 2, 4.0, 4.4)
    same = replace(batch, psf=np.concatenate([batch.psf[:2], batch.psf[:1]]))
    assert not len(match.plan_matching(same, "match").parts.part)
    assert not len(match.plan_matching(batch, "none").parts.part)
    broken = replace(batch, psf=batch.psf * np.array([1, 1, -1], np.float32)[:, None, None])
    assert not len(match.plan_matching(broken, "match").parts.part)


def test_fetch_says_which_psf_is_where(sky: Path, tmp_path: Path) -> None:
    """Against lsst.images, pixel by pixel: the PSF of the cell the pixel lies in."""
    from lsst.daf.butler import Butler

    fetch(FetchConfig.make({
        "repo": str(sky / "repo"), "collections": ["mini"], "targets": str(sky / "truth.parquet"),
        "bands": ["g", "r"], "size": 48, "margin": 0, "output": str(tmp_path / "cut"),
    }))  # fmt: skip
    artefact = open_artefact(tmp_path / "cut", "cutouts")
    seen, coadds = 0, {}
    with Butler.from_config(str(sky / "repo"), collections="mini") as butler:
        for k in range(min(2, len(artefact.shards))):
            batch = unpack_cutouts(artefact.read(k))
            which = np.broadcast_to(batch.psf_index[..., None, None], batch.image.shape).copy()
            for row, band, y0, y1, x0, x1, psf in batch.psf_cells.tolist():
                which[row, band, y0:y1, x0:x1] = psf
            for row in np.unique(batch.psf_cells[:, 0])[::2]:
                c = {name: int(batch.catalog[name][row]) for name in ("x0", "y0", "tract", "patch")}
                place = {name: c[name] for name in ("tract", "patch")}
                if tuple(place.values()) not in coadds:
                    coadds[tuple(place.values())] = butler.get(
                        "deep_coadd", skymap="ripple_mini_v1", band="r", **place
                    )
                coadd = coadds[tuple(place.values())]
                for y, x in ((0, 0), (0, 47), (47, 0), (47, 47), (24, 24)):
                    if not coadd.bbox.contains(x=c["x0"] + x, y=c["y0"] + y):
                        continue
                    theirs = coadd.psf.compute_kernel_image(x=c["x0"] + x, y=c["y0"] + y).array
                    mine = batch.psf[which[row, 1, y, x]]
                    cut = (mine.shape[0] - theirs.shape[0]) // 2
                    ours = mine[cut : mine.shape[0] - cut, cut : mine.shape[1] - cut]
                    np.testing.assert_allclose(ours, theirs, atol=1e-6)
                    seen += 1
    assert seen > 40


def test_arcs_are_injected_through_the_psf_of_each_cell() -> None:
    batch = across(SIDE // 2 + 1, 4.0, 6.0)
    one = replace(batch, image=np.zeros_like(batch.image))
    config = InjectConfig(fraction=1.0, source_bright=20.0, source_faint=20.0)  # no noise to speak of
    here = inject_batch(one, config).image[0, 0]
    there = inject_batch(replace(one, psf_index=np.array([[2, 1]], np.int32)), config).image[0, 0]
    alone = inject_batch(replace(one, psf_cells=one.psf_cells[:0]), config).image[0, 0]
    border = SIDE // 2 + 1
    assert np.corrcoef(here[:, :border].ravel(), alone[:, :border].ravel())[0, 1] > 0.999
    assert np.corrcoef(here[:, border:].ravel(), there[:, border:].ravel())[0, 1] > 0.999
    assert np.abs(here - alone)[:, border:].max() > 0.01 * here.max()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(0, 12))
def test_rows_taken_and_joined_keep_their_parts(seed: int, n: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    batch = make_batch(n, "gi", 16)
    table = np.column_stack([
        np.sort(rng.integers(0, n, parts)), rng.integers(0, 2, parts), rng.integers(0, 8, parts),
        rng.integers(8, 17, parts), rng.integers(0, 8, parts), rng.integers(8, 17, parts),
        rng.integers(0, 2, parts),
    ]).astype(np.int32)  # fmt: skip
    batch = replace(batch, psf_cells=table)
    rows = rng.integers(0, n, rng.integers(0, 12))
    taken = unpack_cutouts(pack_cutouts(batch, {})).take(rows)
    for k, row in enumerate(rows.tolist()):
        mine = taken.psf_cells[taken.psf_cells[:, 0] == k, 1:]
        np.testing.assert_array_equal(mine, table[table[:, 0] == row, 1:])
    cut = int(rng.integers(0, n + 1))
    again = concatenate([batch.take(slice(0, cut)), batch.take(slice(cut, n))])
    half = again.psf_cells - np.array([0, 0, 0, 0, 0, 0, len(batch.psf)]) * (again.psf_cells[:, :1] >= cut)
    np.testing.assert_array_equal(half, table)


@pytest.mark.parametrize(
    "part", [(5, 0, 0, 4, 0, 4, 0), (0, 2, 0, 4, 0, 4, 0), (0, 0, 4, 4, 0, 4, 0), (0, 0, 0, 17, 0, 4, 0),
             (0, 0, -1, 4, 0, 4, 0), (0, 0, 0, 4, 0, 17, 0), (0, 0, 0, 4, 0, 4, 2), (0, 0, 0, 4, 0, 4, -1)],
)  # fmt: skip
def test_parts_outside_are_refused(part: tuple[int, ...]) -> None:
    batch = make_batch(2, "gi", 16)
    data = pack_cutouts(replace(batch, psf_cells=np.array([part], np.int32)), {})
    with pytest.raises(DataError, match="psf_cells"):
        unpack_cutouts(data)
