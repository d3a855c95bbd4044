"""Detections: scored boxes of one case, in voxels of a grid or in world millimetres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32, Int64

from voxray.core.volume import Grid

Frame = Literal["voxel", "LPS", "RAS"]
Box = tuple[float, float, float, float, float, float]
"""``x1 y1 z1 x2 y2 z2``, as files spell it."""

_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Detections:
    """n boxes ``x1 y1 z1 x2 y2 z2`` (half-open), scores in [0, 1] and class indices, highest score first.

    In ``voxel`` they are edge coordinates of the grid at hand, else millimetres in the named frame.
    """

    boxes: Float32[np.ndarray, "n 6"]
    scores: Float32[np.ndarray, " n"]
    classes: Int64[np.ndarray, " n"]
    frame: Frame = "voxel"

    def __len__(self) -> int:
        return len(self.boxes)

    @staticmethod
    def empty(frame: Frame = "voxel") -> Detections:
        """No findings."""
        return Detections(
            boxes=np.zeros((0, 6), np.float32),
            scores=np.zeros(0, np.float32),
            classes=np.zeros(0, np.int64),
            frame=frame,
        )

    def take(self, index: Any) -> Detections:
        """The detections that a numpy index or mask picks, in its order."""
        return Detections(self.boxes[index], self.scores[index], self.classes[index], self.frame)

    def to_world(self, grid: Grid) -> Detections:
        """The boxes in LPS mm: each the exact box of the rotated inscribed ellipsoid."""
        assert self.frame == "voxel", self.frame
        boxes = boxes_to_world(self.boxes.astype(np.float64), grid)
        return Detections(boxes.astype(np.float32), self.scores, self.classes, "LPS")

    def to_voxel(self, grid: Grid) -> Detections:
        """The inverse of `to_world` where the grid's axes lie along the patient's, else the enclosing rule again."""
        assert self.frame != "voxel"
        boxes = boxes_to_voxel(self.in_frame("LPS").boxes.astype(np.float64), grid)
        return Detections(boxes.astype(np.float32), self.scores, self.classes, "voxel")

    def in_frame(self, frame: Literal["LPS", "RAS"]) -> Detections:
        """The same world boxes in the other of the two world frames (x and y change sign)."""
        assert self.frame != "voxel"
        if frame == self.frame:
            return self
        low, high = self.boxes[:, :3] * _LPS_TO_RAS, self.boxes[:, 3:] * _LPS_TO_RAS
        boxes = np.concatenate([np.minimum(low, high), np.maximum(low, high)], axis=1).astype(np.float32)
        return Detections(boxes, self.scores, self.classes, frame)


def boxes_to_world(boxes: Float[np.ndarray, "n 6"], grid: Grid) -> Float[np.ndarray, "n 6"]:
    """Boxes in edge voxels of `grid` -> LPS mm; half-extents h become sqrt((R*R) @ (h*h))."""
    centre = grid.to_world((boxes[:, :3] + boxes[:, 3:]) / 2)
    half = (boxes[:, 3:] - boxes[:, :3]) / 2 * np.asarray(grid.spacing_mm)
    half = np.sqrt(half**2 @ (grid.rotation**2).T)
    return np.concatenate([centre - half, centre + half], axis=1)


def boxes_to_voxel(boxes: Float[np.ndarray, "n 6"], grid: Grid) -> Float[np.ndarray, "n 6"]:
    """Boxes in LPS mm -> edge voxels of `grid`, by the same rule as `boxes_to_world`."""
    centre = grid.to_voxel((boxes[:, :3] + boxes[:, 3:]) / 2)
    half = (boxes[:, 3:] - boxes[:, :3]) / 2
    half = np.sqrt(half**2 @ grid.rotation**2) / np.asarray(grid.spacing_mm)
    return np.concatenate([centre - half, centre + half], axis=1)
