"""Detections of a blind search come to lie on the pixel of the best window, each place once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ripple.sky.geometry import Tan
from ripple.stages.plan.targets import Targets
from ripple.stages.search.detections import COLUMNS, once
from ripple.stages.search.refine import Scored, offsets, pixels_of, refined, worth_a_look

TAN = Tan(ra0=150.0, dec0=2.0, x0=17999.5, y0=17999.5, cd=(-0.2 / 3600, 0.0, 0.0, 0.2 / 3600))
LENSES = np.array([[1003, 2007], [1219, 2100], [1500, 2305]])  # x, y


def scored(targets: Targets, patch: np.ndarray, accept: np.ndarray) -> Scored:
    """A network whose score falls with the distance to the nearest lens."""
    x, y = (np.rint(v).astype(int) for v in TAN.sky_to_pixel(targets.ra, targets.dec))
    apart = np.hypot(x[:, None] - LENSES[:, 0], y[:, None] - LENSES[:, 1]).min(1)
    columns = {"id": targets.id, "ra": targets.ra, "dec": targets.dec, "score": np.exp(-((apart / 14) ** 2))}
    rest = {name: np.zeros(len(x)) for name in COLUMNS if name not in columns}
    table = pa.table({**columns, **rest}).select(COLUMNS)
    return Scored(table.append_column("accept", pa.array(accept)).sort_by([("score", "descending")]), patch)


def grid_of(step: float) -> Targets:
    """Windows of a grid around the lenses, as the planner makes them."""
    side = [
        np.arange(low // step, high // step).astype(np.int64) for low, high in ((900, 1600), (1900, 2400))
    ]
    column, row = (v.ravel() for v in np.meshgrid(*side))
    window = (np.int64(5063) << 40) | (row << 20) | column
    _, x, y = pixels_of(window, step)
    return Targets(window, *TAN.pixel_to_sky(x, y), pa.table({}))


def everywhere(targets: Targets, _: Path) -> Scored:
    return scored(targets, np.zeros(len(targets), np.int32), np.ones(len(targets), np.int8))


@pytest.mark.parametrize("step", [16.0, 8.0, 20.0])
def test_a_detection_lies_on_the_pixel_of_the_best_window(step: float, tmp_path: Path) -> None:
    grid = everywhere(grid_of(step), tmp_path).table
    seeds = once(grid.filter(pa.compute.greater(grid["score"], worth_a_look(0.7, "lens"))), 5.0)
    found = once(refined(seeds.select(COLUMNS), step, {5063: TAN}, 0.7, everywhere, tmp_path), 5.0)
    x, y = TAN.sky_to_pixel(found["ra"].to_numpy(), found["dec"].to_numpy())
    places = sorted(map(tuple, np.rint(np.stack([x, y], 1)).astype(int).tolist()))
    assert places == sorted(map(tuple, LENSES.tolist()))
    assert np.allclose(found["score"].to_numpy(), 1)
    # The id is that of a window of the grid, and says which.
    _, near_x, near_y = pixels_of(found["id"].to_numpy(), step)
    assert np.hypot(near_x - x, near_y - y).max() <= step


def test_windows_of_other_patches_and_of_no_verdict_are_not_taken(tmp_path: Path) -> None:
    seeds = everywhere(grid_of(16), tmp_path).table.select(COLUMNS).slice(0, 1)

    def other_patch(targets: Targets, _: Path) -> Scored:
        patch = np.ones(len(targets), np.int32)
        patch[:: len(offsets(16, 4)[0])] = 0  # only the window of the grid lies in its own patch
        return scored(targets, patch, np.ones(len(targets), np.int8))

    def rejected(targets: Targets, _: Path) -> Scored:
        return scored(targets, np.zeros(len(targets), np.int32), np.zeros(len(targets), np.int8))

    for search in (other_patch, rejected):
        found = refined(seeds, 16, {5063: TAN}, 2.0, search, tmp_path)
        assert found.num_rows == 0  # no score reaches 2: one pass
        kept = refined(seeds, 4, {5063: TAN}, 0.0, rejected, tmp_path)
        assert kept.equals(seeds)


def test_offsets_reach_half_a_step_to_each_side() -> None:
    dx, dy = offsets(16, 4)
    assert (dx[0], dy[0]) == (0, 0)
    assert sorted(set(dx.tolist())) == [-8, -4, 0, 4, 8]
    assert len(dx) == 25
    assert (np.diff(dx**2 + dy**2) >= 0).all()
    assert set(offsets(20, 5)[0].tolist()) == {-10, -5, 0, 5, 10}
    assert set(offsets(5, 1)[0].tolist()) == set(range(-3, 4))


def test_only_scores_with_a_logit_are_followed_from_below() -> None:
    assert worth_a_look(0.5, "lens") == pytest.approx(1 / (1 + np.exp(2)))
    assert worth_a_look(3.0, "regression") == 3.0
    assert worth_a_look(0.0, "lens") == 0.0
