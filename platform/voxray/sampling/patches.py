"""Cutting a training patch from a tile, and patches into a batch.

A foreground patch in detection holds a random object of the tile wholly, at a random offset (an object larger than
the patch: the patch's centre lies in it); in segmentation it is centred on a random voxel of a random one of the
tile's classes. A background patch lies anywhere, preferably with its centre outside every object. Where the tile is
smaller than the patch, the patch is padded at its end, as windows are at inference.

What a patch's border cuts: an object of which at least half the volume remains is kept, clipped; of which less
remains, it becomes a region that is `IGNORED`, neither truth nor background. With ``patch.whole_boxes = false``
every cut object is kept, clipped, where at least a voxel of each side remains. What the *tile's* border had cut
already is always ignored: how much of it is missing is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int16, Int64, UInt8
from numpy.random import Generator
from numpy.typing import NDArray

from voxray.core.batch import IGNORED, PADDING, PatchBatch
from voxray.core.case import Tile
from voxray.core.recipe import Recipe
from voxray.core.volume import Shape
from voxray.sampling.tiles import clip_boxes

_Voxel = TypeVar("_Voxel", bound=np.generic)

KEPT_SHARE = 0.5
"""Of an object that a patch's border cuts: the share of its volume from which on it is kept."""

_TRIES = 8
_PROBES = 2048


@dataclass(frozen=True)
class Patch:
    """One training patch: Hounsfield units, boxes in its own edge voxels, and its volume's statistics in HU."""

    voxels: Int16[np.ndarray, "x y z"]
    stats: Float32[np.ndarray, " 4"]
    boxes: Float32[np.ndarray, "n 6"]
    classes: Int64[np.ndarray, " n"]
    labels: UInt8[np.ndarray, "x y z"] | None


def cut_patch(tile: Tile, recipe: Recipe, rng: Generator, *, foreground: bool) -> Patch:
    """A random patch of the tile; `foreground` needs a tile that has some."""
    size = recipe.patch.size_vox
    if foreground:
        labels = tile.labels
        start = _around_object(tile, size, rng) if labels is None else _around_label(tile, labels, size, rng)
    else:
        start = _anywhere(tile, size, rng, avoid=recipe.patch.foreground > 0)
    boxes, classes = _boxes_in(tile, start, recipe)
    stats = tile.stats
    return Patch(
        voxels=_crop(tile.voxels, start, size, recipe.patch.pad_hu),
        stats=np.array([stats.mean_hu, stats.std_hu, stats.min_hu, stats.max_hu], np.float32),
        boxes=boxes.astype(np.float32),
        classes=classes,
        labels=None if tile.labels is None else _crop(tile.labels, start, size, 0),
    )


def collate(patches: Sequence[Patch]) -> PatchBatch:
    """The patches as one batch; boxes are padded to a common count with class `PADDING`."""
    most = max(len(patch.boxes) for patch in patches)
    boxes = np.zeros((len(patches), most, 6), np.float32)
    classes = np.full((len(patches), most), PADDING, np.int64)
    for row, patch in enumerate(patches):
        boxes[row, : len(patch.boxes)] = patch.boxes
        classes[row, : len(patch.boxes)] = patch.classes
    labels = [patch.labels for patch in patches if patch.labels is not None]
    return PatchBatch(
        voxels=torch.from_numpy(np.stack([patch.voxels for patch in patches])),
        stats=torch.from_numpy(np.stack([patch.stats for patch in patches])),
        boxes=torch.from_numpy(boxes),
        classes=torch.from_numpy(classes),
        labels=torch.from_numpy(np.stack(labels)) if labels else None,
    )


def _around_object(tile: Tile, size: Shape, rng: Generator) -> Shape:
    """A start such that the patch holds a random object, or has its centre in it where the object is larger."""
    box = tile.boxes[rng.integers(len(tile.boxes))]
    first, last = patch_starts(box[None], np.array([tile.voxels.shape]), size)
    x, y, z = (int(rng.integers(one, other + 1)) for one, other in zip(first[0], last[0], strict=True))
    return x, y, z


