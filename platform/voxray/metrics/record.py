"""From cases to a whole `Evaluation`, and from a written one back to the arrays that its metrics are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Int64
from numpy.typing import NDArray

from voxray.core.detections import Box, Detections
from voxray.core.errors import ConfigError
from voxray.core.evaluation import CaseFindings, Detection, Evaluation, Segmentation, Structure
from voxray.core.text import first_few
from voxray.metrics.bootstrap import (
    NUM_REPLICATES,
    SEED,
    Difference,
    MetricValues,
    Weights,
    differences,
    draw_weights,
    intervals,
    ones,
)
from voxray.metrics.coco import IOUS
from voxray.metrics.detection import Findings, detection_curves, detection_values
from voxray.metrics.froc import RATES
from voxray.metrics.pool import Matched, match_scans, pool_hits
from voxray.metrics.segmentation import FOUND_ML, TOLERANCES_MM, TRUTH_ML, StructureTable, segmentation_values

MAX_DETECTIONS = 100


def detection_record(
    cases: Mapping[str, str],
    found: Sequence[Detections],
    truth_boxes: Sequence[Float[np.ndarray, "n 6"]],
    truth_classes: Sequence[Int64[np.ndarray, " n"]],
    *,
    num_classes: int,
    ious: Sequence[float] = IOUS,
) -> Detection:
    """Findings matched to objects, case by case; `cases` gives the patient of each case, in order."""
    matched = match_scans(
        found,
        truth_boxes,
        truth_classes,
        num_classes=num_classes,
        ious=ious,
        max_detections=MAX_DETECTIONS,
    )
    rows = zip(cases.items(), matched, truth_boxes, truth_classes, strict=True)
    return Detection(
        ious=tuple(ious),
        max_detections=MAX_DETECTIONS,
        rates=tuple(RATES.tolist()),
        curves={},
        cases={case_id: _case_findings(patient, one, boxes, kinds) for (case_id, patient), one, boxes, kinds in rows},
    )


def segmentation_record(
    cases: Mapping[str, str], tables: Sequence[StructureTable], classes: Sequence[str]
) -> Segmentation:
    """Each case's table of `metrics.segmentation`, by class; `cases` gives the patient of each case, in order."""
    num = len(TOLERANCES_MM)
    return Segmentation(
        tolerances_mm=TOLERANCES_MM,
        patients=dict(cases),
        cases={
            case_id: {
                name: Structure(
                    dice=row[0],
                    nsd=tuple(row[1 : 1 + num].tolist()),
                    hd95_mm=row[1 + num],
                    found_ml=row[FOUND_ML],
                    truth_ml=row[TRUTH_ML],
                )
                for name, row in zip(classes, table, strict=True)
            }
            for case_id, table in zip(cases, tables, strict=True)
        },
    )


def with_metrics(evaluation: Evaluation) -> Evaluation:
    """The evaluation with its metrics, intervals and curves, as its cases give them."""
    weights = _weights(evaluation)
    plain = {name: float(value[0]) for name, value in values_of(evaluation).items()}
    ranges = {} if weights is None else intervals(values_of(evaluation, weights))
    update: dict[str, object] = {
        "metrics": plain,
        "intervals": {name: ends for name, ends in ranges.items() if math.isfinite(plain[name])},
    }
    if evaluation.detection is not None:
        drawn = ones(len(evaluation.detection.cases)) if weights is None else weights
        curves = detection_curves(findings_of(evaluation), drawn)
        update["detection"] = evaluation.detection.model_copy(update={"curves": curves})
    return evaluation.model_copy(update=update)


def values_of(evaluation: Evaluation, weights: Weights | None = None) -> MetricValues:
    """Every metric of an evaluation, from its cases alone; in each replicate where `weights` are given."""
    if evaluation.detection is not None:
        weights = ones(len(evaluation.detection.cases)) if weights is None else weights
        return detection_values(findings_of(evaluation), weights)
    assert evaluation.segmentation is not None
    tables = tables_of(evaluation.segmentation, evaluation.classes)
    weights = ones(len(tables)) if weights is None else weights
    tolerances = evaluation.segmentation.tolerances_mm
    return segmentation_values(tables, weights, evaluation.classes, tolerances_mm=tolerances)


def compare(first: Evaluation, second: Evaluation) -> dict[str, Difference]:
    """Second minus first of every metric that both have, with its paired bootstrap interval.

    Both must have scored the same cases; one order of cases and one draw of them pairs the two.
    """
    _must_be_alike(first, second)
    second = _in_order_of(first, second)
    weights = _weights(first)
    if weights is None:
        raise ConfigError(f"{first.run} and {second.run} cannot be compared: one patient gives no interval.")
    pairs = [(values_of(one), values_of(one, weights)) for one in (first, second)]
    return differences(pairs[0], pairs[1])


def findings_of(evaluation: Evaluation) -> Findings:
    """The pooled findings of an evaluation of detection."""
    assert evaluation.detection is not None
    cases, num_classes = list(evaluation.detection.cases.values()), len(evaluation.classes)
    bits = 1 << np.arange(len(evaluation.detection.ious))[:, None]
    pool = pool_hits(
        [np.asarray(case.scores, np.float64) for case in cases],
        [np.asarray(case.classes, np.int64) for case in cases],
        [(np.asarray(case.hits, np.int64) & bits) > 0 for case in cases],
        np.array([np.bincount(np.asarray(case.truth_classes, np.int64), minlength=num_classes) for case in cases]),
    )
    patients = _numbered([case.patient_id for case in cases])
    return Findings(pool, patients, evaluation.classes, evaluation.detection.ious)


