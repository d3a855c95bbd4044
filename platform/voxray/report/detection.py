"""What only detection has: its curves, its objects by size and intensity, and its cases."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from voxray.core.evaluation import CaseFindings, ClassCurves, Detection, Evaluation, Line
from voxray.report.blocks import Block, Cell, Chart, Figures, Heading, Section, Table, Text
from voxray.report.charts import Axis, ChartSeries, histogram, lines, scatter, share_axis
from voxray.report.entry import Entry
from voxray.report.objects import OperatingPoint, Target, groups_table, operating_point, targets_of

_RATES = Axis(
    "false findings a scan",
    low=1 / 16,
    high=16,
    scale="log",
    ticks=tuple((2.0**power, f"{2.0**power:g}" if power >= 0 else f"1/{2**-power}") for power in range(-3, 5)),
)
_SENSITIVITY, _RECALL, _PRECISION = (
    share_axis("sensitivity"),
    share_axis("recall"),
    share_axis("precision"),
)
_SCORE = share_axis("score")

Curves = Sequence[tuple[str, ClassCurves]]
"""The curves of one class, by entry."""


def curves_section(entries: Sequence[Entry]) -> Section:
    """Every curve of every class with truth, with 95 % bands; several entries share a chart."""
    names = dict.fromkeys(name for entry in entries for name in _part(entry.evaluation).curves)
    blocks: list[Block] = [Text("Bands hold 95 % of the draws of cases.")] if names else []
    for name in names:
        if len(names) > 1:
            blocks.append(Heading(name))
        found = [
            (entry.label, _part(entry.evaluation).curves[name])
            for entry in entries
            if name in _part(entry.evaluation).curves
        ]
        blocks.append(Figures(tuple(_charts(found))))
        if not any(math.isfinite(y) for _, curves in found for y in curves.patient_roc.y):
            blocks.append(Text("There is no ROC of patients: all of them have an object, or none has."))
    return Section("curves", "Curves", tuple(blocks))


def analysis_section(entries: Sequence[Entry]) -> Section:
    """Which objects are found, by their size and intensity."""
    blocks: list[Block] = []
    for entry in entries:
        made = _analysis(entry)
        if made and len(entries) > 1:
            blocks.append(Heading(entry.label))
        blocks += made
    return Section("analysis", "By size and intensity", tuple(blocks))


def cases_section(entries: Sequence[Entry]) -> Section:
    """Each case's objects and findings."""
    blocks: list[Block] = []
    for entry in entries:
        part = _part(entry.evaluation)
        point = operating_point(part)
        rows = tuple(_case_row(case_id, case, point, entry.evaluation) for case_id, case in part.cases.items())
        header = (
            *("case", "patient", "answered", "objects", "found", "missed", "findings", "false findings"),
            *(f"found at {point.rate:g} a scan", f"false at {point.rate:g} a scan", "highest score", "AP"),
        )
        blocks.append(Table(f"{entry.label}: cases", header, rows, sortable=True))
    first = _part(entries[0].evaluation)
    blocks.append(
        Text(
            f"Found and false are judged at IoU {first.ious[0]:g}, of at most {first.max_detections} findings of a "
            "class in a scan; the columns at 1 a scan look only at findings above the score at which the mean scan "
            "has one false finding. AP is that of the case alone, at the same IoU."
        )
    )
    return Section("cases", "Cases", tuple(blocks))


def case_value(evaluation: Evaluation, case_id: str) -> float:
    """The AP of the case alone at the lowest IoU; nan for a case that was not scored, or has no object."""
    return evaluation.cases.get(case_id, {}).get(f"AP@{_part(evaluation).ious[0]:.2f}", math.nan)


def _part(evaluation: Evaluation) -> Detection:
    assert evaluation.detection is not None
    return evaluation.detection


def _charts(found: Curves) -> list[Chart]:
    charts: list[Chart | None] = []
    for iou in dict.fromkeys(key for _, curves in found for key in curves.froc):
        froc = [(label, one.froc.get(iou)) for label, one in found]
        precision = [(label, one.precision_recall.get(iou)) for label, one in found]
        charts.append(_chart(froc, f"FROC at IoU {iou}", (_RATES, _SENSITIVITY)))
        charts.append(_chart(precision, f"Precision and recall at IoU {iou}", (_RECALL, _PRECISION)))
    of_patients = [(label, one.patient_precision_recall) for label, one in found]
    charts.append(_chart(of_patients, "Precision and recall of patients", (_RECALL, _PRECISION)))
    axes = share_axis("share of patients without an object"), _SENSITIVITY
    charts.append(_chart([(label, one.patient_roc) for label, one in found], "ROC of patients", axes, diagonal=True))
    axes = share_axis("share of false findings let through"), _SENSITIVITY
    charts.append(_chart([(label, one.object_roc) for label, one in found], "ROC of findings", axes, diagonal=True))
    kept = [chart for chart in charts if chart is not None]
    return [*kept, *_calibration(found), *(_histogram(label, curves, len(found)) for label, curves in found)]


def _chart(
    curves: Sequence[tuple[str, Line | None]], title: str, axes: tuple[Axis, Axis], *, diagonal: bool = False
) -> Chart | None:
    """One curve of all entries; None where none has a value, such as a ROC of patients who all have an object."""
    series, told = [], []
    for place, (label, one) in enumerate(curves):
        if one is not None and any(math.isfinite(y) for y in one.y):
            series.append(ChartSeries(label, one.x, one.y, one.low, one.high, colour=place))
            told.append(f"{label}: {_told(one, axes)}")
    if not series:
        return None
    return Chart(lines(series, *axes, diagonal=diagonal), title, f"{title}. {' '.join(told)}")


