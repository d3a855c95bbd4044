"""The forms in which answers can be saved beside voxray's own JSON: for other tools, and to look at.

``nifti`` (label maps) and ``json`` are what a rerun looks for, so they are always written for their task. ``preview``
draws each scan; ``csv-luna16`` and ``monai-json`` gather the findings of all answers in one file each. The forms of
DICOM (``dicom-seg``, ``dicom-sr``, ``rtstruct``) belong to the study of a DICOM scan; ``markups`` are boxes for 3D
Slicer.

`write_form` makes any form of one case, for whoever has a case's answer in hand.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from voxray.core.answer_json import FindingsFile, ModelStamp, detections_of, findings_file, read_file
from voxray.core.bulkhead import attempt, log_fault, refusal_in, sentence_of
from voxray.core.case import Case
from voxray.core.detections import Detections
from voxray.core.errors import ConfigError, DataError
from voxray.core.storage import whole
from voxray.core.volume import Volume
from voxray.core.written import ANSWERS, is_own, recorded, remove_own, require_own
from voxray.inference.predictor import Prediction
from voxray.loading.scans import Scan, is_volume_file
from voxray.readers import read_volume
from voxray.results.pictures import draw_detections, draw_labels
from voxray.results.writers import Algorithm, markups_json, write_labels_sr, write_rtstruct, write_seg, write_sr

Gather = Callable[[Sequence[tuple[Scan, FindingsFile]], Sequence[str]], str]

PREVIEW = "preview"
FAULT = "form.fault"
"""The code of a form that failed from what nobody foresaw."""
OWN = {"detection": ("json",), "segmentation": ("json", "nifti")}
"""What is always written."""


@dataclass(frozen=True)
class NotMade:
    """A form that was asked for and could not be made."""

    form: str
    """As ``--save`` names it."""
    why: str
    is_unsupported: bool
    """Whether the scan or its answer has no such form, as a NIfTI file no DICOM SEG; all else is a failure."""

    def __str__(self) -> str:
        return f"{self.form}: {self.why}"


@dataclass(frozen=True)
class CaseAnswer:
    """One scan's answer, and what its forms are made of beside it."""

    case: str
    prediction: Prediction
    """On the scan's own grid, in voxels."""
    classes: Sequence[str]
    stamp: ModelStamp
    source: Path
    """The file or folder that the scan was read from."""
    volume: Volume | None = None
    """The scan, which only the preview needs; None: it is read again."""
    series_uid: str | None = None
    """Which series of the source, where it holds several."""

    @property
    def algorithm(self) -> Algorithm:
        """The model, as DICOM objects name it."""
        stamp = self.stamp
        return Algorithm(name=stamp.run, version=stamp.commit, sha256=stamp.sha256, dataset=stamp.dataset)

    @property
    def findings(self) -> FindingsFile:
        """A detector's answer as its JSON says it."""
        assert self.prediction.detections is not None
        grid = self.prediction.grid
        return findings_file(self.prediction.detections, grid, case=self.case, classes=self.classes, model=self.stamp)

    @property
    def detections(self) -> Detections:
        """The findings in voxels, rounded as the JSON is: forms made of the file later are the same."""
        return detections_of(self.findings, self.classes, frame="voxel")

    @property
    def files(self) -> list[Path]:
        """The files of the source."""
        inside = sorted(self.source.iterdir()) if self.source.is_dir() else [self.source]
        return [path for path in inside if path.is_file()]


def write_form(name: str, answer: CaseAnswer, path: Path) -> Path:
    """Writes one of `CASE_FORMS` of one case to `path`, whole or not at all; what cannot be is a DataError.

    So is what nobody foresaw: libraries raise anything for headers that they do not expect, and the answer stands.

    A report (``sr``) of a segmentation refers to the Segmentation (``seg``) of the same answer, whose UIDs follow
    from the answer: whoever hands out the one should hand out the other.
    """
    task = "detection" if answer.prediction.labels is None else "segmentation"
    if name not in CASE_FORMS or task not in CASE_FORMS[name].tasks:
        allowed = ", ".join(known for known, form in CASE_FORMS.items() if task in form.tasks)
        raise ConfigError(f"form {name}: not a form of a {task}'s answer; allowed are {allowed}.")
    try:
        CASE_FORMS[name].write(answer, path)
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


