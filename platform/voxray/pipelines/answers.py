"""A run that answers, and its answers as files: written whole or not at all, and found again by a rerun."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from voxray.errors import ConfigError
from voxray.inference.findings import (
    FindingsFile,
    LabelsFile,
    ModelStamp,
    detections_of,
    findings_file,
    labels_file,
    read_file,
    stamp,
    to_text,
)
from voxray.inference.predictor import Prediction, Predictor
from voxray.models import MODELS
from voxray.pipelines.scans import Scan
from voxray.readers import read_label_map, write_nifti
from voxray.recipe import Recipe, parse_recipe
from voxray.run import Run
from voxray.training.checkpoint import load_model
from voxray.volume import Grid

ANSWERING_FIELDS = ("merge", "inference")
"""The recipe's groups that may be set when a trained run answers; the others are in its weights."""


@dataclass(frozen=True)
class Engine:
    """A run that is ready to answer on a device, and the stamp that its answers carry."""

    run: Run
    recipe: Recipe
    model: nn.Module
    stamp: ModelStamp
    device: str

    def predictor(self) -> Predictor:
        """The predictor of this process."""
        return Predictor(self.run, self.recipe, self.model, self.device)


def open_engine(run: str | Path, *, overrides: Sequence[str] = (), device: str = "cpu") -> Engine:
    """The run's best weights with its recipe, `merge.` and `inference.` overrides applied."""
    for override in overrides:
        if override.split(".")[0] not in ANSWERING_FIELDS:
            raise ConfigError(
                f"--set {override}: a trained run answers with its own recipe; "
                f"only {' and '.join(f'{name}.*' for name in ANSWERING_FIELDS)} can be set."
            )
    about, recipe, model = load_model(run)
    if overrides:
        recipe = parse_recipe(about.recipe, MODELS, overrides=overrides, where=f"{run}: run.json")
    mark = stamp(about, recipe, sha256=weights_digest(model))
    return Engine(run=about, recipe=recipe, model=model, stamp=mark, device=device)


def weights_digest(model: nn.Module) -> str:
    """The SHA-256 over names and values of the weights, wherever they were loaded from."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_answer(prediction: Prediction, output: Path, *, case: str, engine: Engine) -> Path:
    """The prediction's files; the JSON comes last and says that the case is done."""
    classes = engine.run.classes
    file: FindingsFile | LabelsFile
    if prediction.labels is not None:
        name = f"{case}.nii.gz"
        part = output / f".part.{name}"
        write_nifti(prediction.labels, part)
        part.replace(output / name)
        file = labels_file(prediction.labels, case=case, file=name, classes=classes, model=engine.stamp)
    else:
        assert prediction.detections is not None
        file = findings_file(prediction.detections, prediction.grid, case=case, classes=classes, model=engine.stamp)
    part = output / f".part.{case}.json"
    part.write_text(to_text(file), encoding="utf-8")
    return part.replace(output / f"{case}.json")


def is_answered(scan: Scan, output: Path, mark: ModelStamp) -> bool:
    """Whether the scan was answered by the same model and settings, and has not changed since."""
    path = output / f"{scan.name}.json"
    if not path.exists() or path.stat().st_mtime < scan.changed_at():
        return False
    try:
        if mark.merge.kind == "detection":
            return read_file(FindingsFile, path).model == mark
        labels = read_file(LabelsFile, path)
    except ConfigError:
        return False
    return labels.model == mark and (output / labels.file).exists()


def read_answer(output: Path, *, case: str, grid: Grid, engine: Engine) -> Prediction:
    """What `write_answer` wrote for a scan on `grid`."""
    path = output / f"{case}.json"
    if engine.recipe.task == "segmentation":
        return Prediction(grid, labels=read_label_map(output / read_file(LabelsFile, path).file))
    findings = read_file(FindingsFile, path)
    return Prediction(grid, detections=detections_of(findings, engine.run.classes, frame="voxel"))
