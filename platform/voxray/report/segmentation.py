"""What only segmentation has: the spread of Dice over cases, structures by volume and intensity, and its cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from voxray.core.evaluation import Evaluation, Segmentation, Structure
from voxray.report.blocks import Block, Cell, Chart, Figures, Heading, Section, Table
from voxray.report.charts import NUM_COLOURS, Axis, ChartSeries, scatter, strips
from voxray.report.entry import Entry
from voxray.report.objects import Target, groups_table

MAX_COLUMNS = 8
"""So many classes have a column each in the table of cases."""
_DICE = Axis("Dice", low=-0.02, high=1.02)


def curves_section(entries: Sequence[Entry]) -> Section:
    """How Dice spreads over cases, class by class."""
    names = dict.fromkeys(name for entry in entries for name in _judged(entry.evaluation))
    if not names:
        return Section("curves", "Spread over cases", ())
    values = [[_values(entry.evaluation, name, "dice") for name in names] for entry in entries]
    means = [[_mean(entry.evaluation, name) for name in names] for entry in entries]
    labels = [entry.label for entry in entries]
    alt = "; ".join(
        f"{name} {', '.join(f'{label} {row[place].y[0]:.2f}' for label, row in zip(labels, means, strict=True))}"
        for place, name in enumerate(names)
    )
    title = "Dice of each case (dots), and the mean with its 95 % interval (bars)"
    chart = Chart(strips(list(names), values, means, _DICE, labels), title, f"Mean Dice of each class: {alt}.")
    return Section("curves", "Spread over cases", (Figures((chart,)),))


def analysis_section(entries: Sequence[Entry]) -> Section:
    """How Dice goes with the true volume and with the intensity of a structure."""
    blocks: list[Block] = []
    for entry in entries:
        targets = _targets(entry)
        if not targets:
            continue
        if len(entries) > 1:
            blocks.append(Heading(entry.label))
        size, intensity, dice = (
            np.array([getattr(target, name) for target in targets]) for name in ("size", "intensity_hu", "outcome")
        )
        outcomes = (("mean Dice", dice),)
        tables = (
            groups_table(targets, size, outcomes, caption="Structures by true volume", name="ml"),
            groups_table(targets, intensity, outcomes, caption="Structures by mean intensity", name="HU"),
        )
        blocks += [table for table in tables if table is not None]
        blocks.append(Figures(tuple(_charts(entry, targets))))
    return Section("analysis", "By size and intensity", tuple(blocks))


def cases_section(entries: Sequence[Entry]) -> Section:
    """Each case's Dice, surface distance and worst class."""
    blocks: list[Block] = []
    for entry in entries:
        part, evaluation = _part(entry.evaluation), entry.evaluation
        names = _judged(evaluation)
        shown = names if len(names) <= MAX_COLUMNS else []
        tolerances = [f"NSD at {mm:g} mm" for mm in part.tolerances_mm]
        header = (
            *("case", "patient", "answered", "mean Dice", "worst class", "its Dice", *tolerances, "HD95, mm"),
            *("volume error, ml", *(f"Dice of {name}" for name in shown)),
        )
        rows = tuple(
            (*_case_row(case_id, case, evaluation), *(_dice(case, name) for name in shown))
            for case_id, case in part.cases.items()
        )
        blocks.append(Table(f"{entry.label}: cases, as means over classes", header, rows, sortable=True))
    return Section("cases", "Cases", tuple(blocks))


def case_value(evaluation: Evaluation, case_id: str) -> float:
    """The case's mean Dice; nan for a case that was not scored."""
    return mean_dice(_part(evaluation).cases.get(case_id, {}))


def mean_dice(case: Mapping[str, Structure]) -> float:
    """The mean over the classes that the case has; nan for none."""
    values = [one.dice for one in case.values() if math.isfinite(one.dice)]
    return float(np.mean(values)) if values else math.nan


