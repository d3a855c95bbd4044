"""Which findings, objects and cases are worth a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from voxray.core.detections import Box
from voxray.core.evaluation import Detection, Segmentation
from voxray.report.entry import PictureKind
from voxray.report.objects import operating_point
from voxray.report.segmentation import mean_dice

NUM_FINDINGS, NUM_WORST, NUM_BEST = 6, 4, 2


class Pick(NamedTuple):
    """A box of a case to look at, in the frame of the case's findings."""

    kind: PictureKind
    case_id: str
    class_index: int
    box: Box
    score: float
    """nan for an object that nothing hits."""
    min_score: float
    """Findings from this score on are drawn."""


def pick_findings(part: Detection, sizes: Mapping[str, Float64[np.ndarray, " n"]]) -> list[Pick]:
    """The surest hits, the surest false findings, and the largest missed objects, the most telling first.

    `sizes` gives the size of each object in mm, where it is known; objects of other cases count as the smallest.
    """
    point = operating_point(part).score
    hits: list[tuple[float, Pick]] = []
    false: list[tuple[float, Pick]] = []
    missed: list[tuple[float, Pick]] = []
    for case_id, case in part.cases.items():
        for box, kind, score, place in zip(case.boxes, case.classes, case.scores, case.objects, strict=True):
            name: PictureKind = "hit" if place >= 0 else "false"
            pick = Pick(name, case_id, kind, box, score, min(score, point))
            (hits if place >= 0 else false).append((score, pick))
        known = sizes.get(case_id)
        for place in sorted(set(range(len(case.truth_boxes))) - set(case.objects)):
            pick = Pick("missed", case_id, case.truth_classes[place], case.truth_boxes[place], math.nan, point)
            missed.append((-1.0 if known is None else float(known[place]), pick))
    return [
        pick for kind in (hits, false, missed) for _, pick in sorted(kind, key=lambda pair: -pair[0])[:NUM_FINDINGS]
    ]


def pick_cases(part: Segmentation) -> list[tuple[PictureKind, str]]:
    """The cases with the lowest mean Dice, the worst first, and those with the highest, the best first."""
    scored = {case_id: mean_dice(case) for case_id, case in part.cases.items()}
    order = sorted((case_id for case_id in scored if math.isfinite(scored[case_id])), key=lambda name: scored[name])
    num_worst = min(NUM_WORST, math.ceil(len(order) / 2))
    num_best = min(NUM_BEST, len(order) - num_worst)
    worst: list[tuple[PictureKind, str]] = [("worst", case_id) for case_id in order[:num_worst]]
    return [*worst, *(("best", case_id) for case_id in order[::-1][:num_best])]
