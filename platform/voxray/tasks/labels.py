"""Labels from blended values: the largest, or thresholds; and label maps tidied up, class by class.

Tidying fills holes and removes small components, or all but the largest. Connected components are found in slabs that
are joined where they touch, so that beside the label map only a slab of one class is in memory, however large the
scan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from numpy.typing import NDArray
from scipy import ndimage, sparse
from torch import Tensor

from voxray.core.outputs import Head, channels_last
from voxray.tasks.finite import require_finite

SLAB_VOXELS = 1 << 24

CORNERS = np.ones((3, 3, 3), bool)
"""Voxels that share a corner touch."""
FACES = ndimage.generate_binary_structure(3, 1)
"""Only voxels that share a face touch."""

_Mask = Bool[np.ndarray, "x y z"]
_VOXELS_AT_ONCE = 1 << 15


def labels_of(sums: Float[Tensor, "c x y z"], head: Head | None = None) -> UInt8[Tensor, "x y z"]:
    """The first class of the largest sum; a sum that is not finite is a DataError, never a label.

    With a `head` they are the sums of its features and of the weights, and go through it a few planes at a time.
    """
    labels = torch.empty(sums.shape[1:], dtype=torch.uint8, device=sums.device)
    on_cpu = sums.device.type == "cpu"
    at_once = _VOXELS_AT_ONCE * (torch.get_num_threads() if on_cpu else 64 if head is None else 8)
    planes = max(1, at_once // max(1, labels[0].numel()))
    for some, named in zip(torch.split(sums, planes, dim=1), torch.split(labels, planes), strict=True):
        all_sums = some if head is None else head.sums(some)
        best, found = _largest(all_sums) if on_cpu else all_sums.max(0)
        require_finite(best)
        named.copy_(found)
    return labels


def labels_above(
    shares: Shaped[Tensor, "c x y z"], thresholds: Sequence[float | None], *, whole: float = 1.0
) -> UInt8[Tensor, "x y z"]:
    """Labels from classes' shares of `whole`, background first; ``thresholds[k]`` is that of label k + 1.

    A class with a threshold is there where its share is higher, however much background has; one without where its
    share is the largest of those without and background. Of several the one with the largest share, of equal ones the
    first.
    """
    labels = torch.zeros(shares.shape[1:], dtype=torch.uint8, device=shares.device)
    best = shares[0].clone()
    order = sorted(range(1, len(shares)), key=lambda label: thresholds[label - 1] is not None)
    for label in order:
        share, threshold = shares[label], thresholds[label - 1]
        wins = share > best
        if threshold is not None:
            wins = (share > threshold * whole) & (wins | (labels == 0))
        labels.masked_fill_(wins, label)
        best = torch.where(wins, share, best)
    return labels


def tidy(
    labels: UInt8[np.ndarray, "x y z"],
    *,
    smallest_vox: float = 0.0,
    largest_only: Sequence[int] = (),
    fill_holes: Sequence[int] = (),
) -> UInt8[np.ndarray, "x y z"]:
    """The label map with holes filled in the labels of `fill_holes`, and then without the components that are too
    small, or not the largest of the labels in `largest_only` (of equal ones the first)."""
    result = labels.copy()
    places = ndimage.find_objects(result)
    for label, place in enumerate(places, start=1):
        if place is not None and label in fill_holes:
            _fill(result[place], label)
    for label, place in enumerate(places, start=1):
        if place is not None:
            _remove(result[place], label, smallest_vox=smallest_vox, largest_only=label in largest_only)
    return result


class Components:
    """The connected components of a mask that is given slab by slab, numbered from 1 over all slabs."""

    def __init__(self, mask: Callable[[slice], _Mask], shape: Sequence[int], touching: _Mask) -> None:
        self._mask, self._touching = mask, touching
        thickness = max(1, SLAB_VOXELS // max(1, shape[1] * shape[2]))
        self._slabs = [slice(first, min(first + thickness, shape[0])) for first in range(0, shape[0], thickness)]
        self._only: NDArray[np.int64] | None = None
        sizes, borders, pairs, before, total = [], [], [], None, 0
        for slab in self._slabs:
            found, count = self._label(slab)
            sizes.append(np.bincount(found.ravel(), minlength=count + 1)[1:])
            borders.append(_on_border(found, count, ends=(slab.start == 0, slab.stop == shape[0])))
            if before is not None:
                pairs.append(_meeting(before, found[0], total, touching))
            before = np.where(found[-1] > 0, found[-1] + total, 0)
            total += count
        self._of_part = _joined(pairs, total)
        self._counts = [len(part) for part in sizes]
        weights = np.concatenate([np.zeros(0), *sizes])
        self.sizes: Int64[np.ndarray, " c"] = np.bincount(self._of_part, weights=weights).astype(np.int64)
        """Voxels of each component."""
        self.on_border: Bool[np.ndarray, " c"] = (
            np.bincount(self._of_part, weights=np.concatenate([[], *borders])) > 0
        )
        """Whether it reaches the border of the whole."""

    def chosen(self, wanted: Bool[np.ndarray, " c"]) -> Iterator[tuple[slice, _Mask]]:
        """Slab by slab where the wanted components are."""
        total = 0
        for slab, count in zip(self._slabs, self._counts, strict=True):
            table = np.concatenate([[False], wanted[self._of_part[total : total + count]]])
            if table.any():
                yield slab, table[self._label(slab)[0]]
            total += count

    def _label(self, slab: slice) -> tuple[Any, int]:
        """A slab's components among themselves: found twice, which takes less than keeping them all."""
        if self._only is not None:
            return self._only, int(self._only.max(initial=0))
        found, count = ndimage.label(self._mask(slab), structure=self._touching)
        if len(self._slabs) == 1:
            self._only = found
        return found, int(count)


