"""Non-maximum suppression of 3D boxes, class by class: the greedy rule's exact result without a step for each box."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from voxray.boxes.overlap import paired_iou

BLOCK = 1024
"""Boxes settled at once."""
PAIRS_AT_ONCE = 1 << 20
"""Pairs compared at once, which bounds the memory."""

Pairs = tuple[Int64[Tensor, " p"], Int64[Tensor, " p"]]


def nms(
    boxes: Float[Tensor, "n 6"],
    scores: Float[Tensor, " n"],
    classes: Int64[Tensor, " n"],
    *,
    iou: float,
    max_kept: int | None = None,
) -> Int64[Tensor, " k"]:
    """Indices of the boxes that stay, highest score first (of equal ones the earlier), at most `max_kept`.

    Going down the scores, a box stays unless its IoU with a box of its class that has stayed exceeds `iou`. The best
    `BLOCK` boxes are settled together and drop all that they suppress, then the best of what remains; so boxes that
    crowd around one object cost little, and nothing beyond `max_kept` is looked at.
    """
    rest = scores.argsort(descending=True, stable=True)
    boxes, wanted = boxes.float(), len(rest) if max_kept is None else max_kept
    kept: list[Tensor] = []
    while len(rest) > 0 and sum(map(len, kept)) < wanted:
        block, rest = rest[:BLOCK], rest[BLOCK:]
        stays = block[_settled(boxes[block], classes[block], iou)]
        kept.append(stays)
        if len(rest) > 0:
            rest = rest[~_suppressed(boxes[rest], classes[rest], boxes[stays], classes[stays], iou)]
    return torch.cat(kept)[:wanted] if kept else rest


def _settled(boxes: Float[Tensor, "n 6"], classes: Int64[Tensor, " n"], iou: float) -> Bool[Tensor, " n"]:
    """Which boxes stay among themselves; they come highest score first.

    A box stays exactly when no better one that stays suppresses it. Applying this rule to all boxes at once, again
    and again, makes at least one more box right each time, and only the greedy result does it leave as it is.
    """
    found = list(_overlapping(boxes, classes, boxes, classes, iou))
    first, second = (torch.cat([pair[side] for pair in found]) for side in (0, 1))
    better, worse = torch.minimum(first, second), torch.maximum(first, second)
    better, worse = better[better < worse], worse[better < worse]
    stays = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    while True:
        after = torch.ones_like(stays)
        after[worse[stays[better]]] = False
        if torch.equal(after, stays):
            return stays
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
    for _, loser in _overlapping(by, by_classes, boxes, classes, iou):
        gone[loser] = True
    for loser, _ in _overlapping(boxes, classes, by, by_classes, iou):
        gone[loser] = True
    return gone


def _overlapping(
    first: Float[Tensor, "n 6"],
    first_classes: Int64[Tensor, " n"],
    second: Float[Tensor, "m 6"],
    second_classes: Int64[Tensor, " m"],
    iou: float,
) -> Iterator[Pairs]:
    """Pairs of one class with a larger IoU of which the second starts within the first on the x axis.

    On one line, class after class, the boxes that start within another are a run of the sorted starts.
    """
    low = torch.minimum(first[:, 0].min(), second[:, 0].min()).double()
    length = torch.maximum(first[:, 3].max(), second[:, 3].max()) - low + 1
    begin, end = (first[:, column] - low + first_classes * length for column in (0, 3))
    starts, order = (second[:, 0] - low + second_classes * length).sort()
    run = torch.searchsorted(starts, begin)
    count = (torch.searchsorted(starts, end) - run).clamp_min(0)
    sides, other_sides = first.T.contiguous(), second.T.contiguous()
    for rows in _portions(count):
        index = rows.repeat_interleave(count[rows])
        within = torch.arange(len(index), device=index.device)
        within = within - (count[rows].cumsum(0) - count[rows]).repeat_interleave(count[rows])
        other = order.index_select(0, run.index_select(0, index) + within)
        for axis in (1, 2):
            touching = _touching(sides[axis::3].index_select(1, index), other_sides[axis::3].index_select(1, other))
            index, other = index.index_select(0, touching), other.index_select(0, touching)
        much = paired_iou(first.index_select(0, index), second.index_select(0, other)) > iou
        yield index[much], other[much]


def _touching(first: Float[Tensor, "2 p"], second: Float[Tensor, "2 p"]) -> Int64[Tensor, " t"]:
    """The places where two intervals share something."""
    return ((first[0] < second[1]) & (second[0] < first[1])).nonzero().squeeze(1)


def _portions(count: Int64[Tensor, " n"]) -> list[Int64[Tensor, " r"]]:
    """Row numbers in portions with about `PAIRS_AT_ONCE` pairs each, one row at least."""
    portion = count.cumsum(0) // PAIRS_AT_ONCE
    sizes = torch.unique_consecutive(portion, return_counts=True)[1]
    return list(torch.split(torch.arange(len(count), device=count.device), sizes.tolist()))
