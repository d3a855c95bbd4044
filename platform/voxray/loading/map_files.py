"""The label maps, masks and instance maps of one case, checked against its image."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from voxray.annotations.maps import (
    NO_VOXEL,
    components,
    instance_boxes,
    instance_classes,
    labels_by_name,
    labels_of_masks,
    value_counts,
)
from voxray.core.alignment import put_on
from voxray.core.errors import DataError
from voxray.core.text import TextError, on_disk, read_text, same
from voxray.core.volume import Grid, Volume
from voxray.dataset import Dataset
from voxray.dataset.naming import listed, names_of_map
from voxray.dataset.source import CaseSource, MapTruth
from voxray.dataset.truth import Instances, LabelMaps, MaskFolder, Msd
from voxray.readers import label_names, read_label_map

T = TypeVar("T")

_MAPS_REMEDY = "Add the file, mend annotations.file, or exclude the case."


@dataclass
class CaseAnnotations:
    """What the files of one case say, as far as they could be read: boxes in edge voxels, and labels."""

    boxes: Float64[np.ndarray, "n 6"] = field(default_factory=lambda: np.zeros((0, 6)))
    classes: Int64[np.ndarray, " n"] = field(default_factory=lambda: np.zeros(0, np.int64))
    labels: UInt8[np.ndarray, "x y z"] | None = None
    problems: list[DataError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    """What is worth knowing of the files, though they were read; each names its file."""


def read_maps(dataset: Dataset, source: CaseSource, grid: Grid | None) -> CaseAnnotations:
    """The truth that the case's label maps give; `grid` is its image's, or None where that could not be read."""
    truth = CaseAnnotations()
    objects = source.boxes is None
    for annotation in dataset.annotations:
        match annotation:
            case LabelMaps() | Msd():
                _read_labels(dataset, annotation, source, grid, truth)
            case MaskFolder():
                _read_masks(dataset, annotation, source, grid, truth)
            case Instances():
                _read_instances(dataset, annotation, source, grid, truth)
            case _:
                continue
        if objects and not isinstance(annotation, Instances) and annotation.objects == "components":
            _add_components(truth, grid, annotation.min_object_mm3)
    return truth


def value_or_problem(problems: list[DataError], function: Callable[..., T], *arguments: Any) -> T | None:
    """The function's value, or None with its DataError among the problems."""
    try:
        return function(*arguments)
    except DataError as error:
        problems.append(error)
        return None


def _read_labels(
    dataset: Dataset, config: LabelMaps | Msd, source: CaseSource, grid: Grid | None, truth: CaseAnnotations
) -> None:
    if source.maps is None:
        text = "the annotation file gives its image no label map."
        truth.problems.append(DataError("labels.missing", text, remedy="Add an entry, or exclude the case."))
        return
    volume = _read_map(
        source.maps.file, grid, truth, absent=config.absent if isinstance(config, LabelMaps) else "refuse"
    )
    names = _names(dataset, config, source.maps, truth)
    if volume is not None and names is not None:
        truth.labels, found = labels_by_name(
            volume.voxels,
            names,
            dataset.classes,
            unlisted_is_background=config.unlisted == "background",
            where=Path(source.maps.file).name,
        )
        truth.problems += found


def _names(
    dataset: Dataset, config: LabelMaps | Msd, maps: MapTruth, truth: CaseAnnotations
) -> Mapping[int, str] | None:
    """Value -> class name, as the dataset or else the map's file declares it; None, and a problem, where unclear."""
    if isinstance(config, Msd) or config.values is not None:
        return maps.names
    own = label_names(Path(maps.file))
    names = names_of_map(own, dataset.classes)
    if names is None:
        text = f"{Path(maps.file).name}: its segments ({listed(own)}) are no classes of the dataset."
        remedy = "Say which class each value is, in annotations.values."
        truth.problems.append(DataError("labels.names", text, remedy=remedy))
    return names


def _read_instances(
    dataset: Dataset, config: Instances, source: CaseSource, grid: Grid | None, truth: CaseAnnotations
) -> None:
    assert source.maps is not None
    volume = _read_map(source.maps.file, grid, truth, absent=config.absent)
    if volume is None:
        return
    name = Path(source.maps.file).name
    if source.maps.classes_file is None or not on_disk(Path(source.maps.file)).exists():
        truth.labels = _binary(volume, name, truth.problems).astype(np.uint8)
        _add_components(truth, volume.grid, config.min_object_mm3)
        return
    class_of = value_or_problem(
        truth.problems, _read_classes, source.maps.classes_file, dataset.classes, config.values
    )
    if class_of is not None:
        truth.labels, truth.boxes, truth.classes, found = instance_boxes(volume.voxels, class_of, where=name)
        for problem in found:
            if problem.code == NO_VOXEL and config.without_voxels == "ignore":
                truth.warnings.append(problem.message)
            else:
                truth.problems.append(problem)


