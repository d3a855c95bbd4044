"""A float32 ONNX graph with half weights and half arithmetic within, for engines that take types from the graph.

What needs float32 stays in it: inputs and outputs, and norms, whose sums over a window's voxels leave the range of
half. Weights become half after batch norms were folded into them, because a running variance may be beyond 65504.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from voxray.runtimes.protocol import Precision

IN_FLOAT32 = frozenset(
    {"InstanceNormalization", "GroupNormalization", "LayerNormalization", "BatchNormalization", "ReduceMean"}
)
"""Operators that compute in float32 in the midst of half."""
_IN_FLOAT32_FOR_BF16 = IN_FLOAT32 | {"ConvTranspose"}
"""TensorRT-RTX 1.7 has no transposed convolution in bf16."""
_DATA_ONLY = frozenset({"Resize"})
"""Operators of whose inputs only the first is data; scales stay float32."""


def typed(onnx_file: bytes, precision: Precision) -> bytes:
    """The network with its weights and arithmetic in this precision, and float32 at both ends."""
    if precision == "fp32":
        return onnx_file
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(onnx_file))
    typing = _Typing(model.graph, precision)
    nodes = typing.rewritten()
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


class _Typing:
    """Rewrites a graph's nodes, and its weights in place."""

    def __init__(self, graph: Any, precision: Precision) -> None:
        from onnx import TensorProto

        self._graph = graph
        self._float, self._half = TensorProto.FLOAT, _half_type(precision)
        self._in_float32 = IN_FLOAT32 if precision == "fp16" else _IN_FLOAT32_FOR_BF16
        self._weights: dict[str, Any] = {weight.name: weight for weight in graph.initializer}
        values = (*graph.input, *graph.output, *graph.value_info)
        self._types: dict[str, int] = {value.name: value.type.tensor_type.elem_type for value in values}
        self._types.update({name: weight.data_type for name, weight in self._weights.items()})
        self._in_half: dict[str, str] = {}
        """A float32 value -> the half value that stands for it."""
        self._nodes: list[Any] = []

    def rewritten(self) -> list[Any]:
        """The nodes with casts where float32 and half meet."""
        for given in self._graph.input:
            self._in_half[given.name] = self._cast(given.name, f"{given.name}_half", self._half)
        for node in self._graph.node:
            assert node.op_type not in ("Cast", "Constant", "ConstantOfShape", "If", "Loop"), node.op_type
            if node.op_type in self._in_float32:
                self._keep(node)
            else:
                self._turn(node)
        return self._nodes

    def _turn(self, node: Any) -> None:
        """Computes in half; an output of the graph is cast back."""
        last = 1 if node.op_type in _DATA_ONLY else len(node.input)
        for index, name in enumerate(node.input[:last]):
            if self._is_float(name):
                node.input[index] = self._as_half(name)
        ends = {output.name for output in self._graph.output}
        self._nodes.append(node)
        for index, name in enumerate(node.output):
            if self._is_float(name):
                self._in_half[name] = node.output[index] = f"{name}_half"
                if name in ends:
                    self._cast(f"{name}_half", name, self._float)

    def _keep(self, node: Any) -> None:
        """Computes in float32; its data is cast before and after, its weights stay as they are."""
        for index, name in enumerate(node.input):
            if self._is_float(name) and name not in self._weights:
                node.input[index] = self._cast(self._as_half(name), f"{node.name}_{index}_float", self._float)
        self._nodes.append(node)
        for name in node.output:
            if self._is_float(name):
                self._in_half[name] = self._cast(name, f"{name}_half", self._half)

    def _as_half(self, name: str) -> str:
        if name not in self._in_half:
            weight = self._weights[name]
            self._in_half[name] = f"{name}_half"
            self._graph.initializer.append(_in_half(weight, f"{name}_half", self._half))
            if not self._needed_in_float32(name):
                self._graph.initializer.remove(weight)
        return self._in_half[name]

    def _needed_in_float32(self, name: str) -> bool:
        """Whether a norm, or another input than the data's, takes the weight as well."""
        return any(
            name in (node.input if node.op_type in self._in_float32 else node.input[1:])
            for node in self._graph.node
            if node.op_type in self._in_float32 | _DATA_ONLY
        )

    def _is_float(self, name: str) -> bool:
        return self._types.get(name) == self._float

    def _cast(self, name: str, result: str, to: int) -> str:
        from onnx import helper

        self._nodes.append(helper.make_node("Cast", [name], [result], name=f"cast_{result}", to=to))
        return result


def _in_half(weight: Any, name: str, half: int) -> Any:
    """The weight rounded to half; what is too large for it stays at the largest number."""
    from onnx import helper, numpy_helper

    kind = helper.tensor_dtype_to_np_dtype(half)
    values = numpy_helper.to_array(weight)
    if kind == np.float16:
        values = values.clip(-65504, 65504)
    return numpy_helper.from_array(values.astype(kind), name)


def _half_type(precision: Precision) -> int:
    from onnx import TensorProto

    return int(TensorProto.FLOAT16 if precision == "fp16" else TensorProto.BFLOAT16)
