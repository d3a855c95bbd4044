"""The one configuration base: frozen pydantic models, read from TOML or JSON, with checked overrides.

Everything a user can write (recipes, datasets, search spaces) is a `Config`. Unknown keys are refused
with the nearest known name; every message starts with the file and the dotted field.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tomlkit
from pydantic import BaseModel, ConfigDict, ValidationError

from voxray.errors import ConfigError


class Config(BaseModel):
    """A frozen, fully checked piece of configuration; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


C = TypeVar("C", bound=Config)


def parse(kind: type[C], data: Mapping[str, Any], *, where: str, context: Mapping[str, Any] | None = None) -> C:
    """The mapping as a `kind`, or a ConfigError whose sentence starts with `where`.

    `context` reaches the validators: it is how a recipe learns which networks exist.
    """
    try:
        return kind.model_validate(dict(data), context=dict(context or {}))
    except ValidationError as error:
        raise ConfigError("\n".join(_sentence(kind, e, where) for e in error.errors())) from None


def read(kind: type[C], path: Path, *, context: Mapping[str, Any] | None = None) -> C:
    """The TOML or JSON file at `path` as a `kind`."""
    return parse(kind, read_mapping(path), where=str(path), context=context)


def read_mapping(path: Path) -> dict[str, Any]:
    """The TOML or JSON file at `path` as plain dictionaries; told apart by suffix."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a .toml or .json file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a readable UTF-8 text file.") from None
    try:
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not valid {path.suffix[1:].upper() or 'TOML'}: {error}.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold a table of fields, got a {type(data).__name__}.")
    return data


def to_json(config: Config) -> str:
    """The configuration as indented JSON; `parse` of it gives an equal configuration."""
    return config.model_dump_json(indent=2)


def to_toml(config: Config) -> str:
    """The configuration as TOML; fields that are None are left out, as TOML has no null."""
    return tomlkit.dumps(_without_none(json.loads(config.model_dump_json())))


def with_overrides(data: Mapping[str, Any], overrides: Sequence[str], *, where: str = "--set") -> dict[str, Any]:
    """`data` with each ``a.b.c=value`` put in place; the value is TOML, or else plain text.

    Names are not checked here but when the result is parsed, so that the message can name the near miss.
    """
    result = json.loads(json.dumps(data))
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"{where} {override}: must have the form field.subfield=value.")
        *parents, last = path.strip().split(".")
        node = result
        for name in parents:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{where} {override}: '{name}' is a value, not a group of fields.")
        node[last] = _value(text.strip())
    return dict(result)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value


def _sentence(kind: type[BaseModel], error: Any, where: str) -> str:
    location = [str(part) for part in error["loc"]]
    field = ".".join(location) or "(top level)"
    if error["type"] == "extra_forbidden":
        known = _known_fields(kind, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"allowed are {', '.join(sorted(known)) or 'none'}."
        return f"{where}: {field}: no such field; {hint}"
    if error["type"] == "missing":
        return f"{where}: {field}: is required and missing; add it."
    message = str(error["msg"]).removeprefix("Value error, ")
    came = "" if error["type"] == "value_error" else f", got {error['input']!r}"
    return f"{where}: {field}: {message}{came}"[:600]


def _known_fields(kind: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The field names at a dotted place; a union contributes those of the member that the path names."""
    models: list[type[BaseModel]] = [kind]
    for name in path:
        found = [
            m
            for model in models
            if name in model.model_fields
            for m in _models_in(model.model_fields[name].annotation)
        ]
        tagged = [m for m in models if "kind" in m.model_fields and m.model_fields["kind"].default == name]
        models = found or tagged or models
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
