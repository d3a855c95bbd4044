"""From a case as it was scanned to one on the recipe's grid, and from Hounsfield units to what a network sees.

Resampling keeps the outer *edge* of the first voxel, so edge coordinates, boxes among them, scale by
old spacing / new spacing and nothing else. The new grid covers the whole old one: its last voxel may reach beyond it,
by less than one voxel, and there the border's value goes on. (MONAI's `Spacing` keeps the first voxel's *centre*.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int16, Int64, UInt8
from torch import Tensor

from voxray.core.alignment import Arrangement
from voxray.core.case import Case, VolumeStats, label_counts
from voxray.core.errors import DataError
from voxray.core.recipe import GridConfig, Intensity, WindowIntensity
from voxray.core.task_name import TaskName
from voxray.core.volume import Grid, Shape, Vector, Volume

_SAME_SPACING = 1e-5
_WHOLE_VOXEL = 1e-3
_MIN_SIDE_VOX = 0.5
_ROWS = 16
_SPECK_VOX = 8
"""A class of which a scan shows no more than so many voxels, two along each axis, is a speck in it."""

_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}


def require_volume(grid: Grid) -> None:
    """A DataError where a scan is a single slice: networks need volumes."""
    if min(grid.shape) == 1:
        sides = " x ".join(map(str, grid.shape))
        raise DataError(
            "scan.one_slice",
            f"The scan has {sides} voxels, a single slice; a 3D network needs a volume.",
            remedy="Give the whole series.",
        )


def orient(volume: Volume, axes: str) -> Volume:
    """The volume turned and flipped so that its axes point nearest to `axes`, such as ``RAS``; no value changes."""
    turned = _turned(volume, axes)
    return Volume(np.ascontiguousarray(turned.voxels), turned.grid)


def oriented_grid(grid: Grid, axes: str) -> Grid:
    """The grid of a volume that `orient` has turned."""
    return _turn(grid.orientation, axes).grid(grid)


def resample(volume: Volume, spacing_mm: Vector) -> Volume:
    """The image at another spacing, by linear interpolation along its own axes, rounded to whole HU."""
    grid = resampled_grid(volume.grid, spacing_mm)
    if grid == volume.grid:
        return Volume(np.ascontiguousarray(volume.hounsfield), grid)
    return Volume(_linear(volume.hounsfield, grid.shape, _ratios(volume.grid, grid)), grid)


def resample_labels(volume: Volume, spacing_mm: Vector) -> Volume:
    """The label map at another spacing, each voxel taking the label at its centre."""
    grid = resampled_grid(volume.grid, spacing_mm)
    sides = zip(volume.grid.shape, grid.shape, _ratios(volume.grid, grid), strict=True)
    picked = [
        np.minimum(((np.arange(new) + 0.5) * ratio + 1e-6).astype(np.int64), old - 1) for old, new, ratio in sides
    ]
    return Volume(volume.voxels[np.ix_(*picked)], grid)


def resampled_grid(grid: Grid, spacing_mm: Vector) -> Grid:
    """The grid over the same region at another spacing; the same grid where the spacing is the same."""
    if max(abs(old / new - 1) for old, new in zip(grid.spacing_mm, spacing_mm, strict=True)) < _SAME_SPACING:
        return grid
    ratio = np.divide(grid.spacing_mm, spacing_mm)
    x, y, z = (max(1, math.ceil(side - _WHOLE_VOXEL)) for side in np.multiply(grid.shape, ratio))
    ox, oy, oz = (float(value) for value in grid.to_world(0.5 / ratio[None])[0])
    return Grid((x, y, z), spacing_mm, (ox, oy, oz), grid.direction)


def prepare_case(
    case: Case, config: GridConfig, *, task: TaskName | None = None, classes: Sequence[str] = ()
) -> Case:
    """The case on the recipe's grid: image linear, labels nearest, boxes by scale.

    What has no voxel left there is a DataError where it matters: to a detection its objects, to a segmentation a
    class (None: to either). A segmentation is warned of the specks that it loses, by the names of `classes`.
    """
    require_volume(case.image.grid)
    turned = _turned(case.image, config.orientation)
    boxes = _turn(case.image.grid.orientation, config.orientation).boxes(case.boxes, case.image.grid.shape)
    image = resample(turned, config.spacing_mm)
    ratio = np.divide(turned.grid.spacing_mm, image.grid.spacing_mm)
    scaled = boxes * np.tile(ratio, 2)
    if task != "segmentation":
        _refuse_thin_boxes(case, scaled, config)
    labels, warnings = None, case.warnings
    if case.labels is not None:
        before = _turned(Volume(case.labels, case.image.grid), config.orientation)
        after = resample_labels(before, config.spacing_mm)
        labels = np.ascontiguousarray(after.voxels)
        lost = _lost_pieces((before.voxels, boxes), (labels, scaled), case.classes)
        if task == "segmentation":
            _refuse_lost_classes(case, lost, turned.grid, config)
            warnings += tuple(_lost_specks(lost, turned.grid, config, classes))
        else:
            _refuse_lost_pieces(case, lost, config, objects_only=task == "detection")
    return replace(case, image=image, boxes=scaled, labels=labels, warnings=warnings)


def normalise(
    voxels: Int16[Tensor, "*b x y z"], stats: VolumeStats | Float[Tensor, "*b 4"], intensity: Intensity
) -> Float[Tensor, "*b x y z"]:
    """Hounsfield units -> the network's float32 input, on the voxels' device.

    `stats` are those of the whole volume (mean, standard deviation, minimum, maximum over its voxels that are not
    0 HU), for one volume or for each patch of a batch; only `zscore_minmax` uses them. There voxels of 0 HU stay 0
    after the z-score, as published, and padding below the volume's minimum becomes that minimum.
    """
    values = voxels.to(torch.float32)
    if isinstance(intensity, WindowIntensity):
        values = values.clone() if values is voxels else values
        return values.sub_(intensity.low_hu).mul_(1.0 / (intensity.high_hu - intensity.low_hu)).clamp_(0.0, 1.0)
    mean, std, low, high = _stats_tensors(stats, values)
    low, high = (low - mean) / std, (high - mean) / std
    scored = torch.where(values == 0, 0.0, (values - mean) / std)
    spread = torch.where(high > low, high - low, 1.0)
    return ((scored - low) / spread * 2.0 - 1.0).clamp_(-1.0, 1.0)


def _stats_tensors(stats: VolumeStats | Tensor, like: Tensor) -> tuple[Tensor, ...]:
    if isinstance(stats, VolumeStats):
        stats = torch.tensor([stats.mean_hu, stats.std_hu, stats.min_hu, stats.max_hu])
    return stats.to(like)[..., None, None, None].unbind(-4)


def _turned(volume: Volume, axes: str) -> Volume:
    """`orient` as a view of the same memory."""
    turn = _turn(volume.grid.orientation, axes)
    return Volume(turn.voxels(volume.voxels), turn.grid(volume.grid))


def _turn(now: str, wanted: str) -> Arrangement:
    """For each wanted axis, which axis it is now, and whether that one runs the other way."""
    x, y, z = (next(i for i, letter in enumerate(now) if letter in (want, _OPPOSITE[want])) for want in wanted)
    flips = [now[axis] != want for axis, want in zip((x, y, z), wanted, strict=True)]
    return Arrangement((x, y, z), (flips[0], flips[1], flips[2]))


def _ratios(old: Grid, new: Grid) -> list[float]:
    """Old voxels per new voxel, on each axis."""
    return [float(b / a) for a, b in zip(old.spacing_mm, new.spacing_mm, strict=True)]


def _linear(voxels: Int16[np.ndarray, "x y z"], shape: Shape, ratios: list[float]) -> Int16[np.ndarray, "u v w"]:
    """Trilinear interpolation, a few rows of the first axis at a time so that no float volume is held."""
    place = np.clip((np.arange(shape[0]) + 0.5) * ratios[0] - 0.5, 0, voxels.shape[0] - 1)
    lower = place.astype(np.int64)
    upper = np.minimum(lower + 1, voxels.shape[0] - 1)
    weight = torch.from_numpy((place - lower).astype(np.float32))[:, None, None]
    made = np.empty(shape, np.int16)
    # One voxel more where old and new sides are equal: there torch copies instead of interpolating.
    plane = [new + int(new == old) for new, old in zip(shape[1:], voxels.shape[1:], strict=True)]
    for first in range(0, shape[0], _ROWS):
        rows = slice(first, first + _ROWS)
        mixed = torch.lerp(_float_rows(voxels, lower[rows]), _float_rows(voxels, upper[rows]), weight[rows])
        planes = torch.ops.aten.upsample_bilinear2d(mixed[None], plane, False, 1 / ratios[1], 1 / ratios[2])[0]
        made[rows] = planes[:, : shape[1], : shape[2]].round_().to(torch.int16).numpy()
    return made


def _float_rows(voxels: Int16[np.ndarray, "x y z"], rows: Any) -> Float[Tensor, "r y z"]:
    return torch.from_numpy(np.ascontiguousarray(voxels[rows])).to(torch.float32)


def _refuse_thin_boxes(case: Case, scaled: Float64[np.ndarray, "n 6"], config: GridConfig) -> None:
    sides = scaled[:, 3:] - scaled[:, :3]
    for index in np.flatnonzero((sides < _MIN_SIDE_VOX).any(axis=1)):
        size = " x ".join(f"{side:.2f}" for side in sides[index])
        raise _lost(case, f"object {index} (class {case.classes[index]}) is only {size} voxels large", config)


@dataclass(frozen=True)
class _Piece:
    """What had voxels before resampling and has none after it: an object, or all that there was of a label."""

    label: int
    num_voxels: int
    """Before."""
    index: int | None
    """Of the object; None for a whole label."""


def _lost_pieces(
    before: tuple[UInt8[np.ndarray, "x y z"], Float64[np.ndarray, "n 6"]],
    after: tuple[UInt8[np.ndarray, "u v w"], Float64[np.ndarray, "n 6"]],
    classes: Int64[np.ndarray, " n"],
) -> list[_Piece]:
    """Whole labels first, then objects of labels that have voxels left."""
    counts = label_counts(before[0])
    gone = np.flatnonzero((counts > 0) & (label_counts(after[0]) == 0)).tolist()
    found = [_Piece(label, int(counts[label]), None) for label in gone]
    for index, label in enumerate((classes + 1).tolist()):
        had, has = (int((_inside(labels, boxes[index]) == label).sum()) for labels, boxes in (before, after))
        if had and not has:
            found.append(_Piece(label, had, index))
    return found


def _refuse_lost_pieces(case: Case, lost: Sequence[_Piece], config: GridConfig, *, objects_only: bool) -> None:
    labels = [str(piece.label) for piece in lost if piece.index is None]
    if labels and not objects_only:
        raise _lost(case, f"no voxel is left of label {', '.join(labels)}", config)
    for piece in lost:
        if piece.index is not None:
            raise _lost(case, f"no labelled voxel is left of object {piece.index} (class {piece.label - 1})", config)


def _refuse_lost_classes(case: Case, lost: Sequence[_Piece], before: Grid, config: GridConfig) -> None:
    """A class may go with a speck, but not where there was more of it: then the grid is too coarse for it."""
    voxel_mm3 = math.prod(before.spacing_mm)
    most_mm3 = _SPECK_VOX * max(voxel_mm3, math.prod(config.spacing_mm))
    for piece in lost:
        if piece.index is None and piece.num_voxels * voxel_mm3 > most_mm3:
            what = f"no voxel is left of label {piece.label} ({piece.num_voxels * voxel_mm3:.3g} mm3)"
            raise _lost(case, what, config)


def _lost_specks(lost: Sequence[_Piece], before: Grid, config: GridConfig, classes: Sequence[str]) -> Iterator[str]:
    """For each class, how much of it becomes background."""
    for label in sorted({piece.label for piece in lost}):
        whole = [piece for piece in lost if piece.label == label and piece.index is None]
        pieces = whole or [piece for piece in lost if piece.label == label]
        voxels = sum(piece.num_voxels for piece in pieces)
        name = classes[label - 1] if label <= len(classes) else f"label {label}"
        what = f"all of {name}" if whole else f"{len(pieces)} separate part{'s' * (len(pieces) != 1)} of {name}"
        yield (
            f"{what} ({voxels} voxel{'s' * (voxels != 1)}, {voxels * math.prod(before.spacing_mm):.3g} mm3) "
            f"{'has' if whole or len(pieces) == 1 else 'have'} no voxel left at {_spacing(config)} mm, and "
            f"{'is' if whole or len(pieces) == 1 else 'are'} background there."
        )


def _inside(labels: UInt8[np.ndarray, "x y z"], box: Float64[np.ndarray, " 6"]) -> UInt8[np.ndarray, "u v w"]:
    low, high = np.maximum(np.floor(box[:3] + 1e-6), 0).astype(int), np.ceil(box[3:] - 1e-6).astype(int)
    return labels[low[0] : high[0], low[1] : high[1], low[2] : high[2]]


def _lost(case: Case, what: str, config: GridConfig) -> DataError:
    return DataError(
        "resample.object_lost",
        f"at {_spacing(config)} mm {what}.",
        remedy="Use a finer grid.spacing_mm, or leave the object out of the annotations (min_object_mm3).",
        case_id=case.case_id,
    )


def _spacing(config: GridConfig) -> str:
    return " x ".join(f"{value:g}" for value in config.spacing_mm)
