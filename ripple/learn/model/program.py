"""ONNX programs run by ONNX Runtime: backbones of ours, which are faster so, and networks of others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ripple.errors import ContractError, IntegrityError
from ripple.learn.model.architecture import Architecture
from ripple.learn.model.network import Net
from ripple.runtime.extras import require

#: Images at a time: more fall out of the processor's cache (docs/howto/search-a-survey.md).
SLICE = 32
#: Probabilities of 0 and 1 become logits of this size, those of float32's last steps before 1.
CERTAIN = 16.0


class OnnxProgram(nn.Module):
    """`(n, B, S, S)` float32 to `(n, F)`, computed by ONNX Runtime whatever the device of the images.

    Parameters
    ----------
    graph
        An ONNX file with one input and one output; of a fixed number of rows, or any.
    name
        What to call it in messages.

    Raises
    ------
    IntegrityError
        ONNX Runtime cannot read it, or it has several inputs.
    """

    def __init__(self, graph: bytes, name: str = "the graph") -> None:
        require("onnx")
        import onnxruntime  # an extra, and slow to import

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except _runtime_errors() as err:
            said = " ".join(str(err).split())[:160]
            raise IntegrityError(f"{name}: ONNX Runtime cannot read it: {said}") from None
        given = self._session.get_inputs()
        if len(given) != 1:
            raise IntegrityError(f"{name} has {len(given)} inputs, but a network takes images alone")
        self._input, rows = given[0].name, given[0].shape[0]
        self._rows = rows if isinstance(rows, int) else 0  # 0: any number

    def forward(self, image: Tensor) -> Tensor:
        """What the program gives for images."""
        parts = image.detach().cpu().contiguous().split(self._rows or SLICE)
        return torch.cat([self._run(part) for part in parts]).to(image.device)

    def _run(self, part: Tensor) -> Tensor:
        count = len(part)
        if self._rows > count:  # a program of a fixed number of rows: zeros behind the last ones
            part = torch.cat([part, part.new_zeros(self._rows - count, *part.shape[1:])])
        found: Any = self._session.run(None, {self._input: part.numpy()})[0]
        return torch.from_numpy(found)[:count].float()


def _runtime_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: classes of its own without a common base, and ours about shapes."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [v for v in vars(state).values() if isinstance(v, type) and issubclass(v, Exception)]
    return (RuntimeError, ValueError, IndexError, *own)


class _Outputs(nn.Module):
    """A program with the outputs that the contract speaks of: one logit of a lens, or one per class."""

    def __init__(self, program: OnnxProgram, arch: Architecture) -> None:
        super().__init__()
        self.program, self.arch = program, arch

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.program(image)
        out = out.reshape(len(image), -1)
        arch = self.arch
        lens = arch.outputs == 1
        if arch.gives == "probabilities":
            tiny = float(torch.finfo(torch.float32).tiny)
            one = lens and out.shape[1] == 1
            out = torch.logit(out.double(), 1e-12).float() if one else torch.log(out.clamp_min(tiny))
            out = out.clamp(-CERTAIN, CERTAIN) if one else out
        if lens and out.shape[1] == 2:
            return out[:, arch.lens, None] - out[:, 1 - arch.lens, None]
        return out if not lens or arch.lens == 1 else -out


def program_net(graph: bytes, arch: Architecture, name: str) -> Net:
    """A network that is an ONNX program: its features are its outputs, and there is no head.

    Raises
    ------
    IntegrityError
        ONNX Runtime cannot run it.
    ContractError
        It does not take the images of the contract, or gives other numbers of outputs.
    """
    body = _Outputs(OnnxProgram(graph, name), arch)
    try:
        with torch.inference_mode():
            found = tuple(body(torch.zeros(2, arch.bands, arch.size, arch.size)).shape)
    except _runtime_errors() as err:
        said = " ".join(str(err).split())[:160]
        raise ContractError(
            f"{name} does not take images of {arch.bands} bands and {arch.size} px: {said}",
            hint="architecture.bands and architecture.size are those of its input",
        ) from None
    if found != (2, arch.outputs):
        raise ContractError(f"{name} gives {found[1]} numbers for an image, the contract has {arch.outputs}")
    net = Net(body, arch.outputs, arch.outputs)
    net._modules["head"] = nn.Identity()
    return net.eval()
