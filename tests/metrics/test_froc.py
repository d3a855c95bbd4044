from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.scored_scans import Scans, detections, random_scans
from voxray.metrics.bootstrap import ones
from voxray.metrics.froc import RATES, froc_steps, sensitivity
from voxray.metrics.pool import Pool, match_scans, pool_hits, pool_of

IOUS = (0.1, 0.5)


def _sensitivity(pool: Pool, level: int) -> list[float]:
    objects = np.array([float(pool.objects.sum())])
    above = froc_steps(pool, level, ones(pool.num_scans))
    rates: list[float] = sensitivity(above, num_objects=objects, num_scans=np.array([float(pool.num_scans)]))[
        :, 0
    ].tolist()
    return rates


def _reference(scans: Scans, level: int) -> list[float]:
    """FROC threshold by threshold, in plain Python, from the matches of each scan alone."""
    marks: list[tuple[float, bool]] = []
    for found, boxes, classes in zip(*scans, strict=True):
        (matched,) = match_scans([found], [boxes], [classes], num_classes=1, ious=IOUS)
        marks += zip(matched.found.scores.tolist(), matched.hits[level].tolist(), strict=True)
    total = sum(len(classes) for classes in scans[2])
    points = [(0.0, 0.0)]
    for threshold in sorted({score for score, _ in marks}, reverse=True):
        above = [hit for score, hit in marks if score >= threshold]
        points.append(((len(above) - sum(above)) / len(scans[0]), sum(above) / total))
    x, y = zip(*points, strict=True)
    return [float(np.interp(rate, x, y)) for rate in RATES]


def test_golden_values_of_nndetection() -> None:
    """Its box evaluator on three scans with three objects and six detections: FROC.1 .761905, FROC.5 .476190."""
    true, far = [[0, 0, 0, 10, 10, 10]], [40, 40, 40, 50, 50, 50]
    shifted = [2, 2, 2, 12, 12, 12]
    found = [
        detections([*true, far], [0.9, 0.5]),
        detections([far, shifted], [0.8, 0.7]),
        detections([far, *true], [0.4, 0.3]),
    ]
    pool = pool_of(found, [np.asarray(true, float)] * 3, [np.zeros(1, np.int64)] * 3, num_classes=1, ious=IOUS)
    np.testing.assert_allclose(_sensitivity(pool, 0), [1 / 3, 1 / 3, 2 / 3, 1, 1, 1, 1])
    assert np.mean(_sensitivity(pool, 0)) == pytest.approx(0.761905, abs=1e-6)
    assert np.mean(_sensitivity(pool, 1)) == pytest.approx(0.476190, abs=1e-6)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_equals_the_plain_reference(seed: int) -> None:
    scans = random_scans(np.random.default_rng(seed), scans=6, found=15, truth=4, num_classes=1)
    pool = pool_of(*scans, num_classes=1, ious=IOUS)
    if pool.objects.any():
        for level in (0, 1):
            np.testing.assert_allclose(_sensitivity(pool, level), _reference(scans, level), atol=1e-12)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 100]))
def test_scans_matched_one_by_one_make_the_same_pool(seed: int, limit: int) -> None:
    scans = random_scans(np.random.default_rng(seed), scans=5, found=10, truth=4, num_classes=2)
    whole = pool_of(*scans, num_classes=2, ious=IOUS, max_detections=limit)
    matched = match_scans(*scans, num_classes=2, ious=IOUS, max_detections=limit)
    parts = pool_hits(
        [one.found.scores.astype(float) for one in matched],
        [one.found.classes for one in matched],
        [one.hits for one in matched],
        whole.objects,
    )
    for one, boxes, classes in zip(matched, scans[1], scans[2], strict=True):
        hit = one.objects >= 0
        np.testing.assert_array_equal(hit, one.hits[0])
        np.testing.assert_array_equal(classes[one.objects[hit]], one.found.classes[hit])
        assert len(boxes) == len(classes)
    for name in ("scans", "classes", "scores", "hits"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name), err_msg=name)


def test_more_false_findings_never_help() -> None:
    scans = random_scans(np.random.default_rng(2), scans=10, found=10, truth=4, num_classes=1)
    before = _sensitivity(pool_of(*scans, num_classes=1, ious=IOUS), 0)
    far = detections([[900, 0, 0, 905, 5, 5]] * 3, [0.99, 0.98, 0.97])
    worse = [
        detections(np.concatenate([far.boxes, one.boxes]), np.append(far.scores, one.scores)) for one in scans[0]
    ]
    after = _sensitivity(pool_of(worse, *scans[1:], num_classes=1, ious=IOUS), 0)
    assert all(b <= a for a, b in zip(before, after, strict=True))
    assert after[0] == 0
