"""Checkpoints, and the run folder that keeps the last and the best of them.

    RUN/state.json                       which checkpoint is the last and which the best; replaced as a whole
    RUN/run.json                         what is trained, written before the first step
    RUN/checkpoints/epoch_0007/weights.safetensors   what predicts: the network's weights, or their moving average
    RUN/checkpoints/epoch_0007/run.json              what a predictor needs besides
    RUN/checkpoints/epoch_0007/trainer.pt            what training needs to go on

A checkpoint counts once `state.json` names it, so one that was cut short is never read. Random numbers need no state:
every step derives its own from (seed, epoch, step, rank).
"""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import safetensors.torch
import torch
from pydantic import NonNegativeInt, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from voxray.core.config import Config, to_json
from voxray.core.errors import ConfigError, DataError
from voxray.core.recipe import Recipe, parse_recipe
from voxray.core.run import Run
from voxray.core.storage import Location, Place
from voxray.core.text import first_few
from voxray.core.written import require_empty
from voxray.models import MODELS

SCHEMA_VERSION = 1
"""Of `state.json` and `run.json`; a newer one is refused."""

CheckpointName = Literal["best", "last"]

C = TypeVar("C", bound=Config)

EPOCH = re.compile(r"epoch_[0-9]{4,}")
"""What training calls the folders that it makes and removes; one of another name is somebody else's."""
SETTING = "setting.json"
"""What a sweep leaves in the folder of a trial before it is trained."""


class RunState(Config):
    """`state.json`: the checkpoints that count, and how far training has come."""

    schema_version: int = SCHEMA_VERSION
    last: str
    best: str
    """The last one until a validation has had a say."""
    metric: str | None = None
    """By which `best` was chosen; higher is better."""
    best_value: float | None = None
    epochs_done: NonNegativeInt = 0
    finished: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """What is saved; `trainer` is None where there is nothing to go on from, such as imported weights."""

    run: Run
    weights: Mapping[str, Tensor]
    epochs_done: int
    trainer: Mapping[str, Any] | None = None
    metric: str | None = None
    """The task's primary metric, and its value where this epoch was validated."""
    value: float | None = None
    finished: bool = False


def write_checkpoint(location: Location, checkpoint: Checkpoint) -> RunState:
    """Writes the checkpoint, points `state.json` at it, and removes those that are neither last nor best."""
    folder, name = Place.of(location), f"epoch_{checkpoint.epochs_done:04d}"
    before = read_state(location) if folder.exists("state.json") else None
    parts = {
        "weights.safetensors": _weights_bytes(checkpoint.weights),
        "run.json": to_json(checkpoint.run).encode(),
    }
    if checkpoint.trainer is not None:
        parts["trainer.pt"] = _trainer_bytes(checkpoint.trainer)
    for part, data in parts.items():
        folder.write(f"checkpoints/{name}/{part}", data)
    state = _next_state(before, checkpoint, name)
    folder.write("state.json", to_json(state).encode())
    for other in folder.folders("checkpoints"):
        if EPOCH.fullmatch(other) and other not in (state.last, state.best):
            folder.remove(f"checkpoints/{other}")
    return state


def read_state(location: Location) -> RunState:
    """The run's `state.json`; a ConfigError where the folder holds no run."""
    folder = Place.of(location)
    try:
        data = folder.read("state.json")
    except FileNotFoundError:
        raise ConfigError(
            f"{folder.uri}: no run here (it has no state.json); give the folder that `voxray train -o` wrote."
        ) from None
    return _parsed(RunState, data, f"{folder.uri}/state.json")


def find_state(location: Location) -> RunState | None:
    """The run's state, or None where no checkpoint has been written yet."""
    return read_state(location) if Place.of(location).exists("state.json") else None


def load_model(location: Location, which: CheckpointName = "best") -> tuple[Run, Recipe, nn.Module]:
    """The run, its recipe and its network with the weights that predict, in eval mode on the CPU."""
    state = read_state(location)
    place = f"checkpoints/{state.best if which == 'best' else state.last}"
    run = read_run(location, f"{place}/run.json")
    recipe = recipe_of(run, where=f"{location}/{place}/run.json: recipe")
    model: nn.Module = recipe.network.build(recipe, len(run.classes))
    load_weights(model, read_weights(location, place), where=f"{location}/{place}/weights.safetensors")
    return run, recipe, model.eval()


def read_run(location: Location, name: str = "run.json") -> Run:
    """A `run.json` of the run's folder."""
    return _parsed(Run, _read(Place.of(location), name), f"{location}/{name}")


def read_best_run(location: Location) -> Run:
    """What is known of the weights that predict, without them."""
    return read_run(location, f"checkpoints/{read_state(location).best}/run.json")


def recipe_of(run: Run, *, where: str = "run.json: recipe") -> Recipe:
    """The recipe that a run was trained with."""
    return parse_recipe(run.recipe, MODELS, where=where)


def read_weights(location: Location, place: str) -> dict[str, Tensor]:
    """The weights of a checkpoint, by its place in the run's folder."""
    name = f"{place}/weights.safetensors"
    data = _read(Place.of(location), name)
    try:
        return dict(safetensors.torch.load(data))
    except (SafetensorError, ValueError, KeyError) as error:
        raise _damaged(f"{location}/{name}", error) from None


