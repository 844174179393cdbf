"""Scores of tensors that are in memory, for a search: the table that `score` would write for their shard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from ripple.imaging.batch import TensorBatch
from ripple.learn.config import ScoreConfig
from ripple.learn.model.contract import Conversion, Facts, check
from ripple.learn.model.device import choose_device
from ripple.learn.model.weights import Model, load_model
from ripple.learn.scoring.engine import chosen, graph_paths, with_onnx
from ripple.learn.scoring.forward import member_outputs
from ripple.learn.scoring.score import model_of_worker, network_input, relabelled, score_shard

#: Images on which the speed of a network is measured.
PROBES = 16


@dataclass(frozen=True, slots=True)
class Ready:
    """A model and the rows of a unit, as `score_shard` takes them."""

    model: Model
    batch: TensorBatch
    images: Iterator[Tensor]
    device: torch.device


def score_tensors(
    tensors: TensorBatch, config: ScoreConfig, digest: str, number: int, graphs: tuple[Path, ...] = ()
) -> pa.Table:
    """The table of one unit, in the order of its rows.

    Parameters
    ----------
    tensors
        N rows, as `preprocess` makes them for the model.
    config
        The model, and how to score.
    digest
        Of the model, which must not change while it is used.
    number
        Of the unit.
    graphs
        Backbones for ONNX Runtime; PyTorch computes the network where there are none.

    Raises
    ------
    ContractError
        The tensors do not fit the contract of the model.
    IntegrityError
        The model is damaged, or another one took its place.
    """
    at = ready(tensors, config, digest, number, graphs)
    return score_shard(
        at.model, at.batch, at.images, config, at.device, lambda rows: None, number=number, digest=""
    )


def ready(
    tensors: TensorBatch, config: ScoreConfig, digest: str, number: int, graphs: tuple[Path, ...]
) -> Ready:
    """The model of this worker, and the rows as it takes them; all else as for `score_tensors`."""
    device = choose_device(config.device)
    how = (config.rank_by, config.device, config.precision)
    model = model_of_worker(config.model, digest, *how, graphs)
    contract, facts = model.contract, Facts.of(tensors)
    check(contract, facts, Conversion(), f"unit {number}")
    images = network_input(tensors, contract, facts, config.batch_size, device)
    return Ready(model, relabelled(tensors, contract), images, device)


def prepare_engine(config: ScoreConfig, directory: Path) -> tuple[Path, ...]:
    """Write the graphs of a search for its workers; errors as for `with_onnx`."""
    model = load_model(config.model)
    with_onnx(model, directory)
    return graph_paths(model, directory)


def network_seconds(config: ScoreConfig) -> float:
    """CPU-seconds that PyTorch takes on one thread for the networks on one row: measured on a few images."""
    model = load_model(config.model)
    arch = model.contract.architecture
    image = torch.randn(PROBES, arch.bands, arch.size, arch.size, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            member_outputs(model.nets, image[:1], tta=config.tta)  # the first call also loads libraries
            start = time.process_time()
            member_outputs(model.nets, image, tta=config.tta)
            return (time.process_time() - start) / PROBES
    finally:
        torch.set_num_threads(threads)


def engine_of(config: ScoreConfig, rows: int) -> str:
    """The engine that scores so many rows; errors as for `chosen`."""
    return chosen(config.engine, rows, choose_device(config.device), config.precision)
