"""`voxray check`: every case of a dataset read once, in parallel, and all that is wrong with any of them.

A broken case stops no other: its problems are listed, each with what to do, and so are those of the dataset as a
whole: rows without an image, ids that occur twice, folds that share a patient.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from voxray.annotations.maps import value_counts
from voxray.core.bulkhead import sentence_of
from voxray.core.case import Case
from voxray.core.errors import ConfigError, DataError
from voxray.core.progress import Progress
from voxray.core.recipe import GridConfig, Recipe
from voxray.core.task_name import TaskName
from voxray.core.volume import Shape, Vector
from voxray.dataset import CaseSource, Dataset, num_folds, split
from voxray.distributed.cluster import connect
from voxray.distributed.metrics import count_case
from voxray.distributed.parallel import task_map
from voxray.loading import examine, survey
from voxray.preprocess import prepare_case, require_volume


class DatasetProblem(NamedTuple):
    """One thing to mend; ``case_id`` is None where it is not one case's."""

    case_id: str | None
    code: str
    message: str
    remedy: str


class CaseWarning(NamedTuple):
    """What is worth knowing of a case that can be used as it is."""

    case_id: str
    message: str


class ValueRange(NamedTuple):
    """The smallest, the median and the largest value."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class CheckedCase:
    """A case that can be used: its grid, its range in HU and what it holds of each class."""

    case_id: str
    patient_id: str
    shape: Shape
    spacing_mm: Vector
    orientation: str
    low_hu: int
    high_hu: int
    objects: tuple[int, ...]
    voxels: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class CheckReport:
    """What `check` found; the dataset can be used as it is where `problems` is empty."""

    dataset: str
    classes: tuple[str, ...]
    num_cases: int
    num_patients: int
    cases: tuple[CheckedCase, ...]
    problems: tuple[DatasetProblem, ...]
    seconds: float
    warnings: tuple[CaseWarning, ...] = ()
    """They are no problems: the cases can be used."""

    @property
    def spacing_mm(self) -> tuple[ValueRange, ValueRange, ValueRange] | None:
        """The voxel sizes of all good cases by axis; None where there is none."""
        return _ranges([case.spacing_mm for case in self.cases])

    @property
    def objects_of_class(self) -> dict[str, int]:
        """How many objects each class has in all good cases."""
        return {name: sum(case.objects[k] for case in self.cases) for k, name in enumerate(self.classes)}

    @property
    def cases_of_class(self) -> dict[str, int]:
        """How many good cases hold each class, as an object or as labelled voxels."""
        return {
            name: sum(case.objects[k] > 0 or case.voxels[k] > 0 for case in self.cases)
            for k, name in enumerate(self.classes)
        }

    @property
    def num_empty(self) -> int:
        """How many good cases hold nothing of any class; they are valid."""
        return sum(not any(case.objects) and not any(case.voxels) for case in self.cases)


def check(dataset: Dataset, *, recipe: Recipe | None = None, progress: Progress) -> CheckReport:
    """Reads every case once on Ray; a ConfigError only where there is nothing to read.

    With a recipe every case is put on its grid, too, and what does not matter to its task is no problem.
    """
    begin = time.monotonic()
    work: _Work = check_case
    if recipe is not None:
        dataset = dataset.for_task(recipe.task)
        work = partial(check_case, grid=recipe.grid, task=recipe.task)
    found = survey(dataset)
    notes: list[DatasetProblem | CaseWarning] = [_problem(error) for error in found.problems]
    cases: list[CheckedCase] = []
    with (
        connect(),
        progress.track("check", total=len(found.cases), unit="cases") as advance,
        closing(check_cases(work, dataset, found.cases, progress=progress)) as results,
    ):
        for _, (checked, noted) in results:
            count_case(done=checked is not None)
            cases += [] if checked is None else [checked]
            notes += noted
            advance(1)
    if found.cases:
        notes += _fold_problems(dataset, found.cases)
    notes += _absent_classes(dataset.classes, cases)
    problems = [note for note in notes if isinstance(note, DatasetProblem)]
    return CheckReport(
        dataset=dataset.name,
        classes=dataset.classes,
        num_cases=len(found.cases),
        num_patients=len({case.patient_id for case in found.cases}),
        cases=tuple(sorted(cases, key=lambda case: case.case_id)),
        problems=tuple(sorted(problems, key=lambda problem: (problem.case_id or "", problem.code))),
        seconds=time.monotonic() - begin,
        warnings=tuple(sorted(note for note in notes if isinstance(note, CaseWarning))),
    )


def check_case(
    dataset: Dataset, source: CaseSource, *, grid: GridConfig | None = None, task: TaskName | None = None
) -> CaseResult:
    """One case read and summed up, or what is wrong with it; and in either case what its readers warn of.

    On a recipe's grid also what its objects and labels come to there.
    """
    begin = time.monotonic()
    result = examine(dataset, source)
    warnings = [CaseWarning(source.case_id, text) for text in result.warnings]
    if result.case is None:
        return None, [*map(_problem, result.problems), *warnings]
    try:
        require_volume(result.case.image.grid)
    except DataError as error:
        return None, [_problem(error.of_case(source.case_id)), *warnings]
    checked = _sum_up(result.case, len(dataset.classes), begin)
    if checked.low_hu == checked.high_hu:
        text = f"every voxel of the image is {checked.low_hu} HU."
        remedy = "Replace the scan, or exclude the case."
        return checked, [DatasetProblem(source.case_id, "image.constant", text, remedy), *warnings]
    return checked, [*warnings, *(_on_grid(result.case, grid, task, dataset.classes) if grid else ())]


def _on_grid(
    case: Case, grid: GridConfig, task: TaskName | None, classes: Sequence[str]
) -> Iterator[DatasetProblem | CaseWarning]:
    """What is lost of the case on a recipe's grid."""
    try:
        prepared = prepare_case(case, grid, task=task, classes=classes)
    except DataError as error:
        yield _problem(error if error.case_id else error.of_case(case.case_id))
    else:
        yield from (CaseWarning(case.case_id, text) for text in prepared.warnings[len(case.warnings) :])


