"""Findings as a Markups file of 3D Slicer (schema 1.0.3): one box for each, in LPS millimetres."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from voxray.core.detections import Detections
from voxray.core.written import MARKUPS
from voxray.results.writers.stamping import colour

_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
_AXES = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
"""Of the box: Slicer's own axes (RAS) as seen from LPS."""
_DECIMALS = 4


def markups_json(detections: Detections, classes: Sequence[str]) -> str:
    """The text of a ``.mrk.json``; the findings are in world millimetres, and there may be none.

    Slicer's schema allows further fields: ``schema`` is voxray's mark.
    """
    world = detections.in_frame("LPS")
    boxes = [
        _box(number, classes[int(kind)], int(kind), float(score), low=box[:3], high=box[3:])
        for number, (kind, score, box) in enumerate(
            zip(world.classes, world.scores, world.boxes.astype(float), strict=True), start=1
        )
    ]
    return json.dumps({"schema": MARKUPS, "@schema": _SCHEMA, "markups": boxes}, indent=1) + "\n"


def _box(number: int, name: str, kind: int, score: float, *, low: Any, high: Any) -> dict[str, Any]:
    """A locked box: its size is its three sides, and it has no fill that would hide the scan."""
    shade = [round(value / 255, 4) for value in colour(kind + 1)]
    return {
        "type": "ROI",
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": True,
        "fixedNumberOfControlPoints": False,
        "labelFormat": "%N",
        "lastUsedControlPointNumber": 0,
        "name": f"{name} {number}",
        "description": f"score {score:.4f}",
        "roiType": "Box",
        "center": _rounded((low + high) / 2),
        "orientation": list(_AXES),
        "size": _rounded(high - low),
        "insideOut": False,
        "controlPoints": [],
        "measurements": [],
        "display": {"visibility": True, "color": shade, "selectedColor": shade, "fillOpacity": 0.1},
    }


def _rounded(values: Any) -> list[float]:
    return [round(float(value), _DECIMALS) for value in values]
