"""How numbers went while training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from voxray.results.pictures.planes import DPI, png

_COLUMNS = 3
_PANEL_PX = (420, 300)


def draw_curves(history: Mapping[str, Sequence[tuple[float, float]]], *, title: str = "") -> bytes:
    """A PNG of (step, value) series: one panel for all names that share the part before their first slash."""
    groups: dict[str, list[str]] = {}
    for name in history:
        groups.setdefault(name.split("/", 1)[0], []).append(name)
    columns = max(1, min(_COLUMNS, len(groups)))
    rows = max(1, math.ceil(len(groups) / columns))
    width, height = _PANEL_PX[0] * columns, _PANEL_PX[1] * rows
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, layout="constrained")
    if title:
        figure.suptitle(title, fontsize=10)
    if not groups:
        figure.text(0.5, 0.5, "no values yet", ha="center", va="center")
    for place, (group, names) in enumerate(groups.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        for name in names:
            # matplotlib leaves a gap where a value is not finite; dots keep values between two gaps visible.
            points = [(step, value if math.isfinite(value) else math.nan) for step, value in history[name]]
            marker = "." if sum(math.isfinite(value) for _, value in points) < 60 else ""
            label = name.removeprefix(f"{group}/")
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1.3, marker=marker)
        axes.set_title(group, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend(fontsize=7, frameon=False)
    return png(figure)
