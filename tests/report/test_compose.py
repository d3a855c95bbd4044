"""The page as a whole: complete, well-formed, and safe whatever the names in it are."""

from __future__ import annotations

import base64
import hashlib
import re

import numpy as np
import pytest

from support.evaluations import detection_evaluation, read_page, segmentation_evaluation
from support.scored_scans import Scans, detections
from voxray.core.run import Run
from voxray.metrics.record import compare
from voxray.report import Data, Entry, Shown, Training, compose
from voxray.report import Scans as ScanFacts

EVIL = '</script><script>alert("1")</script>'
PNG = b"\x89PNG not really"


def training(**fields: object) -> Training:
    run = Run(
        name="r",
        dataset="d",
        licence="CC0-1.0",
        classes=("nodule", "cyst"),
        recipe={"name": "lung_nodule", "network": {"kind": "retinanet"}},
        train_cases=("t1", "t2", "t3"),
        val_cases=("v1",),
        voxray_version="0.1.0",
    )
    history = tuple(
        {
            "epoch": float(k),
            "loss/total": 1 / k,
            "rate": 0.1,
            "num_skipped": 1.0,
            **({"val/mAP": 0.5} if k == 3 else {}),
        }
        for k in (1, 2, 3)
    )
    return Training(**{"run": run, "recipe": "name = 'lung_nodule'", "history": history, "epochs_done": 3} | fields)  # type: ignore[arg-type]


def test_a_detection_has_all_its_parts() -> None:
    lost = {"case 77": "[comparison.geometry] elsewhere"}
    failed = {"case 03": "[nifti.truncated] cut short"}
    evaluation = detection_evaluation(failed=failed, not_judged=lost, notices=("2 unknown",))
    shown = (Shown("false", "case 01: nodule, 5.0 mm", "a false finding", PNG),)
    data = Data("d", "CC0-1.0", "phantoms", "kfold, 5 folds", 24, 20)
    page = read_page(compose([Entry("r", evaluation, training(), data, ScanFacts(pictures=shown))], {}))
    parts = ["Summary", "What failed", "Metrics", "Curves", "Pictures", "Cases", "Training", "Data", "Recipe"]
    assert [heading for heading in page.headings if heading in parts] == parts
    low, high = evaluation.intervals["mAP"]
    assert page.row("mAP")[1:3] == [f"{evaluation.metrics['mAP']:.3f}", f"{low:.3f} to {high:.3f}"]
    assert page.row("case 03")[1] == "[nifti.truncated] cut short"
    assert "1 of 12 cases" in page.text
    assert page.row("case 77")[1] == "[comparison.geometry] elsewhere"
    assert "1 of 13 cases" in page.text
    assert "2 unknown" in page.text
    assert "3 steps of the training were skipped" in page.text
    assert "lung_nodule" in page.text
    assert "24 of 20 patients" in page.text
    charts = " ".join(page.images)
    for name in (
        "FROC at IoU 0.10",
        "FROC at IoU 0.50",
        "ROC of patients",
        "Share of findings that hit",
        "hits, ",
        "Loss",
    ):
        assert name in charts
    assert f"data:image/png;base64,{base64.b64encode(PNG).decode()}" in page.addresses


def test_the_table_of_cases_counts_what_was_found() -> None:
    evaluation = detection_evaluation()
    assert evaluation.detection is not None
    page = read_page(compose([Entry("r", evaluation)], {}))
    for case_id, case in evaluation.detection.cases.items():
        hits = sum(place >= 0 for place in case.objects)
        row = page.row(case_id)
        assert row[:4] == [case_id, case.patient_id, "yes", str(len(case.truth_boxes))]
        assert row[4:8] == [
            str(n) for n in (hits, len(case.truth_boxes) - hits, len(case.objects), len(case.objects) - hits)
        ]


def test_without_a_training_and_scans_the_rest_is_there() -> None:
    page = read_page(compose([Entry("r", segmentation_evaluation(), remarks=("Its training is not known.",))], {}))
    assert {"Metrics", "Spread over cases", "By size and intensity", "Cases"} < set(page.headings)
    assert not {"Training", "Recipe", "Pictures"} & set(page.headings)
    assert "Its training is not known." in page.text


def test_a_segmentation_has_a_row_for_each_case_and_class() -> None:
    evaluation = segmentation_evaluation(missing=True)
    page = read_page(compose([Entry("r", evaluation)], {}))
    assert page.row("cyst")[1].startswith(f"{evaluation.metrics['dice/cyst']:.3f} (")
    first = page.row("case 0")
    assert first[3] == first[5] == first[-2] == f"{evaluation.cases['case 0']['nodule']:.3f}"
    assert first[-1] == "-"


@pytest.mark.parametrize("make", [detection_evaluation, segmentation_evaluation])
def test_names_are_text_and_nothing_else(make: type) -> None:
    evaluation = make(classes=(EVIL, "a$b$ & 'c'"), run=EVIL, dataset=EVIL, notices=(EVIL,), failed={EVIL: EVIL})
    shown = (Shown("hit", EVIL, f'x" onload="{EVIL}', PNG),)
    about = training(recipe=EVIL, failure=EVIL, best=EVIL)
    page = read_page(compose([Entry(EVIL, evaluation, about, scans=ScanFacts(pictures=shown))], {}))
    assert page.text.count(EVIL) > 8
    assert any(EVIL in alt for alt in page.images)


def test_a_policy_forbids_what_is_not_in_the_page() -> None:
    html = compose([Entry("r", detection_evaluation())], {})
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)
    assert policy is not None
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy[1].replace("&#39;", "'")
    assert policy[1].startswith("default-src 'none'")
    assert "http" not in re.sub(r"http-equiv", "", html)


def test_several_stand_side_by_side() -> None:
    first = detection_evaluation()
    assert first.detection is not None
    second = first.model_copy(update={"run": "s", "metrics": {**first.metrics, "mAP": 0.123}, "intervals": {}})
    entries = [Entry("r", first, training()), Entry("s", second, training())]
    page = read_page(compose(entries, {"s": compare(first, second), "t": "t cannot be compared: why"}))
    assert page.row("metric") == ["metric", "r", "s"]
    assert page.row("mAP")[2] == "0.123"
    assert ["mAP", "+0.000", "+0.000 to +0.000", "0.500", "no"] in page.rows
    assert "t cannot be compared: why" in page.text
    assert page.row("case") == ["case", "r", "s"]
    assert page.row("case 00") == ["case 00", "0.500", "0.500"]
    assert any("r: sensitivity" in alt and "s: sensitivity" in alt for alt in page.images)


def test_no_findings_and_no_objects_leave_a_page_too() -> None:
    nothing: Scans = ([detections([], [])] * 3, [np.zeros((0, 6))] * 3, [np.zeros(0, np.int64)] * 3)
    page = read_page(compose([Entry("r", detection_evaluation(nothing))], {}))
    assert page.row("case 00")[3:8] == ["0"] * 5
    one: Scans = ([detections([], [])] * 3, [np.array([[0.0, 0, 0, 4, 4, 4]])] * 3, [np.zeros(1, np.int64)] * 3)
    page = read_page(compose([Entry("r", detection_evaluation(one))], {}))
    assert page.row("case 00")[3:6] == ["1", "0", "1"]
    assert "There is no ROC of patients" in page.text
