"""The forms in which a job's result can be had: the answer itself, and what is made of it when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from voxray.serving.messages import Form
from voxray.serving.paths import Places

ALWAYS: Mapping[str, tuple[Form, ...]] = {
    "detection": ("json", "preview", "luna16", "markups"),
    "segmentation": ("json", "nifti", "preview"),
}
OF_DICOM: Mapping[str, tuple[Form, ...]] = {"detection": ("sr",), "segmentation": ("seg", "sr", "rtstruct")}
"""They refer to the images that were sent."""

MEDIA_TYPES: Mapping[Form, str] = {
    "json": "application/json",
    "nifti": "application/gzip",
    "seg": "application/dicom",
    "sr": "application/dicom",
    "rtstruct": "application/dicom",
    "preview": "image/png",
    "luna16": "text/csv",
    "markups": "application/json",
}

_Find = Callable[[Places, str, str], Path]


def _file(name: str) -> _Find:
    return lambda places, job, _study: places.job(job) / name


FILES: Mapping[Form, _Find] = {
    "json": Places.answer,
    "nifti": Places.labels,
    "seg": _file("seg.dcm"),
    "sr": _file("sr.dcm"),
    "rtstruct": _file("rtstruct.dcm"),
    "preview": _file("preview.png"),
    "luna16": _file("luna16.csv"),
    "markups": _file("markups.mrk.json"),
}
"""(places, job, study) -> where the form lies."""

STORED: tuple[Form, ...] = ("seg", "sr")
"""What is sent to an archive."""


def forms_of(task: str, *, is_dicom: bool) -> tuple[Form, ...]:
    """The forms that the answers of a task have."""
    return (*ALWAYS[task], *(OF_DICOM[task] if is_dicom else ()))
