"""Objects, the score at which findings are looked at, groups of objects, and what gets a picture."""

from __future__ import annotations

import math

import numpy as np
import pytest

from support.evaluations import detection_evaluation, segmentation_evaluation
from support.scored_scans import Scans, detections
from voxray.core.evaluation import Detection, Evaluation
from voxray.report.objects import Target, groups_table, operating_point, sizes_in, targets_of
from voxray.report.picks import pick_cases, pick_findings

BOX = [0.0, 0, 0, 8, 8, 8]
AWAY = [20.0, 0, 0, 28, 8, 8]
LARGE = [40.0, 0, 0, 56, 16, 16]


def small() -> Evaluation:
    """Two scans: the first finds one of two objects and four places without any, the second finds nothing."""
    found = [detections([BOX, AWAY, AWAY, AWAY, AWAY], [0.9, 0.8, 0.6, 0.4, 0.2]), detections([], [])]
    truth = [np.array([BOX, LARGE]), np.array([BOX])]
    scans: Scans = (found, truth, [np.zeros(2, np.int64), np.zeros(1, np.int64)])
    return detection_evaluation(scans, classes=("nodule",))


def part(evaluation: Evaluation) -> Detection:
    assert evaluation.detection is not None
    return evaluation.detection


def test_the_point_lets_so_many_false_findings_through() -> None:
    found = part(small())
    # Two scans at a rate of 1: two false findings, with 0.8 and 0.6, are above it.
    assert operating_point(found).score == pytest.approx(0.4)
    assert operating_point(found, rate=0.5).score == pytest.approx(0.6)
    assert operating_point(found, rate=2).score == -math.inf


def test_objects_with_the_score_of_what_hits_them() -> None:
    known = {"case 00": np.array([8.0, 16.0])}
    targets = targets_of(small(), known, {"case 01": np.array([-30.0])})
    assert [(t.case_id, t.class_name, t.size) for t in targets[:2]] == [
        ("case 00", "nodule", 8.0),
        ("case 00", "nodule", 16.0),
    ]
    assert targets[0].outcome == pytest.approx(0.9)
    assert math.isnan(targets[1].outcome)
    assert math.isnan(targets[2].size)
    assert targets[2].intensity_hu == -30.0


def test_sizes_are_known_where_boxes_are_in_mm() -> None:
    case = part(small()).cases["case 00"]
    assert np.isnan(sizes_in(case)).all()
    np.testing.assert_allclose(sizes_in(case.model_copy(update={"frame": "LPS"})), [8, 16])


def test_groups_have_equal_numbers_and_their_means() -> None:
    targets = [Target(f"c{k}", f"p{k}", "a", float(k), math.nan, 0.0) for k in range(8)]
    size = np.array([target.size for target in targets])
    found = (size >= 4).astype(float)
    table = groups_table(targets, size, [("found", found)], caption="by size", name="mm", num=2)
    assert table is not None
    assert [row[:2] for row in table.rows] == [("0 to 3.5", 4), ("3.5 to 7", 4)]
    assert [row[2] for row in table.rows] == ["0.000 (0.000 to 0.000)", "1.000 (1.000 to 1.000)"]


def test_intervals_of_groups_draw_patients_and_not_objects() -> None:
    targets = [Target("c", f"p{k // 20}", "a", float(k), math.nan, 0.0) for k in range(40)]
    size, found = np.arange(40.0), np.array([k // 20 for k in range(40)], float)
    table = groups_table(targets, size % 20, [("found", found)], caption="", name="mm", num=2)
    assert table is not None
    assert table.rows[0][2] == "0.500 (0.000 to 1.000)"
    alone = [target._replace(patient_id="p") for target in targets]
    table = groups_table(alone, size, [("found", found)], caption="", name="mm", num=2)
    assert table is not None
    assert table.rows[0][2] == "0.000"


def test_there_are_no_groups_of_what_is_not_known_or_does_not_differ() -> None:
    targets = [Target("c", "p", "a", 1.0, math.nan, 0.0)] * 6
    assert groups_table(targets, np.ones(6), [], caption="", name="mm") is None
    assert groups_table(targets, np.full(6, np.nan), [], caption="", name="mm") is None


def test_what_gets_a_picture() -> None:
    picks = pick_findings(part(small()), {"case 00": np.array([8.0, 16.0]), "case 01": np.array([8.0])})
    assert [(pick.kind, pick.case_id) for pick in picks] == [
        ("hit", "case 00"),
        *[("false", "case 00")] * 4,
        ("missed", "case 00"),
        ("missed", "case 01"),
    ]
    assert [pick.score for pick in picks[1:5]] == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert picks[5].box == tuple(LARGE)
    # A finding is drawn in its own picture, however low it scores.
    assert all(pick.min_score <= pick.score for pick in picks[:5])


def test_the_worst_and_the_best_cases() -> None:
    evaluation = segmentation_evaluation(missing=True)
    assert evaluation.segmentation is not None
    picks = pick_cases(evaluation.segmentation)
    mean = {name: np.mean(list(case.values())) for name, case in evaluation.cases.items()}
    order = sorted(mean, key=lambda name: mean[name])
    assert picks == [*(("worst", name) for name in order[:3]), *(("best", name) for name in order[:2:-1])]