def _read_masks(
    dataset: Dataset, config: MaskFolder, source: CaseSource, grid: Grid | None, truth: CaseAnnotations
) -> None:
    assert source.maps is not None
    there = mask_files(source.maps.file)
    unlisted = sorted(set(there) - set(dataset.classes))
    if not there or (len(unlisted) == len(there)):
        text = f"no mask of any class matches {source.maps.file}."
        truth.problems.append(DataError("labels.missing", text, remedy=_MAPS_REMEDY))
        return
    if unlisted and config.unlisted == "refuse":
        more = f" and {len(unlisted) - 5} more" if len(unlisted) > 5 else ""
        text = f"masks of no class of the dataset: {', '.join(unlisted[:5])}{more}."
        remedy = "Add them to classes, or set annotations.unlisted = 'background'."
        truth.problems.append(DataError("labels.unlisted", text, remedy=remedy))
    names = [name for name in dataset.classes if name in there]
    if grid is None:
        for _ in _masks(there, names, None, truth):
            pass
        return
    truth.labels, found = labels_of_masks(
        _masks(there, names, grid, truth),
        dataset.classes,
        grid.shape,
        first_wins=config.overlaps == "first",
        where=Path(source.maps.file).parent.name,
    )
    truth.problems += found


def _masks(
    files: dict[str, Path], names: list[str], grid: Grid | None, truth: CaseAnnotations
) -> Iterator[tuple[str, Bool[np.ndarray, "x y z"]]]:
    """Each mask that lies on the image's grid, read one at a time."""
    for name in names:
        before = len(truth.problems)
        volume = _read_map(str(files[name]), grid, truth, absent="refuse")
        if volume is not None and len(truth.problems) == before:
            yield name, _binary(volume, files[name].name, truth.problems)


def mask_files(template: str) -> dict[str, Path]:
    """Class name -> its mask, for every file that the template fits."""
    folder = on_disk(Path(template).parent)
    return dict(sorted(fitting(template, folder.glob("*")).items())) if folder.is_dir() else {}


def fitting(template: str, files: Iterable[Path]) -> dict[str, Path]:
    """Class name -> its mask, for each of the files whose name the template's last part fits."""
    head, _, tail = (same(part) for part in Path(template).name.partition("{class}"))
    named = {same(file.name): file for file in files}
    return {name[len(head) : len(name) - len(tail)]: file for name, file in named.items() if _fits(name, head, tail)}


def _fits(name: str, head: str, tail: str) -> bool:
    return not name.startswith(".") and name.startswith(head) and name.endswith(tail) and len(name) > len(head + tail)


def _read_map(file: str, grid: Grid | None, truth: CaseAnnotations, *, absent: str) -> Volume | None:
    """The map on the image's grid; an absent one is a problem, or an empty map where that is allowed."""
    if not on_disk(Path(file)).exists():
        if absent == "empty":
            return None if grid is None else Volume(np.zeros(grid.shape, np.uint8), grid)
        truth.problems.append(DataError("labels.missing", f"{file}: no such file.", remedy=_MAPS_REMEDY))
        return None
    volume = value_or_problem(truth.problems, read_label_map, Path(file))
    truth.warnings += [] if volume is None else [f"{Path(file).name}: {text}" for text in volume.warnings]
    if volume is not None and grid is not None:
        return value_or_problem(truth.problems, partial(put_on, volume, grid, name=Path(file).name)) or volume
    return volume


def _binary(volume: Volume, name: str, problems: list[DataError]) -> Bool[np.ndarray, "x y z"]:
    mask: Bool[np.ndarray, "x y z"] = volume.voxels > 0
    if np.count_nonzero(volume.voxels == volume.voxels.max()) < np.count_nonzero(mask):
        values = ", ".join(str(value) for value in np.flatnonzero(value_counts(volume.voxels))[:6])
        text = f"{name} must be a mask of one object class, got the values {values}."
        remedy = "Use the kind 'labels' for maps of several values, or give classes_file for instances."
        problems.append(DataError("labels.not_binary", text, remedy=remedy))
    return mask


def _add_components(truth: CaseAnnotations, grid: Grid | None, min_object_mm3: float) -> None:
    if truth.labels is not None and grid is not None:
        boxes, classes, volumes_mm3 = components(truth.labels, spacing_mm=grid.spacing_mm)
        kept = volumes_mm3 >= min_object_mm3
        truth.boxes, truth.classes = boxes[kept], classes[kept]
        if number := int((~kept).sum()):
            what = f"{number} component{'s' * (number != 1)} ({volumes_mm3[~kept].sum():.3g} mm3 in all)"
            truth.warnings.append(f"{what} below min_object_mm3 {min_object_mm3:g}: no object for a detection.")


def _read_classes(file: str, classes: tuple[str, ...], names: Mapping[int, str] | None) -> dict[int, int]:
    try:
        data = json.loads(same(read_text(Path(file))))
    except FileNotFoundError:
        raise DataError("instances.missing", f"{file}: no such file.", remedy=_MAPS_REMEDY) from None
    except (OSError, TextError, json.JSONDecodeError) as error:
        text = f"{file}: cannot be read: {error}."
        raise DataError("instances.form", text, remedy="Give a JSON file.") from None
    return instance_classes(data, classes, where=Path(file).name, names=names)
