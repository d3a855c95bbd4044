"""Which class a number stands for: what a file declares of its own label values or class indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from voxray.core.errors import ConfigError
from voxray.core.text import same


def numbered_names(table: Any) -> dict[int, str]:
    """Number -> name from either direction: ``{"1": "spleen"}`` (MSD, nnDetection) or ``{"spleen": 1}`` (nnU-Net).

    A ValueError says which entry pairs no number with a name, or which number has two.
    """
    if not isinstance(table, Mapping):
        raise ValueError("must be a table of numbers and names")
    result: dict[int, str] = {}
    for key, value in table.items():
        number, name = (key, value) if str(key).isdecimal() else (value, key)
        if isinstance(number, bool) or not str(number).isdecimal() or not isinstance(name, str):
            raise ValueError(f"{key} = {value!r} must pair a number with a name")
        if result.setdefault(int(number), same(name)) != same(name):
            raise ValueError(f"number {number} is both {result[int(number)]!r} and {name!r}")
    return result


def parse_values(text: str) -> dict[int, str]:
    """Number -> name of ``--values``, such as ``1=kidney,2=liver``."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    try:
        names = [numbered_names({number.strip(): name.strip()}) for number, _, name in pairs if name.strip()]
        if not names or len(names) < len(pairs):
            raise ValueError("each part must be a number, = and a name")
        result: dict[int, str] = {}
        for one in names:
            for number, name in one.items():
                if result.setdefault(number, name) != name:
                    raise ValueError(f"number {number} is both {result[number]!r} and {name!r}")
    except ValueError as error:
        raise ConfigError(f"--values {text}: {error}; write it as 1=kidney,2=liver.") from None
    return result


def names_of_map(own: Mapping[int, str], classes: Sequence[str]) -> dict[int, str] | None:
    """Label value -> name of a map for which nothing else declares it; None where more than one reading is left.

    `own` are the names in the map's own file: they count where one of them is a class. Without any, value k is the
    k-th class, as datasets/README.md has it.
    """
    if own and set(own.values()) & set(classes):
        return dict(own)
    if not own or (len(own) == 1 and len(classes) == 1):
        return dict(enumerate(classes, start=1))
    return None


def listed(names: Mapping[int, str]) -> str:
    """The pairs as ``--values`` takes them, the first few."""
    pairs = [f"{number}={name}" for number, name in sorted(names.items())]
    return ",".join(pairs[:6]) + (",..." if len(pairs) > 6 else "")
