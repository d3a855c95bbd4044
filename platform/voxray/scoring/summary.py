"""What scored cases come to: one `Evaluation`, whoever answered them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from voxray.core.detections import Detections
from voxray.core.errors import ConfigError
from voxray.core.evaluation import Bootstrap, Content, Evaluation
from voxray.core.task_name import TaskName
from voxray.loading import CaseContent
from voxray.metrics import coco
from voxray.metrics.bootstrap import CONFIDENCE, NUM_REPLICATES, SEED
from voxray.metrics.record import detection_record, segmentation_record, with_metrics
from voxray.metrics.segmentation import StructureTable
from voxray.tasks import primary_metric


@dataclass(frozen=True)
class CaseScore:
    """What one case adds to the score: its findings and objects in one frame, or its table of structures.

    `table` is that of `metrics.segmentation.structure_table`; None in detection.
    """

    case_id: str
    patient_id: str
    found: Detections
    truth_boxes: Float64[np.ndarray, "n 6"]
    truth_classes: Int64[np.ndarray, " n"]
    table: StructureTable | None = None
    error: str = ""
    warnings: tuple[str, ...] = ()
    """What is worth knowing of the files that were read for it."""
    judged: bool = True
    """Whether it has a score; one whose answer cannot be compared with its truth has none, and is listed."""
    content: CaseContent | None = None
    """What was scored; None where the files of the case were not looked at."""


def summarise(
    scores: Sequence[CaseScore],
    classes: Sequence[str],
    *,
    run: str,
    dataset: str,
    which: str,
    task: TaskName,
    ious: Sequence[float] = coco.IOUS,
) -> Evaluation:
    """All cases' scores, in the order of their ids, with metrics, intervals and curves.

    Where no case has an answer that could be judged there is no metric: zeros would look like a score.
    """
    every = sorted(scores, key=lambda score: score.case_id)
    scores = [score for score in every if score.judged]
    about = Evaluation(
        run=run,
        dataset=dataset,
        which=which,
        task=task,
        classes=tuple(classes),
        metrics={},
        intervals={},
        bootstrap=Bootstrap(replicates=NUM_REPLICATES, seed=SEED, confidence=CONFIDENCE),
        cases={score.case_id: _case(score, classes, ious) for score in scores},
        failed={score.case_id: score.error for score in scores if score.error},
        warnings={score.case_id: score.warnings for score in every if score.warnings},
        not_judged={score.case_id: score.error for score in every if not score.judged},
        contents={
            score.case_id: Content(scan=score.content.scan, truth=score.content.truth)
            for score in scores
            if score.content is not None
        },
        **_records(scores, classes, task, ious),
    )
    if all(score.error for score in scores):
        return about
    done = with_metrics(about)
    primary = primary_metric(task)
    without = tuple(name for name in classes if f"{primary}/{name}" not in done.metrics)
    return done.model_copy(update={"without_truth": without})


def parse_ious(text: str) -> tuple[float, ...]:
    """Thresholds of IoU from ``0.1:0.5:0.05`` (first, last, step) or ``0.1,0.5``."""
    try:
        numbers = [float(part) for part in text.replace(",", ":").split(":")]
    except ValueError:
        numbers = []
    if ":" in text and len(numbers) == 3 and numbers[2] > 0:
        first, last, step = numbers
        numbers = [round(first + index * step, 6) for index in range(round((last - first) / step) + 1)]
    elif ":" in text:
        numbers = []
    if not numbers or sorted(set(numbers)) != numbers or not 0 < numbers[0] <= numbers[-1] <= 1:
        raise ConfigError(
            f"--ious {text}: must be first:last:step such as 0.1:0.5:0.05, or rising numbers such as 0.1,0.5, "
            f"above 0 and at most 1."
        )
    return tuple(numbers)


def _records(
    scores: Sequence[CaseScore], classes: Sequence[str], task: TaskName, ious: Sequence[float]
) -> dict[str, Any]:
    """What the cases add up to, as the field of `Evaluation` that the task has."""
    patients = {score.case_id: score.patient_id for score in scores}
    if task == "segmentation":
        tables = [score.table for score in scores if score.table is not None]
        return {"segmentation": segmentation_record(patients, tables, classes)}
    boxes, kinds = [score.truth_boxes for score in scores], [score.truth_classes for score in scores]
    found = [score.found for score in scores]
    return {"detection": detection_record(patients, found, boxes, kinds, num_classes=len(classes), ious=ious)}


def _case(score: CaseScore, classes: Sequence[str], ious: Sequence[float]) -> Mapping[str, float]:
    """Dice by class, or the numbers of objects and findings with the case's own AP and AR."""
    if score.table is not None:
        dice = zip(classes, score.table[:, 0].tolist(), strict=True)
        return {name: value for name, value in dice if math.isfinite(value)}
    alone = coco.evaluate([score.found], [score.truth_boxes], [score.truth_classes], classes, ious=ious)
    shown = {name: value for name, value in alone.items() if "/" not in name and math.isfinite(value)}
    return {"objects": len(score.truth_boxes), "findings": len(score.found), **shown}
