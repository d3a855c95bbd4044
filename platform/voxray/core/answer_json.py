"""The files that a prediction leaves: findings of a detection, or the index of a label map. JSON, world millimetres.

`box_vox` (edge voxels of the scan as its file stores it) stands beside `box_mm`, so that a score against truth on
the scan's own grid needs no second way through the world.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import ConfigDict, Field

from voxray.core.config import Config, parse, read_mapping
from voxray.core.detections import Box, Detections
from voxray.core.errors import ConfigError
from voxray.core.recipe import InferenceConfig, Merge, Recipe
from voxray.core.run import Run
from voxray.core.volume import Grid, Vector, Volume
from voxray.core.written import sha256_of

_NUMBERS = re.compile(r"\[[\s\d.,eE+-]*\]")


class ModelStamp(Config):
    """Which model answered, and with which settings: two equal stamps give equal answers."""

    run: str
    recipe: str
    commit: str
    dataset: str
    licence: str
    sha256: str
    """Of the weights."""
    classes: tuple[str, ...] = ()
    """What it looks for, by number."""
    recipe_sha256: str = ""
    """Of the recipe's fields that shape an answer beside those below: how weights are read depends on them."""
    engine: str = "torch"
    """The runtime and its precision, where one was chosen: ``openvino fp32``."""
    inference: InferenceConfig
    merge: Merge


class ScanStamp(Config):
    """Which scan was answered; files of earlier versions and of the service do not say it."""

    sha256: str
    """The content of all its files: `voxray.readers.volume_content`."""
    path: str = ""
    """Where it lay."""


class Finding(Config):
    """One detected object."""

    model_config = ConfigDict(populate_by_name=True)

    id: int
    """From 1, the highest score first."""
    class_name: str = Field(validation_alias="class", serialization_alias="class")
    score: float
    center_mm: Vector
    size_mm: Vector
    box_mm: Box
    """``x1 y1 z1 x2 y2 z2``."""
    diameter_mm: float
    """The mean of the three sides."""
    volume_mm3: float | None = None
    """Of the ellipsoid that the box encloses; files of earlier versions lack it."""
    box_vox: Box
    """Edge coordinates: voxel i covers [i, i + 1)."""


class FindingsFile(Config):
    """What a detection run found in one scan."""

    model_config = ConfigDict(populate_by_name=True)

    schema_name: Literal["voxray-findings/1"] = Field(
        default="voxray-findings/1", validation_alias="schema", serialization_alias="schema"
    )
    case: str
    frame: Literal["LPS"] = "LPS"
    unit: Literal["mm"] = "mm"
    model: ModelStamp
    scan: ScanStamp | None = None
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...] = ()


class LabelEntry(Config):
    """One class of a label map; absent classes have a volume of 0."""

    model_config = ConfigDict(populate_by_name=True)

    value: int
    class_name: str = Field(validation_alias="class", serialization_alias="class")
    num_voxels: int
    volume_mm3: float


class LabelsFile(Config):
    """What the label map beside it holds."""

    model_config = ConfigDict(populate_by_name=True)

    schema_name: Literal["voxray-labels/1"] = Field(
        default="voxray-labels/1", validation_alias="schema", serialization_alias="schema"
    )
    case: str
    file: str
    """The label map, in the same folder, on the scan's own grid."""
    file_sha256: str = ""
    """Of that file as it was written; files of earlier versions lack it."""
    unit: Literal["mm"] = "mm"
    model: ModelStamp
    scan: ScanStamp | None = None
    labels: tuple[LabelEntry, ...]
    warnings: tuple[str, ...] = ()

    def map_is_unchanged(self, folder: Path) -> bool:
        """Whether the label map is in the folder as it was written; of earlier versions' that is not known."""
        try:
            return sha256_of(folder / self.file) == self.file_sha256
        except OSError:
            return False


F = TypeVar("F", FindingsFile, LabelsFile)


def stamp(run: Run, recipe: Recipe, *, sha256: str, engine: str = "torch") -> ModelStamp:
    """The run's stamp in every file that it leaves; the recipe is the one that it answers with."""
    return ModelStamp(
        run=run.name,
        recipe=recipe.name,
        commit=run.commit,
        dataset=run.dataset,
        licence=run.licence,
        sha256=sha256,
        classes=run.classes,
        recipe_sha256=_shaping(recipe),
        engine=engine,
        inference=recipe.inference,
        merge=recipe.merge,
    )


