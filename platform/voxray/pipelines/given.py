"""Answers that lie in files: which form they have, and what they say of a case."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from voxray.config import read_mapping
from voxray.detections import Detections
from voxray.errors import ConfigError, DataError
from voxray.evaluation import EVALUATION
from voxray.inference.findings import FindingsFile, LabelsFile, detections_of, read_file
from voxray.pipelines.fold_runs import ANSWERS, CROSSVAL
from voxray.pipelines.luna16 import some
from voxray.pipelines.truths import CaseTruth, Truth, map_files
from voxray.predictions import PICKLE_SUFFIX, MarkTable, read_marks, read_monai, read_pickles
from voxray.predictions.monai import is_monai
from voxray.predictions.problems import problem, read_text
from voxray.readers import read_label_map
from voxray.volume import Grid

Form = Literal["findings", "labels", "maps", "monai", "pickles", "marks"]

SHIFT_VOX = 0.01
"""Two grids are one where no corner differs by more than this share of the smallest spacing."""


@dataclass(frozen=True)
class Answers:
    """Answers of one form, by the name that their file gives the case; it can travel to workers."""

    name: str
    form: Form
    files: Mapping[str, Path]
    """Findings, label indices or label maps, which are read case by case."""
    detections: Mapping[str, Detections]
    """What one file (or a folder of pickles) says of all cases, in LPS mm."""
    marks: MarkTable | None = None

    @property
    def names(self) -> list[str]:
        """The names of the cases, as the answers have them."""
        return [*self.files, *self.detections]

    @property
    def is_segmentation(self) -> bool:
        """Whether they are label maps."""
        return self.form in ("labels", "maps")


def read_answers(path: Path, *, trust_pickle: bool) -> Answers:
    """The answers at `path`, told apart by what it holds."""
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder; give a run, or a file or folder of answers.")
    if path.is_dir():
        return _folder(path, trust_pickle=trust_pickle)
    if path.name.endswith(PICKLE_SUFFIX):
        return Answers(path.name, "pickles", {}, read_pickles([path], trusted=trust_pickle))
    if path.name.endswith((".csv", ".csv.gz")):
        name = path.name.removesuffix(".gz").removesuffix(".csv")
        return Answers(name, "marks", {}, {}, read_marks(read_text(path), where=str(path)))
    if path.suffix == ".json" and is_monai(_json(path)):
        return Answers(path.stem, "monai", {}, read_monai(read_text(path), where=str(path)))
    raise ConfigError(
        f"{path}: is no form of answers that is known; give a LUNA16 .csv, MONAI's .json, nnDetection's "
        f"*{PICKLE_SUFFIX}, or a folder of voxray's answers or of label maps."
    )


def cases_of(answers: Answers, truth: Truth) -> tuple[dict[str, str], list[str]]:
    """Case -> the answers' name for it, and the names that are no case of the truth."""
    of_name = _NAMING[answers.form](truth)
    found: dict[str, str] = {}
    unknown = []
    for name in answers.names:
        case_id = of_name(name)
        if case_id is None:
            unknown.append(name)
        elif case_id in found:
            text = f"{answers.name}: '{found[case_id]}' and '{name}' are both of case {case_id}."
            raise problem("repeated", text, "Keep one of them.")
        else:
            found[case_id] = name
    if not found:
        text = f"{answers.name}: none of its cases ({some(unknown) or 'there are none'}) is one of {truth.name}'s"
        raise problem("no_match", f"{text} ({some(list(truth.patients))}).", "Give the truth of the same scans.")
    return found, unknown


def detections_in(answers: Answers, name: str, classes: Sequence[str], truth: CaseTruth) -> Detections:
    """The findings of a case in the frame of its truth."""
    if answers.form == "findings":
        file = read_file(FindingsFile, answers.files[name])
        frame: Literal["voxel", "LPS"] = "voxel" if truth.frame == "voxel" else "LPS"
        return detections_of(file, classes, frame=frame)
    found = answers.detections[name]
    if found.classes.max(initial=0) >= len(classes):
        text = f"class {found.classes.max()} is none of the {len(classes)} ({', '.join(classes[:5])})."
        raise problem("class", text, "Number the classes from 0, in the order of the truth's.").of_case(name)
    if truth.frame != "voxel":
        return found
    if truth.grid is None:
        text = "the answers are in mm, the truth in voxels of a scan that is not given."
        raise problem("frame", text, "Give the truth in LPS mm, or a dataset with its scans.").of_case(name)
    return found.to_voxel(truth.grid)


