"""The recipes that come with voxray, one TOML file each, and the way to read one by name or from a file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from voxray.core.addresses import local_path
from voxray.core.config import Config, read, read_mapping
from voxray.core.errors import ConfigError
from voxray.core.recipe import Recipe, parse_recipe
from voxray.core.working_copy import local_file
from voxray.models import MODELS

_FOLDER = Path(__file__).parent

RECIPES: Mapping[str, Path] = {path.stem: path for path in sorted(_FOLDER.glob("*.toml"))}


class Published(Config):
    """What is known of a recipe's published weights."""

    dataset: str
    """The name of the dataset they were trained on."""
    licence: str
    classes: tuple[str, ...]
    """Foreground class names in the order of the network's outputs."""
    overrides: tuple[str, ...] = ()
    """Where they need the recipe to differ."""


def read_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of that name, or of that .toml or .json file, with ``a.b=c`` overrides applied."""
    with local_file(_path(name_or_path) if local_path(name_or_path) is not None else name_or_path) as path:
        fields = read_mapping(path)
    return parse_recipe(fields, MODELS, overrides=overrides, where=name_or_path)


def published(name: str) -> Published:
    """What is known of the published weights of one of `RECIPES`."""
    path = _FOLDER / "published" / f"{name}.toml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.toml")))
        raise ConfigError(f"recipe {name!r}: has no published weights that voxray knows; {known} have.")
    return read(Published, path)


def _path(name_or_path: str) -> Path:
    path = Path(name_or_path)
    if path.suffix in (".toml", ".json") or len(path.parts) > 1:
        return path
    if name_or_path in RECIPES:
        return RECIPES[name_or_path]
    near = difflib.get_close_matches(name_or_path, RECIPES, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ConfigError(
        f"recipe {name_or_path!r}: no such recipe; {hint}allowed are {', '.join(RECIPES)}, or the path of a "
        f".toml or .json file."
    )
