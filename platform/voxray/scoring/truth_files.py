"""The truth that answers are scored against: a dataset's, a folder of label maps, or a JSON of boxes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from voxray.annotations.maps import component_boxes, value_counts
from voxray.annotations.object_tables import Spheres, read_boxes_json, read_spheres_by_case
from voxray.annotations.placing import place_boxes
from voxray.core.addresses import Location
from voxray.core.apart import Input
from voxray.core.config import read_mapping
from voxray.core.detections import Frame
from voxray.core.errors import ConfigError, DataError
from voxray.core.task_name import TaskName
from voxray.core.text import on_disk
from voxray.core.volume import Grid
from voxray.core.working_copy import local_file
from voxray.dataset import BoxTruth, CaseSource, Dataset, read_dataset
from voxray.dataset.naming import listed
from voxray.dataset.paths import file_stem
from voxray.dataset.truth import Instances, LabelMaps, MonaiJson, Msd, SpheresCsv
from voxray.loading import list_cases, load_case
from voxray.loading.at_hand import volume_at_hand
from voxray.loading.inputs import dataset_inputs
from voxray.loading.survey import read_excluded
from voxray.readers import READERS, describe, read_label_map
from voxray.results.class_names import Naming, named_labels
from voxray.scoring.foreign.checks import read_text
from voxray.scoring.foreign.monai import read_monai_names
from voxray.scoring.luna16_official import Luna16Truth, is_luna16_folder, read_truth_folder

MAX_LABEL = 255


@dataclass(frozen=True)
class TruthSet:
    """Cases whose truth is known, and how it is read; it can travel to workers."""

    name: str
    classes: tuple[str, ...]
    patients: Mapping[str, str]
    """Case -> patient."""
    dataset: Dataset | None = None
    sources: Mapping[str, CaseSource] = field(default_factory=dict)
    maps: Mapping[str, Path] = field(default_factory=dict)
    boxes: Mapping[str, BoxTruth] = field(default_factory=dict)
    values: Mapping[int, str] | None = None
    """Label value -> name, as the truth declares it; None where it has no such numbers."""
    unlisted_is_background: bool = False
    """Whether the dataset says so of values without a class."""
    indices: Mapping[int, str] | None = None
    """Class index from 0 -> name, as the truth declares it of boxes; None where it has no such numbers."""

    @property
    def has_labels(self) -> bool:
        """Whether label maps can be scored against it."""
        return bool(self.maps) or any(source.maps is not None for source in self.sources.values())

    def case_of(self, path: str) -> str | None:
        """The case of an image's path, as the dataset names cases or by the file's name; None for none of these."""
        names = [file_stem(path)]
        if self.dataset is not None:
            names.insert(0, self.dataset.images.case_id_of(path) or "")
        return next((name for name in names if name in self.patients), None)


@dataclass(frozen=True)
class CaseTruth:
    """The objects of one case in `frame`, and where there is one its label map on its grid."""

    boxes: Float64[np.ndarray, "n 6"]
    classes: Int64[np.ndarray, " n"]
    frame: Frame
    grid: Grid | None = None
    labels: UInt8[np.ndarray, "x y z"] | None = None
    warnings: tuple[str, ...] = ()
    """What is worth knowing of the files that it was read from."""


def read_truth(
    path: Path,
    *,
    root: Location | None = None,
    values: Mapping[int, str] | None = None,
    task: TaskName = "detection",
) -> TruthSet:
    """The truth at `path`, told apart by what it is; `values` names the numbers of label maps in a folder."""
    path = on_disk(path)
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder; give a dataset's file, or a folder or file of truth.")
    if path.is_dir():
        return _folder(path, values)
    if path.suffix == ".json" and "boxes" in read_mapping(path):
        return _box_file(path)
    if path.suffix not in (".toml", ".json"):
        raise ConfigError(
            f"{path}: is no truth; give a dataset's .toml file, a folder of label maps, or a .json of boxes."
        )
    dataset = read_dataset(path, root=root).for_task(task)
    sources = {source.case_id: source for source in list_cases(dataset)}
    patients = {case_id: source.patient_id for case_id, source in sources.items()}
    truth = TruthSet(dataset.name, dataset.classes, patients, dataset=dataset, sources=sources)
    return replace(truth, **_numbers_of(dataset, sources))


def truth_inputs(truth: Path, *, root: Location | None) -> Iterator[Input]:
    """The files of the truth: a dataset's, those of a folder, or the one file."""
    yield Input(truth, "the truth")
    if truth.is_dir():
        yield from (Input(path, "a file of the truth") for path in chain(truth.glob("*"), truth.glob("*/*")))
    elif (data := _as_dataset(truth, root)) is not None:
        yield from dataset_inputs(data)


