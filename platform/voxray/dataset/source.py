"""CaseSource: where one case's scan lies and what is known of its truth before a voxel is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64, Int64

from voxray.core.detections import Frame


@dataclass(frozen=True)
class BoxTruth:
    """The objects of one case as its table gives them: n boxes ``x1 y1 z1 x2 y2 z2`` and class indices.

    In ``voxel`` the boxes are edge coordinates of the image as it is stored, else millimetres in the named frame.
    """

    boxes: Float64[np.ndarray, "n 6"]
    classes: Int64[np.ndarray, " n"]
    frame: Frame

    @staticmethod
    def empty(frame: Frame) -> BoxTruth:
        """A scan without an object: a valid case."""
        return BoxTruth(np.zeros((0, 6)), np.zeros(0, np.int64), frame)


@dataclass(frozen=True)
class MapTruth:
    """The files from which a case's label map is made.

    ``file`` is one map, or a path with ``{class}`` where each class has its own mask; ``names`` gives the class name
    of each value of a label map; ``classes_file`` the JSON with the class of each instance.
    """

    file: str
    names: Mapping[int, str] = field(default_factory=dict)
    classes_file: str | None = None


@dataclass(frozen=True)
class CaseSource:
    """One case before its voxels are read; small, and can travel to a worker."""

    case_id: str
    patient_id: str
    image: str
    """The image file, or the folder of a DICOM series."""
    boxes: BoxTruth | None = None
    """None where the dataset has no table of objects."""
    maps: MapTruth | None = None
    """None where the dataset has no label maps."""
    accept_values: bool = False
    """Whether values of the image that can be no Hounsfield units are taken."""
