"""Evaluate whatever is given: a run, which answers scans itself, or answers that lie in files, whoever wrote them."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from voxray.commands.evaluate import EvaluateOptions, ResultFiles, evaluate, named_inputs, unjudged
from voxray.commands.evaluation_files import Brought, bringing
from voxray.core.bulkhead import sentence_of
from voxray.core.detections import Detections
from voxray.core.errors import ConfigError
from voxray.core.evaluation import EVALUATION, Evaluation, Luna16Evaluation, read_evaluation, try_write_evaluation
from voxray.core.progress import Progress, tell_warnings
from voxray.core.storage import Location, Place
from voxray.core.text import first_few
from voxray.dataset.naming import parse_values
from voxray.distributed.metrics import count_case
from voxray.distributed.parallel import WorkerPool, open_pool, pool_map
from voxray.inference.package import is_package
from voxray.metrics.record import compare
from voxray.metrics.segmentation import structure_table
from voxray.results.class_names import Naming, is_incomparable
from voxray.scoring.answer_files import (
    MAP_FORMATS,
    Answers,
    cases_of,
    detections_in,
    doubts_of,
    labels_in,
    marks_of,
    naming_of,
    read_answers,
)
from voxray.scoring.luna16_official import Luna16Truth, evaluate_luna16, is_luna16_folder
from voxray.scoring.printed_tables import ScoreTable, difference_table, luna16_tables, score_tables
from voxray.scoring.summary import CaseScore, parse_ious, summarise
from voxray.scoring.truth_files import CaseTruth, TruthSet, case_truth, read_luna16_truth, read_truth, truth_inputs
from voxray.training.checkpoint import read_best_run

RULES = ("iou", "luna16")
FILE_CASES = ("all", "answered")
NO_ANSWER = "has no answer; it counts as an empty one."


@dataclass(frozen=True)
class FileOptions:
    """How answers are scored, and where the result goes."""

    which: str | None = None
    """Of a run ``val`` (None), ``test`` or ``all``; of answers in files ``all`` (None) or only those ``answered``."""
    root: Location | None = None
    output: Location | None = None
    json_file: Location | None = None
    rules: str | None = None
    """None: LUNA16's for its CSV, which has no sizes; else overlap."""
    ious: str = "0.1:0.5:0.05"
    against: Location | None = None
    trust_pickle: bool = False
    workers: int = 1
    values: str | None = None
    """What the numbers of answers, or of a folder of true label maps, stand for: ``1=kidney,2=liver``."""
    overwrite: bool = False
    """Whether files in the way that voxray did not write may be written over."""

    def of_run(self, *, official: bool = False) -> EvaluateOptions:
        """The same for a run, which answers its cases itself."""
        return EvaluateOptions(
            which=self.which or "val",
            ious=parse_ious(self.ious),
            workers=self.workers,
            json_file=_here(self.json_file),
            against=_here(self.against),
            official=official,
            overwrite=self.overwrite,
        )


@dataclass(frozen=True)
class Scored:
    """A result, and how it is told: lines, tables, and lines after them."""

    result: Evaluation | Luna16Evaluation
    lines: tuple[str, ...]
    tables: tuple[ScoreTable, ...]
    ending: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    """What was asked for beside the score and could not be had: files, a comparison."""


def evaluate_anything(answers: str, truth: Location | None, options: FileOptions, *, progress: Progress) -> Scored:
    """The score of a run or of answers in files, told apart by what they are, wherever they are."""
    with bringing() as brought:
        options = replace(
            options,
            json_file=brought.result_file(options.json_file),
            against=brought.evaluation(options.against),
        )
        scored = _evaluate(answers, brought.given(truth), options, brought, progress=progress)
    lines, ending, lost = (tuple(map(brought.told, texts)) for texts in (scored.lines, scored.ending, scored.lost))
    return replace(scored, lines=lines, ending=ending, lost=lost)


