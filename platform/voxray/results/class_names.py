"""Answers and their truth brought together: which class a number stands for, and label maps on one grid.

A number has the name that its own file declares, else the one that ``--values`` or the truth's dataset declares;
where more than one reading is left, the user is asked. What cannot be compared is a DataError ``comparison.*``: its
case is not judged, while one without an answer counts as an empty one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from voxray.annotations.maps import labels_by_name
from voxray.core.alignment import put_on
from voxray.core.answer_json import LabelsFile, read_file
from voxray.core.errors import ConfigError, DataError
from voxray.core.volume import Grid, Volume
from voxray.readers import read_label_map

COMPARISON = "comparison"
"""What the code of an answer that cannot be compared with its truth begins with."""


@dataclass(frozen=True)
class Naming:
    """Number -> class, and whether other numbers are background, as the truth's dataset says of its own maps."""

    names: Mapping[int, str]
    unlisted_is_background: bool = False
    is_given: bool = False
    """Whether the user says so, which counts more than what a file says."""


def incomparable(what: str, message: str, remedy: str, *, case: str | None = None) -> DataError:
    """The refusal to compare an answer with its truth."""
    return DataError(f"{COMPARISON}.{what}", message, remedy=remedy, case_id=case)


def is_incomparable(error: BaseException) -> bool:
    """Whether the error says that an answer cannot be compared with its truth, so that its case is not judged."""
    return isinstance(error, DataError) and error.code.startswith(f"{COMPARISON}.")


def named_labels(
    volume: Volume, naming: Naming, classes: Sequence[str], grid: Grid, *, name: str, of: str = "the truth"
) -> UInt8[np.ndarray, "x y z"]:
    """A label map of an answer on `grid`, in which k is ``classes[k - 1]``; every value must have a class."""
    placed = put_on(volume, grid, name=name, of=of, code=COMPARISON)
    labels, problems = labels_by_name(
        placed.voxels, naming.names, classes, unlisted_is_background=naming.unlisted_is_background, where=name
    )
    if problems:
        said = "; ".join(problem.message.removeprefix(f"{name}: ").rstrip(".") for problem in problems[:4])
        more = f"; and {len(problems) - 4} more values" if len(problems) > 4 else ""
        known = f"the classes are {', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}"
        remedy = "Say which class each value is (evaluate: --values 1=NAME,2=NAME), or score against truth of them."
        raise incomparable("value", f"{name}: {said}{more}; {known}.", remedy)
    return labels


def names_in(index: LabelsFile, *, where: str) -> dict[int, str]:
    """Value -> class, as the index of a label map declares it."""
    names: dict[int, str] = {}
    for one in index.labels:
        if names.setdefault(one.value, one.class_name) != one.class_name:
            text = f"{where}: value {one.value} is both {names[one.value]!r} and {one.class_name!r}."
            raise incomparable("value", text, "Mend the index of the label map.")
    return names


def classes_in(index: LabelsFile, *, where: str) -> tuple[str, ...]:
    """The classes of a label map whose value k is the k-th, as voxray writes it; other numbers are refused."""
    names = names_in(index, where=where)
    if sorted(names) != list(range(1, len(names) + 1)):
        text = f"{where}: its values {', '.join(map(str, sorted(names)[:6]))} are not 1 to {len(names)}."
        raise incomparable("value", text, "Give the index that voxray wrote.")
    return tuple(names[value] for value in sorted(names))


def read_labels(path: Path, classes: Sequence[str], grid: Grid, *, of: str = "its scan") -> Volume:
    """The label map of voxray's own answer whose index is `path`, on the scan's `grid`; k is ``classes[k - 1]``."""
    index = read_file(LabelsFile, path)
    volume, naming = read_label_map(path.parent / index.file), Naming(names_in(index, where=path.name))
    return Volume(named_labels(volume, naming, classes, grid, name=index.file, of=of), grid)


def refuse_unknown(values: Mapping[int, str], classes: Sequence[str]) -> None:
    """Names of ``--values`` that are no class of the truth are a mistake, not background."""
    if unknown := [name for name in values.values() if name not in classes]:
        known = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
        raise ConfigError(f"--values: {unknown[0]!r} is no class of the truth, whose classes are {known}.")
