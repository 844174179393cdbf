"""Training, validation and test rows of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ripple.errors import ContractError, DataError
from ripple.learn.config import TrainConfig
from ripple.learn.data.dataset import TensorDataset
from ripple.learn.model.contract import Facts, SkySplit
from ripple.sky.splits import (
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
    check_leakage,
    drop_neighbours,
    sky_cells,
    split_blocks,
    split_keys,
)
from ripple.storage import shard_reader
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.labels import lens_map, plain_class, ranked_class

Rows = NDArray[np.int64]
#: Names of the labels of a lens finder, for tensors that name none.
LENS_MAP = {"0": "nonlens", "1": "lens"}


@dataclass(frozen=True)
class TargetSet:
    """The data set to adapt to: its labels, if it has any, are used for evaluation only.

    Parameters
    ----------
    dataset, facts, split, digests
        As in `TrainingSet`.
    """

    dataset: TensorDataset
    facts: Facts
    split: NDArray[np.int8]
    digests: tuple[str, ...]

    def rows(self, which: int) -> Rows:
        """Global row numbers of a split."""
        return np.flatnonzero(self.split == which)

    @property
    def labels(self) -> NDArray[np.int64]:
        """`(total,)` labels, -1 where there is none."""
        return np.asarray(self.dataset.column("label"))

    def labelled(self, count: int, seed: int) -> Rows:
        """`count` labelled rows of the training sky: classes in their own proportion, each at least once."""
        rows = self.rows(TRAIN)
        return few_rows(rows[self.labels[rows] >= 0], self.labels, count, seed)


@dataclass(frozen=True)
class TrainingSet:
    """Tensor artefacts with a split.

    Parameters
    ----------
    dataset
        All rows of all artefacts.
    facts
        Those common to all shards.
    class_map
        Label value -> name; of a lens finder, 1 is the lens whatever its number in the tensors.
    split
        `(total,)` int8: 0 train, 1 validation, 2 test, -1 unused.
    sky
        How the sky was divided; None when rows have no positions or the data came with a split.
    split_by
        How rows were held out: by blocks of sky, by a column of the data, or by id.
    validation_drawn
        Whether that column named no validation rows, so that some training rows were drawn by id.
    digests
        Content digest of each artefact.
    notes
        Lines for the user to read.
    target
        The data set to adapt to, if any.
    """

    dataset: TensorDataset
    facts: Facts
    class_map: dict[str, str]
    split: NDArray[np.int8]
    sky: SkySplit | None
    split_by: Literal["sky", "column", "id"]
    validation_drawn: bool
    digests: tuple[str, ...]
    notes: tuple[str, ...] = ()
    target: TargetSet | None = None

    def rows(self, which: int) -> Rows:
        """Global row numbers of a split."""
        return np.flatnonzero(self.split == which)

    @property
    def labels(self) -> NDArray[np.int64]:
        """`(total,)` labels."""
        return np.asarray(self.dataset.column("label"))

    def cells(self, nside: int) -> NDArray[np.int64]:
        """`(total,)` HEALPix cell of each row, -1 where it has no position."""
        return sky_cells(*positions(self.dataset), nside)

    def counts(self) -> dict[str, dict[str, int]]:
        """Name of the split -> label -> number of rows."""
        out = {}
        for k, name in enumerate(SPLITS):
            values, n = np.unique(self.labels[self.split == k], return_counts=True)
            out[name] = {str(v): int(c) for v, c in zip(values, n, strict=True)}
        return out


def common_facts(artefacts: list[Artefact]) -> Facts:
    """The facts shared by every shard of every artefact.

    Raises
    ------
    ContractError
        Two artefacts differ; the message names the field.
    """
    facts: Facts | None = None
    for artefact in artefacts:
        for k in range(len(artefact.shards)):
            found = Facts.of(shard_reader.map_tensors(artefact.verified_path(k)))
            if facts is not None:
                facts.agree(found, str(artefact.shard_path(k)))
            # Unlabelled shards have no class map: the first one that has stands for all.
            facts = found if facts is None or not facts.class_map else facts
    if facts is None:
        raise DataError("there are no shards to learn from", hint="give tensors of `ripple preprocess`")
    return facts


def training_set(config: TrainConfig) -> TrainingSet:
    """Open the tensors and divide their rows into training, validation and test.

    Raises
    ------
    DataError
        No row has a label, or a split lacks a class.
    """
    artefacts = [open_artefact(path, "tensors") for path in config.tensors]
    facts = common_facts(artefacts)
    class_map = facts.class_map
    if config.task == "lens":
        class_map = lens_map(class_map or LENS_MAP, config.lens_class, name=str(config.tensors[0]))
    elif config.task == "classes" and class_map:
        ranked_class(class_map, config.lens_class, name=str(config.tensors[0]))
    # From here on, a label is a number of this map, whatever its number in the tensors.
    dataset = TensorDataset(artefacts, class_map=class_map)
    usable = np.zeros(dataset.total, bool)  # (total,)
    usable[dataset.rows] = True
    usable &= _has_truth(dataset, config)
    if not usable.any():
        raise DataError("no row has a label", hint="fetch with a label column: 1 lens, 0 not")
    split, sky, drawn, notes = _split_rows(dataset, facts, usable, config)
    if config.task == "lens" and not facts.class_map:
        notes += ("the labels have no names: 1 was taken for a lens, 0 for none",)
    by: Literal["sky", "column", "id"] = "sky" if sky else "column" if config.split_column else "id"
    if config.labelled_rows:
        split = _keep_few(split, np.asarray(dataset.column("label")), config)
    digests = tuple(a.digest for a in artefacts)
    # Also for splits that came with the data: published ones may share objects.
    check_leakage(*positions(dataset), split)
    data = TrainingSet(dataset, facts, class_map, split, sky, by, drawn, digests, notes)
    _require_classes(data, config)
    return with_target(data, config) if config.target else data


def with_target(source: TrainingSet, config: TrainConfig) -> TrainingSet:
    """The training set with the rows of `config.target`, divided in the same way.

    The blocks of sky are the same for both, so that two surveys of one sky do not leak into each other's test
    rows.

    Raises
    ------
    ContractError, DataError
        Bands, size or unit differ, or classes have other names: no network can take both.
    """
    artefacts = [open_artefact(path, "tensors") for path in config.target]
    facts = common_facts(artefacts)
    mine = source.facts
    # What a network cannot take; in everything else the domains may differ, that is what is adapted.
    for name in ("bands", "size", "unit"):
        if getattr(facts, name) != getattr(mine, name):
            raise ContractError(
                f"--target: {name} is {getattr(facts, name)}, but the source has {getattr(mine, name)}",
                hint="fetch and preprocess both in the same way; PSF, noise, scale, calibration may differ",
            )
    # Classes that only the target has are unknown ones; but a map that also lacks some has other names.
    own, other = (set(map(plain_class, m.values())) for m in (source.class_map, facts.class_map))
    if other and own - other and other - own:
        raise ContractError(
            f"--target: the classes are {', '.join(facts.class_map.values())}, but those of the source are "
            f"{', '.join(source.class_map.values())}"
        )
    # Every accepted row: labels of the target are not looked at.
    dataset = TensorDataset(artefacts, class_map=source.class_map)
    usable = np.zeros(dataset.total, bool)
    usable[dataset.rows] = True
    split, sky, _, _ = _split_rows(dataset, facts, usable, config)
    if not (split == TRAIN).any():
        raise DataError(
            "--target has no row on the training sky", hint="give more sky, or another --split-seed"
        )
    # Cells that either domain was trained on count as seen when the model scores.
    both = source.sky
    if both is not None and sky is not None:
        both = both.model_copy(
            update={
                name: tuple(sorted({*getattr(both, name), *getattr(sky, name)}))
                for name in ("train", "validation")
            }
        )
    target = TargetSet(dataset, facts, split, tuple(a.digest for a in artefacts))
    return replace(source, target=target, sky=both)


def few_rows(rows: Rows, labels: NDArray[np.int64], count: int, seed: int) -> Rows:
    """At most `count` of `rows`, drawn in the proportion of the classes, each class at least once."""
    if len(rows) <= count:
        return rows
    rng = np.random.default_rng([seed, 9])
    shuffled = rng.permutation(rows)
    label = labels[shuffled]
    # Members of a class get ranks spread evenly over [0, 1), and its first one 0: the lowest ranks hold every
    # class and keep the proportions.
    rank = np.empty(len(shuffled))
    for value in np.unique(label):
        members = np.flatnonzero(label == value)
        rank[members] = (np.arange(len(members)) + 0.5 * (np.arange(len(members)) > 0)) / len(members)
    return np.sort(shuffled[np.argsort(rank, kind="stable")[:count]])


def _keep_few(split: NDArray[np.int8], labels: NDArray[np.int64], config: TrainConfig) -> NDArray[np.int8]:
    """Keep `labelled_rows` rows for training and validation together, in the proportion of the two."""
    first, second = (int((split == k).sum()) for k in (TRAIN, VALIDATION))
    # At least two rows on either side, one of each class of a lens finder.
    tuned = max(2, round(config.labelled_rows * second / max(first + second, 1)))
    kept = split.copy()  # the test rows stay: all numbers of labels are judged on the same rows
    for which, count in ((TRAIN, max(2, config.labelled_rows - tuned)), (VALIDATION, tuned)):
        rows = np.flatnonzero(split == which)
        kept[np.setdiff1d(rows, few_rows(rows, labels, count, config.seed))] = -1
    return kept


def _has_truth(dataset: TensorDataset, config: TrainConfig) -> NDArray[np.bool_]:
    """`(total,)`: rows with a label, or with a value of every regressed quantity."""
    if config.task == "regression":
        values = [np.asarray(dataset.column(name), np.float64) for name in config.targets]
        return np.all([np.isfinite(v) for v in values], axis=0)
    label = np.asarray(dataset.column("label"))
    if config.task == "lens" and (label > 1).any():
        raise DataError(
            f"there is a label {int(label.max())}, but a lens finder has labels 0 and 1",
            hint="use --task classes, or labels 0 and 1",
        )
    return label >= 0


def _split_rows(
    dataset: TensorDataset, facts: Facts, usable: NDArray[np.bool_], config: TrainConfig
) -> tuple[NDArray[np.int8], SkySplit | None, bool, tuple[str, ...]]:
    """Split by the column given, by blocks of sky, or, without positions, by id.

    Returns the splits, the blocks, whether validation rows were drawn by id, and notes.
    """
    if config.split_column is not None:
        split = named_split(np.asarray(dataset.column(config.split_column)), config.split_column)
        notes: tuple[str, ...] = ("split as given by the data",)
        drawn = not (split[usable] == VALIDATION).any()
        if drawn:
            split = with_validation(
                split, np.asarray(dataset.column("id")), config.fractions, config.split_seed
            )
            notes += ("the data have no validation rows: drawn from the training rows by id",)
        return np.where(usable, split, -1).astype(np.int8), None, drawn, notes
    ra, dec = positions(dataset)
    if not np.isfinite(ra[usable] + dec[usable]).all():
        keys = np.asarray(dataset.column("id"))
        split = split_keys(keys, fractions=config.fractions, seed=config.split_seed)
        note = "rows without positions: split by id, so neighbours on the sky may lie in different splits"
        return np.where(usable, split, -1).astype(np.int8), None, False, (note,)
    split = np.full(dataset.total, -1, np.int8)
    at = {"fractions": config.fractions, "seed": config.split_seed, "nside": config.nside}
    # By blocks and not by rows: neighbours share pixels, PSF and noise.
    split[usable] = split_blocks(ra[usable], dec[usable], **at)  # type: ignore[arg-type]
    before = split.copy()
    # Two cutouts on either side of a border share pixels if they are nearer than the side of one.
    guard = config.guard if config.guard is not None else max(facts.size) * facts.pixel_scale
    if guard > 0:
        split = drop_neighbours(ra, dec, split, radius=guard)
    dropped = int((split != before).sum())
    cells = sky_cells(ra, dec, config.nside)
    sky = SkySplit(
        seed=config.split_seed,
        nside=config.nside,
        fractions=config.fractions,
        train=tuple(np.unique(cells[split == TRAIN]).tolist()),
        validation=tuple(np.unique(cells[split == VALIDATION]).tolist()),
    )
    note = f"{dropped} rows were left out: they lie within {guard:.1f} arcsec of a row of another split"
    return split, sky, False, (note,) if dropped else ()


def with_validation(
    split: NDArray[np.int8], keys: NDArray[Any], fractions: Sequence[float], seed: int
) -> NDArray[np.int8]:
    """A split of the data in which a share of the training rows becomes validation, by a hash of the id.

    Parameters
    ----------
    split
        `(N,)` without validation rows; test rows stay.
    keys
        `(N,)` ids.
    fractions
        Of training, validation and test; only the ratio of the first two counts.
    seed
        Another seed draws other rows.
    """
    rest = fractions[0] + fractions[1]
    # No test rows are drawn: the data have theirs. Without both fractions nothing is drawn at all.
    shares = (fractions[0] / rest, fractions[1] / rest, 0.0) if rest else (1.0, 0.0, 0.0)
    drawn = split_keys(keys, fractions=shares, seed=seed)
    return np.where((split == TRAIN) & (drawn == VALIDATION), VALIDATION, split).astype(np.int8)


def positions(dataset: TensorDataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`(total,)` ra and dec, deg ICRS; NaN when the shards have none."""
    try:
        return np.asarray(dataset.column("ra"), np.float64), np.asarray(dataset.column("dec"), np.float64)
    except DataError:  # cutouts from elsewhere may have no positions
        nowhere = np.full(dataset.total, np.nan)
        return nowhere, nowhere


