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

from voxray.core.errors import ConfigError
from voxray.core.text import TextError, read_text


class Config(BaseModel):
    """A frozen, fully checked piece of configuration; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


C = TypeVar("C", bound=Config)

Setting = Mapping[str, Any]
"""Dotted field -> value, as ``merge.tile_iou`` -> 0.3."""


def parse(kind: type[C], data: Mapping[str, Any], *, where: str, context: Mapping[str, Any] | None = None) -> C:
    """The mapping as a `kind`, or a ConfigError whose sentence starts with `where`.

    `context` reaches the validators: it is how a recipe learns which networks exist.
    """
    try:
        return kind.model_validate(dict(data), context=dict(context or {}))
    except ValidationError as error:
        sentences = dict.fromkeys(_sentence(kind, e, where=where, data=data) for e in error.errors())
        raise ConfigError("\n".join(sentences)) from None


def read(kind: type[C], path: Path, *, context: Mapping[str, Any] | None = None) -> C:
    """The TOML or JSON file at `path` as a `kind`."""
    return parse(kind, read_mapping(path), where=str(path), context=context)


def read_mapping(path: Path) -> dict[str, Any]:
    """The TOML or JSON file at `path` as plain dictionaries; told apart by suffix."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a .toml or .json file.") from None
    except (OSError, TextError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give a readable UTF-8 text file.") from None
    return mapping_in(text, where=str(path))


def mapping_in(text: str, *, where: str) -> dict[str, Any]:
    """The text of the TOML or JSON file `where` as plain dictionaries; told apart by suffix."""
    suffix = Path(where).suffix
    try:
        data = json.loads(text) if suffix == ".json" else tomllib.loads(text)
    except (json.JSONDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{where}: not valid {suffix[1:].upper() or 'TOML'}: {error}.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: must hold a table of fields, got a {type(data).__name__}.")
    return data


def to_json(config: Config) -> str:
    """The configuration as indented JSON; `parse` of it gives an equal configuration."""
    return config.model_dump_json(indent=2)


def to_toml(config: Config) -> str:
    """The configuration as TOML; fields that are None are left out, as TOML has no null."""
    return tomlkit.dumps(_without_none(json.loads(config.model_dump_json())))


def to_full_toml(config: Config) -> str:
    """The configuration as TOML with every field: those that are None as comments that say what is allowed."""
    return tomlkit.dumps(_filled(tomlkit.document(), config))


def _filled(table: Any, config: Config) -> Any:
    """The fields as TOML, values before groups, as TOML has it."""
    plain, groups, unset = json.loads(config.model_dump_json()), {}, []
    for name in type(config).model_fields:
        value = getattr(config, name)
        if value is None and _unset(type(config), name).startswith("["):
            unset.append(_unset(type(config), name))
        elif value is None:
            table.add(tomlkit.comment(_unset(type(config), name)))
        elif isinstance(value, Config | Mapping):
            groups[name] = value
        else:
            table.add(name, _without_none(plain[name]))
    for name, value in groups.items():
        inner = tomlkit.table()
        if table:
            table.add(tomlkit.nl())
        table.add(name, _filled(inner, value) if isinstance(value, Config) else inner)
        if not isinstance(value, Config):
            inner.update(_without_none(plain[name]))
    for text in unset:
        table.add(tomlkit.nl())
        table.add(tomlkit.comment(text))
    return table


def _unset(kind: type[BaseModel], name: str) -> str:
    """``clip_norm = ...  # unset; a number > 0. The gradient's norm is cut to this; unset leaves it as it is.``"""
    schema = kind.model_json_schema()
    field = schema["properties"][name]
    forms = [_allowed(one, schema) for one in field.get("anyOf", [field]) if one.get("type") != "null"]
    about = " ".join(field.get("description", "").replace("None", "unset").split())
    start = f"[{name}]" if any("$ref" in one for one in field.get("anyOf", ())) else f"{name} = ..."
    return f"{start}  # unset; {' or '.join(forms)}. {about}".rstrip()


def _allowed(form: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    if "$ref" in form:
        fields = schema["$defs"][form["$ref"].rpartition("/")[2]].get("properties", {})
        return f"a group of fields: {', '.join(fields)}"
    if "enum" in form or "const" in form:
        return ", ".join(json.dumps(value) for value in form.get("enum", [form.get("const")]))
    words = {"integer": "a whole number", "number": "a number", "string": "a text", "boolean": "true or false"}
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    bounds = [f"{sign} {form[key]:g}" for key, sign in signs.items() if key in form]
    return " ".join([words.get(str(form.get("type")), "a list"), " and ".join(bounds)]).rstrip()


def with_overrides(data: Mapping[str, Any], overrides: Sequence[str], *, where: str = "--set") -> dict[str, Any]:
    """`data` with each ``a.b.c=value`` put in place; the value is TOML, or else plain text.

    Names are not checked here but when the result is parsed, so that the message can name the near miss.
    """
    result = dict(json.loads(json.dumps(data)))
    for override in overrides:
        field, equals, text = override.partition("=")
        if not equals or not field.strip():
            raise ConfigError(f"{where} {override}: must have the form field.subfield=value.")
        result = set_field(result, field.strip(), _value(text.strip()), where=f"{where} {override}")
    return result


def set_fields(data: Mapping[str, Any], setting: Setting, *, where: str) -> dict[str, Any]:
    """A copy of `data` with the values of a setting."""
    result = dict(data)
    for field, value in setting.items():
        result = set_field(result, field, value, where=f"{where}: {field}")
    return result


def set_field(data: Mapping[str, Any], field: str, value: Any, *, where: str) -> dict[str, Any]:
    """A copy of `data` with the value at a dotted field; groups that are missing are made."""
    name, dot, rest = field.partition(".")
    if not dot:
        return {**data, name: value}
    group = data.get(name, {})
    if not isinstance(group, Mapping):
        raise ConfigError(f"{where}: '{name}' is a value, not a group of fields.")
    return {**data, name: set_field(group, rest, value, where=where)}


def get_field(data: Mapping[str, Any], field: str) -> Any:
    """The value at a dotted field; None where there is none."""
    node: Any = data
    for name in field.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


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


def _sentence(kind: type[BaseModel], error: Any, *, where: str, data: Mapping[str, Any]) -> str:
    location = _as_written(data, error["loc"])
    place = ": ".join([where, ".".join(location)]) if location else where
    if error["type"] == "extra_forbidden":
        known = _known_fields(kind, location[:-1], data)
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"allowed are {', '.join(sorted(known)) or 'none'}."
        return f"{place}: no such field; {hint}"
    if error["type"] == "missing":
        return f"{place}: is required and missing; add it."
    if error["type"] == "union_tag_invalid":
        return f"{place}: kind must be one of {error['ctx']['expected_tags']}, got {error['ctx']['tag']!r}"
    if error["type"] == "union_tag_not_found":
        return f"{place}: needs a kind, to say which group of fields it is."
    if error["type"] in ("model_type", "dict_type"):
        return f"{place}: must be a group of fields, got {error['input']!r}"
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    came = "" if error["type"] == "value_error" else f", got {error['input']!r}"
    return f"{place}: {message}{came}"[:600]


def _as_written(data: Any, location: Sequence[str | int]) -> list[str]:
    """The place of an error without what nobody wrote: a group's kind, a union's member, a list around one value."""
    path: list[str] = []
    node: Any = data
    for part in location:
        if isinstance(node, Mapping):
            added = part not in node and (isinstance(part, int) or part == node.get("kind"))
        else:
            added = isinstance(part, str) and node is not None
        if not added:
            path.append(str(part))
            node = _at(node, part)
    return path


def _at(node: Any, part: str | int) -> Any:
    if isinstance(node, Mapping):
        return node.get(part)
    if isinstance(node, Sequence) and not isinstance(node, str) and isinstance(part, int) and part < len(node):
        return node[part]
    return None


def _known_fields(kind: type[BaseModel], path: Sequence[str], data: Mapping[str, Any]) -> list[str]:
    """The field names at a dotted place; of several possible groups those of the one whose kind is written there."""
    models: list[type[BaseModel]] = [kind]
    node: Any = data
    for name in path:
        node = _at(node, int(name) if name.isdigit() else name)
        found = [
            m
            for model in models
            if name in model.model_fields
            for m in _models_in(model.model_fields[name].annotation)
        ]
        found = [*found, *(extended for model in found for extended in model.__subclasses__())] or models
        written = node.get("kind") if isinstance(node, Mapping) else None
        tagged = [m for m in found if "kind" in m.model_fields and m.model_fields["kind"].default == written]
        models = tagged or found
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
