"""A run that answers, and its answers as files: written whole or not at all, and found again by a rerun."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from voxray.core.addresses import local_path
from voxray.core.answer_json import (
    FindingsFile,
    LabelsFile,
    ModelStamp,
    ScanStamp,
    detections_of,
    findings_file,
    labels_file,
    read_file,
    stamp,
    to_text,
)
from voxray.core.errors import ConfigError
from voxray.core.recipe import Recipe, parse_recipe
from voxray.core.run import Run
from voxray.core.storage import whole
from voxray.core.volume import Grid
from voxray.inference.candidates.folder import RecordSource
from voxray.inference.package import Package, is_package, package_folder, package_networks, read_package
from voxray.inference.predictor import Prediction, Predictor
from voxray.models import MODELS
from voxray.readers import content_of, write_nifti
from voxray.results.answer_outputs import AnswerFiles
from voxray.results.class_names import read_labels
from voxray.runtimes import (
    Choice,
    Precision,
    TrainedNetwork,
    choose_runtime,
    network_of,
    open_runtime,
    prefer_runtime,
)
from voxray.runtimes.device import half_on
from voxray.runtimes.openvino.engine import require_calibrated
from voxray.training.checkpoint import load_model

ANSWERING_FIELDS = ("merge", "inference")
"""The recipe's groups that may be set when a trained run answers; the others are in its weights."""


@dataclass(frozen=True)
class Engine:
    """A run or a package that is ready to answer on a device, and the stamp that its answers carry."""

    run: Run
    recipe: Recipe
    stamp: ModelStamp
    device: str
    networks: tuple[TrainedNetwork, ...]
    """Of an ensemble several."""
    choice: Choice | None = None
    """The runtime that answers, and why; None is torch in the precision that the recipe's plan says."""
    fetched_from: str = ""
    """Where the package lies whose files are copies on this node; on another one they are fetched again."""

    def predictor(self) -> Predictor:
        """The predictor of this process."""
        if self.fetched_from:
            package_folder(self.fetched_from)
        if self.choice is None:
            modules = [network.module for network in self.networks if network.module is not None]
            assert len(modules) == len(self.networks)
            return Predictor(self.run, self.recipe, modules, self.device)
        name, precision = self.choice.runtime, self.choice.precision
        runtimes = [open_runtime(name, network, device=self.device, precision=precision) for network in self.networks]
        return Predictor(self.run, self.recipe, runtimes, self.device)

    def record_source(self, case: str, scan_grid: Grid, *, content: str, patient: str = "") -> RecordSource:
        """What a recording of its answer to a scan says of itself."""
        return RecordSource(self.recipe, self.stamp, self.run.classes, case, scan_grid, patient, scan_sha256=content)


def open_engine(
    run: str | Path,
    *,
    overrides: Sequence[str] = (),
    device: str = "cpu",
    runtime: str | None = None,
    precision: str = "auto",
) -> Engine:
    """The run's best weights, or the package, with its recipe and `merge.` and `inference.` overrides applied.

    Without a runtime a run answers with torch, and a package with the one that it was made for; ``auto`` is the best
    that this machine has for a run. Precision ``auto`` is half where the recipe's plan is the fast one.
    """
    for override in overrides:
        if override.split(".")[0] not in ANSWERING_FIELDS:
            raise ConfigError(
                f"--set {override}: a trained run answers with its own recipe; "
                f"only {' and '.join(f'{name}.*' for name in ANSWERING_FIELDS)} can be set."
            )
    if is_package(run):
        folder = package_folder(run)
        engine = _open_package(folder, overrides, device=device, runtime=runtime, precision=precision)
        return engine if local_path(run) is not None else replace(engine, fetched_from=str(run))
    about, recipe, module = load_model(run)
    if overrides:
        recipe = parse_recipe(about.recipe, MODELS, overrides=overrides, where=f"{run}: run.json")
    digest = weights_digest(module)
    network = network_of(recipe, module, digest=digest, folder=runtimes_folder(run))
    choice = _chosen(recipe, network, runtime, device=device, precision=precision)
    return Engine(
        run=about,
        recipe=recipe,
        stamp=stamp(about, recipe, sha256=digest, engine=_engine(choice)),
        device=device,
        networks=(network,),
        choice=choice,
    )


def _open_package(
    folder: Path, overrides: Sequence[str], *, device: str, runtime: str | None, precision: str
) -> Engine:
    package, recipe = read_package(folder)
    if overrides:
        recipe = parse_recipe(package.recipe, MODELS, overrides=overrides, where=f"{folder}: package.json")
    if package.ensemble is not None and not package.engines:
        return _open_ensemble(folder, package, recipe, device=device, runtime=runtime, precision=precision)
    wanted = package.precision if precision == "auto" else precision
    require_calibrated(wanted, [(entry.form, entry.precision) for entry in package.engines])
    if runtime not in (None, "auto"):
        choice = choose_runtime(runtime, device=device, precision=wanted)
    else:
        choice = prefer_runtime(package.runtime, device=device, precision=wanted)
    with_module = choice.runtime.startswith("torch")
    return Engine(
        run=package.run,
        recipe=recipe,
        stamp=stamp(package.run, recipe, sha256=package.provenance.weights_sha256, engine=_engine(choice)),
        device=device,
        networks=package_networks(folder, package, recipe, with_module=with_module),
        choice=choice,
    )


