"""Phantom: a generated scan with its whole truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from voxray.core.case import Case
from voxray.core.volume import Volume


@dataclass(frozen=True)
class Phantom:
    """An image, the boxes of its objects in LPS mm with their classes, and a label map of its structures.

    Objects and structures have class lists of their own: see `voxray.phantoms.KINDS`.
    """

    image: Volume
    boxes_mm: Float64[np.ndarray, "n 6"]
    classes: Int64[np.ndarray, " n"]
    labels: UInt8[np.ndarray, "x y z"]

    def with_labels(self, case_id: str) -> Case:
        """The case of a segmentation dataset."""
        return Case(case_id, case_id, self.image, np.zeros((0, 6)), np.zeros(0, np.int64), self.labels)