def read_luna16_truth(path: Path, *, root: Location | None = None) -> Luna16Truth:
    """The official truth: a folder of LUNA16's files, or a dataset that names annotations of that form."""
    if is_luna16_folder(path):
        return read_truth_folder(path)
    dataset = read_dataset(path, root=root) if path.suffix in (".toml", ".json") else None
    table = next((one for one in dataset.annotations if isinstance(one, SpheresCsv)), None) if dataset else None
    if dataset is None or table is None or len(dataset.classes) > 1:
        raise ConfigError(
            f"{path}: is no truth for LUNA16's rules; give a folder with annotations.csv, annotations_excluded.csv "
            f"and seriesuids.csv, or a dataset's file with annotations of kind spheres_csv and one class."
        )
    included: dict[str, Spheres] = read_spheres_by_case(_table_text(table.file), table, where=table.file)
    cases = tuple(source.case_id for source in list_cases(dataset))
    return Luna16Truth(dataset.name, cases, included, read_excluded(dataset))


def case_truth(truth: TruthSet, case_id: str, *, with_labels: bool) -> CaseTruth:
    """What is true of one case; a DataError where its files cannot be read."""
    if case_id in truth.boxes:
        known = truth.boxes[case_id]
        return CaseTruth(known.boxes, known.classes, known.frame)
    if case_id in truth.maps:
        return _of_map(truth.maps[case_id], truth)
    assert truth.dataset is not None
    source = truth.sources[case_id]
    if source.boxes is not None and not with_labels:
        return _of_table(truth.dataset, source, source.boxes)
    # No network sees the image here: what its values are is told, and keeps no answer from being scored.
    case = load_case(truth.dataset, replace(source, accept_values=True))
    if with_labels and case.labels is None:
        raise ConfigError(f"case {case_id} has no label map; label maps are scored on label maps.")
    return CaseTruth(case.boxes, case.classes, "voxel", case.image.grid, case.labels, case.warnings)


def map_files(folder: Path) -> dict[str, Path]:
    """Case -> its label map, of every volume file in the folder or one below.

    Slicer's ``.seg`` and MONAI's ``_trans`` are taken off the names.
    """
    found: dict[str, Path] = {}
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        if not path.is_file() or path.name.startswith(".") or not path.name.lower().endswith(_MAPS):
            continue
        case_id = file_stem(path).removesuffix(".seg").removesuffix("_trans")
        if case_id in found:
            raise ConfigError(
                f"{folder}: {found[case_id].name} and {path.name} are both of case {case_id}; keep one."
            )
        found[case_id] = path
    return found


_MAPS = tuple(suffix for suffix in READERS if suffix.startswith((".nii", ".mh", ".nrrd", ".nhdr")))


def _numbers_of(dataset: Dataset, sources: Mapping[str, CaseSource]) -> dict[str, Any]:
    """The fields of `Truth` that say what numbers stand for, from the annotations that hold numbers."""
    only = dataset.classes if len(dataset.classes) == 1 else ()
    found: dict[str, Any] = {"values": dict(enumerate(only, 1)) or None, "indices": dict(enumerate(only)) or None}
    for annotation in dataset.annotations:
        if isinstance(annotation, LabelMaps | Msd):
            names = [source.maps.names for source in sources.values() if source.maps is not None]
            found["values"] = names[0] if names else None
            found["unlisted_is_background"] = annotation.unlisted == "background"
        if isinstance(annotation, MonaiJson | Instances):
            declared = _declared_in(annotation.file) if isinstance(annotation, MonaiJson) else {}
            found["indices"] = annotation.values or declared or dict(enumerate(dataset.classes))
    return found


def _declared_in(file: str) -> Mapping[int, str]:
    """What a data list of MONAI's says that its labels stand for."""
    return read_monai_names(_table_text(file), where=file)


def _table_text(file: str) -> str:
    with local_file(file) as path:
        return read_text(path)


