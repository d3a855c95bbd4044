"""Answers that lie in files: which form they have, and what they say of a case."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from voxray.core.alignment import SHIFT_VOX, arrangements, fit
from voxray.core.answer_json import FindingsFile, LabelsFile, detections_of, find_answer_file, read_file
from voxray.core.apart import Input
from voxray.core.config import read_mapping
from voxray.core.detections import Detections, boxes_to_world
from voxray.core.errors import ConfigError, DataError
from voxray.core.evaluation import EVALUATION
from voxray.core.task_name import TaskName
from voxray.core.text import first_few, on_disk, same
from voxray.dataset import CaseSource
from voxray.loading import scan_content
from voxray.readers import label_names, read_label_map
from voxray.results.class_names import Naming, incomparable, named_labels, read_labels, refuse_unknown
from voxray.scoring.foreign import PICKLE_SUFFIX, MarkTable, read_marks, read_monai, read_pickles
from voxray.scoring.foreign.checks import problem, read_text
from voxray.scoring.foreign.monai import is_monai, read_monai_names
from voxray.scoring.truth_files import CaseTruth, TruthSet, map_files
from voxray.training.crossval_folder import ANSWERS, CROSSVAL

AnswerFormat = Literal["findings", "labels", "maps", "monai", "pickles", "marks"]
OWN_FORMATS: tuple[AnswerFormat, ...] = ("findings", "labels")
MAP_FORMATS: tuple[AnswerFormat, ...] = ("labels", "maps")


@dataclass(frozen=True)
class Answers:
    """Answers of one form, by the name that their file gives the case; it can travel to workers."""

    name: str
    format: AnswerFormat
    files: Mapping[str, Path]
    """Findings, label indices or label maps, which are read case by case."""
    detections: Mapping[str, Detections]
    """What one file (or a folder of pickles) says of all cases, in LPS mm."""
    marks: MarkTable | None = None
    declared: Mapping[int, str] = field(default_factory=dict)
    """Class number -> name, where a file of detections says so."""

    @property
    def names(self) -> list[str]:
        """The names of the cases, as the answers have them."""
        return [*self.files, *self.detections]

    def inputs(self, path: Path) -> Iterator[Input]:
        """The files that were read from `path`, and those that will be."""
        yield Input(path, "the answers")
        for file in self.files.values():
            yield Input(file, "an answer")
            if self.format == "labels":
                yield Input(file.parent / read_file(LabelsFile, file).file, "an answer's label map")

    @property
    def task(self) -> TaskName:
        """Whose answers they are."""
        return "segmentation" if self.format in MAP_FORMATS else "detection"

    @property
    def is_segmentation(self) -> bool:
        """Whether they are label maps."""
        return self.format in MAP_FORMATS


def read_answers(path: Path, *, trust_pickle: bool) -> Answers:
    """The answers at `path`, told apart by what it holds."""
    path = on_disk(path)
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
        text = read_text(path)
        declared = read_monai_names(text, where=str(path))
        return Answers(path.stem, "monai", {}, read_monai(text, where=str(path)), declared=declared)
    raise ConfigError(
        f"{path}: is no form of answers that is known; give a LUNA16 .csv, MONAI's .json, nnDetection's "
        f"*{PICKLE_SUFFIX}, or a folder of voxray's answers or of label maps."
    )


def cases_of(answers: Answers, truth: TruthSet) -> tuple[dict[str, str], list[str]]:
    """Case -> the answers' name for it, and the names that are no case of the truth."""
    of_name = _NAMING[answers.format](truth)
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
        text = (
            f"{answers.name}: none of its cases ({first_few(unknown) or 'there are none'}) is one of {truth.name}'s"
        )
        raise problem("no_match", f"{text} ({first_few(list(truth.patients))}).", "Give the truth of the same scans.")
    return found, unknown


def naming_of(answers: Answers, truth: TruthSet, values: Mapping[int, str] | None) -> Naming:
    """What the numbers of the answers stand for; a ConfigError asks where nothing declares it.

    `values` is what ``--values`` says; findings and label indices of voxray's own name their classes themselves.
    """
    own = answers.format in OWN_FORMATS
    if values is not None and own and not truth.maps:
        raise ConfigError("--values: answers and truth name their classes themselves; leave it out.")
    if own:
        return Naming({})
    if values is not None:
        refuse_unknown(values, truth.classes)
        return Naming(values, is_given=True)
    if answers.format == "maps" and (truth.values is not None or any(map(label_names, answers.files.values()))):
        return Naming(truth.values or {}, truth.unlisted_is_background)
    declared = None if answers.format == "maps" else answers.declared or truth.indices
    if declared is not None:
        return Naming(declared)
    what = "label values" if answers.format == "maps" else "class numbers"
    raise ConfigError(
        f"{answers.name}: neither it nor {truth.name} declares what its {what} stand for; "
        f"say so: {_asked(answers, truth)}."
    )


def doubts_of(answers: Answers, name: str, source: CaseSource | None) -> tuple[str, ...]:
    """Why an answer of voxray's own may not be to the truth's scan, or not be what was written; others say nothing.

    It is scored all the same: a scan may have been converted since, and a label map mended by hand.
    """
    path = answers.files.get(name)
    file = find_answer_file(path) if path is not None and answers.format in OWN_FORMATS else None
    if path is None or file is None:
        return ()
    doubts = []
    if source is not None and file.scan is not None and file.scan.sha256 != scan_content(source):
        where = file.scan.path or "a scan"
        doubts.append(
            f"its answer is to other files ({where}) than {source.image} is now; see that both are one scan"
        )
    if isinstance(file, LabelsFile) and file.file_sha256 and not file.map_is_unchanged(path.parent):
        doubts.append(f"{file.file} is not the label map that was written with {path.name}; it is scored as it is")
    return tuple(doubts)


