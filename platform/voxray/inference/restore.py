"""The way back from the recipe's grid to the scan's own.

A recipe's grid is the scan's grid turned to RAS and resampled along its own axes, so the way between the two is one
scale and one shift per axis, whatever the scan's obliqueness. Boxes go back exactly; labels by nearest voxel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from voxray.detections import Detections
from voxray.volume import Grid, Volume


@dataclass(frozen=True)
class AxisMap:
    """Edge coordinates of one grid as those of another: ``to[row] = scale[row] * from[axis[row]] + shift[row]``."""

    axis: tuple[int, int, int]
    scale: Float[np.ndarray, " 3"]
    shift: Float[np.ndarray, " 3"]


def axis_map(source: Grid, target: Grid, *, tolerance: float = 1e-4) -> AxisMap:
    """The map from edge voxels of `source` to those of `target`, whose axes lie along each other's."""
    corners = target.to_voxel(source.to_world(np.concatenate([np.zeros((1, 3)), np.eye(3)])))
    matrix = (corners[1:] - corners[0]).T
    axis = np.argmax(np.abs(matrix), axis=1)
    scale = matrix[np.arange(3), axis]
    rest = matrix.copy()
    rest[np.arange(3), axis] = 0.0
    assert sorted(axis) == [0, 1, 2], axis
    assert np.abs(rest).max() <= tolerance * np.abs(scale).max(), "the grids' axes do not lie along each other's"
    first, second, third = (int(value) for value in axis)
    return AxisMap((first, second, third), scale, corners[0])


def labels_on(labels: Volume, grid: Grid) -> Volume:
    """A label map on `grid` by nearest voxel; a voxel beyond the map's border takes the border's label."""
    way = axis_map(grid, labels.grid)
    picked: list[Any] = []
    for row, side in enumerate(labels.grid.shape):
        centres = np.arange(grid.shape[way.axis[row]]) + 0.5
        index = np.floor(way.scale[row] * centres + way.shift[row] + 1e-6).astype(np.int64)
        picked.append(np.clip(index, 0, side - 1))
    found = labels.voxels[np.ix_(*picked)]
    return Volume(np.ascontiguousarray(np.moveaxis(found, (0, 1, 2), way.axis)), grid)


def detections_on(detections: Detections, source: Grid, target: Grid) -> Detections:
    """Detections in edge voxels of `source` as edge voxels of `target`."""
    assert detections.frame == "voxel", detections.frame
    way = axis_map(source, target)
    axis = list(way.axis)
    ends = detections.boxes.astype(np.float64).reshape(-1, 2, 3)[:, :, axis] * way.scale + way.shift
    boxes = np.concatenate([ends.min(axis=1), ends.max(axis=1)], axis=1)
    return replace(detections, boxes=boxes.astype(np.float32))
