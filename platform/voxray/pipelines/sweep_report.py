"""What a sweep is asked and what it comes to, left in its folder and in MLflow as JSON, tables and pictures."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from voxray.config import to_toml
from voxray.metrics.coco import IOUS
from voxray.pictures import draw_importance, draw_slices
from voxray.pipelines.space import Setting, as_overrides
from voxray.pipelines.study import BATCH, Study
from voxray.pipelines.tracking import Tracking
from voxray.place import whole

REPORT = "sweep.json"


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep proceeds."""

    trials: int | None = None
    """For each study; None is what the space says."""
    sampler: str = "tpe"
    executor: str = "ask"
    same_cases: bool = False
    """Tunes and reports on the same cases; the figure is then too good."""
    seed: int = 0
    workers: int = 1
    device: str = "auto"
    dataset: Path | None = None
    root: Path | None = None
    data: str | None = None
    """For a space that trains: the store, or the dataset's file."""
    classes: tuple[str, ...] = ()
    ious: tuple[float, ...] = IOUS
    """The overlaps over which a detection's mAP is a mean: what the setting is tuned for."""


@dataclass(frozen=True)
class Figure:
    """A score of the recipe's own setting and of a tuned one on the same cases."""

    cases: int
    own: float
    tuned: float


@dataclass(frozen=True)
class SweepReport:
    """What a sweep came to."""

    output: str
    space: str
    metric: str
    setting: Setting
    """The best over all cases; empty where nothing beats the recipe's own."""
    seen: Figure
    """On the cases that the setting was tuned on."""
    unseen: Figure | None
    """On cases that had no part in the tuning; None where that was not wanted."""
    parts: Mapping[str, Setting]
    """The settings that were tuned without each part."""
    trials: int
    pruned: int
    importance: Mapping[str, float]
    seconds: float
    search_ms: float = 0.0
    """Of each trial, spent on proposing it and taking it down."""
    cases: tuple[str, ...] = ()
    ious: tuple[float, ...] = IOUS
    """Of a detection's mAP."""

    @property
    def aim(self) -> str:
        """What was tuned for, in words: the metric, and its overlaps where they are not the usual ones."""
        return (
            self.metric if self.ious == IOUS else f"{self.metric} at IoU {', '.join(map('{:g}'.format, self.ious))}"
        )

    @property
    def overrides(self) -> list[str]:
        """The setting as ``--set`` takes it."""
        return as_overrides(self.setting)


def leave(report: SweepReport, study: Study, folder: Path, tracking: Tracking) -> None:
    """Everything that the sweep found, in its folder and in MLflow."""
    space = study.space
    trials = [(dict(trial.params), float(trial.value)) for trial in study.finished() if trial.value is not None]
    log = [name for name, spread in space.fields.items() if spread.log]
    files = {
        REPORT: json.dumps({"schema": "voxray-sweep/1", **_finite(asdict(report))}, indent=2).encode() + b"\n",
        "best.toml": to_toml(space.recipe_of(report.setting)).encode(),
        "trials.csv": trials_table(trials, report.metric),
        "slices.png": draw_slices(trials, metric=report.metric, best=report.setting, log=log),
    }
    if report.importance:
        files["importance.png"] = draw_importance(report.importance)
    for name, data in files.items():
        with whole(folder / name) as path:
            path.write_bytes(data)
        tracking.log_file(name, data)
    _log_numbers(report, [score for _, score in trials], tracking)


def importance_of(study: Study) -> dict[str, float]:
    """How much of the score's variance each field explains; nothing where too few trials tell."""
    from optuna.importance import get_param_importances

    scored = [trial for trial in study.finished() if trial.state.name == "COMPLETE"]
    if len(scored) < BATCH or len({trial.value for trial in scored}) < 2:
        return {}
    found: dict[str, float] = get_param_importances(study.study)
    return {name: float(value) for name, value in found.items()}


def digest(*parts: str) -> str:
    """Tells things with these parts from others."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def trials_table(trials: Sequence[tuple[Setting, float]], metric: str) -> bytes:
    """All trials with a score as CSV."""
    text = io.StringIO()
    fields = list(dict.fromkeys(name for setting, _ in trials for name in setting))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", metric, *fields])
    for number, (setting, score) in enumerate(trials):
        writer.writerow([number, score, *(setting.get(name) for name in fields)])
    return text.getvalue().encode()


def _log_numbers(report: SweepReport, scores: Sequence[float], tracking: Tracking) -> None:
    """The figures, the setting, and how the best score rose over the trials."""
    row = {"trials": float(report.trials), "pruned": float(report.pruned)}
    for name, figure in (("seen", report.seen), ("unseen", report.unseen)):
        if figure is not None:
            row |= {f"{name}/own": figure.own, f"{name}/tuned": figure.tuned}
    tracking.log_row(row, step=0)
    best = -math.inf
    for number, score in enumerate(scores):
        best = max(best, score)
        tracking.log_row({f"trial/{report.metric}": score, f"best/{report.metric}": best}, step=number)
    for name, value in report.setting.items():
        tracking.tag(f"best.{name}", str(value))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