CaseResult = tuple[CheckedCase | None, list[DatasetProblem | CaseWarning]]
_Work = Callable[[Dataset, CaseSource], CaseResult]


def check_cases(
    work: _Work, dataset: Dataset, sources: Sequence[CaseSource], *, progress: Progress
) -> Generator[tuple[CaseSource, CaseResult]]:
    """Each case's result as it is ready, from Ray tasks."""
    return task_map(partial(_safely, work, dataset), sources, lost=_lost, progress=progress)


def _safely(work: _Work, dataset: Dataset, source: CaseSource) -> CaseResult:
    """The work's answer, where what nobody foresaw is one more problem of this case alone."""
    try:
        return work(dataset, source)
    except Exception as error:
        remedy = "Look at the file alone, as with voxray info, or exclude the case."
        return None, [DatasetProblem(source.case_id, "check.unforeseen", f"{sentence_of(error)}.", remedy)]


def _lost(source: CaseSource, story: str) -> CaseResult:
    remedy = "Give the machine more memory, or look at the file alone."
    return None, [DatasetProblem(source.case_id, "check.worker_died", story, remedy)]


def _sum_up(case: Case, num_classes: int, begin: float) -> CheckedCase:
    voxels = case.image.hounsfield
    counts = np.zeros(num_classes + 1, dtype=np.int64)
    if case.labels is not None:
        found = value_counts(case.labels)
        counts[: len(found)] = found
    return CheckedCase(
        case_id=case.case_id,
        patient_id=case.patient_id,
        shape=case.image.grid.shape,
        spacing_mm=case.image.grid.spacing_mm,
        orientation=case.image.grid.orientation,
        low_hu=int(voxels.min()),
        high_hu=int(voxels.max()),
        objects=tuple(int(n) for n in np.bincount(case.classes, minlength=num_classes)),
        voxels=tuple(int(n) for n in counts[1:]),
        seconds=time.monotonic() - begin,
    )


def _absent_classes(classes: Sequence[str], cases: Sequence[CheckedCase]) -> Iterator[CaseWarning]:
    """Classes of which no case that can be used holds anything: nothing can be learnt of them."""
    for k, name in enumerate(classes if cases else ()):
        if not any(case.objects[k] or case.voxels[k] for case in cases):
            yield CaseWarning("", f"none of the {len(cases)} cases that can be used holds anything of class {name}.")


def _fold_problems(dataset: Dataset, cases: Sequence[CaseSource]) -> list[DatasetProblem]:
    """What keeps any fold from being made; a sentence that several folds share is told once."""
    remedy = "Mend folds in the dataset's file, or the files that it names."
    try:
        total = num_folds(dataset.folds)
    except ConfigError as error:
        return [DatasetProblem(None, "folds", str(error), remedy)]
    refusals = dict.fromkeys(_refusal(dataset, cases, fold) for fold in range(total))
    return [DatasetProblem(None, "folds", text, remedy) for text in refusals if text is not None]


def _refusal(dataset: Dataset, cases: Sequence[CaseSource], fold: int) -> str | None:
    try:
        split(cases, dataset.folds, fold)
    except ConfigError as error:
        return str(error)
    return None


def _problem(error: DataError) -> DatasetProblem:
    return DatasetProblem(error.case_id, error.code, error.message, error.remedy)


def _ranges(rows: Sequence[tuple[float, float, float]]) -> tuple[ValueRange, ValueRange, ValueRange] | None:
    if not rows:
        return None
    table = np.array(rows, dtype=np.float64)
    x, y, z = (ValueRange(float(side.min()), float(np.median(side)), float(side.max())) for side in table.T)
    return x, y, z
