"""The Medical Segmentation Decathlon's dataset.json: which label map belongs to which image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from voxray.core.addresses import below
from voxray.core.errors import DataError
from voxray.dataset import Dataset
from voxray.dataset.naming import numbered_names
from voxray.dataset.source import MapTruth
from voxray.dataset.truth import Msd

_REMEDY = 'The form is {"labels": {"1": "spleen"}, "training": [{"image": "./imagesTr/a.nii.gz", "label": ...}]}.'


def read_msd(text: str, config: Msd, dataset: Dataset) -> dict[str, MapTruth]:
    """Case id -> label map, with the names that the file gives the values."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise _problem(config, f"not valid JSON: {error}") from None
    names = _names(data.get("labels") if isinstance(data, dict) else None, config, dataset.classes)
    result: dict[str, MapTruth] = {}
    for name in config.lists:
        entries = data.get(name)
        if not isinstance(entries, list):
            raise _problem(config, f"has no list '{name}'")
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("image", "label")):
                raise _problem(config, f"{name}[{index}] must have an image and a label")
            case_id = dataset.images.case_id_of(Path(entry["image"]).as_posix())
            if case_id is None:
                raise _problem(config, f"{name}[{index}]: images.case_id does not match '{entry['image']}'")
            result[case_id] = MapTruth(below(_folder(config), entry["label"]), names=names)
    return result


def _folder(config: Msd) -> str:
    return config.file.rpartition("/")[0] or "."


def _names(labels: Any, config: Msd, classes: Sequence[str]) -> dict[int, str]:
    """Value -> name, without the background."""
    if not isinstance(labels, dict):
        raise _problem(config, "has no table 'labels'")
    try:
        names = {value: name for value, name in numbered_names(labels).items() if value > 0}
    except ValueError as error:
        raise _problem(config, f"labels: {error}") from None
    if not set(names.values()) & set(classes):
        told = f"labels names {', '.join([*names.values()][:5])}, none of the dataset's classes"
        raise _problem(config, f"{told} ({', '.join(classes[:5])})")
    return names


def _problem(config: Msd, text: str) -> DataError:
    return DataError("annotations.form", f"{config.file}: {text}.", remedy=_REMEDY)
