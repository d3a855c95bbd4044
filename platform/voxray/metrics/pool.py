"""Pool: the findings of all scans in one order, and what each of them hits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from numpy.typing import NDArray

from voxray.core.detections import Detections
from voxray.metrics.matching import match


@dataclass(frozen=True)
class Pool:
    """n findings of all scans, highest score first (equal ones in the scans' order), matched at t thresholds of IoU.

    `hits[k]` says which findings hit an object of their scan and class at ``ious[k]``; objects are counted by scan.
    """

    scans: Int64[np.ndarray, " n"]
    classes: Int64[np.ndarray, " n"]
    scores: Float64[np.ndarray, " n"]
    hits: Bool[np.ndarray, "t n"]
    objects: Int64[np.ndarray, "s c"]
    """Objects of each class in each scan."""

    @property
    def num_scans(self) -> int:
        """Scans, those without a finding or an object among them."""
        return len(self.objects)

    def of_class(self, index: int) -> Pool:
        """The findings and objects of one class."""
        mine = self.classes == index
        return Pool(
            self.scans[mine],
            self.classes[mine],
            self.scores[mine],
            self.hits[:, mine],
            self.objects[:, index : index + 1],
        )


def pool_of(
    found: Sequence[Detections],
    truth_boxes: Sequence[Float[np.ndarray, "n 6"]],
    truth_classes: Sequence[Int64[np.ndarray, " n"]],
    *,
    num_classes: int,
    ious: Sequence[float],
    max_detections: int = 100,
) -> Pool:
    """Findings matched to objects, at most `max_detections` of a class in a scan; boxes in one frame per scan."""
    assert len(found) == len(truth_boxes) == len(truth_classes)
    boxes, scans, scores, classes = _in_order(found, max_detections)
    true_boxes = np.concatenate([np.zeros((0, 6)), *(np.reshape(scan, (-1, 6)) for scan in truth_boxes)])
    true_scans = np.repeat(np.arange(len(found)), [len(scan) for scan in truth_classes])
    true_classes = np.concatenate([np.zeros(0, np.int64), *truth_classes])
    groups, true_groups = scans * num_classes + classes, true_scans * num_classes + true_classes
    hits = match(boxes, groups, true_boxes, true_groups, ious=np.asarray(ious, np.float64)) >= 0
    objects = np.bincount(true_groups, minlength=len(found) * num_classes).reshape(len(found), num_classes)
    return Pool(scans, classes, scores, hits, objects)


class Matched(NamedTuple):
    """The findings of one scan that count, highest score first, and what each hits."""

    found: Detections
    objects: Int64[np.ndarray, " n"]
    """Index of the object that each hits at the first threshold, or -1."""
    hits: Bool[np.ndarray, "t n"]


def match_scans(
    found: Sequence[Detections],
    truth_boxes: Sequence[Float[np.ndarray, "n 6"]],
    truth_classes: Sequence[Int64[np.ndarray, " n"]],
    *,
    num_classes: int,
    ious: Sequence[float],
    max_detections: int = 100,
) -> list[Matched]:
    """Scan by scan what `pool_of` pools: its findings in order, cut off and matched."""
    kept = [_best(scan, max_detections) for scan in found]
    boxes = np.concatenate([np.zeros((0, 6)), *(scan.boxes for scan in kept)])
    truth = np.concatenate([np.zeros((0, 6)), *(np.reshape(scan, (-1, 6)) for scan in truth_boxes)])
    groups, true_groups = (
        np.repeat(np.arange(len(found)) * num_classes, [len(scan) for scan in scans])
        + np.concatenate([np.zeros(0, np.int64), *scans])
        for scans in ([scan.classes for scan in kept], truth_classes)
    )
    objects = match(boxes, groups, truth, true_groups, ious=np.asarray(ious, np.float64))
    result, first, first_true = [], 0, 0
    for scan, kinds in zip(kept, truth_classes, strict=True):
        part = objects[:, first : first + len(scan)]
        result.append(Matched(scan, np.where(part[0] >= 0, part[0] - first_true, -1), part >= 0))
        first, first_true = first + len(scan), first_true + len(kinds)
    return result


def _best(scan: Detections, max_detections: int) -> Detections:
    """The findings highest score first, at most so many of a class."""
    scan = scan.take(np.argsort(-scan.scores, kind="stable"))
    if len(scan) <= max_detections:
        return scan
    return scan.take(_rank_in_group(np.zeros(len(scan), np.int64), scan.classes) < max_detections)


def pool_hits(
    scores: Sequence[Float64[np.ndarray, " n"]],
    classes: Sequence[Int64[np.ndarray, " n"]],
    hits: Sequence[Bool[np.ndarray, "t n"]],
    objects: Int64[np.ndarray, "s c"],
) -> Pool:
    """The pool of findings whose hits are known, scan by scan, such as those of a written evaluation."""
    scans = np.repeat(np.arange(len(scores)), [len(scan) for scan in scores])
    every = np.concatenate([np.zeros(0), *scores])
    order = np.argsort(-every, kind="stable")
    pooled = np.concatenate([*hits], axis=1) if hits else np.zeros((1, 0), bool)
    kinds = np.concatenate([np.zeros(0, np.int64), *classes])
    return Pool(scans[order], kinds[order], every[order], pooled[:, order], objects)


def _in_order(
    found: Sequence[Detections], max_detections: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Boxes, scan, score and class of all scans' findings, highest score first."""
    boxes = np.concatenate([np.zeros((0, 6)), *(scan.boxes for scan in found)])
    scores = np.concatenate([np.zeros(0), *(scan.scores for scan in found)])
    classes = np.concatenate([np.zeros(0, np.int64), *(scan.classes for scan in found)])
    scans = np.repeat(np.arange(len(found)), [len(scan) for scan in found])
    order = np.argsort(-scores, kind="stable")
    if max((len(scan) for scan in found), default=0) > max_detections:
        order = order[_rank_in_group(scans[order], classes[order]) < max_detections]
    return boxes[order], scans[order], scores[order], classes[order]


def _rank_in_group(scans: NDArray[np.int64], classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each entry how many of the same scan and class come before it."""
    order = np.lexsort((classes, scans))
    place = np.arange(len(order))
    is_first = np.ones(len(order), bool)
    is_first[1:] = (np.diff(scans[order]) != 0) | (np.diff(classes[order]) != 0)
    rank = np.empty(len(order), np.int64)
    rank[order] = place - np.maximum.accumulate(np.where(is_first, place, 0))
    return rank