def detections_in(answers: Answers, name: str, naming: Naming, truth: TruthSet, case: CaseTruth) -> Detections:
    """The findings of a case in the frame of its truth."""
    if answers.format == "findings":
        return _own_detections(read_file(FindingsFile, answers.files[name]), truth, case)
    found = _renumbered(answers.detections[name], naming, truth.classes, name)
    if case.frame != "voxel":
        return found
    if case.grid is None:
        text = "the answers are in mm, the truth in voxels of a scan that is not given."
        raise incomparable("frame", text, "Give the truth in LPS mm, or a dataset with its scans.", case=name)
    return found.to_voxel(case.grid)


def labels_in(
    answers: Answers, name: str, naming: Naming, truth: TruthSet, case: CaseTruth
) -> UInt8[np.ndarray, "x y z"]:
    """The label map of a case with the truth's classes, on the truth's grid."""
    path = answers.files[name]
    assert case.grid is not None
    try:
        if answers.format == "labels":
            labels: UInt8[np.ndarray, "x y z"] = read_labels(path, truth.classes, case.grid, of="the truth").voxels
            return labels
        own = {} if naming.is_given else label_names(path)
        if set(own.values()) & set(truth.classes):
            naming = Naming(own, naming.unlisted_is_background)
        return named_labels(read_label_map(path), naming, truth.classes, case.grid, name=path.name)
    except DataError as error:
        raise error.of_case(name) from error


def _own_detections(file: FindingsFile, truth: TruthSet, case: CaseTruth) -> Detections:
    """The findings of voxray's own file: its voxels, where they are those of the truth's grid however stored."""
    if unknown := sorted({one.class_name for one in file.findings} - set(truth.classes)):
        text = f"class {unknown[0]!r} of its findings is none of the truth's ({', '.join(truth.classes[:5])})."
        remedy = "Score it against truth of its classes"
        remedy += ", or name the numbers of the truth's maps with --values." if truth.maps else "."
        raise incomparable("class", text, remedy, case=file.case)
    if case.frame != "voxel":
        return detections_of(file, truth.classes, frame="LPS")
    found = detections_of(file, truth.classes, frame="voxel")
    if case.grid is None or not len(found):
        return found
    world = detections_of(file, truth.classes, frame="LPS")
    boxes, tolerance_mm = found.boxes.astype(np.float64), SHIFT_VOX * min(case.grid.spacing_mm)
    for one in arrangements():
        scan = one.grid(case.grid)
        if np.abs(boxes_to_world(boxes, scan) - world.boxes).max() <= tolerance_mm:
            back = fit(scan, case.grid).arrangement
            return (
                found if back.is_identity else replace(found, boxes=back.boxes(boxes, scan.shape).astype(np.float32))
            )
    return world.to_voxel(case.grid)


def _renumbered(found: Detections, naming: Naming, classes: Sequence[str], name: str) -> Detections:
    """The findings with the truth's class indices; a number without a class is refused, not dropped."""
    index = {number: classes.index(kind) for number, kind in naming.names.items() if kind in classes}
    for number in np.unique(found.classes).tolist():
        if number not in index:
            count, kind = int((found.classes == number).sum()), naming.names.get(number)
            what = f"is {kind!r}, which" if kind else f"of {count} findings"
            text = f"class {number} {what} is none of the {len(classes)} ({', '.join(classes[:5])})."
            raise incomparable("class", text, "Say which class each number is (--values 0=NAME,1=NAME).", case=name)
    table = np.array([index[number] for number in found.classes.tolist()], np.int64)
    return replace(found, classes=table)


def _asked(answers: Answers, truth: TruthSet) -> str:
    first = int(answers.format == "maps")
    return f"--values {first}=NAME,{first + 1}=NAME with the names {first_few(list(truth.classes))}"


def marks_of(answers: Answers, classes: Sequence[str] | None = None) -> MarkTable:
    """All findings as marks: the centre of each box in LPS mm, and its score."""
    if answers.marks is not None:
        return answers.marks
    if answers.is_segmentation:
        raise ConfigError(f"{answers.name}: label maps have no scores, so there is no FROC; give detections.")
    cases, centres, scores = [], [np.zeros((0, 3))], [np.zeros(0)]
    for name in answers.names:
        if answers.format == "findings":
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


def _by_name(truth: TruthSet) -> Callable[[str], str | None]:
    return lambda name: same(name) if same(name) in truth.patients else None


def _by_image(truth: TruthSet) -> Callable[[str], str | None]:
    return truth.case_of


def _without_dots(truth: TruthSet) -> Callable[[str], str | None]:
    """nnDetection allows no dot in a case id; its users write underscores."""
    changed: dict[str, str] = {}
    for case_id in truth.patients:
        other = changed.setdefault(case_id.replace(".", "_"), case_id)
        if other != case_id:
            raise ConfigError(f"cases {other} and {case_id} are one where dots are underscores; rename one.")
    return lambda name: same(name) if same(name) in truth.patients else changed.get(same(name))


_NAMING: Mapping[AnswerFormat, Callable[[TruthSet], Callable[[str], str | None]]] = {
    "findings": _by_name,
    "labels": _by_name,
    "maps": _by_name,
    "monai": _by_image,
    "pickles": _without_dots,
}
