"""Tables of objects, CSV and JSON, to boxes by case."""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from voxray.core.detections import Frame
from voxray.core.errors import DataError
from voxray.core.text import first_few
from voxray.dataset.naming import numbered_names
from voxray.dataset.source import BoxTruth
from voxray.dataset.truth import BoxesCsv, MonaiJson, SpheresCsv

_Numbers = tuple[float, ...]
T = TypeVar("T")

_NUMBERS_REMEDY = "Give finite numbers with a decimal point."
_SIZE_REMEDY = "Give a size above 0, and corners with the lower one first."
_FORM_REMEDY = "See datasets/README.md for the form of the file."


@dataclass
class BoxFile:
    """What a table says: boxes by case, cases that it names without an object, and the rows that cannot be used."""

    boxes: dict[str, BoxTruth] = field(default_factory=dict)
    problems: list[DataError] = field(default_factory=list)


@dataclass(frozen=True)
class _Row:
    """One object as read: the box may still be in RAS."""

    where: str
    case_id: str
    box: _Numbers
    class_index: int


@dataclass(frozen=True)
class Spheres:
    """Findings as LUNA16 gives them: centres in LPS mm and diameters in mm (-1 where none is known)."""

    centres_mm: np.ndarray[Any, np.dtype[np.float64]]
    diameters_mm: np.ndarray[Any, np.dtype[np.float64]]


def read_spheres_csv(text: str, config: SpheresCsv, classes: Sequence[str], *, where: str) -> BoxFile:
    """Spheres as the cubes around them, in LPS mm."""
    result = BoxFile()
    columns = [config.case_column, *config.centre_columns, config.diameter_column]
    columns += [config.class_column] if config.class_column else []

    def parse(row: Mapping[str, str], place: str) -> _Row:
        centre = _numbers([row[name] for name in config.centre_columns], place)
        (diameter,) = _numbers([row[config.diameter_column]], place)
        class_index = _class_index(row[config.class_column], classes, place) if config.class_column else 0
        return _Row(place, _case(row[config.case_column], place), _around(centre, (diameter,) * 3), class_index)

    rows = _each_row(text, columns, ",", where, parse, result.problems)
    return _gather(rows, config.frame, result)


def read_spheres_by_case(text: str, config: SpheresCsv, *, where: str) -> dict[str, Spheres]:
    """The spheres of each case, in LPS mm; raises on the first row that cannot be read."""
    found: dict[str, list[_Numbers]] = {}
    problems: list[DataError] = []

    def parse(row: Mapping[str, str], place: str) -> tuple[str, _Numbers]:
        numbers = _numbers([row[name] for name in (*config.centre_columns, config.diameter_column)], place)
        return _case(row[config.case_column], place), numbers

    columns = [config.case_column, *config.centre_columns, config.diameter_column]
    for case_id, numbers in _each_row(text, columns, ",", where, parse, problems):
        found.setdefault(case_id, []).append(numbers)
    if problems:
        raise problems[0]
    sign = np.array([-1.0, -1.0, 1.0]) if config.frame == "RAS" else np.ones(3)
    tables = {case_id: np.array(rows, dtype=np.float64) for case_id, rows in found.items()}
    return {case_id: Spheres(table[:, :3] * sign, table[:, 3]) for case_id, table in tables.items()}


def read_boxes_csv(text: str, config: BoxesCsv, classes: Sequence[str], *, where: str) -> BoxFile:
    """One box a row."""
    result = BoxFile()
    columns = [config.case_column, *config.box_columns, *([config.class_column] if config.class_column else [])]

    def parse(row: Mapping[str, str], place: str) -> _Row:
        numbers = _numbers([row[name] for name in config.box_columns], place)
        box = numbers if config.form == "corners" else _around(numbers[:3], numbers[3:])
        class_index = _class_index(row[config.class_column], classes, place) if config.class_column else 0
        return _Row(place, _case(row[config.case_column], place), box, class_index)

    rows = _each_row(text, columns, config.delimiter, where, parse, result.problems)
    return _gather(rows, config.frame, result)


