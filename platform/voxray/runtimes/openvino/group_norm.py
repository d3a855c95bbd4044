"""Group norm as sums over the places of each channel, in OpenVINO's graphs.

OpenVINO's fast convolutions have the channels last in memory. Its own group norm joins a group's channels into one
row, for which every feature map is turned over and back; that takes longer than the norm. Sums over each channel's
places need no turning, and what a group's few channels sum to is next to nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float32


def spread_group_norms(model: Any, *, once: bool = False) -> Any:
    """The `openvino.Model` with its group norms as sums over places, then over channels; changed in place.

    `once`: feature maps are read once for mean and variance, where the digits that it costs do not count.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() == "GroupNormalization" and len(node.get_output_partial_shape(0)) == 5:
            made = _spread(node, once=once)
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(made.output(0))
    return model


def group_means(channels: int, groups: int) -> Float32[np.ndarray, "c c 1 1 1"]:
    """The weights of a convolution that gives each channel the mean over its group."""
    size = channels // groups
    blocks = np.kron(np.eye(groups), np.full((size, size), 1 / size))
    return blocks.astype(np.float32).reshape(channels, channels, 1, 1, 1)


def _spread(node: Any, *, once: bool) -> Any:
    """Mean and variance in two passes, as the difference of two large sums has few digits; or in one.

    Each axis is summed by itself, and neighbours by different operations, which OpenVINO would join: one sum over a
    million places loses three digits in float32.
    """
    from openvino import opset13 as ops

    images, weights, biases = node.input_values()
    given, channels = node.get_attributes(), weights.get_partial_shape()[0].get_length()
    kernel = ops.constant(group_means(channels, given["num_groups"]))
    x, y, z = (_ints(axis) for axis in (2, 3, 4))
    sides = ops.gather(ops.shape_of(images), _ints(2, 4), _ints(0))
    count = ops.convert(ops.reduce_prod(sides, _ints(0), False), "f32")

    def mean(rows: Any) -> Any:
        """Over x and y, then over a group, of sums over z."""
        planes = ops.reduce_sum(ops.reduce_mean(rows, y, True), x, True)
        return ops.convolution(ops.divide(planes, count), kernel, [1] * 3, [0] * 3, [0] * 3, [1] * 3)

    def broad(values: Any) -> Any:
        return ops.reshape(values, _ints(1, channels, 1, 1, 1), False)

    middle, epsilon = mean(ops.reduce_sum(images, z, True)), ops.constant(np.float32(given["epsilon"]))
    seen = images if once else ops.subtract(images, middle)
    lengths = ops.reduce_l2(seen, z, True)
    variance = mean(ops.multiply(lengths, lengths))
    if once:
        variance = ops.relu(ops.subtract(variance, ops.multiply(middle, middle)))
    scale = ops.divide(broad(weights), ops.sqrt(ops.add(variance, epsilon)))
    shift = ops.subtract(broad(biases), ops.multiply(middle, scale)) if once else broad(biases)
    return ops.add(ops.multiply(seen, scale), shift)


def _ints(*values: int) -> Any:
    from openvino import opset13 as ops

    return ops.constant(np.array(values, np.int64))
