"""The formats in which answers can be had: their names, files, media types and tasks, and what writes them.

`FORMATS` is the one table of them, for the command line (``predict --save``) and the service alike; each takes the
other's spelling, too. ``json`` and ``nifti`` are the answer itself, which a rerun looks for. ``luna16`` and
``monai-json`` gather the findings of all answers in one file. ``seg``, ``sr`` and ``rtstruct`` belong to the study of
a DICOM series; ``markups`` are boxes for 3D Slicer.

Whatever writes pictures or DICOM is imported when it is first asked for, so that processes that only need to know the
formats, such as those that answer HTTP requests, hold neither torch nor matplotlib.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from voxray.core.answer_json import FindingsFile
from voxray.core.bulkhead import log_fault, refusal_in
from voxray.core.case import Case
from voxray.core.errors import ConfigError, DataError
from voxray.core.storage import whole

if TYPE_CHECKING:
    from voxray.loading.scans import Scan
    from voxray.results.case_answer import CaseAnswer

FormatName = Literal["json", "nifti", "seg", "sr", "rtstruct", "preview", "luna16", "markups"]
"""Of the formats that the service hands out."""
SERVED: tuple[FormatName, ...] = get_args(FormatName)
FAULT = "form.fault"
"""The code of a format that failed from what nobody foresaw."""
_JSON, _DICOM = "application/json", "application/dicom"


@dataclass(frozen=True)
class ResultFormat:
    """A format of an answer: what it is called, the file that it makes, and what makes it."""

    name: str
    """In `FORMATS`, and in the service's routes."""
    option: str
    """As ``--save`` calls it."""
    suffix: str
    """Of a case's file, after the case's name."""
    media_type: str
    tasks: tuple[str, ...]
    """Whose answers can be had in it."""
    file: str = ""
    """The file's name where it bears no case's: in the folder of a job, or of all cases together."""
    write: Callable[[CaseAnswer, Path], None] | None = None
    """Makes the file of one case; None: the file is the answer itself, or is one of all cases."""
    gather: Callable[[Sequence[tuple[Scan, FindingsFile]], Sequence[str]], str] | None = None
    """The text of one file of all cases, of their findings and the classes."""

    @property
    def of_dicom(self) -> bool:
        """Whether it belongs to a DICOM series, and refers to its images."""
        return self.media_type == _DICOM

    @property
    def is_by_case(self) -> bool:
        """Whether ``--save`` writes a file of it for each case, beside the answer."""
        return self.write is not None and self.gather is None


def format_named(text: str) -> ResultFormat | None:
    """The format of a name, as the command line or the service spells it; None where there is none."""
    return next((one for one in FORMATS.values() if text in (one.name, one.option)), None)


def served_formats(task: str, *, is_dicom: bool) -> tuple[FormatName, ...]:
    """The formats in which the service hands out answers of a task; those of a DICOM series are the last."""
    of_task = [name for name in SERVED if task in FORMATS[name].tasks]
    of_dicom = [name for name in of_task if FORMATS[name].of_dicom]
    return (*(name for name in of_task if name not in of_dicom), *(of_dicom if is_dicom else ()))


def write_format(name: str, answer: CaseAnswer, path: Path) -> Path:
    """Writes one case's answer in a format to `path`, whole or not at all; what cannot be is a DataError.

    So is what nobody foresaw: libraries raise anything for headers that they do not expect, and the answer stands.

    A report (``sr``) of a segmentation refers to the Segmentation (``seg``) of the same answer, whose UIDs follow
    from the answer: whoever hands out the one should hand out the other.
    """
    allowed = {one.name: one.write for one in FORMATS.values() if one.write and answer.task in one.tasks}
    if name not in allowed:
        raise ConfigError(f"form {name}: not a form of a {answer.task}'s answer; allowed are {', '.join(allowed)}.")
    try:
        allowed[name](answer, path)
    except Exception as error:
        if refusal_in(error) is not None:
            raise
        log_fault(error)
        raise DataError(
            FAULT,
            f"form {name}: cannot be made of this answer and this scan's headers ({type(error).__name__}).",
            remedy="Take another form; --debug shows the traceback, and a service's log has it.",
        ) from None
    return path


def luna16_csv(answers: Sequence[tuple[Scan, FindingsFile]], classes: Sequence[str]) -> str:
    """LUNA16's submission: one row a finding, its centre in LPS mm as MetaImage files have it."""
    del classes
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["seriesuid", "coordX", "coordY", "coordZ", "probability"])
    for scan, file in answers:
        table.writerows([scan.name, *finding.center_mm, finding.score] for finding in file.findings)
    return text.getvalue()


