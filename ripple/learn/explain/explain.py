"""`ripple explain`: why does a model think so.

    OUT/index.html            the model: latent space by class and by data set, weight of each band
    OUT/candidate-0001.html   a row: maps of what mattered, bands, the nearest training rows

Pages are self-contained and carry no script but that of the reports; everything from a catalogue is escaped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ripple.errors import ConfigError, DataError, InputError, IntegrityError
from ripple.learn.config import ExplainConfig
from ripple.learn.data.dataset import TensorDataset
from ripple.learn.data.loader import Loader
from ripple.learn.explain import attribution
from ripple.learn.model import uncertainty
from ripple.learn.model.contract import Contract, Conversion, Facts, check
from ripple.learn.model.device import choose_device
from ripple.learn.model.weights import Model, load_model
from ripple.learn.scoring.score import answers, class_names
from ripple.report.cards import Table, Tile, data_uri, render
from ripple.report.cutout_pictures import colour_stamps
from ripple.report.plots import scatter_plot
from ripple.runtime.summary import Summary
from ripple.storage import shard_reader
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.files import write_new
from ripple.storage.tree import write_tree

#: Stretch of the colour stamps, as in `ripple report`.
STRETCH = SOFTENING = 8.0


@dataclass(frozen=True)
class Picture:
    """An image with a name and a line below it; `source` is a `data:` address, or empty."""

    name: str
    source: str
    note: str = ""


@dataclass(frozen=True)
class Link:
    """File name of a page, and what to call it."""

    name: str
    note: str


@dataclass(frozen=True)
class Rows:
    """Rows of the tensors, all with answers.

    Parameters
    ----------
    dataset
        Of all tensors.
    number
        `(n,)` global row numbers.
    found
        Columns of `score.answers`.
    features
        `(E, n, F)` of the members.
    """

    dataset: TensorDataset
    number: NDArray[np.int64]
    found: dict[str, NDArray[Any]]
    features: NDArray[np.float32]


def explain(config: ExplainConfig) -> Summary:
    """Write the pages.

    Raises
    ------
    ContractError
        The tensors break the contract of the model.
    DataError
        An id that is not in the tensors.
    ConfigError
        `umap` without the package.
    """
    began = time.perf_counter()
    device = choose_device(config.device)
    model = load_model(config.model).to(device)
    artefacts = [open_artefact(path, "tensors") for path in config.tensors]
    for artefact in artefacts:
        for k in range(len(artefact.shards)):
            path = artefact.verified_path(k)
            check(model.contract, Facts.of(shard_reader.map_tensors(path)), Conversion(), str(path))
    before = load_model(config.before).to(device) if config.before else None
    identity = {
        "verb": config.verb,
        "config": config.canonical(),
        "model": model.contract.digest(),
        "before": before.contract.digest() if before else "",
        "inputs": [a.digest for a in artefacts],
    }
    facts: dict[str, Any] = {}

    def build(directory: Path) -> None:
        rows = answered(model, TensorDataset(artefacts), device)
        chosen = choose(rows, config)
        links = []
        for place, at in enumerate(chosen, 1):
            name = f"candidate-{place:04d}.html"
            page, title = candidate_page(model, rows, int(at), artefacts, config, device)
            write_new(directory / name, page)
            links.append(Link(name, title))
        page = model_page(model, before, rows, links, artefacts, config, device)
        write_new(directory / "index.html", page)
        facts.update(rows=len(rows.number), pages=len(links) + 1)

    fresh = write_tree(config.output, identity, build)
    return Summary(
        "explain",
        str(config.output / "index.html"),
        facts,
        seconds=time.perf_counter() - began,
        done_before=not fresh,
    )


@torch.inference_mode()
def answered(model: Model, dataset: TensorDataset, device: torch.device) -> Rows:
    """Answers and features of every accepted row."""
    values, features = [], []
    for batch in Loader(dataset, shuffle=False, device=device).epoch(0):
        outs, latent = model.answer(batch["image"])
        values.append(outs.float().cpu().numpy())
        features.append(latent.float().cpu().numpy())
    if not values:
        raise DataError("no accepted rows to explain")
    found = answers(model.contract, np.concatenate(values), None)
    return Rows(dataset, dataset.rows, found, np.concatenate(features, axis=1))


def choose(rows: Rows, config: ExplainConfig) -> NDArray[np.int64]:
    """Positions in `rows` to explain: those named, else the best.

    Raises
    ------
    DataError
        An id that is not there.
    """
    if not config.ids:
        return np.argsort(-rows.found["score"], kind="stable")[: config.top]
    names = [_text(v) for v in np.asarray(rows.dataset.column("id"))[rows.number].tolist()]
    place = {name: k for k, name in enumerate(names)}
    missing = [i for i in config.ids if i not in place]
    if missing:
        raise DataError(f"no accepted row has the id {missing[0]!r}", hint="see `ripple show TENSORS`")
    return np.array([place[i] for i in config.ids])


def answer_of(contract: Contract, outputs: Tensor) -> attribution.Answer:
    """The number to explain: the logit of a lens, of the class answered, or the first quantity."""
    if contract.output != "classes":
        return lambda out: out[:, 0]
    chosen = int(outputs[0].argmax())
    return lambda out: out[:, chosen] - out.mean(1)


# --- a row ------------------------------------------------------------------------------------------


def candidate_page(
    model: Model, rows: Rows, at: int, artefacts: list[Artefact], config: ExplainConfig, device: torch.device
) -> tuple[bytes, str]:
    """The page of one row, and its title."""
    contract, net = model.contract, model.nets[0]
    number = rows.number[[at]]
    image = torch.from_numpy(rows.dataset.read(number).astype(np.float32)).to(device)
    answer = answer_of(contract, net(image).detach())
    parts = attribution.integrated_gradients(net, image, answer, steps=config.steps)
    pictures = [
        Picture("as seen", data_uri(_stamps(artefacts, number)[0])),
        Picture("integrated gradients", heat(parts.sum(1)[0]), "red speaks for the answer, blue against"),
        Picture(
            "saliency",
            heat(attribution.saliency(net, image, answer).abs().amax(1)[0]),
            "how much the answer would change with a pixel",
        ),
    ]
    for name, note, made in (
        ("Grad-CAM", "where late maps speak for the answer", attribution.grad_cam(net, image, answer)),
        ("activation", "where late maps are strong", attribution.activation(net, image)),
    ):
        if made is not None:
            pictures.append(Picture(name, heat(made[0]), note))
    change = attribution.band_ablation(net, image, answer)[0].tolist()
    shares = parts.sum((2, 3))[0].tolist()
    bands = Table(
        "Bands",
        ("band", "share of the answer", "change without it"),
        tuple((b, f"{s:+.3f}", f"{c:+.3f}") for b, s, c in zip(contract.bands, shares, change, strict=True)),
        note="In units of the logit. A band is taken away by putting its median everywhere.",
    )
    name = _text(rows.dataset.column("id")[number[0]])
    near, note = neighbours(model, rows.features[0, at], config)
    page = render(
        "explain.html.j2",
        title=f"Row {name}",
        digest=model.contract.digest()[:16],
        lead=_where(rows, at)
        + ("Maps and neighbours are those of the first member." if len(model.nets) > 1 else ""),
        facts=_facts(model, rows, at),
        plots=[],
        plots_title="",
        plots_note="",
        pictures=pictures,
        pictures_title="What mattered",
        pictures_note="Integrated gradients sum to the answer minus that of an empty sky. White is zero.",
        neighbours=near,
        neighbours_note=note,
        tables=[bands],
        links=[Link("index.html", "the model")],
        provenance=_provenance(model, artefacts),
    )
    return page, f"{name}, score {rows.found['score'][at]:.3f}"


def _facts(model: Model, rows: Rows, at: int) -> list[Tile]:
    contract, number = model.contract, rows.number[at]
    limit = f"a candidate above {contract.threshold:.4f}" if contract.output == "lens" else ""
    facts = [Tile("score", f"{rows.found['score'][at]:.4f}", limit)]
    p = rows.found["probability"][at]
    if np.isfinite(p):
        facts.append(Tile("probability", f"{p:.4f}", "calibrated"))
    known = contract.uncertainty
    if known is not None and model.bank is not None:
        there = uncertainty.neighbour_distance(
            model.bank.features.numpy(), rows.features[:, [at]], known.neighbour
        )
        ood = float(there[0]) / known.ood_limit
        facts.append(Tile("ood", f"{ood:.2f}", "above 1: unlike the training rows"))
    label = int(rows.dataset.column("label")[number])
    names = class_names(contract)
    if 0 <= label < len(names):
        facts.append(Tile("label", names[label]))
    return facts


def _where(rows: Rows, at: int) -> str:
    """The position on the sky, when the rows have one."""
    if not {"ra", "dec"} <= set(rows.dataset.column_names()):
        return ""
    ra, dec = (float(rows.dataset.column(k)[rows.number[at]]) for k in ("ra", "dec"))
    return f"RA {ra:.5f}, Dec {dec:+.5f} deg. " if np.isfinite(ra + dec) else ""


def neighbours(
    model: Model, features: NDArray[np.float32], config: ExplainConfig
) -> tuple[list[Picture], str]:
    """The nearest training rows in the latent space, with stamps when their tensors are still there."""
    if model.bank is None:
        return [], ""
    bank = model.bank.features[0].numpy()
    distance = uncertainty.latent_distance(features[None], bank)[0]
    nearest = np.argsort(distance, kind="stable")[: config.neighbours]
    number, label = model.bank.row.numpy()[nearest], model.bank.label.numpy()[nearest]
    names = class_names(model.contract)
    try:
        sources = [open_artefact(Path(p), "tensors") for p in _training(model, config)]
        dataset = TensorDataset(sources)
        if list(model.contract.training.get("inputs", []))[: len(sources)] != [a.digest for a in sources]:
            raise DataError("other tensors than the model was trained on")
        stamps = [data_uri(s) for s in _stamps(sources, number)]
        ids = [_text(dataset.column("id")[k]) for k in number]
        note = (
            "Rows the network was trained on that it finds most like this one. Distances are "
            "between directions in the latent space; ood is the nearest over its limit."
        )
    except (DataError, InputError, IntegrityError) as err:
        stamps, ids = [""] * len(nearest), [f"row {k}" for k in number]
        note = f"Stamps are missing: {err}. Give the training tensors with --training."
    pictures = [
        Picture(name, stamp, f"{names[k] if 0 <= k < len(names) else k}, distance {distance[j]:.2f}")
        for name, stamp, k, j in zip(ids, stamps, label.tolist(), nearest.tolist(), strict=True)
    ]
    return pictures, note


def _training(model: Model, config: ExplainConfig) -> tuple[Path, ...]:
    recorded = model.contract.training.get("config", {}).get("tensors", [])
    return config.training or tuple(Path(p) for p in recorded)


def _stamps(artefacts: list[Artefact], number: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    """Colour stamps of global row numbers."""
    first = np.cumsum([0, *(part.rows for artefact in artefacts for part in artefact.shards)])
    place = np.searchsorted(first, number, side="right") - 1
    return colour_stamps(artefacts, place, number - first[place], stretch=STRETCH, softening=SOFTENING)


def heat(plane: Tensor) -> str:
    """A map as a picture: red above zero, blue below, white at zero, as a `data:` address."""
    v = plane.detach().double().cpu().numpy()
    size = max(float(np.quantile(np.abs(v), 0.995)), 1e-12)
    x = np.clip(v / size, -1, 1)
    red, blue = np.where(x < 0, 1 + x, 1), np.where(x > 0, 1 - x, 1)
    rgb = np.stack([red, 1 - np.abs(x), blue], 2)
    return data_uri((255 * rgb).round().astype(np.uint8))


# --- the model --------------------------------------------------------------------------------------


def model_page(
    model: Model,
    before: Model | None,
    rows: Rows,
    links: list[Link],
    artefacts: list[Artefact],
    config: ExplainConfig,
    device: torch.device,
) -> bytes:
    """The page about the model."""
    rng = np.random.default_rng(config.seed)
    some = np.sort(rng.permutation(len(rows.number))[: config.points])
    label = np.asarray(rows.dataset.column("label"))[rows.number]
    prefix = "after, " if before is not None else ""
    plots = latent_plots(model, rows.features[0, some], label[some], prefix, config)
    if before is not None:
        check_same(before.contract, model.contract)
        features = answered(before, rows.dataset, device).features[0]
        old = latent_plots(before, features[some], label[some], "before, ", config)
        plots = [plot for pair in zip(old, plots, strict=True) for plot in pair] if old and plots else plots
    few = rows.number[some[:256]]
    image = torch.from_numpy(rows.dataset.read(few).astype(np.float32)).to(device)
    net = model.nets[0]
    change = attribution.band_ablation(net, image, answer_of(model.contract, net(image).detach())).cpu()
    table = Table(
        "Bands",
        ("band", "mean change without it", "mean size of the change"),
        tuple(
            (b, f"{change[:, k].mean():+.3f}", f"{change[:, k].abs().mean():.3f}")
            for k, b in enumerate(model.contract.bands)
        ),
        note=f"Of the logit, over {len(few)} rows.",
    )
    arch = model.contract.architecture
    facts = [
        Tile("network", arch.name, f"{len(model.nets)} member{'s' * (len(model.nets) > 1)}"),
        Tile("rows", f"{len(rows.number):,}"),
    ]
    adapted = model.contract.training.get("adaptation")
    if adapted:
        facts.append(Tile("adapted by", str(adapted["method"]), f"to {adapted['rows']} rows"))
    return render(
        "explain.html.j2",
        title="Why the model thinks so",
        digest=model.contract.digest()[:16],
        lead=f"Made by {model.contract.origin} for bands {', '.join(model.contract.bands)}, "
        f"{model.contract.size} px of {model.contract.pixel_scale:g} arcsec.",
        facts=facts,
        plots=plots,
        plots_title="Latent space",
        plots_note=f"{config.embedding.upper()} of the features, standardised by the training rows: the rows "
        "learnt from, and those of these tensors.",
        pictures=[],
        pictures_title="",
        pictures_note="",
        neighbours=[],
        neighbours_note="",
        tables=[table],
        links=links,
        provenance=_provenance(model, artefacts),
    )


def check_same(one: Contract, other: Contract) -> None:
    """Refuse to compare models that take different images."""
    if (one.bands, one.size) != (other.bands, other.size):
        raise ConfigError(
            f"--before takes {one.bands} at {one.size} px, the model {other.bands} at {other.size}"
        )


def latent_plots(
    model: Model, features: NDArray[np.float32], label: NDArray[np.int64], prefix: str, config: ExplainConfig
) -> list[str]:
    """Two maps of one latent space: by data set, and by class."""
    if model.bank is None:
        return []
    rng = np.random.default_rng(config.seed)
    keep = np.sort(rng.permutation(len(model.bank.row))[: config.points])
    known, classes = model.bank.features[0].numpy(), model.bank.label.numpy()[keep]
    both = np.concatenate([known[keep], features])
    flat = embed(uncertainty.scaled(known, both), config)
    ours, theirs = flat[: len(keep)], flat[len(keep) :]
    axes = (f"{config.embedding.upper()} 1", f"{config.embedding.upper()} 2")
    names = class_names(model.contract)
    every, points = np.concatenate([classes, label]), flat
    by_class = [(names[k], points[every == k]) for k in range(min(len(names), 3)) if (every == k).any()]
    other = ~np.isin(every, np.arange(min(len(names), 3)))
    by_class += [("unlabelled or other", points[other])] if other.any() else []
    return [
        scatter_plot(f"{prefix}by data set", *axes, [("training", ours), ("these rows", theirs)]),
        scatter_plot(f"{prefix}by class", *axes, by_class),
    ]


def embed(x: NDArray[np.float64], config: ExplainConfig) -> NDArray[np.float64]:
    """`(n, F)` to `(n, 2)`: principal components (signs fixed by the largest weight), or UMAP.

    Raises
    ------
    ConfigError
        UMAP is not installed.
    """
    if config.embedding == "umap":
        try:
            from umap import UMAP
        except ImportError:
            raise ConfigError(
                "--embedding umap needs the package", hint="install ripple-lsst[explain]"
            ) from None
        return np.asarray(UMAP(random_state=config.seed, n_jobs=1).fit_transform(x), np.float64)
    centred = x - x.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    flat = centred @ axes.T
    return flat if flat.shape[1] == 2 else np.pad(flat, ((0, 0), (0, 1)))


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _provenance(model: Model, artefacts: list[Artefact]) -> list[str]:
    lines = [f"model {model.contract.digest()[:16]}, {model.contract.origin}"]
    return [*lines, *(f"tensors {a.digest[:16]}" for a in artefacts)]
