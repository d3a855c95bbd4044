"""Which objects a training can ever learn from: those that some patch keeps, and that some anchor answers.

The sampler's own rules decide (`sampling.patches`: where a patch may start, what of a cut object is kept), and the
anchors' (`boxes.assign`), for the patches that hold an object first, last and in the middle of their range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64

from voxray.boxes.anchors import AnchorLevel, anchor_levels
from voxray.boxes.assign import best_overlaps
from voxray.core.recipe import DetectionLoss, Recipe
from voxray.core.volume import Shape
from voxray.sampling.patches import KEPT_SHARE, is_kept, patch_starts

LEAST_IOU = 0.01
"""An object whose best anchor overlaps it less has none: its sides are more than 4.6 times the anchor's, or less than
that part of them, along every axis, and the boxes of its answers would be guesses."""

POOR_IOU = 0.1
"""Below this, the best anchor's sides are 2.15 times too large or too small along every axis."""

_AT_ONCE = 4096


@dataclass(frozen=True)
class TiledObjects:
    """Objects in the tiles that hold them, m of n objects being in several tiles: as flat arrays of such pairs."""

    number: Int64[np.ndarray, " p"]
    """Which object, from 0 to n - 1."""
    boxes: Float64[np.ndarray, "p 6"]
    """In edge voxels of the tile, not clipped to it."""
    tile_shapes: Int64[np.ndarray, "p 3"]


@dataclass(frozen=True)
class Targets:
    """For n objects, whether a patch can keep each, and how well the best of its positive anchors overlaps it."""

    is_tiled: Bool[np.ndarray, " n"]
    """Whether any tile holds it."""
    is_kept: Bool[np.ndarray, " n"]
    iou: Float64[np.ndarray, " n"]
    """0 where no patch keeps the object, or none of its anchors is positive."""

    @property
    def possible(self) -> Bool[np.ndarray, " n"]:
        """The objects that can be a target."""
        return np.asarray(self.iou >= LEAST_IOU)


def possible_targets(tiled: TiledObjects, num_objects: int, recipe: Recipe) -> Targets:
    """What the sampler and the anchors of a detection's recipe make of the objects.

    With ``patch.whole_boxes`` an object must be in a patch for at least half, what its tile's border cuts included.
    """
    kept, iou = np.zeros(num_objects, bool), np.zeros(num_objects)
    levels = patch_levels(recipe)
    for first in range(0, len(tiled.number), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        number, boxes, shapes = tiled.number[part], tiled.boxes[part], tiled.tile_shapes[part]
        for start in _starts(boxes, shapes, recipe.patch.size_vox):
            clipped, found = _in_patch(boxes, shapes, start, recipe)
            np.logical_or.at(kept, number, found)
            np.maximum.at(iou, number[found], _overlaps(clipped[found], levels, recipe))
    return Targets(np.isin(np.arange(num_objects), tiled.number), kept, iou)


def patch_levels(recipe: Recipe) -> tuple[AnchorLevel, ...]:
    """The anchors of a whole training patch."""
    assert recipe.anchors is not None
    strides = recipe.network.level_strides_vox
    shapes = [
        [-(-side // step) for side, step in zip(recipe.patch.size_vox, stride, strict=True)] for stride in strides
    ]
    return anchor_levels(recipe.anchors, shapes, strides)


def largest_sides_vox(recipe: Recipe) -> Shape | None:
    """The sides of the largest object of a patch's proportions that a patch can keep; None where any is kept."""
    if not recipe.patch.whole_boxes:
        return None
    x, y, z = (int(side / KEPT_SHARE ** (1 / 3)) for side in recipe.patch.size_vox)
    return x, y, z


def _starts(
    boxes: Float64[np.ndarray, "p 6"], shapes: Int64[np.ndarray, "p 3"], size: Shape
) -> tuple[Int64[np.ndarray, "p 3"], ...]:
    low, high = np.maximum(boxes[:, :3], 0), np.minimum(boxes[:, 3:], shapes)
    first, last = patch_starts(np.concatenate([low, high], axis=1), shapes, size)
    return first, (first + last) // 2, last


def _in_patch(
    boxes: Float64[np.ndarray, "p 6"],
    shapes: Int64[np.ndarray, "p 3"],
    start: Int64[np.ndarray, "p 3"],
    recipe: Recipe,
) -> tuple[Float64[np.ndarray, "p 6"], Bool[np.ndarray, " p"]]:
    """The boxes as patches that start there hold them, and which of them are a patch's truth."""
    size = recipe.patch.size_vox
    in_tile = np.concatenate([np.maximum(boxes[:, :3], 0), np.minimum(boxes[:, 3:], shapes)], axis=1)
    low, high = (np.clip(side - start, 0, size) for side in (in_tile[:, :3], in_tile[:, 3:]))
    volume, of_tile, whole = (np.prod(b - a, axis=1) for a, b in ((low, high), _ends(in_tile), _ends(boxes)))
    kept = is_kept(high - low, volume / of_tile, whole_boxes=recipe.patch.whole_boxes)
    if recipe.patch.whole_boxes:
        kept &= volume >= KEPT_SHARE * whole
    return np.concatenate([low, high], axis=1), np.asarray(kept)


def _ends(boxes: Float64[np.ndarray, "p 6"]) -> tuple[Float64[np.ndarray, "p 3"], Float64[np.ndarray, "p 3"]]:
    return boxes[:, :3], boxes[:, 3:]


def _overlaps(
    boxes: Float64[np.ndarray, "p 6"], levels: tuple[AnchorLevel, ...], recipe: Recipe
) -> Float64[np.ndarray, " p"]:
    assert isinstance(recipe.loss, DetectionLoss)
    return best_overlaps(
        torch.from_numpy(boxes),
        levels,
        num_candidates=recipe.loss.atss_candidates,
        center_in_box=recipe.loss.atss_center_in_box,
    ).numpy()
