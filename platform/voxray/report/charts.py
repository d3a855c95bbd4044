"""Charts as SVG that takes its colours and letters from the page around it: light, dark or on paper."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

_Numbers = Sequence[float]

NUM_COLOURS = 8
_INK, _RULE, _FAINT = "#b00b00", "#b00b01", "#b00b02"
_STYLES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))
_MARKERS = "os^Dv<>P"
_SIZE = (4.2, 3.0)
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "voxray",
    "text.parse_math": False,
    "font.size": 9,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "grid.color": _RULE,
    "axes.grid": True,
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


class ChartSeries(NamedTuple):
    """Points of one colour, with the ends of their band where they have one; nan leaves a gap."""

    label: str
    x: _Numbers
    y: _Numbers
    low: _Numbers = ()
    high: _Numbers = ()
    colour: int = 0


class Axis(NamedTuple):
    """What an axis says and shows; without ends it fits the data."""

    label: str
    low: float | None = None
    high: float | None = None
    scale: Literal["linear", "log"] = "linear"
    ticks: tuple[tuple[float, str], ...] = ()
    whole: bool = False
    """Whether only whole numbers are marked."""


def share_axis(label: str) -> Axis:
    """An axis from 0 to 1."""
    return Axis(label, low=-0.02, high=1.02)


def lines(series: Sequence[ChartSeries], x: Axis, y: Axis, *, diagonal: bool = False, dots: bool = False) -> str:
    """Curves with their bands; `diagonal` is what guessing, or perfect agreement, would give."""
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _axes(x, y)
        if diagonal:
            axes.plot([0, 1], [0, 1], color=_FAINT, linewidth=1, linestyle=_STYLES[1])
        for place, one in enumerate(series):
            colour = _colour(one.colour)
            if len(one.low):
                axes.fill_between(one.x, one.low, one.high, color=colour, alpha=0.18, linewidth=0)
            # Dots keep a value between two gaps visible.
            marker = _MARKERS[place % len(_MARKERS)] if dots else None
            style = _STYLES[place % len(_STYLES)]
            axes.plot(one.x, one.y, color=colour, linewidth=1.6, linestyle=style, marker=marker, markersize=3)
        _legend(figure, axes.get_lines()[int(diagonal) :], [one.label for one in series])
        return _to_svg(figure)


def scatter(series: Sequence[ChartSeries], x: Axis, y: Axis, *, diagonal: bool = False) -> str:
    """Points; each series has a sign of its own."""
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _axes(x, y)
        if diagonal:
            ends = _ends(series)
            axes.plot(ends, ends, color=_FAINT, linewidth=1, linestyle=_STYLES[1])
        for place, one in enumerate(series):
            colour, sign = _colour(one.colour), _MARKERS[place % len(_MARKERS)]
            axes.plot(one.x, one.y, sign, color=colour, markersize=5, markerfacecolor="none", markeredgewidth=1.1)
        _legend(figure, axes.get_lines()[int(diagonal) :], [one.label for one in series])
        return _to_svg(figure)


def histogram(edges: _Numbers, hits: Sequence[int], false_findings: Sequence[int], *, missed: int) -> str:
    """Findings by score, those that hit and those that do not, and left of them the objects without a finding."""
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _axes(Axis("score"), Axis("count", scale="log"))
        axes.set_yscale("symlog", linthresh=1)
        kinds = (("false findings", false_findings, 1), ("hits", hits, 0))
        for label, counts, colour in kinds:
            axes.stairs(counts, edges, fill=True, color=_colour(colour), alpha=0.3, label=label)
            axes.stairs(counts, edges, color=_colour(colour), linewidth=1.1)
        width = (edges[-1] - edges[0]) / 25
        axes.bar(edges[0] - 2 * width, missed, width=1.6 * width, color=_colour(5), label="missed objects")
        highest = max([missed, *hits, *false_findings, 1])
        powers = range(math.ceil(math.log10(highest)) + 1)
        axes.set_yticks([0, *(10**power for power in powers)], ["0", *(f"{10**power:,}" for power in powers)])
        axes.set_ylim(0, highest * 1.3)
        handles, labels = axes.get_legend_handles_labels()
        _legend(figure, handles, labels)
        return _to_svg(figure)


def strips(
    names: Sequence[str],
    values: Sequence[Sequence[_Numbers]],
    means: Sequence[Sequence[ChartSeries]],
    x: Axis,
    labels: Sequence[str],
) -> str:
    """A row for each name: each case's value as a dot, and the mean with its interval; one colour for each label."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(4.8, max(1.6, 0.7 + 0.24 * len(names) * max(1, len(labels)))), layout="constrained")
        axes = figure.add_subplot()
        handles = []
        for place, label_means in enumerate(means):
            shift = (place - (len(means) - 1) / 2) * 0.7 / len(means)
            rows = -np.arange(len(names)) - shift
            for row, points in zip(rows, values[place], strict=True):
                axes.plot(points, np.full(len(points), row), "o", color=_colour(place), markersize=3, alpha=0.45)
            middle = np.array([one.y[0] for one in label_means])
            ends = np.array([(one.low[0], one.high[0]) for one in label_means]).T
            handles.append(axes.plot(middle, rows, "|", color=_colour(place), markersize=11, markeredgewidth=2)[0])
            axes.hlines(rows, *ends, color=_colour(place), linewidth=1.6)
        axes.set_yticks(-np.arange(len(names)), names)
        axes.set_ylim(-len(names) + 0.4, 0.6)
        _dress(axes, x, Axis(""))
        axes.grid(visible=False, axis="y")
        _legend(figure, handles, labels)
        return _to_svg(figure)


