"""Curves against scikit-learn and against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from voxray.metrics.bootstrap import draw_weights, ones
from voxray.metrics.curves import area, average_precision_of_steps, corners, precision_at, roc, steps

AT = np.linspace(0, 1, 11)


def _marks(seed: int, *, ties: bool) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 60))
    scores = rng.integers(0, 12, count) / 12 if ties else rng.random(count)
    order = np.argsort(-scores, kind="stable")
    is_hit = rng.random(count) < 0.4
    is_hit[:2] = [True, False]
    return scores[order], is_hit[order], rng.integers(0, 5, count)


@settings(max_examples=80)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_equals_scikit_learn(seed: int, ties: bool) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores, is_hit, scans = _marks(seed, ties=ties)
    found, total = steps(scores, is_hit, scans, ones(5)), np.array([float(is_hit.sum())])
    assert area(found, num_hits=total)[0] == pytest.approx(metrics.roc_auc_score(is_hit, scores), abs=1e-12)
    expected = metrics.average_precision_score(is_hit, scores)
    assert average_precision_of_steps(found, num_hits=total)[0] == pytest.approx(expected, abs=1e-12)
    fpr, tpr, thresholds = metrics.roc_curve(is_hit, scores)
    np.testing.assert_allclose(roc(found, num_hits=total, at=AT)[:, 0], np.interp(AT, fpr, tpr), atol=1e-12)
    bends = corners(steps(scores, is_hit, scans, ones(5), every=True))
    np.testing.assert_array_equal(bends.thresholds, thresholds)
    np.testing.assert_allclose(bends.others[:, 0] / (~is_hit).sum(), fpr, atol=1e-12)
    np.testing.assert_allclose(bends.hits[:, 0] / is_hit.sum(), tpr, atol=1e-12)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(0, 6))
def test_what_was_not_found_ranks_below_all(seed: int, missed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores, is_hit, scans = _marks(seed, ties=True)
    found, total = steps(scores, is_hit, scans, ones(5)), np.array([float(is_hit.sum()) + missed])
    with_missed = np.append(scores, np.full(missed, -1.0)), np.append(is_hit, np.ones(missed, bool))
    expected = metrics.roc_auc_score(with_missed[1], with_missed[0])
    assert area(found, num_hits=total)[0] == pytest.approx(expected, abs=1e-12)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_a_replicate_is_the_curve_of_the_drawn_scans(seed: int) -> None:
    scores, is_hit, scans = _marks(seed, ties=True)
    weights = draw_weights(5, rng=np.random.default_rng(seed), num=4)
    total = weights.T @ np.bincount(scans[is_hit], minlength=5)
    many = steps(scores, is_hit, scans, weights)
    for column, drawn in enumerate(weights.T.astype(int)):
        times = drawn[scans]
        alone = steps(np.repeat(scores, times), np.repeat(is_hit, times), np.repeat(scans, times), ones(5))
        num_hits = total[column : column + 1]
        for function in (area, average_precision_of_steps):
            ours, theirs = function(many, num_hits=total)[column], function(alone, num_hits=num_hits)[0]
            assert ours == pytest.approx(theirs, abs=1e-12, nan_ok=True)
        np.testing.assert_allclose(
            precision_at(many, num_hits=total, recalls=AT)[:, column],
            precision_at(alone, num_hits=num_hits, recalls=AT)[:, 0],
            atol=1e-12,
        )


@given(st.integers(0, 2**32 - 1))
def test_precision_is_the_best_at_a_recall_or_above(seed: int) -> None:
    scores, is_hit, scans = _marks(seed, ties=True)
    total = int(is_hit.sum()) + 1
    points = [((is_hit & (scores >= t)).sum() / total, is_hit[scores >= t].mean()) for t in np.unique(scores)]
    expected = [max((p for r, p in points if r >= recall), default=0.0) for recall in AT.tolist()]
    found = steps(scores, is_hit, scans, ones(5))
    ours = precision_at(found, num_hits=np.array([float(total)]), recalls=AT)[:, 0]
    np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_nothing_to_judge_is_nan() -> None:
    nothing = steps(np.zeros(0), np.zeros(0, bool), np.zeros(0, np.int64), ones(3))
    assert nothing.thresholds.tolist() == [np.inf]
    assert np.isnan(area(nothing, num_hits=np.zeros(1)))
    assert np.isnan(average_precision_of_steps(nothing, num_hits=np.zeros(1)))
    assert average_precision_of_steps(nothing, num_hits=np.ones(1)) == 0.0
    assert np.isnan(roc(nothing, num_hits=np.ones(1), at=AT)).all()
    assert (precision_at(nothing, num_hits=np.ones(1), recalls=AT[1:]) == 0).all()
