"""Training, validation and test rows of a network."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ripple.errors import ContractError, DataError
from ripple.learn.config import TrainConfig
from ripple.learn.data.dataset import TensorDataset
from ripple.learn.data.graded import SOFT, GradedRows, graded_rows
from ripple.learn.model.contract import Facts, load_contract
from ripple.learn.model.provenance import (
    By,
    Columns,
    Split,
    by_rule,
    lineage,
    merged,
    same_rule,
    verdicts,
    with_cells,
)
from ripple.sky.splits import SPLITS, TEST, TRAIN, VALIDATION, check_leakage, drop_neighbours, sky_cells
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
    held
        How rows were held out, and the sky of those that were not.
    digests
        Content digest of each artefact.
    notes
        Lines for the user to read.
    ancestors
        How the rows of the models were held out that the training starts from.
    unseen
        Whether no ancestor was trained on the test rows; False when nobody can say.
    target
        The data set to adapt to, if any.
    grades
        Digests of the candidates whose grades are labels.
    """

    dataset: TensorDataset
    facts: Facts
    class_map: dict[str, str]
    split: NDArray[np.int8]
    held: Split
    digests: tuple[str, ...]
    notes: tuple[str, ...] = ()
    ancestors: tuple[Split, ...] = ()
    unseen: bool = True
    target: TargetSet | None = None
    grades: tuple[str, ...] = ()

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
            found = Facts.of(shard_reader.map_tensors(artefact.verified_path(k)), artefact)
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
    dataset = TensorDataset(artefacts, class_map=class_map, psf_input=config.psf_input)
    usable = np.zeros(dataset.total, bool)  # (total,)
    usable[dataset.rows] = True
    graded = _with_grades(dataset, facts, class_map, config) if config.labels else None
    if graded:
        usable &= ~graded.hidden
    usable &= _has_truth(dataset, config)
    faint = _too_faint(dataset, class_map, config) & usable
    usable &= ~faint
    if not usable.any():
        raise DataError("no row has a label", hint="fetch with a label column: 1 lens, 0 not")
    split, held, notes = _split_rows(dataset, facts, usable, config)
    notes += graded.notes if graded else ()
    if faint.any():
        notes += (f"{faint.sum():,} lenses with arc_snr below {config.min_arc_snr:g} are left out",)
    if config.task == "lens" and not facts.class_map:
        notes += ("the labels have no names: 1 was taken for a lens, 0 for none",)
    if config.labelled_rows:
        split = _keep_few(split, np.asarray(dataset.column("label")), config)
    check_leakage(*positions(dataset), split)
    grades = graded.digests if graded else ()
    data = TrainingSet(dataset, facts, class_map, split, held, held.inputs, notes, grades=grades)
    if config.init is not None:
        data = without_seen(data, config)
    _require_classes(data, config)
    return with_target(data, config) if config.target else data


def _with_grades(
    dataset: TensorDataset, facts: Facts, class_map: dict[str, str], config: TrainConfig
) -> GradedRows:
    """Give the rows of a dataset the labels of `config.labels`."""
    assert config.task != "regression"  # refused with the options
    ra, dec = positions(dataset)
    columns = {"id": np.asarray(dataset.column("id")).astype(str), "ra": ra, "dec": dec}
    found = graded_rows(
        config.labels,
        columns,
        np.asarray(dataset.column("label")),
        class_map,
        task=config.task,
        lens_class=config.lens_class,
        soft=config.labels_as == "soft",
        guard=guard_radius(facts, config),
    )
    dataset.replace_column("label", found.label)
    dataset.replace_column(SOFT, found.probability)
    return found


def guard_radius(facts: Facts, config: TrainConfig) -> float:
    """Least distance of rows of different splits, arcsec; by default two cutouts share no pixel."""
    if config.guard is not None:
        return config.guard
    h, w = facts.size
    # Corner to corner, two cutouts share pixels if they are nearer than the diagonal of one.
    return float(np.hypot(h, w)) * facts.pixel_scale


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
    dataset = TensorDataset(artefacts, class_map=source.class_map, psf_input=config.psf_input)
    usable = np.zeros(dataset.total, bool)
    usable[dataset.rows] = True
    split, held, _ = _split_rows(dataset, facts, usable, config)
    # Two surveys of one sky: a training row of either may share pixels with a test row of the other.
    places = positions(source.dataset), positions(dataset)
    ra, dec = (np.concatenate([place[k] for place in places]) for k in (0, 1))
    both = np.concatenate([source.split, split])
    if guard := max(source.held.guard, held.guard):
        both = drop_neighbours(ra, dec, both, radius=guard)
    first, split = np.split(both, [len(source.split)])
    if not (split == TRAIN).any():
        raise DataError(
            "--target has no row on the training sky", hint="give more sky, or another --split-seed"
        )
    target = TargetSet(dataset, facts, split, held.inputs)
    # What either domain was trained on counts as seen when the model scores.
    if same_rule(source.held, held):
        return replace(source, target=target, split=first, held=merged(held, source.held))
    return replace(source, target=target, split=first, ancestors=(*source.ancestors, held))


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


def galaxies(data: TrainingSet, config: TrainConfig) -> Rows:
    """Training rows with a label that is not the lens, so that no arc is put beside another galaxy."""
    rows = data.rows(TRAIN)
    label = data.labels[rows]
    names = data.class_map or LENS_MAP
    if config.task == "classes":
        at, found = ranked_class(names, config.lens_class, name="neighbours")
        lens = (label == at) if found else (label != at)
    else:  # a regression need not name its classes
        wanted = plain_class(config.lens_class or "lens")
        lens = np.isin(label, [int(k) for k, name in names.items() if plain_class(name) == wanted])
    # A regression needs no labels, and a row without one may be a lens.
    kept: Rows = rows[~lens & (label >= 0)]
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


