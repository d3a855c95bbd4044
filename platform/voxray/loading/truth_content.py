"""What a case is made of: the content of its scan and of its truth, however files are named and placed.

Two cases with equal content give equal voxels, boxes and labels. So whatever was made of a case (a shard, an answer,
kept candidates) is good for as long as the case has the content that it was made of, and no longer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voxray.core.text import on_disk
from voxray.dataset import BoxTruth, CaseSource, Dataset, MapTruth
from voxray.loading.at_hand import case_at_hand, volume_at_hand
from voxray.loading.map_files import mask_files
from voxray.readers import content_of, volume_content

_PATHS = ("file", "excluded_file", "classes_file")
"""Where annotations lie says nothing of what they hold."""


@dataclass(frozen=True)
class CaseContent:
    """SHA-256 digests of a case."""

    scan: str
    """Of all files of its image: `readers.volume_content`."""
    truth: str
    """Of its objects and label maps, and of what the dataset says of how they are read."""


def case_content(dataset: Dataset, source: CaseSource) -> CaseContent:
    """The content of a case as its files are now; a DataError where the scan or a label map cannot be read."""
    with case_at_hand(dataset, source) as at_hand:
        here = at_hand.source
        return CaseContent(volume_content(Path(here.image)), _truth_content(dataset, here))


def scan_content(source: CaseSource) -> str:
    """The content of a case's image."""
    with volume_at_hand(source.image) as image:
        return volume_content(image)


def truth_content(dataset: Dataset, source: CaseSource) -> str:
    """The content of a case's truth: the rows of its table, the files of its label maps, and the rules for both."""
    with case_at_hand(dataset, source) as at_hand:
        return _truth_content(dataset, at_hand.source)


def _truth_content(dataset: Dataset, source: CaseSource) -> str:
    digest = hashlib.sha256()
    rules = dataset.model_dump(mode="json", include={"classes", "annotations", "overhang_vox"})
    rules["annotations"] = [_without_paths(annotation) for annotation in rules["annotations"]]
    parts: list[Any] = [rules, _boxes(source.boxes), source.accept_values]
    if source.maps is not None:
        parts += [sorted(source.maps.names.items()), *_map_contents(dataset, source.maps)]
    digest.update(json.dumps(parts, sort_keys=True).encode())
    return digest.hexdigest()


def _without_paths(annotation: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in annotation.items() if name not in _PATHS}


def _boxes(boxes: BoxTruth | None) -> list[str] | None:
    """The rows of a table, of which only its own case's count."""
    if boxes is None:
        return None
    arrays = np.ascontiguousarray(boxes.boxes, np.float64), np.ascontiguousarray(boxes.classes, np.int64)
    return [boxes.frame, *(hashlib.sha256(array.tobytes()).hexdigest() for array in arrays)]


def _map_contents(dataset: Dataset, maps: MapTruth) -> Iterator[tuple[str, str | None]]:
    """What each file is for, and its content; None where it is not there, which some datasets allow."""
    if "{class}" in maps.file:
        for name, mask in mask_files(maps.file).items():
            # A mask of no class is never read, but that it is there may be a fault.
            yield name, volume_content(mask) if name in dataset.classes else ""
    else:
        file = on_disk(Path(maps.file))
        yield "", volume_content(file) if file.exists() else None
    if maps.classes_file is not None:
        file = on_disk(Path(maps.classes_file))
        yield "classes", content_of([file]) if file.exists() else None
