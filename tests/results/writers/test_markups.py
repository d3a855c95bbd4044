"""Slicer's Markups JSON."""

from __future__ import annotations

import json

import numpy as np

from voxray.core.detections import Detections
from voxray.results.writers import markups_json

FOUND = Detections(
    boxes=np.array([[-10.5, 20, -30, -4.5, 28, -20]], np.float32),
    scores=np.array([0.875], np.float32),
    classes=np.array([1]),
    frame="LPS",
)


def test_a_box_is_its_centre_and_its_three_sides() -> None:
    for found in (FOUND, FOUND.in_frame("RAS")):
        content = json.loads(markups_json(found, ("a", "nodule")))
        assert content["@schema"].endswith("/markups-schema-v1.0.3.json#")
        (markup,) = content["markups"]
        assert (markup["type"], markup["roiType"]) == ("ROI", "Box")
        assert (markup["coordinateSystem"], markup["coordinateUnits"]) == ("LPS", "mm")
        assert markup["center"] == [-7.5, 24.0, -25.0]
        assert markup["size"] == [6.0, 8.0, 10.0]
        assert markup["orientation"] == [-1, 0, 0, 0, -1, 0, 0, 0, 1]
        assert markup["name"] == "nodule 1"
        assert "0.8750" in markup["description"]
        assert all(0 <= shade <= 1 for shade in markup["display"]["color"])


def test_no_findings_are_no_markups() -> None:
    assert json.loads(markups_json(Detections.empty("LPS"), ("a",)))["markups"] == []
