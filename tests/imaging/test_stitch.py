"""Boxes cut from overlapping patches of one grid equal the crop of the whole mosaic."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ripple.imaging import stitch
from ripple.imaging.stitch import Seams, cut, inside, seam_map, stitch_row, touches
from ripple.sky.geometry import Box

MOSAIC = Box(-100, 50, 300, 450)
PIXELS = np.random.default_rng(3).normal(size=MOSAIC.shape).astype(np.float32)
PATCHES = {
    k: Box(MOSAIC.x0 + 180 * i, MOSAIC.y0 + 180 * j, MOSAIC.x0 + 180 * i + 220, MOSAIC.y0 + 180 * j + 220)
    for k, (i, j) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)])
}


def stitched(stamp: Box, own: int, order: list[int]) -> tuple[np.ndarray, Seams]:
    out = {n: np.full(stamp.shape, np.nan, np.float32) for n in ("image", "variance")}
    seams = Seams.empty(1, stamp.width)
    for patch in order:
        box = PATCHES[patch]
        planes = {"image": PIXELS[MOSAIC.slices(box)], "variance": np.full(box.shape, 4, np.float32)}
        stitch_row(seams, 0, stamp, planes, box, out, patch=patch, own=patch == own)
    return out["image"], seams


@given(x=st.integers(-100, 300), y=st.integers(50, 450), size=st.integers(1, 120), own=st.integers(0, 3))
def test_a_stitched_box_is_the_crop_of_the_mosaic(x: int, y: int, size: int, own: int) -> None:
    stamp = Box.around(x, y, size)
    image, seams = stitched(stamp, own, [0, 1, 2, 3])
    common = stamp & MOSAIC
    expected = np.full(stamp.shape, np.nan, np.float32)
    if not common.empty:
        expected[stamp.slices(common)] = PIXELS[MOSAIC.slices(common)]
    np.testing.assert_array_equal(image, expected)
    assert (seams.filled[0] == np.isfinite(expected)).all()
    assert seams.disagreement[0] == 0


@given(x=st.integers(60, 140), y=st.integers(210, 290), own=st.integers(0, 3))
def test_own_patch_wins_then_the_lowest_id(x: int, y: int, own: int) -> None:
    stamp = Box.around(x, y, 40)
    _, seams = stitched(stamp, own, [0, 1, 2, 3])
    rank = [own, *[p for p in PATCHES if p != own]]
    expected = np.full(stamp.shape, -1)
    for patch in reversed(rank):
        common = stamp & PATCHES[patch]
        if not common.empty:
            expected[stamp.slices(common)] = patch
    np.testing.assert_array_equal(seams.source[0], expected)
    np.testing.assert_array_equal(seam_map(stamp, own, PATCHES), expected)


def test_patches_that_disagree_are_measured() -> None:
    stamp = Box.around(100, 250, 60)
    out = {n: np.full(stamp.shape, np.nan, np.float32) for n in ("image", "variance")}
    seams = Seams.empty(1, 60)
    for patch, offset in ((0, 0.0), (1, 2.5)):
        planes = {
            "image": PIXELS[MOSAIC.slices(PATCHES[patch])] + np.float32(offset),
            "variance": np.full(PATCHES[patch].shape, 4, np.float32),
        }
        stitch_row(seams, 0, stamp, planes, PATCHES[patch], out, patch=patch, own=patch == 0)
    assert abs(seams.disagreement[0] - 2.5 / 2) < 1e-5  # in units of the noise


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.tuples(st.integers(-150, 320), st.integers(0, 460)), min_size=1, max_size=20))
def test_cut_inside_and_touches_agree_with_boxes(corners: list[tuple[int, int]]) -> None:
    size = 32
    x, y = (np.array(v) for v in zip(*corners, strict=True))
    boxes = [Box(int(a), int(b), int(a) + size, int(b) + size) for a, b in corners]
    patch = PATCHES[0]
    whole = inside(patch, x, y, size)
    assert whole.tolist() == [patch.contains(b) for b in boxes]
    assert touches(patch, x, y, size).tolist() == [not (patch & b).empty for b in boxes]
    plane = PIXELS[MOSAIC.slices(patch)]
    inner = [b for b, w in zip(boxes, whole, strict=True) if w]
    for few in (0, 1000):  # the compiled loop, then that of numpy
        stamps = np.full((len(inner), 2, size, size), -1, np.float32)
        with mock.patch.object(stitch, "_FEW_BOXES", few):
            cut(plane, x[whole] - patch.x0, y[whole] - patch.y0, stamps, 1)
        for stamp, box in zip(stamps, inner, strict=True):
            np.testing.assert_array_equal(stamp[1], plane[patch.slices(box)])
            assert (stamp[0] == -1).all()


def test_boxes_outside_the_plane_are_refused() -> None:
    at, out = np.full(40, 90), np.empty((40, 1, 16, 16), np.float32)
    with pytest.raises(ValueError, match="outside"):
        cut(np.zeros((100, 100), np.float32), at, at, out, 0)
