"""Evaluate: a run's answers to the original scans, scored against the original truth, which is never resampled.

The score of a scan that cannot be answered is that of an empty answer: a failure never makes a run look better.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64, Int64

from voxray.case import Case
from voxray.dataset import CaseSource, Dataset, read_dataset, split
from voxray.detections import Detections
from voxray.errors import ConfigError, ResourceError
from voxray.inference.predictor import Prediction
from voxray.loading import list_cases, load_case
from voxray.metrics import coco
from voxray.metrics.dice import confusion, dice
from voxray.pipelines.answers import Engine, is_answered, open_engine, read_answer, write_answer
from voxray.pipelines.predict import attempt
from voxray.pipelines.progress import Progress
from voxray.pipelines.scans import Scan
from voxray.pipelines.spread import hire, spread
from voxray.pipelines.tracking import REMEMBERED, open_tracking
from voxray.place import Place, whole
from voxray.run import Run
from voxray.training.checkpoint import read_state

Which = Literal["val", "test", "all"]
WHICH: tuple[Which, ...] = ("val", "test", "all")
REPORT = "evaluation.json"


@dataclass(frozen=True)
class CaseScore:
    """What one case adds to the score: its boxes in edge voxels of the scan, or its table of voxels by label.

    `table` counts voxels by found label (row) and true label (column).
    """

    case_id: str
    found: Detections
    truth_boxes: Float64[np.ndarray, "n 6"]
    truth_classes: Int64[np.ndarray, " n"]
    table: Int64[np.ndarray, "l l"] | None = None
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class EvaluateReport:
    """The run's score on a dataset's cases, and where everything lies."""

    run: str
    dataset: str
    which: str
    task: str
    metrics: Mapping[str, float]
    """Detection: ``mAP``, ``AP@0.10``, ...; segmentation: ``dice``; each also per class, as ``dice/spleen``."""
    cases: Mapping[str, Mapping[str, float]]
    """Case -> its Dice by class, or its numbers of objects, findings and hits at IoU 0.10."""
    failed: Mapping[str, str]
    """Case -> why it has no answer. It counts as an empty one."""
    without_truth: tuple[str, ...]
    """Classes that no case has: they have no score."""
    output: str
    seconds: float


def evaluate(
    run: str | Path,
    *,
    dataset: str | Path | None = None,
    root: Path | None = None,
    which: str = "val",
    output: Path | None = None,
    workers: int = 1,
    progress: Progress,
) -> EvaluateReport:
    """The run's score on its fold's validation cases (or `test`, or `all`); its answers stay in `output`.

    The dataset is the one that the run was trained on unless another one with the same classes is given.
    """
    begin = time.monotonic()
    output = output or _folder_of(run)
    with hire(workers, device="auto") as crew:
        engine = open_engine(run, device=crew.device)
        data = _dataset(engine.run, dataset, root)
        sources = choose_cases(engine.run, data, which)
        output.mkdir(parents=True, exist_ok=True)
        scores = []
        with progress.track("evaluate", total=len(sources), unit="cases") as advance:
            for score in spread(partial(Scorer, engine, data, output), sources, crew):
                scores.append(score)
                advance(1)
    scores.sort(key=lambda score: score.case_id)
    report = summarise(scores, engine, dataset=data.name, which=which)
    report = replace(report, output=str(output), seconds=time.monotonic() - begin)
    path = write_report(report, output)
    track(report, engine.run, run, path, progress=progress)
    return report


class Scorer:
    """Answers one case after another and counts what is right; an answer that is there already is taken."""

    def __init__(self, engine: Engine, dataset: Dataset, output: Path) -> None:
        self._engine, self._dataset, self._output = engine, dataset, output
        self._predictor = engine.predictor()

    def __call__(self, source: CaseSource) -> CaseScore:
        """What the case adds to the score."""
        begin = time.monotonic()
        held: dict[str, Any] = {}
        error = attempt(lambda: held.update(case=load_case(self._dataset, source)))
        if not error:
            error = attempt(lambda: held.update(answer=self._answer(source, held["case"])))
        score = self._score(source, held.get("case"), held.get("answer"))
        return replace(score, error=error, seconds=time.monotonic() - begin)

    def _answer(self, source: CaseSource, case: Case) -> Prediction:
        scan = Scan(source.case_id, Path(source.image))
        if is_answered(scan, self._output, self._engine.stamp):
            return read_answer(self._output, case=scan.name, grid=case.image.grid, engine=self._engine)
        prediction = self._predictor.predict(case.image)
        write_answer(prediction, self._output, case=scan.name, engine=self._engine)
        return prediction

    def _score(self, source: CaseSource, case: Case | None, answer: Prediction | None) -> CaseScore:
        found = (answer.detections if answer else None) or Detections.empty()
        boxes, classes = _truth_boxes(source, case)
        table = None
        if self._engine.recipe.task == "segmentation":
            table = _table(case, answer, len(self._dataset.classes) + 1)
        return CaseScore(source.case_id, found, boxes, classes, table)


def choose_cases(run: Run, dataset: Dataset, which: str) -> list[CaseSource]:
    """The run's validation cases, its fold's test cases, or all cases of the dataset."""
    if which not in WHICH:
        raise ConfigError(f"--cases {which}: must be {', '.join(WHICH[:-1])} or {WHICH[-1]}.")
    sources = list_cases(dataset)
    if which == "all":
        return sources
    if which == "test":
        chosen = list(split(sources, dataset.folds, run.fold).test)
        if not chosen:
            raise ConfigError(f"--cases test: fold {run.fold} of {dataset.name} has no test cases; use val or all.")
        return chosen
    if not run.val_cases:
        raise ConfigError(f"run {run.name} validated on no cases; say which ones to score with --cases all or test.")
    known = {source.case_id: source for source in sources}
    missing = [case_id for case_id in run.val_cases if case_id not in known]
    if missing:
        raise ConfigError(
            f"dataset {dataset.name} has no case {missing[0]} ({len(missing)} of {len(run.val_cases)} validation "
            f"cases of run {run.name} are missing); give the dataset that it was trained on, or --cases all."
        )
    return [known[case_id] for case_id in run.val_cases]


def summarise(scores: Sequence[CaseScore], engine: Engine, *, dataset: str, which: str) -> EvaluateReport:
    """All cases' scores as one report."""
    classes = engine.run.classes
    if engine.recipe.task == "segmentation":
        metrics, cases, without = _dice(scores, classes)
    else:
        metrics, cases, without = _precision(scores, classes)
    return EvaluateReport(
        run=engine.run.name,
        dataset=dataset,
        which=which,
        task=engine.recipe.task,
        metrics=metrics,
        cases=cases,
        failed={score.case_id: score.error for score in scores if score.error},
        without_truth=without,
        output="",
        seconds=0.0,
    )


