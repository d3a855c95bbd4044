"""The ``onnxruntime`` runtime: the network's ONNX on the CPU."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from voxray.core.errors import ConfigError, DataError, ResourceError, VoxrayError
from voxray.core.outputs import Output
from voxray.runtimes.network import TrainedNetwork
from voxray.runtimes.protocol import Precision, Runtime, no_int8
from voxray.runtimes.tensors import INPUT, assemble


class OnnxRuntime(Runtime):
    """A session of onnxruntime; how many threads it takes is left to it."""

    name = "onnxruntime"

    def __init__(self, onnx: bytes, *, precision: Precision = "fp32") -> None:
        import onnxruntime

        self.device, self.precision = torch.device("cpu"), precision
        options = onnxruntime.SessionOptions()
        # Threads that spin while they wait make a busy machine many times slower, and gain next to nothing.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session: Any = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            # Its errors share no class of their own.
            raise DataError(
                "onnx.unusable",
                f"onnxruntime {onnxruntime.__version__} cannot open the network: {str(error).splitlines()[0][:300]}.",
                remedy="Use --runtime torch, or another version of onnxruntime.",
            ) from None
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, images: Float[Tensor, "b 1 x y z"]) -> Output:
        """The network's output for normalised patches."""
        found = self._session.run(None, {INPUT: images.to("cpu", torch.float32).contiguous().numpy()})
        tensors = [torch.from_numpy(array) for array in found]
        return assemble(dict(zip(self._outputs, tensors, strict=True)))


def open_onnxruntime(network: TrainedNetwork, device: torch.device, precision: Precision) -> OnnxRuntime:
    """A session on the network's ONNX, converted first where there is none."""
    del device
    return OnnxRuntime(network.onnx(precision), precision=precision)


def onnxruntime_obstacle(device: torch.device, precision: Precision) -> VoxrayError | None:
    """What keeps onnxruntime from answering here."""
    if find_spec("onnxruntime") is None:
        return ResourceError("runtime onnxruntime: not installed here; `pip install 'voxray[onnx]'` adds it.")
    if device.type != "cpu":
        return ConfigError(
            f"runtime onnxruntime: runs on the CPU, not on {device}; use --device cpu, or --runtime torch."
        )
    if precision == "int8":
        return no_int8("onnxruntime")
    if precision == "bf16":
        return ConfigError(
            "runtime onnxruntime: has no bf16 on the CPU; use --precision fp32, or --runtime openvino or torch."
        )
    return None
