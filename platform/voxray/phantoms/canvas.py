"""A scan in the making: Hounsfield units and labels on a grid, painted solid by solid."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from voxray.core.volume import Grid, Vector
from voxray.phantoms.shapes import Array, Solid, grown

AIR_HU = -1000.0

_Block = tuple[slice, slice, slice]
Tissue = float | Callable[[Array, Array, Array], Array]
"""Hounsfield units: one value, or a function of LPS mm."""


class Canvas:
    """Air to begin with. What is painted later covers what was there."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.voxels = np.full(grid.shape, AIR_HU, np.float32)
        self.labels: UInt8[np.ndarray, "x y z"] = np.zeros(grid.shape, np.uint8)
        self.voxel_mm = float(np.prod(grid.spacing_mm) ** (1 / 3))
        self._points = _points(grid)
        self._to_index = np.linalg.inv(grid.affine)

    def paint(self, solid: Solid, tissue: Tissue, *, label: int | None = None, opacity: float = 1.0) -> None:
        """Covers the solid; a voxel on its border is covered in part, over one voxel's width."""
        self.paint_layers(solid, ((0.0, tissue),), label=label, opacity=opacity)

    def paint_layers(
        self, solid: Solid, layers: Sequence[tuple[float, Tissue]], *, label: int | None = None, opacity: float = 1.0
    ) -> None:
        """Covers the solid layer by layer from outside; each begins at a depth in mm below the surface.

        The label goes to the first layer and all within it. The distance, which is what costs time, is found once.
        """
        reach = max(0.0, -layers[0][0])
        block = self.block(grown(solid, reach))
        if block is None:
            return
        points = self.points(block)
        distance = solid.distance(*points)
        for depth_mm, tissue in layers:
            below = distance + np.float32(depth_mm)
            share = np.clip(0.5 - below / np.float32(self.voxel_mm), 0, 1) * np.float32(opacity)
            hu = np.float32(tissue) if isinstance(tissue, int | float) else tissue(*points)
            self.voxels[block] += share * (hu - self.voxels[block])
        if label is not None:
            self.labels[block][distance < -layers[0][0]] = label

    def block(self, solid: Solid) -> _Block | None:
        """The part of the grid that can meet the solid, or None where they lie apart."""
        corners = np.array([solid.low, solid.high])
        every = np.array(
            [[corners[i, 0], corners[j, 1], corners[k, 2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)]
        )
        index = every @ self._to_index[:3, :3].T + self._to_index[:3, 3]
        low = np.clip(np.floor(index.min(axis=0)) - 1, 0, self.grid.shape).astype(int)
        high = np.clip(np.ceil(index.max(axis=0)) + 2, 0, self.grid.shape).astype(int)
        if np.any(high <= low):
            return None
        x, y, z = (slice(int(first), int(last)) for first, last in zip(low, high, strict=True))
        return x, y, z

    def points(self, block: _Block) -> tuple[Array, Array, Array]:
        """The centres of a block's voxels, LPS mm."""
        x, y, z = (axis[block] for axis in self._points)
        return x, y, z


def _points(grid: Grid) -> tuple[Array, Array, Array]:
    steps = [np.arange(side, dtype=np.float64) for side in grid.shape]
    rows = []
    for row in grid.affine[:3]:
        i, j, k = (step * weight for step, weight in zip(steps, row[:3], strict=True))
        rows.append((i[:, None, None] + j[None, :, None] + k[None, None, :] + row[3]).astype(np.float32))
    x, y, z = rows
    return x, y, z


def grid_over(centre_mm: Vector, size_mm: Vector, spacing_mm: Vector, axes: np.ndarray) -> Grid:
    """A grid about `centre_mm` that covers the size (along its own axes) with the given LPS axes as columns."""
    x, y, z = (max(8, round(size / step)) for size, step in zip(size_mm, spacing_mm, strict=True))
    affine = np.eye(4)
    affine[:3, :3] = axes * np.asarray(spacing_mm)
    affine[:3, 3] = np.asarray(centre_mm) - affine[:3, :3] @ ((np.array([x, y, z]) - 1) / 2)
    return Grid.from_affine(affine, (x, y, z))


def levelled(level_mm: float, gas_hu: float, fluid_hu: Tissue) -> Tissue:
    """Gas in front of a level, as it lies in someone on the back, and fluid behind it."""

    def hu(x: Array, y: Array, z: Array) -> Array:
        fluid = np.float32(fluid_hu) if isinstance(fluid_hu, int | float) else fluid_hu(x, y, z)
        share = np.clip(np.float32(0.5) + (y - np.float32(level_mm)) / 2, 0, 1)
        mixed: Array = np.float32(gas_hu) + share * (fluid - np.float32(gas_hu))
        return mixed

    return hu
