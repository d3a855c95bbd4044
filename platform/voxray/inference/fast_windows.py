"""The fast plan: how few windows, and in which precision, answer a scan as well as the recipe's own do.

A window's border sees too little of its surroundings. Overlapping windows by half, as is often done, hides that by
computing everything eight times; an eighth of overlap with Gaussian weights hides it too. And larger windows have
less border.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch

from voxray.core.recipe import Recipe
from voxray.core.volume import Shape
from voxray.windows import starts

OVERLAP = 0.125
GROWTH = 3
"""A window may have so many times the voxels of the recipe's."""


def planned(recipe: Recipe, shape: Shape, *, fixed: bool = False) -> Recipe:
    """The recipe with the windows that it is to answer a grid of this shape with; as it is, if its plan says so.

    `fixed`: the network takes no other window than the recipe's.
    """
    config = recipe.inference
    if config.plan == "recipe":
        return recipe
    overlap = min(OVERLAP, config.overlap)
    window = config.window_vox
    if recipe.network.local and not fixed:
        window = _cheapest(shape, window, overlap=overlap, stride=recipe.network.stride_vox)
    fast = config.model_copy(update={"window_vox": window, "overlap": overlap, "blend": "gaussian", "batch_size": 1})
    return recipe.model_copy(update={"inference": fast})


def half_on(device: torch.device) -> Literal["off", "bf16"]:
    """The half precision that the device computes fast in and that needs no care; ``off`` where there is none."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "off"
    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "off"


def _cheapest(shape: Shape, window: Shape, *, overlap: float, stride: Shape) -> Shape:
    """The window no smaller than the given one on any axis with which the fewest voxels are computed."""
    most = GROWTH * window[0] * window[1] * window[2]
    axes = [
        _worth_it(length, side, overlap=overlap, stride=step)
        for length, side, step in zip(shape, window, stride, strict=True)
    ]
    fitting = [sides for sides in itertools.product(*axes) if sides[0][0] * sides[1][0] * sides[2][0] <= most]
    best = min(fitting, key=lambda sides: (sides[0][1] * sides[1][1] * sides[2][1], [one for one, _ in sides]))
    return best[0][0], best[1][0], best[2][0]


def _worth_it(length: int, side: int, *, overlap: float, stride: int) -> list[tuple[int, int]]:
    """Sides from `side` up, with the voxels that their windows take along one axis: those that take fewer."""
    found: list[tuple[int, int]] = []
    for one in range(side, max(side, -(-length // stride) * stride) + 1, stride):
        taken = one * len(starts(length, one, overlap, stride))
        if not found or taken < found[-1][1]:
            found.append((one, taken))
    return found
