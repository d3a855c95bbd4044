from __future__ import annotations

import numpy as np

from voxray.metrics import matching
from voxray.metrics.matching import match, paired_iou

GROUP = np.zeros(8, np.int64)


def _cube(start: float, side: float = 10.0) -> list[float]:
    return [start, 0.0, 0.0, start + side, side, side]


def test_paired_iou_by_hand() -> None:
    boxes = np.array([_cube(0), _cube(0), _cube(0), _cube(0, 0)])
    others = np.array([_cube(0), _cube(5), _cube(10), _cube(0, 0)])
    np.testing.assert_allclose(paired_iou(boxes, others), [1, 1 / 3, 0, 0])


def test_a_box_takes_the_free_object_that_it_overlaps_most() -> None:
    truth = np.array([_cube(0), _cube(4)])
    found = np.array([_cube(3), _cube(3.5), _cube(3)])
    hits = match(found, GROUP[:3], truth, GROUP[:2], ious=np.array([0.1, 0.6]))
    assert hits.tolist() == [[1, 0, -1], [1, -1, -1]]


def test_an_exact_threshold_is_a_hit() -> None:
    hits = match(np.array([_cube(0)]), GROUP[:1], np.array([[0.0, 0, 0, 10, 10, 5]]), GROUP[:1], ious=np.array([0.5]))
    assert hits.tolist() == [[0]]


def test_groups_never_meet() -> None:
    found, truth = np.array([_cube(0), _cube(0)]), np.array([_cube(0), _cube(0)])
    hits = match(found, np.array([3, 1]), truth, np.array([1, 2]), ious=np.array([0.1]))
    assert hits.tolist() == [[-1, 0]]


def test_blocks_of_pairs_give_the_same_matches() -> None:
    rng = np.random.default_rng(3)
    starts = rng.uniform(0, 40, (60, 3))
    found = np.concatenate([starts, starts + rng.uniform(4, 12, (60, 3))], axis=1)
    truth, groups = found[:20] + 0.5, rng.integers(0, 3, 60)
    ious = np.array([0.1, 0.3, 0.5])
    whole = match(found, groups, truth, groups[:20], ious=ious)
    before = matching.PAIRS_AT_ONCE
    try:
        matching.PAIRS_AT_ONCE = 7
        np.testing.assert_array_equal(match(found, groups, truth, groups[:20], ious=ious), whole)
    finally:
        matching.PAIRS_AT_ONCE = before
    assert (whole >= 0).sum() > 20
