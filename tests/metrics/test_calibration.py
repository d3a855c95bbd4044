from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxray.metrics.bootstrap import draw_weights, ones
from voxray.metrics.calibration import histogram, reliability


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(0, 80))
def test_expected_error_by_its_definition(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    scores, is_hit = rng.integers(0, 101, count) / 100, rng.random(count) < 0.5
    bins = reliability(scores, is_hit, np.zeros(count, np.int64), ones(1))
    assert bins is not None
    error = 0.0
    for low in range(10):
        mine = [i for i in range(count) if min(int(scores[i] * 10), 9) == low]
        if mine:
            gap = np.mean([scores[i] for i in mine]) - np.mean([is_hit[i] for i in mine])
            error += abs(float(gap)) * len(mine) / count
    if count:
        assert bins.expected_error()[0] == pytest.approx(error, abs=1e-12)
    else:
        assert np.isnan(bins.expected_error()[0])


def test_scores_that_say_the_truth_are_calibrated(rng: np.random.Generator) -> None:
    scores = rng.random(200_000)
    is_hit = rng.random(200_000) < scores
    bins = reliability(scores, is_hit, np.zeros(200_000, np.int64), ones(1))
    assert bins is not None
    assert bins.expected_error()[0] < 0.01
    wrong = reliability(np.full(1000, 0.9), rng.random(1000) < 0.5, np.zeros(1000, np.int64), ones(1))
    assert wrong is not None
    assert wrong.expected_error()[0] == pytest.approx(0.4, abs=0.05)


def test_a_replicate_counts_drawn_scans(rng: np.random.Generator) -> None:
    scores, is_hit, scans = rng.random(300), rng.random(300) < 0.3, rng.integers(0, 8, 300)
    weights = draw_weights(8, rng=rng, num=6)
    bins = reliability(scores, is_hit, scans, weights)
    assert bins is not None
    for column, drawn in enumerate(weights.T.astype(int)):
        times = drawn[scans]
        repeated = np.repeat(scores, times), np.repeat(is_hit, times), np.repeat(scans, times)
        alone = reliability(repeated[0], repeated[1], repeated[2], ones(8))
        assert alone is not None
        assert bins.expected_error()[column] == pytest.approx(alone.expected_error()[0], abs=1e-12)


def test_scores_that_are_no_probabilities_are_not_calibrated() -> None:
    assert reliability(np.array([3.0]), np.array([True]), np.zeros(1, np.int64), ones(1)) is None


def test_every_finding_is_in_one_bin_and_every_missed_object_is_counted(rng: np.random.Generator) -> None:
    scores, is_hit = rng.random(500), rng.random(500) < 0.2
    counted = histogram(scores, is_hit, num_objects=int(is_hit.sum()) + 7)
    assert (counted.hits.sum(), counted.false_findings.sum(), counted.missed) == (is_hit.sum(), (~is_hit).sum(), 7)
    wide = histogram(np.array([-4.0, 12.0]), np.array([True, False]), num_objects=1)
    assert (wide.edges[0], wide.edges[-1], wide.hits[0], wide.false_findings[-1]) == (-4.0, 12.0, 1, 1)
