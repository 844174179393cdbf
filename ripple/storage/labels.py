"""Labels and class maps: the one reader of labels that others bring, and the meaning of a class by its name.

A label is a number from 0, -1 when unknown; a class map names the class of each number. Which class is the
lens is read from the names, never from the order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ripple.errors import ConfigError, DataError

Labels = NDArray[np.int64]

#: A label as the key of a class map.
LABEL = r"^(0|[1-9][0-9]{0,5})$"
#: Folder, card and class names that mean a lens, or no lens, in lower case without `_`, `-` and spaces.
LENS_NAMES = ("lens", "lenses", "lensed", "stronglens", "stronglenses")
NONLENS_NAMES = ("nonlens", "nonlenses", "notlens", "notalens", "unlensed", "nolens")
#: Classes of which anything else is what a search looks for.
_NONE = ("nonlens", "no", "no_sub")
#: Class names that need no map, in the order of their labels: lens finding, and the substructure sets of
#: DeepLense (none, subhaloes, vortices of superfluid dark matter; axion, cold dark matter, none).
KNOWN_MAPS = (("nonlens", "lens"), ("no", "sphere", "vort"), ("axion", "cdm", "no_sub"))


def checked_map(class_map: Mapping[Any, Any], name: str) -> dict[str, str]:
    """A class map with text for keys.

    Raises
    ------
    DataError
        A key is no number of a class, or a class has no name.
    """
    found = {str(k): v for k, v in class_map.items()}
    for key, value in found.items():
        if re.fullmatch(LABEL, key) is None or not isinstance(value, str) or not value:
            raise DataError(
                f"{name}: {key!r}: {value!r} gives no class a number and a name",
                hint="as in 0: nonlens, 1: lens",
            )
    return found


def plain_class(name: str) -> str:
    """`lens` or `nonlens` for every usual spelling of them, other names in lower case."""
    low = name.strip().lower()
    bare = low.replace("_", "").replace("-", "").replace(" ", "")
    return "lens" if bare in LENS_NAMES else "nonlens" if bare in NONLENS_NAMES else low


def known_map(found: set[str]) -> tuple[str, ...]:
    """The classes of the first of `KNOWN_MAPS` that has all these names; empty when none has."""
    return next((names for names in KNOWN_MAPS if found and found <= set(names)), ())


def lens_label(class_map: Mapping[str, str], lens_class: str = "", *, name: str, option: str) -> int:
    """Label of the lens class.

    Parameters
    ----------
    class_map
        Label value, as text -> name.
    lens_class
        Name of the lens class when it is called otherwise; empty to find it by its name.
    name
        What to call the data in messages.
    option
        How the user says which class is the lens.

    Raises
    ------
    ConfigError
        No class, or more than one, has the name.
    """
    wanted = plain_class(lens_class) if lens_class else "lens"
    found = [int(k) for k, v in class_map.items() if plain_class(v) == wanted]
    if len(found) == 1:
        return found[0]
    names = ", ".join(f"{k}: {v}" for k, v in class_map.items()) or "none"
    count = f"{len(found)} classes are" if found else "no class is"
    raise ConfigError(
        f"{name}: {count} called {lens_class or 'lens'!r}; the classes are {names}",
        hint=f"say which one is the lens with {option}",
    )


def lens_map(
    class_map: Mapping[str, str], lens_class: str = "", *, name: str, option: str = "--lens-class NAME"
) -> dict[str, str]:
    """The class map of a lens finder made from that of its data: 0 is the other class, 1 the lens.

    Raises
    ------
    ConfigError
        There are not two classes, or none of them is the lens.
    """
    if list(class_map) == ["1"]:  # the class that is looked for needs a name, the rest may have none
        class_map = {"0": "nonlens", **class_map}
    if len(class_map) != 2:
        names = ", ".join(class_map.values()) or "none"
        raise ConfigError(
            f"{name}: a lens finder has two classes, but the class map names {names}",
            hint="use --task classes, or a class map such as 0: nonlens, 1: lens",
        )
    lens = lens_label(class_map, lens_class, name=name, option=option)
    return {"0": next(v for k, v in class_map.items() if int(k) != lens), "1": class_map[str(lens)]}


def ranked_class(class_map: Mapping[str, str], lens_class: str = "", *, name: str) -> tuple[int, bool]:
    """The class that the score of a classifier is about: its label, and whether the score is its probability.

    Where no class is a lens but one means none (of DeepLense: `no`, `no_sub`), the score is the probability
    of any other class.

    Raises
    ------
    ConfigError
        The names do not say it.
    """
    without = [int(k) for k, v in class_map.items() if plain_class(v) in _NONE]
    if not lens_class and "lens" not in map(plain_class, class_map.values()) and len(without) == 1:
        return without[0], False
    return lens_label(class_map, lens_class, name=name, option="--lens-class NAME"), True


def same_classes(have: Mapping[str, str], want: Mapping[str, str]) -> bool:
    """Whether two class maps have the same names, in any order."""
    return sorted(map(plain_class, have.values())) == sorted(map(plain_class, want.values()))


def renumbered(labels: NDArray[Any], have: Mapping[str, str], want: Mapping[str, str]) -> Labels:
    """Labels of one class map in the numbers of another, by name.

    Parameters
    ----------
    labels
        `(N,)` integers, negative when unknown.
    have, want
        Label value, as text -> name. When either is empty, labels stay as they are.

    Returns
    -------
    `(N,)` int64. Classes that `want` lacks are numbered after its own, in their order.
    """
    values = np.asarray(labels, np.int64)
    if not have or not want or dict(have) == dict(want):
        return values
    number = {plain_class(v): int(k) for k, v in want.items()}
    table = np.arange(max(int(values.max(initial=0)), *map(int, have)) + 1)
    beyond = max(number.values()) + 1
    for k in sorted(map(int, have)):
        found = number.get(plain_class(have[str(k)]))
        table[k] = beyond if found is None else found
        beyond += found is None
    return np.where(values < 0, -1, table[np.maximum(values, 0)]).astype(np.int64)


def read_labels(values: Any, classes: Sequence[str], name: str) -> tuple[Labels, tuple[str, ...]]:
    """Labels as others write them: integers, text, one-hot rows; masked, empty, NaN and negative are unknown.

    Parameters
    ----------
    values
        `(N,)` integers, booleans, whole floats, text or bytes, also masked or with None; or `(N, K)`
        one-hot rows.
    classes
        Class names by label value; empty when the user gives none.
    name
        What to call the labels in messages.

    Returns
    -------
    `(N,)` int64, -1 when unknown; the class names, which text labels can bring along themselves.

    Raises
    ------
    DataError
        A label that is none of these, or no class of `classes`; names the first row, counted from 0.
    """
    array = np.ma.asarray(values)
    unknown = np.ma.getmaskarray(array).copy()
    data = np.asarray(array.data)
    if data.ndim == 2 and data.shape[1] == 1:
        data, unknown = data[:, 0], unknown[:, 0]
    if data.ndim == 2:
        return _within(_one_hot(data, unknown.any(1), name), classes, name), tuple(classes)
    if data.ndim != 1:
        raise DataError(f"{name}: labels of shape {data.shape}, expected one value or a one-hot row each")
    if data.dtype.kind == "O":
        data, unknown = _of_objects(data, unknown, name)
    if data.dtype.kind in "SU":
        return _of_text(data, unknown, classes, name)
    if data.dtype.kind not in "iufb":
        raise DataError(f"{name}: labels of type {data.dtype} are neither numbers nor text")
    return _within(_of_numbers(data, unknown, name), classes, name), tuple(classes)


def _of_objects(data: NDArray[Any], unknown: NDArray[np.bool_], name: str) -> tuple[NDArray[Any], Any]:
    """Text or numbers of an array of Python objects."""
    unknown = unknown | np.array([v is None or v is np.ma.masked or v != v for v in data], bool)
    kinds = {str if isinstance(v, str | bytes) else float for v in data[~unknown]}
    if len(kinds) > 1:
        first = {isinstance(v, str | bytes): k for k, v in reversed(list(enumerate(data))) if not unknown[k]}
        raise DataError(
            f"{name}: labels are text in row {first[True]} and numbers in row {first[False]}, counted from 0",
            hint="give all labels in one way",
        )
    if kinds == {str}:
        known = ["" if u else v for v, u in zip(data, unknown, strict=True)]
        text = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in known]
        return np.array(text, dtype=str), unknown
    try:
        return np.array([-1 if u else v for v, u in zip(data, unknown, strict=True)]), unknown
    except (ValueError, TypeError):
        raise DataError(f"{name}: labels are neither numbers nor text") from None


def _of_numbers(data: NDArray[Any], unknown: NDArray[np.bool_], name: str) -> Labels:
    """Whole numbers; NaN and negative ones are unknown."""
    if data.dtype.kind == "f":
        unknown = unknown | np.isnan(data)
        values = np.where(unknown, -1, data)
        wrong = (values != np.floor(values)) | ~np.isfinite(values)
        if wrong.any():
            k = int(np.argmax(wrong))
            raise DataError(
                f"{name}: label {data[k]} in row {k}, counted from 0, is no whole number",
                hint="a label is the number of a class, not a probability",
            )
        data = values
    large = ~unknown & (data > 2**31)
    if large.any():
        k = int(np.argmax(large))
        raise DataError(f"{name}: label {data[k]} in row {k}, counted from 0, is no number of a class")
    unknown = unknown | (data < 0)
    # In two steps: -1 is no number of the unsigned types.
    return np.where(unknown, np.int64(-1), np.where(unknown, 0, data).astype(np.int64))


def _one_hot(data: NDArray[Any], unknown: NDArray[np.bool_], name: str) -> Labels:
    """Column of the only 1 of each row; rows of zeros or NaN are unknown."""
    if data.dtype.kind not in "iufb":
        raise DataError(f"{name}: labels of type {data.dtype} and shape {data.shape}")
    values = np.asarray(data, float)
    unknown = unknown | np.isnan(values).any(1) | ~values.any(1)
    wrong = ~unknown & ~(np.isin(values, (0.0, 1.0)).all(1) & (values.sum(1) == 1))
    if wrong.any():
        k = int(np.argmax(wrong))
        raise DataError(
            f"{name}: row {k}, counted from 0, is {data[k].tolist()}, which is not one-hot",
            hint="one column of a row is 1, the others are 0",
        )
    return np.where(unknown, -1, values.argmax(1)).astype(np.int64)


def _of_text(
    data: NDArray[Any], unknown: NDArray[np.bool_], classes: Sequence[str], name: str
) -> tuple[Labels, tuple[str, ...]]:
    """Class names, or numbers written as text; empty text is unknown."""
    text = np.char.strip(np.char.decode(data, "utf-8", "replace") if data.dtype.kind == "S" else data)
    unknown = unknown | (text == "")
    words = np.unique(text[~unknown]).tolist()
    names = tuple(classes)
    number = {plain_class(c): k for k, c in enumerate(names)}
    if not all(plain_class(w) in number for w in words):
        if all(w.removeprefix("-").isascii() and w.removeprefix("-").isdecimal() for w in words):
            filled = np.where(unknown, "-1", text).astype(object)
            plain = np.array([int(v) for v in filled], np.int64)
            return _within(_of_numbers(plain, unknown, name), classes, name), names
        if not names:
            names = known_map({plain_class(w) for w in words})
            number = {c: k for k, c in enumerate(names)}
        strange = [w for w in words if plain_class(w) not in number]
        if strange:
            k = int(np.argmax(text == strange[0]))
            said = f"the classes are {', '.join(names)}" if classes else "no class map says its number"
            raise DataError(
                f"{name}: label {strange[0]!r} in row {k}, counted from 0: {said}",
                hint="name the classes in the order of their labels, as in --classes nonlens,lens",
            )
    to = np.array([number[plain_class(w)] for w in words], np.int64)
    out = np.full(len(text), -1, np.int64)
    if words:
        out[~unknown] = to[np.searchsorted(words, text[~unknown])]
    return out, names


def _within(labels: Labels, classes: Sequence[str], name: str) -> Labels:
    """The labels, refused when one has no name although the user named the classes."""
    beyond = labels >= len(classes)
    if classes and beyond.any():
        k = int(np.argmax(beyond))
        raise DataError(
            f"{name}: label {labels[k]} in row {k}, counted from 0, but the classes are "
            f"{', '.join(f'{n}: {c}' for n, c in enumerate(classes))}",
            hint="name every class in the order of the labels",
        )
    return labels


def label_counts(labels: NDArray[np.int64], classes: Sequence[str]) -> str:
    """Rows by label, as in `5 of label 0 (nonlens), 3 of label 1 (lens), 2 without label`."""
    values, counts = np.unique(labels[labels >= 0], return_counts=True)
    said = []
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        word = f" ({classes[value]})" if value < len(classes) else ""
        said.append(f"{count:,} of label {value}{word}")
    if unlabelled := int((labels < 0).sum()):
        said.append(f"{unlabelled:,} without label")
    return ", ".join(said)


def lens_line(classes: Sequence[str]) -> str:
    """Which class counts as the lens, for people to check."""
    lenses = [f"label {k} ({name})" for k, name in enumerate(classes) if plain_class(name) == "lens"]
    if lenses:
        return ", ".join(lenses)
    if not classes:
        return "label 1, when the labels are 0 and 1: no class has a name"
    return "no class is called lens; ripple train --lens-class NAME says which one is ranked"