def named_split(values: NDArray[Any], column: str) -> NDArray[np.int8]:
    """Split numbers of a column with 0, 1, 2 or the names of the splits.

    Raises
    ------
    DataError
        Any other value.
    """
    if values.dtype.kind in "iu":
        if ((values < -1) | (values > 2)).any():
            raise DataError(
                f"column {column!r} has other values than 0 (train), 1 (validation), 2 (test) and -1 (unused)"
            )
        return values.astype(np.int8)
    # Column types of published sets vary: names in several spellings, empty for "in no split".
    words = {"train": TRAIN, "val": VALIDATION, "validation": VALIDATION, "test": TEST, "": -1}
    text = [v.decode() if isinstance(v, bytes) else str(v) for v in values]
    unknown = sorted(set(text) - set(words))
    if unknown:
        raise DataError(f"column {column!r} has {unknown[0]!r}, which is not train, validation or test")
    return np.array([words[v] for v in text], np.int8)


def _require_classes(data: TrainingSet, config: TrainConfig) -> None:
    """Refuse a split without rows or, for lens finding, without one of the classes."""
    hint = "use another --split-seed, a larger --nside (smaller blocks), or more sky"
    for k, name in enumerate(SPLITS):
        found = set(np.unique(data.labels[data.split == k]).tolist())
        # With several classes rare ones may be absent from a split; a lens finder needs both in each.
        wanted = set() if config.task == "regression" else {0, 1} if config.task == "lens" else found
        if not found or not wanted <= found:
            lacking = "rows" if not found else f"label {min(wanted - found)}"
            raise DataError(f"the {name} sky has no {lacking} ({data.counts()})", hint=hint)
