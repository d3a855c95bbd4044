"""Cutting a resampled case into tiles: a patch plus a margin, so that every epoch crops anew.

In detection neighbours overlap by the case's largest object, as far as `patch.max_object_vox` goes, so each object up
to that size lies whole in some tile; in segmentation they overlap by the margin. On an axis where the case is shorter
than a tile, the tile is as long as the case: no padding is stored.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float64, Int64

from voxray.core.case import Case, Tile, VolumeStats
from voxray.core.recipe import Recipe
from voxray.core.volume import Shape
from voxray.windows import starts

_MAX_OVERLAP = 0.75
_EPSILON = 1e-6


def tile_shape(recipe: Recipe) -> Shape:
    """The sides of a full tile in voxels: patch + margin."""
    x, y, z = (side + margin for side, margin in zip(recipe.patch.size_vox, recipe.patch.margin_vox, strict=True))
    return x, y, z


def cut_tiles(case: Case, recipe: Recipe) -> Iterator[Tile]:
    """The tiles of a case on the recipe's grid, first axis slowest; together they cover it.

    An object that is whole in no tile (larger than `max_object_vox` allows) counts, clipped, as an object of the
    tiles that hold most of it.
    """
    case = case.for_task(recipe.task)
    places, sides = _layout(case, recipe)
    own = _own(case.boxes, places, sides)
    stats = VolumeStats.of(case.image.hounsfield)
    for place, mine in zip(places, own, strict=True):
        region = tuple(slice(first, first + side) for first, side in zip(place, sides, strict=True))
        clipped, share = clip_boxes(case.boxes, place, sides)
        yield Tile(
            case_id=case.case_id,
            start=place,
            voxels=case.image.hounsfield[region],
            stats=stats,
            boxes=clipped[mine],
            classes=case.classes[mine],
            cut_boxes=clipped[(share > 0) & ~mine],
            labels=None if case.labels is None else case.labels[region],
        )


def own_objects(case: Case, recipe: Recipe) -> list[Int64[np.ndarray, " m"]]:
    """For each of `cut_tiles`, which of the case's objects its boxes are."""
    places, sides = _layout(case, recipe)
    return [np.flatnonzero(mine) for mine in _own(case.for_task(recipe.task).boxes, places, sides)]


def _layout(case: Case, recipe: Recipe) -> tuple[list[Shape], Shape]:
    """First voxels and common sides of the tiles."""
    shape = case.image.grid.shape
    x, y, z = (min(tile, length) for tile, length in zip(tile_shape(recipe), shape, strict=True))
    axes = [
        starts(length, side, min(overlap / side, _MAX_OVERLAP), 1)
        for length, side, overlap in zip(shape, (x, y, z), _overlap_vox(case, recipe), strict=True)
    ]
    return [(i, j, k) for i, j, k in itertools.product(*axes)], (x, y, z)


def _overlap_vox(case: Case, recipe: Recipe) -> Shape:
    if recipe.task == "segmentation":
        return recipe.patch.margin_vox
    largest = np.ceil((case.boxes[:, 3:] - case.boxes[:, :3]).max(axis=0, initial=0.0)).astype(int)
    x, y, z = (min(int(side), most) for side, most in zip(largest, recipe.patch.max_object_vox, strict=True))
    return x, y, z


def _own(boxes: Float64[np.ndarray, "n 6"], places: list[Shape], sides: Shape) -> Bool[np.ndarray, "t n"]:
    """For each tile, which objects are its own: those whole in it, or if whole in none, most of which it holds."""
    shares = np.array([clip_boxes(boxes, place, sides)[1] for place in places]).reshape(len(places), len(boxes))
    best = shares.max(axis=0, initial=0.0)
    return np.asarray((shares > 0) & (shares >= best - _EPSILON))


def clip_boxes(
    boxes: Float64[np.ndarray, "n 6"], start: Shape, size: Shape
) -> tuple[Float64[np.ndarray, "n 6"], Float64[np.ndarray, " n"]]:
    """The boxes in voxels of the region at `start`, clipped to it, and which share of its volume each keeps."""
    low, high = np.clip(boxes[:, :3] - start, 0, size), np.clip(boxes[:, 3:] - start, 0, size)
    full = np.prod(boxes[:, 3:] - boxes[:, :3], axis=1)
    return np.concatenate([low, high], axis=1), np.prod(high - low, axis=1) / full
