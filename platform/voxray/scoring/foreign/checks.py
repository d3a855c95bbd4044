"""Files of predictions that others wrote: read, and boxes, scores and classes checked before they are believed."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxray.core.detections import Detections, Frame
from voxray.core.errors import DataError
from voxray.core.text import TextError, on_disk, same, text_in


def problem(code: str, message: str, remedy: str) -> DataError:
    """The refusal of a file of predictions."""
    return DataError(f"predictions.{code}", message, remedy=remedy)


def read_text(path: Path) -> str:
    """The text of a file, its names as they are compared, unpacked if it ends in .gz; an empty one is refused."""
    try:
        data = on_disk(path).read_bytes()
        text = text_in(gzip.decompress(data) if path.suffix == ".gz" else data)
    except FileNotFoundError:
        raise problem("missing", f"{path}: no such file.", "Give the path of an existing file.") from None
    except (OSError, EOFError, TextError) as error:
        raise problem(
            "unreadable", f"{path}: cannot be read ({error}).", "Give a readable UTF-8 text file."
        ) from None
    if not text.strip():
        raise problem("empty", f"{path}: is empty.", "Give the file that the detector wrote.")
    return same(text)


def checked(boxes: Any, scores: Any, classes: Any, *, frame: Frame, where: str) -> Detections:
    """Corner boxes ``x1 y1 z1 x2 y2 z2`` with scores and class indices as detections, highest score first."""
    box_table, score_list, class_list = _numbers(boxes, "boxes", where), _flat(scores), _flat(classes)
    box_table = box_table.reshape(-1, 6) if box_table.size else np.zeros((0, 6))
    if not len(box_table) == len(score_list) == len(class_list):
        text = f"{where}: has {len(box_table)} boxes, {len(score_list)} scores and {len(class_list)} classes."
        raise problem("length", text, "Every box needs one score and one class.")
    for name, values in (("box", box_table), ("score", score_list), ("class", class_list)):
        if not np.isfinite(values).all():
            place = int(np.argwhere(~np.isfinite(values))[0][0])
            raise problem("number", f"{where}: {name} {place} is not a finite number.", "Mend or remove it.")
    small = np.flatnonzero((box_table[:, 3:] <= box_table[:, :3]).any(axis=1))
    if len(small):
        corners = " ".join(f"{value:g}" for value in box_table[small[0]])
        text = f"{where}: box {small[0]} has no size: {corners}."
        raise problem("size", text, "Every side must be above 0; give the lower corner first.")
    if (class_list != np.floor(class_list)).any() or class_list.min(initial=0) < 0:
        raise problem("class", f"{where}: classes must be whole numbers from 0.", "Number the classes from 0.")
    order = np.argsort(-score_list, kind="stable")
    found = Detections(
        box_table.astype(np.float32), score_list.astype(np.float32), class_list.astype(np.int64), frame
    )
    return found.take(order)


def _numbers(values: Any, name: str, where: str) -> NDArray[np.float64]:
    try:
        table = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise problem("form", f"{where}: {name} must be rows of six numbers.", "Mend the file.") from None
    if table.size and (table.ndim != 2 or table.shape[1] != 6):
        raise problem("form", f"{where}: {name} must be rows of six numbers.", "Mend the file.")
    return table


def _flat(values: Any) -> NDArray[np.float64]:
    try:
        return np.asarray(values, np.float64).reshape(-1)
    except (TypeError, ValueError):
        return np.full(1, np.nan)
