"""A run or a package opened to answer scans: its networks, their runtime, and the stamp of its answers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from voxray.core.addresses import local_path
from voxray.core.answer_json import ModelStamp, stamp
from voxray.core.errors import ConfigError
from voxray.core.recipe import Recipe, parse_recipe
from voxray.core.run import Run
from voxray.core.volume import Grid
from voxray.inference.candidates.folder import RecordSource
from voxray.inference.package import Package, is_package, package_folder, package_networks, read_about, read_package
from voxray.inference.predictor import Predictor
from voxray.models import MODELS
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
from voxray.training.checkpoint import load_model, read_best_run, recipe_of

ANSWERING_FIELDS = ("merge", "inference")
"""The recipe's groups that may be set when a trained run answers; the others are in its weights."""


@dataclass(frozen=True)
class TrainedModel:
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


def open_model(
    run: str | Path,
    *,
    overrides: Sequence[str] = (),
    device: str = "cpu",
    runtime: str | None = None,
    precision: str = "auto",
) -> TrainedModel:
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
        model = _open_package(folder, overrides, device=device, runtime=runtime, precision=precision)
        return model if local_path(run) is not None else replace(model, fetched_from=str(run))
    about, recipe, module = load_model(run)
    if overrides:
        recipe = parse_recipe(about.recipe, MODELS, overrides=overrides, where=f"{run}: run.json")
    digest = weights_digest(module)
    network = network_of(recipe, module, digest=digest, folder=runtimes_folder(run))
    choice = _chosen(recipe, network, runtime, device=device, precision=precision)
    return TrainedModel(
        run=about,
        recipe=recipe,
        stamp=stamp(about, recipe, sha256=digest, engine=_engine_of(choice)),
        device=device,
        networks=(network,),
        choice=choice,
    )


def _open_package(
    folder: Path, overrides: Sequence[str], *, device: str, runtime: str | None, precision: str
) -> TrainedModel:
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
    return TrainedModel(
        run=package.run,
        recipe=recipe,
        stamp=stamp(package.run, recipe, sha256=package.provenance.weights_sha256, engine=_engine_of(choice)),
        device=device,
        networks=package_networks(folder, package, recipe, with_module=with_module),
        choice=choice,
    )


def _open_ensemble(
    folder: Path, package: Package, recipe: Recipe, *, device: str, runtime: str | None, precision: str
) -> TrainedModel:
    """As a run is opened: it holds weights, which torch loads and others convert."""
    networks = package_networks(folder, package, recipe, with_module=True)
    choice = _chosen(recipe, networks[0], runtime, device=device, precision=precision)
    return TrainedModel(
        run=package.run,
        recipe=recipe,
        stamp=stamp(package.run, recipe, sha256=package.provenance.weights_sha256, engine=_engine_of(choice)),
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
        precision = _precision_of(half_on(torch.device(device)))
    trained_in = _precision_of(recipe.optim.amp)
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


def _precision_of(amp: Literal["off", "bf16", "fp16"]) -> Precision:
    return "fp32" if amp == "off" else amp


def _engine_of(choice: Choice | None) -> str:
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


def about_of(run: str | Path) -> Run:
    """What a run or package says of itself, without a look at its weights."""
    return read_about(package_folder(run)).run if is_package(run) else read_best_run(run)


def task_of(run: str | Path) -> str:
    """What a run or package answers, without a look at its weights."""
    return recipe_of(about_of(run), where=f"{run}: recipe").task
