"""Galaxies of other rows beside a row's own: which, where, how bright, and what of a cutout they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toys import BANDS, write_toys

from ripple.errors import DataError
from ripple.learn.config import TrainConfig
from ripple.learn.data import neighbours as module
from ripple.learn.data.augment import integer_of, key_of, orient, uniform_of
from ripple.learn.data.conditions import Ranges, conditions
from ripple.learn.data.neighbours import Neighbours, central_source, least_distance
from ripple.learn.data.training_set import galaxies, training_set
from ripple.sky.splits import TRAIN

N, SHAPE, HALF = 2000, torch.Size([90, 110]), 7
ROW = torch.arange(N)
KEY = key_of(ROW, 3, 1)


def bank(inner: float = 20.0) -> Neighbours:
    """Five galaxies without any symmetry that end within six pixels of their centre."""
    light = torch.rand(3, 5, 2 * HALF + 1, 2 * HALF + 1, generator=torch.Generator().manual_seed(0))
    at = torch.arange(-HALF, HALF + 1)
    return Neighbours(light * (torch.hypot(at[:, None] + 0.0, at + 0.0) < 6), torch.arange(5) * 7, inner)


def chosen(one: Neighbours) -> torch.Tensor:
    """The galaxy of each row, before a row's own is replaced."""
    return integer_of(KEY, module._WHICH, 0, len(one.row) - 1)


def test_light_inside_the_cutout_is_that_of_the_galaxy_between_its_own_and_three_tenths() -> None:
    one = bank()
    light = one.beside(KEY, ROW, 1.0, SHAPE)
    y, x = one._places(KEY, SHAPE)
    whole = (y >= HALF) & (y < SHAPE[0] - HALF) & (x >= HALF) & (x < SHAPE[1] - HALF)
    others = ~torch.isin(ROW, one.row)
    assert 300 < int(whole.sum()) < N  # many partly outside, as on the sky
    factor = light.sum((2, 3)) / one.light.sum((2, 3)).T[chosen(one)]
    inside = factor[whole & others]
    torch.testing.assert_close(inside, inside[:, :1].expand(-1, 3), rtol=1e-4, atol=0)  # colours stay
    magnitude = -2.5 * torch.log10(inside[:, 0])
    assert float(magnitude.min()) > -1e-4
    assert float(magnitude.max()) < 1.308
    assert abs(float(magnitude.mean()) - 1.307 / 2) < 0.05  # uniform
    assert abs(float(magnitude.std()) - 1.307 / 12**0.5) < 0.03


def test_all_eight_turns_come_equally_often() -> None:
    one = bank()
    light = one.beside(KEY, ROW, 1.0, SHAPE)
    y, x = one._places(KEY, SHAPE)
    seen = []
    for k in torch.nonzero((y >= HALF) & (y < SHAPE[0] - HALF) & (x >= HALF) & (x < SHAPE[1] - HALF))[:, 0]:
        if int(k) in one.row:
            continue
        piece = light[k, :, y[k] - HALF : y[k] + HALF + 1, x[k] - HALF : x[k] + HALF + 1]
        own = one.light[:, chosen(one)[k]]
        factor = piece.sum() / own.sum()
        turned = orient(own.expand(8, -1, -1, -1), torch.arange(8)) * factor
        near = (turned - piece).abs().amax((1, 2, 3))
        assert float(near.min()) < 1e-5
        seen.append(int(near.argmin()))
    counts = np.bincount(seen, minlength=8) / len(seen)
    np.testing.assert_allclose(counts, 1 / 8, atol=0.04)


def test_the_middle_of_a_row_gets_no_light_and_all_directions_do() -> None:
    one = bank()
    light = one.beside(KEY, ROW, 1.0, SHAPE)
    centre = SHAPE[0] // 2, SHAPE[1] // 2
    radius = torch.hypot(
        torch.arange(SHAPE[0])[:, None] - centre[0] + 0.0, torch.arange(SHAPE[1]) - centre[1] + 0.0
    )
    assert float(light[:, :, radius < 20 - 6 - 1].abs().max()) == 0
    # Evenly distributed: no quarter of the cutout has more of the centres than another.
    y, x = one._places(KEY, SHAPE)
    up, right = (y > centre[0]).float().mean(), (x > centre[1]).float().mean()
    assert abs(float(up) - 0.5) < 0.05
    assert abs(float(right) - 0.5) < 0.05
    assert float(torch.hypot(y - centre[0] + 0.0, x - centre[1] + 0.0).min()) > 19


def test_only_a_share_of_the_rows_gets_one_and_never_its_own() -> None:
    one = bank(inner=4.0)
    light = one.beside(KEY, ROW, 0.3, SHAPE)
    has = light.abs().amax((1, 2, 3)) > 0
    assert torch.equal(has, uniform_of(KEY, module._HAS) < 0.3)
    assert abs(float(has.float().mean()) - 0.3) < 0.03
    two = Neighbours(
        torch.stack([torch.ones(3, 3, 3), 5 * torch.ones(3, 3, 3)], 1), torch.tensor([7, 8]), 4.0
    )
    row = torch.tensor([7, 8]).repeat(50)
    key = key_of(row, 1, 0, draw=torch.arange(100))
    found = two.beside(key, row, 1.0, SHAPE).amax((1, 2, 3)) / module.FAINTEST ** uniform_of(
        key, module._FLUX
    )
    torch.testing.assert_close(found, torch.tensor([5.0, 1.0]).repeat(50))


