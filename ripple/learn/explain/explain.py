"""`ripple explain`: why a model ranks a candidate as it does.

    OUT/index.html            the model: latent space by class and by data set, weight of each band
    OUT/candidate-0001.html   a candidate: maps of what mattered, bands, the nearest training rows

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
from ripple.learn.data.psf_input import beyond_seen
from ripple.learn.explain import attribution
from ripple.learn.model import uncertainty
from ripple.learn.model.contract import Contract, Conversion, Facts, check, require_weights
from ripple.learn.model.device import choose_device
from ripple.learn.model.distance import nearest
from ripple.learn.model.weights import Model, load_model
from ripple.learn.scoring.forward import answered
from ripple.learn.scoring.score import (
    TRAINING_PROBABILITY,
    answers,
    class_names,
    distances,
    training_prevalence,
)
from ripple.report.cards import Table, Tile, data_uri, render
from ripple.report.cutout_pictures import colour_pictures
from ripple.report.plots import scatter_plot
from ripple.runtime.summary import Summary
from ripple.storage import shard_reader
from ripple.storage.artefact import Artefact, open_artefact
from ripple.storage.directory import write_directory
from ripple.storage.files import write_new

#: Stretch of the colour pictures, as in `ripple report`.
STRETCH = SOFTENING = 8.0


@dataclass(frozen=True)
class Picture:
    """An image with a name and a line below it; `source` is a `data:` URL, or empty for no image."""

    name: str
    source: str
    note: str = ""


@dataclass(frozen=True)
class Link:
    """File name of a page, and the text of the link."""

    name: str
    note: str


@dataclass(frozen=True)
class Rows:
    """Rows of the tensors with the answers of the model.

    Parameters
    ----------
    dataset
        All tensors.
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
        The tensors do not fit the contract of the model.
    DataError
        An id is not among the accepted rows of the tensors.
    ConfigError
        `umap` was requested without the package.
    """
    began = time.perf_counter()
    device = choose_device(config.device)
    model = load_model(config.model).to(device)
    require_weights(model.contract, str(config.model), "which has no gradients to explain a score by")
    artefacts = [open_artefact(path, "tensors") for path in config.tensors]
    for artefact in artefacts:
        for k in range(len(artefact.shards)):
            path = artefact.verified_path(k)
            # No conversion: a map must show the pixels that the network was given.
            check(model.contract, Facts.of(shard_reader.map_tensors(path), artefact), Conversion(), str(path))
    before = load_model(config.before).to(device) if config.before else None
    # Digests, not paths: what decides, beside the options, whether finished pages are written again.
    inputs = {
        "model": model.contract.digest(),
        "before": before.contract.digest() if before else "",
        "tensors": [a.digest for a in artefacts],
    }
    facts: dict[str, Any] = {}  # filled by `build`, which does not run when the pages are finished

    def build(directory: Path) -> None:
        rows = rows_of(
            model,
            TensorDataset(artefacts, class_map=model.contract.class_map, psf_input=model.contract.psf_input),
            device,
        )
        chosen = choose(rows, config)
        links = []
        for place, at in enumerate(chosen, 1):
            name = f"candidate-{place:04d}.html"  # not the id, which may hold any character
            page, title = candidate_page(model, rows, int(at), artefacts, config, device)
            write_new(directory / name, page)
            links.append(Link(name, title))
        page = model_page(model, before, rows, links, artefacts, config, device)
        write_new(directory / "index.html", page)
        facts.update(rows=len(rows.number), pages=len(links) + 1)

    fresh = write_directory(config.output, "page", config, inputs, build)
    return Summary(
        "explain",
        str(config.output / "index.html"),
        facts,
        seconds=time.perf_counter() - began,
        done_before=not fresh,
    )


def rows_of(model: Model, dataset: TensorDataset, device: torch.device) -> Rows:
    """Answers, the same as those of `score`, and features of every accepted row."""
    values, features = answered(model.nets, dataset, None, device)
    if not len(values):
        raise DataError("the tensors have no accepted rows to explain")
    return Rows(dataset, dataset.rows, answers(model.contract, values, None), features)


def choose(rows: Rows, config: ExplainConfig) -> NDArray[np.int64]:
    """Positions in `rows` to explain: those of the ids given, else the best-scored.

    Raises
    ------
    DataError
        No accepted row has one of the ids.
    """
    if not config.ids:
        return np.argsort(-rows.found["score"], kind="stable")[: config.top]
    names = [_text(v) for v in np.asarray(rows.dataset.column("id"))[rows.number].tolist()]
    place = {name: k for k, name in enumerate(names)}
    missing = [i for i in config.ids if i not in place]
    if missing:
        raise DataError(
            f"no accepted row has the id {missing[0]!r}", hint="ids are in the column `id` of index.parquet"
        )
    return np.array([place[i] for i in config.ids])


def answer_of(contract: Contract, outputs: Tensor) -> attribution.Answer:
    """The number to explain: the logit of a lens, that of the most likely class, or the first quantity."""
    if contract.output != "classes":
        return lambda out: out[:, 0]
    chosen = int(outputs[0].argmax())
    # Above the mean of all logits: a constant added to all of them changes no probability.
    return lambda out: out[:, chosen] - out.mean(1)


# --- a row ------------------------------------------------------------------------------------------


def candidate_page(
    model: Model, rows: Rows, at: int, artefacts: list[Artefact], config: ExplainConfig, device: torch.device
) -> tuple[bytes, str]:
    """The page of one candidate, and its title."""
    # Averaged maps of several members would hide their differences: the first member stands for all.
    contract, net = model.contract, model.nets[0]
    number = rows.number[[at]]  # (1,)
    image = rows.dataset.network_input(number).to(device)
    answer = answer_of(contract, net(image).detach())  # image: (1, B, H, W)
    parts = attribution.integrated_gradients(net, image, answer, steps=config.steps)
    pictures = [
        Picture("cutout", data_uri(_colour_pictures(artefacts, number)[0])),
        Picture("integrated gradients", heat(parts.sum(1)[0]), "red: for the answer, blue: against it"),
        Picture(
            "saliency",
            heat(attribution.saliency(net, image, answer).abs().amax(1)[0]),
            "how much the answer changes with each pixel",
        ),
    ]
    for name, note, found in (
        ("Grad-CAM", "where the last maps speak for the answer", attribution.grad_cam(net, image, answer)),
        ("activation", "where the last maps are strong", attribution.activation(net, image)),
    ):
        if found is not None:  # a vision transformer has no such map
            pictures.append(Picture(name, heat(found[0]), note))
    # Of the bands alone: an empty sky has the same PSF, so that planes of its width have no share.
    count = len(contract.bands)
    change = attribution.band_ablation(net, image, answer)[0, :count].tolist()
    shares = parts.sum((2, 3))[0, :count].tolist()  # together the answer above an empty sky
    bands = Table(
        "Bands",
        ("band", "share of the answer", "change without it"),
        tuple((b, f"{s:+.3f}", f"{c:+.3f}") for b, s, c in zip(contract.bands, shares, change, strict=True)),
        note="In units of the logit. A band is removed by setting all its pixels to its median.",
    )
    name = _text(rows.dataset.column("id")[number[0]])
    near, note = neighbours(model, rows.features[0, at], config)
    page = render(
        "explain.html.j2",
        title=f"Candidate {name}",
        digest=model.contract.digest()[:16],
        lead=_where(rows, at)
        + ("Maps and neighbours are those of the ensemble's first member." if len(model.nets) > 1 else ""),
        facts=_facts(model, rows, at),
        plots=[],
        plots_title="",
        plots_note="",
        pictures=pictures,
        pictures_title="What mattered",
        pictures_note="Integrated gradients sum to the answer minus that for an empty sky. White is zero."
        # The score is the mean over eight turns; a map of all of them at once would show none.
        + ("" if net.invariant else " Maps are those of the upright image, the score is that of all turns."),
        neighbours=near,
        neighbours_note=note,
        tables=[bands],
        links=[Link("index.html", "About the model")],
        provenance=_provenance(model, artefacts),
    )
    return page, f"{name}, score {rows.found['score'][at]:.3f}"


def _facts(model: Model, rows: Rows, at: int) -> list[Tile]:
    """Score, probability, distance from the training rows, and label of a candidate."""
    contract, number = model.contract, rows.number[at]
    limit = f"operating point {contract.threshold:.4f}" if contract.output == "lens" else ""
    facts = [Tile("score", f"{rows.found['score'][at]:.4f}", limit)]
    known = training_prevalence(contract)
    if known is not None:
        p = rows.found[TRAINING_PROBABILITY][at]
        facts.append(
            Tile("probability", f"{p:.4f}", f"where {known:.2g} of the rows are lenses, as in training")
        )
    doubt = contract.uncertainty
    if doubt is not None and model.bank is not None:
        latent = torch.from_numpy(rows.features[:, [at]]).to(model.bank.device)
        psf, seen = rows.dataset.psf, contract.psf_seen
        beyond = beyond_seen(psf[[number]], seen) if psf is not None and seen else None
        ood = float(uncertainty.strangeness(doubt, distances(model, latent).cpu().numpy(), beyond)[0])
        facts.append(Tile("ood", f"{ood:.2f}", "above 1: unlike any training row"))
    label = int(rows.dataset.column("label")[number])
    names = class_names(contract)
    if 0 <= label < len(names):  # -1: no label
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
    """The nearest training rows in the latent space, with pictures when their tensors can still be read."""
    if model.bank is None:
        return [], ""
    there = torch.from_numpy(features[None]).to(model.bank.device)
    found = nearest(model.bank.places[0], there, config.neighbours)  # as the first member sees them
    distance, place = (one[0].cpu().numpy() for one in found)
    number, label = model.bank.row.numpy()[place], model.bank.label.numpy()[place]
    names = class_names(model.contract)
    try:
        sources = [open_artefact(Path(p), "tensors") for p in _training(model, config)]
        dataset = TensorDataset(sources, class_map=model.contract.class_map)
        # Row numbers of the bank mean nothing in other tensors: wrong pictures would be worse than none.
        if list(model.contract.training.get("inputs", []))[: len(sources)] != [a.digest for a in sources]:
            raise DataError("these are not the tensors the model was trained on")
        colour = [data_uri(s) for s in _colour_pictures(sources, number)]
        ids = [_text(dataset.column("id")[k]) for k in number]
        note = (
            "Training rows that the network finds most like this one. Distances are between directions in "
            "the latent space; ood is the distance to the nearest row, divided by its limit."
        )
    except (DataError, InputError, IntegrityError) as err:
        # The page is still worth having: distances and labels are in the model itself.
        colour, ids = [""] * len(place), [f"row {k}" for k in number]
        note = f"There are no pictures: {err}. Give the training tensors with --training."
    pictures = [
        Picture(name, source, f"{names[k] if 0 <= k < len(names) else k}, distance {away:.2f}")
        for name, source, k, away in zip(ids, colour, label.tolist(), distance.tolist(), strict=True)
    ]
    return pictures, note


def _training(model: Model, config: ExplainConfig) -> tuple[Path, ...]:
    """The training tensors: as given, else where they were when the model was trained."""
    recorded = model.contract.training.get("config", {}).get("tensors", [])
    return config.training or tuple(Path(p) for p in recorded)


def _colour_pictures(artefacts: list[Artefact], number: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    """Colour pictures of global row numbers."""
    # First row of each shard, over all artefacts: (shards + 1,)
    first = np.cumsum([0, *(part.rows for artefact in artefacts for part in artefact.shards)])
    place = np.searchsorted(first, number, side="right") - 1
    return colour_pictures(artefacts, place, number - first[place], stretch=STRETCH, softening=SOFTENING)


def heat(plane: Tensor) -> str:
    """A map `(H, W)` as a picture: red above zero, blue below, white at zero; a `data:` URL."""
    v = plane.detach().double().cpu().numpy()
    size = max(float(np.quantile(np.abs(v), 0.995)), 1e-12)  # one hot pixel must not make the rest white
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
    some = np.sort(rng.permutation(len(rows.number))[: config.points])  # a plot of all rows would be a blot
    label = np.asarray(rows.dataset.column("label"))[rows.number]
    prefix = "after, " if before is not None else ""
    plots = latent_plots(model, rows.features[0, some], label[some], prefix, config)
    if before is not None:
        check_same(before.contract, model.contract)
        features = rows_of(before, rows.dataset, device).features[0]
        old = latent_plots(before, features[some], label[some], "before, ", config)
        # In pairs, so that before and after stand side by side.
        plots = [plot for pair in zip(old, plots, strict=True) for plot in pair] if old and plots else plots
    few = rows.number[some[:256]]  # as many as go through the network in one batch
    image = rows.dataset.network_input(few).to(device)
    net = model.nets[0]
    change = attribution.band_ablation(net, image, answer_of(model.contract, net(image).detach())).cpu()
    table = Table(
        "Bands",
        ("band", "mean change without it", "mean size of the change"),
        tuple(
            (b, f"{change[:, k].mean():+.3f}", f"{change[:, k].abs().mean():.3f}")
            for k, b in enumerate(model.contract.bands)
        ),
        note=f"In units of the logit, over {len(few)} rows.",
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
        title="What the model has learnt",
        digest=model.contract.digest()[:16],
        lead=f"Model from `{model.contract.origin}` for bands {', '.join(model.contract.bands)}, "
        f"{model.contract.size} px of {model.contract.pixel_scale:g} arcsec.",
        facts=facts,
        plots=plots,
        plots_title="Latent space",
        plots_note=f"{config.embedding.upper()} of the features, standardised by the training rows: rows the "
        "model was trained on, and those of these tensors.",
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
    if (one.planes, one.size) != (other.planes, other.size):
        raise ConfigError(
            f"--before takes {one.planes} at {one.size} px, the model {other.planes} at {other.size} px: "
            "they cannot be compared"
        )


def latent_plots(
    model: Model, features: NDArray[np.float32], label: NDArray[np.int64], prefix: str, config: ExplainConfig
) -> list[str]:
    """Two plots of one latent space: by data set, and by class."""
    if model.bank is None:
        return []
    rng = np.random.default_rng(config.seed)
    keep = np.sort(rng.permutation(len(model.bank.row))[: config.points])
    known, classes = model.bank.features[0].numpy(), model.bank.label.numpy()[keep]
    both = np.concatenate([known[keep], features])
    # One embedding for both data sets: two of them could not be compared.
    flat = embed(uncertainty.scaled(known, both), config)  # (k + n, 2)
    ours, theirs = flat[: len(keep)], flat[len(keep) :]
    axes = (f"{config.embedding.upper()} 1", f"{config.embedding.upper()} 2")
    names = class_names(model.contract)
    every = np.concatenate([classes, label])
    # Three classes and one for the rest: more colours cannot be told apart.
    by_class = [(names[k], flat[every == k]) for k in range(min(len(names), 3)) if (every == k).any()]
    other = ~np.isin(every, np.arange(min(len(names), 3)))
    by_class += [("unlabelled or other", flat[other])] if other.any() else []
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
                "--embedding umap needs the package umap-learn", hint="install ripple-lsst[explain]"
            ) from None
        # One thread: with more, UMAP gives another map each time, whatever the seed.
        return np.asarray(UMAP(random_state=config.seed, n_jobs=1).fit_transform(x), np.float64)
    centred = x - x.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    # An axis and its mirror image fit equally well: fixed, so that pages repeat.
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    flat = centred @ axes.T
    # A network of one feature has one component only.
    return flat if flat.shape[1] == 2 else np.pad(flat, ((0, 0), (0, 1)))


def _text(value: Any) -> str:
    """An id as text: HDF5 gives bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _provenance(model: Model, artefacts: list[Artefact]) -> list[str]:
    lines = [f"model {model.contract.digest()[:16]}, {model.contract.origin}"]
    return [*lines, *(f"tensors {a.digest[:16]}" for a in artefacts)]
