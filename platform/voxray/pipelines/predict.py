"""Predict: scans in, findings or label maps out, one file set per scan. A rerun answers only what is missing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from voxray.errors import ConfigError, VoxrayError
from voxray.inference.device import choose_device
from voxray.inference.findings import (
    FindingsFile,
    LabelsFile,
    ModelStamp,
    findings_file,
    labels_file,
    read_file,
    stamp,
    to_text,
)
from voxray.inference.predictor import Prediction, Predictor
from voxray.models import MODELS
from voxray.pipelines.progress import Progress, SilentProgress
from voxray.pipelines.scans import Scan, find_scans
from voxray.pipelines.spread import hire, spread
from voxray.readers import read_volume, write_nifti
from voxray.recipe import Recipe, parse_recipe
from voxray.run import Run
from voxray.training.checkpoint import load_model

ANSWERING_FIELDS = ("merge", "inference")
"""The recipe's groups that may be set when a trained run answers; the others are in its weights."""


@dataclass(frozen=True)
class PredictReport:
    """What became of every scan."""

    output: Path
    done: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    """Answered earlier by the same model with the same settings."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Name -> what went wrong, in a sentence."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Engine:
    """A run that is ready to answer, and the stamp that its answers carry."""

    run: Run
    recipe: Recipe
    model: nn.Module
    stamp: ModelStamp
    device: str

    def predictor(self) -> Predictor:
        """The predictor of this process."""
        return Predictor(self.run, self.recipe, self.model, choose_device(self.device))


@dataclass(frozen=True)
class Outcome:
    """What became of one scan; `error` is empty where all went well."""

    name: str
    error: str = ""


def predict(
    run: Path,
    inputs: Sequence[Path],
    output: Path,
    *,
    overrides: Sequence[str] = (),
    device: str = "auto",
    workers: int = 1,
    progress: Progress | None = None,
) -> PredictReport:
    """The run's answers to every scan among the inputs, under `output`; one bad scan does not stop the rest.

    With more than one worker the scans are spread over Ray; inputs and output must then be in reach of every node.
    """
    progress, begin = progress or SilentProgress(), time.monotonic()
    scans = find_scans(inputs)
    with hire(workers, device=device) as crew:
        engine = open_engine(run, overrides=overrides, device=crew.device)
        output.mkdir(parents=True, exist_ok=True)
        skipped = [scan for scan in scans if is_done(scan, output, engine.stamp)]
        todo = [scan for scan in scans if scan not in skipped]
        outcomes = []
        with progress.track("predict", total=len(todo), unit="scans") as advance:
            for outcome in spread(partial(Answerer, engine, output), todo, crew):
                outcomes.append(outcome)
                advance(1)
    return PredictReport(
        output=output,
        done=tuple(outcome.name for outcome in outcomes if not outcome.error),
        skipped=tuple(scan.name for scan in skipped),
        failed={outcome.name: outcome.error for outcome in outcomes if outcome.error},
        seconds=time.monotonic() - begin,
    )


def open_engine(run: Path, *, overrides: Sequence[str] = (), device: str = "cpu") -> Engine:
    """The run's best weights with its recipe, `merge.` and `inference.` overrides applied."""
    for override in overrides:
        if override.split(".")[0] not in ANSWERING_FIELDS:
            raise ConfigError(
                f"--set {override}: a trained run answers with its own recipe; "
                f"only {' and '.join(f'{name}.*' for name in ANSWERING_FIELDS)} can be set."
            )
    about, recipe, model = load_model(run)
    if overrides:
        recipe = parse_recipe(about.recipe, MODELS, overrides=overrides, where=str(run / "run.json"))
    mark = stamp(about, recipe, sha256=weights_digest(model))
    return Engine(run=about, recipe=recipe, model=model, stamp=mark, device=device)


def weights_digest(model: nn.Module) -> str:
    """The SHA-256 over names and values of the weights, wherever they were loaded from."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Answerer:
    """Reads, answers and writes one scan after another; what fails becomes a sentence, not an end."""

    def __init__(self, engine: Engine, output: Path) -> None:
        self._engine, self._output, self._predictor = engine, output, engine.predictor()

    def __call__(self, scan: Scan) -> Outcome:
        """What became of the scan."""
        return Outcome(scan.name, attempt(lambda: self._answer(scan)))

    def _answer(self, scan: Scan) -> None:
        prediction = self._predictor.predict(read_volume(scan.path))
        write(prediction, self._output, case=scan.name, engine=self._engine)


def attempt(action: Callable[[], Any]) -> str:
    """Runs the action; what a single scan can fail from as one sentence, or an empty text."""
    try:
        action()
    except VoxrayError as error:
        return str(error)
    except (MemoryError, OSError, ValueError, RuntimeError, ArithmeticError) as error:
        return f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0][:300]}"
    return ""


def write(prediction: Prediction, output: Path, *, case: str, engine: Engine) -> Path:
    """The prediction's files; the JSON comes last and says that the case is done."""
    classes, path = engine.run.classes, output / f"{case}.json"
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
    return part.replace(path)


def is_done(scan: Scan, output: Path, mark: ModelStamp) -> bool:
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
