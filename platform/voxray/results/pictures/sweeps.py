"""What a sweep found: how much each field matters, and the score over each field's values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from voxray.results.pictures.planes import DPI, png

_COLUMNS = 3
_PANEL_PX = (420, 320)
_BAR_PX = 34

_Value = bool | int | float | str


def draw_importance(importance: Mapping[str, float], *, title: str = "") -> bytes:
    """A PNG of bars, the most important field on top."""
    names = sorted(importance, key=lambda name: importance[name])
    figure = Figure(figsize=(720 / DPI, (120 + _BAR_PX * max(1, len(names))) / DPI), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(names, [importance[name] for name in names], color="tab:blue")
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_xlim(0, 1.1)
    axes.set_xlabel("share of the score's variance", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.set_title(title or "what matters", fontsize=10)
    return png(figure)


def draw_slices(
    trials: Sequence[tuple[Mapping[str, _Value], float]],
    *,
    metric: str,
    best: Mapping[str, _Value],
    log: Sequence[str] = (),
) -> bytes:
    """A PNG with a panel for each field: every trial's score over the field's value, later trials darker."""
    fields = list(dict.fromkeys(field for setting, _ in trials for field in setting))
    columns = max(1, min(_COLUMNS, len(fields)))
    rows = max(1, math.ceil(len(fields) / columns))
    size = (_PANEL_PX[0] * columns / DPI, _PANEL_PX[1] * rows / DPI)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    for place, field in enumerate(fields, start=1):
        axes = figure.add_subplot(rows, columns, place)
        values = [setting[field] for setting, _ in trials]
        named = any(isinstance(value, bool | str) for value in values)
        shown = [str(value) for value in values] if named else values
        ages = [number / max(1, len(trials) - 1) for number in range(len(trials))]
        axes.scatter(shown, [score for _, score in trials], c=ages, cmap="Blues", vmin=-0.3, s=14)
        if field in best:
            at: Any = str(best[field]) if named else best[field]
            axes.axvline(at, color="tab:red", linewidth=1)
        if field in log:
            axes.set_xscale("log")
        axes.set_title(field, fontsize=9)
        axes.set_ylabel(metric, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    return png(figure)
