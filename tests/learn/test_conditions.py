"""Other observing conditions: fluxes, widths, positions and noise are those that the drawn numbers say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cutout_artefacts import write
from stampmaker import make_batch

from ripple.errors import DataError
from ripple.imaging.noise import LAG, WHITE
from ripple.imaging.normalize import constants_of, invert, transform
from ripple.learn.data import conditions as module
from ripple.learn.data.augment import Augment, key_of, normal_of, uniform_of
from ripple.learn.data.conditions import Conditions, Ranges, conditions
from ripple.learn.data.dataset import TensorDataset
from ripple.learn.data.loader import Loader
from ripple.learn.data.neighbours import Neighbours
from ripple.stages.preprocess.config import PreprocessConfig
from ripple.stages.preprocess.preprocess import preprocess

N, BANDS, SIZE, SCALE = 96, 3, 64, 0.2
#: Noise whose neighbours vary together, as in resampled coadds.
RHO = np.zeros((2 * LAG + 1, 2 * LAG + 1))
RHO[LAG - 1 : LAG + 2, LAG - 1 : LAG + 2] = np.outer([0.3, 1.0, 0.3], [0.3, 1.0, 0.3])
ROW = torch.arange(N)


def made(
    ranges: Ranges,
    *,
    follows: str = "row",
    sigma: float = 2.0,
    rho: np.ndarray = RHO,
    bank: Neighbours | None = None,
) -> Conditions:
    """Of rows with a noise of `sigma` nJy, softened by it, as `preprocess` would."""
    table = torch.full((N, BANDS), sigma)
    whole = np.tile(rho, (BANDS, 1, 1))
    side = SIZE + 2 * module.PAD
    fields, power = (
        torch.from_numpy(module._fields(whole)),
        torch.from_numpy(module._shares(whole, (side, side))),
    )
    return Conditions(ranges, 0 * table, 3 * table, table, fields, power, "asinh", follows, SCALE, bank)


def observed(how: Conditions, light: torch.Tensor, epoch: int = 0) -> torch.Tensor:
    """Fluxes `(N, B, H, W)` under other conditions, by constants of the stretch that follow the noise."""
    tensor = transform(light, how.offset, how.scale, "asinh")
    out = how(tensor, ROW, seed=5, epoch=epoch)
    depth = module._by_band(key_of(ROW, 5, epoch), module._DEPTH, BANDS)
    zero = 10 ** (
        -0.4 * how.ranges.zero_point * normal_of(key_of(ROW, 5, epoch), torch.Size([BANDS]), module._ZERO)
    )
    ratio = (zero * 10 ** (0.4 * how.ranges.depth * depth)).quantile(0.5, dim=1, keepdim=True)
    return torch.as_tensor(invert(out, how.offset, how.scale * ratio, "asinh"))


def gaussian(sigma: float, flux: float = 1e4) -> torch.Tensor:
    """A round source at the target's pixel of every plane, without noise."""
    at = torch.arange(SIZE, dtype=torch.float32) - SIZE // 2
    line = torch.exp(-0.5 * (at / sigma) ** 2)
    plane = line[:, None] * line / (line.sum() ** 2)
    return (flux * plane).expand(N, BANDS, SIZE, SIZE).contiguous()