def read_trainer(location: Location) -> dict[str, Any] | None:
    """What training needs to go on from the last checkpoint; None where it holds weights alone."""
    folder, state = Place.of(location), read_state(location)
    name = f"checkpoints/{state.last}/trainer.pt"
    if not folder.exists(name):
        return None
    try:
        return dict(torch.load(io.BytesIO(_read(folder, name)), map_location="cpu", weights_only=True))
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise _damaged(f"{location}/{name}", error) from None


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], *, where: str) -> None:
    """Puts weights into a network; a DataError names what is missing, left over or of another shape."""
    own = model.state_dict()
    wrong = [f"{key} is missing" for key in own if key not in weights]
    wrong += [f"{key} is left over" for key in weights if key not in own]
    wrong += [
        f"{key} has shape {tuple(weights[key].shape)}, not {tuple(value.shape)}"
        for key, value in own.items()
        if key in weights and weights[key].shape != value.shape
    ]
    if wrong:
        raise DataError(
            "weights.mismatch",
            f"{where}: does not fit the recipe's network: {first_few(wrong, separator='; ')}.",
            remedy="Use the recipe that these weights were trained with.",
        )
    model.load_state_dict(dict(weights))


def require_run_folder(location: Location) -> None:
    """A ConfigError where the folder holds files and no run: training writes only to its own."""
    folder = Place.of(location)
    if not folder.exists("run.json") and not folder.exists("state.json"):
        require_empty(folder, "run", but=(SETTING,))


def claim_folder(location: Location, run: Run) -> Run:
    """Makes the folder this run's; where it holds a run already, that run, if it is the same one.

    A ConfigError names the first field that differs: a run is never changed half-way.
    """
    folder = Place.of(location)
    if not folder.exists("run.json"):
        if folder.exists("state.json"):
            raise ConfigError(
                f"{folder.uri}: holds weights that were not trained there; give another folder for this run."
            )
        require_run_folder(location)
        folder.write("run.json", to_json(run).encode())
        return run
    held = read_run(location)
    refuse_another(location, held, run)
    return held


def refuse_another(location: Location, held: Run, wanted: Run) -> None:
    """A ConfigError with the first field in which the folder's run is another than the one that is asked for.

    Its cases are not compared: they are a matter of its data.
    """
    found = difference(_identity(held), _identity(wanted))
    if found:
        field, had, came = found
        raise ConfigError(
            f"{Place.of(location).uri}: holds a run with {field} = {short(had)}, but {short(came)} was asked for; "
            f"give another folder, or {field} = {short(had)} to go on with it."
        )


def _next_state(before: RunState | None, new: Checkpoint, name: str) -> RunState:
    best_value = before.best_value if before else None
    valued = new.value is not None and new.value == new.value
    is_best = valued and (best_value is None or _number(new.value) > best_value)
    if is_best:
        best, best_value = name, new.value
    else:
        best = before.best if before and best_value is not None else name
    return RunState(
        last=name,
        best=best,
        metric=new.metric,
        best_value=best_value,
        epochs_done=new.epochs_done,
        finished=new.finished,
    )


def _number(value: float | None) -> float:
    assert value is not None
    return value


def _weights_bytes(weights: Mapping[str, Tensor]) -> bytes:
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    return bytes(safetensors.torch.save(plain, metadata={"format": "pt"}))


def _trainer_bytes(trainer: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(trainer), buffer)
    return buffer.getvalue()


def _read(folder: Place, name: str) -> bytes:
    try:
        return folder.read(name)
    except FileNotFoundError as error:
        raise DataError(
            "run.incomplete",
            f"{folder.uri}/{name}: is missing.",
            remedy="Copy the run again from where it was trained, or train it again.",
        ) from error


def _parsed(kind: type[C], data: bytes, where: str) -> C:
    try:
        fields = json.loads(data)
        version = fields.get("schema_version", SCHEMA_VERSION)
    except (ValueError, AttributeError) as error:
        raise _damaged(where, error) from None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise DataError(
            "run.newer",
            f"{where}: has schema version {version}, this voxray reads up to {SCHEMA_VERSION}.",
            remedy="Install the voxray that wrote it, or a later one.",
        )
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _damaged(where, error) from None


def _damaged(where: str, error: Exception) -> DataError:
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return DataError(
        "run.damaged",
        f"{where}: cannot be read ({text}).",
        remedy="Copy it again from where it was trained, or train it again.",
    )


def _identity(run: Run) -> dict[str, Any]:
    """What makes two runs of the same cases one; the code may have moved on, and the name is a label."""
    data: dict[str, Any] = json.loads(to_json(run))
    labels = ("schema_version", "name", "commit", "voxray_version", "dataset_file")
    for name in (*labels, "data", "left_as_it_is", "train_cases", "val_cases"):
        data.pop(name)
    return data


def difference(old: Any, new: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """The first dotted field in which two trees differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            found = difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)
            if found:
                return found
        return None
    return None if old == new else (path, old, new)


def short(value: Any) -> str:
    """A value in a sentence; of a long list only its length."""
    if isinstance(value, list) and len(value) > 6:
        return f"[{len(value)} entries]"
    return json.dumps(value)
