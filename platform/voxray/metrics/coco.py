"""Average precision and recall as COCO defines them (Lin 2014; 101 recall points), over IoU 0.10 to 0.50.

All arithmetic is float64: a float32 recall falls on the wrong side of a recall point and moves AP by up to 1/101.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Float64, Int64
from numpy.typing import NDArray

from voxray.core.detections import Detections
from voxray.metrics.bootstrap import ones
from voxray.metrics.curves import share, tally
from voxray.metrics.pool import Pool, pool_of

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
    size = len(classes)
    pool = pool_of(found, truth_boxes, truth_classes, num_classes=size, ious=ious, max_detections=max_detections)
    return {
        name: float(value[0])
        for name, value in precision_and_recall(pool, ones(pool.num_scans), classes, ious).items()
    }


def precision_and_recall(
    pool: Pool, weights: Float64[np.ndarray, "s b"], classes: Sequence[str], ious: Sequence[float]
) -> dict[str, Float64[np.ndarray, " b"]]:
    """What `evaluate` gives, in each replicate; the mean over classes is over those that the replicate drew."""
    nothing = np.full((len(ious), weights.shape[1]), np.nan)
    return with_means(
        {
            name: _named(*average_precision(pool.of_class(index), weights), ious)
            for index, name in enumerate(classes)
            if pool.objects[:, index].any()
        },
        empty=_named(nothing, nothing, ious),
    )


def with_means(
    per_class: Mapping[str, Mapping[str, Float64[np.ndarray, " b"]]],
    *,
    empty: Mapping[str, Float64[np.ndarray, " b"]],
) -> dict[str, Float64[np.ndarray, " b"]]:
    """``{"mAP": mean over classes, "mAP/nodule": ...}``; without any class the values of `empty`."""
    result = (
        {name: _mean([values[name] for values in per_class.values()]) for name in empty} if per_class else {**empty}
    )
    return result | {f"{name}/{kind}": value for kind, values in per_class.items() for name, value in values.items()}


_Curve = Float64[np.ndarray, "t b"]


def average_precision(pool: Pool, weights: Float64[np.ndarray, "s b"]) -> tuple[_Curve, _Curve]:
    """Average precision and final recall of a pool of one class, per threshold and replicate.

    nan where a replicate draws no object. Only hits raise recall, so precision is looked at there alone.
    """
    num_objects = pool.objects[:, 0] @ weights
    place = np.flatnonzero(pool.hits.any(axis=0))
    column = np.searchsorted(place, np.arange(len(pool.scores)))
    within = column < len(place)
    above = tally(column[within], pool.scans[within], len(place), weights)
    gained = weights[pool.scans[place]]
    results = [_one_threshold(hit, above, gained, num_objects) for hit in pool.hits[:, place]]
    average, recall = (np.stack(part) for part in zip(*results, strict=True))
    return average, recall


def _one_threshold(
    hit: NDArray[np.bool_], above: NDArray[np.float64], gained: NDArray[np.float64], num_objects: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """From the candidates for a hit: which are one, findings up to each, what each weighs, and how many to find."""
    hits = np.cumsum(gained[hit], axis=0)
    nothing = np.where(num_objects > 0, 0.0, np.nan)
    if len(hits) == 0:
        return nothing, nothing
    precision = np.divide(hits, above[hit], out=np.zeros_like(hits), where=above[hit] > 0)
    envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recall = hits / np.where(num_objects > 0, num_objects, np.nan)
    reached = np.searchsorted(RECALL_POINTS, np.nan_to_num(recall), side="right")
    points = np.diff(reached, axis=0, prepend=0)
    return (points * envelope).sum(axis=0) / len(RECALL_POINTS) + nothing, recall[-1] + nothing


def _named(precision: _Curve, recall: _Curve, ious: Sequence[float]) -> dict[str, NDArray[np.float64]]:
    result = {"mAP": precision.mean(axis=0), "mAR": recall.mean(axis=0)}
    for index in (0, len(ious) - 1):
        result[f"AP@{ious[index]:.2f}"] = precision[index]
        result[f"AR@{ious[index]:.2f}"] = recall[index]
    return result


def _mean(values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The mean of what there is, replicate by replicate."""
    stacked = np.stack(values)
    there = np.isfinite(stacked)
    count = there.sum(axis=0)
    total = np.where(there, stacked, 0.0).sum(axis=0)
    return share(total, count.astype(np.float64))