def _as_dataset(truth: Path, root: Location | None) -> Dataset | None:
    if truth.suffix not in (".toml", ".json") or "boxes" in read_mapping(truth):
        return None
    return read_dataset(truth, root=root)


def _folder(path: Path, names: Mapping[int, str] | None) -> TruthSet:
    files = map_files(path)
    if not files:
        raise ConfigError(f"{path}: holds no label map; give a folder of .nii.gz files named by case, or a dataset.")
    values = _values_in(list(files.values()))
    highest = max(values)
    if highest == 0 or (names is None and highest > MAX_LABEL):
        raise ConfigError(
            f"{path}: label maps must hold values from 1 to {MAX_LABEL}, the highest here is {highest}."
        )
    names = names or {value: str(value) for value in range(1, highest + 1)}
    if unnamed := sorted(values - {0, *names}):
        raise ConfigError(
            f"{path}: holds {', '.join(map(str, unnamed[:6]))}{', ...' if len(unnamed) > 6 else ''}, which --values "
            f"{listed(names)} does not name; name every value of the truth."
        )
    classes = tuple(dict.fromkeys(names[value] for value in sorted(names) if value > 0))
    indices = {0: classes[0]} if len(classes) == 1 else None
    patients = {case_id: case_id for case_id in files}
    return TruthSet(path.name, classes, patients, maps=files, values=names, indices=indices)


def _values_in(files: Sequence[Path]) -> set[int]:
    """Every value of the maps; one that cannot be read is its own case's fault, unless none can."""
    values: set[int] = set()
    refused: list[DataError] = []
    for file in files:
        try:
            values |= set(np.flatnonzero(value_counts(read_label_map(file).voxels)).tolist())
        except DataError as error:
            refused.append(error)
    if len(refused) == len(files):
        raise refused[0]
    return values


def _box_file(path: Path) -> TruthSet:
    """``{"frame", "boxes": [...], "cases": [...]}``; `cases` names those without an object too."""
    text = read_text(path)
    data = json.loads(text)
    named = [str(item.get("class")) for item in data["boxes"] if isinstance(item, dict)] if data["boxes"] else []
    declared = isinstance(data.get("classes"), list)
    classes = _declared_classes(data["classes"], path) if declared else tuple(sorted(set(named)))
    table = read_boxes_json(text, classes, where=str(path))
    if table.problems:
        raise table.problems[0]
    every = dict.fromkeys([*map(str, data.get("cases", ())), *table.boxes])
    if not every or not classes:
        raise ConfigError(f"{path}: has no box, so nothing can be scored; name cases and classes beside the boxes.")
    boxes = {case_id: table.boxes.get(case_id, BoxTruth.empty(data["frame"])) for case_id in every}
    indices = dict(enumerate(classes)) if declared or len(classes) == 1 else None
    return TruthSet(path.stem, classes, {case_id: case_id for case_id in every}, boxes=boxes, indices=indices)


def _declared_classes(names: Sequence[Any], path: Path) -> tuple[str, ...]:
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ConfigError(f"{path}: classes must be names that differ, got {', '.join(map(str, names[:5]))}.")
    return tuple(names)


def _of_map(file: Path, truth: TruthSet) -> CaseTruth:
    assert truth.values is not None
    volume = read_label_map(file)
    labels = named_labels(volume, Naming(truth.values), truth.classes, volume.grid, name=file.name)
    boxes, classes = component_boxes(labels, spacing_mm=volume.grid.spacing_mm, min_object_mm3=0.0)
    warnings = tuple(f"{file.name}: {text}" for text in volume.warnings)
    return CaseTruth(boxes, classes, "voxel", volume.grid, labels, warnings)


def _of_table(dataset: Dataset, source: CaseSource, known: BoxTruth) -> CaseTruth:
    """Boxes of a table on their scan's grid, of which only the header is read."""
    try:
        with volume_at_hand(source.image) as image:
            info = describe(image)
    except DataError as error:
        raise error.of_case(source.case_id) from error
    grid = Grid(info.shape, info.spacing_mm, info.origin_mm, info.direction)
    boxes, problems = place_boxes(known, grid, dataset.classes, overhang_vox=dataset.overhang_vox)
    if problems:
        raise problems[0].of_case(source.case_id)
    return CaseTruth(boxes, known.classes, "voxel", grid, warnings=info.warnings)
