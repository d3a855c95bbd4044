"""How training went: losses, validation and rate over epochs, of one run or of several."""

from __future__ import annotations

import math
from collections.abc import Sequence

from voxray.report.blocks import Block, Chart, Figures, Heading, Section, Text
from voxray.report.charts import Axis, ChartSeries, lines
from voxray.report.entry import Entry, Training


def training_section(entries: Sequence[Entry]) -> Section:
    """The curves of every run that has some; of several runs also in one chart."""
    trained = [(entry.label, entry.training) for entry in entries if entry.training and entry.training.history]
    blocks: list[Block] = []
    if len(trained) > 1:
        blocks.append(Figures(tuple(_together(trained, name) for name in _shared(trained))))
    for label, training in trained:
        if len(entries) > 1:
            blocks.append(Heading(label))
        blocks.append(Text(_told(training)))
        blocks.append(Figures(tuple(_chart(training, group) for group in ("loss", "val", "rate"))))
    return Section(
        "training", "Training", tuple(block for block in blocks if not isinstance(block, Figures) or block.items)
    )


def _told(training: Training) -> str:
    last = training.history[-1]
    parts = [f"{training.epochs_done} epochs, {'finished' if training.finished else 'not finished'}."]
    if training.best:
        parts.append(f"{training.best}.")
    if "samples_per_s" in last:
        parts.append(f"{last['samples_per_s']:.1f} patches a second in the last epoch.")
    return " ".join(parts)


def _chart(training: Training, group: str) -> Chart:
    names = [name for name in _names(training) if name == group or name.startswith(f"{group}/")]
    series = [_series(training, name, name.removeprefix(f"{group}/"), place) for place, name in enumerate(names)]
    series = [one for one in series if len(one.x)]
    title = {"loss": "Loss", "val": "Validation while training", "rate": "Learning rate"}[group]
    ends = "; ".join(f"{one.label} from {one.y[0]:.3g} to {one.y[-1]:.3g}" for one in series)
    return Chart(
        lines(series, _epochs([training]), Axis(""), dots=len(training.history) < 60),
        title,
        f"{title} over epochs: {ends}.",
    )


def _together(trained: Sequence[tuple[str, Training]], name: str) -> Chart:
    series = [_series(training, name, label, place) for place, (label, training) in enumerate(trained)]
    ends = "; ".join(f"{one.label} ends at {one.y[-1]:.3g}" for one in series)
    axis = _epochs([training for _, training in trained])
    return Chart(lines(series, axis, Axis(""), dots=True), name, f"{name} over epochs: {ends}.")


def _shared(trained: Sequence[tuple[str, Training]]) -> list[str]:
    """The total loss and the first metric of validation, where all runs have them."""
    every = [_names(training) for _, training in trained]
    first = next((name for name in every[0] if name.startswith("val/")), "")
    return [name for name in ("loss/total", first) if all(name in names for names in every)]


def _names(training: Training) -> list[str]:
    """The numbers of the history in their order, without those of single classes."""
    every = dict.fromkeys(name for row in training.history for name in row)
    return [name for name in every if name.count("/") < 2]


def _series(training: Training, name: str, label: str, place: int) -> ChartSeries:
    points = [(row["epoch"], row[name]) for row in training.history if math.isfinite(row.get(name, math.nan))]
    return ChartSeries(label, [x for x, _ in points], [y for _, y in points], colour=place)


def _epochs(trained: Sequence[Training]) -> Axis:
    """All charts of a training have the same axis, also of what is measured once in many epochs."""
    last = max(row["epoch"] for training in trained for row in training.history)
    return Axis("epoch", low=0, high=1.03 * last, whole=True)
