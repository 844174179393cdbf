"""`LensSearchTask`: the search of a patch as a quantum; its rows are those of `ripple search` there."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pyarrow.parquet as pq
from lsst.daf.butler import DataCoordinate, DeferredDatasetHandle
from lsst.daf.butler.formatters.parquet import arrow_to_astropy
from lsst.pex.config import ChoiceField, DictField, Field, ListField
from lsst.pipe.base import (
    InputQuantizedConnection,
    InvalidQuantumError,
    NoWorkFound,
    OutputQuantizedConnection,
    PipelineTask,
    PipelineTaskConfig,
    PipelineTaskConnections,
    QuantaAdjuster,
    QuantumContext,
    RepeatableQuantumError,
    Struct,
    connectionTypes,
)

from ripple.errors import ConfigError, ContractError, InputError, NoTargetsError
from ripple.imaging.quality.judge import Thresholds
from ripple.learn.scoring.ranking import SORTED
from ripple.pipeline.cutouts import cutout_table
from ripple.pipeline.inputs import QuantumInputs
from ripple.runtime.profile import Profile
from ripple.stages.fetch.fetch import FetchInputs, trusted_plan
from ripple.stages.plan.config import check_selection
from ripple.stages.plan.plan import Plan
from ripple.stages.plan.planner import Planner
from ripple.stages.plan.targets import Targets
from ripple.stages.search.config import SearchConfig
from ripple.stages.search.detections import DETECTIONS
from ripple.stages.search.keep import best_rows
from ripple.stages.search.search import Stages, check_survey, search_plan, stages_of
from ripple.storage.manifest import INDEX

_PATCH = ("skymap", "tract", "patch")
#: Steps from a patch to the eight around it.
_AROUND = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if (dx, dy) != (0, 0)]


class LensSearchConnections(
    PipelineTaskConnections,
    dimensions=_PATCH,
    defaultTemplates={"coadd": "deep_coadd", "object": "object", "lens": "lens"},
):
    """Coadds of a patch in all bands to scores, and to one reason per target."""

    coadds = connectionTypes.Input(
        doc="Coadds of the patch, one per band, and those of the patches around it.",
        name="{coadd}",
        storageClass="CellCoadd",
        dimensions=(*_PATCH, "band"),
        multiple=True,
        deferLoad=True,
    )
    objects = connectionTypes.Input(
        doc="Object table of the tract: its rows in the inner region of the patch are the targets.",
        name="{object}",
        storageClass="ArrowAstropy",
        dimensions=("skymap", "tract"),
        deferLoad=True,
    )
    scores = connectionTypes.Output(
        doc="The rows that were scored, best first: scores.parquet of `ripple search`.",
        name="{lens}_scores",
        storageClass="ArrowAstropy",
        dimensions=_PATCH,
    )
    targets = connectionTypes.Output(
        doc="One row per target with its status and reason: index.parquet of `ripple search`.",
        name="{lens}_targets",
        storageClass="ArrowAstropy",
        dimensions=_PATCH,
    )
    detections = connectionTypes.Output(
        doc="Best windows of a blind search: detections.parquet of `ripple search`.",
        name="{lens}_detections",
        storageClass="ArrowAstropy",
        dimensions=_PATCH,
    )
    cutouts = connectionTypes.Output(
        doc="Cutouts of the best rows: images, variances and masks in all bands.",
        name="{lens}_cutouts",
        storageClass="ArrowAstropy",
        dimensions=_PATCH,
    )

    def __init__(self, *, config: LensSearchConfig) -> None:
        self.coadds = dataclasses.replace(self.coadds, storageClass=config.coadd_storage_class)
        if config.targets is not None or config.grid is not None:
            del self.objects
        if config.grid is None:
            del self.detections
        if not config.keep and config.keep_above is None:
            del self.cutouts

    def adjust_all_quanta(self, adjuster: QuantaAdjuster) -> None:
        """Give each patch the coadds of the patches around it as well, as far as they are in the graph.

        Their borders have what a patch that lacks a band can still know of it. They are opened only for boxes
        that need them.
        """
        place: dict[tuple[Any, ...], DataCoordinate] = {}
        coadds: dict[tuple[Any, ...], list[DataCoordinate]] = {}
        for data_id in adjuster.iter_data_ids():
            record: Any = adjuster.expand_quantum_data_id(data_id).records["patch"]
            at = data_id["skymap"], data_id["tract"], record.cell_x, record.cell_y
            place[at], coadds[at] = data_id, adjuster.get_inputs(data_id)["coadds"]
        for (skymap, tract, x, y), data_id in place.items():
            for dx, dy in _AROUND:
                for coadd in coadds.get((skymap, tract, x + dx, y + dy), ()):
                    adjuster.add_input(data_id, "coadds", coadd)


def _doc(name: str) -> str:
    """What `ripple search` says about an option."""
    return str(SearchConfig.model_fields[name].description)


def _default(name: str) -> Any:
    value = SearchConfig.model_fields[name].default
    return list(value) if isinstance(value, tuple) else value


def _field(name: str, kind: type) -> Any:
    """The option of `ripple search` of this name, with its text and its default."""
    return Field(dtype=kind, doc=_doc(name), default=_default(name), optional=True)


def _list(name: str) -> Any:
    return ListField(dtype=str, doc=_doc(name), default=_default(name))


def _choice(name: str, *values: str) -> Any:
    allowed = {value: value for value in values}
    return ChoiceField(dtype=str, doc=_doc(name), allowed=allowed, default=_default(name), optional=True)


#: Options that are given to `ripple search` as they are.
_SHARED = (
    "id_column",
    "ra_column",
    "dec_column",
    "label_column",
    "classes",
    "ra_unit",
    "hdu",
    "select",
    "duplicate_radius",
    "require_all_bands",
    "edge",
    "targets",
    "grid",
    "separation",
    "refine",
    "missing_band",
    "zero_point",
    "registration",
    "tta",
    "precision",
    "rank_by",
    "prevalence",
    "lenses_per_deg2",
    "sources_per_deg2",
    "device",
    "engine",
    "batch_size",
)


class LensSearchConfig(PipelineTaskConfig, pipelineConnections=LensSearchConnections):
    """Options of `LensSearchTask`: those of `ripple search` by their names, and what the engine decides."""

    model: Any = Field(dtype=str, doc="Model directory, which all workers must see.", default="")
    bands: Any = ListField(
        dtype=str,
        doc="Bands of the survey. A band of the model that is not among them is refused; one that a patch "
        "lacks makes its rows partial. Empty: a patch must have all bands of the model.",
        default=[],
    )
    coadd_storage_class: Any = Field(
        dtype=str,
        doc="Storage class of the coadds as registered: CellCoadd or ExposureF.",
        default="CellCoadd",
    )
    targets = _field("targets", str)
    hdu = _field("hdu", str)
    id_column = _field("id_column", str)
    ra_column = _field("ra_column", str)
    dec_column = _field("dec_column", str)
    ra_unit = _choice("ra_unit", "deg", "hour")
    label_column = _field("label_column", str)
    classes = _list("classes")
    select = _field("select", str)
    duplicate_radius = _field("duplicate_radius", float)
    grid = _field("grid", float)
    separation = _field("separation", float)
    refine = _field("refine", bool)
    require_all_bands = _field("require_all_bands", bool)
    edge = _choice("edge", "pad", "reject")
    missing_band = _choice("missing_band", "reject", "flag", "ignore")
    thresholds: Any = DictField(
        keytype=str,
        itemtype=float,
        doc="Thresholds of quality flags by name (max_bad, min_psf, ...); those of `ripple search` else.",
        default={},
    )
    reject: Any = ListField(
        dtype=str,
        doc="Quality flags that reject a row; the others only mark it.",
        default=list(Thresholds.model_fields["reject"].default),
    )
    zero_point = _list("zero_point")
    registration = _field("registration", bool)
    tta = _field("tta", bool)
    precision = _choice("precision", "fp32", "bf16")
    rank_by = _field("rank_by", str)
    prevalence = _field("prevalence", float)
    lenses_per_deg2 = _field("lenses_per_deg2", float)
    sources_per_deg2 = _field("sources_per_deg2", float)
    keep: Any = Field(dtype=int, doc="Write the cutouts of so many best rows of each patch.", default=0)
    keep_above: Any = Field(
        dtype=float, doc="Write the cutouts of all rows above this probability instead.", optional=True
    )
    device = _field("device", str)
    # No `auto`: it goes by the number of rows, and the patches of a run would be scored by two engines.
    engine: Any = ChoiceField(
        dtype=str,
        doc="PyTorch, or ONNX Runtime, which is faster on CPUs from some ten thousand rows per patch on.",
        allowed={"torch": "PyTorch", "onnx": "ONNX Runtime"},
        default="torch",
    )
    batch_size = _field("batch_size", int)

    def search(self, tract: int, patch: int, output: str) -> SearchConfig:
        """The options of `ripple search` for a patch.

        Raises
        ------
        ConfigError
            Options that are wrong or contradict each other.
        """
        if not self.model:
            raise ConfigError("LensSearchTask: no model", hint="give one with -c LABEL:model=DIRECTORY")
        values = {name: getattr(self, name) for name in _SHARED}
        values = {
            name: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
            for name, value in values.items()
            if value is not None
        }
        given: dict[str, Any] = {"model": self.model, "output": output, "tract": [tract], "patch": [patch]}
        given["quality"] = {**dict(self.thresholds), "reject": list(self.reject)}
        if self.keep and self.keep_above is not None:
            raise ConfigError("LensSearchTask: keep and keep_above exclude each other")
        if self.keep or self.keep_above is not None:
            given["keep"] = str(self.keep) if self.keep else f"P>{self.keep_above:.9f}"
        # This process does the work: the engine decides how many there are.
        return SearchConfig.make({**values, **given, "workers": 0})


class LensSearchTask(PipelineTask):
    """Score the objects of a patch, or windows on a grid, with a RIPPLe model.

    Cutouts and tensors exist in memory only. The rows are those of `ripple search --tract T --patch P` with
    the same options; which objects of other patches a row repeats is not known here.
    """

    ConfigClass: ClassVar[type[LensSearchConfig]] = LensSearchConfig
    _DefaultName: ClassVar[str] = "lensSearch"
    config: LensSearchConfig

    def runQuantum(  # noqa: N802 - the name of the base class
        self,
        butlerQC: QuantumContext,
        inputRefs: InputQuantizedConnection,
        outputRefs: OutputQuantizedConnection,
    ) -> None:
        """Search a patch and put the tables.

        Raises
        ------
        InvalidQuantumError
            The configuration, or the contract of the model, does not fit the survey: no patch would do.
        RepeatableQuantumError
            Other input of this patch that is wrong.
        NoWorkFound
            No target lies in the inner region of the patch.
        """
        try:
            data_id: Any = butlerQC.quantum.dataId
            found = self.run(**butlerQC.get(inputRefs), patch=int(data_id["patch"]))
        except NoTargetsError as err:
            raise NoWorkFound(str(err)) from err
        except (ConfigError, ContractError) as err:
            raise InvalidQuantumError(f"{type(err).__name__}: {err}") from err
        except InputError as err:
            raise RepeatableQuantumError(f"{type(err).__name__}: {err}") from err
        butlerQC.put(found, outputRefs)

    def run(
        self,
        coadds: Sequence[DeferredDatasetHandle],
        patch: int,
        objects: DeferredDatasetHandle | None = None,
    ) -> Struct:
        """Search a patch.

        Parameters
        ----------
        coadds
            Handles of the coadds of the patch, one per band, and of patches around it.
        patch
            Its number in the tract.
        objects
            Handle of the object table of its tract; not with `targets` or `grid` in the configuration.

        Returns
        -------
        Struct with astropy tables: `scores`, best first; `targets`, one row per target; with `grid` the
        `detections`; with `keep` the `cutouts` of the best (`ripple.pipeline.cutouts`).

        Raises
        ------
        NoTargetsError
            No target lies in the inner region of the patch.
        ContractError
            The model takes other bands or pixels, or larger cutouts than one patch holds.
        RippleError
            As for `ripple search`.
        """
        start, profile = time.perf_counter(), Profile()
        inputs = QuantumInputs.of(coadds, patch, objects, self.config.bands)
        # Scores are small: a few MB on the disk of the worker, through the code of the command line.
        with TemporaryDirectory(prefix="ripple-") as scratch:
            output = Path(scratch) / "found"
            config = self.config.search(inputs.tract, patch, str(output))
            check_selection(config)
            stages = stages_of(config)
            _check_bands(inputs, stages)
            with profile.time("query"):
                planner = Planner(stages.fetch, inputs)
                plan, identity = trusted_plan(stages.fetch, planner.plan())
            _check_patch(planner, plan, stages)

            def plan_of(targets: Targets) -> tuple[Plan, FetchInputs]:
                return trusted_plan(stages.fetch, planner.plan(targets))

            search_plan(config, stages, plan, identity, profile, start, plan_of)
            found = {"scores": output / SORTED, "targets": output / INDEX}
            if config.grid is not None:
                found["detections"] = output / DETECTIONS
            tables = {name: arrow_to_astropy(pq.read_table(path)) for name, path in found.items()}
            if config.keep:
                best = best_rows(found.get("detections", found["scores"]), config.keep)
                tables["cutouts"] = cutout_table(planner, stages.fetch, best)
        self.log.info("%s: %d of %d targets scored", inputs.name, len(tables["scores"]), len(plan.targets))
        return Struct(**tables)


def _check_bands(inputs: QuantumInputs, stages: Stages) -> None:
    """Refuse a model with a band that the survey does not have."""
    lacking = [band for band in stages.contract.bands if band not in inputs.survey_bands]
    if lacking:
        raise ContractError(
            f"the model takes bands {','.join(stages.contract.bands)}, and there is no"
            f" {inputs.coadd_type(None)} of {inputs.name} in {','.join(lacking)}",
            hint="another model; or name the bands of the survey in `bands` to search patches that lack some",
        )


def _check_patch(planner: Planner, plan: Plan, stages: Stages) -> None:
    """Refuse what a patch alone cannot give as the whole repository would."""
    check_survey(plan, stages.contract)
    if planner.skymap_source == "repository":
        raise ContractError(
            f"the geometry of sky map {plan.skymap} does not follow from one patch",
            hint="it takes a whole tract: ripple search",
        )
    side, border = stages.contract.size + 2 * plan.margin, planner.skymap.patches.border
    if side > 2 * border:
        raise ContractError(
            f"the cutouts of the model have {side} px with their margins, and patches share {2 * border} px",
            hint="cutouts of more than one patch take the whole repository: ripple search",
        )
