"""Evaluate: a run's answers to the original scans, scored against the original truth, which is never resampled.

The score of a scan that cannot be answered is that of an empty answer: a failure never makes a run look better. A
case whose truth cannot be read, or does not fit its scan, has no score: it is listed and counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from voxray.core.addresses import local_path
from voxray.core.answer_json import ScanStamp
from voxray.core.apart import Input, keep_apart, require_folder
from voxray.core.bulkhead import optional, sentence_of
from voxray.core.case import Case
from voxray.core.detections import Detections
from voxray.core.errors import ConfigError, ResourceError
from voxray.core.evaluation import EVALUATION, Evaluation, write_evaluation
from voxray.core.progress import Progress, tell_warnings
from voxray.core.run import Run
from voxray.core.staging import is_file_at
from voxray.core.storage import Location, Place
from voxray.core.working_copy import working_copy
from voxray.core.written import SCORES, require_own
from voxray.dataset import CaseSource, Dataset, read_dataset, split
from voxray.distributed.metrics import count_case
from voxray.distributed.mlflow_run import REMEMBERED, open_tracking
from voxray.distributed.parallel import open_pool, pool_map
from voxray.inference.predictor import Prediction
from voxray.inference.trained_model import TrainedModel, about_of, open_model
from voxray.loading import CaseContent, examine, list_cases, truth_content
from voxray.loading.inputs import dataset_inputs, keep_out_of_run, require_no_scan_of, run_inputs
from voxray.loading.scans import Scan
from voxray.metrics.coco import IOUS
from voxray.metrics.segmentation import StructureTable, structure_table, table_of_unread
from voxray.results.answers import AnswerFiles, answer_names, folder_names, read_answer, write_answer
from voxray.results.class_names import is_incomparable
from voxray.results.earlier_answers import ScanToAnswer, find_earlier_answers
from voxray.scoring.luna16_official import official_names
from voxray.scoring.summary import CaseScore, summarise
from voxray.training.checkpoint import read_state, recipe_of

WHICH = ("val", "test", "all")


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


@dataclass(frozen=True)
class ResultFiles:
    """Where a score goes: a folder, a file that is named, or both."""

    output: Path | None
    json_file: Path | None = None
    official: str | None = None
    """The name of the answers, where LUNA16's official files are written to the folder in place of `EVALUATION`."""
    overwrite: bool = False

    @property
    def scores(self) -> list[Path]:
        """The files that bear voxray's mark."""
        named = [] if self.json_file is None else [self.json_file]
        return named if self.output is None or self.official else [*named, self.output / EVALUATION]

    @property
    def tables(self) -> list[Path]:
        """The files that a record in the folder knows."""
        if self.output is None or self.official is None:
            return []
        return [self.output / name for name in official_names(self.official)]

    def require_free(self, read: Iterable[Input]) -> None:
        """A ConfigError where anything that is read, or that somebody else wrote, would be written over."""
        if self.output is not None:
            require_folder(self.output, "-o")
        if self.json_file is not None:
            require_folder(self.json_file.parent, "--json")
        keep_apart([*self.scores, *self.tables], read, instead="give another place with -o or --json")
        require_own(self.scores, SCORES, overwrite=self.overwrite)
        require_own(self.tables, overwrite=self.overwrite)


def named_inputs(paths: Sequence[Path | None]) -> Iterator[Input]:
    """What is compared with, a file or the folder that holds it."""
    for path in paths:
        if path is not None:
            yield Input(path / EVALUATION if path.is_dir() else path, "what is compared with")


def evaluate(
    run: str | Path,
    options: EvaluateOptions | None = None,
    *,
    dataset: str | Path | None = None,
    root: Location | None = None,
    output: Location | None = None,
    progress: Progress,
) -> Evaluation:
    """The run's score on original scans; its answers and the score stay in `output`.

    The dataset is the one that the run was trained on unless another one with the same classes is given.
    """
    begin = time.monotonic()
    options = options or EvaluateOptions()
    about, given, output = about_of(run), output, output or default_folder(run)
    place = Place.of(output)
    every = _dataset(about, dataset, root)
    data = every.for_task(recipe_of(about).task)
    sources = choose_cases(about, data, options.which)
    require_truth(recipe_of(about).task, data, sources)
    cases = [source.case_id for source in sources]
    keep_out_of_run(output, run)
    place.require_writable()
    names = [*folder_names(cases), EVALUATION, *official_names(about.name)]
    with working_copy(output, names) as folder, open_pool(options.workers, device="auto", progress=progress) as pool:
        _require_free(run, about, every, cases, folder, options=options)
        if options.official and given is not None:
            official = ResultFiles(folder, options.json_file, about.name, options.overwrite)
            official.require_free(dataset_inputs(every))
        model = open_model(run, device=pool.device)
        is_own = place == Place.of(default_folder(run)) or (folder / EVALUATION).exists()
        asked = cases_to_score(sources, folder, model, progress=progress, is_own=is_own)
        folder.mkdir(parents=True, exist_ok=True)
        scores = []
        with progress.track("evaluate", total=len(sources), unit="cases") as advance:
            scorer = partial(Scorer, model, data, place, overwrite=options.overwrite)
            for score in pool_map(scorer, asked, pool, lost=lost_case):
                scores.append(score)
                count_case(done=not score.error)
                tell_warnings(progress, f"case {score.case_id}", score.warnings)
                advance(1)
    about_score = {"run": model.run.name, "dataset": data.name, "which": options.which}
    report = summarise(scores, model.run.classes, task=model.recipe.task, ious=options.ious, **about_score)
    weights = (model.stamp.sha256,)
    report = report.model_copy(
        update={"output": str(output), "weights_sha256": weights, "seconds": time.monotonic() - begin}
    )
    with working_copy(output, [EVALUATION]) as folder:
        path = write_evaluation(report, folder / EVALUATION)
        track(report, model.run, run, path, progress=progress)
    return report


