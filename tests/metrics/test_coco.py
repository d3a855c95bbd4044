from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.scored_scans import Scans, detections, random_scans, repeated
from voxray.core.detections import Detections
from voxray.metrics.bootstrap import draw_weights
from voxray.metrics.coco import IOUS, evaluate, precision_and_recall
from voxray.metrics.pool import pool_of


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    shared = 1.0
    for axis in range(3):
        shared *= max(min(a[axis + 3], b[axis + 3]) - max(a[axis], b[axis]), 0.0)
    volumes = [np.prod([box[axis + 3] - box[axis] for axis in range(3)]) for box in (a, b)]
    union = volumes[0] + volumes[1] - shared
    return float(shared / union) if union > 0 else 0.0


def _matched(boxes: list[list[float]], truth: list[list[float]], threshold: float) -> list[bool]:
    """pycocotools' evaluateImg, box by box."""
    taken = [False] * len(truth)
    hits = []
    for box in boxes:
        best, chosen = threshold, -1
        for index, true_box in enumerate(truth):
            overlap = _iou(box, true_box)
            if not taken[index] and overlap >= best:
                best, chosen = overlap, index
        if chosen >= 0:
            taken[chosen] = True
        hits.append(chosen >= 0)
    return hits


def _reference(scans: Scans, kind: int, threshold: float, limit: int) -> tuple[float, float]:
    """AP and AR of one class at one threshold as pycocotools' accumulate computes them, in plain Python."""
    scored: list[tuple[float, bool]] = []
    total = 0
    for found, true_boxes, true_classes in zip(*scans, strict=True):
        mine = [i for i in range(len(found)) if found.classes[i] == kind]
        mine = sorted(mine, key=lambda i: -float(found.scores[i]))[:limit]
        truth = [true_boxes[i].tolist() for i in range(len(true_boxes)) if true_classes[i] == kind]
        total += len(truth)
        hits = _matched([found.boxes[i].tolist() for i in mine], truth, threshold)
        scored += [(float(found.scores[i]), hit) for i, hit in zip(mine, hits, strict=True)]
    scored.sort(key=lambda pair: -pair[0])
    points, hits_so_far = [], 0
    for rank, (_, hit) in enumerate(scored, start=1):
        hits_so_far += hit
        points.append((hits_so_far / total, hits_so_far / rank))
    precisions = [
        max((precision for recall, precision in points if recall >= point), default=0.0)
        for point in np.linspace(0, 1, 101)
    ]
    return float(np.mean(precisions)), hits_so_far / total


def test_golden_values_of_nndetection_box_evaluator() -> None:
    """Three scans, three objects, six detections: AP.1 .722772, AP.5 .445545, mAP .599560 by its own code."""
    true = [[0, 0, 0, 10, 10, 10]]
    shifted = [2, 2, 2, 12, 12, 12]  # IoU 512 / 1488 = .344086
    far = [40, 40, 40, 50, 50, 50]
    found = [
        detections([*true, far], [0.9, 0.5]),
        detections([far, shifted], [0.8, 0.7]),
        detections([far, *true], [0.4, 0.3]),
    ]
    truth = [np.asarray(true, np.float64)] * 3
    result = evaluate(found, truth, [np.zeros(1, np.int64)] * 3, ["nodule"])
    assert result["AP@0.10"] == pytest.approx(0.722772, abs=1e-6)
    assert result["AP@0.50"] == pytest.approx(0.445545, abs=1e-6)
    assert result["mAP"] == pytest.approx(0.599560, abs=1e-6)
    assert result["AR@0.10"] == 1.0
    assert result["mAR"] == pytest.approx((5 * 1.0 + 4 * 2 / 3) / 9)
    assert result["AP@0.10/nodule"] == result["AP@0.10"]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.sampled_from([3, 100]))
