"""Narrow upsampling without empty channels, in OpenVINO's graphs.

Vector units take channels by 16. A transposed convolution of stride 2 to two channels, as at the end of a UNet,
leaves most of each vector empty at the finest and dearest resolution. The same sums are a plain convolution at the
coarser resolution to 8 times the channels, one set for each of the 8 finer voxels of a voxel, and a reordering (the
sub-pixel convolution of Shi et al. 2016, arXiv:1609.05158, eq. 4).
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from jaxtyping import Float32

_MOST_CHANNELS = 8
_PHASES = tuple(itertools.product((0, 1), repeat=3))
_TAPS = {(0, 0): 1, (1, 0): 2, (1, 1): 0}
"""(Phase, voxels ahead) on one axis -> the tap of the kernel of 3 that joins the two."""


def widen_upsampling(model: Any) -> Any:
    """The `openvino.Model` with its narrow transposed convolutions as sub-pixel convolutions; changed in place.

    Their weights must be constants.
    """
    from openvino import opset13 as ops

    for node in model.get_ordered_ops():
        kernel = _narrow_kernel(node)
        if kernel is None:
            continue
        made = ops.convolution(
            node.input_value(0), ops.constant(subpixel_kernel(kernel)), [1] * 3, [0] * 3, [1] * 3, [1] * 3
        )
        last = node
        while (following := _pointwise(last, kernel.shape[1])) is not None:
            last, made = following, _wider(following, made, channels=kernel.shape[1])
        reordered = ops.depth_to_space(made, "blocks_first", 2)
        for reader in last.output(0).get_target_inputs():
            reader.replace_source_output(reordered.output(0))
    return model


def subpixel_kernel(kernel: Float32[np.ndarray, "i o 3 3 3"]) -> Float32[np.ndarray, "o8 i 2 2 2"]:
    """A transposed convolution's kernel (stride 2, paddings of 1) as a plain convolution's, phase by phase."""
    inputs, outputs = kernel.shape[:2]
    by_tap = np.moveaxis(kernel, (0, 1), (4, 3))
    made = np.zeros((len(_PHASES), 2, 2, 2, outputs, inputs), np.float32)
    for number, phase in enumerate(_PHASES):
        for ahead in _PHASES:
            taps = [_TAPS[pair] for pair in zip(phase, ahead, strict=True) if pair in _TAPS]
            if len(taps) == len(phase):
                made[(number, *ahead)] = by_tap[tuple(taps)]
    return np.moveaxis(made, (4, 5), (1, 2)).reshape(len(_PHASES) * outputs, inputs, 2, 2, 2)


def _narrow_kernel(node: Any) -> Any:
    """The weights of a transposed convolution that this module can replace; None for every other node."""
    if node.get_type_name() != "ConvolutionBackpropData" or node.get_input_size() != 2:
        return None
    given, weights = node.get_attributes(), node.input_value(1).get_node()
    if weights.get_type_name() != "Constant" or tuple(weights.shape[2:]) != (3, 3, 3):
        return None
    twice = list(given["strides"]) == [2] * 3 and list(given["dilations"]) == [1] * 3
    padded = all(list(given[name]) == [1] * 3 for name in ("pads_begin", "pads_end", "output_padding"))
    return weights.get_data() if twice and padded and weights.shape[1] <= _MOST_CHANNELS else None


def _pointwise(node: Any, channels: int) -> Any:
    """The node's only reader, if that adds a constant or is a PReLU: it may come before the reordering as well."""
    readers = list(node.output(0).get_target_inputs())
    reader = readers[0].get_node() if len(readers) == 1 else None
    if reader is None or reader.get_type_name() not in ("Add", "PRelu"):
        return None
    other = reader.input_value(1).get_node()
    first = reader.input_value(0).get_node().get_friendly_name()
    if first != node.get_friendly_name() or other.get_type_name() != "Constant":
        return None
    return reader if other.get_data().size in (1, channels) else None


def _wider(reader: Any, made: Any, *, channels: int) -> Any:
    """The reader's work on all phases at once."""
    from openvino import opset13 as ops

    constant = reader.input_value(1).get_node().get_data().ravel()
    repeated = np.tile(np.broadcast_to(constant, channels), len(_PHASES))
    if reader.get_type_name() == "PRelu":
        return ops.prelu(made, ops.constant(repeated))
    return ops.add(made, ops.constant(repeated.reshape(1, -1, 1, 1, 1)))
