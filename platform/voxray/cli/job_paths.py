"""Which values of a verb are places, and which of those a job would look for in its own temporary folder.

What a value is, is read off the verb's own options: a `Path`, or a text whose metavar is one of `PLACES`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from voxray.core.addresses import local_path
from voxray.core.errors import ConfigError

PLACES = frozenset(
    ("ANSWERS", "DATASET", "DIR", "FILE", "INPUT", "MODEL", "RECIPE", "RUN", "SPACE", "STORE", "TRUTH")
)
"""Words of metavars that stand for a file, a folder or an address."""
_NAMED = re.compile(r"[a-z0-9][a-z0-9_.-]*=")
_PASSWORD = re.compile(r"://[^/@\s:]*:[^/@\s]+@")


def place_options(verb: Callable[..., None]) -> dict[str, str]:
    """The verb's parameters that take places, each with its metavar."""
    found = {}
    for name, parameter in inspect.signature(verb, eval_str=True).parameters.items():
        base, metavar = _annotated(parameter.annotation)
        if _holds(base, Path) or (_holds(base, str) and PLACES.intersection(re.findall("[A-Z]+", metavar))):
            found[name] = metavar
    return found


def refuse_relative(verb: Callable[..., None], values: Mapping[str, Any], *, folder: Path | None) -> None:
    """A ConfigError for the first relative path, unless it is a file that came with the job: one in `folder`."""
    options = place_options(verb)
    for name, metavar in options.items():
        for text in _texts(values.get(name)):
            if "MODEL" in metavar:
                text = _NAMED.sub("", text, count=1)
            path = local_path(text)
            if path is None or path.is_absolute() or ("RECIPE" in metavar and is_recipe_name(path)):
                continue
            if folder is None or not (folder / path).is_file():
                raise ConfigError(
                    f"{text}: is a relative path, and a job's folder is a temporary one on some node; give a full "
                    f"path that every node reaches, or an address such as s3://bucket/{path.name}."
                )


def refuse_passwords(arguments: list[str]) -> None:
    """A ConfigError where an address holds a password: what a job was asked is kept and shown to all who look."""
    for text in arguments:
        if _PASSWORD.search(text):
            shown = _PASSWORD.sub("://...@", text)
            raise ConfigError(
                f"{shown}: holds a password, and a job's command is kept and shown by the cluster; leave it out, and "
                f"let the nodes' own environment have it (PGPASSWORD or ~/.pgpass, AWS_PROFILE, a role)."
            )


def is_recipe_name(path: Path) -> bool:
    """Whether it is a recipe that comes with voxray rather than a file."""
    return path.suffix not in (".toml", ".json") and len(path.parts) == 1


def _annotated(annotation: Any) -> tuple[Any, str]:
    """The type of a parameter, and its metavar where it has one."""
    if get_origin(annotation) is not Annotated:
        return annotation, ""
    base, *extras = get_args(annotation)
    return base, next((extra.metavar for extra in extras if getattr(extra, "metavar", None)), "")


def _holds(annotation: Any, kind: type) -> bool:
    """Whether the type is `kind`, a list of it, or either of them or None."""
    return annotation is kind or any(_holds(part, kind) for part in get_args(annotation))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif value is not None:
        yield str(value)
