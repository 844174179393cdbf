"""Arrays on a device: `ripple.convolution` and `ripple.normalize` run on them as on numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ripple.errors import ConfigError


class Device:
    """A place for arrays.

    Parameters
    ----------
    name
        `cpu` or `cuda`.

    Raises
    ------
    ConfigError
        The device is not there.
    """

    def __init__(self, name: str) -> None:
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(f"device {name!r}: no GPU that torch can use", hint="--device cpu")
        self._device = torch.device(name)

    def put(self, array: NDArray[Any]) -> Any:
        """`array` as a tensor on the device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)