def write_report(report: EvaluateReport, output: Path) -> Path:
    """The report as JSON beside the answers; what has no value is null."""
    text = json.dumps({"schema": "voxray-evaluation/1", **_finite(asdict(report))}, indent=2)
    with whole(output / REPORT) as path:
        path.write_text(text + "\n", encoding="utf-8")
    return output / REPORT


def track(report: EvaluateReport, about: Run, run: str | Path, path: Path, *, progress: Progress) -> None:
    """Puts the score into the MLflow run of the training; a run without one, such as imported weights, has none.

    A server that does not answer costs the entry, not the score.
    """
    if not Place.of(run).exists(REMEMBERED):
        return
    place = f"evaluate/{report.dataset}/{report.which}"
    try:
        tracking = open_tracking(about, run, say=progress.say)
    except ResourceError as error:
        progress.say(f"not in MLflow: {error}")
        return
    row = {f"{place}/{name}": value for name, value in report.metrics.items()}
    tracking.log_row(row, step=read_state(run).epochs_done)
    tracking.log_file(f"{place}.json", path.read_bytes())
    tracking.end("FINISHED")


def _folder_of(run: str | Path) -> Path:
    if "://" in str(run):
        raise ConfigError(f"{run}: the run is not on this machine; say where its answers go, with -o DIR.")
    return Path(run) / "evaluation"


