"""Options of the verbs of the finder: train, score, explain, import-model, export-model; no torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ripple.config import Config, neutral


class ImportModelConfig(Config):
    """Options of `ripple import-model`."""

    verb: ClassVar[str] = "import-model"

    source: Path = Field(description="Checkpoint: .safetensors, .pt/.pth (state_dict or TorchScript), .onnx.")
    sidecar: Path = Field(description="YAML or JSON with the fields of the contract (see model.json).")
    output: Path = Field(description="Model directory to write.")


class ExportModelConfig(Config):
    """Options of `ripple export-model`."""

    verb: ClassVar[str] = "export-model"

    model: Path = Field(description="Model directory.")
    output: Path = Field(description="File to write; a contract is written beside it.")
    format: Literal["onnx", "torchscript"] = Field("onnx", description="onnx or torchscript.")


class ExplainConfig(Config):
    """Options of `ripple explain`."""

    verb: ClassVar[str] = "explain"

    # The digests of model and tensors are in the identity of the pages.
    model: Path = neutral(description="Model directory.")
    tensors: tuple[Path, ...] = neutral(
        min_length=1, description="Tensor artefacts with the rows to explain."
    )
    output: Path = neutral(description="Directory of the pages.")

    ids: tuple[str, ...] = Field((), description="Rows to explain by id; default: the best-scored ones.")
    top: Annotated[int, Field(ge=0, le=500)] = Field(10, description="Best-scored rows to explain.")
    training: tuple[Path, ...] = Field(
        (), description="Tensors the model was trained on, for stamps of neighbours; default: as recorded."
    )
    before: Path | None = Field(None, description="Another model, for its latent space beside this one.")
    neighbours: Annotated[int, Field(ge=1, le=50)] = Field(6, description="Nearest training rows to show.")
    steps: Annotated[int, Field(ge=2)] = Field(64, description="Steps of the integrated gradients.")
    points: Annotated[int, Field(ge=10)] = Field(800, description="Rows of the latent space to draw.")
    embedding: Literal["pca", "umap"] = Field(
        "pca", description="Map of the latent space; umap needs the extra `explain`."
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Of the choice of rows and of UMAP.")

    device: str = neutral("auto", description="cpu, cuda, cuda:1; auto takes CUDA when there is some.")


OpenFraction = Annotated[float, Field(gt=0, lt=1)]


class ScoreConfig(Config):
    """Options of `ripple score`."""

    verb: ClassVar[str] = "score"

    model: Path = neutral(description="Model directory.")  # its digest is among the inputs
    tensors: tuple[Path, ...] = Field(min_length=1, description="Tensor artefacts to score.")
    output: Path = neutral(description="Directory for the scores.")

    crop: bool = Field(False, description="Cut larger images to the size of the model.")
    reorder_bands: bool = Field(False, description="Pick the bands of the model by name.")
    resample: bool = Field(False, description="Interpolate images of another pixel scale.")
    tta: bool = Field(
        True, description="Mean over the 8 quarter turns and flips, unless the network has them."
    )
    mc_dropout: Annotated[int, Field(ge=0, le=1000)] = Field(
        0,
        description="Passes with dropout per member, for `spread`; the model must have been trained with it.",
    )
    prevalence: OpenFraction | None = Field(
        None,
        description="OpenFraction of lenses among the sources, for `probability`; default: as in training.",
    )
    top: Annotated[int, Field(ge=0)] = Field(100, description="Rows of top.csv; 0 for none.")

    evaluate: bool = Field(False, description="Judge the scores of labelled rows on sky not trained on.")
    stress: bool = Field(
        False, description="Also disturb labelled rows of sky not trained on: the robustness card."
    )
    stress_rows: Annotated[int, Field(ge=1)] = Field(500, description="Rows that are disturbed.")
    attacked_rows: Annotated[int, Field(ge=1)] = Field(50, description="Rows of the one-pixel attack.")
    visible_sb: float = Field(
        26.0, description="Arcs brighter than this surface brightness (mag/arcsec^2) count as visible."
    )
    lenses_per_deg2: Annotated[float, Field(gt=0)] = Field(6.0, description="Lenses per deg^2 of real sky.")
    sources_per_deg2: Annotated[float, Field(gt=0)] = Field(
        1e4, description="Scored extended sources per deg^2 of real sky."
    )
    draws: Annotated[int, Field(ge=10)] = Field(500, description="Bootstrap replicates of the intervals.")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Of the bootstrap.")

    batch_size: Annotated[int, Field(ge=1)] = neutral(256, description="Rows per batch.")
    device: str = neutral("auto", description="cpu, cuda, cuda:1; auto takes CUDA when there is some.")
    threads: Annotated[int, Field(ge=0)] = neutral(0, description="CPU threads; 0 for all cores.")


Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
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
        description="lens: is it one; classes: which of class_map; regression: the columns of --targets.",
    )
    targets: tuple[str, ...] = Field((), description="Catalogue columns to regress, for example theta_E.")
    network: str = Field("d4cnn", description="Network by name: d4cnn, resnet18, convnextv2_atto, ...")
    stem: Literal["small", "standard"] = Field(
        "small", description="First layers for stamps of about 64 px, or as published for 224 px."
    )
    width: Count = Field(8, description="Fields of the first layer of d4cnn.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of features dropped before the head, for training and --mc-dropout."
    )
    pretrained: bool = Field(False, description="Start timm networks from ImageNet weights (a download).")
    init: Path | None = Field(None, description="Fine-tune from this model directory, member by member.")
    freeze: Literal["none", "stem", "backbone"] = Field("none", description="Layers that stay as they are.")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Factor on the learning rate per layer towards the input."
    )

    adapt: Adapt = Field(
        "none", description="Domain adaptation to the rows of --target, which need no labels."
    )
    target: tuple[Path, ...] = Field((), description="Tensor artefacts of the data set to adapt to.")
    adapt_weight: Positive = Field(1.0, description="Weight of the adaptation loss at the end.")
    adapt_start: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.3, description="Share of the epochs that learn from the source only."
    )
    target_prevalence: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Share of lenses assumed for the target; default: that of the training rows."
    )
    target_labels: Annotated[int, Field(ge=0)] = Field(
        0, description="Labelled target rows that --adapt supervised may learn from."
    )
    labelled_rows: Annotated[int, Field(ge=0)] = Field(
        0, description="Use so many rows of training and validation sky together; 0 for all."
    )

    epochs: Count = Field(30, description="Epochs at most.")
    batch_size: Annotated[int, Field(ge=2)] = Field(64, description="Rows per batch and process.")
    lr: Positive = Field(3e-3, description="Largest learning rate of the head.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.05, description="Weight decay of AdamW.")
    warmup: Annotated[float, Field(ge=0)] = Field(1.0, description="Epochs of linear warm-up.")
    clip: Annotated[float, Field(ge=0)] = Field(1.0, description="Largest gradient norm; 0 for no limit.")
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.98, description="Decay of the moving average of the weights; 0 for none."
    )
    patience: Count = Field(10, description="Epochs without a better validation metric before it stops.")
    select: Literal["pr_auc", "tpr_at_fpr", "auroc"] = Field(
        "pr_auc", description="Validation metric that chooses the best epoch."
    )
    loss: Literal["bce", "focal"] = Field("bce", description="Cross-entropy, or focal loss.")
    focal_gamma: Annotated[float, Field(ge=0)] = Field(2.0, description="Exponent of the focal loss.")
    balance: Literal["sampler", "weights", "none"] = Field(
        "sampler", description="Against imbalance: draw classes evenly, weight the loss, or neither."
    )
    augment: bool = Field(True, description="Random quarter turns and flips.")
    shift: Annotated[int, Field(ge=0, le=16)] = Field(2, description="Random shifts up to so many pixels.")
    noise: Annotated[float, Field(ge=0)] = Field(0.0, description="Added noise up to this, tensor units.")
    blur: Annotated[float, Field(ge=0)] = Field(0.0, description="Added blur up to this sigma, pixels.")
    sky: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Scatter of a level added to each band, tensor units, as sky subtraction leaves it."
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Of weights, order and augmentation.")
    seeds: Annotated[int, Field(ge=1, le=100)] = Field(1, description="Members of the ensemble.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where a CUDA device has it, else fp32."
    )

    fractions: tuple[Fraction, Fraction, Fraction] = Field(
        (0.7, 0.15, 0.15), description="Shares of the sky for training, validation, test."
    )
    nside: Count = Field(2048, description="HEALPix side of the blocks of sky that stay together.")
    split_seed: Annotated[int, Field(ge=0)] = Field(0, description="Of the choice of blocks.")
    split_column: str | None = Field(
        None,
        description="Column with train, validation or test, for sets with a published split; without "
        "validation rows, a share of the training rows is taken.",
    )
    guard: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Arcsec between rows of different splits; default: side of a stamp."
    )
    operating_fpr: Fraction = Field(0.01, description="FPR of the operating point, on validation sky.")
    calibration: Literal["none", "temperature", "isotonic"] = Field(
        "temperature", description="Score to probability, fitted on validation sky."
    )
    gate_limit: Fraction = Field(0.65, description="AUROC that no shortcut may reach.")
    gate_distance: Fraction = Field(0.1, description="A shortcut must stay so far below the network.")
    gate_rows: Count = Field(20000, description="Rows at most that the gates look at.")
    draws: Count = Field(500, description="Bootstrap replicates of the intervals.")
    licence: str = Field("", description="Licence of the weights, written into the contract.")

    strict: bool = neutral(False, description="Fail when a shortcut comes too near.")
    device: str = neutral("auto", description="cpu, cuda, cuda:1; auto takes CUDA when there is some.")
    threads: Annotated[int, Field(ge=0)] = neutral(0, description="CPU threads; 0 for all cores.")
    compile: bool = neutral(False, description="torch.compile the network (pays on GPUs and long runs).")
    tensorboard: bool = neutral(False, description="Also write TensorBoard events (extra `tensorboard`).")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"fractions {self.fractions} do not sum to 1")
        if (self.task == "regression") != bool(self.targets):
            raise ValueError("targets belong to --task regression, and that needs them")
        if self.freeze != "none" and self.init is None and not self.pretrained:
            raise ValueError("freeze needs weights to start from: --init or --pretrained")
        return self

    @model_validator(mode="after")
    def _adaptation(self) -> Self:
        if (self.adapt != "none") != bool(self.target):
            raise ValueError("--adapt METHOD and --target TENSORS belong together")
        if self.task == "regression" and self.adapt in ("kmeans", "teacher", "universal", "supervised"):
            raise ValueError(f"--adapt {self.adapt} needs classes, this task is regression")
        if (self.adapt == "supervised") != bool(self.target_labels):
            raise ValueError("--target-labels belongs to --adapt supervised, and that needs it")
        if self.target_prevalence is not None and (self.adapt == "none" or self.task != "lens"):
            raise ValueError("--target-prevalence belongs to --adapt in the lens task")
        if self.adapt == "teacher" and not self.ema:
            raise ValueError("--adapt teacher needs the moving average: --ema above 0")
        if self.adapt != "none" and self.compile:
            raise ValueError("--compile does not go with --adapt")
        return self