def _told(line: Line, axes: tuple[Axis, Axis]) -> str:
    """A curve in words: its values at a few places."""
    wanted = (0.125, 1.0, 8.0) if axes[0].scale == "log" else (0.1, 0.5, 0.9)
    xs, parts = np.asarray(line.x), []
    for at in wanted:
        place = int(np.argmin(np.abs(xs - at)))
        if math.isfinite(line.y[place]):
            parts.append(f"{line.y[place]:.2f} ({line.low[place]:.2f} to {line.high[place]:.2f}) at {xs[place]:.3g}")
    return f"{axes[1].label} {', '.join(parts)} {axes[0].label}." if parts else ""


def _calibration(found: Curves) -> list[Chart]:
    series, told = [], []
    for place, (label, curves) in enumerate(found):
        bins = curves.reliability
        if bins is None:
            continue
        shown = [index for index, count in enumerate(bins.count) if count > 0]
        x, y = [bins.score[index] for index in shown], [bins.hit[index] for index in shown]
        series.append(ChartSeries(label, x, y, colour=place))
        pairs = zip(shown, x, y, strict=True)
        told.append(
            f"{label}: " + ", ".join(f"{b:.2f} at {a:.2f} ({bins.count[k]:.0f} findings)" for k, a, b in pairs)
        )
    if not any(len(one.x) for one in series):
        return []
    alt = f"Share of findings that hit, over their mean score in tenths. {'; '.join(told)}."
    hits = share_axis("share of findings that hit")
    return [Chart(lines(series, _SCORE, hits, diagonal=True, dots=True), "Calibration of scores", alt)]


def _histogram(label: str, curves: ClassCurves, num: int) -> Chart:
    one = curves.histogram
    title = "Scores of hits and false findings, and missed objects"
    title = title if num == 1 else f"{label}: {title[0].lower()}{title[1:]}"
    alt = f"{title}: {sum(one.hits)} hits, {sum(one.false_findings)} false findings, {one.missed} missed objects."
    return Chart(histogram(one.edges, one.hits, one.false_findings, missed=one.missed), title, alt)


def _analysis(entry: Entry) -> list[Block]:
    scans, part = entry.scans, _part(entry.evaluation)
    targets = targets_of(
        entry.evaluation, dict(scans.sizes_mm) if scans else {}, dict(scans.objects_hu) if scans else {}
    )
    if not targets:
        return []
    point = operating_point(part)
    size, intensity, score = (
        np.array([getattr(target, name) for target in targets]) for name in ("size", "intensity_hu", "outcome")
    )
    outcomes = (
        ("found at any score", np.isfinite(score).astype(np.float64)),
        (
            f"found at {point.rate:g} false finding{'s' if point.rate != 1 else ''} a scan",
            (score > point.score).astype(np.float64),
        ),
    )
    tables = [
        groups_table(targets, size, outcomes, caption="Objects by size, the mean of their three sides", name="mm"),
        groups_table(targets, intensity, outcomes, caption="Objects by the mean intensity within them", name="HU"),
    ]
    blocks: list[Block] = [table for table in tables if table is not None]
    charts = _target_charts(targets, size, intensity, score)
    return [*blocks, Figures(tuple(charts))] if charts else blocks


def _target_charts(
    targets: Sequence[Target],
    size: Float64[np.ndarray, " n"],
    intensity: Float64[np.ndarray, " n"],
    score: Float64[np.ndarray, " n"],
) -> list[Chart]:
    """The score of each object over its size and over its intensity, and which are found in the plane of both."""
    charts, found = [], np.isfinite(score)
    parts = (("found", found, 0), ("missed", ~found, 5))
    for values, name, scale in ((size, "mean side, mm", "log"), (intensity, "mean intensity, HU", "linear")):
        if np.isfinite(values).any():
            series = [
                ChartSeries(label, values[is_in], np.nan_to_num(score[is_in]), colour=c) for label, is_in, c in parts
            ]
            title = f"Score of each object over its {name}"
            alt = f"{title}: {found.sum()} of {len(targets)} objects found; missed ones are drawn at score 0."
            axis = Axis(name, scale="log" if scale == "log" else "linear")
            charts.append(Chart(scatter(series, axis, share_axis("score of its finding, 0 for none")), title, alt))
    both = np.isfinite(size) & np.isfinite(intensity)
    if both.any():
        series = [ChartSeries(label, size[is_in], intensity[is_in], colour=c) for label, is_in, c in parts]
        title = "Found and missed objects by size and intensity"
        alt = f"{title}: {found.sum()} found, {(~found).sum()} missed."
        svg = scatter(series, Axis("mean side, mm", scale="log"), Axis("mean intensity, HU"))
        charts.append(Chart(svg, title, alt))
    return charts


def _case_row(case_id: str, case: CaseFindings, point: OperatingPoint, evaluation: Evaluation) -> tuple[Cell, ...]:
    places, scores = np.array(case.objects, np.int64), np.array(case.scores, np.float64)
    num, found = len(case.truth_boxes), int((places >= 0).sum())
    above = scores > point.score
    return (
        *(
            case_id,
            case.patient_id,
            "no" if case_id in evaluation.failed else "yes",
            num,
            found,
            num - found,
            len(places),
            int((places < 0).sum()),
        ),
        *(int((above & (places >= 0)).sum()), int((above & (places < 0)).sum())),
        *(scores.max() if len(scores) else math.nan, case_value(evaluation, case_id)),
    )
