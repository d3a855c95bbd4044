"""Sides of a split that a file gives: lists of case ids in JSON or CSV, and LUNA16's subsets."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from voxray.core.errors import ConfigError
from voxray.core.staging import is_file_at, text_at
from voxray.core.text import TextError, first_few, same
from voxray.dataset.paths import file_stem
from voxray.dataset.source import CaseSource

_SIDE_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_PICKLES = (".pkl", ".pickle")
_SUBSET = re.compile(r"(?:^|/)subset(\d)(?:/|$)")


class SplitIds(NamedTuple):
    """Case ids by side."""

    train: frozenset[str]
    val: frozenset[str]
    test: frozenset[str]


def count_lists(file: str) -> int:
    """How many folds the file (or the files, where the path holds ``{fold}``) gives."""
    if "{fold}" in file:
        count = 0
        while is_file_at(file.replace("{fold}", str(count))):
            count += 1
        if count == 0:
            raise ConfigError(f"folds.file: {file.replace('{fold}', '0')}: no such file; fold 0 must exist.")
        return count
    content = _read_json(file)
    if isinstance(content, list) and not content:
        raise ConfigError(f"folds.file: {file}: the list is empty; give one entry per fold.")
    if numbers := _fold_numbers(content, file):
        return max(numbers) + 1
    return len(content) if isinstance(content, list) else 1


def read_sides(file: str, fold: int) -> SplitIds:
    """The sides of one fold, as listed."""
    path = file.replace("{fold}", str(fold))
    content = _read_json(path)
    if numbers := _fold_numbers(content, path):
        return _sides_by_number(content, numbers, fold, path)
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


def tests_rotate(file: str) -> bool:
    """Whether there are several folds and each has a test set of its own."""
    tests = [read_sides(file, fold).test for fold in range(count_lists(file))]
    return len(tests) > 1 and all(tests) and len(frozenset().union(*tests)) == sum(map(len, tests))


def read_csv_sides(file: str, case_column: str, side_column: str, delimiter: str) -> SplitIds:
    """The sides that a CSV column gives."""
    sides: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    try:
        with io.StringIO(same(text_at(file)), newline="") as stream:
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
    except (OSError, TextError) as error:
        raise ConfigError(f"folds.file: {file} cannot be read ({error}); give a UTF-8 CSV file.") from None
    return _disjoint(sides, file)


def by_ids(cases: Sequence[CaseSource], sides: SplitIds, *, where: str, partial: bool) -> SplitIds:
    """The listed sides, restricted to the cases that are there; refused where both do not agree unless `partial`."""
    there = {case.case_id for case in cases}
    listed = sides.train | sides.val | sides.test
    if not partial:
        for ids, text in ((listed - there, "lists cases that are not there"), (there - listed, "leaves out cases")):
            if ids:
                raise ConfigError(
                    f"{where}: {text}: {first_few(sorted(ids))}; mend the lists, or set folds.partial = true."
                )
    return SplitIds(*(side & there for side in sides))


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


def _fold_numbers(content: Any, where: str) -> list[int]:
    """The fold in which each entry of a MONAI data list's `training` validates; none where they do not say."""
    entries = content.get("training") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not any(isinstance(entry, dict) and "fold" in entry for entry in entries):
        return []
    if content.get("validation"):
        raise ConfigError(f"{where}: gives a fold for each entry and a list 'validation' too; keep one of the two.")
    numbers: list[int] = []
    for entry in entries:
        number = entry.get("fold") if isinstance(entry, dict) else None
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ConfigError(f"{where}: training: each entry needs a fold from 0, got {str(entry)[:80]}.")
        numbers.append(number)
    if absent := set(range(max(numbers))) - set(numbers):
        raise ConfigError(f"{where}: training: no entry is in fold {min(absent)}; number the folds without gaps.")
    return numbers


def _sides_by_number(content: Any, numbers: Sequence[int], fold: int, where: str) -> SplitIds:
    sides: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for entry, number in zip(content["training"], numbers, strict=True):
        sides["val" if number == fold else "train"].add(_case_id(entry, f"{where}: training"))
    sides["test"] |= {_case_id(item, f"{where}: testing") for item in content.get("testing") or ()}
    return _disjoint(sides, where)


def _case_id(item: Any, where: str) -> str:
    if isinstance(item, str):
        return file_stem(item)
    if isinstance(item, dict) and isinstance(item.get("image"), str):
        return file_stem(item["image"])
    if isinstance(item, dict) and isinstance(item.get("image"), list) and len(item["image"]) == 1:
        return _case_id(item["image"][0], where)
    raise ConfigError(f"{where}: each entry must be a case id or have an 'image', got {str(item)[:80]}.")


def _disjoint(sides: Mapping[str, set[str]], where: str) -> SplitIds:
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        if both := sides[first] & sides[second]:
            raise ConfigError(
                f"{where}: {first_few(sorted(both))} in both {first} and {second}; keep each case in one list."
            )
    return SplitIds(*(frozenset(sides[name]) for name in SplitIds._fields))


def _read_json(file: str) -> Any:
    if Path(file).suffix.lower() in _PICKLES:
        raise ConfigError(
            f"folds.file: {file}: pickles are not read, as they can run any code; write the splits as JSON: "
            f'[{{"train": [case ids], "val": [case ids]}}, ...].'
        )
    try:
        return json.loads(same(text_at(file)))
    except (OSError, TextError, json.JSONDecodeError) as error:
        raise ConfigError(f"folds.file: {file} cannot be read ({error}); give a JSON file.") from None
