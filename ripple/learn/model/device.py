"""Choose a device, and put arrays on it for `ripple.imaging.convolve` and `ripple.imaging.normalize`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ripple.errors import ConfigError


class Device:
    """A device that holds arrays.

    Parameters
    ----------
    name
        `cpu` or `cuda`.

    Raises
    ------
    ConfigError
        There is no such device.
    """

    def __init__(self, name: str) -> None:
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(f"device {name!r}: torch finds no usable GPU", hint="use --device cpu")
        self._device = torch.device(name)

    def put(self, array: NDArray[Any]) -> Any:
        """`array` as a tensor on the device."""
        # Contiguous, because torch refuses negative strides.
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is a GPU if there is one, otherwise the CPU.

    On a GPU float32 is float32: a row has the same score as on a CPU.

    Raises
    ------
    ConfigError
        The name is unknown, or there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ConfigError(f"unknown device {name!r}", hint="use cpu, cuda or cuda:0")
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"device {name!r}: this machine has no CUDA device", hint="use --device cpu")
        if ":" not in name:  # torchrun starts one process per GPU and numbers them
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        # By default convolutions round to the 10 bits of TF32, a thousandth, whatever the type asked for.
        torch.backends.cudnn.allow_tf32 = False
    return device


def autocast(precision: str, device: torch.device) -> Callable[[], Any]:
    """Context factory for mixed precision; "auto" is bf16 on GPUs that have it and fp32 elsewhere."""
    # bf16 and not fp16: it has the range of fp32, so that the loss needs no scaling.
    use = precision == "bf16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return lambda: torch.autocast(device.type, torch.bfloat16, enabled=use)


def visible_gpus() -> tuple[str, list[str]]:
    """The version of torch, and the names of the GPUs it can use."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return torch.__version__, [torch.cuda.get_device_name(k) for k in range(count)]
