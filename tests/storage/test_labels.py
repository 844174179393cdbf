"""Labels as others write them, and classes found by their names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ripple.errors import ConfigError, DataError
from ripple.storage.labels import (
    checked_map,
    lens_label,
    lens_map,
    plain_class,
    read_labels,
    renumbered,
    same_classes,
)

NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "classes", "labels", "names"),
    [
        ([0, 1, -1], (), [0, 1, -1], ()),
        ([0, 1, -99], (), [0, 1, -1], ()),
        ([True, False], (), [1, 0], ()),
        (np.array([2, 0], np.uint8), (), [2, 0], ()),
        (np.array([1.0, NAN, 0.0]), (), [1, -1, 0], ()),
        (np.ma.array([1, 0, 1], mask=[0, 0, 1]), (), [1, 0, -1], ()),
        (["lens", "nonlens", ""], (), [1, 0, -1], ("nonlens", "lens")),
        (["lens", "non-lens", "unlensed"], ("lens", "nonlens"), [0, 1, 1], ("lens", "nonlens")),
        (np.array([b"ring", b"arc"]), ("arc", "ring"), [1, 0], ("arc", "ring")),
        (np.array(["vort", "no"]), (), [2, 0], ("no", "sphere", "vort")),
        (["1", "0", " 1 "], (), [1, 0, 1], ()),
        (np.array(["lens", None, "nonlens"], object), (), [1, -1, 0], ("nonlens", "lens")),
        (np.array([1, None, 0], object), (), [1, -1, 0], ()),
        (np.array([[0, 1], [1, 0], [0, 0]]), (), [1, 0, -1], ()),
        (np.array([[0.0, 0.0, 1.0], [NAN, 0.0, 1.0]]), ("a", "b", "c"), [2, -1], ("a", "b", "c")),
        (np.array([[1], [0]]), (), [1, 0], ()),
    ],
)
def test_labels_are_read(values: Any, classes: tuple[str, ...], labels: list[int], names: Any) -> None:
    found, named = read_labels(values, classes, "label")
    assert found.dtype == np.int64
    assert (found.tolist(), named) == (labels, names)


@pytest.mark.parametrize(
    ("values", "classes", "message"),
    [
        ([0.0, 0.9], (), r"label 0\.9 in row 1, counted from 0, is no whole number"),
        ([float("inf")], (), "is no whole number"),
        ([0, 2], ("nonlens", "lens"), r"label 2 in row 1, .* the classes are 0: nonlens, 1: lens"),
        (["lens", "arc"], ("nonlens", "lens"), r"label 'arc' in row 1, .* the classes are nonlens, lens"),
        (["galaxy", "arc"], (), r"label 'arc' in row 1, .* no class map says its number"),
        (np.array(["lens", 1], object), (), "text in row 0 and numbers in row 1"),
        (np.array([[1, 1], [0, 1]]), (), r"row 0, .* is \[1, 1\], which is not one-hot"),
        (np.array([[0.2, 0.8]]), (), "not one-hot"),
        (np.zeros((2, 2, 2)), (), "shape"),
        (np.array([1 + 2j]), (), "neither numbers nor text"),
        ([2**40], (), "no number of a class"),
        (["lens", "1"], (), "no class map says its number"),
    ],
)
def test_labels_are_refused_by_name(values: Any, classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_labels(values, classes, "label")


@given(
    labels=st.lists(st.integers(-1, 4), min_size=1, max_size=20),
    kind=st.sampled_from(["i1", "u1", "i2", ">i4", "<u8", "f4", ">f8", "text", "bytes", "one-hot", "masked"]),
    order=st.permutations(["nonlens", "lens", "ring", "arc", "star"]),
)
def test_labels_survive_every_type(labels: list[int], kind: str, order: list[str]) -> None:
    want = np.array(labels, np.int64)
    classes = tuple(order)
    if kind in ("text", "bytes"):
        values: Any = np.array(["" if v < 0 else order[v] for v in labels])
        values = np.char.encode(values) if kind == "bytes" else values
    elif kind == "one-hot":
        values = (want[:, None] == np.arange(5)).astype(np.float32)
    elif kind == "masked":
        values = np.ma.array(np.maximum(want, 0), mask=want < 0)
    elif np.dtype(kind).kind == "u":
        want = np.maximum(want, 0)
        values = want.astype(kind)
    else:
        values = np.where(want < 0, np.nan, want).astype(kind) if "f" in kind else want.astype(kind)
    assert read_labels(values, classes, "label")[0].tolist() == want.tolist()


def test_the_lens_is_found_by_its_name() -> None:
    for spelling in ("lens", "Lenses", "strong lens", "lensed"):
        assert lens_label({"0": spelling, "1": "galaxy"}, name="x", option="o") == 0
        assert lens_map({"0": spelling, "1": "galaxy"}, name="x") == {"0": "galaxy", "1": spelling}
    assert lens_label({"0": "galaxy", "1": "arc"}, "arc", name="x", option="o") == 1
    with pytest.raises(ConfigError, match="no class is called 'lens'; the classes are 0: 0, 1: 1"):
        lens_label({"0": "0", "1": "1"}, name="x", option="--lens-class")
    with pytest.raises(ConfigError, match="2 classes are called 'lens'"):
        lens_label({"0": "lens", "1": "lenses"}, name="x", option="--lens-class")
    with pytest.raises(ConfigError, match="two classes, but the class map names no, sphere, vort"):
        lens_map({"0": "no", "1": "sphere", "2": "vort"}, name="x")


def test_labels_are_renumbered_by_name() -> None:
    labels = np.array([0, 1, -1, 2])
    assert renumbered(labels, {"0": "lens", "1": "nonlens"}, {"0": "nonlens", "1": "lens"}).tolist() == [
        1, 0, -1, 2,
    ]  # fmt: skip
    # A class that the model does not know comes after its own.
    have = {"0": "ring", "1": "lens", "2": "non_lens"}
    assert renumbered(labels, have, {"0": "nonlens", "1": "lens"}).tolist() == [2, 1, -1, 0]
    assert renumbered(labels, {}, {"0": "nonlens", "1": "lens"}).tolist() == labels.tolist()
    assert same_classes({"0": "lens", "1": "non-lens"}, {"0": "nonlens", "1": "lenses"})
    assert not same_classes({"0": "lens", "1": "galaxy"}, {"0": "nonlens", "1": "lens"})
    assert plain_class("Non_Lens") == "nonlens"
    assert plain_class("Spiral") == "spiral"


def test_class_maps_have_numbers_and_names() -> None:
    assert checked_map({0: "nonlens", "1": "lens"}, "x") == {"0": "nonlens", "1": "lens"}
    for wrong in ({"lens": 1}, {"word": "x"}, {-1: "x"}, {"01": "x"}, {0: ""}, {0: None}):
        with pytest.raises(DataError, match="gives no class a number and a name"):
            checked_map(wrong, "x")
