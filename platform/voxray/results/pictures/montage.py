"""Many findings at a glance: three small planes of each, cut out around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from matplotlib.figure import Figure

from voxray.core.case import Case
from voxray.core.detections import Detections
from voxray.core.volume import Grid, Volume
from voxray.results.pictures.planes import (
    DPI,
    FOUND_COLOUR,
    INK,
    PAPER,
    PLANES,
    TRUTH_COLOUR,
    GreyWindow,
    canonical,
    chosen_window,
    moved_boxes,
    nearest_voxel,
    outline,
    png,
    show,
)

_TITLE_PX, _GAP_PX = 16, 4
_BEYOND_HU = -1024


@dataclass(frozen=True)
class Closeup:
    """A cube of a scan around one place, with the boxes that reach into it, in edge voxels of the cube."""

    title: str
    image: Volume
    truth: Float64[np.ndarray, "n 6"]
    found: Detections


def cut_closeup(
    case: Case, found: Detections | None, centre_vox: Sequence[float], *, title: str, side_mm: float = 60.0
) -> Closeup:
    """The cube of `side_mm` around a place given in edge voxels of the case's image; beyond the scan there is air."""
    image = canonical(case.image)
    old, new = case.image.grid, image.grid
    voxels = Detections.empty() if found is None else found if found.frame == "voxel" else found.to_voxel(old)
    centre = new.to_voxel(old.to_world(np.asarray(centre_vox, np.float64)[None]))[0]
    sides = [max(2, round(side_mm / step)) for step in new.spacing_mm]
    start = [round(float(at) - side / 2) for at, side in zip(centre, sides, strict=True)]
    cube = _cut(image, start, sides)
    shift = np.tile(np.asarray(start, np.float64), 2)
    truth = moved_boxes(case.boxes, old, new) - shift
    boxes = moved_boxes(voxels.boxes.astype(np.float64), old, new) - shift
    inside = _reaching(boxes, sides)
    kept = Detections(boxes[inside].astype(np.float32), voxels.scores[inside], voxels.classes[inside])
    return Closeup(title, cube, truth[_reaching(truth, sides)], kept)


def draw_montage(
    closeups: Sequence[Closeup], *, columns: int = 3, side_px: int = 110, window: GreyWindow | str | None = None
) -> bytes:
    """A PNG with a cell for each close-up: axial, coronal and sagittal through its middle, its title above.

    Where none has a title no room is left for it.
    """
    columns = max(1, min(columns, len(closeups)))
    rows = max(1, math.ceil(len(closeups) / columns))
    title_px = _TITLE_PX if any(closeup.title for closeup in closeups) else 0
    cell = (3 * side_px + 2 * _GAP_PX, side_px + title_px)
    width = columns * cell[0] + (columns - 1) * 3 * _GAP_PX
    height = rows * cell[1] + (rows - 1) * _GAP_PX
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=PAPER)
    if not closeups:
        figure.text(0.5, 0.5, "nothing to show", color=INK, ha="center", va="center")
    for index, closeup in enumerate(closeups):
        left = (index % columns) * (cell[0] + 3 * _GAP_PX)
        top = height - (index // columns) * (cell[1] + _GAP_PX)
        figure.text((left + 2) / width, (top - 2) / height, closeup.title, color=INK, fontsize=7, va="top")
        _draw_cell(figure, closeup, (left, top - cell[1]), side_px, window)
    return png(figure)


def _draw_cell(
    figure: Figure, closeup: Closeup, corner: tuple[int, int], side_px: int, window: GreyWindow | str | None
) -> None:
    image = closeup.image
    middle = nearest_voxel([side / 2 for side in image.grid.shape], image.grid.shape)
    shown = chosen_window(window, image, middle)
    width, height = figure.bbox.width, figure.bbox.height
    for place, plane in enumerate(PLANES.values()):
        left = corner[0] + place * (side_px + _GAP_PX)
        axes = figure.add_axes((left / width, corner[1] / height, side_px / width, side_px / height))
        at = middle[plane.through]
        show(axes, np.take(image.voxels, at, axis=plane.through), plane, image.grid, shown)
        for box in closeup.truth:
            if box[plane.through] < at + 1 and box[plane.through + 3] > at:
                outline(axes, box, plane, image.grid, TRUTH_COLOUR, dashed=False)
        for box in closeup.found.boxes:
            if box[plane.through] < at + 1 and box[plane.through + 3] > at:
                outline(axes, box, plane, image.grid, FOUND_COLOUR, dashed=True)


def _cut(image: Volume, start: Sequence[int], sides: Sequence[int]) -> Volume:
    cube = np.full(tuple(sides), _BEYOND_HU, image.voxels.dtype)
    low = [max(0, -first) for first in start]
    high = [min(side, full - first) for side, full, first in zip(sides, image.grid.shape, start, strict=True)]
    if all(last > first for first, last in zip(low, high, strict=True)):
        inner = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        outer = tuple(slice(a + first, b + first) for a, b, first in zip(low, high, start, strict=True))
        cube[inner] = image.voxels[outer]
    origin = image.grid.to_world(np.asarray(start, np.float64)[None] + 0.5)[0]
    x, y, z = (int(side) for side in sides)
    ox, oy, oz = (float(value) for value in origin)
    return Volume(cube, Grid((x, y, z), image.grid.spacing_mm, (ox, oy, oz), image.grid.direction))


def _reaching(boxes: Float64[np.ndarray, "n 6"], sides: Sequence[int]) -> Bool[np.ndarray, " n"]:
    inside: Bool[np.ndarray, " n"] = np.all((boxes[:, :3] < sides) & (boxes[:, 3:] > 0), axis=1)
    return inside
