"""The forms of a result, made of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from voxray.core.answer_json import FindingsFile, LabelsFile, ModelStamp, detections_of, read_file
from voxray.core.storage import sync
from voxray.inference.predictor import Prediction
from voxray.readers import read_label_map
from voxray.results.case_answer import CaseAnswer
from voxray.results.class_names import classes_in
from voxray.results.formats import FormatName, write_format
from voxray.serving.intake.study import series_uid_of
from voxray.serving.paths import Places
from voxray.serving.workers.answered_by import AnsweredBy
from voxray.serving.workers.scans import scan_of


@dataclass(frozen=True)
class Answered:
    """A job's result, as it lies in the job's folder."""

    places: Places
    job: str
    study: str
    model: AnsweredBy

    def make(self, form: FormatName, path: Path) -> None:
        """Writes the result in a form."""
        prediction, stamp, classes = self._answer()
        series_uid = series_uid_of(self.places.study(self.study))
        write_format(
            form,
            CaseAnswer(
                case=(series_uid or self.study) if form == "luna16" else self.study,
                prediction=prediction,
                classes=classes,
                stamp=stamp,
                source=self.places.source(self.study),
                volume=scan_of(self.places, self.study) if form == "preview" else None,
                series_uid=series_uid,
            ),
            path,
        )
        sync(path)
        sync(path.parent)

    def _answer(self) -> tuple[Prediction, ModelStamp, tuple[str, ...]]:
        """The answer with the classes of its own files: the model may be served with others by now."""
        grid = scan_of(self.places, self.study).grid
        path = self.places.answer(self.job, self.study)
        if self.model.task == "segmentation":
            labels, index = read_label_map(self.places.labels(self.job, self.study)), read_file(LabelsFile, path)
            return Prediction(grid, labels=labels), index.model, classes_in(index, where=path.name)
        file = read_file(FindingsFile, path)
        classes = tuple(dict.fromkeys([*self.model.classes, *(one.class_name for one in file.findings)]))
        return Prediction(grid, detections=detections_of(file, classes, frame="voxel")), file.model, classes
