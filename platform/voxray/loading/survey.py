"""Which cases a dataset holds, and every problem that shows before a voxel is read."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from voxray.annotations.object_tables import (
    BoxFile,
    Spheres,
    read_boxes_csv,
    read_boxes_json,
    read_monai_json,
    read_spheres_by_case,
    read_spheres_csv,
)
from voxray.core.addresses import local_path
from voxray.core.errors import ConfigError, DataError
from voxray.core.staging import text_at
from voxray.core.storage import Place
from voxray.core.text import TextError, first_few, on_disk, same, spellings
from voxray.dataset import Dataset
from voxray.dataset.paths import fill
from voxray.dataset.source import BoxTruth, CaseSource, MapTruth
from voxray.dataset.truth import (
    BoxesCsv,
    BoxesJson,
    BoxTable,
    Instances,
    LabelMaps,
    MaskFolder,
    MonaiJson,
    Msd,
    SpheresCsv,
)
from voxray.loading.listing import names_matching
from voxray.loading.msd import read_msd

_REPORTED_ONLY = "annotations.no_image"


@dataclass(frozen=True)
class Survey:
    """The cases in the order of their ids, and all problems found so far."""

    cases: tuple[CaseSource, ...]
    problems: tuple[DataError, ...]


def list_cases(dataset: Dataset) -> list[CaseSource]:
    """The dataset's cases in the order of their ids; raises where the dataset as a whole cannot be used.

    Rows of cases that have no image are no reason to: `voxray check` reports them.
    """
    found = survey(dataset)
    fatal = [problem for problem in found.problems if problem.code != _REPORTED_ONLY]
    if fatal:
        first = fatal[0]
        more = f" ({len(fatal) - 1} more problems; voxray check lists all.)" if len(fatal) > 1 else ""
        raise DataError(first.code, first.message, remedy=first.remedy + more, case_id=first.case_id)
    return list(found.cases)


def survey(dataset: Dataset) -> Survey:
    """The cases and the problems of images, patients and annotation files; no voxel is read."""
    problems: list[DataError] = []
    images = _find_images(dataset, problems)
    unknown = sorted(set(dataset.exclude) - set(images))
    if unknown:
        raise ConfigError(f"exclude: {', '.join(unknown[:3])}: no such case; there are {first_few(sorted(images))}.")
    images = {case_id: path for case_id, path in images.items() if case_id not in dataset.exclude}
    patients = _patients(dataset, images, problems)
    boxes = _boxes(dataset, images, problems)
    maps = _maps(dataset, images, patients, problems)
    cases = [
        CaseSource(
            case_id=case_id,
            patient_id=patients[case_id],
            image=images[case_id],
            boxes=None if boxes is None else boxes.get(case_id, BoxTruth.empty("LPS")),
            maps=None if maps is None else maps.get(case_id),
            accept_values=dataset.images.accept_values,
        )
        for case_id in sorted(images)
    ]
    return Survey(tuple(cases), tuple(problems))


def read_excluded(dataset: Dataset) -> dict[str, Spheres]:
    """The findings that the dataset's evaluation leaves out, by case id; empty where it names no file of them."""
    for annotation in dataset.annotations:
        if isinstance(annotation, SpheresCsv) and annotation.excluded_file is not None:
            text = same(_read_text(annotation.excluded_file, "annotations.excluded_file"))
            return read_spheres_by_case(text, annotation, where=annotation.excluded_file)
    return {}


def _find_images(dataset: Dataset, problems: list[DataError]) -> dict[str, str]:
    """Case id -> the image's path or address."""
    root, names = _image_names(dataset)
    found: dict[str, str] = {}
    for relative in names:
        case_id = dataset.images.case_id_of(relative)
        if not case_id or "/" in case_id:
            text = f"images.case_id finds {'an id with a slash' if case_id else 'no id'} in '{relative}'."
            problems.append(DataError("dataset.case_id", text, remedy="Mend the pattern, or narrow images.glob."))
        elif case_id in found:
            text = f"'{found[case_id]}' and '{relative}' have one id."
            remedy = "Give images.case_id a pattern that tells them apart, or delete one."
            problems.append(DataError("dataset.duplicate_case", text, remedy=remedy, case_id=case_id))
        else:
            found[case_id] = relative
    if not found and not problems:
        text = f"no image below {root} matches {', '.join(dataset.images.glob)}."
        problems.append(DataError("dataset.no_images", text, remedy="Mend root or images.glob."))
    return {case_id: f"{root}/{relative}" for case_id, relative in found.items()}


def _image_names(dataset: Dataset) -> tuple[str, list[str]]:
    """The dataset's folder, and the images' paths below it."""
    if local_path(dataset.root) is None:
        names = names_matching(dataset.root, dataset.images.glob)
        if not names and not Place.of(dataset.root).exists("."):
            raise ConfigError(
                f"root: {dataset.root}: no such folder; mend root in the dataset's file, or give --root DIR."
            )
        return dataset.root.rstrip("/"), names
    root = on_disk(Path(dataset.root))
    if not root.is_dir():
        raise ConfigError(f"root: {root}: no such folder; mend root in the dataset's file, or give --root DIR.")
    return str(root).rstrip("/"), [path.relative_to(root).as_posix() for path in _matches(root, dataset.images.glob)]