def test_arcs_are_farther_in_than_neighbours() -> None:
    assert least_distance((64, 64), 0.2) == pytest.approx(20)  # 4 arcsec
    assert least_distance((200, 200), 0.2) == pytest.approx(20)
    assert least_distance((40, 60), 0.2) == pytest.approx(12.5)  # the share of a small one


def scene(size: int = 64, *, sky: float = 3.0, noise: float = 1.0) -> tuple[np.ndarray, float]:
    """Two bands with a source at the target's pixel and a brighter one aside, and the flux of the first."""
    y, x = np.mgrid[:size, :size] - size // 2
    own = 50 * np.exp(-0.5 * (x**2 + y**2) / 2.0**2)
    other = 200 * np.exp(-0.5 * ((x - 22) ** 2 + (y + 20) ** 2) / 2.0**2)
    rng = np.random.default_rng(0)
    planes = np.stack([own + other, 2 * own + other]) + sky + rng.normal(0, noise, (2, size, size))
    return planes.astype(np.float32), float(own.sum())


def cut(light: np.ndarray, good: np.ndarray | None = None, reach: float = 14.0) -> np.ndarray | None:
    usable = np.ones(light.shape, bool) if good is None else good
    return central_source(light, usable, module.detect_sources(light[None], usable[None])[0], reach)


def test_a_source_is_taken_alone_and_without_its_sky() -> None:
    light, flux = scene()
    found = cut(light)
    assert found is not None
    assert found.shape == (2, 31, 31)
    edge = np.ones((31, 31), bool)
    edge[1:-1, 1:-1] = False
    assert not found[:, edge].any()
    # Of a hundred pixels of noise 1, and a sky known to 1 / 50.
    np.testing.assert_allclose(found.sum((1, 2)), [flux, 2 * flux], rtol=0.03)
    # Hardly any noise comes along: six pixels in seven of a cutout get nothing.
    assert np.count_nonzero(found[0]) < light[0].size / 7


def test_what_cannot_be_taken_is_left_out() -> None:
    light, _ = scene()
    assert cut(np.roll(light, 16, axis=1)) is None  # nothing at the centre
    missing = np.ones(light.shape, bool)
    missing[1, 33, 31] = False
    assert cut(light, missing) is None
    assert (
        central_source(light, np.ones(light.shape, bool), np.ones(light.shape[1:], bool), 14.0) is None
    )  # no sky


NOISE = {f"noise_{band}": 0.3 for band in BANDS}


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toys whose lenses have label 0: the number alone says nothing."""
    root = tmp_path_factory.mktemp("neighbours")
    extra = {name: np.full(200, value, np.float32) for name, value in NOISE.items()}
    normal = {
        "method": "asinh",
        "scope": "dataset",
        "offset": dict.fromkeys(BANDS, 0.0),
        "scale": dict.fromkeys(BANDS, 1.0),
    }
    names = {"0": "lens", "1": "nonlens"}
    return write_toys(
        root / "t", shards=2, rows=200, size=48, catalog_extra=extra, normalization=normal, class_map=names
    )


@pytest.mark.parametrize("task", ["lens", "classes", "regression"])
def test_no_lens_and_no_row_outside_training_is_put_beside_another(tensors: Path, task: str) -> None:
    given = {"targets": ["mag_i"]} if task == "regression" else {}
    config = TrainConfig.make({"tensors": [str(tensors)], "output": "unused", "task": task, **given})
    data = training_set(config)
    allowed = galaxies(data, config)
    how = conditions(Ranges(neighbours=0.5), data.dataset, allowed)
    assert how.bank is not None
    rows = how.bank.row.numpy()
    assert len(rows) > 20
    theta = np.asarray(data.dataset.column("theta_E"))  # finite for lenses, whatever their label's number
    lens = np.asarray(data.labels) == (1 if task == "lens" else 0)
    assert not lens[rows].any()
    assert set(rows) <= set(data.rows(TRAIN))
    assert np.isfinite(theta).any()
    again = conditions(Ranges(neighbours=0.5), data.dataset, allowed).bank
    assert again is not None
    assert torch.equal(again.light, how.bank.light)
    assert conditions(Ranges(depth=0.5), data.dataset, allowed).bank is None


def test_rows_without_a_label_may_be_lenses(tensors: Path) -> None:
    config = TrainConfig.make(
        {"tensors": [str(tensors)], "output": "unused", "task": "regression", "targets": ["mag_i"]}
    )
    data = training_set(config)
    label = data.labels.copy()
    label[::2] = -1
    data.dataset.replace_column("label", label)
    allowed = galaxies(data, config)
    assert len(allowed)
    assert (label[allowed] == 1).all()


def test_without_galaxies_neighbours_are_refused(tensors: Path) -> None:
    config = TrainConfig.make({"tensors": [str(tensors)], "output": "unused"})
    with pytest.raises(DataError, match="neighbours: of 0 training rows"):
        conditions(Ranges(neighbours=0.5), training_set(config).dataset)
