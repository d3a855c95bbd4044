"""Winograd's convolutions in OpenVINO's graphs, with what is before and after them.

OpenVINO's convolutions make every multiplication of the plain sum, and those of 3 x 3 x 3 with stride 1 are nearly
all that a UNet, a SegResNet or a RetinaNet does. Each becomes one operation of ours (`operations`) together with
its bias, the group norm and ReLU before it, and the ReLU or PReLU and the residual's sum after it. It wants channels
last in memory, as OpenVINO's own do: where one follows on the other nothing is turned over, as long as shapes are
fixed when the graph is compiled.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from openvino import opset13 as ops

from voxray.core.volume import Shape
from voxray.kernels.winograd import STEP, Convolution, is_worth_it
from voxray.runtimes.openvino.operations import GroupNorm, NormAffine, WinogradConvolution
from voxray.runtimes.openvino.upsampling import constant_of

_TO_LAST, _TO_FIRST = (0, 2, 3, 4, 1), (0, 4, 1, 2, 3)


def with_winograd(model: Any, window_vox: Shape) -> Any:
    """The `openvino.Model` with Winograd's convolutions where they are faster in such windows; changed in place."""
    graph, wide = _Graph(), _wide_enough(model, window_vox)
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Convolution" and node.get_friendly_name() in wide:
            graph.convolve(node)
        elif kind == "GroupNormalization" and len(node.get_output_partial_shape(0)) == 5:
            graph.normalise(node, is_before_convolution=_is_before(node, wide))
        elif kind == "Relu":
            graph.rectify(node)
        elif kind == "Add":
            graph.add(node)
        elif kind == "Concat":
            graph.join(node)
    model.validate_nodes_and_infer_types()
    return model


def _wide_enough(model: Any, window_vox: Shape) -> set[str]:
    """Names of the convolutions that can be ours, and gain by it."""
    fixed = model.clone()
    fixed.reshape([1, 1, *window_vox])
    found = set()
    for node in fixed.get_ops():
        weight = constant_of(node.input_value(1)) if node.get_type_name() == "Convolution" else None
        if weight is None or weight.shape[2:] != (3, 3, 3) or any(count % STEP for count in weight.shape[:2]):
            continue
        given = node.get_attributes()
        names = ("strides", "dilations", "pads_begin", "pads_end")
        if all(list(given[name]) == [1] * 3 for name in names):
            x, y, z = list(node.get_output_shape(0))[2:]
            if is_worth_it((x, y, z)):
                found.add(node.get_friendly_name())
    return found


def _is_before(norm: Any, wide: Collection[str]) -> bool:
    """Whether a group norm is for one of those convolutions alone."""
    relu = _only_reader(norm.output(0), "Relu")
    conv = None if relu is None else _only_reader(relu.output(0), "Convolution")
    return conv is not None and conv.get_friendly_name() in wide