def save_form(name: str, answer: CaseAnswer, path: Path, *, overwrite: bool = False) -> None:
    """`write_form` into a folder of answers, where nothing is written over that voxray did not write."""
    if CASE_FORMS[name].has_mark:
        require_own([path], ANSWERS, overwrite=overwrite)
        write_form(name, answer, path)
        return
    with recorded(path, overwrite=overwrite) as beside:
        write_form(name, answer, beside)


def are_saved(forms: Sequence[str], output: Path, case: str) -> bool:
    """Whether the chosen forms of a case are there, as voxray wrote them."""
    return all(is_own(path, ANSWERS) for path in form_files(forms, output, case).values())


def save_forms(
    forms: Sequence[str], answer: CaseAnswer, output: Path, *, overwrite: bool = False
) -> tuple[NotMade, ...]:
    """Writes the chosen forms that each case has a file of, each for itself; those that could not be made."""
    not_made = []
    for name, path in form_files(forms, output, answer.case).items():
        try:
            save_form(SAVED[name], answer, path, overwrite=overwrite)
        except Exception as error:
            not_made.append(NotMade(name, sentence_of(error), isinstance(error, DataError) and error.code != FAULT))
    return tuple(not_made)


def lacking_dicom(forms: Sequence[str], scans: Sequence[Scan]) -> tuple[tuple[str, ...], tuple[Scan, ...]]:
    """The chosen forms that belong to a DICOM series, and the scans that are plainly none; no voxel is read."""
    of_dicom = tuple(name for name in forms if name in SAVED and CASE_FORMS[SAVED[name]].needs_dicom)
    return of_dicom, tuple(scan for scan in scans if of_dicom and is_volume_file(scan.path))


def chosen_forms(text: str, task: str) -> tuple[str, ...]:
    """The forms of a list such as ``json,preview``, checked against what the task has."""
    names = tuple(name for name in (part.strip() for part in text.split(",")) if name)
    allowed = [*OWN[task], PREVIEW, *(GATHERED if task == "detection" else ()), *_saved_by_case(task)]
    for name in names:
        if name not in allowed:
            raise ConfigError(f"--save {name}: not a form of a {task}'s answers; allowed are {', '.join(allowed)}.")
    if task == "segmentation" and "dicom-sr" in names and "dicom-seg" not in names:
        # The report refers to it.
        names = (*names, "dicom-seg")
    return names


def form_files(forms: Sequence[str], output: Path, case: str) -> dict[str, Path]:
    """The chosen forms that each case has a file of, as ``--save`` names them, and where the file lies."""
    return {name: output / f"{case}{CASE_FORMS[SAVED[name]].ending}" for name in forms if name in SAVED}


def drop_answer(output: Path, case: str) -> None:
    """Removes what says that a case is answered, and then the forms of that answer: none may outlive it.

    Files of these names that others wrote stay.
    """
    remove_own(output / f"{case}.json", ANSWERS)
    for path in form_files(tuple(SAVED), output, case).values():
        remove_own(path, ANSWERS)


def _saved_by_case(task: str) -> list[str]:
    return [name for name, form in SAVED.items() if name != PREVIEW and task in CASE_FORMS[form].tasks]


def write_preview(volume: Volume, prediction: Prediction, path: Path, *, case: str, classes: Sequence[str]) -> None:
    """A PNG of three planes (and a maximum projection for findings) with boxes or masks drawn."""
    if prediction.labels is not None:
        picture = draw_labels(volume, prediction.labels.voxels, None, classes=classes)
    else:
        nothing = np.zeros((0, 6)), np.zeros(0, np.int64)
        shown = Case(case, case, volume, boxes=nothing[0], classes=nothing[1], labels=None)
        picture = draw_detections(shown, prediction.detections, classes=classes, with_truth=False)
    with whole(path) as beside:
        beside.write_bytes(picture)


def gather(
    forms: Sequence[str], scans: Sequence[Scan], output: Path, classes: Sequence[str], *, overwrite: bool = False
) -> Mapping[str, tuple[NotMade, ...]]:
    """Writes the gathered forms over all scans that have an answer in `output`; what is not in them, by scan or file.

    An answer that cannot be read costs its own rows, and a form that cannot be written costs itself.
    """
    wanted = [name for name in forms if name in GATHERED]
    answers: list[tuple[Scan, FindingsFile]] = []
    lacking: dict[str, tuple[NotMade, ...]] = {}
    for scan in scans if wanted else ():
        path = output / f"{scan.name}.json"
        if path.exists() and (error := attempt(partial(_read, path, scan, answers))):
            lacking[scan.name] = tuple(NotMade(name, error, is_unsupported=False) for name in wanted)
    for name in wanted:
        file, make = GATHERED[name]
        write = partial(_write_gathered, output / file, partial(make, answers, classes), overwrite=overwrite)
        if error := attempt(write):
            lacking[file] = (NotMade(name, error, is_unsupported=False),)
    return lacking


