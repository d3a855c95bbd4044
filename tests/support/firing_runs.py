"""Runs of the small networks with their last layer moved, so that they find something on a real scan."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from support.small_networks import small_network, small_recipe, tensors_of
from support.small_runs import write_small_run
from voxray.core.case import VolumeStats
from voxray.core.outputs import Output
from voxray.core.volume import Volume
from voxray.inference.predictor import prepare_scan
from voxray.preprocess import normalise

_GAIN = 60.0
"""Spreads the scores, so that a few stand out; the weights of the second seed give them in bright places."""
_SHARE_BELOW = 0.6
"""Of the voxels of single windows; overlapping windows smooth what they say, and leave less above."""


def detector(folder: Path, scan: Volume) -> Path:
    """A detector whose highest score is about 0.9."""
    module = small_network("retinanet", seed=1)
    last = module.get_submodule("classification_head.cls_logits")
    assert isinstance(last, nn.Conv3d)
    assert last.bias is not None
    with torch.no_grad():
        last.weight *= _GAIN
        logits = torch.cat([level.flatten() for level in _outputs(module, "retinanet", scan)[0]])
        last.bias += 2.2 - float(logits.max())
    return write_small_run(folder, "retinanet", module=module)


def segmentation(folder: Path, scan: Volume) -> Path:
    """A segmentation that gives each of its classes a part of the scan."""
    module = small_network("unet")
    last = [part for part in module.modules() if isinstance(part, nn.Conv3d)][-1]
    assert last.bias is not None
    with torch.no_grad():
        (logits,) = tensors_of(_outputs(module, "unet", scan))
        over = (logits[:, 1:] - logits[:, :1]).transpose(0, 1).flatten(1)
        last.bias[1:] -= over[:, ::7].quantile(_SHARE_BELOW, dim=1)
    return write_small_run(folder, "unet", module=module)


def _outputs(module: nn.Module, kind: str, scan: Volume) -> Output:
    """Of the scan's windows, side by side: their rims tell on what so small a network says."""
    recipe = small_recipe(kind)
    windows = torch.from_numpy(prepare_scan(scan, recipe.grid).image.voxels.copy())
    for axis, side in enumerate(recipe.inference.window_vox):
        windows = windows.unfold(axis, side, side)
    images = normalise(windows.flatten(0, 2), VolumeStats.of(scan.voxels), recipe.intensity)
    with torch.inference_mode():
        found: Output = module(images[:, None])
    return found