def _matches(root: Path, patterns: Sequence[str]) -> list[Path]:
    """What the patterns find, each path once; hidden files, such as macOS's ``._scan.nii.gz``, are left out."""
    try:
        paths = {path for pattern in patterns for spelled in spellings(pattern) for path in root.glob(spelled)}
    except (NotImplementedError, ValueError) as error:
        raise ConfigError(f"images.glob: {', '.join(patterns)}: {error}; give patterns relative to root.") from None
    return sorted(path for path in paths if not any(part[0] == "." for part in path.relative_to(root).parts))


def _patients(dataset: Dataset, images: Mapping[str, str], problems: list[DataError]) -> dict[str, str]:
    rule = dataset.patients
    if rule is None:
        return {case_id: case_id for case_id in images}
    table = _patient_table(dataset) if rule.file is not None else {}
    result = {}
    for case_id in images:
        patient = table.get(case_id) if rule.file is not None else rule.patient_of(case_id)
        if not patient:
            how = (
                f"{rule.file} has no row of it" if rule.file is not None else "patients.pattern does not match its id"
            )
            remedy = "Every case needs a patient, so that no patient is on two sides of a fold."
            problems.append(DataError("patients.missing", f"{how}.", remedy=remedy, case_id=case_id))
        result[case_id] = patient or case_id
    return result


def _patient_table(dataset: Dataset) -> dict[str, str]:
    rule = dataset.patients
    assert rule is not None
    assert rule.file is not None
    text = same(_read_text(rule.file, "patients.file"))
    rows = csv.DictReader(text.splitlines(), delimiter=rule.delimiter)
    for column in (rule.case_column, rule.patient_column):
        if column not in (rows.fieldnames or ()):
            found = ", ".join(rows.fieldnames or ()) or "nothing"
            raise ConfigError(f"patients: {rule.file} has no column '{column}'; found {found}.")
    return {(row[rule.case_column] or "").strip(): (row[rule.patient_column] or "").strip() for row in rows}


def _boxes(dataset: Dataset, images: Mapping[str, str], problems: list[DataError]) -> dict[str, BoxTruth] | None:
    for annotation in dataset.annotations:
        if isinstance(annotation, BoxTable):
            try:
                table = _read_table(dataset, annotation)
            except DataError as error:
                problems.append(error)
                return {}
            problems.extend(table.problems)
            known = [*images, *dataset.exclude]
            _report_absent(table.boxes, known, annotation.file, problems, ignore=annotation.absent_images == "ignore")
            return table.boxes
    return None


def _read_table(dataset: Dataset, annotation: BoxTable) -> BoxFile:
    text = same(_read_text(annotation.file, "annotations.file"))
    classes, where = dataset.classes, annotation.file
    match annotation:
        case SpheresCsv():
            return read_spheres_csv(text, annotation, classes, where=where)
        case MonaiJson():
            case_id_of = dataset.images.case_id_of
            return read_monai_json(text, annotation, classes, case_id_of=case_id_of, where=where)
        case BoxesCsv():
            return read_boxes_csv(text, annotation, classes, where=where)
        case _:
            assert isinstance(annotation, BoxesJson)
            return read_boxes_json(text, classes, where=where)


def _report_absent(
    table: Mapping[str, object], known: Sequence[str], file: str, problems: list[DataError], *, ignore: bool
) -> None:
    """Rows whose case has no image: told once for all; where no row has one, the ids do not fit at all."""
    absent = sorted(set(table) - set(known))
    if absent and len(absent) == len(table) and known:
        text = (
            f"{file}: none of its cases ({first_few(absent)}) is one of the dataset's ({first_few(sorted(known))})."
        )
        remedy = "Mend images.case_id, so that ids agree with the table's."
        problems.append(DataError("annotations.no_match", text, remedy=remedy))
    elif absent and not ignore:
        text = f"{file}: has rows of {len(absent)} cases without an image: {first_few(absent)}."
        remedy = "Add the images, or set annotations.absent_images = 'ignore'."
        problems.append(DataError(_REPORTED_ONLY, text, remedy=remedy))


def _maps(
    dataset: Dataset, images: Mapping[str, str], patients: Mapping[str, str], problems: list[DataError]
) -> dict[str, MapTruth] | None:
    for annotation in dataset.annotations:
        if isinstance(annotation, Msd):
            text = _read_text(annotation.file, "annotations.file")
            try:
                listed = read_msd(text, annotation, dataset)
            except DataError as error:
                problems.append(error)
                return {}
            _report_absent(listed, [*images, *dataset.exclude], annotation.file, problems, ignore=False)
            return listed
        if isinstance(annotation, LabelMaps | MaskFolder | Instances):
            return {case_id: _map_truth(dataset, annotation, case_id, patients[case_id]) for case_id in images}
    return None


def _map_truth(
    dataset: Dataset, annotation: LabelMaps | MaskFolder | Instances, case_id: str, patient: str
) -> MapTruth:
    file = fill(annotation.file, case=case_id, patient=patient)
    if isinstance(annotation, Instances):
        template = annotation.classes_file
        return MapTruth(
            file, classes_file=None if template is None else fill(template, case=case_id, patient=patient)
        )
    if isinstance(annotation, LabelMaps):
        return MapTruth(file, names=annotation.values or dict(enumerate(dataset.classes, start=1)))
    return MapTruth(file)


def _read_text(file: str, field: str) -> str:
    try:
        return text_at(file)
    except FileNotFoundError:
        raise ConfigError(f"{field}: {file}: no such file; mend the path, which is relative to root.") from None
    except (OSError, TextError) as error:
        raise ConfigError(f"{field}: {file} cannot be read ({error}); give a UTF-8 text file.") from None
