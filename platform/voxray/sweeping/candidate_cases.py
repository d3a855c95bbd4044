"""The recorded cases that a sweep is tried on: those of a run's validation, answered now where none is recorded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from voxray.core.addresses import local_path
from voxray.core.bulkhead import attempt, sentence_of
from voxray.core.case import Case
from voxray.core.config import Setting
from voxray.core.errors import ConfigError, VoxrayError
from voxray.core.progress import Progress, tell_warnings
from voxray.core.recipe import Recipe
from voxray.core.staging import is_file_at
from voxray.core.storage import Location, Place
from voxray.dataset import CaseSource, Dataset, read_dataset
from voxray.distributed.metrics import count_case
from voxray.distributed.parallel import open_pool, pool_map
from voxray.inference.candidates.file import (
    RecordedCase,
    RecordedHeader,
    RecordedTruth,
    file_name,
    read_recorded,
    with_truth,
    write_recorded,
)
from voxray.inference.candidates.folder import FOLDER, CandidateFolder, recorded_case, said_by
from voxray.inference.trained_model import TrainedModel, open_model
from voxray.loading import CaseContent, case_content, list_cases, load_case
from voxray.store.signature import signature_of
from voxray.sweeping.search_space import as_overrides
from voxray.tasks.restore import boxes_on
from voxray.training.checkpoint import read_state

_AT_ONCE = 4
"""Cases whose files are compared side by side."""


@dataclass(frozen=True)
class CaseRequest:
    """Whose cases are asked for, and how they are answered where that is needed."""

    run: str
    dataset: Path | None = None
    """In place of the run's own."""
    root: Location | None = None
    workers: int = 1
    device: str = "auto"
    classes: tuple[str, ...] = ()
    """Segmentation: those that are swept; none are all, where there are few."""


@dataclass(frozen=True)
class Origin:
    """A case in reach, and what it holds now: whatever is kept of it must have been made of that."""

    source: CaseSource
    content: CaseContent
    shard: str
    """The signature that a shard made of it has."""

    def has_scan(self, head: RecordedHeader) -> bool:
        """Whether the kept candidates are of this scan."""
        return head.scan_sha256 == self.content.scan or (not head.scan_sha256 and head.shard == self.shard)

    def has_truth(self, head: RecordedHeader) -> bool:
        """Whether the truth that is kept with them is this truth."""
        return head.truth_sha256 == self.content.truth or (not head.truth_sha256 and head.shard == self.shard)


@dataclass(frozen=True)
class Todo:
    """A case to answer, or one that is kept without its truth."""

    origin: Origin
    recorded_in: Place | None = None


def record_cases(
    request: CaseRequest, variant: Setting, *, progress: Progress
) -> tuple[list[RecordedCase], dict[str, str]]:
    """The kept validation cases of the run, with truth, as the network answers them with the variant's settings.

    Beside them the cases that could not be answered or read, each with its reason.

    What is kept is taken for cases whose scan and truth hold what they held then. Where the dataset is not in reach
    that cannot be known, which is said.
    """
    with open_pool(request.workers, device=request.device, progress=progress) as pool:
        model = open_model(request.run, overrides=as_overrides(variant), device=pool.device)
        if not model.run.val_cases:
            raise ConfigError(f"run {model.run.name} validated on no cases; sweep a run of a fold.")
        candidates = candidate_folder(request, model)
        folders = [candidates.folder] if request.dataset else [candidates.folder, validation_folder(request.run)]
        reached = _reach(request, model)
        origins = {} if isinstance(reached, VoxrayError) else reached.origins
        failed = {} if isinstance(reached, VoxrayError) else dict(reached.failed)
        cases = [case for case in model.run.val_cases if case not in failed]
        places = {case: _find(case, model, candidates, folders, origins.get(case)) for case in cases}
        missing = [case for case, (_, has_truth) in places.items() if not has_truth]
        if isinstance(reached, VoxrayError):
            if missing:
                raise reached
            progress.say(
                f"what is kept of {len(places)} validation cases is taken as it is, because their scans are not in "
                f"reach: {reached}"
            )
        elif missing:
            todo = [Todo(origins[case], places[case][0]) for case in missing]
            with progress.track("answer", total=len(todo), unit="cases") as advance:
                recorder = partial(CaseRecorder, model, reached.dataset, candidates)
                for case, warnings, error in pool_map(recorder, todo, pool, lost=_died):
                    tell_warnings(progress, f"case {case}", warnings)
                    count_case(done=not error)
                    failed |= {case: error} if error else {}
                    advance(1)
    folders_of = {case: place if has_truth else candidates.folder for case, (place, has_truth) in places.items()}
    found: list[RecordedCase] = []
    for case, folder in folders_of.items():
        if case not in failed:
            error = attempt(partial(_read_into, found, folder or candidates.folder, case))
            failed |= {case: error} if error else {}
    return found, failed


def _read_into(found: list[RecordedCase], folder: Place, case: str) -> None:
    found.append(read_recorded(folder, file_name(case)))


def _died(todo: Todo, story: str) -> tuple[str, tuple[str, ...], str]:
    return todo.origin.source.case_id, (), story


def candidate_folder(request: CaseRequest, model: TrainedModel) -> CandidateFolder:
    """Where this network's candidates with these settings are kept: beside the run, by what they depend on.

    Scans of another dataset are other scans, though their cases have the same names.
    """
    depends: list[object] = [said_by(model.stamp), request.classes]
    if request.dataset is not None:
        depends += [str(request.dataset.resolve()), _resolved(request.root)]
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True, default=str).encode())
    folder = Place.of(request.run).below(FOLDER).below(digest.hexdigest()[:12])
    return CandidateFolder.of(folder, model.recipe, model.run.classes, request.classes)