def moments(light: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Flux, centre in x and y from the target's pixel, and variance of the light in x."""
    at = torch.arange(SIZE, dtype=torch.float64) - SIZE // 2
    light = light.double()
    flux = light.sum((-2, -1))
    x, y = (light.sum(axis) @ at / flux for axis in (-2, -1))
    return flux, x, y, light.sum(-2) @ at**2 / flux - x**2


def test_a_broader_psf_keeps_flux_and_place_and_has_the_width_that_was_drawn() -> None:
    how = made(Ranges(seeing=0.8), sigma=1e-4)
    flux, x, y, width = moments(observed(how, gaussian(2.0)))
    drawn = 0.8 / SCALE / module.FWHM * uniform_of(key_of(ROW, 5, 0), module._SEEING)
    np.testing.assert_allclose(flux, 1e4, rtol=1e-3)
    np.testing.assert_allclose(np.stack([x, y]), 0, atol=0.01)
    np.testing.assert_allclose(width, (4.0 + drawn.double() ** 2)[:, None].expand(N, BANDS), rtol=0.01)


def test_a_shift_by_parts_of_a_pixel_moves_the_centre_by_as_much() -> None:
    how = made(Ranges(subpixel=1.5), sigma=1e-4)
    flux, x, y, _ = moments(observed(how, gaussian(2.0)))
    key = key_of(ROW, 5, 0)
    wanted = [1.5 * (2 * uniform_of(key, s) - 1)[:, None].expand(N, BANDS) for s in (module._X, module._Y)]
    np.testing.assert_allclose(x, wanted[0], atol=0.01)
    np.testing.assert_allclose(y, wanted[1], atol=0.01)
    np.testing.assert_allclose(flux, 1e4, rtol=1e-3)


def round_neighbours() -> Neighbours:
    """Two round galaxies with a sigma of 2 px, and the same flux in all bands."""
    light = gaussian(2.0)[:2, :, 1:, 1:].transpose(0, 1) * torch.tensor([1.0, 2.0])[None, :, None, None]
    return Neighbours(light, torch.tensor([-1, -2]), 8.0)


def test_neighbours_are_seen_through_the_psf_of_the_rest() -> None:
    how = made(Ranges(seeing=0.8, neighbours=1.0), sigma=1e-4, bank=round_neighbours())
    light = observed(how, torch.zeros(N, BANDS, SIZE, SIZE))
    key = key_of(ROW, 5, 0)
    bank = round_neighbours()
    flux, x, y, width = moments(light)
    at_y, at_x = bank._places(key, light.shape[-2:])
    inside = ((at_y - 32).abs() < 18) & ((at_x - 32).abs() < 18)  # five sigma of the broadest
    assert int(inside.sum()) > 20
    drawn = 0.8 / SCALE / module.FWHM * uniform_of(key, module._SEEING).double()
    wanted = bank.beside(key, ROW, 1.0, light.shape[-2:]).sum((2, 3)).double()
    torch.testing.assert_close(flux[inside], wanted[inside], rtol=2e-3, atol=0)
    place = torch.stack([x[inside, 0], y[inside, 0]])
    torch.testing.assert_close(place, torch.stack([at_x, at_y])[:, inside].double() - 32, atol=0.03, rtol=0)
    torch.testing.assert_close(width[inside, 0], (4.0 + drawn**2)[inside], rtol=0.03, atol=0)


def test_a_sky_residual_has_a_level_and_slopes_of_the_scatter_asked_for() -> None:
    how = made(Ranges(background=0.3))
    dark = torch.zeros(N, BANDS, SIZE, SIZE)
    light = torch.cat([observed(how, dark, epoch) for epoch in range(8)]) / 2.0  # in units of the noise
    at = torch.linspace(-1, 1, SIZE)
    y, x = (t.flatten() for t in torch.meshgrid(at, at, indexing="ij"))
    planes = torch.stack([torch.ones_like(x), x, y], 1)  # (pixels, 3)
    found = light.flatten(2) @ torch.linalg.pinv(planes).T  # (n, B, 3)
    torch.testing.assert_close(found @ planes.T, light.flatten(2), atol=1e-4, rtol=0)  # nothing but a plane
    # 2,304 numbers of each kind fix their scatter to 1.5 %.
    np.testing.assert_allclose(found.std((0, 1)), 0.3, rtol=0.06)
    np.testing.assert_allclose(found.mean((0, 1)), 0, atol=0.02)
    # Bands, and level and slopes, have nothing to do with each other.
    together = np.corrcoef(found.flatten(1).T.numpy()) - np.eye(3 * BANDS)
    assert np.abs(together).max() < 0.15


def test_a_sky_residual_is_in_units_of_the_noise_that_there_is_then() -> None:
    deep, shallow = (
        observed(made(Ranges(depth=d, background=9.0)), torch.zeros(N, BANDS, SIZE, SIZE)) for d in (0.0, 1.0)
    )
    worse = 10 ** (0.4 * module._by_band(key_of(ROW, 5, 0), module._DEPTH, BANDS))
    level = shallow.mean((-2, -1)) / deep.mean((-2, -1))
    bright = deep.mean((-2, -1)).abs() > 4
    assert float((level / worse - 1)[bright].abs().max()) < 0.1


def test_without_neighbours_and_sky_residuals_every_bit_is_as_it_was() -> None:
    ranges = Ranges(0.5, 0.5, 0.02, 0.2, 1.0)
    assert not Ranges(neighbours=0.0, background=0.0)
    assert Ranges(neighbours=0.1)
    assert Ranges(background=0.1)
    tensor = torch.randn(N, BANDS, SIZE, SIZE)
    plain = made(ranges)(tensor, ROW, seed=5, epoch=1)
    none = made(replace(ranges, neighbours=0.0, background=0.0), bank=round_neighbours())
    assert torch.equal(none(tensor, ROW, seed=5, epoch=1), plain)


def sky(how: Conditions) -> torch.Tensor:
    """Noise as the data set has it, in nJy."""
    torch.manual_seed(0)
    return 2.0 * how._noise(key_of(ROW, 77, 3), torch.Size([N, BANDS, SIZE, SIZE]))


@pytest.mark.parametrize(
    "ranges", [Ranges(depth=1.0), Ranges(seeing=0.8), Ranges(depth=0.7, seeing=0.5, zero_point=0.1)]
)
def test_noise_is_that_of_the_depth(ranges: Ranges) -> None:
    how = made(ranges)
    key = key_of(ROW, 5, 0)
    zero = 10 ** (-0.4 * ranges.zero_point * normal_of(key, torch.Size([BANDS]), module._ZERO))
    wanted = 2.0 * zero * 10 ** (0.4 * ranges.depth * module._by_band(key, module._DEPTH, BANDS))
    found = observed(how, sky(how)).std((-2, -1)) / wanted
    # 4,096 pixels of which neighbours vary together fix the noise of a plane to 2 %.
    assert abs(float(found.mean()) - 1) < 0.01
    assert float(found.std()) < 0.06


def test_noise_keeps_its_correlation_and_the_stretch_its_noise() -> None:
    how = made(Ranges(depth=1.0))
    light = observed(how, sky(how))
    light = light / light.std((-2, -1), keepdim=True)
    for lag, wanted in ((1, 0.3), (2, 0.0)):
        assert abs(float((light[..., lag:] * light[..., :-lag]).mean()) - wanted) < 0.02
    tensor = how(transform(sky(how), how.offset, how.scale, "asinh"), ROW, seed=5, epoch=0)
    # One scale for all bands: the band of median noise has a third, as before.
    assert abs(float(torch.sinh(tensor).std((-2, -1)).quantile(0.5, dim=1).mean()) - 1 / 3) < 0.01


def test_zero_points_change_light_by_their_magnitudes_and_bands_by_themselves() -> None:
    how = made(Ranges(zero_point=0.1), sigma=1e-4)
    flux = moments(observed(how, gaussian(2.0)))[0]
    change = -2.5 * torch.log10(flux / 1e4)
    np.testing.assert_allclose(
        change, 0.1 * normal_of(key_of(ROW, 5, 0), torch.Size([BANDS]), module._ZERO), atol=2e-3
    )
    assert 0.08 < float(change.std()) < 0.12


def test_bands_are_lost_one_at_a_time_and_never_the_only_one() -> None:
    how = made(Ranges(drop_band=0.3))
    tensor = torch.ones(N, BANDS, SIZE, SIZE)
    lost = sum(int((how(tensor, ROW, seed=1, epoch=e).abs().amax((-2, -1)) == 0).sum()) for e in range(20))
    assert abs(lost / (20 * N) - 0.3) < 0.04
    # Of rows that lack a band, as many lose one of the others.
    fewer = how.noise.clone()
    fewer[:, 0] = float("nan")
    every = replace(how, ranges=Ranges(drop_band=1.0), noise=fewer)
    assert ((every(tensor, ROW, seed=1, epoch=0).abs().amax((-2, -1)) == 0).sum(1) == 2).all()
    alone = how.noise.clone()
    alone[:, 1:] = float("nan")
    only = Conditions(how.ranges, how.offset, how.scale, alone, how.fields, how.power, "asinh", "row", SCALE)
    out = only(torch.cat([tensor[:, :1], 0 * tensor[:, 1:]], 1), ROW, seed=1, epoch=0)
    assert (out[:, 0] != 0).all()
    assert (out[:, 1:] == 0).all()


@pytest.mark.parametrize("follows", ["row", "band", ""])
def test_the_stretch_is_that_of_the_bands_that_are_left(follows: str) -> None:
    """A lost band has no part in the scale of a row, just as if it had never been observed."""
    sigma = torch.tensor([1.0, 2.0, 6.0]).repeat(N, 1)
    scope: Any = follows or "row"
    _, scale = constants_of(None, sigma.numpy(), "asinh", scope, 3.0)
    how = replace(made(Ranges(drop_band=1.0), follows=follows), noise=sigma, scale=torch.from_numpy(scale))
    light = 10 * sky(how)
    out = how(transform(light, how.offset, how.scale, "asinh"), ROW, seed=1, epoch=0)
    lost = out.abs().amax((-2, -1)) == 0
    assert (lost.sum(1) == 1).all()
    left = np.where(lost, np.nan, sigma).astype(np.float32)
    _, wanted = constants_of(None, left, "asinh", scope, 3.0) if follows else (None, scale)
    expected = transform(light, how.offset, torch.from_numpy(wanted), "asinh") * ~lost[:, :, None, None]
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("follows", ["row", "band"])
def test_planes_without_noise_stay_finite(follows: str) -> None:
    how = made(Ranges(0.5, 0.5, 0.02, 0.2, 1.0), follows=follows)
    blank = replace(how, noise=0 * how.noise, scale=torch.ones_like(how.scale))
    assert torch.isfinite(blank(torch.zeros(N, BANDS, SIZE, SIZE), ROW, seed=1, epoch=0)).all()


def test_a_row_is_the_same_in_any_batch_and_another_in_another_epoch() -> None:
    how = made(Ranges(0.5, 0.5, 0.02, 0.2, 1.0, 0.5, 0.3), bank=round_neighbours())
    tensor = torch.randn(N, BANDS, SIZE, SIZE)
    whole, part = how(tensor, ROW, seed=5, epoch=1), how(tensor[40:50], ROW[40:50], seed=5, epoch=1)
    torch.testing.assert_close(whole[40:50], part, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole, how(tensor, ROW, seed=5, epoch=2))
    again = how(tensor, ROW, seed=5, epoch=1, draw=torch.ones_like(ROW))
    assert not torch.allclose(whole, again)


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("conditions")
    cutouts = write(root / "cutouts", make_batch(40, "gri", 48, 4), 4, 20)
    preprocess(
        PreprocessConfig.make({"cutouts": str(cutouts), "output": str(root / "tensors"), "workers": 0})
    )
    return root / "tensors"


def test_tensors_know_what_is_needed(tensors: Path) -> None:
    dataset = TensorDataset(tensors, accepted=False)
    how = conditions(Ranges(depth=0.5, seeing=0.3), dataset)
    assert how.follows == "row"
    assert how.noise.shape == (dataset.total, 3)
    np.testing.assert_allclose(how.power.sum((1, 2)), 1, rtol=1e-5)
    loaders = [
        Loader(dataset, batch_size=size, shuffle=False, conditions=how, augment=Augment(d4=False))
        for size in (7, 40)
    ]
    seen = [torch.cat([batch["image"] for batch in loader.epoch(2)]) for loader in loaders]
    torch.testing.assert_close(*seen, rtol=1e-4, atol=1e-4)
    assert torch.isfinite(seen[0]).all()


def test_noise_is_as_smooth_as_that_of_matched_psfs(tensors: Path, tmp_path: Path) -> None:
    """Noise that was brought to the PSF of g varies together as it does where there is nothing but noise."""
    fields = conditions(Ranges(depth=0.5), TensorDataset(tensors, accepted=False)).fields
    empty = write(tmp_path / "cutouts", make_batch(40, "gri", 48, 4, flux=1e-3), 4, 20)
    options = {"cutouts": str(empty), "output": str(tmp_path / "tensors"), "workers": 0, "normalize": "none"}
    preprocess(PreprocessConfig.make(options))
    dataset = TensorDataset(tmp_path / "tensors", accepted=False)
    light = torch.from_numpy(dataset.read(dataset.rows).astype(np.float32)).transpose(0, 1)
    found, wanted = (
        (x[..., 1:] * x[..., :-1]).mean((1, 2, 3)) / x.square().mean((1, 2, 3)) for x in (fields, light)
    )
    assert abs(float(found[0])) < 0.05
    # What still varies together at the largest lags counts as light, which takes a few hundredths of this.
    np.testing.assert_allclose(found, wanted, atol=0.05)


def test_a_stretch_by_the_brightest_pixels_is_refused(tensors: Path, tmp_path: Path) -> None:
    cutouts = str(tensors.parent / "cutouts")
    options = {"cutouts": cutouts, "output": str(tmp_path / "t"), "normalize": "minmax", "workers": 0}
    preprocess(PreprocessConfig.make(options))
    with pytest.raises(DataError, match="minmax of each row"):
        conditions(Ranges(depth=0.5), TensorDataset(tmp_path / "t", accepted=False))


def test_white_noise_is_white() -> None:
    how = made(Ranges(depth=1.0), rho=WHITE)
    field = how._noise(key_of(ROW, 1, 1), torch.Size([N, BANDS, SIZE, SIZE]))
    assert abs(float((field[..., 1:] * field[..., :-1]).mean())) < 0.01
    assert abs(float(field.std()) - 1) < 0.01
