"""Checkpoints, and the run folder that keeps the last two and the best of them.

    RUN/state.json                       which checkpoints count, and a SHA-256 of each file; replaced as a whole
    RUN/run.json                         what is trained, written before the first step
    RUN/checkpoints/epoch_0007/weights.safetensors   what predicts: the network's weights, or their moving average
    RUN/checkpoints/epoch_0007/run.json              what a predictor needs besides
    RUN/checkpoints/epoch_0007/trainer.pt            what training needs to go on
    RUN/checkpoints/epoch_0007_step_000120/...       the same, 120 steps into the next epoch

A checkpoint counts once `state.json` names it, so one that was cut short is never read; a file that is not what was
written is refused. Random numbers need no state: every step derives its own from (seed, epoch, step, slot).
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import safetensors.torch
import torch
from pydantic import Field, NonNegativeInt, ValidationError
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

SCHEMA_VERSION = 2
"""Of `state.json` and `run.json`; a newer one is refused. Version 1 of `state.json` had no digests."""

CheckpointName = Literal["best", "last"]

C = TypeVar("C", bound=Config)

EPOCH = re.compile(r"epoch_[0-9]{4,}")
"""The folder of what belongs to the end of an epoch."""
CHECKPOINT = re.compile(r"epoch_([0-9]{4,})(?:_step_([0-9]{6,}))?")
"""What training calls the checkpoints that it makes and removes; a folder of another name is somebody else's."""
DAMAGED = ("run.damaged", "run.incomplete")
"""Codes of errors that say that a checkpoint's files are not what was written."""
SETTING = "setting.json"
"""What a sweep leaves in the folder of a trial before it is trained."""


class RunState(Config):
    """`state.json`: the checkpoints that count, and how far training has come."""

    schema_version: int = SCHEMA_VERSION
    last: str
    previous: str | None = None
    """The one before the last, for the case that the last one's files are damaged."""
    best: str
    """The last one until a validation has had a say."""
    metric: str | None = None
    """By which `best` was chosen; higher is better."""
    best_value: float | None = None
    epochs_done: NonNegativeInt = 0
    steps_done: NonNegativeInt = 0
    """Steps of the epoch after those."""
    finished: bool = False
    digests: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Checkpoint -> file -> SHA-256; those of an earlier voxray have none."""

    @property
    def place(self) -> tuple[int, int]:
        """How far training has come: whole epochs, and steps of the next."""
        return self.epochs_done, self.steps_done


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
    steps_done: int = 0
    """Steps of the epoch after `epochs_done`."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return checkpoint_name(self.epochs_done, self.steps_done)


def checkpoint_name(epochs_done: int, steps_done: int = 0) -> str:
    """The folder of the checkpoint after so many epochs and so many steps of the next."""
    return f"epoch_{epochs_done:04d}" + (f"_step_{steps_done:06d}" if steps_done else "")


def place_of(name: str) -> tuple[int, int]:
    """The inverse: (epochs, steps)."""
    found = CHECKPOINT.fullmatch(name)
    assert found is not None, name
    return int(found[1]), int(found[2] or 0)


def write_checkpoint(location: Location, checkpoint: Checkpoint) -> RunState:
    """Writes the checkpoint, points `state.json` at it, and removes all but the last two and the best."""
    folder, name = Place.of(location), checkpoint.name
    before = find_state(location)
    parts = {
        "weights.safetensors": _weights_bytes(checkpoint.weights),
        "run.json": to_json(checkpoint.run).encode(),
    }
    if checkpoint.trainer is not None:
        parts["trainer.pt"] = _trainer_bytes(checkpoint.trainer)
    for part, data in parts.items():
        folder.write(f"checkpoints/{name}/{part}", data)
    digests = {part: hashlib.sha256(data).hexdigest() for part, data in parts.items()}
    state = _next_state(before, checkpoint, digests)
    folder.write("state.json", to_json(state).encode())
    for other in folder.folders("checkpoints"):
        if CHECKPOINT.fullmatch(other) and other not in (state.last, state.previous, state.best):
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
    run = read_run(location, f"{place}/run.json", state=state)
    recipe = recipe_of(run, where=f"{location}/{place}/run.json: recipe")
    model: nn.Module = recipe.network.build(recipe, len(run.classes))
    weights = read_weights(location, place, state=state)
    load_weights(model, weights, where=f"{location}/{place}/weights.safetensors")
    return run, recipe, model.eval()


def read_run(location: Location, name: str = "run.json", *, state: RunState | None = None) -> Run:
    """A `run.json` of the run's folder; that of a checkpoint is held against its digest in `state.json`."""
    if name.startswith("checkpoints/"):
        data = _read_part(Place.of(location), name, state or read_state(location))
    else:
        data = _read(Place.of(location), name)
    return _parsed(Run, data, f"{location}/{name}")


def read_best_run(location: Location) -> Run:
    """What is known of the weights that predict, without them."""
    state = read_state(location)
    return read_run(location, f"checkpoints/{state.best}/run.json", state=state)


def recipe_of(run: Run, *, where: str = "run.json: recipe") -> Recipe:
    """The recipe that a run was trained with."""
    return parse_recipe(run.recipe, MODELS, where=where)


