"""The files that leave: their numbers, their way back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from voxray.core.answer_json import (
    FindingsFile,
    LabelsFile,
    ModelStamp,
    detections_of,
    findings_file,
    labels_file,
    read_file,
    to_text,
)
from voxray.core.detections import Detections
from voxray.core.errors import ConfigError
from voxray.core.recipe import DetectionMerge, InferenceConfig
from voxray.core.volume import Grid, Volume

CLASSES = ("nodule", "lymph node")
STAMP = ModelStamp(
    run="r",
    recipe="lung_nodule",
    commit="abc",
    dataset="toy",
    licence="CC0",
    sha256="00",
    inference=InferenceConfig(window_vox=(32, 32, 32)),
    merge=DetectionMerge(),
)
GRID = Grid((64, 64, 32), (0.5, 0.5, 2.0), (-10.0, 20.0, -100.0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))


def two_findings() -> Detections:
    boxes = np.array([[10, 12, 4, 20, 24, 8], [30, 30, 10, 34, 36, 12]], np.float32)
    return Detections(boxes, np.array([0.9, 0.25], np.float32), np.array([1, 0], np.int64))


def test_the_first_finding_to_the_millimetre() -> None:
    file = findings_file(two_findings(), GRID, case="a", classes=CLASSES, model=STAMP)
    data = json.loads(to_text(file))
    assert data["schema"] == "voxray-findings/1"
    assert (data["frame"], data["unit"], data["case"]) == ("LPS", "mm", "a")
    first = data["findings"][0]
    # Voxels 10..19 along -x from -10 mm: centres -15 .. -19.5, so the box runs from -19.75 to -14.75 mm.
    assert first["box_mm"] == [-19.75, 8.25, -93.0, -14.75, 14.25, -85.0]
    assert first["center_mm"] == [-17.25, 11.25, -89.0]
    assert first["size_mm"] == [5.0, 6.0, 8.0]
    assert first["diameter_mm"] == pytest.approx(19 / 3, rel=1e-6)
    assert first["box_vox"] == [10, 12, 4, 20, 24, 8]
    assert (first["id"], first["class"], first["score"]) == (1, "lymph node", 0.9)


def test_findings_come_back_as_they_went(tmp_path: Path) -> None:
    before = two_findings()
    path = tmp_path / "a.json"
    path.write_text(to_text(findings_file(before, GRID, case="a", classes=CLASSES, model=STAMP)))
    file = read_file(FindingsFile, path)
    assert file.model == STAMP
    voxel = detections_of(file, CLASSES, frame="voxel")
    np.testing.assert_array_equal(voxel.boxes, before.boxes)
    np.testing.assert_array_equal(voxel.classes, before.classes)
    np.testing.assert_allclose(voxel.scores, before.scores, rtol=1e-6)
    world = detections_of(file, CLASSES)
    assert world.frame == "LPS"
    np.testing.assert_allclose(world.boxes, before.to_world(GRID).boxes, rtol=1e-6)


def test_no_findings_are_a_file_too() -> None:
    file = findings_file(Detections.empty(), GRID, case="a", classes=CLASSES, model=STAMP)
    assert len(detections_of(FindingsFile.model_validate_json(to_text(file)), CLASSES)) == 0


def test_a_class_that_is_not_known_is_named() -> None:
    file = findings_file(two_findings(), GRID, case="a", classes=CLASSES, model=STAMP)
    with pytest.raises(ConfigError, match="'lymph node'; known classes are nodule"):
        detections_of(file, ["nodule"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema": "something/9"}, "schema"),
        ({"colour": "red"}, "colour: no such field"),
        ({"findings": [{"id": 1}]}, "is required and missing"),
        ({"frame": "RAS"}, "frame"),
    ],
)
def test_other_files_are_refused_in_a_sentence(tmp_path: Path, change: dict[str, object], sentence: str) -> None:
    data = json.loads(to_text(findings_file(two_findings(), GRID, case="a", classes=CLASSES, model=STAMP)))
    path = tmp_path / "x.json"
    path.write_text(json.dumps(data | change))
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_file(FindingsFile, path)
    assert str(path) in str(caught.value)


def test_a_label_index_counts_each_class() -> None:
    voxels = np.zeros(GRID.shape, np.uint8)
    voxels[:10, :10, :10] = 2
    file = labels_file(Volume(voxels, GRID), case="a", file="a.nii.gz", classes=CLASSES, model=STAMP)
    assert [(e.value, e.class_name, e.num_voxels, e.volume_mm3) for e in file.labels] == [
        (1, "nodule", 0, 0.0),
        (2, "lymph node", 1000, 500.0),
    ]
    assert LabelsFile.model_validate_json(to_text(file)) == file
