"""Average precision and recall as COCO defines them (Lin 2014; 101 recall points), over IoU 0.10 to 0.50.

All arithmetic is float64: a float32 recall falls on the wrong side of a recall point and moves AP by up to 1/101.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, Int64
from numpy.typing import NDArray

from voxray.detections import Detections
from voxray.metrics.matching import match

IOUS = (0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40, 0.45, 0.50)
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
"""Exactly pycocotools' points, of which some (0.7000000000000001) lie one rounding above the hundredth."""


def evaluate(
    found: Sequence[Detections],
    truth_boxes: Sequence[Float[np.ndarray, "n 6"]],
    truth_classes: Sequence[Int64[np.ndarray, " n"]],
    classes: Sequence[str],
    *,
    ious: Sequence[float] = IOUS,
    max_detections: int = 100,
) -> dict[str, float]:
    """AP and AR over scans, at most `max_detections` of a class in a scan; boxes in any one frame per scan.

    ``mAP`` and ``mAR`` are means over `ious` and classes, ``AP@0.10`` and ``AR@0.10`` (and those of the last
    threshold) over classes; each also per class, as ``mAP/nodule``. A class without truth has no key and does not
    count in the means; without any truth the means are nan.
    """
    assert len(found) == len(truth_boxes) == len(truth_classes)
    pooled = _pool(found, max_detections=max_detections)
    truth = _pool_truth(truth_boxes, truth_classes)
    hit = _hits(pooled, truth, len(classes), np.asarray(ious, np.float64))
    counts = np.bincount(truth[2], minlength=len(classes))
    result: dict[str, float] = {}
    for index in np.flatnonzero(counts).tolist():
        precision, recall = average_precision(hit[:, pooled[3] == index], int(counts[index]))
        for name, value in _named(precision, recall, ious).items():
            result[f"{name}/{classes[index]}"] = value
    names = _named(np.zeros(len(ious)), np.zeros(len(ious)), ious)
    return {name: _mean([v for key, v in result.items() if key.startswith(f"{name}/")]) for name in names} | result


def classes_without_truth(
    truth_classes: Sequence[Int64[np.ndarray, " n"]], classes: Sequence[str]
) -> tuple[str, ...]:
    """The classes of which no scan has an object: `evaluate` cannot judge them."""
    present = {int(index) for scan in truth_classes for index in np.unique(scan)}
    return tuple(name for index, name in enumerate(classes) if index not in present)


def average_precision(
    hit: NDArray[np.bool_], num_truth: int
) -> tuple[Float64[np.ndarray, " t"], Float64[np.ndarray, " t"]]:
    """Average precision and final recall per threshold; columns of `hit` come highest score first."""
    true_positives = np.cumsum(hit, axis=1, dtype=np.float64)
    recall = true_positives / num_truth
    precision = true_positives / np.arange(1, hit.shape[1] + 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    envelope = np.concatenate([envelope, np.zeros((len(hit), 1))], axis=1)
    at = [np.searchsorted(row, RECALL_POINTS, side="left") for row in recall]
    average = np.array([row[index].mean() for row, index in zip(envelope, at, strict=True)])
    return average, recall.max(axis=1, initial=0.0)


Pooled = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]
"""Boxes, scan, score and class of all scans' detections, highest score first (equal ones in the scans' order)."""


def _pool(found: Sequence[Detections], *, max_detections: int) -> Pooled:
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


def _pool_truth(
    boxes: Sequence[Float[np.ndarray, "n 6"]], classes: Sequence[Int64[np.ndarray, " n"]]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Boxes, scan and class of all scans' objects."""
    return (
        np.concatenate([np.zeros((0, 6)), *(np.reshape(scan, (-1, 6)) for scan in boxes)]),
        np.repeat(np.arange(len(classes)), [len(scan) for scan in classes]),
        np.concatenate([np.zeros(0, np.int64), *classes]),
    )


def _hits(
    found: Pooled,
    truth: tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]],
    num_classes: int,
    ious: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """For each threshold and detection whether it hits an object of its scan and class."""
    boxes, scans, _, classes = found
    truth_boxes, truth_scans, truth_classes = truth
    groups, truth_groups = scans * num_classes + classes, truth_scans * num_classes + truth_classes
    return match(boxes, groups, truth_boxes, truth_groups, ious=ious) >= 0


def _named(precision: NDArray[np.float64], recall: NDArray[np.float64], ious: Sequence[float]) -> dict[str, float]:
    result = {"mAP": float(precision.mean()), "mAR": float(recall.mean())}
    for index in (0, len(ious) - 1):
        result[f"AP@{ious[index]:.2f}"] = float(precision[index])
        result[f"AR@{ious[index]:.2f}"] = float(recall[index])
    return result


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
