"""Answers as files: which files a case has, written whole or not at all, and found again by a rerun."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from voxray.core.answer_json import (
    FindingsFile,
    LabelsFile,
    ScanStamp,
    detections_of,
    findings_file,
    labels_file,
    read_answer_file,
    read_file,
    to_text,
)
from voxray.core.apart import Input, keep_apart, require_folder
from voxray.core.errors import ConfigError, DataError
from voxray.core.storage import whole
from voxray.core.volume import Grid
from voxray.core.written import ANSWERS, LABEL_MAP, RECORD, mark_of, require_own, sha256_of
from voxray.inference.candidates.file import file_name
from voxray.inference.candidates.folder import FOLDER
from voxray.inference.predictor import Prediction
from voxray.inference.trained_model import TrainedModel
from voxray.loading.inputs import ELSEWHERE, keep_out_of_run
from voxray.readers import content_of, read_label_map, write_nifti
from voxray.results.class_names import read_labels
from voxray.results.formats import FORMATS, ResultFormat
from voxray.results.saving import case_files, gathered_files

_EVERY = tuple(FORMATS.values())


@dataclass(frozen=True)
class AnswerFiles:
    """Where the answers of a task go, each case's under its own name."""

    output: Path
    task: str
    formats: tuple[ResultFormat, ...] = ()
    """What is saved beside the answers themselves."""
    with_candidates: bool = False
    overwrite: bool = False
    """Whether what somebody else wrote may be written over. What is read never is."""

    def of(self, case: str) -> list[Path]:
        """All files of a case."""
        found = [self.output / f"{case}.json"]
        if self.task == "segmentation":
            found.append(self.output / f"{case}.nii.gz")
        if self.with_candidates:
            found.append(self.output / FOLDER / file_name(case))
        return [*found, *case_files(self.formats, self.output, case)]

    @property
    def gathered(self) -> list[Path]:
        """The files that hold the answers to all cases."""
        return gathered_files(self.formats, self.output)

    def require_free(self, cases: Iterable[str], read: Iterable[Input], *, run: str | Path) -> None:
        """A ConfigError where anything that is read, or that somebody else wrote, would be written over."""
        require_folder(self.output, "-o")
        keep_out_of_run(self.output, run)
        of_case = {case: self.of(case) for case in cases}
        written = [*self.gathered, *(path for paths in of_case.values() for path in paths)]
        keep_apart([self.output, *written], read, instead=ELSEWHERE)
        require_own(self.gathered, overwrite=self.overwrite)
        for case in of_case:
            self.require_own(case)

    def require_unchanged(self, case: str) -> None:
        """A ConfigError where somebody has corrected the label map of an answer; one that is damaged is no loss."""
        path = self.output / f"{case}.json"
        if self.overwrite or self.task != "segmentation" or not mark_of(path).startswith("voxray-labels/"):
            return
        try:
            index = read_file(LabelsFile, path)
            labels = self.output / index.file
            if not index.file_sha256 or sha256_of(labels) == index.file_sha256:
                return
            read_label_map(labels)
        except (ConfigError, DataError, OSError):
            return
        raise ConfigError(
            f"{labels}: was changed since voxray wrote it, and would be written over; move it away, give another "
            f"folder with -o, or have it written over with --overwrite."
        )

    def require_own(self, case: str) -> None:
        """A ConfigError where one of the case's files is there and was not written by voxray."""
        damaged = self.output / f"{case}.json"
        paths = [path for path in self.of(case) if path != damaged or not self._is_damaged(case)]
        require_own(paths, ANSWERS, overwrite=self.overwrite)

    def _is_damaged(self, case: str) -> bool:
        """Whether what lies beside voxray's label map of the case is no JSON at all: a copy that was cut short."""
        path, labels = self.output / f"{case}.json", self.output / f"{case}.nii.gz"
        if self.task != "segmentation" or not path.is_file() or mark_of(labels) != LABEL_MAP:
            return False
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return True
        return False


def answer_names(case: str) -> list[str]:
    """The names of all files that an answer to a case may have in its folder, but for its candidates."""
    return [f"{case}.json", f"{case}.nii.gz", *(path.name for path in case_files(_EVERY, Path(), case))]


def folder_names(cases: Iterable[str]) -> list[str]:
    """Those of all cases, and of what is gathered of them."""
    gathered = [path.name for path in gathered_files(_EVERY, Path())]
    return [RECORD, *gathered, *(name for case in cases for name in answer_names(case))]


def gathered_names(formats: Sequence[ResultFormat], cases: Iterable[str]) -> list[str]:
    """Those that are read and written to gather the answers to the cases; none where nothing is to be gathered."""
    files = [path.name for path in gathered_files(formats, Path())]
    return [RECORD, *files, *(f"{case}.json" for case in cases)] if files else []


def write_answer(
    prediction: Prediction,
    output: Path,
    *,
    case: str,
    model: TrainedModel,
    scan: ScanStamp | None = None,
    overwrite: bool = False,
) -> Path:
    """The prediction's files; the JSON comes last and says that the case is done, and which scan it answers.

    Files of these names that somebody else wrote are written over only where that is wanted.
    """
    AnswerFiles(output, model.recipe.task, overwrite=overwrite).require_own(case)
    (output / f"{case}.json").unlink(missing_ok=True)  # it says nothing of the label map that comes now
    classes = model.run.classes
    file: FindingsFile | LabelsFile
    update: dict[str, object] = {"warnings": prediction.warnings, "scan": scan}
    if prediction.labels is not None:
        name = f"{case}.nii.gz"
        write_nifti(prediction.labels, output / name)
        file = labels_file(prediction.labels, case=case, file=name, classes=classes, model=model.stamp)
        update["file_sha256"] = content_of([output / name])
    else:
        assert prediction.detections is not None
        file = findings_file(prediction.detections, prediction.grid, case=case, classes=classes, model=model.stamp)
    file = file.model_copy(update=update)
    with whole(output / f"{case}.json") as path:
        path.write_text(to_text(file), encoding="utf-8")
    return output / f"{case}.json"


def warnings_of(output: Path, *, case: str) -> tuple[str, ...]:
    """What the answer that `write_answer` wrote says of its scan."""
    return read_answer_file(output / f"{case}.json").warnings


def read_answer(output: Path, *, case: str, grid: Grid, model: TrainedModel) -> Prediction:
    """What `write_answer` wrote for a scan on `grid`."""
    path = output / f"{case}.json"
    if model.recipe.task == "segmentation":
        return Prediction(grid, labels=read_labels(path, model.run.classes, grid))
    findings = read_file(FindingsFile, path)
    return Prediction(grid, detections=detections_of(findings, model.run.classes, frame="voxel"))