def _too_faint(dataset: TensorDataset, class_map: dict[str, str], config: TrainConfig) -> NDArray[np.bool_]:
    """`(total,)` lenses whose arc is fainter than `min_arc_snr`; arcs of unknown S/N stay.

    Raises
    ------
    DataError
        The tensors have no column `arc_snr`.
    """
    if not config.min_arc_snr:
        return np.zeros(dataset.total, bool)
    lens = 1 if config.task == "lens" else ranked_class(class_map, config.lens_class, name="--min-arc-snr")[0]
    snr = np.asarray(dataset.column("arc_snr"), np.float64)
    return np.asarray((np.asarray(dataset.column("label")) == lens) & (snr < config.min_arc_snr))


def _split_rows(
    dataset: TensorDataset, facts: Facts, usable: NDArray[np.bool_], config: TrainConfig
) -> tuple[NDArray[np.int8], Split, tuple[str, ...]]:
    """Split by the column given, by tract, patch or block of sky, or, without positions, by id.

    Returns the splits, how they were made, and notes.
    """
    ra, dec = positions(dataset)
    by: By = "column" if config.split_column else config.split_by
    if by == "sky" and not np.isfinite(ra[usable] + dec[usable]).all():
        by = "id"
    guard = guard_radius(facts, config)
    held = Split(
        by=by,
        inputs=tuple(a.digest for a in dataset.artefacts),
        seed=config.split_seed,
        fractions=config.fractions,
        nside=config.nside,
        column=config.split_column or "",
        guard=guard,
    )
    columns, notes = catalog(dataset, config.split_column), []
    split = np.where(usable, by_rule(held, columns), -1).astype(np.int8)
    if by == "column":
        notes.append("split as given by the data")
        # Before any row is dropped: published splits may share objects.
        check_leakage(ra, dec, split)
        if not (split == VALIDATION).any():
            held = held.model_copy(update={"validation_drawn": True})
            split = np.where(usable, by_rule(held, columns), -1).astype(np.int8)
            notes.append("the data have no validation rows: drawn from the training rows by id")
    if by == "id":
        notes.append(
            "rows without positions: split by id, so neighbours on the sky may lie in different splits"
        )
    kept = drop_neighbours(ra, dec, split, radius=guard) if guard > 0 else split
    if dropped := int((kept != split).sum()):
        notes.append(
            f"{dropped} rows were left out: they lie within {guard:.1f} arcsec of a row of another split"
        )
    return kept, with_cells(held, ra, dec, kept), tuple(notes)


def catalog(dataset: TensorDataset, column: str | None = None) -> Columns:
    """The columns that tell which rows are held out, as far as the tensors have them; `(total,)` each."""
    found = {}
    for name in ("id", "ra", "dec", "tract", "patch", *((column,) if column else ())):
        try:
            found[name] = np.asarray(dataset.column(name))
        except DataError:  # which ones are needed is known to the rule that needs them
            if name == column:
                raise
    return found


def without_seen(data: TrainingSet, config: TrainConfig) -> TrainingSet:
    """The set without held-out rows that the model of `--init`, or one before it, was trained on.

    Raises
    ------
    ConfigError
        Its rows were held out by the same rule with other numbers.
    """
    assert config.init is not None
    base = load_contract(config.init)
    splits = (base.split, *base.ancestors) if base.split else (Split(), *base.ancestors)
    ancestors = lineage(splits, data.held)
    used = np.concatenate([
        verdicts(ancestors, a.digest, part, len(part["id"])) for a, part in _by_artefact(data, config)
    ])  # fmt: skip
    kept, test = data.split.copy(), data.split == TEST
    kept[test & ((used == TRAIN) | (used == VALIDATION))] = -1
    kept[(data.split == VALIDATION) & (used == TRAIN)] = -1
    # Rows that may have been seen, at the border of training sky, are no test rows if there are proven ones.
    proven = replace(data, split=np.where(test & (used != TEST), -1, kept).astype(np.int8))
    unseen = set(np.unique(data.labels[test])) <= set(np.unique(proven.labels[proven.split == TEST]))
    found = proven if unseen and (proven.split == TEST).any() else replace(data, split=kept)
    notes = list(data.notes)
    if dropped := int((found.split != data.split).sum()):
        notes.append(f"{dropped} held-out rows were left out: {config.init} may have been trained on them")
    if not unseen:
        notes.append(f"split unknown: the test rows may be training rows of {config.init}")
    return replace(found, ancestors=ancestors, unseen=unseen, notes=tuple(notes))


def _by_artefact(data: TrainingSet, config: TrainConfig) -> list[tuple[Artefact, Columns]]:
    """Each artefact with the columns of its rows."""
    whole, first = catalog(data.dataset, config.split_column), 0
    found: list[tuple[Artefact, Columns]] = []
    for artefact in data.dataset.artefacts:
        last = first + sum(shard.rows for shard in artefact.shards)
        found.append((artefact, {name: column[first:last] for name, column in whole.items()}))
        first = last
    return found


def positions(dataset: TensorDataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`(total,)` ra and dec, deg ICRS; NaN when the shards have none."""
    try:
        return np.asarray(dataset.column("ra"), np.float64), np.asarray(dataset.column("dec"), np.float64)
    except DataError:  # cutouts from elsewhere may have no positions
        nowhere = np.full(dataset.total, np.nan)
        return nowhere, nowhere


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
