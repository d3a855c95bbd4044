"""Non-maximum suppression of 3D boxes, class by class: the greedy rule's exact result without a step for each box."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from voxray.boxes.overlap import paired_iou

BLOCK = 1024
"""Boxes settled at once, to begin with; after a block of which most stay, twice as many."""
MOST = 4
"""Times `BLOCK`: the largest block."""
PAIRS_AT_ONCE = 1 << 20
"""Pairs compared at once, which bounds the memory."""

_SLABS_PER_REACH = 3
_MOST_SLABS = 4096
_ROUNDING = 1 - 1e-5

IndexPairs = tuple[Int64[Tensor, " p"], Int64[Tensor, " p"]]


def nms(
    boxes: Float[Tensor, "n 6"],
    scores: Float[Tensor, " n"],
    classes: Int64[Tensor, " n"],
    *,
    iou: float,
    max_kept: int | None = None,
) -> Int64[Tensor, " k"]:
    """Indices of the boxes that stay, highest score first (of equal ones the earlier), at most `max_kept`.

    Going down the scores, a box stays unless its IoU with a box of its class that has stayed exceeds `iou`. A
    block of the best is settled together and drops all that it suppresses, then the best of what remains; so boxes
    that crowd around one object cost little, and little beyond `max_kept` is looked at.
    """
    rest = scores.argsort(descending=True, stable=True)
    boxes, wanted = boxes.float(), len(rest) if max_kept is None else max_kept
    kept: list[Tensor] = []
    size = BLOCK
    while len(rest) > 0 and sum(map(len, kept)) < wanted:
        block, rest = rest[:size], rest[size:]
        stays = block[settled(boxes[block], classes[block], iou)[0]]
        kept.append(stays)
        size = next_size(size, len(stays))
        if len(rest) > 0:
            rest = rest[~_suppressed(boxes[rest], classes[rest], boxes[stays], classes[stays], iou)]
    return torch.cat(kept)[:wanted] if kept else rest


def next_size(size: int, num_stay: int) -> int:
    """How many boxes to settle at once after a block of `size` of which so many stay."""
    return min(2 * size, MOST * BLOCK) if 2 * num_stay > size else size


def settled(
    boxes: Float[Tensor, "n 6"], classes: Int64[Tensor, " n"], iou: float
) -> tuple[Bool[Tensor, " n"], IndexPairs]:
    """Which boxes stay among themselves, and all pairs (better, worse) that overlap; they come highest score first.

    A box stays exactly when no better one that stays suppresses it. Applying this rule to all boxes at once, again
    and again, makes at least one more box right each time, and only the greedy result does it leave as it is.
    """
    found = list(overlapping(boxes, classes, boxes, classes, iou))
    first, second = (torch.cat([pair[side] for pair in found]) for side in (0, 1))
    better, worse = torch.minimum(first, second), torch.maximum(first, second)
    better, worse = better[better < worse], worse[better < worse]
    stays = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    while True:
        after = torch.ones_like(stays)
        after[worse[stays[better]]] = False
        if torch.equal(after, stays):
            return stays, (better, worse)
        stays = after


def _suppressed(
    boxes: Float[Tensor, "n 6"],
    classes: Int64[Tensor, " n"],
    by: Float[Tensor, "m 6"],
    by_classes: Int64[Tensor, " m"],
    iou: float,
) -> Bool[Tensor, " n"]:
    """Which boxes overlap one of `by` too much."""
    gone = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for _, loser in overlapping(by, by_classes, boxes, classes, iou):
        gone[loser] = True
    for loser, _ in overlapping(boxes, classes, by, by_classes, iou):
        gone[loser] = True
    return gone


def overlapping(
    first: Float[Tensor, "n 6"],
    first_classes: Int64[Tensor, " n"],
    second: Float[Tensor, "m 6"],
    second_classes: Int64[Tensor, " m"],
    iou: float,
) -> Iterator[IndexPairs]:
    """Pairs of one class with a larger IoU of which the second starts within the first on the y axis.

    On one line, class after class and slab after slab across the x axis, each second box lies in the slab in which it
    starts; there the boxes that start within another are a run of the sorted starts. A box meets the slabs that it
    reaches itself, and those from which the longest of the others reach it.
    """
    low_x, reach = second[:, 0].min().double(), (second[:, 3] - second[:, 0]).max().clamp_min(0).double()
    width = torch.maximum(reach / _SLABS_PER_REACH, (second[:, 0].max() - low_x) / _MOST_SLABS).clamp_min(1e-6)
    slab, start, stop = (
        torch.floor((edge - low_x) / width).long()
        for edge in (second[:, 0].double(), first[:, 0].double() - reach, first[:, 3].double())
    )
    num_slabs = slab.max() + 1
    start, stop = start.clamp_min(0), torch.minimum(stop, num_slabs - 1)
    row, index = _repeated((stop - start + 1).clamp_min(0))
    low_y = torch.minimum(first[:, 1].min(), second[:, 1].min()).double()
    length = torch.maximum(first[:, 4].max(), second[:, 4].max()).double() - low_y + 1
    line = (first_classes[row] * num_slabs + start[row] + index).double() * length
    # Of boxes with an IoU above a share, the intervals on each axis share more than that of the first.
    begin, end = first[:, 1].double() - low_y, first[:, 4].double() - low_y
    end = end - (end - begin) * iou * _ROUNDING
    starts, order = ((second_classes * num_slabs + slab).double() * length + second[:, 1].double() - low_y).sort()
    run = torch.searchsorted(starts, line + begin[row])
    count = (torch.searchsorted(starts, line + end[row]) - run).clamp_min(0)
    sides, other_sides = first.T.contiguous(), second.T.contiguous()
    for rows in _portions(count):
        entry, within = _repeated(count[rows])
        entry = rows[entry]
        index, other = row[entry], order.index_select(0, run.index_select(0, entry) + within)
        for axis in (2, 0):
            touching = _touching(sides[axis::3].index_select(1, index), other_sides[axis::3].index_select(1, other))
            index, other = index.index_select(0, touching), other.index_select(0, touching)
        much = paired_iou(first.index_select(0, index), second.index_select(0, other)) > iou
        yield index[much], other[much]


def _repeated(count: Int64[Tensor, " n"]) -> IndexPairs:
    """Each index as often as its count says, and which time it is."""
    index = torch.arange(len(count), device=count.device).repeat_interleave(count)
    first = count.cumsum(0) - count
    return index, torch.arange(len(index), device=count.device) - first.index_select(0, index)


def _touching(first: Float[Tensor, "2 p"], second: Float[Tensor, "2 p"]) -> Int64[Tensor, " t"]:
    """The places where two intervals share something."""
    return ((first[0] < second[1]) & (second[0] < first[1])).nonzero().squeeze(1)


def _portions(count: Int64[Tensor, " n"]) -> list[Int64[Tensor, " r"]]:
    """Row numbers in portions with about `PAIRS_AT_ONCE` pairs each, one row at least."""
    portion = count.cumsum(0) // PAIRS_AT_ONCE
    sizes = torch.unique_consecutive(portion, return_counts=True)[1]
    return list(torch.split(torch.arange(len(count), device=count.device), sizes.tolist()))
