"""An evaluation as tables of text, for the command line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from voxray.core.evaluation import Evaluation, Luna16Evaluation
from voxray.metrics.bootstrap import Difference

NUM_CLASSES = 12
"""So many classes have a row each; of more the best and the worst would be a guess, and the JSON has them all."""


class ScoreTable(NamedTuple):
    """Column names and rows."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def score_tables(evaluation: Evaluation) -> list[ScoreTable]:
    """The means with their intervals; and where there are several classes, the first metrics of each."""
    metrics, intervals = evaluation.metrics, evaluation.intervals
    names = [name for name in metrics if "/" not in name and math.isfinite(metrics[name])]
    rows = tuple((name, _short(metrics[name]), _interval(intervals.get(name))) for name in names)
    tables = [ScoreTable(("metric", "value", "95 % interval"), rows)]
    kinds = [name for name in evaluation.classes if name not in evaluation.without_truth]
    if len(kinds) > 1:
        per_class = [
            (kind, *(_short(metrics[f"{name}/{kind}"]) for name in names[:6])) for kind in kinds[:NUM_CLASSES]
        ]
        tables.append(ScoreTable(("class", *names[:6]), tuple(per_class)))
    return tables


def luna16_tables(result: Luna16Evaluation) -> list[ScoreTable]:
    """Sensitivity at the seven rates with the CPM, and the counts."""
    rows = [
        (f"{rate:g}", _short(value), _interval(ends))
        for rate, value, ends in zip(result.fp_per_scan, result.sensitivity, result.sensitivity_interval, strict=True)
    ]
    rows.append(("CPM", f"{result.cpm:.6f}", _interval(result.cpm_interval)))
    counts = [(name, f"{value:.9f}".rstrip("0").rstrip(".")) for name, value in result.counts.items()]
    return [
        ScoreTable(("false marks a scan", "sensitivity", "95 % interval"), tuple(rows)),
        ScoreTable(("", ""), tuple(counts)),
    ]


def difference_table(differences: Mapping[str, Difference]) -> ScoreTable:
    """How much the one evaluation is above the other, with paired intervals."""
    rows = _difference_rows((name, one) for name, one in differences.items() if "/" not in name)
    return ScoreTable(("metric", "difference", "95 % interval", "share of draws above 0"), tuple(rows))


def _difference_rows(pairs: Iterable[tuple[str, Difference]]) -> list[tuple[str, ...]]:
    return [
        (name, f"{one.value:+.3f}", f"{one.low:+.3f} to {one.high:+.3f}", f"{one.share_above:.3f}")
        for name, one in pairs
    ]


def _short(value: float) -> str:
    return "-" if not math.isfinite(value) else f"{value:.3f}"


def _interval(ends: Sequence[float] | None) -> str:
    if ends is None or not all(math.isfinite(end) for end in ends):
        return "-"
    return f"{ends[0]:.3f} to {ends[1]:.3f}"