def _resolved(root: Location | None) -> str:
    path = None if root is None else local_path(root)
    return str(root) if path is None else str(path.resolve())


def validation_folder(run: str) -> Place:
    """Where training kept what the run's best network said in its validation."""
    return Place.of(run).below(FOLDER).below(read_state(run).best)


class CaseRecorder:
    """Answers one case after another and keeps what the network said, with the truth; or the truth alone."""

    def __init__(self, model: TrainedModel, dataset: Dataset, candidates: CandidateFolder) -> None:
        self._model, self._dataset, self._candidates = model, dataset, candidates
        self._predictor = model.predictor()

    def __call__(self, todo: Todo) -> tuple[str, tuple[str, ...], str]:
        """The case's id, what is worth knowing of its files, and why it is not kept, or an empty text."""
        origin, case_id = todo.origin, todo.origin.source.case_id
        warnings: tuple[str, ...] = ()
        try:
            case = load_case(self._dataset, origin.source)
            warnings = case.warnings
            recorded = (
                self._answered(case, origin) if todo.recorded_in is None else self._known(case, todo.recorded_in)
            )
            truth = replace(truth_of(case, recorded, self._model.run.classes), sha256=origin.content.truth)
            write_recorded(self._candidates.folder, with_truth(recorded, truth))
        except Exception as error:
            return case_id, warnings, sentence_of(error)
        return case_id, warnings, ""

    def _answered(self, case: Case, origin: Origin) -> RecordedCase:
        recorder = self._candidates.recorder()
        self._predictor.predict(case.image, recorder=recorder)
        content = origin.content.scan
        source = self._model.record_source(case.case_id, case.image.grid, patient=case.patient_id, content=content)
        return recorded_case(recorder, source)

    def _known(self, case: Case, folder: Place) -> RecordedCase:
        return read_recorded(folder, file_name(case.case_id))


def truth_of(case: Case, recorded: RecordedCase, classes: Sequence[str]) -> RecordedTruth:
    """What is to be found in a case, as it lies beside its candidates."""
    if recorded.shares is None:
        return RecordedTruth(boxes_on(case.boxes, case.image.grid, recorded.grid), case.classes)
    if case.labels is None:
        raise ConfigError(f"case {case.case_id} has no label map; a segmentation is swept on label maps.")
    table = np.zeros(256, np.uint8)
    for number, name in enumerate(recorded.head.classes, start=1):
        table[classes.index(name) + 1] = number
    labels: UInt8[np.ndarray, "x y z"] = table[case.labels]
    return RecordedTruth(labels=labels)


def content_of_recorded(recorded: RecordedCase) -> str:
    """A digest of what a kept case was made of: another one makes another replay."""
    digest = hashlib.sha256(f"{recorded.head.case} {recorded.head.scan_sha256 or recorded.head.shard}".encode())
    if recorded.truth is not None:
        for array in (recorded.truth.boxes, recorded.truth.classes, recorded.truth.labels):
            digest.update(b"" if array is None else np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _find(
    case: str, model: TrainedModel, candidates: CandidateFolder, folders: Sequence[Place], origin: Origin | None
) -> tuple[Place | None, bool]:
    """Where the case is kept, and whether its truth is; without an origin whatever is kept is taken."""
    without: Place | None = None
    for folder in folders:
        head = CandidateFolder(folder, candidates.classes, candidates.labels).find(case, model.stamp)
        if head is None or (origin is not None and not origin.has_scan(head)):
            continue
        if head.truth_boxes is not None and (origin is None or origin.has_truth(head)):
            return folder, True
        without = folder
    return without, False


class _Reached(NamedTuple):
    """The dataset, what its validation cases hold now, and those whose files cannot be read, with the reason."""

    dataset: Dataset
    origins: dict[str, Origin]
    failed: dict[str, str]


def _reach(request: CaseRequest, model: TrainedModel) -> _Reached | VoxrayError:
    """The run's validation cases, or why they are not in reach."""
    try:
        data, sources = _sources(request, model)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            looked = list(pool.map(partial(_origin, data, model.recipe), sources))
    except VoxrayError as error:
        if request.dataset is not None:
            raise
        return error
    found = dict(zip((source.case_id for source in sources), looked, strict=True))
    origins = {case: one for case, one in found.items() if isinstance(one, Origin)}
    return _Reached(data, origins, {case: one for case, one in found.items() if isinstance(one, str)})


def _origin(data: Dataset, recipe: Recipe, source: CaseSource) -> Origin | str:
    """What the case holds now, or why that cannot be known."""
    try:
        content = case_content(data, source)
    except Exception as error:
        return sentence_of(error)
    return Origin(source, content, signature_of(content.scan, content.truth, source.patient_id, recipe))


def _sources(request: CaseRequest, model: TrainedModel) -> tuple[Dataset, list[CaseSource]]:
    cases, file = model.run.val_cases, request.dataset or model.run.dataset_file
    if file is None or not is_file_at(file):
        raise ConfigError(
            f"run {model.run.name}: its dataset file {file or ''} is not there; give one with --dataset FILE."
        )
    data = read_dataset(file, root=request.root).for_task(model.recipe.task)
    if data.classes != model.run.classes:
        raise ConfigError(
            f"{file}: classes are {', '.join(data.classes)}; run {model.run.name} answers "
            f"{', '.join(model.run.classes)}."
        )
    known = {source.case_id: source for source in list_cases(data)}
    gone = [case for case in cases if case not in known]
    if gone:
        raise ConfigError(f"{file}: has no case {gone[0]}, which run {model.run.name} validated on.")
    return data, [known[case] for case in cases]