def monai_json(answers: Sequence[tuple[Scan, FindingsFile]], classes: Sequence[str]) -> str:
    """The list that MONAI's detection bundle writes: boxes ``cx cy cz w h d`` in LPS mm, labels from 0.

    ``label_names`` is voxray's own, and says what the labels stand for.
    """

    def entry(scan: Scan, file: FindingsFile) -> dict[str, Any]:
        return {
            "image": scan.location,
            "box": [[*one.center_mm, *one.size_mm] for one in file.findings],
            "label": [classes.index(one.class_name) for one in file.findings],
            "label_names": [one.class_name for one in file.findings],
            "label_scores": [one.score for one in file.findings],
        }

    return json.dumps([entry(scan, file) for scan, file in answers], indent=1) + "\n"


def _preview(answer: CaseAnswer, path: Path) -> None:
    """Three planes (and a maximum projection for findings) with boxes or masks drawn."""
    from voxray.readers import read_volume
    from voxray.results.pictures import draw_detections, draw_labels

    volume = read_volume(answer.source, series_uid=answer.series_uid) if answer.volume is None else answer.volume
    if answer.task == "segmentation":
        picture = draw_labels(volume, answer.labels.voxels, classes=answer.classes)
    else:
        boxes, classes = np.zeros((0, 6)), np.zeros(0, np.int64)
        case = Case(answer.case, answer.case, volume, boxes=boxes, classes=classes, labels=None)
        picture = draw_detections(case, answer.prediction.detections, classes=answer.classes, with_truth=False)
    with whole(path) as beside:
        beside.write_bytes(picture)


def _luna16(answer: CaseAnswer, path: Path) -> None:
    from voxray.loading.scans import Scan

    text = luna16_csv([(Scan(answer.case, answer.source), answer.findings)], answer.classes)
    with whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


def _markups(answer: CaseAnswer, path: Path) -> None:
    from voxray.results.writers import markups_json

    text = markups_json(answer.detections.to_world(answer.prediction.grid), answer.classes)
    with whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


def _seg(answer: CaseAnswer, path: Path) -> None:
    from voxray.results.writers import write_seg

    write_seg(answer.labels, answer.files, path, **_about(answer))


def _rtstruct(answer: CaseAnswer, path: Path) -> None:
    from voxray.results.writers import write_rtstruct

    write_rtstruct(answer.labels, answer.files, path, **_about(answer))


def _sr(answer: CaseAnswer, path: Path) -> None:
    from voxray.results.writers import write_labels_sr, write_sr

    if answer.task == "segmentation":
        write_labels_sr(answer.labels, answer.files, path, **_about(answer))
    else:
        write_sr(answer.detections, answer.prediction.grid, answer.files, path, **_about(answer))


def _about(answer: CaseAnswer) -> dict[str, Any]:
    return {"classes": answer.classes, "algorithm": answer.algorithm, "series_uid": answer.series_uid}


_BOTH, _BOXES, _LABELS = ("detection", "segmentation"), ("detection",), ("segmentation",)

FORMATS: Mapping[str, ResultFormat] = {
    one.name: one
    for one in (
        ResultFormat("json", "json", ".json", _JSON, _BOTH),
        ResultFormat("nifti", "nifti", ".nii.gz", "application/gzip", _LABELS),
        ResultFormat("preview", "preview", ".png", "image/png", _BOTH, "preview.png", _preview),
        ResultFormat("luna16", "csv-luna16", ".csv", "text/csv", _BOXES, "luna16.csv", _luna16, luna16_csv),
        ResultFormat("monai-json", "monai-json", "", _JSON, _BOXES, "monai.json", gather=monai_json),
        ResultFormat("seg", "dicom-seg", ".seg.dcm", _DICOM, _LABELS, "seg.dcm", _seg),
        ResultFormat("sr", "dicom-sr", ".sr.dcm", _DICOM, _BOTH, "sr.dcm", _sr),
        ResultFormat("rtstruct", "rtstruct", ".rtstruct.dcm", _DICOM, _LABELS, "rtstruct.dcm", _rtstruct),
        ResultFormat("markups", "markups", ".mrk.json", _JSON, _BOXES, "markups.mrk.json", _markups),
    )
}
"""In the order in which a refusal of ``--save`` lists them."""
