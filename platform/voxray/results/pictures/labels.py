"""One scan with label maps over it: what was found as transparent colour, truth as an outline of the same colour."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Patch

from voxray.core.volume import Grid, Shape, Volume
from voxray.results.pictures.planes import (
    INK,
    PAPER,
    PLANES,
    GreyWindow,
    Plane,
    canonical,
    chosen_window,
    panels,
    png,
    show,
    size_mm,
)

Labels = Shaped[np.ndarray, "x y z"]
Colour = tuple[float, float, float]

_LEGEND_PX = 190
_LEGEND_ROW_PX = 16


def draw_labels(
    image: Volume,
    found: Labels | None = None,
    truth: Labels | None = None,
    *,
    classes: Sequence[str],
    window: GreyWindow | str | None = None,
    height_px: int = 360,
) -> bytes:
    """A PNG with three planes where most of the labelled structures show; label k is ``classes[k - 1]``."""
    turned = canonical(image)
    maps = [None if labels is None else canonical(Volume(labels, image.grid)).voxels for labels in (found, truth)]
    colours = class_colours(len(classes))
    shown_map = maps[1] if maps[1] is not None and maps[1].any() else maps[0]
    focus = _busiest(shown_map, turned.grid.shape, len(classes))
    shown = chosen_window(window, turned, focus)
    extent = size_mm(turned.grid)
    sizes = [(extent[plane.across], extent[plane.up]) for plane in PLANES.values()]
    legend_mm = _LEGEND_PX * max(height for _, height in sizes) / height_px
    figure, axes = panels([*sizes, (legend_mm, 1.0)], height_px=height_px)
    seen: set[int] = set()
    for (name, plane), place in zip(PLANES.items(), axes, strict=False):
        at = focus[plane.through]
        show(place, np.take(turned.voxels, at, axis=plane.through), plane, turned.grid, shown, title=name)
        flat = [None if labels is None else np.take(labels, at, axis=plane.through) for labels in maps]
        seen |= {int(value) for labels in flat if labels is not None for value in np.unique(labels)} - {0}
        _overlay(place, flat[0], flat[1], plane, turned.grid, colours)
    rows = max(1, height_px // _LEGEND_ROW_PX - 4)
    _legend(axes[-1], sorted(seen), classes, colours, with_truth=found is not None and truth is not None, rows=rows)
    return png(figure)


def class_colours(count: int) -> list[Colour]:
    """Colours that neighbours in the list do not share: hues by the golden ratio, lightness in turns."""
    return [colorsys.hls_to_rgb((0.02 + 0.618034 * k) % 1, (0.56, 0.68, 0.46)[k % 3], 0.85) for k in range(count)]


def borders(labels: Shaped[np.ndarray, "a b"]) -> tuple[Float[np.ndarray, "n 2 2"], Shaped[np.ndarray, " n"]]:
    """The pixel edges between different labels, in edge coordinates, each with the label that it bounds."""
    padded = np.pad(labels, 1)
    segments, values = [], []
    for axis in (0, 1):
        before, after = (np.delete(padded, index, axis=axis) for index in (-1, 0))
        a, b = np.nonzero(before != after)
        # Padding shifts by one: pixel i of the labels is i + 1 here, and its lower edge lies at i.
        along = (0, 1) if axis == 0 else (1, 0)
        start = np.stack([a, b], axis=1) - np.array(along)
        for side in (before, after):
            bounded = side[a, b] > 0
            segments.append(np.stack([start[bounded], start[bounded] + np.array(along)], axis=1))
            values.append(side[a, b][bounded])
    return np.concatenate(segments).astype(np.float64), np.concatenate(values)


def _busiest(labels: Labels | None, shape: Shape, num_classes: int) -> Shape:
    """For each axis the slice that shows most of the classes, each class counting the same."""
    if labels is None or not labels.any():
        x, y, z = (side // 2 for side in shape)
        return x, y, z
    counts = np.bincount(labels.ravel(), minlength=num_classes + 1).astype(np.float64)
    weights = np.divide(1.0, counts, out=np.zeros_like(counts), where=counts > 0)
    weights[0] = 0
    share = weights.astype(np.float32)[labels]
    x, y, z = (int(share.sum(axis=tuple(k for k in range(3) if k != axis)).argmax()) for axis in range(3))
    return x, y, z


def _overlay(
    axes: Axes,
    found: Shaped[np.ndarray, "a b"] | None,
    truth: Shaped[np.ndarray, "a b"] | None,
    plane: Plane,
    grid: Grid,
    colours: Sequence[Colour],
) -> None:
    step = np.array([grid.spacing_mm[plane.across], grid.spacing_mm[plane.up]])
    extent = size_mm(grid)
    filled = truth if found is None else found
    if filled is not None:
        table = np.array([(0, 0, 0, 0), *((*colour, 0.42) for colour in colours)])
        axes.imshow(
            table[filled].transpose(1, 0, 2),
            origin="lower",
            extent=(0, extent[plane.across], 0, extent[plane.up]),
            interpolation="nearest",
        )
        axes.set_xlim(extent[plane.across], 0)
    if truth is not None:
        segments, values = borders(truth)
        lines = LineCollection(list(segments * step), colors=[colours[int(k) - 1] for k in values], linewidths=1.0)
        axes.add_collection(lines, autolim=False)


def _legend(
    axes: Axes, seen: Sequence[int], classes: Sequence[str], colours: Sequence[Colour], *, with_truth: bool, rows: int
) -> None:
    axes.set_axis_off()
    named = seen[:rows]
    handles = [Patch(color=colours[k - 1], label=classes[k - 1]) for k in named]
    if len(seen) > len(named):
        handles.append(Patch(color=PAPER, label=f"and {len(seen) - len(named)} more"))
    note = "filled: found\noutline: truth" if with_truth else None
    axes.legend(
        handles=handles,
        title=note,
        loc="center left",
        bbox_to_anchor=(0, 0.5),
        frameon=False,
        fontsize=7,
        title_fontsize=7,
        labelcolor=INK,
    ).get_title().set_color(INK)
