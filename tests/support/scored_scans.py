"""Random scans for the tests of metrics: detections, true boxes and classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxray.core.detections import Detections

Scans = tuple[list[Detections], list[NDArray[np.float64]], list[NDArray[np.int64]]]


def detections(boxes: Any, scores: Any, classes: Any = None) -> Detections:
    """Detections of one class unless classes are given."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 6)
    classes = np.zeros(len(boxes), np.int64) if classes is None else np.asarray(classes, np.int64)
    return Detections(boxes, np.asarray(scores, np.float32), classes)


def random_scans(rng: np.random.Generator, *, scans: int, found: int, truth: int, num_classes: int) -> Scans:
    """Objects on a coarse lattice, detections near them and elsewhere; scores on a coarse scale, so ties occur."""
    result: Scans = ([], [], [])
    for _ in range(scans):
        centres = rng.integers(0, 12, (rng.integers(0, truth + 1), 3)) * 5.0
        true_boxes = np.concatenate([centres, centres + rng.uniform(5, 15, centres.shape)], axis=1)
        true_classes = rng.integers(0, num_classes, len(centres))
        many = int(rng.integers(0, found + 1))
        corners = rng.integers(0, 12, (many, 3)) * 5.0
        boxes = np.concatenate([corners, corners + rng.uniform(5, 15, corners.shape)], axis=1)
        classes = rng.integers(0, num_classes, many)
        if len(true_boxes) and many:
            near = rng.integers(0, len(true_boxes), many // 2)
            boxes[: many // 2] = true_boxes[near] + rng.normal(0, 1.0, (many // 2, 6))
            classes[: many // 2] = true_classes[near]
        result[0].append(detections(boxes, rng.integers(0, 50, many) / 50, classes))
        result[1].append(true_boxes)
        result[2].append(true_classes)
    return result


def repeated(scans: Scans, times: Sequence[int]) -> Scans:
    """Each scan as often as it says."""
    index = np.repeat(np.arange(len(times)), times)
    return [scans[0][i] for i in index], [scans[1][i] for i in index], [scans[2][i] for i in index]
