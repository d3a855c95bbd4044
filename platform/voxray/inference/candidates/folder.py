"""Where candidates are recorded, and which of them are: beside answers, beside a run's checkpoints, for a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from voxray.core.answer_json import ModelStamp
from voxray.core.errors import ConfigError, DataError
from voxray.core.recipe import Recipe
from voxray.core.storage import Location, Place
from voxray.core.volume import Grid
from voxray.inference.candidates.file import (
    RecordedCase,
    RecordedHeader,
    RecordedTruth,
    file_name,
    read_head,
    with_truth,
    write_recorded,
)
from voxray.inference.candidates.recorder import Recorder
from voxray.inference.restore import FEW_CLASSES
from voxray.tasks.thresholds import selected
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
        labels = labels_to_keep(recipe, classes, wanted)
        names = tuple(classes[label - 1] for label in labels) if recipe.task == "segmentation" else tuple(classes)
        return CandidateFolder(folder, names, labels)

    def recorder(self) -> Recorder:
        """What takes notes of one scan."""
        return Recorder(self.labels)

    def recorded(self, recorder: Recorder, source: RecordSource) -> RecordedCase:
        """The notes of one scan."""
        recorded = recorder.recorded(
            source.recipe,
            source.stamp,
            case=source.case,
            classes=source.classes,
            scan_grid=source.scan_grid,
            patient=source.patient,
        )
        origin = {"scan_sha256": source.scan_sha256, "shard": source.shard}
        return replace(recorded, head=recorded.head.model_copy(update=origin))

    def write(self, recorder: Recorder, source: RecordSource, truth: RecordedTruth | None = None) -> None:
        """Writes the notes of one scan."""
        recorded = self.recorded(recorder, source)
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


def said_by(stamp: ModelStamp) -> dict[str, object]:
    """What of a stamp the candidates depend on."""
    return stamp.model_dump(exclude={"merge": True, "inference": {"restore"}, "engine": True})


def labels_to_keep(recipe: Recipe, classes: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...]:
    """The labels of the wanted classes, or of all where there are few; none for a detection."""
    if recipe.task == "detection":
        if wanted:
            raise ConfigError("--keep-classes: is for segmentation; a detection keeps the candidates of all classes.")
        return ()
    if wanted:
        return tuple(selected(tuple(wanted), classes, field="--keep-classes"))
    if len(classes) > FEW_CLASSES:
        raise ConfigError(
            f"--keep-candidates: {len(classes)} classes are too many to keep the probabilities of; name up to "
            f"{FEW_CLASSES}, as --keep-classes {classes[0]},{classes[1]}."
        )
    return tuple(range(1, len(classes) + 1))


def candidates_folder(run: Location, epoch: int) -> Place:
    """Where a training keeps what its network said in the validation of an epoch."""
    return Place.of(run).below(FOLDER).below(f"epoch_{epoch:04d}")


def forget_candidates(run: Location, *, but: int) -> None:
    """Removes what was recorded of validations but that epoch's and the best checkpoint's."""
    place, wanted = Place.of(run), {f"epoch_{but:04d}", read_state(run).best}
    for name in place.folders(FOLDER):
        if EPOCH.fullmatch(name) and name not in wanted:
            place.remove(f"{FOLDER}/{name}")