def read_boxes_json(text: str, classes: Sequence[str], *, where: str) -> BoxFile:
    """Boxes with `case`, `class` and `center_mm` with `size_mm`, or `corners_mm`; ``_vox`` in a voxel frame."""
    result = BoxFile()
    data = _table(text, where)
    frame = data.get("frame")
    if frame not in ("LPS", "RAS", "voxel"):
        raise _problem("frame", f"{where}: frame must be LPS, RAS or voxel, got {frame!r}.", _FORM_REMEDY)
    unit = "vox" if frame == "voxel" else "mm"

    def parse(item: Mapping[str, Any], place: str) -> _Row:
        if f"corners_{unit}" in item:
            box = _numbers(_of_length(item, f"corners_{unit}", 6, place), place)
        else:
            centre = _numbers(_of_length(item, f"center_{unit}", 3, place), place)
            box = _around(centre, _numbers(_of_length(item, f"size_{unit}", 3, place), place))
        return _Row(place, _case(item.get("case"), place), box, _class_index(item.get("class"), classes, place))

    rows = _each_item(_list(data, "boxes", where), f"{where}: boxes", parse, result.problems)
    return _gather(rows, frame, result)


def read_monai_json(
    text: str, config: MonaiJson, classes: Sequence[str], *, case_id_of: Callable[[str], str | None], where: str
) -> BoxFile:
    """MONAI's data list; `case_id_of` tells the case of an image path. An image without a box has no object."""
    result = BoxFile()
    data = _table(text, where)
    names = config.values or _declared(data, where) or dict(enumerate(classes))

    def parse(item: Mapping[str, Any], place: str) -> tuple[str, list[_Row]]:
        image = _case(item.get("image"), place)
        case_id = case_id_of(image)
        if case_id is None:
            raise _problem("case", f"{place}: images.case_id does not match '{image}'.", "Mend the pattern.")
        boxes, labels = _list(item, "box", place), _list(item, "label", place)
        if len(boxes) != len(labels):
            raise _problem("form", f"{place}: has {len(boxes)} boxes but {len(labels)} labels.", _FORM_REMEDY)
        rows = []
        for box, label in zip(boxes, labels, strict=True):
            numbers = _numbers(box if isinstance(box, list) and len(box) == 6 else [None], place)
            rows.append(
                _Row(place, case_id, _around(numbers[:3], numbers[3:]), _index_in(label, names, classes, place))
            )
        return case_id, rows

    found: list[_Row] = []
    for name in config.lists:
        for case_id, rows in _each_item(_list(data, name, where), f"{where}: {name}", parse, result.problems):
            result.boxes.setdefault(case_id, BoxTruth.empty("LPS"))
            found += rows
    return _gather(found, "LPS", result)


def _gather(rows: Iterable[_Row], frame: Frame, result: BoxFile) -> BoxFile:
    """The rows grouped by case, RAS turned to LPS; boxes without a size and repeated ones become problems."""
    by_case: dict[str, dict[tuple[_Numbers, int], None]] = {}
    for row in rows:
        if any(high <= low for low, high in zip(row.box[:3], row.box[3:], strict=True)):
            text = f"{row.where}: case {row.case_id}: the box {_short(row.box)} has no size."
            result.problems.append(_problem("box_size", text, _SIZE_REMEDY))
        elif (row.box, row.class_index) in by_case.setdefault(row.case_id, {}):
            text = f"{row.where}: case {row.case_id}: the same box {_short(row.box)} again."
            result.problems.append(_problem("repeated", text, "Delete one of the two."))
        else:
            by_case[row.case_id][row.box, row.class_index] = None
    for case_id, objects in by_case.items():
        boxes = np.array([box for box, _ in objects], dtype=np.float64).reshape(-1, 6)
        classes = np.array([index for _, index in objects], dtype=np.int64)
        result.boxes[case_id] = _in_lps(BoxTruth(boxes, classes, frame))
    return result


def _in_lps(truth: BoxTruth) -> BoxTruth:
    if truth.frame != "RAS":
        return truth
    low, high = truth.boxes[:, :3].copy(), truth.boxes[:, 3:].copy()
    low[:, :2], high[:, :2] = -truth.boxes[:, 3:5], -truth.boxes[:, :2]
    return BoxTruth(np.concatenate([low, high], axis=1), truth.classes, "LPS")


def _around(centre: _Numbers, size: _Numbers) -> _Numbers:
    low = tuple(c - s / 2 for c, s in zip(centre, size, strict=True))
    return low + tuple(c + s / 2 for c, s in zip(centre, size, strict=True))


