"""What every runtime is: a batch of patches in, the network's output out."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from voxray.core.errors import ConfigError
from voxray.core.outputs import Output
from voxray.core.volume import Shape

Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
"""``int8``: convolutions in whole numbers, whose ranges were measured on scans; a package is made for that."""

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def no_int8(runtime: str) -> ConfigError:
    """The refusal of a runtime that has no whole numbers."""
    return ConfigError(f"runtime {runtime}: has no int8; use another precision, or a CPU's openvino.")


@runtime_checkable
class Runtime(Protocol):
    """A network that is ready to answer. Whatever it computes in, patches and answers are float32."""

    name: str
    """Its line in `RUNTIMES`."""
    precision: Precision
    """What most of it computes in."""
    device: torch.device
    """Where it wants the patches; the answers come back there."""
    window_vox: Shape | None
    """The one window that it takes; None where every multiple of the network's stride goes."""
    max_batch: int | None
    """The most patches that it takes at once; None where only memory limits it."""

    def __call__(self, images: Float[Tensor, "b 1 x y z"]) -> Output:
        """The network's output for normalised patches; the tensors are the caller's own."""
        ...
