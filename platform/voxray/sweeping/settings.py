"""The setting that a sweep chose: read from what it left, and put into a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voxray.core.config import Setting, read_mapping, set_fields
from voxray.core.errors import ConfigError
from voxray.core.recipe import DetectionMerge, Recipe, parse_recipe
from voxray.inference.trained_model import ANSWERING_FIELDS
from voxray.models import MODELS

SWEEP_SCHEMA, SWEEP_FILE = "voxray-sweep/1", "sweep.json"
_LABELS = ("name", "about")


def read_setting(path: Path, recipe: Recipe) -> Setting:
    """What a sweep chose for the recipe: from its ``sweep.json`` or its folder, or from ``best.toml``.

    A file with nothing but the groups `merge` and `inference` says the same by hand. It is empty where nothing beat
    the recipe's own setting.
    """
    path = path / SWEEP_FILE if path.is_dir() else path
    data = read_mapping(path)
    if "schema" in data:
        written = _of_sweep(data, path)
    elif "network" in data:
        written = _of_recipe(parse_recipe(data, MODELS, where=str(path)), recipe)
    else:
        written = _flat(data)
    for field in written:
        if field.split(".")[0] not in ANSWERING_FIELDS or "." not in field:
            raise ConfigError(
                f"{path}: {field}: cannot be set once networks are trained; only "
                f"{' and '.join(f'{name}.*' for name in ANSWERING_FIELDS)} can, so give a sweep of these."
            )
    return written


def with_setting(recipe: Recipe, setting: Setting, *, where: str) -> Recipe:
    """The recipe with the setting's values in place of its own."""
    data = set_fields(recipe.model_dump(mode="json"), setting, where=where)
    changed = parse_recipe(data, MODELS, where=where)
    floor = changed.inference.candidate_floor
    if (
        isinstance(changed.merge, DetectionMerge)
        and "merge.score_floor" in setting
        and changed.merge.score_floor < floor
    ):
        raise ConfigError(
            f"{where}: merge.score_floor = {changed.merge.score_floor:g}: scores below inference.candidate_floor "
            f"({floor:g}) never become candidates; raise it, or set inference.candidate_floor as low."
        )
    return changed


def _of_sweep(data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    if data["schema"] != SWEEP_SCHEMA:
        raise ConfigError(
            f"{path}: schema must be {SWEEP_SCHEMA}, got {data['schema']!r}; give a sweep's sweep.json."
        )
    if not isinstance(data.get("setting"), dict):
        raise ConfigError(f"{path}: has no setting; give the sweep.json that `voxray sweep` wrote.")
    return dict(data["setting"])


def _of_recipe(found: Recipe, recipe: Recipe) -> dict[str, Any]:
    """Where a whole recipe differs from the one that was trained."""
    mine, theirs = (_flat(one.model_dump(mode="json")) for one in (recipe, found))
    names = [*theirs, *(name for name in mine if name not in theirs)]
    return {name: theirs.get(name) for name in names if name not in _LABELS and mine.get(name) != theirs.get(name)}


def _flat(value: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{path}.{key}" if path else key
        found |= _flat(item, name) if isinstance(item, dict) else {name: item}
    return found
