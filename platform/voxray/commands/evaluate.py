"""Evaluate: a run's answers to the original scans, scored against the original truth, which is never resampled.

The score of a scan that cannot be answered is that of an empty answer: a failure never makes a run look better. A
case whose truth cannot be read, or does not fit its scan, has no score: it is listed and counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from voxray.commands.result_outputs import ResultFiles, named_inputs
from voxray.core.addresses import local_path
from voxray.core.answer_json import ScanStamp
from voxray.core.bulkhead import attempt
from voxray.core.case import Case
from voxray.core.detections import Detections
from voxray.core.errors import ConfigError, DataError, ResourceError
from voxray.core.evaluation import EVALUATION, Evaluation, write_evaluation
from voxray.core.progress import Progress, tell_warnings
from voxray.core.run import Run
from voxray.core.storage import Place
from voxray.dataset import CaseSource, Dataset, read_dataset, split
from voxray.distributed.mlflow_run import REMEMBERED, open_tracking
from voxray.distributed.parallel import DIED, open_pool, pool_map
from voxray.inference.predictor import Prediction
from voxray.loading import CaseContent, examine, list_cases, truth_content
from voxray.loading.inputs import dataset_inputs, require_no_scan_of, run_inputs
from voxray.loading.scans import Scan
from voxray.metrics.coco import IOUS
from voxray.metrics.segmentation import StructureTable, structure_table, table_of_unread
from voxray.results.answer_outputs import AnswerFiles, about_of
from voxray.results.answers import Engine, open_engine, read_answer, write_answer
from voxray.results.class_names import COMPARISON
from voxray.results.standing import Standing, find_standings
from voxray.scoring.summary import CaseScore, summarise
from voxray.training.checkpoint import read_state, recipe_of

Which = Literal["val", "test", "all"]
WHICH: tuple[Which, ...] = ("val", "test", "all")


@dataclass(frozen=True)
class EvaluateOptions:
    """Which of a run's cases are scored, how, and by how many workers."""

    which: str = "val"
    """``val``: the validation cases of its fold; ``test``; ``all``."""
    ious: tuple[float, ...] = IOUS
    workers: int = 1
    json_file: Path | None = None
    """Where the caller will write the result, too."""
    against: Path | None = None
    """What the caller will compare the result with."""
    official: bool = False
    """Whether the caller will write LUNA16's official files."""
    overwrite: bool = False
    """Whether files in the way that voxray did not write may be written over."""


def evaluate(
    run: str | Path,
    options: EvaluateOptions | None = None,
    *,
    dataset: str | Path | None = None,
    root: Path | None = None,
    output: Path | None = None,
    progress: Progress,
) -> Evaluation:
    """The run's score on original scans; its answers and the score stay in `output`.

    The dataset is the one that the run was trained on unless another one with the same classes is given.
    """
    begin = time.monotonic()
    options = options or EvaluateOptions()
    about, given, output = about_of(run), output, output or _required(default_folder(run), run)
    every = _dataset(about, dataset, root)
    data = every.for_task(recipe_of(about).task)
    sources = choose_cases(about, data, options.which)
    require_truth(recipe_of(about).task, data, sources)
    _require_free(run, about, every, [source.case_id for source in sources], output, options=options)
    if options.official and given is not None:
        official = ResultFiles(given, options.json_file, about.name, options.overwrite)
        official.require_free(dataset_inputs(every))
    with open_pool(options.workers, device="auto") as pool:
        engine = open_engine(run, device=pool.device)
        is_own = output == default_folder(run) or (output / EVALUATION).exists()
        asked = ask(sources, output, engine, progress=progress, is_own=is_own)
        output.mkdir(parents=True, exist_ok=True)
        scores = []
        with progress.track("evaluate", total=len(sources), unit="cases") as advance:
            scorer = partial(Scorer, engine, data, output, overwrite=options.overwrite)
            for score in pool_map(scorer, asked, pool, lost=died):
                scores.append(score)
                tell_warnings(progress, f"case {score.case_id}", score.warnings)
                advance(1)
    told = {"run": engine.run.name, "dataset": data.name, "which": options.which}
    report = summarise(scores, engine.run.classes, task=engine.recipe.task, ious=options.ious, **told)
    weights = (engine.stamp.sha256,)
    report = report.model_copy(
        update={"output": str(output), "weights_sha256": weights, "seconds": time.monotonic() - begin}
    )
    path = write_evaluation(report, output / EVALUATION)
    track(report, engine.run, run, path, progress=progress)
    return report


def require_truth(task: str, dataset: Dataset, sources: Sequence[CaseSource]) -> None:
    """A ConfigError, before any work, where a segmentation meets a dataset that has no label map at all."""
    if task == "segmentation" and not any(source.maps is not None for source in sources):
        raise ConfigError(f"{dataset.name}: has no label map; a segmentation run is scored on label maps.")


class Asked(NamedTuple):
    """A case to score, and what stands in the folder of answers under its name."""

    source: CaseSource
    standing: Standing


def ask(
    sources: Sequence[CaseSource], output: Path, engine: Engine, *, progress: Progress, is_own: bool
) -> list[Asked]:
    """The cases with what is answered of them, and a line for each that is answered anew though an answer is there.

    A folder that is an evaluation's own holds answers for its score alone, so other scans' are made anew; in any
    other folder they stay, and a ConfigError says so.
    """
    scans = [Scan(source.case_id, Path(source.image)) for source in sources]
    standings = find_standings(scans, output, engine.stamp)
    for one in standings:
        if one.others and not is_own:
            raise ConfigError(
                f"{output}: answers another scan named {one.scan.name}, {one.others}, and holds no score; give "
                f"another folder with -o."
            )
        remark = f"its answer there is of another scan, {one.others}" if one.others else one.remark
        if remark:
            progress.say(f"case {one.scan.name}: {remark}; it is answered anew")
    return [Asked(source, standing) for source, standing in zip(sources, standings, strict=True)]


