"""Candidates: what a network answers before any of it is suppressed, for a window and for a whole scan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from voxray.core.recipe import DetectionMerge
from voxray.core.volume import Grid, Shape, Vector

_GAUSSIAN_SHARE = 0.8

Columns = tuple[Tensor, ...]
"""Boxes, scores, classes, views and windows of candidates."""


class Candidates(NamedTuple):
    """A window's boxes before any suppression, in edge voxels of the window, level by level, best first."""

    boxes: Float[Tensor, "n 6"]
    scores: Float[Tensor, " n"]
    classes: Int64[Tensor, " n"]
    views: Int64[Tensor, " n"] | None = None
    """Which network and mirror each comes from, in the order in which they answer; None: all from the first."""
    num_views: int = 1
    """How many were asked, whether they found something or not."""

    def view_of_each(self) -> Int64[Tensor, " n"]:
        """`views`, written out."""
        return torch.zeros_like(self.classes) if self.views is None else self.views


@dataclass(frozen=True)
class Placed:
    """A scan's candidates on its grid, in edge voxels, window by window, and where those windows lie."""

    boxes: Float[Tensor, "n 6"]
    scores: Float[Tensor, " n"]
    classes: Int64[Tensor, " n"]
    views: Int64[Tensor, " n"]
    tiles: Int64[Tensor, " n"]
    """The window of each, as a row of `starts`."""
    starts: Int64[Tensor, "t 3"]
    """First voxels of all windows."""
    window: Shape
    num_views: int

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, index: Bool[Tensor, " n"] | Int64[Tensor, " k"] | slice) -> Placed:
        """The candidates that a mask, an index or a slice picks."""
        names = ("boxes", "scores", "classes", "views", "tiles")
        return replace(self, **{name: getattr(self, name)[index] for name in names})

    def trusted(self, kind: Literal["none", "linear", "gaussian"]) -> Float[Tensor, " n"]:
        """How much each counts by its centre's place in its window: `tile_weights`."""
        centres = (self.boxes[:, :3] + self.boxes[:, 3:]) / 2 - self.starts[self.tiles]
        return tile_weights(centres, self.window, kind)

    def num_windows(self) -> Float[Tensor, " n"]:
        """The mean number of windows over each box's voxels: so many answers a view can give there.

        Windows are a lattice, so their number at a voxel is the product of those along the axes, and its mean over a
        box that of the means along its sides.
        """
        mean = torch.ones_like(self.scores)
        for axis, side in enumerate(self.window):
            starts = torch.unique(self.starts[:, axis])
            low, high = self.boxes[:, axis, None], self.boxes[:, axis + 3, None]
            shared = (torch.minimum(high, starts + side) - torch.maximum(low, starts)).clamp_min(0).sum(dim=1)
            mean = mean * shared / (high - low)[:, 0]
        return mean


def place(
    windows: Iterable[tuple[Shape, Candidates]], grid: Grid, window: Shape, *, how: DetectionMerge | None = None
) -> Placed:
    """All windows' candidates on the grid, clipped to it; where `how` is given, only those that it allows."""
    parts: list[Columns] = []
    starts, num_views = [], 1
    for number, (start, found) in enumerate(windows):
        offset = torch.tensor([*start, *start], dtype=torch.float32, device=found.boxes.device)
        boxes = clipped(found.boxes + offset, grid.shape)
        kept = has_volume(boxes) if how is None else allowed(boxes, found.scores, grid.spacing_mm, how)
        tiles = torch.full_like(found.classes, number)
        columns = (found.scores, found.classes, found.view_of_each(), tiles)
        parts.append((boxes[kept], *(column[kept] for column in columns)))
        starts.append(start)
        num_views = max(num_views, found.num_views)
    boxes, scores, classes, views, tiles = (torch.cat(column) for column in zip(*(parts or [nothing()]), strict=True))
    first = torch.tensor(starts, dtype=torch.int64, device=boxes.device).reshape(-1, 3)
    return Placed(boxes, scores, classes, views, tiles, starts=first, window=window, num_views=num_views)


def nothing() -> Columns:
    """The columns of no candidate."""
    whole = torch.zeros(0, dtype=torch.int64)
    return torch.zeros((0, 6)), torch.zeros(0), whole, whole, whole


def allowed(
    boxes: Float[Tensor, "n 6"], scores: Float[Tensor, " n"], spacing_mm: Vector, how: DetectionMerge
) -> Bool[Tensor, " n"]:
    """What is good enough for the merge to look at: score, volume, and no side that is too short."""
    sides_mm = (boxes[:, 3:] - boxes[:, :3]) * torch.tensor(spacing_mm, device=boxes.device)
    return (scores > how.score_floor) & has_volume(boxes) & (sides_mm >= how.min_size_mm).all(dim=1)


def tile_weights(
    centres: Float[Tensor, "n 3"], window: Sequence[int], kind: Literal["none", "linear", "gaussian"]
) -> Float[Tensor, " n"]:
    """How far boxes with these centres in a window are trusted.

    Linear is nnDetection's: 1 up to half of the window's half diagonal, down to 0.5 at its corners. Gaussian is the
    Medical Detection Toolkit's: the mean over the axes of a bell with a standard deviation of 0.8 half sides.
    """
    if kind == "none":
        return torch.ones_like(centres[:, 0])
    half = torch.tensor(window, dtype=centres.dtype, device=centres.device) / 2
    if kind == "linear":
        distance: Tensor = (centres - half).square().sum(dim=1).div(half.square().sum()).sqrt()
        return 1 - (distance - 0.5).clamp_min(0)
    bell = torch.exp(-(((centres - half) / (_GAUSSIAN_SHARE * half)) ** 2) / 2)
    return bell.mean(dim=1)


def clipped(boxes: Float[Tensor, "n 6"], shape: Sequence[int]) -> Float[Tensor, "n 6"]:
    """The boxes as far as they lie within a grid."""
    limit = torch.tensor([*shape, *shape], dtype=torch.float32, device=boxes.device)
    return boxes.clamp_min(0).minimum(limit)


def has_volume(boxes: Float[Tensor, "n 6"]) -> Bool[Tensor, " n"]:
    """Whether the boxes hold something."""
    return (boxes[:, 3:] > boxes[:, :3]).all(dim=1)