def _open_ensemble(
    folder: Path, package: Package, recipe: Recipe, *, device: str, runtime: str | None, precision: str
) -> Engine:
    """As a run is opened: it holds weights, which torch loads and others convert."""
    networks = package_networks(folder, package, recipe, with_module=True)
    choice = _chosen(recipe, networks[0], runtime, device=device, precision=precision)
    return Engine(
        run=package.run,
        recipe=recipe,
        stamp=stamp(package.run, recipe, sha256=package.provenance.weights_sha256, engine=_engine(choice)),
        device=device,
        networks=networks,
        choice=choice,
    )


def _chosen(
    recipe: Recipe, network: TrainedNetwork, runtime: str | None, *, device: str, precision: str
) -> Choice | None:
    """The runtime that was asked for, of which ``auto`` is one that the network goes on; None where nothing was."""
    if runtime is None and precision == "auto":
        return None
    if precision == "auto" and recipe.inference.plan == "fast":
        precision = _name(half_on(torch.device(device)))
    trained_in = _name(recipe.optim.amp)
    choice = choose_runtime(runtime or "torch", device=device, precision=precision, trained_in=trained_in)
    require_calibrated(choice.precision, network.files)
    return _within_reach(choice, network) if runtime == "auto" else choice


def _within_reach(choice: Choice, network: TrainedNetwork) -> Choice:
    """The choice, or torch where the network is one that cannot be converted; what is converted is kept."""
    if choice.runtime.startswith("torch"):
        return choice
    try:
        network.onnx()
    except ConfigError as error:
        return Choice("torch", choice.precision, f"torch at {choice.precision}: {error}")
    return choice


def _name(amp: Literal["off", "bf16", "fp16"]) -> Precision:
    return "fp32" if amp == "off" else amp


def _engine(choice: Choice | None) -> str:
    return "torch" if choice is None else f"{choice.runtime} {choice.precision}"


def runtimes_folder(run: str | Path) -> Path | None:
    """Where what is converted from a run is kept; a run on object storage has no such folder."""
    path = local_path(run)
    return None if path is None else path / "runtimes"


def weights_digest(model: nn.Module) -> str:
    """The SHA-256 over names and values of the weights, wherever they were loaded from."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_answer(
    prediction: Prediction,
    output: Path,
    *,
    case: str,
    engine: Engine,
    scan: ScanStamp | None = None,
    overwrite: bool = False,
) -> Path:
    """The prediction's files; the JSON comes last and says that the case is done, and which scan it answers.

    Files of these names that somebody else wrote are written over only where that is wanted.
    """
    AnswerFiles(output, engine.recipe.task, overwrite=overwrite).require_own(case)
    (output / f"{case}.json").unlink(missing_ok=True)  # it says nothing of the label map that comes now
    classes = engine.run.classes
    file: FindingsFile | LabelsFile
    update: dict[str, object] = {"warnings": prediction.warnings, "scan": scan}
    if prediction.labels is not None:
        name = f"{case}.nii.gz"
        write_nifti(prediction.labels, output / name)
        file = labels_file(prediction.labels, case=case, file=name, classes=classes, model=engine.stamp)
        update["file_sha256"] = content_of([output / name])
    else:
        assert prediction.detections is not None
        file = findings_file(prediction.detections, prediction.grid, case=case, classes=classes, model=engine.stamp)
    file = file.model_copy(update=update)
    with whole(output / f"{case}.json") as path:
        path.write_text(to_text(file), encoding="utf-8")
    return output / f"{case}.json"


def warnings_of(output: Path, *, case: str, engine: Engine) -> tuple[str, ...]:
    """What the answer that `write_answer` wrote says of its scan."""
    path = output / f"{case}.json"
    if engine.recipe.task == "segmentation":
        return read_file(LabelsFile, path).warnings
    return read_file(FindingsFile, path).warnings


def read_answer(output: Path, *, case: str, grid: Grid, engine: Engine) -> Prediction:
    """What `write_answer` wrote for a scan on `grid`."""
    path = output / f"{case}.json"
    if engine.recipe.task == "segmentation":
        return Prediction(grid, labels=read_labels(path, engine.run.classes, grid))
    findings = read_file(FindingsFile, path)
    return Prediction(grid, detections=detections_of(findings, engine.run.classes, frame="voxel"))