def _each_row(
    text: str,
    columns: Sequence[str],
    delimiter: str,
    where: str,
    parse: Callable[[Mapping[str, str], str], T],
    problems: list[DataError],
) -> Iterator[T]:
    """Each CSV row parsed; one that cannot be is a problem with its line number."""
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")), delimiter=delimiter)
    header = [name.strip() for name in reader.fieldnames or []]
    missing = [name for name in columns if name not in header]
    if missing:
        found = ", ".join(header) or "nothing"
        message = f"{where}: has no column {', '.join(missing)}; found {found}."
        problems.append(_problem("columns", message, "Name the columns in the dataset file, or mend the header."))
        return
    reader.fieldnames = header
    for row in reader:
        place = f"{where} line {reader.line_num}"
        if None in row or None in row.values():
            given = [value for value in row.values() if isinstance(value, str)]
            count = len(given) + len(row.get(None) or ())
            message = f"{place}: must have {len(header)} fields as the header does, has {count}."
            problems.append(_problem("row", message, "Mend the line; text that holds the delimiter needs quotes."))
            continue
        try:
            yield parse(row, place)
        except DataError as error:
            problems.append(error)


def _each_item(
    items: Sequence[Any], where: str, parse: Callable[[Mapping[str, Any], str], T], problems: list[DataError]
) -> Iterator[T]:
    """Each JSON entry parsed; one that cannot be is a problem with its place in the list, counted from 0."""
    for index, item in enumerate(items):
        place = f"{where}[{index}]"
        try:
            if not isinstance(item, dict):
                raise _problem("form", f"{place}: must be a table, got {str(item)[:60]}.", _FORM_REMEDY)
            yield parse(item, place)
        except DataError as error:
            problems.append(error)


def _table(text: str, where: str) -> Mapping[str, Any]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise _problem("json", f"{where}: not valid JSON: {error}.", "Mend the file.") from None
    if not isinstance(data, dict):
        raise _problem("form", f"{where}: must hold a table, got a {type(data).__name__}.", _FORM_REMEDY)
    return data


def _list(item: Mapping[str, Any], name: str, where: str) -> list[Any]:
    value = item.get(name)
    if not isinstance(value, list):
        raise _problem("form", f"{where}: '{name}' must be a list, got {str(value)[:60]}.", _FORM_REMEDY)
    return value


def _of_length(item: Mapping[str, Any], name: str, length: int, where: str) -> list[Any]:
    value = _list(item, name, where)
    if len(value) != length:
        raise _problem("form", f"{where}: '{name}' must have {length} numbers, has {len(value)}.", _FORM_REMEDY)
    return value


def _numbers(values: Sequence[Any], where: str) -> _Numbers:
    found = []
    for value in values:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise _problem("number", f"{where}: must be a finite number, got {value!r}.", _NUMBERS_REMEDY)
        found.append(number)
    return tuple(found)


def _case(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _problem("case", f"{where}: names no case, got {value!r}.", "Give the case id of an image.")
    return value.strip()


def _class_index(value: Any, classes: Sequence[str], where: str) -> int:
    name = value.strip() if isinstance(value, str) else value
    if name in classes:
        return classes.index(name)
    near = difflib.get_close_matches(str(name), classes, n=1)
    hint = f"Did you mean '{near[0]}'?" if near else f"The dataset's classes are {first_few(classes, 8)}."
    raise _problem("class", f"{where}: no class is called {name!r}.", hint)


def _index_in(value: Any, names: Mapping[int, str], classes: Sequence[str], where: str) -> int:
    """The class that a label's number stands for."""
    name = names.get(value) if isinstance(value, int) and not isinstance(value, bool) else None
    if name in classes:
        return classes.index(name)
    known = ", ".join(f"{number} ({names[number]})" for number in sorted(names)[:8])
    what = f"label {value} is {name!r}, which is no class" if name else f"label must be one of {known}, got {value!r}"
    raise _problem(
        "class", f"{where}: {what}.", f"Name it in annotations.values; the classes are {first_few(classes, 8)}."
    )


def _declared(data: Mapping[str, Any], where: str) -> dict[int, str]:
    """What the file says that its labels stand for; nothing where it has no table of them."""
    table = data.get("labels")
    if not isinstance(table, dict):
        return {}
    try:
        return numbered_names(table)
    except ValueError as error:
        raise _problem("form", f"{where}: labels: {error}.", _FORM_REMEDY) from None


def _short(box: _Numbers) -> str:
    return " ".join(f"{number:.6g}" for number in box)


def _problem(code: str, message: str, remedy: str) -> DataError:
    return DataError(f"annotations.{code}", message, remedy=remedy)