def test_equals_the_plain_reference(seed: int, num_classes: int, limit: int) -> None:
    rng = np.random.default_rng(seed)
    scans = random_scans(rng, scans=5, found=12, truth=5, num_classes=num_classes)
    names = [f"class {index}" for index in range(num_classes)]
    result = evaluate(*scans, names, max_detections=limit)
    kept = sorted({int(index) for kinds in scans[2] for index in kinds})
    expected = {(k, t): _reference(scans, k, t, limit) for k in kept for t in IOUS}
    for index in kept:
        for threshold in (0.10, 0.50):
            average, recall = expected[index, threshold]
            assert result[f"AP@{threshold:.2f}/{names[index]}"] == pytest.approx(average, abs=1e-12)
            assert result[f"AR@{threshold:.2f}/{names[index]}"] == pytest.approx(recall, abs=1e-12)
    if kept:
        assert result["mAP"] == pytest.approx(np.mean([average for average, _ in expected.values()]), abs=1e-12)
        assert result["mAR"] == pytest.approx(np.mean([recall for _, recall in expected.values()]), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_replicate_is_the_score_of_the_drawn_scans(seed: int) -> None:
    """Scores differ everywhere: among equal ones the order of scans decides, which a repeated scan changes."""
    rng = np.random.default_rng(seed)
    scans = random_scans(rng, scans=6, found=10, truth=4, num_classes=2)
    scans = ([Detections(one.boxes, rng.random(len(one), np.float32), one.classes) for one in scans[0]], *scans[1:])
    weights = draw_weights(6, rng=rng, num=5)
    pool = pool_of(*scans, num_classes=2, ious=IOUS)
    values = precision_and_recall(pool, weights, ["a", "b"], IOUS)
    for column, drawn in enumerate(weights.T.astype(int)):
        expected = evaluate(*repeated(scans, drawn), ["a", "b"])
        for name, value in expected.items():
            assert values[name][column] == pytest.approx(value, abs=1e-12, nan_ok=True), name


@pytest.mark.parametrize("ious", [(0.5,), (0.5, 0.75), tuple(np.linspace(0.3, 0.9, 13))])
def test_any_range_of_thresholds(ious: tuple[float, ...]) -> None:
    scans = random_scans(np.random.default_rng(5), scans=8, found=12, truth=5, num_classes=1)
    result = evaluate(*scans, ["a"], ious=ious)
    expected = [_reference(scans, 0, threshold, 100) for threshold in ious]
    assert result["mAP"] == pytest.approx(np.mean([average for average, _ in expected]), abs=1e-12)
    assert result[f"AR@{ious[-1]:.2f}"] == pytest.approx(expected[-1][1], abs=1e-12)


def test_differs_from_monai_by_no_more_than_its_float32_recall() -> None:
    coco = pytest.importorskip("monai.apps.detection.metrics.coco")
    matching = pytest.importorskip("monai.apps.detection.metrics.matching")
    overlap = pytest.importorskip("monai.data.box_utils").box_iou
    scans = random_scans(np.random.default_rng(7), scans=40, found=20, truth=4, num_classes=2)
    metric = coco.COCOMetric(classes=["a", "b"], iou_list=[0.1], max_detection=[100], verbose=False)
    matched = matching.matching_batch(
        overlap,
        metric.iou_thresholds,
        [scan.boxes.astype(np.float64) for scan in scans[0]],
        [scan.classes for scan in scans[0]],
        [scan.scores for scan in scans[0]],
        scans[1],
        scans[2],
    )
    theirs = metric(matched)[0]
    ours = evaluate(*scans, ["a", "b"])
    assert ours["mAP"] == pytest.approx(theirs["mAP_IoU_0.10_0.50_0.05_MaxDet_100"], abs=1 / 101)
    assert ours["AP@0.10"] == pytest.approx(theirs["AP_IoU_0.10_MaxDet_100"], abs=1 / 101)
    assert ours["mAR"] == pytest.approx(theirs["mAR_IoU_0.10_0.50_0.05_MaxDet_100"], abs=1e-6)


def test_class_without_truth_is_left_out() -> None:
    box = [[0, 0, 0, 4, 4, 4]]
    found = [detections([*box, *box], [0.9, 0.8], [0, 1])]
    truth, kinds = [np.asarray(box, np.float64)], [np.zeros(1, np.int64)]
    result = evaluate(found, truth, kinds, ["present", "absent"])
    assert result["mAP"] == 1.0
    assert not any(key.endswith("/absent") for key in result)


def test_without_any_truth_the_means_are_nan() -> None:
    result = evaluate([detections([[0, 0, 0, 1, 1, 1]], [0.5])], [np.zeros((0, 6))], [np.zeros(0, np.int64)], ["a"])
    assert set(result) == {"mAP", "mAR", "AP@0.10", "AR@0.10", "AP@0.50", "AR@0.50"}
    assert all(np.isnan(value) for value in result.values())


def test_nothing_found_scores_zero() -> None:
    result = evaluate([Detections.empty()], [np.array([[0.0, 0, 0, 1, 1, 1]])], [np.zeros(1, np.int64)], ["a"])
    assert result["mAP"] == result["mAR"] == 0.0


def test_recall_that_lands_on_a_recall_point_counts_there() -> None:
    """Nine of ten found: recall 0.9 is the 91st recall point, which a float32 recall (0.89999998) would miss."""
    boxes = [[20.0 * i, 0, 0, 20.0 * i + 10, 10, 10] for i in range(10)]
    found = [detections(boxes[:9], np.linspace(0.9, 0.1, 9))]
    result = evaluate(found, [np.asarray(boxes)], [np.zeros(10, np.int64)], ["a"])
    assert result["AP@0.10"] == pytest.approx(91 / 101, abs=1e-12)