def _fill(crop: UInt8[np.ndarray, "x y z"], label: int) -> None:
    """In place; `crop` is the smallest that holds all of the label, so what reaches its border is outside."""
    holes = Components(lambda slab: crop[slab] != label, crop.shape, FACES)
    for slab, inside in holes.chosen(~holes.on_border):
        crop[slab][inside & (crop[slab] == 0)] = label


def _remove(crop: UInt8[np.ndarray, "x y z"], label: int, *, smallest_vox: float, largest_only: bool) -> None:
    if smallest_vox <= 1 and not largest_only:
        return
    parts = Components(lambda slab: crop[slab] == label, crop.shape, CORNERS)
    unwanted = parts.sizes < smallest_vox
    if largest_only and len(unwanted):
        unwanted |= np.arange(len(unwanted)) != int(np.argmax(parts.sizes))
    for slab, inside in parts.chosen(unwanted):
        crop[slab][inside] = 0


def _on_border(found: Any, count: int, *, ends: tuple[bool, bool]) -> Bool[np.ndarray, " c"]:
    """Which of a slab's components reach the border of the whole; `ends`: the slab is its first, its last."""
    reached = np.zeros(count + 1, bool)
    sides = [found[:, 0], found[:, -1], found[:, :, 0], found[:, :, -1]]
    for side in [*sides, *([found[0]] if ends[0] else []), *([found[-1]] if ends[1] else [])]:
        reached[np.unique(side)] = True
    return reached[1:]


def _meeting(before: Any, after: Any, offset: int, touching: _Mask) -> Int64[np.ndarray, "p 2"]:
    """Pairs of part numbers from 0 that touch across two neighbouring planes; `after` is counted from `offset`."""
    padded = np.pad(before, 1)
    pairs = []
    for y, z in np.argwhere(touching[0]):
        shifted = padded[y : y + before.shape[0], z : z + before.shape[1]]
        both = (shifted > 0) & (after > 0)
        pairs.append(np.unique(np.stack([shifted[both] - 1, after[both] - 1 + offset], axis=1), axis=0))
    return np.concatenate(pairs)


def _joined(pairs: Sequence[Int64[np.ndarray, "p 2"]], total: int) -> Int64[np.ndarray, " n"]:
    """The component of each part."""
    if not pairs or total == 0:
        return np.arange(total)
    edges = np.concatenate(pairs)
    graph = sparse.coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(total, total))
    return np.asarray(sparse.csgraph.connected_components(graph, directed=False)[1], np.int64)


def _largest(sums: Float[Tensor, "c x y z"]) -> tuple[Float[Tensor, "x y z"], Shaped[Tensor, "x y z"]]:
    """The largest value and its class. Class by class, where they lie apart: a third of torch's own time over all."""
    if channels_last(sums):
        return sums.movedim(0, -1).max(-1)
    best, label = sums[0].clone(), torch.zeros(sums.shape[1:], dtype=torch.uint8)
    for number, values in enumerate(sums[1:], start=1):
        label.masked_fill_(values > best, number)
        torch.maximum(best, values, out=best)
    return best, label
