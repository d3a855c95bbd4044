"""The true objects of an evaluation of detection with what became of them, and where to read its findings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from voxray.core.evaluation import CaseFindings, Detection, Evaluation
from voxray.metrics.bootstrap import band, draw_weights
from voxray.metrics.curves import share
from voxray.report.blocks import Cell, Table

RATE = 1.0
"""False findings a scan at which single findings are looked at."""


class OperatingPoint(NamedTuple):
    """Where findings are looked at: those above `score` count, which are at most `rate` false ones a scan."""

    rate: float
    score: float


class Target(NamedTuple):
    """Something true that was to be found, and how well it was; nan for what is not known."""

    case_id: str
    patient_id: str
    class_name: str
    size: float
    intensity_hu: float
    outcome: float
    """Detection: the score of the finding that hits it, nan for none; segmentation: its Dice."""


def operating_point(part: Detection, *, rate: float = RATE) -> OperatingPoint:
    """The lowest score above which there are at most `rate` false findings in the mean scan."""
    false_scores = sorted(
        (score for case in part.cases.values() for score, place in _findings(case) if place < 0), reverse=True
    )
    allowed = math.floor(rate * len(part.cases))
    return OperatingPoint(rate, false_scores[allowed] if allowed < len(false_scores) else -math.inf)


def targets_of(
    evaluation: Evaluation,
    sizes_mm: dict[str, Float64[np.ndarray, " n"]],
    objects_hu: dict[str, Float64[np.ndarray, " n"]],
) -> list[Target]:
    """Every true object of an evaluation of detection; `outcome` is the score of the finding that hits it."""
    assert evaluation.detection is not None
    found = []
    for case_id, case in evaluation.detection.cases.items():
        scores = np.full(len(case.truth_boxes), np.nan)
        for score, place in _findings(case):
            if place >= 0:
                scores[place] = score
        nothing = np.full(len(scores), np.nan)
        rows = zip(
            case.truth_classes,
            sizes_mm.get(case_id, sizes_in(case)).tolist(),
            objects_hu.get(case_id, nothing).tolist(),
            scores.tolist(),
            strict=True,
        )
        for kind, size, intensity, score in rows:
            found.append(Target(case_id, case.patient_id, evaluation.classes[kind], size, intensity, score))
    return found


def sizes_in(case: CaseFindings) -> Float64[np.ndarray, " n"]:
    """The mean side of each object in mm, where its boxes are in mm; else nan."""
    boxes = np.array(case.truth_boxes, np.float64).reshape(-1, 6)
    if case.frame == "voxel":
        return np.full(len(boxes), np.nan)
    sides: Float64[np.ndarray, " n"] = (boxes[:, 3:] - boxes[:, :3]).mean(axis=1)
    return sides


def groups_table(
    targets: Sequence[Target],
    of: Float64[np.ndarray, " n"],
    outcomes: Sequence[tuple[str, Float64[np.ndarray, " n"]]],
    *,
    caption: str,
    name: str,
    num: int = 4,
) -> Table | None:
    """The mean of each outcome in groups of equal number by the value `of`, with intervals over patients."""
    known = np.isfinite(of)
    num = min(num, len(np.unique(of[known])) // 2)
    if num < 2:
        return None
    edges = np.quantile(of[known], np.linspace(0, 1, num + 1))
    place = np.where(known, np.clip(np.searchsorted(edges, of, side="right") - 1, 0, num - 1), -1)
    patients = np.unique([target.patient_id for target in targets], return_inverse=True)[1].astype(np.int64)
    weights = draw_weights(len(targets), rng=np.random.default_rng(0), units=patients)
    rows: list[tuple[Cell, ...]] = []
    for group in range(num):
        inside = place == group
        if not inside.any():
            continue
        row: list[Cell] = [f"{_three(edges[group])} to {_three(edges[group + 1])}", int(inside.sum())]
        for _, outcome in outcomes:
            row.append(_mean_with_interval(outcome, inside, weights))
        rows.append(tuple(row))
    return Table(caption, (name, "number", *(label for label, _ in outcomes)), tuple(rows))


def _mean_with_interval(
    outcome: Float64[np.ndarray, " n"],
    inside: np.ndarray[tuple[int], np.dtype[np.bool_]],
    weights: Float64[np.ndarray, "n b"],
) -> str:
    used = inside & np.isfinite(outcome)
    if not used.any():
        return "-"
    if len(np.unique(weights, axis=0)) == 1:
        # One patient, whom every draw has: there is nothing to vary.
        return f"{outcome[used].mean():.3f}"
    drawn = weights[used]
    low, high = band(share(outcome[used] @ drawn, drawn.sum(axis=0))[:, None])[:, 0].tolist()
    return f"{outcome[used].mean():.3f} ({low:.3f} to {high:.3f})"


def _three(value: float) -> str:
    """Three digits, and never an exponent."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _findings(case: CaseFindings) -> zip[tuple[float, int]]:
    return zip(case.scores, case.objects, strict=True)
