"""Which model answered a job, as it lies with the answer: results outlive their model.

A model may be taken out of the service, or another one may be given its name. What a result is, and which forms it
has, therefore follows from what was written with it.
"""

from __future__ import annotations

from pathlib import Path

from voxray.core.answer_json import FindingsFile, LabelsFile
from voxray.core.config import Config, parse, read_mapping
from voxray.core.errors import ConfigError
from voxray.core.storage import whole
from voxray.core.task_name import TaskName
from voxray.serving.messages import ModelInfo
from voxray.serving.paths import ServicePaths

NAME = "model.json"


class AnsweredBy(Config):
    """What the forms of an answer need to know of the model that gave it."""

    name: str
    task: TaskName
    classes: tuple[str, ...]


def write_answered_by(folder: Path, model: ModelInfo) -> None:
    """Writes it into the job's folder."""
    kept = AnsweredBy(name=model.name, task=model.task, classes=model.classes)
    with whole(folder / NAME) as path:
        path.write_text(kept.model_dump_json(), encoding="utf-8")


def answered_by(places: ServicePaths, job: str, study: str, *, name: str = "") -> AnsweredBy:
    """Which model answered; FileNotFoundError where the answer is gone.

    Answers of earlier versions lie alone: the classes of a detection are then those that it found.
    """
    path = places.job(job) / NAME
    if path.is_file():
        return parse(AnsweredBy, read_mapping(path), where=NAME)
    file = read_answer(places, job, study)
    if isinstance(file, LabelsFile):
        return AnsweredBy(name=name, task="segmentation", classes=tuple(entry.class_name for entry in file.labels))
    return AnsweredBy(
        name=name, task="detection", classes=tuple(sorted({finding.class_name for finding in file.findings}))
    )


def read_answer(places: ServicePaths, job: str, study: str) -> FindingsFile | LabelsFile:
    """The answer itself, whichever kind it is; FileNotFoundError where it is gone."""
    path = places.answer(job, study)
    path.stat()
    data = read_mapping(path)
    if data.get("schema") == FindingsFile.model_fields["schema_name"].default:
        return parse(FindingsFile, data, where="answer")
    if data.get("schema") == LabelsFile.model_fields["schema_name"].default:
        return parse(LabelsFile, data, where="answer")
    raise ConfigError("answer: is neither findings nor a label map of this version; delete the job and ask again.")
