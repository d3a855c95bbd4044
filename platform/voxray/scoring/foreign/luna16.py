"""LUNA16's submission: a CSV with one mark a row, its centre in LPS millimetres and its score."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from voxray.scoring.foreign.checks import problem

COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "probability")


@dataclass(frozen=True)
class MarkTable:
    """Marks in the order of their file: the case of each, its centre in LPS mm and its score."""

    case_ids: tuple[str, ...]
    centres_mm: Float64[np.ndarray, "n 3"]
    scores: Float64[np.ndarray, " n"]


def read_marks(text: str, *, where: str) -> MarkTable:
    """The marks of a submission; columns come in any order, and a header alone is a detector that marks nothing."""
    seen: dict[tuple[str, tuple[float, ...]], int] = {}
    for place, row in _rows(text, where):
        case_id = row["seriesuid"].strip()
        if not case_id:
            raise problem("case", f"{place}: names no series.", "Give the seriesuid of every mark.")
        mark = case_id, tuple(_number(row[name], name, place) for name in COLUMNS[1:])
        if mark in seen:
            again = f"{place}: the same mark as in line {seen[mark]}, of series {case_id}."
            raise problem("repeated", again, "Delete one of the two: a doubled mark counts twice.")
        seen[mark] = int(place.rpartition(" ")[2])
    numbers = np.array([numbers for _, numbers in seen], np.float64).reshape(-1, 4)
    return MarkTable(tuple(case_id for case_id, _ in seen), numbers[:, :3], numbers[:, 3])


def read_series(text: str, *, where: str) -> tuple[str, ...]:
    """The series ids of seriesuids.csv: one a line, without a header (one that says ``seriesuid`` is passed over)."""
    lines = [line.strip().strip(",") for line in text.splitlines()]
    series = tuple(line for line in lines if line and line != COLUMNS[0])
    repeated = sorted({name for name in series if series.count(name) > 1}) if len(set(series)) < len(series) else []
    if repeated:
        raise problem("repeated", f"{where}: names series {repeated[0]} twice.", "Name every scan once.")
    if not series:
        raise problem("empty", f"{where}: names no series.", "Give one seriesuid a line.")
    return series


def _rows(text: str, where: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    reader = csv.DictReader(io.StringIO(text))
    header = [name.strip() for name in reader.fieldnames or []]
    _must_have(header, where)
    reader.fieldnames = header
    for row in reader:
        place = f"{where} line {reader.line_num}"
        if None in row or None in row.values():
            many = f"{place}: must have {len(header)} fields as the header does."
            raise problem("row", many, "Mend the line.")
        yield place, row


def _must_have(header: Sequence[str], where: str) -> None:
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        found = ", ".join(header) or "nothing"
        text = f"{where}: has no column {', '.join(missing)}; found {found}."
        raise problem("columns", text, f"The columns of a LUNA16 submission are {', '.join(COLUMNS)}.")


def _number(text: str, name: str, place: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise problem("number", f"{place}: {name} must be a finite number, got {text!r}.", "Mend or delete the line.")
    return number
