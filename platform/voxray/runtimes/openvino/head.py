"""A segmentation network's last layer, taken off OpenVINO's graph.

A hundred classes' logits are by far the largest thing that such a network makes, and blending is the dearest thing
that is done to them. Before its last layer, which is linear in each voxel, there are a third as many channels: see
`outputs.Head`. The features are given with the channels last, as OpenVINO has them in memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from voxray.core.outputs import Head
from voxray.runtimes.openvino.upsampling import constant_of


def without_head(model: Any) -> tuple[Any, Head | None]:
    """The `openvino.Model` that gives features (batch x y z channels), and its head.

    The model as it is, and None, where it does not end in a convolution of single voxels to more channels.
    """
    import openvino
    from openvino import opset13 as ops

    found = head_of(model)
    if found is None:
        return model, None
    node, head = found
    last = ops.transpose(node.input_value(0), ops.constant(np.array([0, 2, 3, 4, 1], np.int64)))
    last.output(0).get_tensor().set_names({"features"})
    return openvino.Model([last], model.get_parameters(), "features"), head


def head_of(model: Any) -> tuple[Any, Head] | None:
    """The convolution that a model ends in, and what it does."""
    results = model.get_results()
    if len(results) != 1:
        return None
    node, bias = results[0].input_value(0).get_node(), None
    if node.get_type_name() == "Add":
        bias, node = constant_of(node.input_value(1)), node.input_value(0).get_node()
        if bias is None:
            return None
    weight = constant_of(node.input_value(1)) if node.get_type_name() == "Convolution" else None
    if weight is None or weight.shape[2:] != (1, 1, 1) or not _is_plain(node):
        return None
    outputs, inputs = weight.shape[:2]
    if outputs <= inputs + 1 or (bias is not None and bias.size != outputs):
        return None
    bias = np.zeros(outputs, np.float32) if bias is None else bias
    flat = (torch.from_numpy(np.array(one, np.float32)) for one in (weight.reshape(outputs, inputs), bias.ravel()))
    return node, Head(*flat)


def _is_plain(node: Any) -> bool:
    given = node.get_attributes()
    return [list(given[name]) for name in ("strides", "pads_begin", "pads_end")] == [[1] * 3, [0] * 3, [0] * 3]