class _Graph:
    """Feature maps of a model that are there with the channels last, too, by the name of what made them."""

    def __init__(self) -> None:
        self._last: dict[str, Any] = {}
        self._norms: dict[str, list[Any]] = {}
        """What a norm is of, and its `NormAffine`."""
        self._rectified_norms: dict[str, list[Any]] = {}
        self._taken: set[str] = set()
        """Nodes that a convolution does along."""
        self._convolutions: dict[Any, Convolution] = {}
        """By their weights: a detector's heads have the same on every level."""

    def convolve(self, node: Any) -> None:
        """One of ours for the convolution and what belongs to it."""
        source = node.input_value(0)
        after = _what_follows(node.output(0), node.get_output_partial_shape(0)[1].get_length())
        self._taken.update(after.nodes)
        convolution = self._convolution(node.input_value(1), after)
        normed = self._rectified_norms.get(_name(source))
        inputs = [self.last(source)] if normed is None else list(normed)
        if after.residual is not None:
            inputs.append(self.last(after.residual))
        has = {"has_affine": normed is not None, "has_residual": after.residual is not None}
        self._replace(after.value, WinogradConvolution(inputs, convolution, **has).output(0))

    def normalise(self, node: Any, *, is_before_convolution: bool) -> None:
        """A group norm with the channels last; OpenVINO's own where nothing is so yet."""
        source, weight, bias = node.input_values()
        scales = constant_of(weight), constant_of(bias)
        if any(one is None for one in scales) or not (is_before_convolution or _name(source) in self._last):
            return
        given, image = node.get_attributes(), self.last(source)
        norm = GroupNorm(given["num_groups"], given["epsilon"], *(np.array(one, np.float32) for one in scales))
        affine = NormAffine([image], norm).output(0)
        scale, shift = (
            ops.reshape(ops.gather(affine, _ints(row), _ints(1)), _ints([-1, 1, 1, 1, scales[0].size]), False)
            for row in (0, 1)
        )
        self._norms[_name(node.output(0))] = [image, affine]
        self._replace(node.output(0), ops.add(ops.multiply(image, scale), shift).output(0))

    def rectify(self, node: Any) -> None:
        """A ReLU."""
        source = node.input_value(0)
        before = self._known(source)
        if before is None or node.get_friendly_name() in self._taken:
            return
        if (norm := self._norms.get(_name(source))) is not None:
            self._rectified_norms[_name(node.output(0))] = norm
        self._replace(node.output(0), ops.relu(before).output(0))

    def add(self, node: Any) -> None:
        """A sum of two maps of which one is there with the channels last."""
        values = node.input_values()
        first, second = (value.get_partial_shape() for value in values)
        are_maps = len(first) == 5 and first == second and all(constant_of(value) is None for value in values)
        if node.get_friendly_name() in self._taken or not are_maps:
            return
        if any(self._known(value) is not None for value in values):
            maps = [self.last(value) for value in values]
            # As rows: sums of maps OpenVINO would turn over to have the second axis last.
            rows = (ops.reshape(one, _ints([0, -1]), True) for one in maps)
            self._replace(node.output(0), ops.reshape(ops.add(*rows), ops.shape_of(maps[0]), False).output(0))

    def join(self, node: Any) -> None:
        """Maps beside each other, of which one is there with the channels last."""
        values = node.input_values()
        is_of_channels = node.get_attributes()["axis"] == 1 and len(node.get_output_partial_shape(0)) == 5
        if is_of_channels and any(self._known(value) is not None for value in values):
            self._replace(node.output(0), ops.concat([self.last(value) for value in values], 4).output(0))

    def _convolution(self, weight: Any, after: _Following) -> Convolution:
        slope = None if after.slope is None else np.array(after.slope, np.float32)
        key = _name(weight), after.bias.tobytes(), None if slope is None else slope.tobytes()
        if key not in self._convolutions:
            kernel = np.array(constant_of(weight), np.float32)
            self._convolutions[key] = Convolution(kernel, after.bias, slope)
        return self._convolutions[key]

    def last(self, value: Any) -> Any:
        """A map with the channels last."""
        known = self._known(value)
        if known is None:
            known = self._last[_name(value)] = ops.transpose(value, _ints(_TO_LAST)).output(0)
        return known

    def _known(self, value: Any) -> Any:
        return self._last.get(_name(value))

    def _replace(self, value: Any, made: Any) -> None:
        """What is read of a map from now on is of the one that has the channels last."""
        first = ops.transpose(made, _ints(_TO_FIRST)).output(0)
        first.get_tensor().set_names(value.get_names())
        for reader in value.get_target_inputs():
            reader.replace_source_output(first)
        self._last[_name(value)] = self._last[_name(first)] = made
        for table in (self._norms, self._rectified_norms):
            if _name(value) in table:
                table[_name(first)] = table[_name(value)]


class _Following(NamedTuple):
    """What follows a convolution and can be done along with it."""

    bias: Any
    slope: Any
    """What answers below 0 are multiplied by; or None."""
    residual: Any
    """What is added in the end; or None."""
    value: Any
    """The last value."""
    nodes: list[str]


def _what_follows(value: Any, channels: int) -> _Following:
    """As far as each step's value has no other readers."""
    bias, slope, residual, nodes = np.zeros(channels, np.float32), None, None, []

    def per_channel(constant: Any) -> Any:
        fits = constant is not None and constant.size in (1, channels)
        return np.broadcast_to(constant.ravel(), channels) if fits else None

    def taken(node: Any) -> Any:
        nodes.append(node.get_friendly_name())
        return node.output(0)

    following = _only_reader(value, "Add")
    found = None if following is None else per_channel(constant_of(_other(following, value)))
    if found is not None:
        bias, value = found, taken(following)
    if (following := _only_reader(value, "Relu")) is not None:
        slope, value = np.zeros(channels, np.float32), taken(following)
    elif (following := _only_reader(value, "PRelu")) is not None:
        slope = per_channel(constant_of(following.input_value(1)))
        value = value if slope is None else taken(following)
    if (following := _only_reader(value, "Add")) is not None:
        other = _other(following, value)
        if constant_of(other) is None and other.get_partial_shape() == value.get_partial_shape():
            residual, value = other, taken(following)
    return _Following(bias, slope, residual, value, nodes)


def _only_reader(value: Any, kind: str) -> Any:
    """The node of that kind that reads a value, where nothing else does."""
    readers = [reader.get_node() for reader in value.get_target_inputs()]
    return readers[0] if len(readers) == 1 and readers[0].get_type_name() == kind else None


def _other(node: Any, value: Any) -> Any:
    """Of two inputs, the one that is not `value`."""
    first, second = node.input_values()
    return second if _name(first) == _name(value) else first


def _name(value: Any) -> str:
    return f"{value.get_node().get_friendly_name()} {value.get_index()}"


def _ints(values: Any) -> Any:
    return ops.constant(np.array(values, np.int64))