def _read(path: Path, scan: Scan, answers: list[tuple[Scan, FindingsFile]]) -> None:
    answers.append((scan, read_file(FindingsFile, path)))


def _write_gathered(path: Path, make: Callable[[], str], *, overwrite: bool) -> None:
    with recorded(path, overwrite=overwrite) as beside:
        beside.write_text(make(), encoding="utf-8")


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
            "image": str(scan.path),
            "box": [[*one.center_mm, *one.size_mm] for one in file.findings],
            "label": [classes.index(one.class_name) for one in file.findings],
            "label_names": [one.class_name for one in file.findings],
            "label_scores": [one.score for one in file.findings],
        }

    return json.dumps([entry(scan, file) for scan, file in answers], indent=1) + "\n"


GATHERED: Mapping[str, tuple[str, Gather]] = {
    "csv-luna16": ("luna16.csv", luna16_csv),
    "monai-json": ("monai.json", monai_json),
}
"""Form -> the file's name, and what it holds."""


def _preview(answer: CaseAnswer, path: Path) -> None:
    volume = read_volume(answer.source, series_uid=answer.series_uid) if answer.volume is None else answer.volume
    write_preview(volume, answer.prediction, path, case=answer.case, classes=answer.classes)


def _luna16(answer: CaseAnswer, path: Path) -> None:
    scan = Scan(answer.case, answer.source)
    with whole(path) as beside:
        beside.write_text(luna16_csv([(scan, answer.findings)], answer.classes), encoding="utf-8")


def _markups(answer: CaseAnswer, path: Path) -> None:
    with whole(path) as beside:
        beside.write_text(
            markups_json(answer.detections.to_world(answer.prediction.grid), answer.classes), encoding="utf-8"
        )


def _seg(answer: CaseAnswer, path: Path) -> None:
    assert answer.prediction.labels is not None
    write_seg(answer.prediction.labels, answer.files, path, **_words(answer))


def _rtstruct(answer: CaseAnswer, path: Path) -> None:
    assert answer.prediction.labels is not None
    write_rtstruct(answer.prediction.labels, answer.files, path, **_words(answer))


def _sr(answer: CaseAnswer, path: Path) -> None:
    prediction = answer.prediction
    if prediction.labels is not None:
        write_labels_sr(prediction.labels, answer.files, path, **_words(answer))
    else:
        write_sr(answer.detections, prediction.grid, answer.files, path, **_words(answer))


def _words(answer: CaseAnswer) -> dict[str, Any]:
    return {"classes": answer.classes, "algorithm": answer.algorithm, "series_uid": answer.series_uid}


@dataclass(frozen=True)
class CaseForm:
    """A form that each case has a file of."""

    ending: str
    """Of the file's name, after the case's."""
    tasks: tuple[str, ...]
    write: Callable[[CaseAnswer, Path], None]
    needs_dicom: bool = False
    has_mark: bool = True
    """Whether the file itself says that voxray wrote it."""


CASE_FORMS: Mapping[str, CaseForm] = {
    "preview": CaseForm(".png", ("detection", "segmentation"), _preview),
    "luna16": CaseForm(".csv", ("detection",), _luna16, has_mark=False),
    "markups": CaseForm(".mrk.json", ("detection",), _markups),
    "seg": CaseForm(".seg.dcm", ("segmentation",), _seg, needs_dicom=True),
    "sr": CaseForm(".sr.dcm", ("detection", "segmentation"), _sr, needs_dicom=True),
    "rtstruct": CaseForm(".rtstruct.dcm", ("segmentation",), _rtstruct, needs_dicom=True),
}
SAVED: Mapping[str, str] = {
    PREVIEW: "preview",
    "dicom-seg": "seg",
    "dicom-sr": "sr",
    "rtstruct": "rtstruct",
    "markups": "markups",
}
"""What ``--save`` calls the forms that each case has a file of."""
