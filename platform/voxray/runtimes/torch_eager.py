"""The ``torch`` runtime, the module itself on any device that torch knows; and the module compiled."""

from __future__ import annotations

import shutil
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxray.core.errors import ConfigError, ResourceError, VoxrayError
from voxray.core.outputs import DetectionOutput, Head, Output, SegmentationFeatures, SegmentationOutput
from voxray.runtimes.network import TrainedNetwork
from voxray.runtimes.protocol import DTYPES, Precision, Runtime, no_int8
from voxray.runtimes.torch_head import without_head


class TorchRuntime(Runtime):
    """The module in eval mode, under autocast where the precision is half."""

    def __init__(
        self,
        module: nn.Module,
        device: torch.device | str = "cpu",
        *,
        precision: Precision = "fp32",
        compiled: bool = False,
        head: Head | None = None,
    ) -> None:
        """`head`: the module gives its features where its logits would be."""
        self.device, self.precision = torch.device(device), precision
        self.head = None if head is None else Head(*(tensor.to(self.device) for tensor in head))
        self.module = module.to(self.device)
        self.name = "torch-compiled" if compiled else "torch"
        self._forward: Any = torch.compile(self.module) if compiled else self.module

    @torch.inference_mode()
    def __call__(self, images: Float[Tensor, "b 1 x y z"]) -> Output:
        """The network's output for normalised patches."""
        if self.head is not None:
            return SegmentationOutput(self.head.logits(self.features(images).features))
        return self._answer(images)

    @torch.inference_mode()
    def features(self, images: Float[Tensor, "b 1 x y z"]) -> SegmentationFeatures:
        """What `head` makes the network's output of."""
        output = self._answer(images)
        assert self.head is not None
        assert isinstance(output, SegmentationOutput)
        return SegmentationFeatures(output.logits)

    def _answer(self, images: Float[Tensor, "b 1 x y z"]) -> Output:
        images = images.to(self.device, torch.float32, non_blocking=True)
        half = self.precision != "fp32"
        with torch.autocast(self.device.type, dtype=DTYPES[self.precision], enabled=half):
            output = self._forward(images)
        return in_float32(output)


def in_float32(output: Output) -> Output:
    """The output with every tensor as float32."""
    if isinstance(output, DetectionOutput):
        return DetectionOutput(
            class_logits=tuple(tensor.float() for tensor in output.class_logits),
            box_deltas=tuple(tensor.float() for tensor in output.box_deltas),
        )
    return SegmentationOutput(output.logits.float())


def open_torch(network: TrainedNetwork, device: torch.device, precision: Precision) -> TorchRuntime:
    """The module as it is."""
    return _open(network, device, precision, compiled=False)


def open_compiled(network: TrainedNetwork, device: torch.device, precision: Precision) -> TorchRuntime:
    """The module compiled at its first patch of each shape, which takes up to minutes."""
    return _open(network, device, precision, compiled=True)


def _open(network: TrainedNetwork, device: torch.device, precision: Precision, *, compiled: bool) -> TorchRuntime:
    module, head = without_head(_module(network).to(device), network.stride_vox)
    return TorchRuntime(module, device, precision=precision, compiled=compiled, head=head)


def torch_obstacle(device: torch.device, precision: Precision) -> VoxrayError | None:
    """Torch runs everywhere, in floating point."""
    del device
    return no_int8("torch") if precision == "int8" else None


def compiled_obstacle(device: torch.device, precision: Precision) -> VoxrayError | None:
    """What keeps torch from compiling here."""
    if precision == "int8":
        return no_int8("torch-compiled")
    if device.type == "cpu" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return ResourceError(
            "runtime torch-compiled: needs a C++ compiler to compile for the CPU, and there is none in PATH; "
            "install g++ or use --runtime torch."
        )
    return None


def _module(network: TrainedNetwork) -> nn.Module:
    if network.module is None:
        raise ConfigError(
            "runtime torch: this package holds no weights that torch can load; use the runtime that it was made for."
        )
    return network.module
