"""A search space: fields of a recipe with the values that a sweep may give them, checked before anything runs.

    about = "How detections are merged."

    [fields]
    "merge.tile_iou" = { low = 0.0, high = 0.6, grid = [1e-5, 0.1, 0.2, 0.3, 0.4, 0.5] }
    "merge.method" = { choices = ["nms", "weighted_nms"] }
    "merge.view_candidates" = { low = 100, high = 2000, log = true }

A space that names ``merge.`` fields alone is tried on kept candidates; ``inference.`` fields, as choices, need one
answer of the network for each; any other field trains a network for every trial.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import PositiveInt, field_validator, model_validator

from voxray.core.config import Config, Setting, get_field, read, set_fields
from voxray.core.errors import ConfigError
from voxray.core.recipe import Merge, Recipe, parse_recipe
from voxray.inference.candidates.file import FLOOR
from voxray.models import MODELS

FieldValue = bool | int | float | str

_GRID = 6
"""Values of a range that names none, in a grid or a greedy search."""


class Spread(Config):
    """The values that a field may take: a range, or choices."""

    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    """Small and large values are equally likely."""
    step: float | int | None = None
    choices: tuple[FieldValue, ...] | None = None
    grid: tuple[FieldValue, ...] | None = None
    """What a grid or a greedy search tries of a range; without it, evenly spread values."""

    @model_validator(mode="after")
    def _possible(self) -> Spread:
        if self.choices is not None:
            if any(value is not None for value in (self.low, self.high, self.step, self.grid)) or self.log:
                raise ValueError("has choices, so low, high, step, log and grid must go")
            if len(set(self.choices)) < 2 or len(set(self.choices)) < len(self.choices):
                raise ValueError(f"choices must be two or more different values, got {list(self.choices)}")
            return self
        if self.low is None or self.high is None:
            raise ValueError("needs low and high, or choices")
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if self.step is not None and (self.log or not 0 < self.step <= self.high - self.low):
            raise ValueError(f"step must be above 0, fit into the range, and not be with log, got {self.step}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be above 0 with log, got {self.low}")
        for value in self.grid or ():
            if isinstance(value, str | bool) or not self.low <= value <= self.high:
                raise ValueError(f"grid values must lie within low and high, got {value!r}")
        return self

    @property
    def ends(self) -> tuple[FieldValue, ...]:
        """The values with which everything between is allowed, too."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high, *(self.grid or ())

    def values(self) -> tuple[FieldValue, ...]:
        """What a grid or a greedy search tries, in order."""
        if self.choices is not None or self.grid is not None:
            return self.choices or self.grid or ()
        low, high = self.low, self.high
        assert low is not None
        assert high is not None
        if self.step is not None:
            count = int((high - low) / self.step + 1e-9) + 1
            return tuple(low + index * self.step for index in range(count))
        if self.log:
            spread = [low * (high / low) ** (index / (_GRID - 1)) for index in range(_GRID)]
        else:
            spread = [low + (high - low) * index / (_GRID - 1) for index in range(_GRID)]
        whole = isinstance(low, int) and isinstance(high, int)
        return tuple(dict.fromkeys(round(value) if whole else value for value in spread))


class SpaceFile(Config):
    """What a search space's file holds."""

    about: str = ""
    fields: dict[str, Spread]
    """In the order in which a greedy search takes them."""
    trials: PositiveInt = 200
    """How many a sweep makes if it is not told."""

    @field_validator("fields")
    @classmethod
    def _some(cls, fields: dict[str, Spread]) -> dict[str, Spread]:
        if not fields:
            raise ValueError('names none; give one or more, such as "merge.tile_iou" = { low = 0.1, high = 0.5 }')
        return fields


def merge_with(own: Merge, setting: Setting) -> Merge:
    """A merge with what a setting says of it."""
    values = {field: value for field, value in setting.items() if field.startswith("merge.")}
    changed = set_fields({"merge": own.model_dump(mode="json")}, values, where="setting")
    return type(own).model_validate(changed["merge"])


