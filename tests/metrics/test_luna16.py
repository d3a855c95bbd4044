"""LUNA16's rules against a plain reading of them, and against the official script's answers for real marks."""

from __future__ import annotations

import csv
import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from voxray.metrics.luna16 import Marks, Nodules, bootstrap, froc, judge

RATES = (0.125, 0.25, 0.5, 1, 2, 4, 8)


def _marks(rows: Any) -> Marks:
    table = np.asarray(rows, np.float64).reshape(-1, 5)
    return Marks(table[:, 0].astype(np.int64), table[:, 1:4], table[:, 4])


def _nodules(rows: Any) -> Nodules:
    return Nodules(*_marks(rows))


def _reference(marks: Any, included: Any, excluded: Any, num_scans: int) -> dict[str, Any]:
    """Scan by scan and mark by mark, as the rules are written; ROC by scikit-learn, as the official script has it."""
    metrics = pytest.importorskip("sklearn.metrics")
    truth, scores, count = [], [], {"found": 0, "false": 0, "missed": 0, "ignored": 0, "doubles": 0, "marks": 0}
    for scan in range(num_scans):
        mine = {index: row for index, row in enumerate(marks) if row[0] == scan}
        if len(mine) > 100:
            limit = sorted((row[4] for row in mine.values()), reverse=True)[100]
            mine = {index: row for index, row in mine.items() if row[4] > limit}
        count["marks"] += len(mine)
        left = dict(mine)
        for state, table in (("included", included), ("excluded", excluded)):
            for nodule in (row for row in table if row[0] == scan):
                radius = (10.0 if nodule[4] < 0 else nodule[4]) / 2
                on_it = [i for i, row in mine.items() if math.dist(row[1:4], nodule[1:4]) ** 2 < radius**2]
                if state == "excluded":
                    count["ignored"] += sum(left.pop(index, None) is not None for index in on_it)
                    continue
                for index in on_it:
                    left.pop(index, None)
                count["doubles"] += max(len(on_it) - 1, 0)
                count["found" if on_it else "missed"] += 1
                if on_it:
                    truth.append(1)
                    scores.append(max(mine[index][4] for index in on_it))
        count["false"] += len(left)
        truth += [0] * len(left)
        scores += [row[4] for row in left.values()]
    if count["found"] == 0:
        return count | {"sensitivity": [0.0] * 7}
    if count["false"] == 0:
        return count | {"sensitivity": None}
    fpr, tpr, _ = metrics.roc_curve(truth, scores)
    fps, sens = fpr * count["false"] / num_scans, tpr * count["found"] / (count["found"] + count["missed"])
    return count | {"sensitivity": np.interp(RATES, fps, sens).tolist()}


@settings(max_examples=80)
@given(st.integers(0, 2**32 - 1), st.sampled_from([8, 130]))
def test_equals_the_rules_as_written(seed: int, many: int) -> None:
    rng = np.random.default_rng(seed)

    def rows(count: int, last: NDArray[np.float64]) -> list[list[float]]:
        places = rng.integers(0, 12, (count, 3)) * 2.5
        table: list[list[float]] = np.column_stack([rng.integers(0, 3, count), places, last]).tolist()
        return table

    marks = rows(3 * many, rng.integers(0, 40, 3 * many) / 40)
    included, excluded = rows(6, rng.uniform(3, 12, 6)), rows(5, rng.choice([-1.0, 4.0, 9.0], 5))
    outcome = judge(_marks(marks), _nodules(included), _nodules(excluded), num_scans=4)
    expected = _reference(marks, included, excluded, 4)
    found = {
        "found": outcome.num_found,
        "false": outcome.num_false,
        "missed": int(np.isnan(outcome.best).sum()),
        "ignored": outcome.num_ignored,
        "doubles": outcome.num_doubles,
        "marks": outcome.num_marks,
    }
    assert found == {name: value for name, value in expected.items() if name != "sensitivity"}
    if expected["sensitivity"] is not None:
        np.testing.assert_allclose(froc(outcome).at_rates, expected["sensitivity"], atol=1e-12)


def test_a_mark_on_the_radius_is_outside() -> None:
    nodule = _nodules([[0, 0, 0, 0, 10.0]])
    nothing = _nodules([])
    assert judge(_marks([[0, 5.0, 0, 0, 0.5]]), nodule, nothing, num_scans=1).num_found == 0
    assert judge(_marks([[0, 4.999, 0, 0, 0.5]]), nodule, nothing, num_scans=1).num_found == 1


