"""The three networks in small, with weights as if they had learnt something, and what exporting them gives."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from voxray.core.outputs import Output
from voxray.core.recipe import Recipe
from voxray.recipes import read_recipe
from voxray.runtimes import Precision, TrainedNetwork, network_of
from voxray.runtimes.onnx.half_precision import typed

CLASSES = ("first", "second")

SMALL: dict[str, tuple[str, tuple[str, ...]]] = {
    "unet": (
        "spleen",
        (
            'network={kind="unet",channels=[8,16,16],strides=[2,2],num_res_units=1}',
            "patch.size_vox=[16,16,16]",
            "inference.window_vox=[16,24,16]",
        ),
    ),
    "segresnet": (
        "whole_body",
        (
            'network={kind="segresnet",init_filters=8,blocks_down=[1,1,1],blocks_up=[1,1],dropout=0.2}',
            "patch.size_vox=[16,16,16]",
            "inference.window_vox=[16,24,16]",
        ),
    ),
    "retinanet": (
        "lung_nodule",
        (
            'network={kind="retinanet",backbone="resnet10",width=8,channels=16,norm_groups=4}',
            "patch.size_vox=[32,32,16]",
            "inference.window_vox=[32,48,16]",
        ),
    ),
}


@functools.cache
def small_recipe(kind: str) -> Recipe:
    """A published recipe with a small network."""
    name, overrides = SMALL[kind]
    return read_recipe(name, overrides)


def small_network(kind: str, seed: int = 0) -> nn.Module:
    """The network in eval mode; batch norms have seen something, so that folding them matters."""
    torch.manual_seed(seed)
    recipe = small_recipe(kind)
    network: nn.Module = recipe.network.build(recipe, len(CLASSES))
    rng = torch.Generator().manual_seed(seed)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm3d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(0, 0.3, generator=rng)
            part.running_var.uniform_(0.5, 2.0, generator=rng)
    return network.eval()


@functools.cache
def exported(kind: str) -> TrainedNetwork:
    """The small network for runtimes."""
    return network_of(small_recipe(kind), small_network(kind))


@functools.cache
def exported_onnx(kind: str, precision: Precision = "fp32") -> bytes:
    """Its ONNX; exporting takes seconds, so each network is exported once in a test run."""
    return typed(_plain_onnx(kind), precision)


@functools.cache
def _plain_onnx(kind: str) -> bytes:
    return exported(kind).onnx()


def patches(kind: str, size: int = 2, factor: int = 1) -> Tensor:
    """Normalised patches of noise and edges of the recipe's window."""
    x, y, z = (factor * side for side in small_recipe(kind).inference.window_vox)
    images = 0.3 * torch.randn((size, 1, x, y, z), generator=torch.Generator().manual_seed(7))
    images[:, :, x // 4 : x // 2, y // 4 :, : z // 2] += 1
    return images


def tensors_of(output: Output) -> list[Tensor]:
    """All of its tensors."""
    return [*output[0], *output[1]] if len(output) == 2 else [output[0]]


def furthest(found: Output, expected: Output) -> float:
    """The largest difference of any two values, as a part of the largest value of its tensor (at least 1)."""
    pairs = zip(tensors_of(found), tensors_of(expected), strict=True)
    return max(float((one - other).abs().max()) / max(1.0, float(other.abs().max())) for one, other in pairs)