def patch_starts(
    boxes: Float64[np.ndarray, "n 6"], tile_shapes: Int64[np.ndarray, "n 3"], size: Shape
) -> tuple[Int64[np.ndarray, "n 3"], Int64[np.ndarray, "n 3"]]:
    """The first and the last voxel at which a patch around each object of a tile may start, axis by axis."""
    low, high, sides = boxes[:, :3], boxes[:, 3:], np.array(size)
    first, last = np.ceil(high - 1e-6) - sides, np.floor(low + 1e-6)
    larger = first > last
    first = np.where(larger, np.ceil(low - sides / 2), first)
    last = np.where(larger, np.floor(high - sides / 2), last)
    end = np.maximum(tile_shapes - sides, 0)
    return np.clip(first, 0, end).astype(np.int64), np.clip(last, 0, end).astype(np.int64)


def is_kept(
    sides: Float64[np.ndarray, "n 3"], share: Float64[np.ndarray, " n"], *, whole_boxes: bool
) -> Bool[np.ndarray, " n"]:
    """Which objects are a patch's truth, by the sides and the share of their volume that it holds."""
    return np.asarray(share >= KEPT_SHARE if whole_boxes else (sides >= 1).all(axis=1) | (share > 1 - 1e-6))


def _around_label(tile: Tile, labels: UInt8[np.ndarray, "x y z"], size: Shape, rng: Generator) -> Shape:
    """A start that centres the patch on a random voxel of a random class, as far as the tile reaches."""
    found = np.unravel_index(_labelled_voxel(labels.reshape(-1), rng), labels.shape)
    x, y, z = (_clamp(tile, axis, side, int(found[axis]) - side // 2) for axis, side in enumerate(size))
    return x, y, z


def _labelled_voxel(labels: UInt8[np.ndarray, " v"], rng: Generator) -> int:
    """The flat index of a voxel: its class drawn evenly from those present, then the voxel evenly from that class."""
    counts = np.bincount(labels, minlength=2)
    counts[0] = 0
    label = int(rng.choice(np.flatnonzero(counts)))
    probes = rng.integers(labels.size, size=_PROBES)
    hits = probes[labels[probes] == label]
    return int(hits[0]) if hits.size else int(rng.choice(np.flatnonzero(labels == label)))


def _anywhere(tile: Tile, size: Shape, rng: Generator, *, avoid: bool) -> Shape:
    """A start drawn evenly; with `avoid` drawn again, a few times, while the patch's centre is in an object."""
    start = (0, 0, 0)
    for _ in range(_TRIES if avoid else 1):
        x, y, z = (
            int(rng.integers(max(length - side, 0) + 1)) for length, side in zip(tile.voxels.shape, size, strict=True)
        )
        start = (x, y, z)
        if not _is_object(tile, np.add(start, np.floor_divide(size, 2))):
            break
    return start


def _is_object(tile: Tile, centre: Int64[np.ndarray, " 3"]) -> bool:
    if (centre >= tile.voxels.shape).any():
        return False
    if tile.labels is not None:
        return bool(tile.labels[tuple(centre)])
    boxes = np.concatenate([tile.boxes, tile.cut_boxes])
    return bool(((boxes[:, :3] <= centre + 0.5) & (centre + 0.5 < boxes[:, 3:])).all(axis=1).any())


def _boxes_in(tile: Tile, start: Shape, recipe: Recipe) -> tuple[Float64[np.ndarray, "n 6"], Int64[np.ndarray, " n"]]:
    size = recipe.patch.size_vox
    clipped, share = clip_boxes(tile.boxes, start, size)
    kept = is_kept(clipped[:, 3:] - clipped[:, :3], share, whole_boxes=recipe.patch.whole_boxes)
    cut, cut_share = clip_boxes(tile.cut_boxes, start, size)
    boxes = np.concatenate([clipped[share > 0], cut[cut_share > 0]])
    known = np.where(kept, tile.classes, IGNORED)[share > 0]
    return boxes, np.concatenate([known, np.full(int((cut_share > 0).sum()), IGNORED, np.int64)])


def _crop(voxels: NDArray[_Voxel], start: Shape, size: Shape, padding: int) -> NDArray[_Voxel]:
    found = voxels[tuple(slice(first, first + side) for first, side in zip(start, size, strict=True))]
    if found.shape == size:
        return np.ascontiguousarray(found)
    made = np.full(size, padding, voxels.dtype)
    made[tuple(slice(0, length) for length in found.shape)] = found
    return made


def _clamp(tile: Tile, axis: int, side: int, start: int) -> int:
    return min(max(start, 0), max(int(tile.voxels.shape[axis]) - side, 0))
