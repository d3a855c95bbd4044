"""A segmentation network's last layer, taken off a torch module: see `outputs.Head`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from voxray.core.outputs import Head, SegmentationOutput


def without_head(module: nn.Module, stride_vox: Sequence[int]) -> tuple[nn.Module, Head | None]:
    """A copy that gives features for logits, with the same weights; and the head.

    The module as it is, and None, where it does not end in a convolution of single voxels to more channels.
    """
    name = _last_layer(module, stride_vox)
    if name is None:
        return module, None
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Conv3d)
    weight = layer.weight.detach().float().flatten(1)
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().float()
    # What both hold is not copied.
    held: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    made = copy.deepcopy(module, held)
    made.set_submodule(name, nn.Identity())
    return made, Head(weight, bias)


def _last_layer(module: nn.Module, stride_vox: Sequence[int]) -> str | None:
    """The name of the layer whose output is the network's; found with a patch of four strides without data.

    A network whose shapes depend on its values cannot be asked so.
    """
    said: dict[str, Any] = {}
    made = copy.deepcopy(module).to("meta").eval()
    for name, layer in made.named_modules():
        if isinstance(layer, nn.Conv3d) and _is_head(layer):
            layer.register_forward_hook(lambda _layer, _inputs, output, name=name: said.update({name: output}))
    output: Any = None
    with torch.inference_mode(), suppress(RuntimeError):
        output = made(torch.empty(1, 1, *(4 * step for step in stride_vox), device="meta"))
    if not isinstance(output, SegmentationOutput):
        return None
    return next((name for name, one in said.items() if one is output.logits), None)


def _is_head(layer: nn.Conv3d) -> bool:
    single = layer.kernel_size == layer.stride == (1, 1, 1) and layer.padding in ((0, 0, 0), 0)
    return single and layer.groups == 1 and layer.out_channels > layer.in_channels + 1