def _evaluate(
    answers: str, truth: Path | None, options: FileOptions, brought: Brought, *, progress: Progress
) -> Scored:
    if options.rules is not None and options.rules not in RULES:
        raise ConfigError(f"--rules {options.rules}: must be {' or '.join(RULES)}.")
    parse_ious(options.ious)
    if options.values is not None and (is_run(answers) or options.rules == "luna16"):
        raise ConfigError("--values: a run names its classes, and LUNA16's rules have none; leave it out.")
    if options.rules == "luna16":
        _refuse_against(options)
    if is_run(answers):
        if options.rules == "luna16":
            return _luna16_scored(*_run_by_luna16(answers, truth, options, brought, progress=progress))
        other = _other(options)
        report = evaluate(
            answers, options.of_run(), dataset=truth, root=options.root, output=options.output, progress=progress
        )
        return _scored(report, options, other, is_written=True)
    if options.which not in (None, *FILE_CASES):
        raise ConfigError(f"--cases {options.which}: of answers in files must be {' or '.join(FILE_CASES)}.")
    return _evaluate_given(answers, truth, options, brought, progress=progress)


def _evaluate_given(
    answers: str, truth: Path | None, options: FileOptions, brought: Brought, *, progress: Progress
) -> Scored:
    """The score of answers in files."""
    place = _present(brought.given(answers))
    found = read_answers(place, trust_pickle=options.trust_pickle)
    if truth is None:
        raise ConfigError(f"{answers}: holds answers; say what to score them against: a dataset's file or a folder.")
    options = replace(options, output=brought.results(options.output))
    by_luna16 = options.rules == "luna16" or (options.rules is None and found.marks is not None)
    files = ResultFiles(
        _here(options.output),
        _here(options.json_file),
        found.name if by_luna16 else None,
        overwrite=options.overwrite,
    )
    read = chain(found.inputs(place), truth_inputs(truth, root=options.root))
    files.require_free(chain(read, named_inputs([_here(options.against)])))
    if by_luna16:
        _refuse_against(options)
        return _luna16_scored(*_by_luna16(found, read_luna16_truth(truth, root=options.root), options))
    if found.marks is not None:
        raise ConfigError(f"--rules iou: the marks of {answers} have no size; only the rules luna16 judge them.")
    other = _other(options)
    values = None if options.values is None else parse_values(options.values)
    names_truth = found.format in ("findings", *MAP_FORMATS)
    known = read_truth(truth, root=options.root, values=values if names_truth else None, task=found.task)
    brought_any = str(place) in brought.names or str(truth) in brought.names
    report = evaluate_files(found, known, options, progress=progress, here=brought_any)
    report = report.model_copy(update={"output": brought.told(report.output)})
    return _scored(report, options, other)


def _here(location: Location | None) -> Path | None:
    """A path that was brought to this machine, or always was on it."""
    return None if location is None else Path(location)


def _present(path: Path | None) -> Path:
    assert path is not None
    return path


def is_run(answers: str) -> bool:
    """Whether it is a run or a package, which answers scans itself, and not a file or folder of answers."""
    return is_package(answers) or Place.of(answers).exists("state.json")


def evaluate_files(
    answers: Answers, truth: TruthSet, options: FileOptions, *, progress: Progress, here: bool = False
) -> Evaluation:
    """The score of all cases of the truth; one without an answer counts as an empty one, and is listed.

    Files that were brought `here` are on no other node, so that this process scores them.
    """
    begin = time.monotonic()
    if answers.is_segmentation and not truth.has_labels:
        raise ConfigError(
            f"{truth.name}: has boxes alone; the label maps of {answers.name} need label maps as truth."
        )
    naming = naming_of(answers, truth, None if options.values is None else parse_values(options.values))
    names, unknown = cases_of(answers, truth)
    which = options.which or "all"
    cases = list(truth.patients) if which == "all" else [case_id for case_id in truth.patients if case_id in names]
    alone = WorkerPool(1, "cpu", num_cpus=0.0, on_ray=False, progress=progress)
    opened = nullcontext(alone) if here else open_pool(options.workers, progress=progress)
    with opened as pool, progress.track("evaluate", total=len(cases), unit="cases") as advance:
        scores = []
        scorer = partial(FileScorer, answers, truth, names, naming)
        for score in pool_map(
            scorer, cases, pool, lost=lambda case, story: unjudged(case, truth.patients[case], story)
        ):
            scores.append(score)
            count_case(done=not score.error)
            tell_warnings(progress, f"case {score.case_id}", score.warnings)
            advance(1)
    about = {"run": answers.name, "dataset": truth.name, "which": which}
    report = summarise(scores, truth.classes, task=answers.task, ious=parse_ious(options.ious), **about)
    notices = [f"left out, as they are of no case of {truth.name}: answers {first_few(unknown)}"] if unknown else []
    output = "" if options.output is None else str(options.output)
    return report.model_copy(
        update={"notices": tuple(notices), "output": output, "seconds": time.monotonic() - begin}
    )


