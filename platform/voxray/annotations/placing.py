"""Boxes of a table put on the grid of their image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from voxray.core.detections import boxes_to_voxel
from voxray.core.errors import DataError
from voxray.core.volume import Grid
from voxray.dataset.source import BoxTruth

_Boxes = Float64[np.ndarray, "n 6"]

_HALF_TURN = np.array([-1.0, -1.0, 1.0])


def place_boxes(
    truth: BoxTruth, grid: Grid, classes: Sequence[str], *, overhang_vox: float
) -> tuple[_Boxes, list[DataError]]:
    """The boxes in edge voxels of `grid`, cut off at its border; one that reaches too far beyond is a problem."""
    boxes = truth.boxes if truth.frame == "voxel" else boxes_to_voxel(truth.boxes, grid)
    clipped = np.concatenate([np.maximum(boxes[:, :3], 0), np.minimum(boxes[:, 3:], grid.shape)], axis=1)
    away = np.any(clipped[:, 3:] <= clipped[:, :3], axis=1)
    too_far = np.logical_or(away, np.abs(boxes - clipped).max(axis=1, initial=0) > overhang_vox)
    remedy = _remedy(truth, grid, bool(away.any()))
    problems = []
    for index in np.flatnonzero(too_far):
        low, high = (", ".join(f"{value:.1f}" for value in part) for part in (boxes[index, :3], boxes[index, 3:]))
        how = "lies outside" if away[index] else "reaches beyond"
        text = (
            f"box {index} ({classes[truth.classes[index]]}) {how} its image: voxels {low} to {high} "
            f"of {' x '.join(str(side) for side in grid.shape)}."
        )
        problems.append(DataError("boxes.outside", text, remedy=remedy))
    return np.ascontiguousarray(clipped), problems


def _remedy(truth: BoxTruth, grid: Grid, some_away: bool) -> str:
    if some_away and truth.frame != "voxel" and _would_lie_inside(truth, grid):
        return "With the signs of x and y turned they would lie inside: does the file use the other of LPS and RAS?"
    return "Mend or delete it, exclude the case, or allow more with overhang_vox where the scan really ends there."


def _would_lie_inside(truth: BoxTruth, grid: Grid) -> bool:
    centres = (truth.boxes[:, :3] + truth.boxes[:, 3:]) / 2 * _HALF_TURN
    index = grid.to_voxel(centres)
    return bool(((index >= 0) & (index <= grid.shape)).all())
