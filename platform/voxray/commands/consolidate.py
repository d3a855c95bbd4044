"""Consolidate: the folds of a cross-validation, or any runs of one recipe, as one package that answers with all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from voxray import __version__
from voxray.core.config import Setting
from voxray.core.errors import ConfigError
from voxray.core.evaluation import EVALUATION, Evaluation, read_evaluation
from voxray.core.progress import Progress
from voxray.core.recipe import Recipe
from voxray.core.run import Run
from voxray.core.storage import Location, Place
from voxray.core.working_copy import local_file
from voxray.exporting.card import ensemble_card
from voxray.inference.package import Ensemble, Member, Provenance, write_manifest, writing
from voxray.inference.trained_model import weights_digest
from voxray.loading.inputs import keep_out_of_run
from voxray.store import number_of_cases
from voxray.sweeping.settings import read_setting, with_setting
from voxray.training.checkpoint import load_model, read_state
from voxray.training.crossval_folder import fold_folder, fold_states, is_crossval, read_crossval

BATCHES = (1, 4, 8)
"""What engines that are later built of the networks are built for."""


@dataclass(frozen=True)
class ConsolidateReport:
    """The package, and what went into it."""

    output: Location
    members: tuple[str, ...]
    """The runs."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Fold -> why it is not in it."""
    setting: Setting = field(default_factory=dict)


@dataclass(frozen=True)
class Loaded:
    """A run with its best weights."""

    location: str
    run: Run
    recipe: Recipe
    module: nn.Module
    checkpoint: str


