"""The state of an unfinished training on disk: written each epoch, sealed, read to resume."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ripple.errors import IntegrityError
from ripple.learn.model.network import Net
from ripple.learn.model.weights import fit_state, parse_weights, weight_bytes
from ripple.learn.training.adapt.adaptation import Adaptation
from ripple.storage.files import make_directory, read_sealed, write_sealed

MAX_STATE_BYTES = 16 << 30


@dataclass
class Progress:
    """How far the training of one member is; all that a resume needs besides tensors.

    Parameters
    ----------
    epoch
        Epochs done.
    best_epoch
        Epoch (from 1) of the best validation metric, 0 before the first.
    best
        That metric.
    finished
        No more epochs are needed.
    history
        One record per epoch.
    """

    epoch: int = 0
    best_epoch: int = 0
    best: float = -math.inf
    finished: bool = False
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Fitted:
    """A trained member: its best weights and the way there."""

    state: dict[str, Tensor]
    progress: Progress


# --- state on disk ------------------------------------------------------------------------------------------


class Store:
    """State of one member between epochs: sealed safetensors, replaced atomically, JSON in the header.

    Parameters
    ----------
    directory
        Made when absent.
    seed
        Names the files.
    """

    def __init__(self, directory: Path, seed: int) -> None:
        make_directory(directory)
        self.directory, self.seed = directory, seed
        self.path = directory / f"seed-{seed}.state"

    def _best(self, epoch: int) -> Path:
        return self.directory / f"seed-{self.seed}.best-{epoch}"

    def save(
        self,
        net: Net,
        average: Net | None,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        adaptation: Adaptation | None = None,
    ) -> None:
        """Write the state after an epoch; the best weights go first: the state never names an absent file."""
        if progress.best_epoch == progress.epoch:
            write_sealed(self._best(progress.epoch), weight_bytes((average or net).state_dict()))
        tensors = {f"net/{k}": v for k, v in net.state_dict().items()}
        if average is not None:
            tensors |= {f"average/{k}": v for k, v in average.state_dict().items()}
        for index, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{k}": v for k, v in slots.items()}
        if adaptation is not None:
            tensors |= {f"adaptation/{k}": v for k, v in adaptation.state().items()}
        write_sealed(self.path, weight_bytes(tensors, {"progress": json.dumps(progress.__dict__)}))
        for old in sorted(self.directory.glob(f"seed-{self.seed}.best-*")):
            if old != self._best(progress.best_epoch):
                old.unlink()

    def load(
        self,
        net: Net,
        average: Net | None,
        optimizer: torch.optim.Optimizer,
        adaptation: Adaptation | None = None,
    ) -> Progress:
        """Put a saved state back, or return a fresh `Progress` when there is none.

        Raises
        ------
        IntegrityError
            The state, or the best weights that it names, are damaged.
        """
        if not self.path.exists():
            return Progress()
        data = self._read(self.path)
        tensors = parse_weights(data, str(self.path))
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        progress = Progress(**json.loads(header["__metadata__"]["progress"]))
        self.best(progress.best_epoch)  # better known now than after the last epoch
        parts: dict[str, dict[str, Tensor]] = {"net": {}, "average": {}, "optimizer": {}, "adaptation": {}}
        for key, value in tensors.items():
            part, _, rest = key.partition("/")
            parts[part][rest] = value
        fit_state(net, parts["net"], str(self.path))
        if average is not None:
            fit_state(average, parts["average"], str(self.path))
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in parts["optimizer"].items():
            index, _, name = key.partition("/")
            slots.setdefault(int(index), {})[name] = value
        if adaptation is not None:
            adaptation.load(parts["adaptation"])
        optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
        return progress

    def best(self, epoch: int) -> dict[str, Tensor]:
        """The best weights; raises as `load` does."""
        return parse_weights(self._read(self._best(epoch)), str(self._best(epoch)))

    def _read(self, path: Path) -> bytes:
        try:
            return read_sealed(path, MAX_STATE_BYTES)
        except IntegrityError as err:
            mine = self.directory / f"seed-{self.seed}.*"
            raise IntegrityError(err.message, hint=f"remove {mine} to train this member again") from None
