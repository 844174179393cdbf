"""Options of train, score, explain, import-model and export-model; this module does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ripple.config import Config, neutral, setting


class ImportModelConfig(Config):
    """Options of `ripple import-model`."""

    verb: ClassVar[str] = "import-model"

    source: Path = Field(description="Checkpoint: .safetensors, .pt/.pth (state_dict or TorchScript), .onnx.")
    sidecar: Path = Field(description="YAML or JSON file with the fields of the contract (see model.json).")
    output: Path = Field(description="Model directory to write.")
    lens_class: str = Field("", description="Class that is ranked, where no class is called lens.")


class ExportModelConfig(Config):
    """Options of `ripple export-model`."""

    verb: ClassVar[str] = "export-model"

    model: Path = Field(description="Model directory.")
    output: Path = Field(description="File to write; the contract is written beside it.")
    format: Literal["onnx", "pt2"] = Field(
        "onnx", description="onnx, or pt2: a program of torch.export, for torch.export.load."
    )
    with_preprocess: bool = Field(
        False, description="Also write the normalisation and the sigmoid: from fluxes in nJy to scores."
    )


class ExplainConfig(Config):
    """Options of `ripple explain`."""

    verb: ClassVar[str] = "explain"

    # Neutral, because the pages record the digests of model and tensors: paths do not matter.
    model: Path = neutral(description="Model directory.")
    tensors: tuple[Path, ...] = neutral(
        min_length=1, description="Tensor artefacts with the candidates to explain."
    )
    output: Path = neutral(description="Directory for the pages.")

    ids: tuple[str, ...] = Field(
        (), description="Ids of the candidates to explain; default: the best-scored ones."
    )
    top: Annotated[int, Field(ge=0, le=500)] = Field(
        10, description="Number of best-scored candidates to explain."
    )
    training: tuple[Path, ...] = Field(
        (), description="Tensors the model was trained on, for pictures of neighbours; default: as recorded."
    )
    before: Path | None = Field(
        None, description="Another model, whose latent space is shown beside that of this one."
    )
    neighbours: Annotated[int, Field(ge=1, le=50)] = setting(6, description="Nearest training rows to show.")
    steps: Annotated[int, Field(ge=2)] = setting(
        64, description="Integration steps of the integrated gradients."
    )
    points: Annotated[int, Field(ge=10)] = setting(
        800, description="Rows to draw in the plots of the latent space."
    )
    embedding: Literal["pca", "umap"] = Field(
        "pca", description="Projection of the latent space; umap needs the extra `explain`."
    )
    seed: Annotated[int, Field(ge=0)] = setting(0, description="Seed of the choice of rows and of UMAP.")

    device: str = neutral("auto", description="cpu, cuda or cuda:1; auto uses a GPU if there is one.")


OpenFraction = Annotated[float, Field(gt=0, lt=1)]


# What may be done to tensors that a model does not take as they are, in score and embed alike.
Crop = Annotated[bool, Field(description="Crop larger images to the size the model takes.")]
ReorderBands = Annotated[bool, Field(description="Select and order the bands of the model by name.")]
Resample = Annotated[
    bool, Field(description="Interpolate images of another pixel scale to that of the model.")
]

#: Neutral, because the engine that was used is among the inputs of the scores.
ENGINE = (
    "What computes the network: torch, or onnx (ONNX Runtime, on CPUs); auto takes onnx for 20,000 rows and "
    "more where it is installed and agrees to 1e-5."
)


# Not neutral, because it changes scores.
Precision = Annotated[
    Literal["fp32", "bf16"],
    Field(
        description="bf16: PyTorch computes all but the last layer of the network in bfloat16, which is "
        "meant for GPUs; scores change by about 1e-2, ood by a few per cent."
    ),
]


class ScoreConfig(Config):
    """Options of `ripple score`."""

    verb: ClassVar[str] = "score"

    model: Path = neutral(description="Model directory.")  # its digest is recorded, not its path
    tensors: tuple[Path, ...] = Field(min_length=1, description="Tensor artefacts to score.")
    output: Path = neutral(description="Directory for the scores.")

    crop: Crop = False
    reorder_bands: ReorderBands = False
    resample: Resample = False
    tta: bool = Field(
        True, description="Average over the 8 quarter turns and flips, unless the network is invariant."
    )
    mc_dropout: Annotated[int, Field(ge=0, le=1000)] = Field(
        0, description="Passes with dropout per member, for `spread`; needs a model trained with dropout."
    )
    precision: Precision = "fp32"
    rank_by: str = Field(
        "", description="Class to rank by, for a model of several classes; default: the lens class."
    )
    prevalence: OpenFraction | None = Field(
        None,
        description="Fraction of lenses (or of --rank-by) among the sources, for `probability`; default: "
        "that of lenses_per_deg2 and sources_per_deg2.",
    )
    top: Annotated[int, Field(ge=0)] = Field(
        100, description="Number of best rows to write to top.csv; 0 for none."
    )

    evaluate: bool = Field(
        False, description="Evaluate the scores of labelled rows on sky the model was not trained on."
    )
    stress: bool = Field(
        False, description="Also measure robustness: disturb labelled rows on sky not trained on."
    )
    stress_rows: Annotated[int, Field(ge=1)] = setting(500, description="Number of rows to disturb.")
    attacked_rows: Annotated[int, Field(ge=1)] = setting(
        50, description="Number of rows for the one-pixel attack."
    )
    # Five times the noise of a pixel in the benchmark, docs/benchmark.md; stated before any training.
    visible_sb: float = setting(
        26.0, description="Arcs brighter than this surface brightness (mag/arcsec^2) count as visible."
    )
    # About 10^5 lenses on the 18,000 deg^2 of LSST.
    lenses_per_deg2: Annotated[float, Field(gt=0)] = setting(6.0, description="True lenses per deg^2 of sky.")
    sources_per_deg2: Annotated[float, Field(gt=0)] = setting(
        1e4, description="Extended sources per deg^2 of sky that would be scored."
    )
    draws: Annotated[int, Field(ge=10)] = setting(
        500, description="Bootstrap replicates for the confidence intervals."
    )
    seed: Annotated[int, Field(ge=0)] = setting(0, description="Seed of the bootstrap.")

    batch_size: Annotated[int, Field(ge=1)] = setting(256, neutral=True, description="Rows per batch.")
    device: str = neutral("auto", description="cpu, cuda or cuda:1; auto uses a GPU if there is one.")
    engine: Literal["auto", "torch", "onnx"] = neutral("auto", description=ENGINE)
    threads: Annotated[int, Field(ge=0)] = neutral(0, description="CPU threads; 0 for all cores.")
    dask: str | None = neutral(
        None, description="Score the shards on a Dask cluster: tcp://HOST:PORT of a scheduler, or slurm."
    )
    dask_settings: dict[str, Any] = neutral({}, description="Settings of the batch system for `dask: slurm`.")
    deadline: float = setting(
        3600.0, neutral=True, gt=0, description="Seconds a shard may take on the cluster before it is lost."
    )


Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
PsfInput = Literal["none", "width"]
Adapt = Literal[
    "none", "adabn", "mmd", "coral", "dann", "adda", "wdgrl", "kmeans", "teacher", "universal", "supervised"
]


class TrainConfig(Config):
    """Options of `ripple train`."""

    verb: ClassVar[str] = "train"

    tensors: tuple[Path, ...] = Field(min_length=1, description="Tensor artefacts to learn from.")
    output: Path = neutral(description="Model directory to write.")

    task: Literal["lens", "classes", "regression"] = Field(
        "lens",
        description="lens: lens or not; classes: one of class_map; regression: the columns of --targets.",
    )
    lens_class: str = Field("", description="Class that is ranked, where no class is called lens.")
    labels: tuple[Path, ...] = neutral(  # their digests are recorded, not their paths
        (), description="Candidates of `ripple consensus`: their grades are labels of rows that have none."
    )
    labels_as: Literal["hard", "soft"] = Field(
        "hard",
        description="hard: lens or not, without objects that graders left open; soft: the fused probability.",
    )
    min_arc_snr: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Leave out lenses with a smaller `arc_snr`: the label says what no picture shows."
    )
    targets: tuple[str, ...] = Field((), description="Catalogue columns to regress, for example theta_E.")
    network: str = Field("d4cnn", description="Network by name: d4cnn, resnet18, convnextv2_atto, ...")
    stem: Literal["small", "standard"] = Field(
        "small", description="First layers suited to cutouts of about 64 px, or as published for 224 px."
    )
    width: Count = Field(8, description="Fields of the first layer of d4cnn, eight channels each.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Fraction of features dropped before the head, in training and for --mc-dropout."
    )
    psf_input: PsfInput = Field(
        "none", description="width: the network also sees how wide the PSF of each band is."
    )
    pretrained: bool = Field(False, description="Start timm networks from ImageNet weights (downloads them).")
    init: Path | None = Field(None, description="Fine-tune from this model directory, member by member.")
    freeze: Literal["none", "stem", "backbone"] = Field("none", description="Layers that are not trained.")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = setting(
        1.0, description="Factor on the learning rate from each layer to the one before it."
    )

    adapt: Adapt = Field(
        "none", description="Domain adaptation to the rows of --target, which need no labels."
    )
    target: tuple[Path, ...] = Field((), description="Tensor artefacts of the data set to adapt to.")
    adapt_weight: Positive | None = setting(
        None,
        description="Weight of the adaptation loss at the end of training; default: 0.1 for coral, else 1.",
    )
    adapt_start: Annotated[float, Field(ge=0, lt=1)] = setting(
        0.3, description="Fraction of the epochs, at the start, that learn from the source only."
    )
    target_prevalence: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Fraction of lenses assumed for the target; default: that of the training rows."
    )
    target_labels: Annotated[int, Field(ge=0)] = Field(
        0, description="Number of labelled target rows that --adapt supervised may use."
    )
    labelled_rows: Annotated[int, Field(ge=0)] = Field(
        0, description="Number of training and validation rows to use, both together; 0 for all."
    )

    epochs: Count = Field(30, description="Largest number of epochs.")
    batch_size: Annotated[int, Field(ge=2)] = Field(64, description="Rows per batch and process.")
    lr: Positive = Field(3e-3, description="Peak learning rate of the head.")
    weight_decay: Annotated[float, Field(ge=0)] = setting(0.05, description="Weight decay of AdamW.")
    warmup: Annotated[float, Field(ge=0)] = setting(1.0, description="Epochs of linear warm-up.")
    clip: Annotated[float, Field(ge=0)] = setting(1.0, description="Largest gradient norm; 0 for no limit.")
    # 0.98 averages over about 50 steps, a fraction of an epoch of the benchmark.
    ema: Annotated[float, Field(ge=0, lt=1)] = setting(
        0.98, description="Decay of the moving average of the weights per step; 0 for no average."
    )
    # Long beside the warm-up; with --adapt the last epoch is kept and patience never ends a run.
    patience: Count = Field(10, description="Stop after this many epochs without a better validation metric.")
    # PR-AUC by default: lenses are rare, and it weighs purity where AUROC hardly sees false positives.
    select: Literal["pr_auc", "tpr_at_fpr", "auroc"] = setting(
        "pr_auc", description="Validation metric that selects the best epoch."
    )
    loss: Literal["bce", "focal"] = Field("bce", description="Cross-entropy or focal loss.")
    focal_gamma: Annotated[float, Field(ge=0)] = setting(2.0, description="Exponent of the focal loss.")
    balance: Literal["sampler", "weights", "none"] = setting(
        "sampler", description="Against class imbalance: draw classes evenly, weight the loss, or neither."
    )
    augment: bool = Field(True, description="Random quarter turns and flips.")
    shift: Annotated[int, Field(ge=0, le=16)] = setting(
        2, description="Random shifts of up to this many pixels."
    )
    noise: Annotated[float, Field(ge=0)] = setting(
        0.0, description="Sigma of added noise at most, in tensor units."
    )
    blur: Annotated[float, Field(ge=0)] = setting(0.0, description="Sigma of added blur at most, in pixels.")
    sky: Annotated[float, Field(ge=0)] = setting(
        0.0, description="Scatter of a level added to each band (a sky residual), in tensor units."
    )
    seeing: Annotated[float, Field(ge=0, le=3)] = setting(
        0.0, description="Broaden PSFs, before the stretch, by a Gaussian of up to this FWHM, arcsec."
    )
    depth: Annotated[float, Field(ge=0, le=5)] = setting(
        0.0, description="Add noise, before the stretch: bands up to this many magnitudes less deep."
    )
    zero_point: Annotated[float, Field(ge=0, le=1)] = setting(
        0.0, description="Scatter of the zero points of the bands, magnitudes."
    )
    drop_band: Fraction = setting(0.0, description="Share of rows that lose one of their bands.")
    subpixel: Annotated[float, Field(ge=0, le=4)] = setting(
        0.0, description="Random shifts of up to this many pixels and fractions of them, before the stretch."
    )
    neighbours: Fraction = setting(
        0.0, description="Share of rows that get the galaxy of another training row beside their own."
    )
    background: Annotated[float, Field(ge=0, le=10)] = setting(
        0.0,
        description="Scatter of a sky residual, a level and a slope in each band, in units of the noise of a "
        "pixel. It is light, added before the stretch; `sky` shifts the stretched image, so that it changes "
        "bright pixels by more flux than faint ones.",
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Seed of weights, order and augmentation.")
    seeds: Annotated[int, Field(ge=1, le=100)] = Field(1, description="Number of networks in the ensemble.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto uses bf16 on GPUs that have it, and fp32 otherwise."
    )

    fractions: tuple[Fraction, Fraction, Fraction] = Field(
        (0.7, 0.15, 0.15), description="Fractions of the sky for training, validation and test."
    )
    nside: Count = Field(2048, description="HEALPix nside of the blocks of sky that stay together.")
    split_seed: Annotated[int, Field(ge=0)] = Field(
        0, description="Seed of the assignment of blocks to splits."
    )
    split_by: Literal["sky", "tract", "patch"] = Field(
        "sky",
        description="What is held out together: blocks of sky (--nside), tracts or patches. Blocks share "
        "PSF and background: for a number to report, split by tract or patch.",
    )
    split_column: str | None = Field(
        None,
        description="Column with train, validation or test, for data with a published split; if it has no "
        "validation rows, some of the training rows are used.",
    )
    guard: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Least distance of rows of different splits, arcsec; default: diagonal of a cutout."
    )
    operating_fpr: Fraction = setting(
        0.01, description="False positive rate of the operating point, on validation sky."
    )
    calibration: Literal["none", "temperature", "isotonic"] = Field(
        "temperature", description="Map from score to probability, fitted on validation sky."
    )
    # docs/benchmark.md: the closest gate of the benchmark, the radial profile, has 0.642.
    gate_limit: Fraction = setting(0.65, description="AUROC that no shortcut may reach.")
    gate_distance: Fraction = setting(
        0.1, description="How far a shortcut's AUROC must stay below that of the network."
    )
    gate_rows: Count = setting(20000, description="Largest number of rows for the shortcut gates.")
    draws: Count = Field(500, description="Bootstrap replicates for the confidence intervals.")
    licence: str = Field("", description="Licence of the weights, written into the contract.")

    # Neutral: rounding apart, none of these changes the model.
    strict: bool = neutral(False, description="Fail when a shortcut comes too close to the network.")
    device: str = neutral("auto", description="cpu, cuda or cuda:1; auto uses a GPU if there is one.")
    threads: Annotated[int, Field(ge=0)] = neutral(0, description="CPU threads; 0 for all cores.")
    compile: bool = setting(
        False, neutral=True, description="Use torch.compile (worth it on GPUs and in long runs)."
    )
    tensorboard: bool = neutral(False, description="Also write TensorBoard events (extra `tensorboard`).")

    # Contradictions are refused when options are read, long before any tensor is opened.
    @model_validator(mode="after")
    def _together(self) -> Self:
        if abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"fractions {self.fractions} do not sum to 1")
        if (self.task == "regression") != bool(self.targets):
            raise ValueError("--targets and --task regression belong together")
        if self.min_arc_snr and self.task == "regression":
            raise ValueError("--min-arc-snr is about lenses, but the task is regression")
        if self.labels_as == "soft" and not self.labels:
            raise ValueError("--labels-as belongs to --labels")
        if self.labels and self.task == "regression":
            raise ValueError("--labels: grades are of classes, but the task is regression")
        if self.labels_as == "soft" and self.task != "lens":
            raise ValueError("--labels-as soft: grades give the probability of a lens, not of every class")
        if self.task == "regression" and self.lens_class:
            raise ValueError("--lens-class needs classes, but the task is regression")
        if self.task != "lens" and self.calibration == "isotonic":
            raise ValueError("--calibration isotonic is of lens finders; several classes take temperature")
        if self.freeze != "none" and self.init is None and not self.pretrained:
            raise ValueError("freeze needs weights to start from: give --init or --pretrained")
        return self

    @model_validator(mode="after")
    def _adaptation(self) -> Self:
        if (self.adapt != "none") != bool(self.target):
            raise ValueError("--adapt METHOD and --target TENSORS belong together")
        if self.task == "regression" and self.adapt in ("kmeans", "teacher", "universal", "supervised"):
            raise ValueError(f"--adapt {self.adapt} needs classes, but the task is regression")
        if (self.adapt == "supervised") != bool(self.target_labels):
            raise ValueError("--target-labels belongs to --adapt supervised, which needs it")
        if self.target_prevalence is not None and (self.adapt == "none" or self.task != "lens"):
            raise ValueError("--target-prevalence can only be used with --adapt and --task lens")
        if self.adapt == "teacher" and not self.ema:
            raise ValueError("--adapt teacher needs the moving average: --set ema=0.98")
        if self.adapt == "teacher" and self.psf_input != "none":
            raise ValueError(
                "--adapt teacher blurs images itself, so that --psf-input width would be wrong for them"
            )
        if self.blur and self.psf_input != "none":
            raise ValueError(
                "blur broadens images, of which --psf-input would not know: use --set seeing= instead"
            )
        if self.adapt != "none" and self.compile:
            raise ValueError("--compile cannot be combined with --adapt")
        return self
