"""Which found box is which true object: COCO's greedy match at IoU >= threshold.

All scans and thresholds are matched together: turn by turn, the next best box of every scan and class chooses.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import NDArray

PAIRS_AT_ONCE = 50_000
"""Few enough that the pairs at hand stay in the processor's cache."""

AXES = ((0, 3), (1, 4), (2, 5))
"""The columns of a box's two ends on each axis."""


class _Pairs(NamedTuple):
    """Found and true boxes of one group that overlap, by index in rising order, with their IoU."""

    found: Int64[np.ndarray, " p"]
    truth: Int64[np.ndarray, " p"]
    iou: Float64[np.ndarray, " p"]


def match(
    boxes: Float64[np.ndarray, "n 6"],
    groups: Int64[np.ndarray, " n"],
    truth_boxes: Float64[np.ndarray, "m 6"],
    truth_groups: Int64[np.ndarray, " m"],
    *,
    ious: Float64[np.ndarray, " t"],
) -> Int64[np.ndarray, "t n"]:
    """For each threshold (above 0) and found box the index of the true object that it hits, or -1.

    Only boxes of one group (a class in a scan; numbered from 0) can match. In each group the found boxes must come
    highest score first; each takes the free object with the largest IoU, of equal ones the last, as pycocotools does.
    """
    assert ious.min() > 0, ious
    hits = np.full((len(ious), len(boxes)), -1, np.int64)
    if len(boxes) == 0 or len(truth_boxes) == 0:
        return hits
    pairs = _overlapping(boxes, groups, truth_boxes, truth_groups, floor=float(ious.min()))
    free = np.ones((len(ious), len(truth_boxes)), bool)
    turn = _turns(pairs.found, groups)
    order = np.lexsort((pairs.iou, turn * len(boxes) + pairs.found))
    found, truth, iou = pairs.found[order], pairs.truth[order], pairs.iou[order]
    for start, stop in _runs(turn[order]):
        _one_turn(hits, free, _Pairs(found[start:stop], truth[start:stop], iou[start:stop]), ious)
    return hits


def paired_iou(first: Float64[np.ndarray, "n 6"], second: Float64[np.ndarray, "n 6"]) -> Float64[np.ndarray, " n"]:
    """Intersection over union of boxes taken pair by pair; 0 where both are empty."""
    # One axis at a time: numpy reduces a short last axis ten times slower than it multiplies columns.
    shared, volume, other = np.ones(len(first)), np.ones(len(first)), np.ones(len(first))
    for low, high in AXES:
        shared *= np.clip(
            np.minimum(first[:, high], second[:, high]) - np.maximum(first[:, low], second[:, low]), 0, None
        )
        volume *= first[:, high] - first[:, low]
        other *= second[:, high] - second[:, low]
    union = volume + other - shared
    iou: NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return iou


def _one_turn(hits: NDArray[np.int64], free: NDArray[np.bool_], pairs: _Pairs, ious: NDArray[np.float64]) -> None:
    """Lets at most one box of each group choose; its pairs come with rising IoU, so the last allowed is the best."""
    allowed = (pairs.iou >= ious[:, None]) & free[:, pairs.truth]
    starts = np.flatnonzero(np.diff(pairs.found, prepend=-1))
    place = np.where(allowed, np.arange(len(pairs.found)), -1)
    best = np.maximum.reduceat(place, starts, axis=1)
    level, column = np.nonzero(best >= 0)
    chosen = best[level, column]
    hits[level, pairs.found[chosen]] = pairs.truth[chosen]
    free[level, pairs.truth[chosen]] = False


def _overlapping(
    boxes: NDArray[np.float64],
    groups: NDArray[np.int64],
    truth_boxes: NDArray[np.float64],
    truth_groups: NDArray[np.int64],
    *,
    floor: float,
) -> _Pairs:
    """The pairs within groups whose IoU reaches `floor`."""
    by_group = np.argsort(truth_groups, kind="stable")
    size = np.bincount(truth_groups, minlength=int(groups.max()) + 1)
    count, first = size[groups], (np.cumsum(size) - size)[groups]
    blocks = np.array_split(np.arange(len(boxes)), 1 + int(count.sum()) // PAIRS_AT_ONCE)
    parts = []
    for block in blocks:
        found = np.repeat(block, count[block])
        within = np.arange(len(found)) - np.repeat(np.cumsum(count[block]) - count[block], count[block])
        truth = by_group[np.repeat(first[block], count[block]) + within]
        for low, high in AXES:
            touching = (boxes[found, high] > truth_boxes[truth, low]) & (boxes[found, low] < truth_boxes[truth, high])
            found, truth = found[touching], truth[touching]
        iou = paired_iou(boxes[found], truth_boxes[truth])
        kept = iou >= floor
        parts.append(_Pairs(found[kept], truth[kept], iou[kept]))
    return _Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _turns(found: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each pair the place of its found box among the overlapping ones of its group: 0 chooses first."""
    who, of_pair = np.unique(found, return_inverse=True)
    order = np.argsort(groups[who], kind="stable")
    position = np.arange(len(who))
    is_first = np.diff(groups[who][order], prepend=groups.min() - 1) != 0
    turn = np.empty(len(who), np.int64)
    turn[order] = position - np.maximum.accumulate(np.where(is_first, position, 0))
    return turn[of_pair]


def _runs(values: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Start and end of each run of equal values."""
    starts = np.flatnonzero(np.diff(values, prepend=-1))
    return list(zip(starts.tolist(), [*starts[1:].tolist(), len(values)], strict=True)) if len(values) else []