def _shaping(recipe: Recipe) -> str:
    fields = recipe.model_dump_json(include={"grid", "intensity", "network", "anchors"})
    return hashlib.sha256(fields.encode()).hexdigest()


def findings_file(
    detections: Detections, grid: Grid, *, case: str, classes: Sequence[str], model: ModelStamp
) -> FindingsFile:
    """Detections in edge voxels of the scan's own grid, as they are written."""
    world = detections.to_world(grid)
    found = [
        _finding(number, classes[int(kind)], float(score), box_mm=box_mm, box_vox=box_vox)
        for number, (kind, score, box_mm, box_vox) in enumerate(
            zip(detections.classes, detections.scores, world.boxes, detections.boxes, strict=True), start=1
        )
    ]
    return FindingsFile(case=case, model=model, findings=tuple(found))


def detections_of(
    file: FindingsFile, classes: Sequence[str], *, frame: Literal["voxel", "LPS"] = "LPS"
) -> Detections:
    """The findings as detections again, in world millimetres or in edge voxels of the scan's own grid."""
    unknown = sorted({finding.class_name for finding in file.findings} - set(classes))
    if unknown:
        raise ConfigError(
            f"case {file.case}: findings of class {unknown[0]!r}; known classes are {', '.join(classes)}."
        )
    boxes = [finding.box_vox if frame == "voxel" else finding.box_mm for finding in file.findings]
    return Detections(
        boxes=np.asarray(boxes, np.float32).reshape(-1, 6),
        scores=np.asarray([finding.score for finding in file.findings], np.float32),
        classes=np.asarray([classes.index(finding.class_name) for finding in file.findings], np.int64),
        frame=frame,
    )


def labels_file(labels: Volume, *, case: str, file: str, classes: Sequence[str], model: ModelStamp) -> LabelsFile:
    """The index of a label map on the scan's own grid: how much there is of each class."""
    counts = np.bincount(labels.voxels.ravel(), minlength=len(classes) + 1)
    voxel_mm3 = float(np.prod(labels.grid.spacing_mm))
    entries = [
        LabelEntry(
            value=value, class_name=name, num_voxels=int(counts[value]), volume_mm3=_short(counts[value] * voxel_mm3)
        )
        for value, name in enumerate(classes, start=1)
    ]
    return LabelsFile(case=case, file=file, model=model, labels=tuple(entries))


def to_text(file: FindingsFile | LabelsFile) -> str:
    """The file's JSON, lists of numbers on one line."""
    text = file.model_dump_json(indent=2, by_alias=True)
    return _NUMBERS.sub(lambda found: "[" + " ".join(found.group()[1:-1].split()) + "]", text) + "\n"


def read_file(kind: type[F], path: Path) -> F:
    """The JSON at `path` as findings or as a label index; anything else is refused in a sentence."""
    return parse(kind, read_mapping(path), where=str(path))


def read_answer_file(path: Path) -> FindingsFile | LabelsFile:
    """The answer at `path`, whichever kind it is; a ConfigError where it is none."""
    data = read_mapping(path)
    if "labels" in data:
        return parse(LabelsFile, data, where=str(path))
    return parse(FindingsFile, data, where=str(path))


def find_answer_file(path: Path) -> FindingsFile | LabelsFile | None:
    """The answer at `path`, or None where it is none that can be read."""
    try:
        return read_answer_file(path)
    except ConfigError:
        return None


def _finding(number: int, name: str, score: float, *, box_mm: Any, box_vox: Any) -> Finding:
    low, high = box_mm[:3].astype(np.float64), box_mm[3:].astype(np.float64)
    return Finding(
        id=number,
        class_name=name,
        score=_short(score),
        center_mm=_rounded((low + high) / 2),
        size_mm=_rounded(high - low),
        box_mm=_rounded(box_mm),
        diameter_mm=_short(float((high - low).mean())),
        volume_mm3=_short(float((high - low).prod()) * np.pi / 6),
        box_vox=_rounded(box_vox),
    )


def _rounded(values: Any) -> Any:
    return tuple(_short(float(value)) for value in values)


def _short(value: float) -> float:
    return float(f"{value:.7g}")
