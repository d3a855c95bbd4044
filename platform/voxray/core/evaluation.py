"""Evaluation: what a scoring leaves as ``evaluation.json``, for a report, a comparison or another tool to read back.

It holds every metric with its interval, what each case adds to them (so that two evaluations can be compared case by
case without the scans), and the points of every curve with its band. A number without a value is null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from voxray.core.bulkhead import sentence_of
from voxray.core.config import Config, parse, read_mapping
from voxray.core.detections import Box
from voxray.core.errors import ConfigError
from voxray.core.storage import whole
from voxray.core.task_name import TaskName

EVALUATION = "evaluation.json"
"""The name of the file in a folder of answers."""


def _nan_for_null(value: Any) -> Any:
    return math.nan if value is None else value


Number = Annotated[float, BeforeValidator(_nan_for_null)]
"""A number, or nan, which JSON has as null."""

_Numbers = tuple[Number, ...]


class Record(Config):
    """A part of a result: unlike what a user writes, it may hold nan."""

    model_config = ConfigDict(allow_inf_nan=True, populate_by_name=True, ser_json_inf_nan="null")


class Line(Record):
    """A curve with its 95 % band, point by point."""

    x: _Numbers
    y: _Numbers
    low: _Numbers
    high: _Numbers


class ScoreHistogram(Record):
    """How many findings of each bin of score hit an object and how many do not."""

    edges: _Numbers
    hits: tuple[int, ...]
    false_findings: tuple[int, ...]
    missed: int
    """Objects that no finding hits: they have no score."""


class ReliabilityBins(Record):
    """Scores against truth in bins of equal width over [0, 1]."""

    count: _Numbers
    """Findings in the bin."""
    score: _Numbers
    """Their mean score; null in an empty bin."""
    hit: _Numbers
    """The share of them that hit an object."""


class ClassCurves(Record):
    """The curves of one class; where a table has several, its keys are thresholds of IoU such as ``0.10``."""

    froc: Mapping[str, Line]
    """Sensitivity (y) over false findings a scan (x)."""
    precision_recall: Mapping[str, Line]
    """The best precision at each recall or a higher one (y) over recall (x)."""
    object_roc: Line
    """Share of objects found (y) over share of false findings let through (x), at the first threshold."""
    patient_roc: Line
    """Share of patients with an object (y) over share of those without (x), by their highest score."""
    patient_precision_recall: Line
    histogram: ScoreHistogram
    reliability: ReliabilityBins | None
    """None where a score lies outside [0, 1]."""


class CaseFindings(Record):
    """The objects and findings of one case, in one frame."""

    patient_id: str
    frame: Literal["voxel", "LPS"]
    """``voxel``: edge coordinates of the scan as it is stored; else millimetres."""
    truth_boxes: tuple[Box, ...]
    truth_classes: tuple[int, ...]
    boxes: tuple[Box, ...]
    """The findings that were scored, ``x1 y1 z1 x2 y2 z2``, highest score first."""
    scores: tuple[float, ...]
    classes: tuple[int, ...]
    objects: tuple[int, ...]
    """Which object each finding hits at the first threshold, -1 for none."""
    hits: tuple[int, ...]
    """Bit k of each: whether the finding hits an object at the k-th threshold."""


class Detection(Record):
    """What only detection has."""

    ious: tuple[float, ...]
    """The thresholds: the first and the last are those that ``AP@`` and ``FROC@`` name."""
    max_detections: int
    rates: tuple[float, ...]
    """False findings a scan at which ``sensitivity@`` is taken."""
    curves: Mapping[str, ClassCurves]
    """By class, of those with truth."""
    cases: Mapping[str, CaseFindings]


class Structure(Record):
    """One class in one case; distances and Dice are null where the class has no true voxel."""

    dice: Number
    nsd: _Numbers
    """Surface Dice at each of the tolerances."""
    hd95_mm: Number
    """The scan's diagonal where the class was not found at all."""
    found_ml: Number
    truth_ml: Number


class Segmentation(Record):
    """What only segmentation has."""

    tolerances_mm: tuple[float, ...]
    patients: Mapping[str, str]
    """The patient of each case."""
    cases: Mapping[str, Mapping[str, Structure]]
    """Case -> class -> its scores."""


class Bootstrap(Record):
    """How the intervals were made: scans drawn with replacement, those of one patient together."""

    replicates: int
    seed: int
    confidence: float


class Content(Record):
    """SHA-256 digests of what a case was when it was scored: `voxray.loading.CaseContent`."""

    scan: str
    truth: str


