"""Label maps, masks and instance maps to one label map, and to the boxes of their objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped, UInt8
from scipy import ndimage

from voxray.core.errors import DataError
from voxray.core.volume import Vector

Voxels = Shaped[np.ndarray, "x y z"]
LabelMap = UInt8[np.ndarray, "x y z"]
_Boxes = Float64[np.ndarray, "n 6"]
Classes = Int64[np.ndarray, " n"]

NO_VOXEL = "instances.absent"
"""The problem of an instance that its map does not show."""

_FULL_NEIGHBOURHOOD = np.ones((3, 3, 3), dtype=bool)


def value_counts(voxels: Voxels) -> Int64[np.ndarray, " v"]:
    """How many voxels have each value, from 0 to the largest; for an unsigned type of at most 16 bits."""
    assert voxels.dtype in (np.uint8, np.uint16, np.bool_), voxels.dtype
    flat = voxels.ravel(order="K")
    counts = np.zeros(2 if voxels.dtype == np.bool_ else np.iinfo(voxels.dtype).max + 1, dtype=np.int64)
    for begin in range(0, flat.size, 1 << 22):
        counts += np.bincount(flat[begin : begin + (1 << 22)], minlength=len(counts))
    filled = np.flatnonzero(counts)
    return counts[: int(filled[-1]) + 1 if len(filled) else 1]


def labels_by_name(
    voxels: Voxels, names: Mapping[int, str], classes: Sequence[str], *, unlisted_is_background: bool, where: str
) -> tuple[LabelMap, list[DataError]]:
    """A label map whose value k is class k - 1; values that name no class become background, or problems."""
    counts = value_counts(voxels)
    table = np.zeros(len(counts), dtype=np.uint8)
    problems = []
    for value in (int(v) for v in np.flatnonzero(counts) if v > 0):
        name = names.get(value)
        if name in classes:
            table[value] = classes.index(name) + 1
        elif not unlisted_is_background:
            what = f"is called '{name}', which is no class of the dataset" if name else "has no class"
            problems.append(
                DataError(
                    "labels.value",
                    f"{where}: value {value} ({counts[value]} voxels) {what}.",
                    remedy="Name it in annotations.values and classes, or set annotations.unlisted = 'background'.",
                )
            )
    return table[voxels], problems


def labels_of_masks(
    masks: Iterable[tuple[str, Bool[np.ndarray, "x y z"]]],
    classes: Sequence[str],
    shape: tuple[int, int, int],
    *,
    first_wins: bool,
    where: str,
) -> tuple[LabelMap, list[DataError]]:
    """One label map from a mask per class, consumed one by one; shared voxels are the first's, or a problem."""
    labels = np.zeros(shape, dtype=np.uint8)
    flat = labels.reshape(-1)
    problems = []
    for name, mask in masks:
        places = np.flatnonzero(mask)
        before = flat[places]
        for other in np.unique(before[before > 0]):
            if not first_wins:
                message = f"{where}: {classes[other - 1]} and {name} share {int((before == other).sum())} voxels."
                remedy = "Mend the masks, or set annotations.overlaps = 'first'."
                problems.append(DataError("labels.overlap", message, remedy=remedy))
        flat[places[before == 0]] = classes.index(name) + 1
    return labels, problems


def component_boxes(labels: LabelMap, *, spacing_mm: Vector, min_object_mm3: float = 0.0) -> tuple[_Boxes, Classes]:
    """The boxes of the components of each class that have at least that volume."""
    boxes, classes, volumes_mm3 = components(labels, spacing_mm=spacing_mm)
    kept = volumes_mm3 >= min_object_mm3
    return boxes[kept], classes[kept]


def components(labels: LabelMap, *, spacing_mm: Vector) -> tuple[_Boxes, Classes, Float64[np.ndarray, " n"]]:
    """The connected components (26 neighbours) of each class: boxes, first voxel to one past the last, and mm3."""
    boxes: list[list[float]] = []
    classes: list[int] = []
    voxels: list[int] = []
    for class_index, region in enumerate(ndimage.find_objects(labels)):
        if region is None:
            continue
        parts, num_parts = ndimage.label(labels[region] == class_index + 1, structure=_FULL_NEIGHBOURHOOD)
        sizes = np.bincount(parts.ravel(), minlength=num_parts + 1)
        offset = [side.start for side in region]
        for number, part in enumerate(ndimage.find_objects(parts), start=1):
            boxes.append(_box(part, offset))
            classes.append(class_index)
            voxels.append(int(sizes[number]))
    return *_arrays(boxes, classes), np.asarray(voxels, np.float64) * float(np.prod(spacing_mm))


def instance_boxes(
    voxels: Voxels, class_of: Mapping[int, int], *, where: str
) -> tuple[LabelMap, _Boxes, Classes, list[DataError]]:
    """A label map and one box per instance; instances without a class, or a class without voxels, are problems."""
    counts = value_counts(voxels)
    present = {int(value) for value in np.flatnonzero(counts) if value > 0}
    problems = [
        DataError(
            "instances.class", f"{where}: instance {number} has no class.", remedy="Add it to the JSON beside it."
        )
        for number in sorted(present - set(class_of))
    ]
    problems += [
        DataError(
            NO_VOXEL,
            f"{where}: instance {number} of the JSON has no voxel.",
            remedy="Delete it from the JSON, or mend the map; small ones vanish when a map is resampled.",
        )
        for number in sorted(set(class_of) - present)
    ]
    table = np.zeros(len(counts), dtype=np.uint8)
    boxes: list[list[float]] = []
    classes: list[int] = []
    for number, region in enumerate(ndimage.find_objects(voxels.astype(np.int32)), start=1):
        if region is not None and number in class_of:
            table[number] = class_of[number] + 1
            boxes.append(_box(region, [0, 0, 0]))
            classes.append(class_of[number])
    return table[voxels], *_arrays(boxes, classes), problems


def instance_classes(
    data: Any, classes: Sequence[str], *, where: str, names: Mapping[int, str] | None = None
) -> dict[int, int]:
    """nnDetection's ``{"instances": {"1": 0}}`` as instance -> class index; a class may also be given by its name.

    `names` says which class a number stands for; without it a number is an index into `classes`.
    """
    names = dict(enumerate(classes)) if names is None else names
    known = ", ".join(f"{number} ({names[number]})" for number in sorted(names)[:8])
    remedy = f'The form is {{"instances": {{"1": 0}}}}, with classes {known}; annotations.values names others.'
    table = data.get("instances") if isinstance(data, dict) else None
    if not isinstance(table, dict):
        raise DataError("instances.form", f"{where}: has no table 'instances'.", remedy=remedy)
    result = {}
    for key, value in table.items():
        name = names.get(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if not key.isdecimal() or int(key) == 0 or name not in classes:
            raise DataError("instances.form", f"{where}: instance {key}: {value!r} cannot be used.", remedy=remedy)
        result[int(key)] = classes.index(name)
    return result


def _box(region: tuple[slice, ...], offset: Sequence[int]) -> list[float]:
    low = [float(side.start + first) for side, first in zip(region, offset, strict=True)]
    return low + [float(side.stop + first) for side, first in zip(region, offset, strict=True)]


def _arrays(boxes: Sequence[Sequence[float]], classes: Sequence[int]) -> tuple[_Boxes, Classes]:
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 6), np.asarray(classes, dtype=np.int64)
