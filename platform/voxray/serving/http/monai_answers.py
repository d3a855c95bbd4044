"""Answers as MONAI Label's clients read them: parameters, and the file that a viewer loads."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError

from voxray.core.answer_json import FindingsFile
from voxray.core.config import Config
from voxray.serving.errors import ProblemError
from voxray.serving.jobs.service import Service
from voxray.serving.messages import Job, ModelInfo, Study
from voxray.serving.workers.protocol import Extension, LabelFormat, LabelType


class InferenceOptions(Config):
    """What a client's ``params`` may ask of an answer; all else in them does nothing here."""

    result_extension: Extension = ".nii.gz"
    result_dtype: LabelType | None = None
    result_compress: bool = True
    save_label: bool = False
    label_tag: str = Field(default="original", pattern=r"^[A-Za-z0-9_-]{1,64}$")


class AnswerFile(NamedTuple):
    """The file of an answer."""

    path: Path
    name: str
    """For the client; its end tells Slicer how to load it."""
    content_type: str


def options_of(text: str) -> InferenceOptions:
    """The options in the text of ``params``."""
    try:
        told = json.loads(text or "{}")
        known = (
            {name: told[name] for name in InferenceOptions.model_fields if name in told}
            if isinstance(told, dict)
            else None
        )
        return InferenceOptions.model_validate(known)
    except (ValidationError, ValueError, RecursionError) as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) if isinstance(error, ValidationError) else ""
        allowed = "; result_extension is .nrrd, .nii.gz or .nii, and result_dtype uint8 or uint16"
        raise ProblemError(
            400, "infer.params", f"The parameters cannot be used{f' ({where})' if where else ''}.",
            remedy=f"Send params as an object of JSON{allowed}.",
        ) from None  # fmt: skip


async def file_of(service: Service, owner: str, job: Job, model: ModelInfo, options: InferenceOptions) -> AnswerFile:
    """The file of an answer: a label map, or Slicer's Markups for boxes."""
    if model.task == "segmentation":
        label_format = LabelFormat(options.result_extension, options.result_dtype, options.result_compress)
        path = await service.viewer_labels(owner, job.job_id, label_format)
        return AnswerFile(path, f"label{options.result_extension}", "application/octet-stream")
    path = await service.result(owner, job.job_id, "markups")
    if isinstance(job.result, FindingsFile) and not job.result.findings:
        path = await asyncio.to_thread(_nothing_found, path)
    return AnswerFile(path, "findings.mrk.json", "application/json")


async def params_of(service: Service, owner: str, job: Job, model: ModelInfo) -> dict[str, Any]:
    """What is told beside the file.

    ``label_names`` has every class, whether found or not: Slicer gives the n-th name to the value n. OHIF wants
    ``centroids``, and reads of each the value and three voxel indices as text.
    """
    timing = job.timing_s
    told: dict[str, Any] = {
        "label_names": dict(model.labels),
        "latencies": {"pre": timing.prepare, "infer": timing.answer, "total": timing.total},
        "centroids": {},
    }
    if job.result is None:
        return told
    answer = job.result.model_dump(mode="json", by_alias=True)
    told["warnings"] = answer["warnings"]
    if isinstance(job.result, FindingsFile):
        return told | {"findings": answer["findings"], "frame": answer["frame"], "unit": answer["unit"]}
    told["label_names"] = {one.class_name: one.value for one in job.result.labels}
    middles = await service.centroids(owner, job.job_id)
    told["centroids"] = {
        f"label_{value}": [str(value), *map(str, middle)] for value, middle in sorted(middles.items())
    }
    return told | {"labels": answer["labels"]}


def info_of(models: dict[str, ModelInfo], stats: dict[str, Any], *, version: str) -> dict[str, Any]:
    """``/info/``. The list of labels begins with the background, which older OHIF cuts off and Slicer leaves out."""
    classes = dict.fromkeys(name for model in models.values() for name in model.classes)
    return {
        "name": "voxray",
        "description": "CT scans in, findings out.",
        "version": version,
        "labels": ["background", *classes],
        "models": {
            name: {
                "type": model.task,
                "labels": dict(model.labels),
                "dimension": 3,
                "description": model.description,
                "config": {},
            }
            for name, model in models.items()
        },
        "trainers": {},
        "strategies": {name: {"description": text, "config": {}} for name, text in STRATEGIES.items()},
        "scoring": {},
        "train_stats": {},
        "datastore": stats,
    }


STRATEGIES = {"first": "The oldest image without a final label", "random": "Any image without a final label"}


def session_info(study: Study) -> dict[str, Any]:
    """A session as clients see it: where it lies is ours to know."""
    created, expires = study.created.timestamp(), study.expires.timestamp()
    return {
        "name": study.study_id,
        "path": "",
        "image": f"{study.study_id}.nii.gz",
        "meta": {"shape": list(study.shape), "spacing_mm": list(study.spacing_mm), "warnings": list(study.warnings)},
        "create_ts": int(created),
        "last_access_ts": int(created),
        "expiry": int(expires - created),
    }


def _nothing_found(markups: Path) -> Path:
    """Slicer cannot load a file without markups: an empty list of points says that there are none."""
    told = json.loads(markups.read_text())
    told["markups"] = [
        {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "name": "no findings",
         "controlPoints": []}
    ]  # fmt: skip
    path = markups.with_name("nothing.mrk.json")
    path.write_text(json.dumps(told))
    return path
