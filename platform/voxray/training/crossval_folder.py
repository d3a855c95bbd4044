"""The folder of a cross-validation: one ordinary run per fold, and a file that says what they are folds of.

OUT/crossval.json     which dataset, recipe and folds; written before the first fold trains
OUT/store             what all folds train on, where a dataset's file was given
OUT/fold_0, ...       the runs
OUT/answers           each held-out case, answered by the run that never saw it
OUT/evaluation.json   their score
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, TypeAdapter

from voxray.core.config import Config, parse, to_json
from voxray.core.errors import ConfigError
from voxray.core.storage import Location, Place
from voxray.core.task_name import TaskName
from voxray.core.written import require_empty
from voxray.dataset.folds import Folds
from voxray.training.checkpoint import RunState, difference, find_state, short

CROSSVAL = "crossval.json"
STORE = "store"
ANSWERS = "answers"


class CrossvalFile(Config):
    """`crossval.json`."""

    model_config = ConfigDict(populate_by_name=True)

    schema_name: Literal["voxray-crossval/1"] = Field(
        default="voxray-crossval/1", validation_alias="schema", serialization_alias="schema"
    )
    dataset: str
    recipe: dict[str, Any]
    """Every field."""
    folds: dict[str, Any]
    num_folds: PositiveInt
    scored: Literal["val", "test"]
    """Which side of each fold is its held-out part."""
    seed: NonNegativeInt = 0

    @property
    def task(self) -> TaskName:
        """What the recipe answers."""
        kind: TaskName = self.recipe["loss"]["kind"]
        return kind

    @property
    def rule(self) -> Folds:
        """The folds as a dataset has them."""
        rule: Folds = TypeAdapter(Folds).validate_python(self.folds)
        return rule


def fold_folder(location: Location, fold: int) -> str:
    """Where a fold's run is."""
    return f"{Place.of(location).uri}/fold_{fold}"


def is_crossval(location: Location) -> bool:
    """Whether the folder is a cross-validation's."""
    return Place.of(location).exists(CROSSVAL)


def read_crossval(location: Location) -> CrossvalFile:
    """What the folder's runs are folds of."""
    place = f"{location}/{CROSSVAL}"
    try:
        data = json.loads(Place.of(location).read(CROSSVAL))
    except FileNotFoundError:
        raise ConfigError(
            f"{location}: no cross-validation here (it has no {CROSSVAL}); give the folder that `voxray crossval -o` "
            f"wrote."
        ) from None
    except ValueError as error:
        raise ConfigError(f"{place}: cannot be read ({error}); run the same crossval command again.") from None
    return parse(CrossvalFile, data, where=place)


def claim_crossval(location: Location, wanted: CrossvalFile) -> None:
    """Makes the folder this cross-validation's; a ConfigError where it is another's."""
    folder = Place.of(location)
    if not folder.exists(CROSSVAL):
        require_empty(folder, "cross-validation")
        folder.write(CROSSVAL, wanted.model_dump_json(indent=2, by_alias=True).encode())
        return
    held = read_crossval(location)
    for name, had, came in (
        ("the dataset", held.dataset, wanted.dataset),
        ("folds", _folds(held), _folds(wanted)),
        ("the seed", held.seed, wanted.seed),
    ):
        if had != came:
            told = f"{name} {had}, but {came} was asked for"
            raise ConfigError(f"{folder.uri}: holds a cross-validation with {told}; give another folder with -o.")
    changed = difference(held.recipe, json.loads(json.dumps(wanted.recipe)))
    if changed:
        field, had, came = changed
        raise ConfigError(
            f"{folder.uri}: holds a cross-validation with another recipe: {field} = {short(had)}, but {short(came)} "
            f"was asked for; give another folder with -o, or {field} = {short(had)} to go on with it."
        )


def fold_states(location: Location) -> dict[int, RunState]:
    """The state of every fold that has begun, finished or not."""
    found = {fold: find_state(fold_folder(location, fold)) for fold in range(read_crossval(location).num_folds)}
    return {fold: state for fold, state in found.items() if state is not None}


def finished_folds(location: Location) -> tuple[int, ...]:
    """The folds that have trained to their last epoch."""
    return tuple(fold for fold, state in fold_states(location).items() if state.finished)


def _folds(record: CrossvalFile) -> str:
    return to_json(record.rule).replace("\n ", "").replace("\n", "")
