"""The ``openvino`` runtime: the fast one on CPUs.

One compiled model serves every window and batch; or one for each shape of window, where it holds convolutions of ours
(`winograd_graph`). OpenVINO would by default compute in bf16 where the processor can;
here the precision is always said.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from voxray.core.errors import ConfigError, DataError, ResourceError, VoxrayError
from voxray.core.outputs import Output, SegmentationFeatures, SegmentationOutput
from voxray.core.volume import Shape
from voxray.runtimes.network import EngineFormat, TrainedNetwork
from voxray.runtimes.openvino.graph import OURS, quicken
from voxray.runtimes.openvino.head import without_head
from voxray.runtimes.protocol import Precision, Runtime, no_int8
from voxray.runtimes.tensors import assemble

_HINTS: dict[Precision, str] = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
"""At int8 the graph itself says what is in whole numbers; the rest is float32."""
_ANY: Shape = (0, 0, 0)
_VOXELS_KEPT = 4 << 20
"""Of patches for whose shapes a model is kept compiled, together: each has memory for its feature maps, 500 bytes and
more for a voxel."""


class OpenVinoRuntime(Runtime):
    """A model that OpenVINO compiles for this CPU; how many threads it takes is left to it."""

    name = "openvino"

    def __init__(self, model: bytes | Path, *, precision: Precision = "fp32", usual_vox: Shape | None = None) -> None:
        """`model` is ONNX, or the .xml of an intermediate representation. `usual_vox`: what most windows will be."""
        import openvino

        self.device, self.precision = torch.device("cpu"), precision
        self._core = openvino.Core()
        with _understood():
            read = quicken(self._core.read_model(model), usual_vox if precision == "fp32" else None)
            self._graph, self.head = without_head(read)
            self._wants_shapes = any(node.get_type_name() in OURS for node in read.get_ops())
            self.max_batch = 1 if self._wants_shapes else None
            self._outputs = [output.get_any_name() for output in self._graph.outputs]
            self._compiled: dict[Shape, _Compiled] = {}
            if not self._wants_shapes:
                self._compiled[_ANY] = self._compile(self._graph)

    def __call__(self, images: Float[Tensor, "b 1 x y z"]) -> Output:
        """The network's output for normalised patches."""
        if self.head is not None:
            return SegmentationOutput(self.head.logits(self.features(images).features))
        return assemble(dict(zip(self._outputs, map(torch.from_numpy, self._arrays(images)), strict=True)))

    def features(self, images: Float[Tensor, "b 1 x y z"]) -> SegmentationFeatures:
        """What `head` makes the network's output of, with a voxel's channels beside each other in memory."""
        assert self.head is not None
        return SegmentationFeatures(torch.from_numpy(self._arrays(images)[0]).movedim(-1, 1))

    def _arrays(self, images: Float[Tensor, "b 1 x y z"]) -> list[Any]:
        patches = images.to("cpu", torch.float32).contiguous().numpy()
        if not self._wants_shapes:
            return self._compiled[_ANY](patches)
        compiled = self._of_shape(patches.shape[2:])
        if len(patches) == 1:
            return compiled(patches)
        parts = [[array.copy() for array in compiled(patches[number : number + 1])] for number in range(len(patches))]
        return [np.concatenate(of_output) for of_output in zip(*parts, strict=True)]

    def _of_shape(self, sides: Shape) -> _Compiled:
        """The model for one patch of these sides; those of the last shapes are kept where they are small."""
        found = self._compiled.pop(sides, None)
        while self._compiled and sum(map(math.prod, (sides, *self._compiled))) > _VOXELS_KEPT:
            del self._compiled[next(iter(self._compiled))]
        if found is None:
            with _understood():
                fixed = self._graph.clone()
                fixed.reshape([1, 1, *sides])
                found = self._compile(fixed)
        self._compiled[sides] = found
        return found

    def _compile(self, graph: Any) -> _Compiled:
        options = {"INFERENCE_PRECISION_HINT": _HINTS[self.precision], "PERFORMANCE_HINT": "LATENCY"}
        return _Compiled(self._core.compile_model(graph, "CPU", options))


class _Compiled:
    """A compiled model, and the memory of its answers.

    They lie where OpenVINO wrote them, and are written over once nobody holds them: a window's features are 100 MiB.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._request = model.create_infer_request()
        self._given: list[weakref.ref[Any]] = []

    def __call__(self, patches: Any) -> list[Any]:
        if any(array() is not None for array in self._given):
            self._request = self.model.create_infer_request()  # what is held keeps its memory
        found = self._request.infer([patches], share_inputs=True, share_outputs=True)
        arrays = [found[index] for index in range(len(self.model.outputs))]
        self._given = [weakref.ref(array) for array in arrays]
        return arrays


@contextmanager
def _understood() -> Iterator[None]:
    """Says it in a sentence where OpenVINO cannot make anything of a model."""
    import openvino

    try:
        yield
    except RuntimeError as error:
        raise DataError(
            "openvino.unusable",
            f"OpenVINO {openvino.__version__} cannot open the network: {str(error).splitlines()[0][:300]}.",
            remedy="Use --runtime torch, or another version of OpenVINO.",
        ) from None


def open_openvino(network: TrainedNetwork, device: torch.device, precision: Precision) -> OpenVinoRuntime:
    """The package's model, or the network's ONNX, converted first where there is none."""
    del device
    require_calibrated(precision, network.files)
    brought = {kind: path for (form, kind), path in network.files.items() if form == "openvino"}
    if precision == "int8":
        return OpenVinoRuntime(brought["int8"], precision=precision)
    plain = next((path for kind, path in brought.items() if kind != "int8"), None)
    return OpenVinoRuntime(plain or network.onnx("fp32"), precision=precision, usual_vox=network.window_vox)


def require_calibrated(precision: str, brought: Collection[tuple[EngineFormat, Precision]]) -> None:
    """A ConfigError where whole numbers are asked of files of which none was made for them."""
    if precision == "int8" and ("openvino", "int8") not in brought:
        raise ConfigError(
            "precision int8: this is no package that was exported at int8, which measures the ranges of numbers on "
            "scans; use `voxray export RUN --runtime openvino --precision int8`, or another precision."
        )


def save_ir(onnx: bytes, path: Path) -> None:
    """Writes the network in OpenVINO's own form, float32: the .xml, and the .bin beside it."""
    import openvino

    openvino.save_model(openvino.Core().read_model(onnx), path, compress_to_fp16=False)


def openvino_obstacle(device: torch.device, precision: Precision) -> VoxrayError | None:
    """What keeps OpenVINO from answering here."""
    if find_spec("openvino") is None:
        return ResourceError("runtime openvino: not installed here; `pip install 'voxray[openvino]'` adds it.")
    if device.type != "cpu":
        return ConfigError(
            f"runtime openvino: runs on the CPU, not on {device}; use --device cpu, or --runtime torch."
        )
    offered = offered_precisions()
    if precision == "int8":
        return None if _computes_in("INT8") else no_int8("openvino on this CPU")
    if precision not in offered:
        return ResourceError(
            f"runtime openvino: this CPU computes in {' and '.join(offered)}, not in {precision}; "
            f"use --precision {offered[-1]}."
        )
    return None


def offered_precisions() -> tuple[Precision, ...]:
    """The kinds of floating point that this CPU computes in, by OpenVINO's own account; fp32 first."""
    halves: tuple[Precision, ...] = ("fp16", "bf16")
    return ("fp32", *(half for half in halves if _computes_in(half.upper())))


def _computes_in(kind: str) -> bool:
    import openvino

    return kind in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