def _part(evaluation: Evaluation) -> Segmentation:
    assert evaluation.segmentation is not None
    return evaluation.segmentation


def _judged(evaluation: Evaluation) -> list[str]:
    return [name for name in evaluation.classes if name not in evaluation.without_truth]


def _values(evaluation: Evaluation, name: str, field: str) -> list[float]:
    values = [getattr(case[name], field) for case in _part(evaluation).cases.values() if name in case]
    return [value for value in values if math.isfinite(value)]


def _mean(evaluation: Evaluation, name: str) -> ChartSeries:
    value = evaluation.metrics.get(f"dice/{name}", math.nan)
    low, high = evaluation.intervals.get(f"dice/{name}", (value, value))
    return ChartSeries(name, [0.0], [value], [low], [high])


def _targets(entry: Entry) -> list[Target]:
    part = _part(entry.evaluation)
    known = entry.scans.structures_hu if entry.scans else {}
    return [
        Target(
            case_id, part.patients[case_id], name, one.truth_ml, known.get(case_id, {}).get(name, math.nan), one.dice
        )
        for case_id, case in part.cases.items()
        for name, one in case.items()
        if one.truth_ml > 0
    ]


def _charts(entry: Entry, targets: Sequence[Target]) -> list[Chart]:
    names = list(dict.fromkeys(target.class_name for target in targets))
    # With more classes than colours a colour would say nothing.
    groups = names if len(names) <= NUM_COLOURS else [""]

    def series(x: str, y: str) -> list[ChartSeries]:
        made = []
        for place, name in enumerate(groups):
            chosen = [target for target in targets if not name or target.class_name == name]
            made.append(
                ChartSeries(name, [getattr(t, x) for t in chosen], [getattr(t, y) for t in chosen], colour=place)
            )
        return made

    volume, alt = Axis("true volume, ml", scale="log"), f"{len(targets)} structures of {entry.label}"
    charts = [
        Chart(scatter(series("size", "outcome"), volume, _DICE), "Dice over true volume", f"Dice over volume: {alt}.")
    ]
    if any(math.isfinite(target.intensity_hu) for target in targets):
        axis = Axis("mean intensity, HU")
        svg = scatter(series("intensity_hu", "outcome"), axis, _DICE)
        charts.append(Chart(svg, "Dice over intensity", f"Dice over mean intensity: {alt}."))
    cases = _part(entry.evaluation).cases
    pairs = [
        ChartSeries(
            name,
            [cases[t.case_id][t.class_name].truth_ml for t in targets if not name or t.class_name == name],
            [
                cases[t.case_id][t.class_name].found_ml or math.nan
                for t in targets
                if not name or t.class_name == name
            ],
            colour=place,
        )
        for place, name in enumerate(groups)
    ]
    svg = scatter(pairs, volume, Axis("found volume, ml", scale="log"), diagonal=True)
    charts.append(Chart(svg, "Found over true volume", f"Found over true volume: {alt}."))
    return charts


def _case_row(case_id: str, case: Mapping[str, Structure], evaluation: Evaluation) -> tuple[Cell, ...]:
    part, answered = _part(evaluation), "no" if case_id in evaluation.failed else "yes"
    judged = {name: one for name, one in case.items() if math.isfinite(one.dice)}
    worst = min(judged, key=lambda name: judged[name].dice, default="")
    columns = [[one.nsd[place] for one in judged.values()] for place in range(len(part.tolerances_mm))]
    columns.append([one.hd95_mm for one in judged.values()])
    columns.append([abs(one.found_ml - one.truth_ml) for one in judged.values()])
    means = (float(np.mean(column)) if column else math.nan for column in columns)
    lowest = judged[worst].dice if worst else math.nan
    return case_id, part.patients[case_id], answered, mean_dice(case), worst or "-", lowest, *means


def _dice(case: Mapping[str, Structure], name: str) -> float:
    return case[name].dice if name in case else math.nan
