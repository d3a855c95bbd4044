"""The way back from the recipe's grid to the scan's own.

A recipe's grid is the scan's grid turned to RAS and resampled along its own axes, so the way between the two is one
scale and one shift per axis, whatever the scan's obliqueness. Boxes go back exactly; labels by nearest voxel; shares
of classes by linear interpolation, a few planes at a time as slabs of them are finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from voxray.core.detections import Detections
from voxray.core.volume import Grid, Volume

FEW_CLASSES = 7
"""Up to so many foreground classes, their probabilities go back to the scan's own grid, not their labels."""

_PLANES_AT_ONCE = 16


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


def shares_on(
    slabs: Iterable[tuple[int, Float[Tensor, "k x y z"]]],
    source: Grid,
    grid: Grid,
    *,
    axis: int,
    named: Callable[[Float[Tensor, "k x y z"]], UInt8[Tensor, "x y z"]],
) -> Volume:
    """The label map on `grid` from slabs of classes' shares on `source`, in order across `axis`, each interpolated.

    `named` makes labels of them. `grid` is the one that `source` was resampled from: both have their first corner,
    seen along the axes of `source`, in one place.
    """
    labels = np.empty(grid.shape, np.uint8)
    planes = np.moveaxis(_turned_like(labels, grid, source), axis, 0)
    for rows, shares in _planes_on(slabs, source, grid, axis=axis):
        planes[rows] = named(shares).cpu().numpy()
    return Volume(labels, grid)


def bytes_on(
    slabs: Iterable[tuple[int, Float[Tensor, "k x y z"]]], source: Grid, grid: Grid, *, axis: int
) -> UInt8[np.ndarray, "k x y z"]:
    """Shares of 255 on `grid`, rounded, from slabs of them on `source`, as `shares_on` interpolates them."""
    made: Any = None
    views: list[Any] = []
    for rows, shares in _planes_on(slabs, source, grid, axis=axis):
        if made is None:
            made = np.empty((len(shares), *grid.shape), np.uint8)
            views = [np.moveaxis(_turned_like(one, grid, source), axis, 0) for one in made]
        for view, share in zip(views, shares, strict=True):
            view[rows] = share.round().to(torch.uint8).cpu().numpy()
    return np.asarray(made)


def _planes_on(
    slabs: Iterable[tuple[int, Float[Tensor, "k x y z"]]], source: Grid, grid: Grid, *, axis: int
) -> Iterator[tuple[slice, Float[Tensor, "k r u v"]]]:
    """Some planes of `grid` across `axis` of `source` after another, with the shares there."""
    shape, ratios = _sides_along(grid, source)
    length, others = shape[axis], [side for side in range(3) if side != axis]
    place = np.clip((np.arange(length) + 0.5) * ratios[axis] - 0.5, 0, source.shape[axis] - 1)
    lower = place.astype(np.int64)
    done = 0
    for first, held in _overlapping(slabs, axis):
        end = first + held.shape[1]
        reached = length if end == source.shape[axis] else int(np.searchsorted(lower, end - 1))
        for begin in range(done, reached, _PLANES_AT_ONCE):
            rows = slice(begin, min(begin + _PLANES_AT_ONCE, reached))
            mixed = _between(held, lower[rows] - first, place[rows] - lower[rows])
            yield rows, _enlarged(mixed, [shape[side] for side in others], [ratios[side] for side in others])
        done = max(done, reached)
    assert done == length, (done, length)


def _overlapping(slabs: Iterable[tuple[int, Tensor]], axis: int) -> Iterator[tuple[int, Tensor]]:
    """The slabs with their planes first, each with the last plane of the one before it."""
    last: Tensor | None = None
    for first, slab in slabs:
        planes = slab.movedim(axis + 1, 1)
        yield (first, planes) if last is None else (first - 1, torch.cat([last, planes], dim=1))
        last = planes[:, -1:].clone()


def _between(held: Float[Tensor, "k t a b"], lower: Any, weight: Any) -> Float[Tensor, "k r a b"]:
    """Planes between the held ones."""
    device = held.device
    begin = torch.from_numpy(lower).to(device)
    end = (begin + 1).clamp_max(held.shape[1] - 1)
    share = torch.from_numpy(weight.astype(np.float32)).to(device)[:, None, None]
    return torch.lerp(held.index_select(1, begin), held.index_select(1, end), share)


def _enlarged(planes: Float[Tensor, "k r a b"], sides: Any, ratios: list[float]) -> Float[Tensor, "k r u v"]:
    # One voxel more where old and new sides are equal: there torch copies instead of interpolating.
    size = [new + int(new == old) for new, old in zip(sides, planes.shape[2:], strict=True)]
    made = torch.ops.aten.upsample_bilinear2d(planes, size, False, 1 / ratios[0], 1 / ratios[1])
    found: Tensor = made[:, :, : sides[0], : sides[1]]
    return found


def _turned_like(voxels: Any, grid: Grid, source: Grid) -> Any:
    """Voxels of `grid` as a view along the axes of `source`."""
    way = axis_map(grid, source)
    corners = np.where(way.scale < 0, -way.scale * np.take(grid.shape, way.axis), 0.0)
    assert np.abs(way.shift - corners).max() < 1e-2, "the grids' first corners differ"
    return voxels.transpose(way.axis)[tuple(slice(None, None, -1 if scale < 0 else None) for scale in way.scale)]


def _sides_along(grid: Grid, source: Grid) -> tuple[list[int], list[float]]:
    """Sides of `grid` along the axes of `source`, and voxels of `source` for one of them on each axis."""
    way = axis_map(grid, source)
    return [grid.shape[axis] for axis in way.axis], [float(abs(scale)) for scale in way.scale]


def detections_on(detections: Detections, source: Grid, target: Grid) -> Detections:
    """Detections in edge voxels of `source` as edge voxels of `target`."""
    assert detections.frame == "voxel", detections.frame
    boxes = boxes_on(detections.boxes.astype(np.float64), source, target)
    return replace(detections, boxes=boxes.astype(np.float32))


def boxes_on(boxes: Float64[np.ndarray, "n 6"], source: Grid, target: Grid) -> Float64[np.ndarray, "n 6"]:
    """Boxes in edge voxels of `source` as edge voxels of `target`, whose axes lie along each other's."""
    way = axis_map(source, target)
    ends = boxes.reshape(-1, 2, 3)[:, :, list(way.axis)] * way.scale + way.shift
    return np.concatenate([ends.min(axis=1), ends.max(axis=1)], axis=1)