def consolidate(
    sources: Sequence[Location], output: Location, *, setting: Location | None = None, progress: Progress
) -> ConsolidateReport:
    """One package of the best weights of all runs; of a cross-validation those of its finished folds.

    `setting` is what a sweep left (`sweep.json`): its choice takes the place of the recipe's own merge.
    """
    locations, left_out = _members(sources)
    for location in locations:
        keep_out_of_run(output, location)
    first = _load(locations[0])
    chosen = {} if setting is None else _read_setting(setting, first.recipe)
    recipe = with_setting(first.recipe, chosen, where=str(setting))
    with writing(output) as folder, progress.track("consolidate", total=len(locations), unit="runs") as advance:
        members: list[Member] = []
        runs: list[Run] = []
        for number, location in enumerate(locations, start=1):
            one = first if number == 1 else _load(location)
            _require_alike(first, one)
            members.append(_write_member(folder, number, one))
            runs.append(one.run)
            advance(1)
        _say_other_data(runs, locations, progress)
        ensemble = Ensemble(members=tuple(members), setting=dict(chosen))
        about = _about(runs, name=_name_of(sources, output), recipe=recipe)
        card = ensemble_card(
            about, recipe, ensemble, name=Place.of(output).name, score=_score(sources, ensemble, progress)
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        write_manifest(folder, _fields(about, recipe, ensemble), recipe)
    return ConsolidateReport(output, tuple(locations), left_out, chosen)


def _read_setting(location: Location, recipe: Recipe) -> Setting:
    with local_file(location) as path:
        return read_setting(path, recipe)


def _members(sources: Sequence[Location]) -> tuple[list[str], dict[str, str]]:
    """The runs, and the folds that are left out with the reason."""
    locations: list[str] = []
    left_out: dict[str, str] = {}
    for source in sources:
        if not is_crossval(source):
            read_state(source)
            locations.append(Place.of(source).uri)
            continue
        states, about = fold_states(source), read_crossval(source)
        for fold in range(about.num_folds):
            if fold in states and states[fold].finished:
                locations.append(fold_folder(source, fold))
            else:
                done = states[fold].epochs_done if fold in states else 0
                left_out[f"fold {fold}"] = f"has trained {done} of {about.recipe['optim']['epochs']} epochs"
        if not any(state.finished for state in states.values()):
            raise ConfigError(f"{source}: no fold has finished its training; run the same crossval command again.")
    if len(set(locations)) < len(locations):
        twice = next(location for location in locations if locations.count(location) > 1)
        raise ConfigError(f"{twice}: is given twice; give each run once.")
    return locations, left_out


def _load(location: str) -> Loaded:
    run, recipe, module = load_model(location)
    return Loaded(location, run, recipe, module, read_state(location).best)


def _require_alike(first: Loaded, other: Loaded) -> None:
    """A ConfigError where the two cannot answer together."""
    if other.run.classes != first.run.classes:
        ours, theirs = (", ".join(one.run.classes[:5]) for one in (first, other))
        raise ConfigError(
            f"{other.location}: answers {theirs}; {first.location} answers {ours}. They must be the same."
        )
    other_fields, first_fields = (json.loads(one.recipe.model_dump_json()) for one in (other, first))
    different = [
        name for name in first_fields if other_fields[name] != first_fields[name] and name not in ("name", "about")
    ]
    if different:
        raise ConfigError(
            f"{other.location}: its recipe has another {different[0]} than that of {first.location}; networks that "
            f"answer together are runs of one recipe."
        )


def _say_other_data(runs: Sequence[Run], locations: Sequence[str], progress: Progress) -> None:
    """Says which runs were last trained on other data than the first: corrected labels, added cases."""
    recorded = {place: run.data[-1] for run, place in zip(runs, locations, strict=True) if run.data}
    digests = {place: version.digest for place, version in recorded.items()}
    first = next(iter(digests), "")
    for place in [place for place, digest in digests.items() if digest != digests[first]]:
        progress.say(
            f"{place}: was trained on other data ({number_of_cases(recorded[place].num_cases)}) than {first} "
            f"({number_of_cases(recorded[first].num_cases)}); they answer together all the same."
        )


def _write_member(folder: Path, number: int, one: Loaded) -> Member:
    """The run's weights as a file of the package."""
    name = f"weights-{number}.safetensors"
    weights = {key: value.contiguous() for key, value in one.module.state_dict().items()}
    safetensors.torch.save_file(weights, folder / name)
    return Member(
        weights=name,
        checkpoint=one.checkpoint,
        fold=one.run.fold,
        provenance=Provenance(
            run=one.run.name,
            commit=one.run.commit,
            dataset=one.run.dataset,
            licence=one.run.licence,
            weights_sha256=weights_digest(one.module),
            voxray_version=one.run.voxray_version,
        ),
    )


def _about(runs: Sequence[Run], *, name: str, recipe: Recipe) -> Run:
    """The ensemble as a run: what all have in common, and every value where they differ."""

    def joined(values: Sequence[str]) -> str:
        return ", ".join(dict.fromkeys(values))

    return Run(
        name=name,
        dataset=joined([run.dataset for run in runs]),
        licence=joined([run.licence for run in runs]),
        classes=runs[0].classes,
        recipe=json.loads(recipe.model_dump_json()),
        commit=joined([run.commit for run in runs]),
        voxray_version=__version__,
    )


def _fields(about: Run, recipe: Recipe, ensemble: Ensemble) -> dict[str, Any]:
    """What `package.json` holds besides what is drawn from the recipe."""
    digest = hashlib.sha256()
    for member in ensemble.members:
        digest.update(member.provenance.weights_sha256.encode())
    return {
        "task": recipe.task,
        "classes": about.classes,
        "runtime": "torch",
        "precision": "fp32",
        "batches": BATCHES,
        "provenance": Provenance(
            run=about.name,
            commit=about.commit,
            dataset=about.dataset,
            licence=about.licence,
            weights_sha256=digest.hexdigest(),
            voxray_version=about.voxray_version,
        ),
        "engines": (),
        "ensemble": ensemble,
    }


def _name_of(sources: Sequence[Location], output: Location) -> str:
    """The cross-validation's name, or else the package's."""
    return Place.of(sources[0]).uri.rpartition("/")[2] if len(sources) == 1 else Place.of(output).name


def _score(sources: Sequence[Location], ensemble: Ensemble, progress: Progress) -> Evaluation | None:
    """What a cross-validation scored on held-out cases, if it did, and its networks are these."""
    if len(sources) != 1 or not is_crossval(sources[0]):
        return None
    place = Place.of(sources[0])
    if not place.exists(EVALUATION):
        return None
    file = f"{place.uri}/{EVALUATION}"
    with local_file(file) as path:
        score = read_evaluation(path)
    if sorted(score.weights_sha256) != sorted(member.provenance.weights_sha256 for member in ensemble.members):
        progress.say(f"{file}: is no score of these networks, so the card has none; run crossval again first.")
        return None
    return score