def labels_in(answers: Answers, name: str, classes: Sequence[str], truth: CaseTruth) -> UInt8[np.ndarray, "x y z"]:
    """The label map of a case with the truth's classes, on the truth's grid."""
    path = answers.files[name]
    index = read_file(LabelsFile, path) if answers.form == "labels" else None
    volume = read_label_map(path if index is None else path.parent / index.file)
    assert truth.grid is not None
    if not volume.grid.is_close(truth.grid, tolerance_mm=SHIFT_VOX * min(truth.grid.spacing_mm)):
        text = f"{path.name} does not lie on the truth's grid ({_shape(volume.grid)}, not {_shape(truth.grid)})."
        raise DataError("predictions.grid", text, remedy="Give label maps on the scan's own grid.", case_id=name)
    values = np.zeros(1 << 16, np.uint8)
    known = (
        dict(enumerate(classes, start=1)) if index is None else {one.value: one.class_name for one in index.labels}
    )
    for value, kind in known.items():
        if kind not in classes:
            text = f"{path.name}: its class {kind!r} is none of the truth's ({', '.join(classes[:5])})."
            raise DataError("predictions.class", text, remedy="Score it against truth of its classes.", case_id=name)
        values[value] = classes.index(kind) + 1
    highest = int(volume.voxels.max(initial=0))
    if highest not in known and highest > 0:
        text = f"{path.name}: has label {highest}, the truth {len(classes)} classes ({', '.join(classes[:5])})."
        raise DataError("predictions.class", text, remedy="Number the classes as the truth does.", case_id=name)
    labels: UInt8[np.ndarray, "x y z"] = values[volume.voxels]
    return labels


def marks_of(answers: Answers, classes: Sequence[str] | None = None) -> MarkTable:
    """All findings as marks: the centre of each box in LPS mm, and its score."""
    if answers.marks is not None:
        return answers.marks
    if answers.is_segmentation:
        raise ConfigError(f"{answers.name}: label maps have no scores, so there is no FROC; give detections.")
    cases, centres, scores = [], [np.zeros((0, 3))], [np.zeros(0)]
    for name in answers.names:
        if answers.form == "findings":
            file = read_file(FindingsFile, answers.files[name])
            kinds = classes or sorted({one.class_name for one in file.findings})
            found = detections_of(file, kinds, frame="LPS")
        else:
            found = answers.detections[name]
        boxes = found.boxes.astype(np.float64)
        cases += [name] * len(found)
        centres.append((boxes[:, :3] + boxes[:, 3:]) / 2)
        scores.append(found.scores.astype(np.float64))
    return MarkTable(tuple(cases), np.concatenate(centres), np.concatenate(scores))


def _folder(path: Path, *, trust_pickle: bool) -> Answers:
    pickles = sorted(path.glob(f"*{PICKLE_SUFFIX}"))
    if pickles:
        return Answers(path.name, "pickles", {}, read_pickles(pickles, trusted=trust_pickle))
    own: dict[str, dict[str, Path]] = {"voxray-findings/1": {}, "voxray-labels/1": {}}
    for file in sorted(path.glob("*.json")):
        data = _json(file)
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema in own:
            own[schema][str(data.get("case", file.stem))] = file
    findings, labels = own.values()
    if findings and labels:
        raise ConfigError(f"{path}: holds findings and label maps; give a folder of one kind of answer.")
    if findings or labels:
        return Answers(path.name, "findings" if findings else "labels", findings or labels, {})
    maps = map_files(path)
    if not maps:
        raise ConfigError(f"{path}: holds no answers; {_instead_of(path)}.")
    return Answers(path.name, "maps", maps, {})


def _instead_of(path: Path) -> str:
    """What to give in place of a folder without answers; a fold's lie with those of all folds."""
    folds = path.absolute().parent.parent
    if (path / EVALUATION).exists() and (folds / CROSSVAL).exists():
        return f"those of all folds are in {folds / ANSWERS}"
    return "give a run, or a folder of findings, pickles or label maps"


def _json(path: Path) -> Any:
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return read_mapping(path)


def _by_name(truth: Truth) -> Callable[[str], str | None]:
    return lambda name: name if name in truth.patients else None


def _by_image(truth: Truth) -> Callable[[str], str | None]:
    return truth.case_of


def _without_dots(truth: Truth) -> Callable[[str], str | None]:
    """nnDetection allows no dot in a case id; its users write underscores."""
    changed: dict[str, str] = {}
    for case_id in truth.patients:
        other = changed.setdefault(case_id.replace(".", "_"), case_id)
        if other != case_id:
            raise ConfigError(f"cases {other} and {case_id} are one where dots are underscores; rename one.")
    return lambda name: name if name in truth.patients else changed.get(name)


_NAMING: Mapping[Form, Callable[[Truth], Callable[[str], str | None]]] = {
    "findings": _by_name,
    "labels": _by_name,
    "maps": _by_name,
    "monai": _by_image,
    "pickles": _without_dots,
}


def _shape(grid: Grid) -> str:
    shape, spacing, origin = (
        " x ".join(f"{value:g}" for value in part) for part in (grid.shape, grid.spacing_mm, grid.origin_mm)
    )
    return f"{shape} voxels of {spacing} mm from {origin}"
