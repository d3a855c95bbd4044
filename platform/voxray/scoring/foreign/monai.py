"""MONAI's detection results: the bundle's list of images, or the tutorial's table with lists of them.

Boxes are centre and size (``cx cy cz w h d``) in LPS millimetres; scores are ``label_scores`` or ``score``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from voxray.core.detections import Detections
from voxray.dataset.naming import numbered_names
from voxray.scoring.foreign.checks import checked, problem

_FORM = 'The form is [{"image": path, "box": [[cx, cy, cz, w, h, d]], "label": [0], "label_scores": [0.9]}].'


def read_monai(text: str, *, where: str) -> dict[str, Detections]:
    """The detections of each image in LPS mm, by the image's path as it is written there."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise problem("json", f"{where}: not valid JSON: {error}.", "Mend the file.") from None
    result: dict[str, Detections] = {}
    for index, entry in enumerate(_entries(data, where)):
        place = f"{where}[{index}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            raise problem("form", f"{place}: names no image.", _FORM)
        if entry["image"] in result:
            raise problem("repeated", f"{place}: image {entry['image']} again.", "Keep one entry of each image.")
        result[entry["image"]] = _detections(entry, f"{place} ({entry['image']})")
    return result


def read_monai_names(text: str, *, where: str) -> dict[int, str]:
    """Class number -> name, where the file declares it: a table ``labels``, or ``label_names`` beside each label."""
    data = json.loads(text)
    table = data.get("labels") if isinstance(data, dict) else None
    try:
        names = numbered_names(table) if isinstance(table, dict) else {}
        for entry in _entries(data, where):
            told = entry.get("label_names") if isinstance(entry, dict) else None
            for number, name in zip(entry["label"], told, strict=True) if isinstance(told, list) else ():
                if names.setdefault(int(number), str(name)) != name:
                    raise ValueError(f"number {number} is both {names[int(number)]!r} and {name!r}")
    except (ValueError, TypeError) as error:
        raise problem("names", f"{where}: labels: {error}.", "Give each class one number.") from None
    return names


def is_monai(data: Any) -> bool:
    """Whether parsed JSON has the form of MONAI's results."""
    entries = data if isinstance(data, list) else next(iter(_lists(data).values()), None)
    if not entries or not isinstance(entries[0], dict):
        return isinstance(data, list)
    return "image" in entries[0] and ("label_scores" in entries[0] or "score" in entries[0])


def _entries(data: Any, where: str) -> list[Any]:
    if isinstance(data, list):
        return data
    lists = _lists(data)
    if not lists:
        raise problem("form", f"{where}: holds no list of images.", _FORM)
    return [entry for entries in lists.values() for entry in entries]


def _lists(data: Any) -> Mapping[str, list[Any]]:
    return {name: item for name, item in data.items() if isinstance(item, list)} if isinstance(data, dict) else {}


def _detections(entry: Mapping[str, Any], place: str) -> Detections:
    scores = entry.get("label_scores", entry.get("score"))
    if scores is None or "box" not in entry or "label" not in entry:
        raise problem("form", f"{place}: must have box, label and label_scores (or score).", _FORM)
    boxes = _corners(entry["box"], place)
    return checked(boxes, scores, entry["label"], frame="LPS", where=place)


def _corners(rows: Any, place: str) -> Any:
    try:
        table = np.asarray(rows, np.float64)
    except (TypeError, ValueError):
        table = np.zeros((1, 1))
    if table.size == 0:
        return np.zeros((0, 6))
    if table.ndim != 2 or table.shape[1] != 6:
        raise problem("form", f"{place}: box must be rows of six numbers.", _FORM)
    return np.concatenate([table[:, :3] - table[:, 3:] / 2, table[:, :3] + table[:, 3:] / 2], axis=1)