class FileScorer:
    """Scores one case after another; an answer that is missing or unreadable counts as an empty one."""

    def __init__(self, answers: Answers, truth: TruthSet, names: dict[str, str], naming: Naming) -> None:
        self._answers, self._truth, self._names, self._naming = answers, truth, names, naming

    def __call__(self, case_id: str) -> CaseScore:
        """What the case adds to the score."""
        patient_id, name = self._truth.patients[case_id], self._names.get(case_id)
        try:
            truth = case_truth(self._truth, case_id, with_labels=self._answers.is_segmentation)
        except Exception as error:
            return unjudged(case_id, patient_id, sentence_of(error))
        try:
            score = self._scored(case_id, patient_id, name, truth)
        except Exception as error:
            score = unjudged(case_id, patient_id, sentence_of(error))
        doubts = () if name is None else doubts_of(self._answers, name, self._truth.sources.get(case_id))
        return replace(score, warnings=(*truth.warnings, *doubts, *score.warnings))

    def _scored(self, case_id: str, patient_id: str, name: str | None, truth: CaseTruth) -> CaseScore:
        found = Detections.empty("voxel" if truth.frame == "voxel" else "LPS")
        labels, error = None, NO_ANSWER
        if name is not None:
            try:
                if self._answers.is_segmentation:
                    labels = labels_in(self._answers, name, self._naming, self._truth, truth)
                else:
                    found = detections_in(self._answers, name, self._naming, self._truth, truth)
                error = ""
            except Exception as fault:
                error = sentence_of(fault)
                if is_incomparable(fault):
                    return unjudged(case_id, patient_id, error)
        if not self._answers.is_segmentation:
            return CaseScore(case_id, patient_id, found, truth.boxes, truth.classes, None, error)
        assert truth.labels is not None
        assert truth.grid is not None
        labels = np.zeros_like(truth.labels) if labels is None else labels
        num_classes = len(self._truth.classes)
        table = structure_table(labels, truth.labels, truth.grid.spacing_mm, num_classes=num_classes)
        boxes, classes = np.zeros((0, 6)), np.zeros(0, np.int64)
        return CaseScore(case_id, patient_id, Detections.empty(), boxes, classes, table, error)


def _run_by_luna16(
    run: str, truth: Path | None, options: FileOptions, brought: Brought, *, progress: Progress
) -> tuple[Luna16Evaluation, tuple[str, ...]]:
    """The run's score by the rules: it answers its cases first, and those alone count."""
    is_folder = truth is not None and is_luna16_folder(truth)
    own = None if is_package(run) else read_best_run(run).dataset_file
    place = truth or (None if own is None else Path(own))
    if place is None or (is_folder and own is None):
        raise ConfigError(
            f"{run}: names no dataset, so its scans are not known; score it against a dataset's file with "
            f"annotations of kind spheres_csv."
        )
    known = read_luna16_truth(place, root=options.root)
    how = options.of_run(official=True)
    dataset = None if is_folder else truth
    report = evaluate(run, how, dataset=dataset, root=options.root, output=options.output, progress=progress)
    if absent := [case_id for case_id in report.cases if case_id not in known.case_ids]:
        raise ConfigError(
            f"{place}: knows nothing of {first_few(absent)}, which {run} was scored on; "
            "give the truth of these scans."
        )
    options = replace(options, output=brought.results(options.output))
    answers = read_answers(_present(brought.given(report.output)), trust_pickle=False)
    files = {name: file for name, file in answers.files.items() if name in report.cases}
    scans = tuple(case_id for case_id in known.case_ids if case_id in report.cases)
    answers = replace(answers, name=report.run, files=files)
    result, lost = _by_luna16(answers, replace(known, case_ids=scans), replace(options, which=None))
    failed = {**report.failed, **report.not_judged}
    odd = tuple(f"{case_id}: warning: {text}" for case_id, texts in report.warnings.items() for text in texts)
    return result.model_copy(update={"notices": (*result.notices, *odd), "failed": failed}), lost


