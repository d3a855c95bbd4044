"""Validation while training: whole scans, spread over the workers, scored together on the recipe's grid.

Answers travel to rank 0 packed: a label map of thousands of slices is a few hundred kilobytes, and is unpacked only
while its case is scored. So memory does not grow with the validation set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from torch import nn

from voxray.core.answer_json import ModelStamp, stamp
from voxray.core.case import Case, pack, unpack
from voxray.core.detections import Detections
from voxray.core.errors import DataError
from voxray.core.recipe import Recipe
from voxray.core.run import Run
from voxray.core.storage import Place
from voxray.core.volume import Grid, Volume
from voxray.inference.candidates.file import RecordedTruth
from voxray.inference.candidates.folder import CandidateFolder, RecordSource
from voxray.inference.predictor import Predictor
from voxray.inference.trained_model import weights_digest
from voxray.results.pictures import draw_detections, draw_labels
from voxray.store import Store
from voxray.tasks import build_task
from voxray.training.collective import Collective


@dataclass(frozen=True)
class PackedLabels:
    """A label map, compressed."""

    payload: bytes
    grid: Grid

    @staticmethod
    def of(volume: Volume) -> PackedLabels:
        """The label map packed."""
        return PackedLabels(pack(volume.voxels.astype(np.uint8, copy=False)), volume.grid)

    def open(self) -> Volume:
        """The label map again."""
        return Volume(unpack(self.payload, self.grid.shape, np.uint8), self.grid)


@dataclass(frozen=True)
class ValidatedCase:
    """One case's answer and its truth, without the image; `answer` is None where the network's was not finite."""

    case_id: str
    patient_id: str
    grid: Grid
    answer: Detections | PackedLabels | None
    boxes: Float64[np.ndarray, "n 6"]
    classes: Int64[np.ndarray, " n"]
    labels: PackedLabels | None

    def found(self) -> Detections | Volume:
        """The answer as a task scores it."""
        assert self.answer is not None
        return self.answer.open() if isinstance(self.answer, PackedLabels) else self.answer

    def truth(self) -> Case:
        """The case with its truth; its image is empty, and takes no memory."""
        image = Volume(np.broadcast_to(np.int16(0), self.grid.shape), self.grid)
        labels = None if self.labels is None else self.labels.open().voxels
        return Case(self.case_id, self.patient_id, image, self.boxes, self.classes, labels)


class Note(NamedTuple):
    """Where a validation's notes go, and whose answers they are of."""

    candidates: CandidateFolder
    stamp: ModelStamp


class Validator:
    """Scores a network on cases of a store; every rank of the group calls it together."""

    def __init__(
        self,
        store: Store,
        run: Run,
        recipe: Recipe,
        *,
        case_ids: Sequence[str],
        collective: Collective,
        folder: Callable[[], Place | None] = lambda: None,
    ) -> None:
        """What the network says before the merge is kept in `folder`, which is asked for at every validation."""
        self._store, self._run, self._recipe, self._collective = store, run, recipe, collective
        self._case_ids = list(case_ids)[collective.rank :: collective.world_size]
        self._task = build_task(recipe, run.classes)
        self.picture: bytes | None = None
        """A PNG of the first case with truth, as this rank last saw it."""
        self._folder = folder
        self.between: Callable[[], None] = lambda: None
        """Called after each case; an exception ends the validation."""

    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        """The task's metrics over all cases, on rank 0; on the others nothing."""
        predictor = Predictor(self._run, self._recipe, model, self._collective.device)
        self.picture = None
        answer = partial(self._answer, predictor, note=self._note(model))
        answers = []
        for case_id in self._case_ids:
            answers.append(answer(case_id))
            self.between()
        gathered = self._collective.gather(answers)
        if gathered is None:
            return {}
        answered = sorted((item for part in gathered for item in part), key=lambda item: item.case_id)
        if not answered or any(item.answer is None for item in answered):
            return {self._task.primary_metric: math.nan}
        found: Any = Opened(answered, ValidatedCase.found)
        truth: Any = Opened(answered, ValidatedCase.truth)
        return self._task.score(found, truth)

    def _note(self, model: nn.Module) -> Note | None:
        """What takes notes of this validation; None where none are wanted, or the classes too many."""
        folder, recipe, classes = self._folder(), self._recipe, self._run.classes
        if folder is None or not self._task.is_recordable:
            return None
        mark = stamp(self._run, recipe, sha256=weights_digest(model))
        return Note(CandidateFolder.of(folder, recipe, classes), mark)

    def _answer(self, predictor: Predictor, case_id: str, *, note: Note | None) -> ValidatedCase:
        case = self._store.read_case(case_id)
        recorder = None if note is None else note.candidates.recorder()
        try:
            answer = predictor.predict_grid(case, recorder=recorder)
        except DataError as error:
            if error.code != "model.not_finite":
                raise error.of_case(case_id) from error
            return _answered(case, None)
        if note is not None and recorder is not None:
            entry = self._store.manifest.cases[case_id]
            grid, classes = Grid.from_dict(entry.original_grid), self._run.classes
            source = RecordSource(
                self._recipe, note.stamp, classes, case_id, grid, case.patient_id, shard=entry.signature
            )
            # A label map on the recipe's grid is not the truth of the scan.
            truth = RecordedTruth(case.boxes, case.classes) if self._recipe.task == "detection" else None
            note.candidates.write(recorder, source, truth)
        if self.picture is None and self._collective.rank == 0 and _has_truth(case):
            self.picture = draw_answer(case, answer, self._run.classes)
        return _answered(case, answer)


def draw_answer(case: Case, answer: Detections | Volume, classes: Sequence[str]) -> bytes:
    """A PNG of an answer over the truth."""
    if isinstance(answer, Detections):
        return draw_detections(case, answer, classes=classes)
    return draw_labels(case.image, answer.voxels, case.labels, classes=classes)


class Opened:
    """A sequence whose items are opened one at a time, when they are asked for."""

    def __init__(self, items: Sequence[ValidatedCase], open_one: Callable[[ValidatedCase], Any]) -> None:
        self._items, self._open_one = items, open_one

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        return self._open_one(self._items[index])


def _answered(case: Case, answer: Detections | Volume | None) -> ValidatedCase:
    grid = case.image.grid
    return ValidatedCase(
        case_id=case.case_id,
        patient_id=case.patient_id,
        grid=grid,
        answer=PackedLabels.of(answer) if isinstance(answer, Volume) else answer,
        boxes=case.boxes,
        classes=case.classes,
        labels=None if case.labels is None else PackedLabels.of(Volume(case.labels, grid)),
    )


def _has_truth(case: Case) -> bool:
    return len(case.boxes) > 0 or (case.labels is not None and bool(case.labels.any()))