def _axes(x: Axis, y: Axis) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    _dress(axes, x, y)
    return figure, axes


def _dress(axes: Axes, x: Axis, y: Axis) -> None:
    axes.set_axisbelow(True)
    for axis, side in ((x, "x"), (y, "y")):
        getattr(axes, f"set_{side}label")(axis.label)
        if axis.scale == "log":
            getattr(axes, f"set_{side}scale")("log")
            getattr(axes, f"{side}axis").set_major_locator(LogLocator(subs=(1, 2, 5)))
            getattr(axes, f"{side}axis").set_major_formatter("{x:g}")
            getattr(axes, f"{side}axis").set_minor_locator(NullLocator())
        elif axis.whole:
            getattr(axes, f"{side}axis").set_major_locator(MaxNLocator(8, integer=True))
        if axis.ticks:
            places, texts = zip(*axis.ticks, strict=True)
            getattr(axes, f"set_{side}ticks")(places, texts, minor=False)
        if axis.low is not None:
            # Without ends it goes on fitting what is drawn.
            getattr(axes, f"set_{side}lim")(axis.low, axis.high)


def _ends(series: Sequence[ChartSeries]) -> tuple[float, float]:
    values = np.array([value for one in series for value in (*one.x, *one.y)], np.float64)
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)


def _legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Below the chart, where it hides nothing; a lone series is named by the chart's title."""
    if len(labels) < 2:
        return
    # matplotlib takes a name that begins with an underscore for one that nobody is to see.
    names = [f" {label}" if label.startswith("_") else label for label in labels]
    longest = max(map(len, names))
    columns = max(1, min(4, len(names), 60 // (longest + 6)))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=8, handlelength=2.4)


def _colour(number: int) -> str:
    return f"#a0000{number % NUM_COLOURS}"


def _to_svg(figure: Figure) -> str:
    stream = io.StringIO()
    about = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(stream, format="svg", transparent=True, metadata=about)
    text = stream.getvalue()
    text = re.sub(r"<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    named = set(re.findall(r'(?:url\(|href=")#([\w.-]+)', text))
    text = re.sub(r"<[^>]*>", lambda tag: _lean(tag.group(), named), text)
    return re.sub(r">\s+<", "><", text).strip()


def _lean(tag: str, named: set[str]) -> str:
    """A tag without addresses, letters, sizes and names that nobody uses, in the page's colours."""
    tag = re.sub(r'\s(xmlns(:\w+)?|version|width|height|transform)="([^"]*)"', _kept_attribute, tag)
    tag = re.sub(r'\sid="([^"]*)"', lambda found: found.group() if found[1] in named else "", tag)
    tag = tag.replace("xlink:href", "href").replace(_INK, "currentColor")
    tag = tag.replace(_RULE, "var(--rule)").replace(_FAINT, "var(--faint)")
    tag = re.sub(r"#a0000(\d)", r"var(--series-\1)", tag)
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    tag = re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found.group()):.2f}".rstrip("0").rstrip("."), tag)
    return re.sub(r"\s+", " ", tag)


def _kept_attribute(found: re.Match[str]) -> str:
    """Only what turns or moves by something, and the size of a clip's rectangle."""
    name, value = found[1], found[3]
    if name in ("width", "height") and not value.endswith("pt"):
        return found.group()
    if name == "transform" and not value.startswith("rotate(-0 "):
        return found.group()
    return ""
