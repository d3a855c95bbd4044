"""Trained networks as an export takes them: those of a run, or of a package, with where each comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from voxray.core.recipe import Recipe
from voxray.core.run import Run
from voxray.inference.package import (
    WEIGHTS,
    Ensemble,
    Member,
    Provenance,
    is_package,
    load_module,
    package_folder,
    read_package,
)
from voxray.inference.trained_model import runtimes_folder, weights_digest
from voxray.training.checkpoint import load_model


@dataclass(frozen=True)
class SourceNetwork:
    """One network, and how its files are called."""

    module: nn.Module
    digest: str
    """Of its weights."""
    weights: str
    """The name of their file."""
    engine: str
    """What the names of its engines begin with."""
    number: int | None = None
    """Its place in an ensemble, from 1."""


@dataclass(frozen=True)
class Trained:
    """What is exported: one network, or those of an ensemble, which are of one recipe."""

    run: Run
    recipe: Recipe
    provenance: Provenance
    parts: tuple[SourceNetwork, ...]
    ensemble: Ensemble | None = None
    kept_in: Path | None = None
    """Where what is converted from a run is kept."""


def read_trained(location: str | Path) -> Trained:
    """The best weights of a run, or all that a package holds."""
    if is_package(location):
        return _of_package(package_folder(location))
    about, recipe, module = load_model(location)
    digest = weights_digest(module)
    provenance = Provenance(
        run=about.name,
        commit=about.commit,
        dataset=about.dataset,
        licence=about.licence,
        weights_sha256=digest,
        voxray_version=about.voxray_version,
    )
    return Trained(about, recipe, provenance, (_single(module, digest),), kept_in=runtimes_folder(location))


def _of_package(folder: Path) -> Trained:
    package, recipe = read_package(folder)
    if package.ensemble is None:
        part = _single(load_module(folder, package, recipe), package.provenance.weights_sha256)
        return Trained(package.run, recipe, package.provenance, (part,))
    parts = tuple(
        _member(number, member, load_module(folder, package, recipe, weights=member.weights))
        for number, member in enumerate(package.ensemble.members, start=1)
    )
    return Trained(package.run, recipe, package.provenance, parts, package.ensemble)


def _single(module: nn.Module, digest: str) -> SourceNetwork:
    return SourceNetwork(module, digest, weights=WEIGHTS, engine="model")


def _member(number: int, member: Member, module: nn.Module) -> SourceNetwork:
    digest = member.provenance.weights_sha256
    return SourceNetwork(module, digest, weights=member.weights, engine=f"model-{number}", number=number)