class Evaluation(Record):
    """A score on a dataset's cases, and all that it is made of."""

    schema_name: Literal["voxray-evaluation/2"] = Field(
        default="voxray-evaluation/2", validation_alias="schema", serialization_alias="schema"
    )
    run: str
    """The name of the run, or of the folder or file of answers."""
    dataset: str
    which: str
    """Which cases: ``val``, ``test`` or ``all``, or only those ``answered``."""
    task: TaskName
    classes: tuple[str, ...]
    metrics: Mapping[str, Number]
    """Detection: ``mAP``, ``AP@0.10``, ``FROC@0.10``, ...; segmentation: ``dice``, ``HD95_mm``, ...; each is the mean
    over classes with truth, and stands once more for each class, as ``dice/spleen``."""
    intervals: Mapping[str, tuple[float, float]]
    """The 95 % interval of each metric; none where there are fewer than two patients."""
    bootstrap: Bootstrap
    cases: Mapping[str, Mapping[str, Number]]
    """Case -> its Dice by class, or its numbers of objects, findings and hits at the first threshold."""
    failed: Mapping[str, str] = {}
    """Case -> why it has no answer. It counts as an empty one."""
    not_judged: Mapping[str, str] = {}
    """Case -> why its answer cannot be compared with its truth. It has no score, and is in no metric."""
    warnings: Mapping[str, tuple[str, ...]] = {}
    """Case -> what is worth knowing of its scan, its truth or its answer, though all were read."""
    contents: Mapping[str, Content] = {}
    """What each case was; files of earlier versions, and scores of answers in files, do not say it."""
    weights_sha256: tuple[str, ...] = ()
    """Of the networks that answered: several of a cross-validation, none where answers lay in files."""
    without_truth: tuple[str, ...] = ()
    """Classes that no case has: they have no score."""
    notices: tuple[str, ...] = ()
    """What is worth knowing, such as answers to cases that the truth does not have."""
    output: str = ""
    seconds: float = 0.0
    detection: Detection | None = None
    segmentation: Segmentation | None = None


class Luna16Evaluation(Record):
    """A score by LUNA16's official rules."""

    schema_name: Literal["voxray-luna16/1"] = Field(
        default="voxray-luna16/1", validation_alias="schema", serialization_alias="schema"
    )
    answers: str
    truth: str
    scans: int
    max_marks_per_scan: int
    counts: Mapping[str, Number]
    """By the names that the official CADAnalysis.txt gives them."""
    fp_per_scan: tuple[float, ...]
    sensitivity: _Numbers
    """At each of `fp_per_scan`."""
    cpm: Number
    """Their mean, the competition's score."""
    sensitivity_interval: tuple[tuple[Number, Number], ...]
    cpm_interval: tuple[Number, Number]
    bootstrap: Bootstrap
    curve: Line
    """Sensitivity over false marks a scan: mean and band of the bootstraps."""
    corners: tuple[tuple[Number, Number, Number], ...]
    """The curve itself: false marks a scan, sensitivity and score at each corner; the first score is null."""
    failed: Mapping[str, str] = {}
    """Scan -> why a run has no answer to it, which counts as one without marks, or why it was not judged."""
    notices: tuple[str, ...] = ()


def write_evaluation(evaluation: Evaluation | Luna16Evaluation, path: Path) -> Path:
    """The evaluation as JSON, lists on one line."""
    data = json.loads(evaluation.model_dump_json(by_alias=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as beside:
        beside.write_text(_indented(data) + "\n", encoding="utf-8")
    return path


def read_evaluation(path: Path) -> Evaluation:
    """The evaluation that `write_evaluation` wrote at `path`, or in the folder `path`."""
    file = path / EVALUATION if path.is_dir() else path
    data = read_mapping(file)
    if data.get("schema") == "voxray-luna16/1":
        raise ConfigError(
            f"{file}: is a score by LUNA16's rules, which says nothing of single cases; evaluate by IoU."
        )
    if data.get("schema") != "voxray-evaluation/2":
        raise ConfigError(
            f"{file}: schema must be voxray-evaluation/2, got {data.get('schema')!r}; run voxray evaluate again."
        )
    return parse(Evaluation, data, where=str(file))


def _indented(value: Any, depth: int = 0) -> str:
    """JSON with a line for each entry of a table, and lists without tables on one line."""
    if isinstance(value, dict) and value:
        inner = ",\n".join(
            f"{'  ' * (depth + 1)}{json.dumps(key)}: {_indented(item, depth + 1)}" for key, item in value.items()
        )
        return f"{{\n{inner}\n{'  ' * depth}}}"
    return json.dumps(value)


def try_write_evaluation(evaluation: Evaluation | Luna16Evaluation, path: Path) -> str:
    """Writes a score; why it could not be written, or an empty text, as what was measured is told all the same."""
    try:
        write_evaluation(evaluation, path)
    except Exception as error:
        return not_written(path, error)
    return ""


def not_written(place: Path, error: Exception) -> str:
    """The sentence for a score that is shown and could not be written."""
    return f"{place}: the score above could not be written there: {sentence_of(error)}"
