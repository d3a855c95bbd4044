"""Where windows lie over a scan, how their overlaps are blended, and the fast plan of few windows.

Windows start at multiples of the network's stride and are padded at the end only: anywhere else the coarse feature
maps of neighbouring windows would not fall on one lattice, and their blend would be off by up to half a cell.

The fast plan: a window's border sees too little of its surroundings. Overlapping windows by half, as is often done,
hides that by computing everything eight times; an eighth of overlap with Gaussian weights hides it too. And larger
windows have less border.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from voxray.core.recipe import Recipe
from voxray.core.volume import Shape

OVERLAP = 0.125
"""Of the fast plan's windows."""
GROWTH = 3
"""A window of the fast plan may have so many times the voxels of the recipe's."""
_SIGMA = 0.125
_MIN_WEIGHT = 1e-3


@dataclass(frozen=True)
class Lattice:
    """Where windows of one size lie over a grid: the first voxels along each axis, in order."""

    shape: Shape
    window: Shape
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    @property
    def axes(self) -> tuple[int, int, int]:
        """The grid's longest axis (the first of equals), then the two others: windows come sorted along them."""
        longest = max(range(3), key=lambda axis: self.shape[axis])
        second, third = (axis for axis in range(3) if axis != longest)
        return longest, second, third

    @property
    def places(self) -> list[Shape]:
        """First voxels of all windows, in the order in which they are answered."""
        found = itertools.product(*(self.starts[axis] for axis in self.axes))
        order = [self.axes.index(axis) for axis in range(3)]
        return [(place[order[0]], place[order[1]], place[order[2]]) for place in found]

    def step(self, axis: int, start: int) -> int:
        """How many voxels from `start` on belong to this window alone and those before it along the axis."""
        index = self.starts[axis].index(start)
        following = self.starts[axis][index + 1 :]
        return (following[0] if following else self.shape[axis]) - start


def windows_over(shape: Sequence[int], recipe: Recipe) -> Lattice:
    """Where the recipe's windows lie over a grid."""
    config, stride = recipe.inference, recipe.network.stride_vox
    return lattice(shape, window=config.window_vox, overlap=config.overlap, stride=stride, whole=config.whole_windows)


def lattice(shape: Sequence[int], *, window: Shape, overlap: float, stride: Shape, whole: bool = False) -> Lattice:
    """The windows that cover a grid. On an axis shorter than the window it shrinks to that, if not `whole`."""
    x, y, z = shape
    sides = window if whole else window_for((x, y, z), window, stride)
    first, second, third = (
        tuple(starts(length, side, overlap, step)) for length, side, step in zip(shape, sides, stride, strict=True)
    )
    return Lattice((x, y, z), sides, (first, second, third))


def window_for(shape: Shape, window: Shape, stride: Shape) -> Shape:
    """The window, shrunk on each axis where the scan is smaller: to the scan rounded up to the stride."""
    x, y, z = (min(side, -(-length // step) * step) for length, side, step in zip(shape, window, stride, strict=True))
    return x, y, z


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
