"""Tensors as a dataset of Hyrax (https://github.com/lincc-frameworks/hyrax), with or without labels.

In a Hyrax configuration::

    [model]
    name = "HyraxAutoencoder"

    [data_request.train.data]
    dataset_class = "ripple.learn.data.hyrax.RippleTensors"
    data_location = "/path/to/tensors"
    fields = ["image", "label"]
    primary_id_field = "object_id"

    [data_request.infer.data]
    dataset_class = "ripple.learn.data.hyrax.RippleTensors"
    data_location = "/path/to/tensors"
    fields = ["image", "label"]
    primary_id_field = "object_id"

Hyrax's own models look for `image` and `label` in the data set that is called `data`; `train`, `infer` and
`umap` then run.

Fields are `image`, `valid`, `label`, `object_id` and every column of the catalogue: `ra`, `psf_fwhm_i`, ...
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hyrax.datasets import HyraxDataset
from numpy.typing import NDArray

from ripple.errors import ConfigError
from ripple.learn.data.dataset import TensorDataset


class RippleTensors(HyraxDataset):  # type: ignore[misc]
    """Accepted rows of a tensor artefact.

    Parameters
    ----------
    config
        That of Hyrax, passed on and not read here.
    data_location
        Directory of kind `tensors`.

    Raises
    ------
    ConfigError
        `data_location` is missing.
    InputError, IntegrityError
        As `ripple.storage.artefact.open_artefact`.
    """

    def __init__(self, config: dict[str, Any], data_location: Path | str | None = None) -> None:
        if data_location is None:
            raise ConfigError("data_location is missing", hint="give the directory of a tensor artefact")
        self.tensors = TensorDataset(data_location)
        super().__init__(config)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getattr__(self, name: str) -> Any:
        # Hyrax reads a field F by the method get_F: one for every column of the catalogue.
        # By `__dict__`: before `__init__` is through, `self.tensors` would call this method again.
        tensors = self.__dict__.get("tensors")
        column = name.removeprefix("get_")
        if tensors is None or column == name or column not in tensors.column_names():
            raise AttributeError(f"{type(self).__name__} has no {name!r}")
        return lambda idx: _plain(tensors.column(column)[tensors.rows[idx]])

    def __dir__(self) -> list[str]:
        # Hyrax finds out by dir() which fields there are.
        return sorted({*super().__dir__(), *(f"get_{name}" for name in self.tensors.column_names())})

    def get_image(self, idx: int) -> NDArray[np.float32]:
        """`(B, H, W)` float32."""
        rows = self.tensors.rows[[idx]]
        out: NDArray[np.float32] = self.tensors.read(rows, np.empty((1, *self.tensors.shape), np.float32))[0]
        return out

    def get_valid(self, idx: int) -> NDArray[np.uint8]:
        """`(B, H, W)` uint8, 1 where the pixel was measured."""
        out: NDArray[np.uint8] = self.tensors.read(self.tensors.rows[[idx]], valid=True)[0]
        return out

    def get_label(self, idx: int) -> int:
        """Class of the row, -1 when unknown."""
        return int(self.tensors.column("label")[self.tensors.rows[idx]])

    def get_object_id(self, idx: int) -> str:
        """Id of the target, as text."""
        return str(self.tensors.column("id")[self.tensors.rows[idx]])


def _plain(value: Any) -> Any:
    """A number or text of Python's own: text comes as objects from an index, as bytes from shards."""
    plain = value.item() if isinstance(value, np.generic) else value
    return plain.decode("utf-8", "replace") if isinstance(plain, bytes) else plain
