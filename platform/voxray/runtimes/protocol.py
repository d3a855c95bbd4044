"""The interface of runtimes: a batch of patches in, the network's output out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxray.core.errors import ConfigError
from voxray.core.outputs import Head, Output, SegmentationFeatures
from voxray.core.volume import Shape

Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
"""``int8``: convolutions in whole numbers, whose ranges were measured on scans; a package is made for that."""

Forward = Callable[[Tensor], Any]
"""Images (b 1 x y z) in float32 to an output of `core.outputs`: a torch module, a runtime, or any function."""

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def no_int8(runtime: str) -> ConfigError:
    """The refusal of a runtime that has no whole numbers."""
    return ConfigError(f"runtime {runtime}: has no int8; use another precision, or a CPU's openvino.")


class Runtime(ABC):
    """A network that is ready to answer. Whatever it computes in, patches and answers are float32.

    Classes derive from it, and declare what they can do where that is not the default.
    """

    name: str
    """Its line in `RUNTIMES`."""
    precision: Precision
    """What most of it computes in."""
    device: torch.device
    """Where it wants the patches; the answers come back there."""
    window_vox: Shape | None = None
    """The one window that it takes; None where every multiple of the network's stride goes."""
    max_batch: int | None = None
    """The most patches that it takes at once; None where only memory limits it."""
    streams: int = 1
    """How many batches it answers side by side."""
    head: Head | None = None
    """The last layer, where `features` gives what comes before it."""

    @abstractmethod
    def __call__(self, images: Float[Tensor, "b 1 x y z"]) -> Output:
        """The network's output for normalised patches; the tensors are the caller's own."""

    def features(self, images: Float[Tensor, "b 1 x y z"]) -> SegmentationFeatures:
        """What `head` makes the network's output of; of a runtime that has a head."""
        raise NotImplementedError(f"{self.name} has no head")


class PlainNetwork(Runtime):
    """A torch module, or any function of patches, called as it is: autocast and mode are the caller's."""

    name = "torch"
    precision: Precision = "fp32"

    def __init__(self, forward: Forward, device: torch.device) -> None:
        self.forward = forward.to(device) if isinstance(forward, nn.Module) else forward
        self.device = device

    def __call__(self, images: Float[Tensor, "b 1 x y z"]) -> Any:
        """What the network gives."""
        return self.forward(images)


def as_runtime(network: Forward | Runtime, device: torch.device) -> Runtime:
    """The network itself where it is a runtime; anything else that is called as one."""
    return network if isinstance(network, Runtime) else PlainNetwork(network, device)