class Space:
    """A search space that fits a recipe."""

    def __init__(self, path: Path, file: SpaceFile, recipe: Recipe) -> None:
        self.name, self.path, self.file, self.recipe = path.stem, path, file, recipe
        self._data = recipe.model_dump(mode="json")
        self.whole = {field for field in file.fields if self._check(field)}
        """The fields that are whole numbers."""
        self._check_kinds()

    @property
    def fields(self) -> Mapping[str, Spread]:
        """Field -> its values."""
        return self.file.fields

    @property
    def trains(self) -> bool:
        """Whether a trial trains a network."""
        return any(field.split(".")[0] not in ("merge", "inference") for field in self.fields)

    @property
    def digest(self) -> str:
        """Tells this space from others."""
        text = json.dumps(
            [self.file.model_dump(mode="json", include={"fields"}), self._data["merge"]], sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def recipe_of(self, setting: Setting) -> Recipe:
        """The recipe with the setting's values."""
        data = set_fields(self._data, setting, where=str(self.path))
        return parse_recipe(data, MODELS, where=str(self.path))

    def merge_of(self, setting: Setting) -> Merge:
        """The merge alone, many times faster."""
        return merge_with(self.recipe.merge, setting)

    def variants(self) -> list[Setting]:
        """Every combination of the ``inference.`` choices; one empty one where there are none."""
        fields = [field for field in self.fields if field.startswith("inference.")]
        every = itertools.product(*(self.fields[field].values() for field in fields))
        return [dict(zip(fields, values, strict=True)) for values in every]

    def present(self) -> Setting | None:
        """What the recipe itself says, or None where that lies outside of the space."""
        found: dict[str, FieldValue] = {}
        for field, spread in self.fields.items():
            value = get_field(self._data, field)
            if not _within(value, spread):
                return None
            found[field] = value
        return found

    def lowest(self, field: str, otherwise: float) -> float:
        """The lowest value that a numeric field may take."""
        spread = self.fields.get(field)
        if spread is None:
            return otherwise
        numbers = [value for value in spread.ends if not isinstance(value, str | bool)]
        return float(min(numbers, default=otherwise))

    def possible(self, field: str) -> set[Any]:
        """The choices of a field, or the recipe's one value."""
        spread = self.fields.get(field)
        group, name = field.split(".")
        return set(spread.values()) if spread else {self._data[group][name]}

    def _check(self, field: str) -> bool:
        """Whether the field holds whole numbers; a ConfigError where it is none, or a value is not allowed."""
        spread = self.fields[field]
        found = [self._value(field, value) for value in spread.ends]
        for written, held in zip(spread.ends, found, strict=True):
            # pydantic takes true for 1.0 and 1 for true; a sweep would try one value under two names.
            same = isinstance(written, bool) == isinstance(held, bool)
            _require(same, f"{self.path}: {field}: {written!r} is not the kind of value that it holds ({held!r}).")
        numbers = [value for value in found if not isinstance(value, str | bool)]
        whole = bool(numbers) and all(isinstance(value, int) for value in numbers)
        step = 1 if spread.step is None else spread.step
        _require(
            not whole or step == int(step),
            f"{self.path}: {field}: holds whole numbers, so step must be one, got {step}.",
        )
        return whole

    def _value(self, field: str, value: FieldValue) -> Any:
        """The value as the recipe takes it."""
        parents = field.split(".")[:-1]
        node: Any = self._data
        for name in parents:
            if not isinstance(node, Mapping):
                raise ConfigError(f"{self.path}: {field}: '{name}' is no group of fields.")
            node = node.get(name, {})
        if not parents or not isinstance(node, Mapping):
            raise ConfigError(f"{self.path}: {field}: must be a group and a field of it, such as merge.tile_iou.")
        return get_field(self.recipe_of({field: value}).model_dump(), field)

    def _check_kinds(self) -> None:
        for field, spread in self.fields.items():
            group = field.split(".")[0]
            if group == "inference" and spread.choices is None and not self.trains:
                raise ConfigError(
                    f"{self.path}: {field}: the network answers anew for every value; give choices, not a range."
                )
            lowest = self.lowest(field, 1.0)
            if field == "merge.threshold" or field.startswith("merge.thresholds."):
                _require(
                    lowest >= FLOOR, f"{self.path}: {field}: probabilities below {FLOOR} are not kept; raise low."
                )
            floor = self.recipe.inference.candidate_floor
            if field == "merge.score_floor":
                too_low = f"{self.path}: {field}: candidates below inference.candidate_floor ({floor}) are not kept; "
                _require(lowest >= floor, f"{too_low}raise low.")


def read_space(path: Path, recipe: Recipe) -> Space:
    """The search space in a TOML or JSON file, checked against the recipe that it is to vary."""
    return Space(path, read(SpaceFile, path), recipe)


def as_overrides(setting: Setting) -> list[str]:
    """The setting as ``--set`` takes it."""
    return [f"{field}={json.dumps(value)}" for field, value in setting.items()]


def _within(value: Any, spread: Spread) -> bool:
    if spread.choices is not None:
        return value in spread.choices
    assert spread.low is not None
    assert spread.high is not None
    return isinstance(value, int | float) and spread.low <= value <= spread.high


def _require(met: bool, sentence: str) -> None:
    if not met:
        raise ConfigError(sentence)


def product_size(values: Sequence[Sequence[FieldValue]]) -> int:
    """How many combinations there are."""
    total = 1
    for one in values:
        total *= len(one)
    return total
