"""Where windows lie over a scan, and how their overlaps are blended.

Windows start at multiples of the network's stride and are padded at the end only: anywhere else the coarse feature
maps of neighbouring windows would not fall on one lattice, and their blend would be off by up to half a cell.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from voxray.volume import Shape

_SIGMA = 0.125
_MIN_WEIGHT = 1e-3


def starts(length: int, window: int, overlap: float, stride: int) -> list[int]:
    """First voxels of the windows along one axis: evenly spread, each pair overlapping by at least that share.

    The last window may reach beyond the end, by less than `stride`, or by window - length where the axis is shorter.
    """
    if length <= window:
        return [0]
    step = max(stride, int(window * (1 - overlap) + 1e-9) // stride * stride)
    last = -(-(length - window) // stride) * stride
    num_steps = -(-last // step)
    return [i * (last // stride) // num_steps * stride for i in range(num_steps + 1)]


def place(shape: Shape, window: Shape, overlap: float, stride: Shape) -> list[Shape]:
    """First voxels of the windows that cover a volume, last axis fastest."""
    axes = (starts(*sides[:2], overlap, sides[2]) for sides in zip(shape, window, stride, strict=True))
    return [(x, y, z) for x, y, z in itertools.product(*axes)]


def blend_weights(window: Shape, kind: Literal["constant", "gaussian"]) -> Float[Tensor, "x y z"]:
    """How much each voxel of a window counts: ones, or a Gaussian of sigma side/8 (as MONAI), at least 0.001."""
    weights = torch.ones(window)
    if kind == "constant":
        return weights
    for axis, side in enumerate(window):
        distance = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
        profile = torch.exp(-(distance**2) / (2 * (_SIGMA * side) ** 2))
        weights = weights * profile.reshape([-1 if i == axis else 1 for i in range(3)])
    return weights.clamp(min=_MIN_WEIGHT)
