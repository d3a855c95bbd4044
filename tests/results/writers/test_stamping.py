"""An answer written twice is the same DICOM object, but for when it was written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from support.dicom_series import ALGORITHM, CLASSES, files_of, random_labels, write_multiframe, write_series
from voxray.core.detections import Detections
from voxray.core.volume import Volume
from voxray.readers import read_volume
from voxray.results.writers import write_labels_sr, write_rtstruct, write_seg, write_sr

Writer = Callable[..., Path]
LABEL_WRITERS: dict[str, Writer] = {
    "seg": write_seg,
    "seg of label map": partial(write_seg, kind="LABELMAP"),
    "sr": write_labels_sr,
    "rtstruct": write_rtstruct,
}


def written(path: Path) -> dict[str, Any]:
    """All elements of the object, pixels and file header included, without dates and times."""

    def drop(inside: Any, element: Any) -> None:
        if element.VR in ("DA", "TM", "DT"):
            del inside[element.tag]

    dataset = pydicom.dcmread(path)
    dataset.walk(drop)
    return {"meta": dataset.file_meta.to_json_dict(), **dataset.to_json_dict()}


@pytest.mark.parametrize("form", LABEL_WRITERS)
@pytest.mark.parametrize("is_multi_frame", [False, True])
def test_labels_written_twice_are_one_object(
    tmp_path: Path, rng: np.random.Generator, form: str, is_multi_frame: bool
) -> None:
    source = write_multiframe(tmp_path / "mf.dcm") if is_multi_frame else write_series(tmp_path / "ct")
    labels = random_labels(source, rng)
    first, second = (
        LABEL_WRITERS[form](labels, files_of(source), tmp_path / name, classes=CLASSES, algorithm=ALGORITHM)
        for name in ("a.dcm", "b.dcm")
    )
    assert written(first) == written(second)


def test_labels_without_any_class_are_one_report(tmp_path: Path) -> None:
    source = write_series(tmp_path / "ct")
    grid = read_volume(source).grid
    nothing = Volume(np.zeros(grid.shape, np.uint8), grid)
    first, second = (
        write_labels_sr(nothing, files_of(source), tmp_path / name, classes=CLASSES, algorithm=ALGORITHM)
        for name in ("a.dcm", "b.dcm")
    )
    assert written(first) == written(second)


@pytest.mark.parametrize("num_boxes", [0, 1])
def test_findings_written_twice_are_one_report(tmp_path: Path, num_boxes: int) -> None:
    source = write_series(tmp_path / "ct")
    found = Detections(
        boxes=np.array([[2, 3, 1, 8, 7, 4.5]], np.float32)[:num_boxes],
        scores=np.array([0.925], np.float32)[:num_boxes],
        classes=np.array([0])[:num_boxes],
    )
    grid = read_volume(source).grid
    first, second = (
        write_sr(found, grid, files_of(source), tmp_path / name, classes=CLASSES, algorithm=ALGORITHM)
        for name in ("a.dcm", "b.dcm")
    )
    assert written(first) == written(second)
