"""Planes of a scan side by side on one scale, in millimetres, with boxes over them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Shaped
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from voxray.core.volume import Grid, Shape, Vector, Volume
from voxray.preprocess import orient

TRUTH_COLOUR = "#2ecc40"
FOUND_COLOUR = "#ff851b"
PAPER, INK = "#101010", "#d8d8d8"
DPI = 100

PlaneName = Literal["axial", "coronal", "sagittal"]


class GreyWindow(NamedTuple):
    """Hounsfield units from black to white: level is the middle, width the range."""

    level_hu: float
    width_hu: float


WINDOWS: Mapping[str, GreyWindow] = {
    "lung": GreyWindow(-600, 1500),
    "soft": GreyWindow(40, 400),
    "bone": GreyWindow(400, 1800),
}


@dataclass(frozen=True)
class Plane:
    """How a plane of a RAS volume is shown: which axes run to the right, up, and through it, and its letters."""

    across: int
    up: int
    through: int
    left_letter: str
    right_letter: str


PLANES: Mapping[PlaneName, Plane] = {
    # The first axis shown runs from right to left of the picture: see `show`.
    "axial": Plane(0, 1, 2, "R", "L"),
    "coronal": Plane(0, 2, 1, "R", "L"),
    "sagittal": Plane(1, 2, 0, "A", "P"),
}


def canonical(image: Volume) -> Volume:
    """The volume turned and flipped so that its axes run to the patient's right, front and head."""
    return image if image.grid.orientation == "RAS" else orient(image, "RAS")


def moved_boxes(boxes: Float[np.ndarray, "n 6"], old: Grid, new: Grid) -> Float64[np.ndarray, "n 6"]:
    """Boxes in edge voxels of a grid, on the same grid turned and flipped."""
    corners = [new.to_voxel(old.to_world(part)) for part in (boxes[:, :3], boxes[:, 3:])]
    moved: Float64[np.ndarray, "n 6"] = np.concatenate([np.minimum(*corners), np.maximum(*corners)], axis=1)
    return moved


def chosen_window(window: GreyWindow | str | None, image: Volume, focus: Shape) -> GreyWindow:
    """The window as asked for; None is lung where the surroundings of the focus hold much air, else soft."""
    if isinstance(window, str):
        return WINDOWS[window]
    if window is not None:
        return GreyWindow(*window)
    reach = [max(2, round(25 / step)) for step in image.grid.spacing_mm]
    around = image.voxels[tuple(slice(max(0, at - by), at + by + 1) for at, by in zip(focus, reach, strict=True))]
    airy = np.mean((around > -980) & (around < -400))
    return WINDOWS["lung" if airy > 0.25 else "soft"]


def nearest_voxel(point_vox: Sequence[float] | Float64[np.ndarray, " 3"], shape: Shape) -> Shape:
    """The voxel of the grid that holds an edge coordinate, or the nearest one."""
    x, y, z = (int(np.clip(np.floor(at), 0, side - 1)) for at, side in zip(point_vox, shape, strict=True))
    return x, y, z


def size_mm(grid: Grid) -> Vector:
    """The extent of a grid along its axes."""
    x, y, z = (side * step for side, step in zip(grid.shape, grid.spacing_mm, strict=True))
    return x, y, z


def show(
    axes: Axes, pixels: Shaped[np.ndarray, "a b"], plane: Plane, grid: Grid, window: GreyWindow, *, title: str = ""
) -> None:
    """A plane's pixels (its `across` axis first) in mm, right side to the left, with letters at its sides."""
    extent = size_mm(grid)
    width, height = extent[plane.across], extent[plane.up]
    low, high = window.level_hu - window.width_hu / 2, window.level_hu + window.width_hu / 2
    axes.imshow(
        pixels.T,
        cmap="gray",
        vmin=low,
        vmax=high,
        origin="lower",
        extent=(0, width, 0, height),
        interpolation="bilinear",
    )
    axes.set_xlim(width, 0)
    axes.set_ylim(0, height)
    axes.set_aspect("equal")
    axes.set_axis_off()
    for share, letter, side in ((0.01, plane.left_letter, "left"), (0.99, plane.right_letter, "right")):
        _write(axes, share, 0.5, letter, transform=axes.transAxes, ha=side, va="center")
    if title:
        _write(axes, 0.01, 0.99, title, transform=axes.transAxes, ha="left", va="top")


def outline(
    axes: Axes, box: Float[np.ndarray, " 6"], plane: Plane, grid: Grid, colour: str, *, dashed: bool, text: str = ""
) -> None:
    """A box's outline in a plane; `box` is in edge voxels."""
    a, b = plane.across, plane.up
    step_a, step_b = grid.spacing_mm[a], grid.spacing_mm[b]
    corner, width, height = (
        (box[a] * step_a, box[b] * step_b),
        (box[a + 3] - box[a]) * step_a,
        (box[b + 3] - box[b]) * step_b,
    )
    style = (0, (3, 2)) if dashed else "solid"
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=1.4, linestyle=style))
    if text:
        x, y = float(box[a] * step_a), float(box[b + 3] * step_b)
        _write(axes, x, y, text, color=colour, ha="right", va="bottom", clip_on=True)


def _write(axes: Axes, x: float, y: float, text: str, *, color: str = INK, **place: Any) -> None:
    """Text that is legible on black and on white."""
    edge = withStroke(linewidth=1.6, foreground=PAPER)
    axes.text(x, y, text, color=color, fontsize=7, path_effects=[edge], **place)


def panels(sizes_mm: Sequence[tuple[float, float]], *, height_px: int, foot_px: int = 0) -> tuple[Figure, list[Axes]]:
    """A figure with one row of axes, all on one scale: the tallest fills `height_px`; `foot_px` are left below."""
    gap = 4
    scale = height_px / max(height for _, height in sizes_mm)
    widths = [max(1, round(width * scale)) for width, _ in sizes_mm]
    heights = [max(1, round(height * scale)) for _, height in sizes_mm]
    total_width, total_height = sum(widths) + gap * (len(widths) - 1), height_px + foot_px
    figure = Figure(figsize=(total_width / DPI, total_height / DPI), dpi=DPI, facecolor=PAPER)
    found, left = [], 0
    for width, height in zip(widths, heights, strict=True):
        bottom = foot_px + (height_px - height) / 2
        place = (left / total_width, bottom / total_height, width / total_width, height / total_height)
        found.append(figure.add_axes(place))
        left += width + gap
    return figure, found


def png(figure: Figure) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    stream = io.BytesIO()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(stream, metadata={"Software": "voxray"})
    return stream.getvalue()
