"""One scan with its objects and what was found: three planes through the most telling place, and a projection."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes

from voxray.core.case import Case
from voxray.core.detections import Detections
from voxray.core.volume import Grid, Volume
from voxray.results.pictures.planes import (
    FOUND_COLOUR,
    INK,
    PLANES,
    TRUTH_COLOUR,
    GreyWindow,
    Plane,
    PlaneName,
    canonical,
    chosen_window,
    moved_boxes,
    nearest_voxel,
    outline,
    panels,
    png,
    show,
    size_mm,
)

_SLAB_MM = 40.0
_FOOT_PX = 22


def draw_detections(
    case: Case,
    found: Detections | None = None,
    *,
    classes: Sequence[str] = (),
    with_truth: bool = True,
    min_score: float = 0.1,
    window: GreyWindow | str | None = None,
    height_px: int = 360,
) -> bytes:
    """A PNG of the case: truth green and solid, findings of at least `min_score` orange and dashed with their score.

    `with_truth`: the case's objects are known, be they none.

    The planes go through the best finding, else through the first object, else through the middle. The fourth
    picture is the maximum over 40 mm from front to back. `window` is one of WINDOWS, or chosen by what lies around.
    """
    image = canonical(case.image)
    truth = moved_boxes(case.boxes, case.image.grid, image.grid)
    kept = _kept(found, case.image.grid, min_score)
    boxes = moved_boxes(kept.boxes.astype(np.float64), case.image.grid, image.grid)
    texts = [_text(score, index, classes) for score, index in zip(kept.scores, kept.classes, strict=True)]
    focus = nearest_voxel(_focus(boxes, truth, image.grid), image.grid.shape)
    shown = chosen_window(window, image, focus)
    extent = size_mm(image.grid)
    names: tuple[PlaneName, ...] = ("axial", "coronal", "sagittal", "coronal")
    sizes = [(extent[PLANES[name].across], extent[PLANES[name].up]) for name in names]
    figure, axes = panels(sizes, height_px=height_px, foot_px=_FOOT_PX)
    for name, place in zip(names[:3], axes[:3], strict=True):
        plane = PLANES[name]
        at = focus[plane.through]
        show(place, np.take(image.voxels, at, axis=plane.through), plane, image.grid, shown, title=name)
        _outlines(place, (truth, boxes, texts), plane, image.grid, (at, at + 1))
    _project(axes[3], image, (truth, boxes, texts), focus[1], shown)
    known = f"{len(truth)} in truth, " if with_truth else ""
    summary = f"{case.case_id}: {known}{len(boxes)} found with a score of at least {min_score:g}"
    figure.text(6 / figure.bbox.width, 6 / figure.bbox.height, summary, color=INK, fontsize=8)
    return png(figure)


def _kept(found: Detections | None, grid: Grid, min_score: float) -> Detections:
    if found is None:
        return Detections.empty()
    in_voxels = found if found.frame == "voxel" else found.to_voxel(grid)
    kept = in_voxels.take(in_voxels.scores >= min_score)
    return kept.take(np.argsort(-kept.scores, kind="stable"))


def _text(score: float, index: int, classes: Sequence[str]) -> str:
    name = f"{classes[index]} " if len(classes) > 1 else ""
    return f"{name}{score:.2f}"


def _focus(
    found: Float64[np.ndarray, "n 6"], truth: Float64[np.ndarray, "m 6"], grid: Grid
) -> Float64[np.ndarray, " 3"]:
    boxes = found if len(found) else truth
    focus: Float64[np.ndarray, " 3"] = (boxes[0, :3] + boxes[0, 3:]) / 2 if len(boxes) else np.array(grid.shape) / 2
    return focus


def _outlines(
    axes: Axes,
    objects: tuple[Float64[np.ndarray, "n 6"], Float64[np.ndarray, "m 6"], Sequence[str]],
    plane: Plane,
    grid: Grid,
    span: tuple[int, int],
) -> None:
    """The boxes that reach into the slices from span[0] to before span[1]."""
    truth, boxes, texts = objects
    through = plane.through

    def reaches(box: Float64[np.ndarray, " 6"]) -> bool:
        return bool(box[through] < span[1] and box[through + 3] > span[0])

    for box in truth:
        if reaches(box):
            outline(axes, box, plane, grid, TRUTH_COLOUR, dashed=False)
    for box, text in zip(boxes, texts, strict=True):
        if reaches(box):
            outline(axes, box, plane, grid, FOUND_COLOUR, dashed=True, text=text)


def _project(
    axes: Axes,
    image: Volume,
    objects: tuple[Float64[np.ndarray, "n 6"], Float64[np.ndarray, "m 6"], Sequence[str]],
    at: int,
    window: GreyWindow,
) -> None:
    plane = PLANES["coronal"]
    reach = max(1, round(_SLAB_MM / 2 / image.grid.spacing_mm[1]))
    span = max(0, at - reach), min(image.grid.shape[1], at + reach + 1)
    slab = image.voxels[:, span[0] : span[1]].max(axis=1)
    show(axes, slab, plane, image.grid, window, title=f"coronal, maximum over {_SLAB_MM:g} mm")
    _outlines(axes, objects, plane, image.grid, span)
