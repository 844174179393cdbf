"""The plane cache: least recently used first out, never beyond its budget, every plane decoded once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ripple.errors import UnreadableError
from ripple.rubin.cache import PlaneCache, PlaneKey

PLANE = 4 * 100  # bytes of one plane of 10x10 float32


def key(number: int, plane: str = "image", repository: str = "repo") -> PlaneKey:
    return PlaneKey(repository, f"uuid-{number}", plane)


def plane(number: float) -> np.ndarray:
    return np.full((10, 10), number, np.float32)


def test_second_request_is_a_hit_and_the_same_pixels() -> None:
    cache = PlaneCache(10 * PLANE)
    first = cache.get(key(1), lambda: plane(1))
    again = cache.get(key(1), lambda: plane(99))
    assert again is first
    assert (first == 1).all()
    counts = cache.counts()
    assert (counts.hits, counts.misses, counts.evictions, counts.bytes) == (1, 1, 0, PLANE)


def test_repository_dataset_and_plane_all_count() -> None:
    cache = PlaneCache(10 * PLANE)
    keys = [key(1), key(2), key(1, "variance"), key(1, repository="other")]
    for n, k in enumerate(keys):
        cache.get(k, lambda n=n: plane(n))
    assert [float(cache.get(k, lambda: plane(-1))[0, 0]) for k in keys] == [0, 1, 2, 3]


def test_planes_are_read_only_and_what_was_decoded_is_not_frozen() -> None:
    made = plane(1)
    got = PlaneCache(10 * PLANE).get(key(1), lambda: made)
    with pytest.raises(ValueError, match="read-only"):
        got[0, 0] = 2
    made[0, 0] = 2


def test_least_recently_used_goes_first() -> None:
    cache = PlaneCache(2 * PLANE)
    cache.get(key(1), lambda: plane(1))
    cache.get(key(2), lambda: plane(2))
    cache.get(key(1), lambda: plane(1))  # 2 is now the oldest
    cache.get(key(3), lambda: plane(3))
    assert cache.counts().evictions == 1
    cache.get(key(1), lambda: pytest.fail("1 was dropped"))
    cache.get(key(2), lambda: plane(2))
    assert cache.counts().misses == 4


def test_budget_of_one_plane_works() -> None:
    cache = PlaneCache(PLANE)
    for n in (1, 1, 2, 2, 1):
        assert (cache.get(key(n), lambda n=n: plane(n)) == n).all()
    counts = cache.counts()
    assert (counts.hits, counts.misses, counts.evictions, counts.planes) == (2, 3, 2, 1)


@pytest.mark.parametrize("budget", [0, PLANE - 1])
def test_plane_beyond_the_budget_is_given_and_not_kept(budget: int) -> None:
    cache = PlaneCache(budget)
    for _ in range(2):
        assert (cache.get(key(1), lambda: plane(1)) == 1).all()
    counts = cache.counts()
    assert (counts.hits, counts.misses, counts.bytes) == (0, 2, 0)


def test_a_view_counts_as_what_it_keeps_alive() -> None:
    cache = PlaneCache(2 * PLANE)
    cache.get(key(1), lambda: np.zeros((30, 10), np.float32)[:10])  # holds three planes' worth
    assert cache.counts().planes == 0


def test_an_error_reaches_everyone_and_leaves_nothing_behind() -> None:
    cache = PlaneCache(10 * PLANE)

    def fails() -> np.ndarray:
        raise UnreadableError("file: damaged")

    with pytest.raises(UnreadableError, match="damaged"):
        cache.get(key(1), fails)
    assert (cache.get(key(1), lambda: plane(1)) == 1).all()


def test_threads_that_want_the_same_plane_decode_it_once() -> None:
    cache = PlaneCache(100 * PLANE)
    calls: list[int] = []
    barrier = threading.Barrier(8)

    def decode(n: int) -> np.ndarray:
        calls.append(n)
        time.sleep(0.02)
        return plane(n)

    def ask(_: int) -> list[float]:
        barrier.wait()
        return [float(cache.get(key(n), lambda n=n: decode(n))[0, 0]) for n in range(10)]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == [[float(n) for n in range(10)]] * 8
    assert sorted(calls) == list(range(10))
    counts = cache.counts()
    assert counts.hits == 70
    assert counts.misses == 10


def test_working_set_that_fits_is_hit_after_the_first_touch() -> None:
    cache = PlaneCache(20 * PLANE)
    rng = np.random.default_rng(1)
    for n in range(20):
        cache.get(key(n), lambda n=n: plane(n))
    before = cache.counts()
    for n in rng.integers(0, 20, 1000).tolist():
        cache.get(key(n), lambda: pytest.fail("decoded again"))
    assert cache.counts().hits - before.hits == 1000


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 6)), max_size=60), st.integers(0, 12))
def test_never_beyond_the_budget_and_counts_add_up(requests: list[tuple[int, int]], budget: int) -> None:
    cache = PlaneCache(budget * PLANE)
    sizes = {}
    for n, size in requests:
        size = sizes.setdefault(n, size)
        cache.get(key(n), lambda size=size: np.zeros((10 * size, 10), np.float32))
        assert cache.counts().bytes <= budget * PLANE
    counts = cache.counts()
    assert counts.hits + counts.misses == len(requests)
