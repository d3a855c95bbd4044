"""One case read: its image, and its truth on the image's grid, with every problem that shows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from voxray.annotations.placing import place_boxes
from voxray.core.case import Case
from voxray.core.errors import DataError
from voxray.core.volume import Volume
from voxray.core.working_copy import renamed
from voxray.dataset import Dataset
from voxray.dataset.source import CaseSource
from voxray.loading.at_hand import case_at_hand
from voxray.loading.map_files import read_maps, value_or_problem
from voxray.readers import read_volume


@dataclass(frozen=True)
class Examination:
    """A case, or None where it cannot be used, and every problem that was found."""

    case: Case | None
    problems: tuple[DataError, ...]
    warnings: tuple[str, ...] = ()
    """What is worth knowing of the files that could be read."""
    image: Volume | None = None
    """The scan, where it could be read."""

    def usable(self) -> Case:
        """The case; raises its first problem where there is none."""
        if self.case is None:
            first, *others = self.problems
            more = f" ({len(others)} more problems of this case; voxray check lists all.)" if others else ""
            raise DataError(first.code, first.message, remedy=first.remedy + more, case_id=first.case_id)
        return self.case


def load_case(dataset: Dataset, source: CaseSource) -> Case:
    """The case with its truth in voxels of its image; raises its first problem, with the case named."""
    return examine(dataset, source).usable()


def examine(dataset: Dataset, source: CaseSource) -> Examination:
    """The case, or all that is wrong with it; files elsewhere are copied for as long as that takes."""
    with case_at_hand(dataset, source) as at_hand:
        found = _examine(dataset, at_hand.source)
        problems = tuple(renamed(problem, at_hand.named) for problem in found.problems)
        return replace(found, problems=problems)


def _examine(dataset: Dataset, source: CaseSource) -> Examination:
    problems: list[DataError] = []
    image = value_or_problem(problems, partial(read_volume, accept_values=source.accept_values), Path(source.image))
    truth = read_maps(dataset, source, None if image is None else image.grid)
    problems += truth.problems
    if source.boxes is not None and image is not None:
        truth.boxes, found = place_boxes(source.boxes, image.grid, dataset.classes, overhang_vox=dataset.overhang_vox)
        truth.classes = source.boxes.classes
        problems += found
    warnings = (*(() if image is None else image.warnings), *truth.warnings)
    if problems or image is None:
        return Examination(None, tuple(problem.of_case(source.case_id) for problem in problems), warnings, image)
    case = Case(source.case_id, source.patient_id, image, truth.boxes, truth.classes, truth.labels, warnings)
    return Examination(case, (), warnings, image)
