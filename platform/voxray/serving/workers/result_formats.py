"""A job's result in the formats that are made of it, from the files in the job's folder."""

from __future__ import annotations

from pathlib import Path

from voxray.core.answer_json import FindingsFile, LabelsFile, ModelStamp, detections_of, read_file
from voxray.core.storage import sync
from voxray.inference.predictor import Prediction
from voxray.readers import read_label_map
from voxray.results.case_answer import CaseAnswer
from voxray.results.class_names import classes_in
from voxray.results.formats import FormatName, write_format
from voxray.serving.intake.study import series_uid_of
from voxray.serving.paths import ServicePaths
from voxray.serving.workers.answered_by import AnsweredBy
from voxray.serving.workers.study_scans import scan_of


def write_result(paths: ServicePaths, job: str, study: str, model: AnsweredBy, form: FormatName, path: Path) -> None:
    """Writes a job's result in a format, and waits until it is on the disk."""
    prediction, stamp, classes = _read_result(paths, job, study, model)
    series_uid = series_uid_of(paths.study(study))
    answer = CaseAnswer(
        case=(series_uid or study) if form == "luna16" else study,
        prediction=prediction,
        classes=classes,
        stamp=stamp,
        source=paths.source(study),
        volume=scan_of(paths, study) if form == "preview" else None,
        series_uid=series_uid,
    )
    write_format(form, answer, path)
    sync(path)
    sync(path.parent)


def _read_result(
    paths: ServicePaths, job: str, study: str, model: AnsweredBy
) -> tuple[Prediction, ModelStamp, tuple[str, ...]]:
    """The answer with the classes of its own files: the model may be served with others by now."""
    grid = scan_of(paths, study).grid
    path = paths.answer(job, study)
    if model.task == "segmentation":
        labels, index = read_label_map(paths.labels(job, study)), read_file(LabelsFile, path)
        return Prediction(grid, labels=labels), index.model, classes_in(index, where=path.name)
    file = read_file(FindingsFile, path)
    classes = tuple(dict.fromkeys([*model.classes, *(one.class_name for one in file.findings)]))
    return Prediction(grid, detections=detections_of(file, classes, frame="voxel")), file.model, classes
