"""A scan in the making: Hounsfield units and labels on a grid, painted solid by solid."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from voxray.phantoms.shapes import Array, Solid
from voxray.volume import Grid, Vector

AIR_HU = -1000.0

Block = tuple[slice, slice, slice]
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

    def paint(
        self, solid: Solid, tissue: Tissue, *, label: int | None = None, opacity: float = 1.0, border_mm: float = 0.0
    ) -> None:
        """Covers the solid; a voxel on its border is covered in part, over one voxel's width or `border_mm`."""
        block = self.block(solid)
        if block is None:
            return
        points = self.points(block)
        depth = solid.distance(*points)
        share = np.clip(0.5 - depth / np.float32(max(self.voxel_mm, border_mm)), 0, 1) * np.float32(opacity)
        colour = np.float32(tissue) if isinstance(tissue, int | float) else tissue(*points)
        self.voxels[block] += share * (colour - self.voxels[block])
        if label is not None:
            self.labels[block][depth < 0] = label

    def block(self, solid: Solid) -> Block | None:
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

    def points(self, block: Block) -> tuple[Array, Array, Array]:
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