def test_of_too_many_marks_those_above_the_101st_are_taken() -> None:
    scores = np.append(np.linspace(0.9, 0.2, 99), [0.1, 0.1, 0.1])
    marks = np.column_stack([np.zeros(102), np.full((102, 3), 50.0), scores])
    assert judge(_marks(marks), _nodules([]), _nodules([]), num_scans=1).num_marks == 99


def test_scans_without_marks_count() -> None:
    marks, nodule, nothing = (
        _marks([[0, 90, 0, 0, 0.9], [0, 0, 0, 0, 0.5]]),
        _nodules([[0, 0, 0, 0, 6]]),
        _nodules([]),
    )
    assert froc(judge(marks, nodule, nothing, num_scans=1)).at_rates[3] == 1.0
    alone, among_eight = (froc(judge(marks, nodule, nothing, num_scans=scans)) for scans in (1, 8))
    assert alone.at_rates[0] == 0.0
    assert among_eight.at_rates[0] == 1.0


def test_no_marks_and_no_nodules() -> None:
    silent = froc(judge(_marks([]), _nodules([[0, 0, 0, 0, 6]]), _nodules([]), num_scans=2))
    assert silent.cpm == 0.0
    healthy = froc(judge(_marks([[0, 0, 0, 0, 0.9]]), _nodules([]), _nodules([]), num_scans=2))
    assert np.isnan(healthy.cpm)
    bands = bootstrap(
        judge(_marks([]), _nodules([[0, 0, 0, 0, 6]]), _nodules([]), num_scans=2),
        rng=np.random.default_rng(0),
        num=50,
    )
    assert np.nanmax(bands.high) == 0.0


def _table(path: Path, scans: dict[str, int], last: str) -> list[list[float]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["seriesuid"] in scans]
    names = ("coordX", "coordY", "coordZ", last)
    return [[scans[row["seriesuid"]], *(float(row[name]) for name in names)] for row in rows]


def _real(folder: Path) -> tuple[Any, Any, Any, int]:
    scans = {name: index for index, name in enumerate((folder / "seriesuids.csv").read_text().split())}
    return (
        _table(folder / "submission.csv.gz", scans, "probability"),
        _table(folder / "annotations.csv", scans, "diameter_mm"),
        _table(folder / "annotations_excluded.csv", scans, "diameter_mm"),
        len(scans),
    )


@pytest.mark.data
@pytest.mark.parametrize("name", ["tiny12", "subset0"])
def test_the_official_scripts_curve_to_all_printed_digits(shared_data: Path, name: str) -> None:
    folder = shared_data / "froc_luna16" / name
    marks, included, excluded, num_scans = _real(folder)
    found = froc(judge(_marks(marks), _nodules(included), _nodules(excluded), num_scans=num_scans))
    expected = json.loads((folder / "expected.json").read_text())
    assert round(found.cpm, 6) == expected["cpm"]
    assert found.at_rates.round(6).tolist() == expected["sensitivity"]
    lines = gzip.decompress((folder / "froc_curve.txt.gz").read_bytes()).decode().split()
    rows = zip(found.false_per_scan, found.sensitivity, found.thresholds, strict=True)
    assert [f"{fps:.9f},{sens:.9f},{score:.9f}" for fps, sens, score in rows] == lines


@pytest.mark.data
def test_bands_are_those_of_drawing_scans_one_by_one(shared_data: Path) -> None:
    """The official way, which copies the candidates of each drawn scan, on the same draws."""
    marks, included, excluded, num_scans = _real(shared_data / "froc_luna16" / "tiny12")
    outcome = judge(_marks(marks), _nodules(included), _nodules(excluded), num_scans=num_scans)
    bands = bootstrap(outcome, rng=np.random.default_rng(4), num=40)
    drawn = np.random.default_rng(4).integers(num_scans, size=(40, num_scans))
    curves = []
    for scans in drawn.tolist():

        def copied(rows: Any, scans: list[int] = scans) -> list[list[float]]:
            return [[place, *row[1:]] for place, scan in enumerate(scans) for row in rows if row[0] == scan]

        again = judge(
            _marks(copied(marks)), _nodules(copied(included)), _nodules(copied(excluded)), num_scans=num_scans
        )
        one = froc(again)
        curves.append(np.interp(bands.rates, one.false_per_scan, one.sensitivity))
    ordered = np.sort(np.array(curves), axis=0)
    np.testing.assert_allclose(bands.low, ordered[1], atol=1e-9)
    np.testing.assert_allclose(bands.high, ordered[39], atol=1e-9)
    np.testing.assert_allclose(bands.mean, np.mean(curves, axis=0), atol=1e-9)