def _other(options: FileOptions) -> Evaluation | None:
    """What the score will be compared with, read before the work."""
    return None if options.against is None else read_evaluation(Path(options.against))


def _refuse_against(options: FileOptions) -> None:
    if options.against is not None:
        raise ConfigError(
            f"--against {options.against}: compares scores by overlap; LUNA16's rules have bands instead."
        )


def _by_luna16(
    answers: Answers, known: Luna16Truth, options: FileOptions
) -> tuple[Luna16Evaluation, tuple[str, ...]]:
    marks = marks_of(answers)
    if answers.marks is None:
        names, _ = cases_of(answers, TruthSet(known.name, (), {case_id: case_id for case_id in known.case_ids}))
        case_of = {name: case_id for case_id, name in names.items()}
        marks = replace(marks, case_ids=tuple(case_of.get(name, name) for name in marks.case_ids))
        if options.which == "answered":
            known = replace(known, case_ids=tuple(case_id for case_id in known.case_ids if case_id in names))
    elif options.which == "answered":
        raise ConfigError("--cases answered: a CSV does not say which scans without a mark were answered; give all.")
    return evaluate_luna16(
        marks,
        known,
        name=answers.name,
        output=_here(options.output),
        json_file=_here(options.json_file),
        overwrite=options.overwrite,
    )


def _scored(
    report: Evaluation, options: FileOptions, other: Evaluation | None, *, is_written: bool = False
) -> Scored:
    """The score as it is told, and written where it is not yet."""
    judged, not_judged = len(report.cases), len(report.not_judged)
    tables = score_tables(report) if report.metrics else []
    ending, lost = [*report.notices], list[str]()
    noun = f"case{'s' * (judged + not_judged != 1)}"
    if not_judged:
        ending.append(f"not judged, so in no metric: {not_judged} of {judged + not_judged} {noun}")
    if not report.metrics:
        ending.append("no case has an answer that could be judged, so there is no score")
    if report.without_truth:
        ending.append(f"without truth, so without a score: {first_few(report.without_truth)}")
    if other is not None:
        try:
            tables.append(difference_table(compare(other, report)))
            ending.append(f"differences are {report.run} minus {other.run}, paired case by case")
        except Exception as error:
            lost.append(sentence_of(error))
    if options.json_file is not None:
        why = try_write_evaluation(report, Path(options.json_file))
        (lost if why else ending).append(why or f"written: {options.json_file}")
    if report.output:
        why = "" if is_written else try_write_evaluation(report, Path(options.output or report.output) / EVALUATION)
        (lost if why else ending).append(why or f"answers and {EVALUATION}: {report.output}")
    cases = f"{judged} of {judged + not_judged}" if not_judged else f"{judged}"
    head = f"{report.run} on {cases} {noun} ({report.which}) of {report.dataset}"
    return Scored(report, (head,), tuple(tables), tuple(ending), tuple(lost))


def _luna16_scored(result: Luna16Evaluation, lost: tuple[str, ...]) -> Scored:
    head = f"{result.answers} on {result.scans} scan{'s' * (result.scans != 1)} of {result.truth}, by LUNA16's rules"
    return Scored(result, (head,), tuple(luna16_tables(result)), result.notices, lost)
