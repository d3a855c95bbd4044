"""Sides of a split that a file gives: lists of case ids in JSON or CSV, and LUNA16's subsets."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from voxray.dataset.paths import file_stem
from voxray.dataset.source import CaseSource
from voxray.errors import ConfigError

_SIDE_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_SUBSET = re.compile(r"(?:^|/)subset(\d)(?:/|$)")


class Sides(NamedTuple):
    """Case ids by side."""

    train: frozenset[str]
    val: frozenset[str]
    test: frozenset[str]


def count_lists(file: str) -> int:
    """How many folds the file (or the files, where the path holds ``{fold}``) gives."""
    if "{fold}" in file:
        count = 0
        while Path(file.replace("{fold}", str(count))).is_file():
            count += 1
        if count == 0:
            raise ConfigError(f"folds.file: {file.replace('{fold}', '0')}: no such file; fold 0 must exist.")
        return count
    content = _read_json(file)
    if isinstance(content, list) and not content:
        raise ConfigError(f"folds.file: {file}: the list is empty; give one entry per fold.")
    return len(content) if isinstance(content, list) else 1


def read_sides(file: str, fold: int) -> Sides:
    """The sides of one fold, as listed."""
    path = file.replace("{fold}", str(fold))
    content = _read_json(path)
    entry = content[fold] if isinstance(content, list) else content
    if not isinstance(entry, dict) or not any(name in _SIDE_NAMES for name in entry):
        raise ConfigError(f"{path}: fold {fold} must be a table with the lists train and val (and test).")
    sides: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for name, items in entry.items():
        if name in _SIDE_NAMES:
            if not isinstance(items, list):
                raise ConfigError(f"{path}: {name} must be a list of case ids, got a {type(items).__name__}.")
            sides[_SIDE_NAMES[name]] |= {_case_id(item, f"{path}: {name}") for item in items}
    return _disjoint(sides, path)


def read_csv_sides(file: str, case_column: str, side_column: str, delimiter: str) -> Sides:
    """The sides that a CSV column gives."""
    sides: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    try:
        with Path(file).open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, delimiter=delimiter)
            header = [name.strip() for name in reader.fieldnames or []]
            for column in (case_column, side_column):
                if column not in header:
                    raise ConfigError(f"{file}: no column '{column}'; found {', '.join(header) or 'nothing'}.")
            reader.fieldnames = header
            for row in reader:
                name = (row[side_column] or "").strip().lower()
                if name not in _SIDE_NAMES:
                    raise ConfigError(f"{file} line {reader.line_num}: must be train, val or test, got '{name}'.")
                sides[_SIDE_NAMES[name]].add((row[case_column] or "").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"folds.file: {file} cannot be read ({error}); give a UTF-8 CSV file.") from None
    return _disjoint(sides, file)


def by_ids(cases: Sequence[CaseSource], sides: Sides, *, where: str, partial: bool) -> Sides:
    """The listed sides, restricted to the cases that are there; refused where both do not agree unless `partial`."""
    there = {case.case_id for case in cases}
    listed = sides.train | sides.val | sides.test
    if not partial:
        for ids, text in ((listed - there, "lists cases that are not there"), (there - listed, "leaves out cases")):
            if ids:
                raise ConfigError(f"{where}: {text}: {_some(ids)}; mend the lists, or set folds.partial = true.")
    return Sides(*(side & there for side in sides))


def read_subsets(file: str) -> Mapping[str, int]:
    """Case id -> number of its LUNA16 subset."""
    content = _read_json(file)
    if not isinstance(content, dict) or not all(
        re.fullmatch(r"subset\d", name) and isinstance(ids, list) for name, ids in content.items()
    ):
        raise ConfigError(f'{file}: must be a table such as {{"subset0": [series ids], ..., "subset9": [...]}}.')
    return {str(case_id): int(name[-1]) for name, ids in content.items() for case_id in ids}


def subset_of(case: CaseSource, subsets: Mapping[str, int] | None, file: str | None) -> int:
    """The number of the case's subset, from the table or from the folder that its image lies in."""
    if subsets is not None:
        if case.case_id not in subsets:
            raise ConfigError(f"{file}: case {case.case_id} is in no subset; exclude it, or add it to one.")
        return subsets[case.case_id]
    match = _SUBSET.search(Path(case.image).parent.as_posix())
    if match is None:
        raise ConfigError(f"folds: {case.image} lies in no folder subset0 to subset9; give folds.file instead.")
    return int(match.group(1))


def _case_id(item: Any, where: str) -> str:
    if isinstance(item, str):
        return file_stem(item)
    if isinstance(item, dict) and isinstance(item.get("image"), str):
        return file_stem(item["image"])
    raise ConfigError(f"{where}: each entry must be a case id or have an 'image', got {str(item)[:80]}.")


def _disjoint(sides: Mapping[str, set[str]], where: str) -> Sides:
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        if both := sides[first] & sides[second]:
            raise ConfigError(f"{where}: {_some(both)} in both {first} and {second}; keep each case in one list.")
    return Sides(*(frozenset(sides[name]) for name in Sides._fields))


def _read_json(file: str) -> Any:
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"folds.file: {file} cannot be read ({error}); give a JSON file.") from None


def _some(ids: set[str] | frozenset[str]) -> str:
    names = sorted(ids)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
