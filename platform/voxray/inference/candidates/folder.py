"""Where candidates are recorded, and which of them are: beside answers, beside a run's checkpoints, for a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from voxray.core.answer_json import ModelStamp
from voxray.core.errors import DataError
from voxray.core.recipe import Recipe
from voxray.core.storage import Location, Place
from voxray.core.volume import Grid, Shape
from voxray.inference.candidates.file import (
    FLOOR,
    RecordedCase,
    RecordedHeader,
    RecordedTruth,
    file_name,
    read_head,
    with_truth,
    write_recorded,
)
from voxray.tasks import recorded_labels
from voxray.tasks.recorder import WHOLE, Recorder
from voxray.training.checkpoint import EPOCH, read_state

FOLDER = "candidates"


@dataclass(frozen=True)
class CandidateFolder:
    """A folder of recorded cases, and which classes are recorded: a detection's all, the chosen of a segmentation."""

    folder: Place
    classes: tuple[str, ...]
    labels: tuple[int, ...] = ()
    """Of those classes; none for a detection."""

    @staticmethod
    def of(folder: Place, recipe: Recipe, classes: Sequence[str], wanted: Sequence[str] = ()) -> CandidateFolder:
        """For a network that answers `classes`; a ConfigError where these are too many and none are `wanted`."""
        labels = recorded_labels(recipe.task, classes, wanted)
        return CandidateFolder(folder, tuple(classes[label - 1] for label in labels) or tuple(classes), labels)

    def recorder(self) -> Recorder:
        """What takes notes of one scan."""
        return Recorder(self.labels)

    def write(self, recorder: Recorder, source: RecordSource, truth: RecordedTruth | None = None) -> None:
        """Writes the notes of one scan."""
        recorded = recorded_case(recorder, source)
        write_recorded(self.folder, recorded if truth is None else with_truth(recorded, truth))

    def find(self, case: str, stamp: ModelStamp) -> RecordedHeader | None:
        """What is recorded of a case, if the same network said it in the same way; how it was merged does not matter.

        Whether it said it of the same scan is for the caller to ask: `RecordedHeader.scan_sha256`.
        """
        try:
            head = read_head(self.folder, file_name(case))
        except DataError:
            return None
        return head if head.classes == self.classes and said_by(head.model) == said_by(stamp) else None


@dataclass(frozen=True)
class RecordSource:
    """Whose answer to what it is that notes were taken of."""

    recipe: Recipe
    stamp: ModelStamp
    classes: tuple[str, ...]
    case: str
    scan_grid: Grid
    patient: str = ""
    scan_sha256: str = ""
    """The content of the scan, or else the signature of the shard that was answered in its place."""
    shard: str = ""


def recorded_case(recorder: Recorder, source: RecordSource) -> RecordedCase:
    """What was recorded of a scan, as it is written to a file; a patient who is not known is the case."""
    assert recorder.grid is not None, "nothing was answered"
    head = RecordedHeader(
        case=source.case,
        patient=source.patient or source.case,
        scan_sha256=source.scan_sha256,
        shard=source.shard,
        classes=source.classes,
        model=source.stamp,
        grid=recorder.grid.to_dict(),
        scan_grid=source.scan_grid.to_dict(),
    )
    update: dict[str, object]
    if recorder.placed is not None:
        mirrors = ((), *source.recipe.inference.mirrors)
        update = {
            "window_vox": recorder.placed.window,
            "starts_vox": tuple(map(tuple, recorder.placed.starts.tolist())),
            "num_models": -(-recorder.placed.num_views // len(mirrors)),
            "mirrors": mirrors,
        }
        return RecordedCase(head.model_copy(update=update), placed=recorder.placed)
    assert recorder.shares is not None
    start, shares = _cropped(recorder.shares)
    update = {
        "classes": tuple(source.classes[label - 1] for label in recorder.labels),
        "start_vox": start,
        "shape_vox": shares.shape[1:],
    }
    return RecordedCase(head.model_copy(update=update), shares=shares)


def said_by(stamp: ModelStamp) -> dict[str, object]:
    """What of a stamp the candidates depend on."""
    return stamp.model_dump(exclude={"merge": True, "inference": {"restore"}, "engine": True})


def candidates_folder(run: Location, epoch: int) -> Place:
    """Where a training keeps what its network said in the validation of an epoch."""
    return Place.of(run).below(FOLDER).below(f"epoch_{epoch:04d}")


def forget_candidates(run: Location, *, but: int) -> None:
    """Removes what was recorded of validations but that epoch's and the best checkpoint's."""
    place, wanted = Place.of(run), {f"epoch_{but:04d}", read_state(run).best}
    for name in place.folders(FOLDER):
        if EPOCH.fullmatch(name) and name not in wanted:
            place.remove(f"{FOLDER}/{name}")


def _cropped(shares: UInt8[np.ndarray, "c x y z"]) -> tuple[Shape, UInt8[np.ndarray, "c x y z"]]:
    """The first voxel and the probabilities of what holds all that is above the floor."""
    above = shares[1:] > FLOOR * WHOLE
    ends = []
    for axis in range(3):
        planes = np.flatnonzero(above.any(axis=tuple(side for side in range(4) if side != axis + 1)))
        ends.append((int(planes[0]), int(planes[-1]) + 1) if len(planes) else (0, 0))
    (x1, x2), (y1, y2), (z1, z2) = ends
    return (x1, y1, z1), np.ascontiguousarray(shares[:, x1:x2, y1:y2, z1:z2])
