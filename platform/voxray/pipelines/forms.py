"""The forms in which answers can be saved beside voxray's own JSON: for other tools, and to look at.

``nifti`` (label maps) and ``json`` are what a rerun looks for, so they are always written for their task. ``preview``
draws each scan; ``csv-luna16`` and ``monai-json`` gather the findings of all answers in one file each.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxray.case import Case
from voxray.errors import ConfigError
from voxray.inference.findings import FindingsFile, read_file
from voxray.inference.predictor import Prediction
from voxray.pictures import draw_detections, draw_labels
from voxray.pipelines.scans import Scan
from voxray.place import whole
from voxray.volume import Volume

Gather = Callable[[Sequence[tuple[Scan, FindingsFile]], Sequence[str]], str]

PREVIEW = "preview"
OWN = {"detection": ("json",), "segmentation": ("json", "nifti")}
"""What is always written."""


def chosen_forms(text: str, task: str) -> tuple[str, ...]:
    """The forms of a list such as ``json,preview``, checked against what the task has."""
    names = tuple(name for name in (part.strip() for part in text.split(",")) if name)
    allowed = [*OWN[task], PREVIEW, *(GATHERED if task == "detection" else ())]
    for name in names:
        if name not in allowed:
            raise ConfigError(f"--save {name}: not a form of a {task}'s answers; allowed are {', '.join(allowed)}.")
    return names


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


def gather(forms: Sequence[str], scans: Sequence[Scan], output: Path, classes: Sequence[str]) -> list[Path]:
    """Writes the gathered forms over all scans that have an answer in `output`."""
    wanted = [name for name in forms if name in GATHERED]
    if not wanted:
        return []
    files = [(scan, output / f"{scan.name}.json") for scan in scans]
    answers = [(scan, read_file(FindingsFile, path)) for scan, path in files if path.exists()]
    written = []
    for name in wanted:
        file, make = GATHERED[name]
        with whole(output / file) as path:
            path.write_text(make(answers, classes), encoding="utf-8")
        written.append(output / file)
    return written


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
    """The list that MONAI's detection bundle writes: boxes ``cx cy cz w h d`` in LPS mm, labels from 0."""

    def entry(scan: Scan, file: FindingsFile) -> dict[str, Any]:
        return {
            "image": str(scan.path),
            "box": [[*one.center_mm, *one.size_mm] for one in file.findings],
            "label": [classes.index(one.class_name) for one in file.findings],
            "label_scores": [one.score for one in file.findings],
        }

    return json.dumps([entry(scan, file) for scan, file in answers], indent=1) + "\n"


GATHERED: Mapping[str, tuple[str, Gather]] = {
    "csv-luna16": ("luna16.csv", luna16_csv),
    "monai-json": ("monai.json", monai_json),
}
"""Form -> the file's name, and what it holds."""
