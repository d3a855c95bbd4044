"""The options and the report of a sweep, and its files: JSON, tables and pictures in its folder and in MLflow."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from voxray.core.apart import require_folder
from voxray.core.config import Setting, read_mapping, to_toml
from voxray.core.errors import ConfigError
from voxray.core.storage import Location, Place, whole
from voxray.core.working_copy import working_copy
from voxray.core.written import mark_of, require_empty, sha256_of
from voxray.distributed.mlflow_run import REMEMBERED, Tracking
from voxray.inference.package import MANIFEST
from voxray.loading.inputs import keep_out_of_run
from voxray.metrics.coco import IOUS
from voxray.results.pictures import draw_importance, draw_slices
from voxray.sweeping.journal import Journal
from voxray.sweeping.optuna_study import BATCH, SweepStudy
from voxray.sweeping.search_space import as_overrides
from voxray.sweeping.settings import SWEEP_FILE, SWEEP_SCHEMA
from voxray.training.crossval_folder import CROSSVAL

BEST, JOURNAL = "best.toml", "study.journal"
_FILES = (SWEEP_FILE, BEST, JOURNAL, REMEMBERED, "trials.csv", "slices.png", "importance.png")
_OF_OTHERS = ("state.json", "run.json", MANIFEST, CROSSVAL)
"""Files that say that a folder is something else than a sweep's."""


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
    root: Location | None = None
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
    failed: Mapping[str, str] = field(default_factory=dict)
    """Cases that could not be answered or read and have no part in it, each with its reason."""

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


@contextmanager
def ended_with(tracking: Tracking) -> Iterator[None]:
    """Ends the sweep's MLflow run as the block ends: finished, failed or stopped."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracking.end(status)


@dataclass(frozen=True)
class SweepFolder:
    """Where a sweep's files are written on this machine, and the place that they are of: the same, or elsewhere."""

    path: Path
    place: Place
    name: str
    """The path or address that was given."""

    def journal(self) -> Journal:
        """The journal of its studies."""
        return Journal(self.path / JOURNAL, None if self.place.is_local else self.place)


@contextmanager
def sweep_folder(location: Location, runs: Sequence[str]) -> Iterator[SweepFolder]:
    """The sweep's folder, with what an earlier call left there; a ConfigError where it may not be one."""
    place = Place.of(location)
    place.require_writable()
    with working_copy(location, [*_FILES, *_OF_OTHERS]) as path:
        folder = SweepFolder(path, place, str(location))
        _require_sweep_folder(folder, runs)
        yield folder


def write_sweep(report: SweepReport, study: SweepStudy, folder: Path, tracking: Tracking) -> None:
    """Everything that the sweep found, in its folder and in MLflow."""
    space = study.space
    trials = [(dict(trial.params), float(trial.value)) for trial in study.finished() if trial.value is not None]
    log = [name for name, spread in space.fields.items() if spread.log]
    best = to_toml(space.recipe_of(report.setting)).encode()
    # What lies there already, too: a sweep that is killed before the new one takes its place goes on.
    known = [sha256_of(folder / BEST)] if (folder / BEST).exists() else []
    digests = [*known, hashlib.sha256(best).hexdigest()]
    content = {"schema": SWEEP_SCHEMA, **_finite(asdict(report)), "best_sha256": digests}
    files = {
        SWEEP_FILE: json.dumps(content, indent=2).encode() + b"\n",
        BEST: best,
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


def _require_sweep_folder(folder: SweepFolder, runs: Sequence[str]) -> None:
    """A ConfigError where the folder holds files and no sweep, or a setting that somebody has changed since."""
    require_folder(folder.path, "-o")
    for run in runs:
        keep_out_of_run(folder.name, run)
    if not _is_sweep(folder.path):
        require_empty(folder.place, "sweep")
        return
    best, report = folder.path / BEST, folder.path / SWEEP_FILE
    if best.exists() and report.exists():
        known = read_mapping(report).get("best_sha256")
        if known is not None and sha256_of(best) not in known:
            raise ConfigError(
                f"{best}: was changed since voxray wrote it, and would be written over; move it away, or give "
                f"another folder with -o."
            )


def _is_sweep(folder: Path) -> bool:
    """Whether a sweep has begun there: its first file says where its MLflow run is, the second is its journal."""
    if any((folder / name).exists() for name in _OF_OTHERS):
        return False
    with suppress(OSError, ValueError):
        if mark_of(folder / SWEEP_FILE).startswith("voxray-sweep/"):
            return True
        if "run_id" in json.loads((folder / REMEMBERED).read_text(encoding="utf-8")):
            return True
    with suppress(OSError, ValueError), (folder / JOURNAL).open(encoding="utf-8") as journal:
        return "op_code" in json.loads(journal.readline())
    return False


def importance_of(study: SweepStudy) -> dict[str, float]:
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
