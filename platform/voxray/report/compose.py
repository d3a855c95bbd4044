"""The whole report: which sections it has, for one evaluation or for several side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from voxray.core.evaluation import Evaluation
from voxray.metrics.bootstrap import Difference
from voxray.report import detection, segmentation
from voxray.report.about import data_section, failures_section, recipe_section, summary_section
from voxray.report.blocks import Block, Cell, Figures, Fold, Heading, Picture, Section, Table, Text
from voxray.report.entry import Entry, PictureKind
from voxray.report.numbers import classes_table, differences_table, metrics_table, side_by_side
from voxray.report.page import to_html
from voxray.report.training import training_section


class TaskSections(NamedTuple):
    """What the report of a task has of its own."""

    curves: Callable[[Sequence[Entry]], Section]
    analysis: Callable[[Sequence[Entry]], Section]
    cases: Callable[[Sequence[Entry]], Section]
    case_value: Callable[[Evaluation, str], float]
    case_title: str
    pictures_legend: str


PARTS: Mapping[str, TaskSections] = {
    "detection": TaskSections(
        detection.curves_section,
        detection.analysis_section,
        detection.cases_section,
        detection.case_value,
        "AP of each case alone",
        "Truth is outlined green, findings orange and dashed.",
    ),
    "segmentation": TaskSections(
        segmentation.curves_section,
        segmentation.analysis_section,
        segmentation.cases_section,
        segmentation.case_value,
        "Mean Dice of each case",
        "What was found is filled, truth is outlined.",
    ),
}

_PICTURES: Mapping[PictureKind, str] = {
    "hit": "Hits with the highest scores",
    "false": "False findings with the highest scores",
    "missed": "The largest objects that were missed",
    "worst": "The worst cases",
    "best": "The best cases",
}

Comparisons = Mapping[str, Mapping[str, Difference] | str]
"""By entry but the first: how much it is above the first, or why that cannot be said."""


def compose(entries: Sequence[Entry], compared: Comparisons) -> str:
    """The report as HTML; the entries are of one task."""
    task = entries[0].evaluation.task
    part = PARTS[task]
    names = " and ".join(entry.label for entry in entries) if len(entries) < 3 else f"{len(entries)} runs"
    sets = ", ".join(dict.fromkeys(entry.evaluation.dataset for entry in entries))
    sections = [
        summary_section(entries),
        failures_section(entries),
        _metrics_section(entries, compared),
        part.curves(entries),
        part.analysis(entries),
        _pictures_section(entries),
        _cases_section(entries),
        training_section(entries),
        data_section(entries),
        recipe_section(entries),
    ]
    return to_html(f"{names} on {sets}", f"{task.capitalize()}, report of voxray", sections)


def _metrics_section(entries: Sequence[Entry], compared: Comparisons) -> Section:
    blocks: list[Block] = []
    if len(entries) > 1:
        blocks.append(side_by_side(entries))
        first = entries[0].label
        for label, found in compared.items():
            blocks.append(Text(found) if isinstance(found, str) else differences_table(first, label, found))
        blocks.append(Fold("What the metrics are", (metrics_table(entries[0].evaluation),)))
    else:
        blocks.append(metrics_table(entries[0].evaluation))
    blocks += [table for table in map(classes_table, entries) if table is not None]
    return Section("metrics", "Metrics", tuple(blocks))


def _cases_section(entries: Sequence[Entry]) -> Section:
    part = PARTS[entries[0].evaluation.task]
    section = part.cases(entries)
    if len(entries) == 1:
        return section
    every = dict.fromkeys(case_id for entry in entries for case_id in entry.evaluation.cases)
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (case_id, *(part.case_value(entry.evaluation, case_id) for entry in entries)) for case_id in every
    )
    table = Table(
        f"{part.case_title}, side by side", ("case", *(entry.label for entry in entries)), rows, sortable=True
    )
    return section._replace(blocks=(table, *section.blocks))


def _pictures_section(entries: Sequence[Entry]) -> Section:
    blocks: list[Block] = []
    for entry in entries:
        shown = entry.scans.pictures if entry.scans else ()
        for kind, title in _PICTURES.items():
            chosen = tuple(Picture(one.png, one.caption, one.alt) for one in shown if one.kind == kind)
            if chosen:
                blocks.append(
                    Heading(title if len(entries) == 1 else f"{entry.label}: {title[0].lower()}{title[1:]}")
                )
                blocks.append(Figures(chosen, wide=kind in ("worst", "best")))
    if blocks:
        legend = PARTS[entries[0].evaluation.task].pictures_legend
        sides = "Scans are seen from the feet and from the front, so the patient's right is on the left."
        blocks.insert(0, Text(f"{legend} {sides}"))
    return Section("pictures", "Pictures", tuple(blocks))