class Scorer:
    """Answers one case after another and counts what is right; an answer that is there already is taken."""

    def __init__(self, engine: Engine, dataset: Dataset, output: Path, *, overwrite: bool = False) -> None:
        self._engine, self._dataset, self._output, self._overwrite = engine, dataset, output, overwrite
        self._predictor = engine.predictor()

    def __call__(self, asked: Asked) -> CaseScore:
        """What the case adds to the score."""
        held: dict[str, Any] = {}
        # Before the files are read, so that a later change is noticed; why one cannot be read is said below.
        attempt(lambda: held.update(stamp=asked.standing.stamp()))
        attempt(lambda: held.update(truth=truth_content(self._dataset, asked.source)))
        error = attempt(lambda: held.update(score=self._scored(asked, held)))
        score = unjudged(asked.source.case_id, asked.source.patient_id, error) if error else held["score"]
        known = "stamp" in held and "truth" in held
        return replace(score, content=CaseContent(held["stamp"].sha256, held["truth"]) if known else None)

    def _scored(self, asked: Asked, held: dict[str, Any]) -> CaseScore:
        source = asked.source
        error = attempt(lambda: held.update(seen=examine(self._dataset, source)))
        if not error:
            error = attempt(lambda: held.update(case=held["seen"].usable()))
        if error and "seen" in held and held["seen"].image is not None:
            return unjudged(source.case_id, source.patient_id, error)
        judged = True
        if not error:
            answer = partial(self._answer, asked, held["case"], held.get("stamp"))
            error, judged = attempt_comparison(lambda: held.update(answer=answer()))
        if not judged:
            return unjudged(source.case_id, source.patient_id, error)
        return self._score(source, held.get("case"), held.get("answer"), error)

    def _answer(self, asked: Asked, case: Case, stamp: ScanStamp | None) -> Prediction:
        name = asked.source.case_id
        if asked.standing.is_answered:
            return read_answer(self._output, case=name, grid=case.image.grid, engine=self._engine)
        files = AnswerFiles(self._output, self._engine.recipe.task, overwrite=self._overwrite)
        files.require_unchanged(name)
        prediction = self._predictor.predict(case.image)
        write_answer(prediction, self._output, case=name, engine=self._engine, scan=stamp, overwrite=self._overwrite)
        return prediction

    def _score(self, source: CaseSource, case: Case | None, answer: Prediction | None, error: str) -> CaseScore:
        found = (answer.detections if answer else None) or Detections.empty()
        boxes, classes = _truth_boxes(source, case)
        table = None
        if self._engine.recipe.task == "segmentation":
            table = _table(case, answer, len(self._dataset.classes))
        warnings = case.warnings if case is not None else ()
        return CaseScore(source.case_id, source.patient_id, found, boxes, classes, table, error, warnings)


def unjudged(case_id: str, patient_id: str, error: str) -> CaseScore:
    """What a case adds whose truth cannot be used, or cannot be compared with the answer: nothing but the reason."""
    nothing = np.zeros((0, 6)), np.zeros(0, np.int64)
    return CaseScore(case_id, patient_id, Detections.empty(), *nothing, error=error, judged=False)


def died(asked: Asked) -> CaseScore:
    """What a case adds that its workers died of."""
    return unjudged(asked.source.case_id, asked.source.patient_id, DIED)


def attempt_comparison(action: Callable[[], Any]) -> tuple[str, bool]:
    """Runs the action; why it failed, or an empty text, and whether that leaves something to judge."""
    codes: list[str] = []

    def watched() -> None:
        try:
            action()
        except DataError as error:
            codes.append(error.code)
            raise

    error = attempt(watched)
    return error, not any(code.startswith(f"{COMPARISON}.") for code in codes)


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


def track(report: Evaluation, about: Run, run: str | Path, path: Path, *, progress: Progress) -> None:
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


def _require_free(
    run: str | Path, about: Run, data: Dataset, cases: Sequence[str], output: Path, *, options: EvaluateOptions
) -> None:
    """A ConfigError, before any work, where an answer or the score would be written over what is not voxray's own."""
    task = recipe_of(about, where=f"{run}: run.json: recipe").task
    answers = AnswerFiles(output, task, overwrite=options.overwrite)
    answers.require_free(cases, chain(dataset_inputs(data), run_inputs(run)), run=run)
    require_no_scan_of(data, (path for case in cases for path in answers.of(case)))
    read = chain(dataset_inputs(data), run_inputs(run), named_inputs([options.against]))
    ResultFiles(output, options.json_file, overwrite=options.overwrite).require_free(read)


def default_folder(run: str | Path) -> Path | None:
    """Where a run's answers and score go; None where it is not on this machine."""
    path = local_path(run)
    return None if path is None else path / "evaluation"


def _required(folder: Path | None, run: str | Path) -> Path:
    if folder is None:
        raise ConfigError(f"{run}: the run is not on this machine; say where its answers go, with -o DIR.")
    return folder


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


def _table(case: Case | None, answer: Prediction | None, num_classes: int) -> StructureTable:
    """The case's table of structures; one that cannot be read has missed every class."""
    if case is None:
        return table_of_unread(num_classes)
    if case.labels is None:
        raise ConfigError(f"case {case.case_id} has no label map; a segmentation run is scored on label maps.")
    found = np.zeros_like(case.labels) if answer is None or answer.labels is None else answer.labels.voxels
    return structure_table(found, case.labels, case.image.grid.spacing_mm, num_classes=num_classes)
