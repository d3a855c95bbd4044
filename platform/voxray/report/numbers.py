"""Metrics as tables: with intervals, class by class, and of several evaluations side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from voxray.core.evaluation import Evaluation
from voxray.metrics.bootstrap import Difference
from voxray.report.blocks import Cell, Table
from voxray.report.entry import Entry

_MEANINGS = {
    "mAP": "mean over the thresholds of IoU of the average precision",
    "mAR": "mean over the thresholds of IoU of the share of objects that are found",
    "patient_AUC": "area under ROC of patients, by their highest score",
    "patient_AP": "average precision of patients, by their highest score",
    "object_AUC": "area under ROC of findings",
    "object_AP": "average precision of findings",
    "ECE": "how far scores are from the share of findings that hit; 0 is best",
    "dice": "overlap of voxels; 1 is best",
    "HD95_mm": "95th percentile of the distances between surfaces; 0 is best",
    "volume_error_ml": "mean absolute error of the volume",
    "volume_error_percent": "the same as a share of the true volume",
    "volume_bias_ml": "mean of found minus true volume",
    "false_ml": "what is found in the mean case that has none",
}
_BEGINNINGS = {
    "AP@": "average precision at IoU {}",
    "AR@": "share of objects found at IoU {}",
    "FROC@": "mean sensitivity at 1/8 to 8 false findings a scan, at IoU {}",
    "sensitivity@": "sensitivity at {} false findings a scan",
    "NSD@": "share of the surface within {} of the true one",
}


def meaning(name: str) -> str:
    """What a metric is, in a few words."""
    for beginning, text in _BEGINNINGS.items():
        if name.startswith(beginning):
            return text.format(name.removeprefix(beginning).replace("mm", " mm"))
    return _MEANINGS.get(name, "")


def means(evaluation: Evaluation) -> list[str]:
    """The metrics that are means over classes and have a value."""
    metrics = evaluation.metrics
    return [name for name in metrics if "/" not in name and math.isfinite(metrics[name])]


def interval(ends: Sequence[float] | None) -> str:
    """``0.211 to 0.524``; a dash for none."""
    if ends is None or not all(math.isfinite(end) for end in ends):
        return "-"
    low, high = (f"{end:.3f}" if abs(end) < 100 else f"{end:.1f}" for end in ends)
    return f"{low} to {high}"


def with_interval(evaluation: Evaluation, name: str) -> str:
    """``0.374 (0.211 to 0.524)``."""
    value = evaluation.metrics.get(name, math.nan)
    if not math.isfinite(value):
        return "-"
    ends = evaluation.intervals.get(name)
    text = f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
    return text if ends is None else f"{text} ({interval(ends)})"


def metrics_table(evaluation: Evaluation) -> Table:
    """Every mean with its interval and what it is."""
    metrics, intervals = evaluation.metrics, evaluation.intervals
    rows = tuple((name, metrics[name], interval(intervals.get(name)), meaning(name)) for name in means(evaluation))
    return Table("Metrics, as means over classes", ("metric", "value", "95 % interval", "what it is"), rows)


def classes_table(entry: Entry) -> Table | None:
    """The metrics of each class with their intervals; None where there is only one class."""
    evaluation = entry.evaluation
    judged = [name for name in evaluation.classes if name not in evaluation.without_truth]
    if len(judged) < 2:
        return None
    names = [name for name in means(evaluation) if not name.startswith("sensitivity@")]
    rows = tuple((kind, *(with_interval(evaluation, f"{name}/{kind}") for name in names)) for kind in judged)
    return Table(f"{entry.label}: metrics of each class (95 % interval)", ("class", *names), rows)


def side_by_side(entries: Sequence[Entry]) -> Table:
    """The means of all entries beside each other."""
    names = dict.fromkeys(name for entry in entries for name in means(entry.evaluation))
    rows = tuple((name, *(with_interval(entry.evaluation, name) for entry in entries)) for name in names)
    return Table("Metrics, as means over classes (95 % interval)", ("metric", *(e.label for e in entries)), rows)


def differences_table(first: str, other: str, found: Mapping[str, Difference]) -> Table:
    """How much the other is above the first, paired case by case."""
    rows: list[tuple[Cell, ...]] = []
    for name, one in found.items():
        if "/" not in name:
            ends = f"{one.low:+.3f} to {one.high:+.3f}"
            sure = "yes" if one.low > 0 or one.high < 0 else "no"
            rows.append((name, f"{one.value:+.3f}", ends, one.share_above, sure))
    header = ("metric", "difference", "95 % interval", "share of draws above 0", "interval excludes 0")
    return Table(f"{other} minus {first}, paired case by case", header, tuple(rows))
