from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.scored_scans import detections, random_scans
from voxray.metrics.bootstrap import draw_weights, ones
from voxray.metrics.curves import area
from voxray.metrics.patients import patient_scores, patient_steps, patient_weights
from voxray.metrics.pool import pool_of


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_auc_is_the_share_of_pairs_in_the_right_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scans = random_scans(rng, scans=12, found=4, truth=2, num_classes=1)
    patients = np.unique(rng.integers(0, 7, 12), return_inverse=True)[1].astype(np.int64)
    pool = pool_of(*scans, num_classes=1, ious=(0.1,))
    scores, has_object = patient_scores(pool, patients)
    by_hand: dict[int, tuple[float, bool]] = {}
    for patient, found, truth in zip(patients.tolist(), scans[0], scans[2], strict=True):
        best, has_any = by_hand.get(patient, (-np.inf, False))
        by_hand[patient] = max(best, float(found.scores.max(initial=-np.inf))), has_any or len(truth) > 0
    assert [by_hand[index] for index in range(len(scores))] == list(zip(scores, has_object, strict=True))
    ill, well = ([s for s, i in by_hand.values() if i is side] for side in (True, False))
    above = patient_steps(scores, has_object, ones(len(scores)))
    found_area = area(above, num_hits=np.array([float(len(ill))]))[0]
    if not ill or not well:
        assert np.isnan(found_area)
    else:
        pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in ill for b in well]
        assert found_area == pytest.approx(np.mean(pairs), abs=1e-12)


def test_a_drawn_patient_brings_all_scans(rng: np.random.Generator) -> None:
    patients = np.array([1, 0, 1, 2])
    weights = draw_weights(4, rng=rng, num=50, units=patients)
    drawn = patient_weights(weights, patients)
    np.testing.assert_array_equal(drawn[patients], weights)
    assert (drawn.sum(axis=0) == 3).all()


def test_a_patient_without_findings_ranks_below_a_score_of_zero() -> None:
    boxes = [np.array([[0.0, 0, 0, 1, 1, 1]]), np.zeros((0, 6))]
    kinds = [np.zeros(1, np.int64), np.zeros(0, np.int64)]
    found = [detections([[5, 5, 5, 6, 6, 6]], [0.0]), detections([], [])]
    scores, has_object = patient_scores(pool_of(found, boxes, kinds, num_classes=1, ious=(0.1,)), np.arange(2))
    assert scores.tolist() == [0.0, -np.inf]
    assert area(patient_steps(scores, has_object, ones(2)), num_hits=np.ones(1))[0] == 1.0
