"""Splits by sky block: stable, disjoint, complete; leakage fails loudly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ripple.errors import ConfigError, DataError
from ripple.sky import splits


def field(n: int, seed: int = 0, width: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return 53.0 + width * rng.random(n), -28.0 + width * rng.random(n)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 300), st.sampled_from([256, 1024, 4096]))
def test_adding_rows_moves_no_row(seed: int, n: int, nside: int) -> None:
    ra, dec = field(400, seed % 1000)
    whole = splits.split_blocks(ra, dec, seed=seed, nside=nside)
    assert set(np.unique(whole)) <= {0, 1, 2}
    np.testing.assert_array_equal(splits.split_blocks(ra[:n], dec[:n], seed=seed, nside=nside), whole[:n])


def test_rows_of_one_cell_share_a_split_and_fractions_hold_for_cells() -> None:
    ra, dec = field(60_000, width=10.0)
    split = splits.split_blocks(ra, dec, fractions=(0.6, 0.3, 0.1), seed=5, nside=512)
    cells = splits.sky_cells(ra, dec, 512)
    order = np.argsort(cells, kind="stable")
    edges = np.flatnonzero(np.diff(cells[order])) + 1
    groups = np.split(split[order], edges)
    assert all((g == g[0]).all() for g in groups)
    share = np.bincount([g[0] for g in groups], minlength=3) / len(groups)
    # About 7600 cells: 4 sigma of a binomial share is below 0.023.
    np.testing.assert_allclose(share, (0.6, 0.3, 0.1), atol=0.025)


def test_another_seed_is_another_choice() -> None:
    ra, dec = field(5000, width=10.0)
    a = splits.split_blocks(ra, dec, seed=1, nside=512)
    b = splits.split_blocks(ra, dec, seed=2, nside=512)
    # Independent choices agree for 0.7^2 + 2 * 0.15^2 = 0.535 of the cells.
    assert abs((a == b).mean() - 0.535) < 0.06


def test_keys_may_be_text_or_numbers() -> None:
    text = splits.split_keys(np.array(["a", "b", "a", "c", "b"]), seed=3)
    assert text[0] == text[2]
    assert text[1] == text[4]
    assert (splits.split_keys([7, 7, 7]) == splits.split_keys([7])[0]).all()


def test_zero_fraction_is_never_chosen() -> None:
    assert (splits.split_keys(np.arange(2000), fractions=(1, 0, 0)) == 0).all()
    assert (splits.split_keys(np.arange(2000), fractions=(0, 0, 1)) == 2).all()


@pytest.mark.parametrize("bad", [(0.5, 0.5), (0.7, 0.2, 0.2), (1.2, -0.1, -0.1)])
def test_bad_fractions_are_refused(bad: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="split fractions"):
        splits.split_keys([1], fractions=bad)


def test_bad_nside_and_missing_positions_are_refused() -> None:
    with pytest.raises(ConfigError, match="nside 1000"):
        splits.sky_cells([1.0], [1.0], 1000)
    with pytest.raises(DataError, match="1 rows have no position, first row 1"):
        splits.split_blocks([1.0, np.nan], [1.0, 1.0])


def test_dropping_neighbours_clears_the_leak_and_keeps_the_test_set() -> None:
    ra, dec = field(4000, width=0.2)
    split = splits.split_blocks(ra, dec, nside=2048)
    with pytest.raises(DataError, match="leakage between splits"):
        splits.check_leakage(ra, dec, split, radius=15.0)
    kept = splits.drop_neighbours(ra, dec, split, radius=15.0)
    splits.check_leakage(ra, dec, kept, radius=15.0)
    np.testing.assert_array_equal(kept == splits.TEST, split == splits.TEST)
    assert 0 < (kept == -1).sum() < 0.5 * len(ra)


def test_leak_across_ra_zero_is_seen() -> None:
    split = np.array([0, 2], np.int8)
    with pytest.raises(DataError, match="within 1 arcsec"):
        splits.check_leakage([359.99995, 0.00005], [0.0, 0.0], split)


def test_same_pixels_in_two_splits_are_found() -> None:
    rng = np.random.default_rng(1)
    image = rng.normal(size=(40, 3, 33, 35)).astype(np.float32)
    split = np.repeat(np.array([0, 1, 2, 0], np.int8), 10)
    nowhere = np.full(40, np.nan)
    splits.check_leakage(nowhere, nowhere, split, image=image)
    image[25] = 2.0 * image[3] + 0.5  # a scaled copy is the same picture
    with pytest.raises(DataError, match=r"same pixels, first rows 3 \(train\) and 25 \(test\)"):
        splits.check_leakage(nowhere, nowhere, split, image=image)
    split[25] = 0
    splits.check_leakage(nowhere, nowhere, split, image=image)