def _dataset(run: Run, given: str | Path | None, root: Path | None) -> Dataset:
    file = given or run.dataset_file
    if file is None:
        raise ConfigError(f"run {run.name} names no dataset file; give one with --dataset FILE.")
    if given is None and not Path(file).exists():
        raise ConfigError(f"{file}: the dataset file of run {run.name} is gone; give one with --dataset FILE.")
    dataset = read_dataset(file, root=root)
    if dataset.classes != run.classes:
        raise ConfigError(
            f"{file}: classes are {', '.join(dataset.classes)}; run {run.name} answers {', '.join(run.classes)}."
        )
    return dataset


def _truth_boxes(source: CaseSource, case: Case | None) -> tuple[Float64[np.ndarray, "n 6"], Int64[np.ndarray, " n"]]:
    """The objects to find; those of a scan that cannot be read are missed whatever their frame."""
    if case is not None:
        return case.boxes, case.classes
    if source.boxes is not None:
        return source.boxes.boxes, source.boxes.classes
    return np.zeros((0, 6)), np.zeros(0, np.int64)


def _table(case: Case | None, answer: Prediction | None, num_labels: int) -> Int64[np.ndarray, "l l"]:
    """Voxels by found and true label; a scan that cannot be read counts as one missed voxel of each class."""
    if case is None:
        missed = np.zeros((num_labels, num_labels), np.int64)
        missed[0, 1:] = 1
        return missed
    if case.labels is None:
        raise ConfigError(f"case {case.case_id} has no label map; a segmentation run is scored on label maps.")
    found = np.zeros_like(case.labels) if answer is None or answer.labels is None else answer.labels.voxels
    return confusion(found, case.labels, num_labels=num_labels)


def _dice(
    scores: Sequence[CaseScore], classes: Sequence[str]
) -> tuple[dict[str, float], dict[str, Mapping[str, float]], tuple[str, ...]]:
    rows = np.stack([dice(score.table) for score in scores if score.table is not None])
    with_truth = np.isfinite(rows)
    means = {
        name: float(rows[with_truth[:, index], index].mean())
        for index, name in enumerate(classes)
        if with_truth[:, index].any()
    }
    metrics = {"dice": float(np.mean(list(means.values()))) if means else math.nan}
    metrics |= {f"dice/{name}": value for name, value in means.items()}
    cases: dict[str, Mapping[str, float]] = {
        score.case_id: {name: float(value) for name, value in zip(classes, row, strict=True) if np.isfinite(value)}
        for score, row in zip(scores, rows, strict=True)
    }
    return metrics, cases, tuple(name for name in classes if name not in means)


def _precision(
    scores: Sequence[CaseScore], classes: Sequence[str]
) -> tuple[dict[str, float], dict[str, Mapping[str, float]], tuple[str, ...]]:
    boxes, kinds = [score.truth_boxes for score in scores], [score.truth_classes for score in scores]
    metrics = coco.evaluate([score.found for score in scores], boxes, kinds, classes)
    cases: dict[str, Mapping[str, float]] = {}
    for score in scores:
        alone = coco.evaluate([score.found], [score.truth_boxes], [score.truth_classes], classes)
        shown = {name: value for name, value in alone.items() if "/" not in name and math.isfinite(value)}
        cases[score.case_id] = {"objects": len(score.truth_boxes), "findings": len(score.found), **shown}
    return metrics, cases, coco.classes_without_truth(kinds, classes)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