def tables_of(segmentation: Segmentation, classes: Sequence[str]) -> Float64[np.ndarray, "s c k"]:
    """The tables that `segmentation_record` wrote, case by case."""
    rows = [[_row(case[name]) for name in classes] for case in segmentation.cases.values()]
    return np.array(rows, np.float64)


def _row(one: Structure) -> list[float]:
    return [one.dice, *one.nsd, one.hd95_mm, one.found_ml, one.truth_ml]


def _weights(evaluation: Evaluation) -> Weights | None:
    """The replicates that the evaluation's own intervals come from; None where there is only one patient."""
    units = _numbered(_patients(evaluation))
    if units.max(initial=0) < 1:
        return None
    rng = np.random.default_rng(evaluation.bootstrap.seed)
    return draw_weights(len(units), rng=rng, num=evaluation.bootstrap.replicates, units=units)


def _patients(evaluation: Evaluation) -> list[str]:
    if evaluation.detection is not None:
        return [case.patient_id for case in evaluation.detection.cases.values()]
    assert evaluation.segmentation is not None
    return list(evaluation.segmentation.patients.values())


def _numbered(patients: Sequence[str]) -> NDArray[np.int64]:
    return np.unique(np.asarray(patients, str), return_inverse=True)[1].astype(np.int64)


def _case_findings(
    patient: str, matched: Matched, truth_boxes: NDArray[np.float64], truth_classes: NDArray[np.int64]
) -> CaseFindings:
    frame: Literal["voxel", "LPS"] = "voxel" if matched.found.frame == "voxel" else "LPS"
    bits = (matched.hits * (1 << np.arange(len(matched.hits)))[:, None]).sum(axis=0)
    return CaseFindings(
        patient_id=patient,
        frame=frame,
        truth_boxes=_boxes(truth_boxes),
        truth_classes=tuple(truth_classes.tolist()),
        boxes=_boxes(matched.found.boxes),
        scores=tuple(matched.found.scores.tolist()),
        classes=tuple(matched.found.classes.tolist()),
        objects=tuple(matched.objects.tolist()),
        hits=tuple(bits.tolist()),
    )


def _boxes(boxes: Float[np.ndarray, "n 6"]) -> tuple[Box, ...]:
    rows = np.reshape(boxes, (-1, 6)).tolist()
    return tuple((_short(a), _short(b), _short(c), _short(d), _short(e), _short(f)) for a, b, c, d, e, f in rows)


def _short(value: float) -> float:
    return float(f"{value:.7g}")


def _must_be_alike(first: Evaluation, second: Evaluation) -> None:
    names = f"{first.run} and {second.run} cannot be compared"
    if (first.task, first.classes) != (second.task, second.classes):
        ours, theirs = (f"{one.task} of {', '.join(one.classes[:5])}" for one in (first, second))
        raise ConfigError(f"{names}: the one is {ours}, the other {theirs}.")
    if differing := sorted(set(first.cases) ^ set(second.cases)):
        raise ConfigError(f"{names}: only one of them scored {first_few(differing)}; score the same cases.")
    if first.detection is not None and second.detection is not None and first.detection.ious != second.detection.ious:
        raise ConfigError(f"{names}: their thresholds of IoU differ; score both with the same ones.")
    read = [case_id for case_id in first.cases if case_id not in first.failed and case_id not in second.failed]
    known = [case_id for case_id in read if case_id in first.contents and case_id in second.contents]
    differing = [case_id for case_id in known if first.contents[case_id].scan != second.contents[case_id].scan]
    if differing:
        more = f" and {len(differing) - 1} more cases" if len(differing) > 1 else ""
        raise ConfigError(f"{names}: they scored other scans as case {differing[0]}{more}; score the same scans.")
    differing = [case_id for case_id in read if not _has_same_truth(first, second, case_id)]
    if differing:
        more = f" and {len(differing) - 1} more cases" if len(differing) > 1 else ""
        raise ConfigError(
            f"{names}: what is true of case {differing[0]}{more} differs; score both against one truth."
        )


def _has_same_truth(first: Evaluation, second: Evaluation, case_id: str) -> bool:
    """Whether both judged the case by the same objects or volumes; of boxes in different frames only the number."""
    if first.detection is not None and second.detection is not None:
        one, other = first.detection.cases[case_id], second.detection.cases[case_id]
        if sorted(one.truth_classes) != sorted(other.truth_classes):
            return False
        ours, theirs = (np.array(sorted(case.truth_boxes), np.float64).reshape(-1, 6) for case in (one, other))
        return one.frame != other.frame or bool(np.allclose(ours, theirs, rtol=1e-4, atol=1e-3))
    assert first.segmentation is not None
    assert second.segmentation is not None
    volumes, others = (
        np.array([case[name].truth_ml for name in first.classes])
        for case in (first.segmentation.cases[case_id], second.segmentation.cases[case_id])
    )
    return bool(np.allclose(volumes, others, rtol=1e-4, equal_nan=True))


def _in_order_of(first: Evaluation, second: Evaluation) -> Evaluation:
    """The second with its cases in the first's order."""
    part: Detection | Segmentation | None = second.detection or second.segmentation
    assert part is not None
    cases = {case_id: part.cases[case_id] for case_id in first.cases}
    update: dict[str, object] = {"cases": cases}
    if isinstance(part, Segmentation):
        update["patients"] = {case_id: part.patients[case_id] for case_id in first.cases}
    return second.model_copy(update={second.task: part.model_copy(update=update)})


__all__ = [
    "MAX_DETECTIONS",
    "NUM_REPLICATES",
    "SEED",
    "compare",
    "detection_record",
    "findings_of",
    "segmentation_record",
    "tables_of",
    "values_of",
    "with_metrics",
]
