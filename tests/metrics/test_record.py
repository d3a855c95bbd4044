"""A written evaluation read back, its metrics made again from its cases, and two of them compared."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from support.scored_scans import Scans, detections, random_scans
from voxray.core.errors import ConfigError
from voxray.core.evaluation import Bootstrap, Evaluation, read_evaluation, write_evaluation
from voxray.metrics import coco
from voxray.metrics.record import (
    compare,
    detection_record,
    findings_of,
    segmentation_record,
    tables_of,
    values_of,
    with_metrics,
)

NAMES = ("a", "b")


def _evaluation(scans: Scans, **fields: object) -> Evaluation:
    cases = {f"case {index}": f"patient {index // 2}" for index in range(len(scans[0]))}
    part = detection_record(cases, *scans, num_classes=2)
    about = {"run": "r", "dataset": "d", "which": "val", "task": "detection", "classes": NAMES}
    told = {"metrics": {}, "intervals": {}, "bootstrap": Bootstrap(replicates=200, seed=3, confidence=0.95)}
    return Evaluation(**about | told | {"cases": {name: {} for name in cases}, "detection": part} | fields)  # type: ignore[arg-type]


@pytest.fixture
def scans() -> Scans:
    return random_scans(np.random.default_rng(11), scans=14, found=12, truth=4, num_classes=2)


def test_its_cases_give_the_metrics_again(tmp_path: Path, scans: Scans) -> None:
    made = with_metrics(_evaluation(scans))
    read = read_evaluation(write_evaluation(made, tmp_path / "evaluation.json"))
    assert read.model_dump_json() == made.model_dump_json()
    again = {name: value[0] for name, value in values_of(read).items()}
    assert again == pytest.approx(dict(made.metrics), abs=1e-12, nan_ok=True)
    for name, value in coco.evaluate(*scans, NAMES).items():
        assert made.metrics[name] == pytest.approx(value, abs=1e-12)


def test_what_stands_in_it(scans: Scans) -> None:
    made = with_metrics(_evaluation(scans))
    for name in ("mAP", "FROC@0.10", "sensitivity@0.125", "sensitivity@8", "object_AP", "ECE"):
        low, high = made.intervals[name]
        assert low <= made.metrics[name] <= high or name == "ECE"
        assert f"{name}/a" in made.metrics
    rates = [made.metrics[f"sensitivity@{rate}/a"] for rate in ("0.125", "0.25", "0.5", "1", "2", "4", "8")]
    assert made.metrics["FROC@0.10/a"] == pytest.approx(np.mean(rates))
    assert made.detection is not None
    curve = made.detection.curves["a"]
    line = curve.froc["0.10"]
    at_rates = [line.y[line.x.index(rate)] for rate in (0.125, 0.25, 0.5, 1, 2, 4, 8)]
    assert at_rates == pytest.approx(rates, abs=1e-8)
    assert all(low <= high for low, high in zip(line.low, line.high, strict=True))
    histogram = curve.histogram
    pool = findings_of(made).pool.of_class(0)
    assert sum(histogram.hits) + histogram.missed == pool.objects.sum()
    assert sum(histogram.hits) + sum(histogram.false_findings) == len(pool.scores)


def test_hits_name_their_objects(scans: Scans) -> None:
    part = _evaluation(scans).detection
    assert part is not None
    hit = 0
    for case in part.cases.values():
        assert list(case.scores) == sorted(case.scores, reverse=True)
        for kind, place, bits in zip(case.classes, case.objects, case.hits, strict=True):
            assert (place >= 0) == bool(bits & 1)
            if place >= 0:
                assert case.truth_classes[place] == kind
                hit += 1
    assert hit > 5


def test_two_runs_on_the_same_cases(scans: Scans) -> None:
    worse = [one.take(np.arange(len(one))[::2]) for one in scans[0]]
    first, second = _evaluation(scans), _evaluation((worse, *scans[1:]), run="worse")
    found = compare(first, second)
    assert found["AR@0.10"].value < 0
    assert found["AR@0.10"].high <= 0
    plain = [coco.evaluate(answers, *scans[1:], NAMES)["mAP"] for answers in (scans[0], worse)]
    assert found["mAP"].value == pytest.approx(plain[1] - plain[0], abs=1e-12)
    assert found["mAP"].low <= found["mAP"].value <= found["mAP"].high
    shuffled = second.detection
    assert shuffled is not None
    turned = shuffled.model_copy(update={"cases": dict(list(shuffled.cases.items())[::-1])})
    assert compare(first, second.model_copy(update={"detection": turned})) == found


def test_what_cannot_be_compared(scans: Scans) -> None:
    first = _evaluation(scans)
    fewer = _evaluation(tuple(part[:-1] for part in scans), run="fewer")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="only one of them scored case 13"):
        compare(first, fewer)
    with pytest.raises(ConfigError, match="the one is detection of a, b"):
        compare(first, first.model_copy(update={"classes": ("a", "c")}))


def test_other_truth_cannot_be_compared(scans: Scans) -> None:
    first = _evaluation(scans)
    moved = [boxes + (3.0 if index == 5 else 0.0) for index, boxes in enumerate(scans[1])]
    assert len(moved[5]) > 0
    second = _evaluation((scans[0], moved, scans[2]), run="moved")
    with pytest.raises(ConfigError, match="r and moved cannot be compared: what is true of case case 5 differs"):
        compare(first, second)
    unread = second.model_copy(update={"failed": {"case 5": "cut short"}})
    assert compare(first, unread)["mAP"].value == 0.0
    fewer = [classes[:1] for classes in scans[2]], [boxes[:1] for boxes in scans[1]]
    with pytest.raises(ConfigError, match="more cases differs"):
        compare(first, _evaluation((scans[0], fewer[1], fewer[0])))


def test_other_volumes_cannot_be_compared(rng: np.random.Generator) -> None:
    cases = {f"c{index}": f"p{index}" for index in range(3)}
    tables = rng.random((3, 2, 6))
    made = [
        _evaluation(
            ([], [], []),
            task="segmentation",
            detection=None,
            segmentation=segmentation_record(cases, list(values), NAMES),
            cases={name: {} for name in cases},
        )
        for values in (tables, tables * [1, 1, 1, 1, 1, 1.01])
    ]
    with pytest.raises(ConfigError, match="what is true of case c0 and 2 more cases differs"):
        compare(*made)


def test_one_patient_gives_no_interval() -> None:
    box = [[0, 0, 0, 4, 4, 4]]
    made = with_metrics(_evaluation(([detections(box, [0.9])], [np.asarray(box, float)], [np.zeros(1, np.int64)])))
    assert made.metrics["mAP"] == 1.0
    assert made.intervals == {}
    assert math.isnan(made.metrics["patient_AUC"])


def test_segmentation_there_and_back(tmp_path: Path, rng: np.random.Generator) -> None:
    tables = rng.random((5, 2, 6))
    tables[1, 1, :4] = np.nan
    cases = {f"c{index}": f"p{index}" for index in range(5)}
    part = segmentation_record(cases, list(tables), NAMES)
    made = with_metrics(
        _evaluation(
            ([], [], []), task="segmentation", detection=None, segmentation=part, cases={name: {} for name in cases}
        )
    )
    read = read_evaluation(write_evaluation(made, tmp_path / "evaluation.json"))
    assert read.segmentation is not None
    np.testing.assert_array_equal(tables_of(read.segmentation, NAMES), tables)
    assert made.metrics["dice/b"] == pytest.approx(np.nanmean(tables[:, 1, 0]))
    low, high = made.intervals["HD95_mm/a"]
    assert low < made.metrics["HD95_mm/a"] < high
    assert compare(made, read)["dice"].value == 0.0


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps({"schema": "voxray-evaluation/1"}))
    with pytest.raises(ConfigError, match=r"schema must be voxray-evaluation/2, got 'voxray-evaluation/1'"):
        read_evaluation(tmp_path)
