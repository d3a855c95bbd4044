"""Narrow upsampling without empty channels, in OpenVINO's graphs.

Vector units take channels by 16. A transposed convolution of stride 2 to two channels, as at the end of a UNet,
leaves most of each vector empty at the finest and dearest resolution. The same values fit the coarser resolution
with 8 times the channels, one set for each of the 8 finer voxels of a voxel: its *phases*. There the convolution is a
plain one (the sub-pixel convolution of Shi et al. 2016, arXiv:1609.05158, eq. 4), and so is one of 3 x 3 x 3 that
follows; what adds or rectifies stays what it is. The phases are put in their places at the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

_MOST_CHANNELS = 8
_PHASES = tuple(itertools.product((0, 1), repeat=3))
_TAPS = {(0, 0): 1, (1, 0): 2, (1, 1): 0}
"""(Phase, voxels ahead) on one axis -> the tap of a transposed kernel of 3 that joins the two."""


def widen_upsampling(model: Any) -> Any:
    """The `openvino.Model` with what follows its narrow upsampling done phase by phase; changed in place.

    Weights must be constants.
    """
    from openvino import opset13 as ops

    nodes = model.get_ordered_ops()
    wide: dict[str, Any] = {}
    for node in nodes:
        made = _widened(node, wide)
        if made is not None:
            wide[node.get_friendly_name()] = made
    for node in nodes:
        name = node.get_friendly_name()
        readers = node.output(0).get_target_inputs() if name in wide else ()
        others = [reader for reader in readers if reader.get_node().get_friendly_name() not in wide]
        if others:
            placed = ops.depth_to_space(wide[name], "blocks_first", 2)
            for reader in others:
                reader.replace_source_output(placed.output(0))
    return model


def subpixel_kernel(kernel: Float32[np.ndarray, "i o 3 3 3"]) -> Float32[np.ndarray, "o8 i 2 2 2"]:
    """A transposed convolution's kernel (stride 2, paddings of 1) as a plain convolution's to phases."""
    inputs, outputs = kernel.shape[:2]
    by_tap = np.moveaxis(kernel, (0, 1), (4, 3))
    made = np.zeros((len(_PHASES), 2, 2, 2, outputs, inputs), np.float32)
    for number, phase in enumerate(_PHASES):
        for ahead in _PHASES:
            taps = [_TAPS[pair] for pair in zip(phase, ahead, strict=True) if pair in _TAPS]
            if len(taps) == len(phase):
                made[(number, *ahead)] = by_tap[tuple(taps)]
    return np.moveaxis(made, (4, 5), (1, 2)).reshape(len(_PHASES) * outputs, inputs, 2, 2, 2)


def phases_kernel(kernel: Float32[np.ndarray, "o i 3 3 3"]) -> Float32[np.ndarray, "o8 i8 3 3 3"]:
    """A convolution's kernel (stride 1, padding of 1) as one from phases to phases.

    Along an axis, phase p's tap t is of the finer voxel p + t - 1: of the phase and the voxel that this halves to.
    """
    outputs, inputs = kernel.shape[:2]
    made = np.zeros((len(_PHASES), len(_PHASES), 3, 3, 3, outputs, inputs), np.float32)
    for number, phase in enumerate(_PHASES):
        for taps in itertools.product(range(3), repeat=3):
            moved = [divmod(one + tap - 1, 2) for one, tap in zip(phase, taps, strict=True)]
            x, y, z = (voxel + 1 for voxel, _ in moved)
            source = _PHASES.index(tuple(one for _, one in moved))
            made[number, source, x, y, z] = kernel[:, :, taps[0], taps[1], taps[2]]
    made = np.moveaxis(made, (5, 6), (1, 3))
    return made.reshape(len(_PHASES) * outputs, len(_PHASES) * inputs, 3, 3, 3)


def _widened(node: Any, wide: Mapping[str, Any]) -> Any:
    """The node's answer as phases, from that of the nodes before it; None where it begins or goes on with none."""
    from openvino import opset13 as ops

    kind = node.get_type_name()
    if kind not in ("Add", "PRelu", "Convolution", "ConvolutionBackpropData") or node.get_input_size() != 2:
        return None
    values = node.input_values()
    first, second = (wide.get(value.get_node().get_friendly_name()) for value in values)
    constant = constant_of(values[1])
    if kind == "ConvolutionBackpropData":
        if first is not None or constant is None or not _doubles(node, constant):
            return None
        return ops.convolution(values[0], ops.constant(subpixel_kernel(constant)), [1] * 3, [0] * 3, [1] * 3, [1] * 3)
    if first is None:
        return None
    if kind == "Convolution":
        if constant is None or not _keeps_size(node, constant):
            return None
        return ops.convolution(first, ops.constant(phases_kernel(constant)), [1] * 3, [1] * 3, [1] * 3, [1] * 3)
    if second is not None:
        return ops.add(first, second) if kind == "Add" else None
    return None if constant is None else _pointwise(node, first, constant)


def _pointwise(node: Any, phases: Any, constant: Any) -> Any:
    """What adds a constant or is a PReLU, for all phases alike."""
    from openvino import opset13 as ops

    channels = node.get_output_partial_shape(0)[1].get_length()
    if constant.size not in (1, channels):
        return None
    repeated = np.tile(np.broadcast_to(constant.ravel(), channels), len(_PHASES))
    if node.get_type_name() == "PRelu":
        return ops.prelu(phases, ops.constant(repeated))
    return ops.add(phases, ops.constant(repeated.reshape(1, -1, 1, 1, 1)))


def constant_of(value: Any) -> Any:
    """What a constant holds; None of anything else."""
    node = value.get_node()
    return node.get_data() if node.get_type_name() == "Constant" else None


def _doubles(node: Any, kernel: Any) -> bool:
    """Whether a transposed convolution makes each side twice as long, to few channels."""
    names = ("strides", "dilations", "pads_begin", "pads_end", "output_padding")
    narrow = kernel.ndim == 5 and kernel.shape[1] <= _MOST_CHANNELS
    return narrow and _attributes(node, names, kernel) == [[2] * 3, [1] * 3, [1] * 3, [1] * 3, [1] * 3]


def _keeps_size(node: Any, kernel: Any) -> bool:
    """Whether a convolution is of neighbours alone, from few channels to few."""
    names = ("strides", "dilations", "pads_begin", "pads_end")
    narrow = kernel.ndim == 5 and max(kernel.shape[:2]) <= _MOST_CHANNELS
    return narrow and _attributes(node, names, kernel) == [[1] * 3] * 4


def _attributes(node: Any, names: tuple[str, ...], kernel: Any) -> list[list[int]]:
    """The attributes of a kernel of 3 x 3 x 3; of another, nothing."""
    given = node.get_attributes()
    return [list(given[name]) for name in names] if kernel.shape[2:] == (3, 3, 3) else []