def require_truth(task: str, dataset: Dataset, sources: Sequence[CaseSource]) -> None:
    """A ConfigError, before any work, where a segmentation meets a dataset that has no label map at all."""
    if task == "segmentation" and not any(source.maps is not None for source in sources):
        raise ConfigError(f"{dataset.name}: has no label map; a segmentation run is scored on label maps.")


class CaseToScore(NamedTuple):
    """A case to score, and what stands in the folder of answers under its name."""

    source: CaseSource
    scan: ScanToAnswer


def cases_to_score(
    sources: Sequence[CaseSource], output: Path, model: TrainedModel, *, progress: Progress, is_own: bool
) -> list[CaseToScore]:
    """The cases with what is answered of them, and a line for each that is answered anew though an answer is there.

    A folder that is an evaluation's own holds answers for its score alone, so other scans' are made anew; in any
    other folder they stay, and a ConfigError says so.
    """
    scans = [Scan.at(source.case_id, source.image) for source in sources]
    asked = find_earlier_answers(scans, output, model.stamp)
    for one in asked:
        if one.other_scan and not is_own:
            raise ConfigError(
                f"{output}: answers another scan named {one.scan.name}, {one.other_scan}, and holds no score; give "
                f"another folder with -o."
            )
        remark = f"its answer there is of another scan, {one.other_scan}" if one.other_scan else one.remark
        if remark:
            progress.say(f"case {one.scan.name}: {remark}; it is answered anew")
    return [CaseToScore(source, scan) for source, scan in zip(sources, asked, strict=True)]


class Scorer:
    """Answers one case after another and counts what is right; an answer that is there already is taken."""

    def __init__(self, model: TrainedModel, dataset: Dataset, output: Place, *, overwrite: bool = False) -> None:
        self._model, self._dataset, self._output, self._overwrite = model, dataset, output, overwrite
        self._predictor = model.predictor()
        output.trust()

    def __call__(self, asked: CaseToScore) -> CaseScore:
        """What the case adds to the score."""
        source = asked.source
        # Before the files are read, so that a later change is noticed; why one cannot be read is said below.
        stamp = optional(asked.scan.stamp)
        truth = optional(partial(truth_content, self._dataset, source))
        try:
            score = self._scored(asked, stamp)
        except Exception as error:
            score = unjudged(source.case_id, source.patient_id, sentence_of(error))
        content = None if stamp is None or truth is None else CaseContent(stamp.sha256, truth)
        return replace(score, content=content)

    def _scored(self, asked: CaseToScore, stamp: ScanStamp | None) -> CaseScore:
        source, error = asked.source, ""
        examined = case = answer = None
        try:
            examined = examine(self._dataset, source)
            case = examined.usable()
        except Exception as fault:
            error = sentence_of(fault)
            if examined is not None and examined.image is not None:
                return unjudged(source.case_id, source.patient_id, error)
        if case is not None:
            try:
                answer = self._answer(asked, case, stamp)
            except Exception as fault:
                error = sentence_of(fault)
                if is_incomparable(fault):
                    return unjudged(source.case_id, source.patient_id, error)
        return self._score(source, case, answer, error)

    def _answer(self, asked: CaseToScore, case: Case, stamp: ScanStamp | None) -> Prediction:
        name = asked.source.case_id
        with working_copy(self._output.uri, answer_names(name)) as output:
            if asked.scan.is_answered:
                return read_answer(output, case=name, grid=case.image.grid, model=self._model)
            AnswerFiles(output, self._model.recipe.task, overwrite=self._overwrite).require_unchanged(name)
            prediction = self._predictor.predict(case.image)
            write_answer(prediction, output, case=name, model=self._model, scan=stamp, overwrite=self._overwrite)
            return prediction

    def _score(self, source: CaseSource, case: Case | None, answer: Prediction | None, error: str) -> CaseScore:
        found = (answer.detections if answer else None) or Detections.empty()
        boxes, classes = _truth_boxes(source, case)
        table = None
        if self._model.recipe.task == "segmentation":
            table = _table(case, answer, len(self._dataset.classes))
        warnings = case.warnings if case is not None else ()
        return CaseScore(source.case_id, source.patient_id, found, boxes, classes, table, error, warnings)


def unjudged(case_id: str, patient_id: str, error: str) -> CaseScore:
    """What a case adds whose truth cannot be used, or cannot be compared with the answer: nothing but the reason."""
    nothing = np.zeros((0, 6)), np.zeros(0, np.int64)
    return CaseScore(case_id, patient_id, Detections.empty(), *nothing, error=error, judged=False)


def lost_case(asked: CaseToScore, story: str) -> CaseScore:
    """What a case adds that its workers died of."""
    return unjudged(asked.source.case_id, asked.source.patient_id, story)


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


def default_folder(run: str | Path) -> Location:
    """Where a run's answers and score go."""
    path = local_path(run)
    return Place.of(run).below("evaluation").uri if path is None else path / "evaluation"


def _dataset(run: Run, given: str | Path | None, root: Location | None) -> Dataset:
    file = given or run.dataset_file
    if file is None:
        raise ConfigError(f"run {run.name} names no dataset file; give one with --dataset FILE.")
    if given is None and not is_file_at(file):
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