def read_weights(location: Location, place: str, *, state: RunState | None = None) -> dict[str, Tensor]:
    """The weights of a checkpoint, by its place in the run's folder; they are held against their digest."""
    name = f"{place}/weights.safetensors"
    data = _read_part(Place.of(location), name, state or read_state(location))
    try:
        return dict(safetensors.torch.load(data))
    except (SafetensorError, ValueError, KeyError) as error:
        raise _damaged(f"{location}/{name}", error) from None


def read_trainer(
    location: Location, name: str | None = None, *, state: RunState | None = None
) -> dict[str, Any] | None:
    """What training needs to go on from a checkpoint, by default the last; None where it holds weights alone."""
    state = state or read_state(location)
    folder, checkpoint = Place.of(location), name or state.last
    path = f"checkpoints/{checkpoint}/trainer.pt"
    if "trainer.pt" not in state.digests.get(checkpoint, ()) and not folder.exists(path):
        return None
    try:
        data = io.BytesIO(_read_part(folder, path, state))
        return dict(torch.load(data, map_location="cpu", weights_only=True))
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise _damaged(f"{location}/{path}", error) from None


@dataclass(frozen=True)
class ResumePoint:
    """A checkpoint that training can go on from, and what is to be said where it is not the last one."""

    name: str
    weights: Mapping[str, Tensor]
    trainer: Mapping[str, Any]
    warning: str = ""


def newest_intact(location: Location, steps_per_epoch: int) -> ResumePoint | None:
    """The newest checkpoint whose files are what was written; None where there is none at all.

    Where the last one is damaged it is the one before, or the best; from then on it is the folder's last. A DataError
    where no checkpoint is intact.
    """
    state = find_state(location)
    if state is None:
        return None
    errors: list[DataError] = []
    for name in dict.fromkeys(one for one in (state.last, state.previous, state.best) if one is not None):
        try:
            found = read_checkpoint(location, name, state=state)
        except DataError as error:
            if error.code not in (*DAMAGED, "run.no_trainer") or (errors and error.code == "run.no_trainer"):
                raise
            errors.append(error)
            continue
        if not errors:
            return found
        Place.of(location).write("state.json", to_json(_fallen_back(state, name)).encode())
        return replace(found, warning=_fallback_warning(errors[0], state, name, steps_per_epoch))
    raise errors[0]


def read_checkpoint(location: Location, name: str, *, state: RunState | None = None) -> ResumePoint:
    """A checkpoint to go on from; a DataError where it is damaged, or was written by no training."""
    state = state or read_state(location)
    trainer = read_trainer(location, name, state=state)
    if trainer is None:
        raise DataError(
            "run.no_trainer",
            f"{location}: its checkpoint {name} has no trainer.pt.",
            remedy="Copy the whole run from where it was trained, or train into another folder.",
        )
    return ResumePoint(name, read_weights(location, f"checkpoints/{name}", state=state), trainer)


def _fallen_back(state: RunState, name: str) -> RunState:
    """The state as it was when that checkpoint was the last; its value is unknown where the best one is lost."""
    epochs, steps = place_of(name)
    is_best_kept = state.best != state.last and place_of(state.best) <= (epochs, steps)
    best, value = (state.best, state.best_value) if is_best_kept else (name, None)
    return state.model_copy(
        update={
            "last": name,
            "previous": None,
            "best": best,
            "best_value": value,
            "epochs_done": epochs,
            "steps_done": steps,
            "finished": False,
            "digests": {one: digests for one, digests in state.digests.items() if one in (name, best)},
        }
    )


def _fallback_warning(error: DataError, state: RunState, name: str, steps_per_epoch: int) -> str:
    last, to = (epochs * steps_per_epoch + steps for epochs, steps in (place_of(state.last), place_of(name)))
    return (
        f"warning: {error.message} Training goes on from the checkpoint before, {name}: {last - to} steps are done "
        f"again."
    )


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


def _next_state(before: RunState | None, new: Checkpoint, digests: dict[str, str]) -> RunState:
    name, best_value = new.name, before.best_value if before else None
    valued = new.value is not None and new.value == new.value
    is_best = valued and (best_value is None or _number(new.value) > best_value)
    if is_best:
        best, best_value = name, new.value
    else:
        best = before.best if before and best_value is not None else name
    previous = None
    if before:
        previous = before.last if before.last != name else before.previous
    known = {**(before.digests if before else {}), name: digests}
    return RunState(
        last=name,
        previous=previous,
        best=best,
        metric=new.metric,
        best_value=best_value,
        epochs_done=new.epochs_done,
        steps_done=new.steps_done,
        finished=new.finished,
        digests={one: known[one] for one in dict.fromkeys((name, previous, best)) if one in known},
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


def _read_part(folder: Place, name: str, state: RunState) -> bytes:
    """A file of a checkpoint; a DataError where it is not what was written."""
    _, checkpoint, part = name.split("/")
    data, wanted = _read(folder, name), state.digests.get(checkpoint, {}).get(part)
    if wanted is not None and hashlib.sha256(data).hexdigest() != wanted:
        raise _damaged(f"{folder.uri}/{name}", ValueError("its SHA-256 is not the one in state.json"))
    return data


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
    labels = ("schema_version", "name", "commit", "voxray_version", "dataset_file", "num_slots")
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
