"""Scans that no CT network can answer: refused where that is certain, warned of where it is likely.

Fat is about -100 HU and air -1000 HU, so a CT scan of a body has voxels below 0 HU. Without one, the values are of
another modality, or stored values whose rescale intercept was lost, or grey levels of a picture.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int16

from voxray.errors import DataError
from voxray.volume import Volume

AIR_HU = -1100
"""Air is -1000 HU; scanners write lower values only outside of their field of view."""
METAL_HU = 3071
"""The most that 12 bits hold; wider scales exist, for metal."""
_SOFT_HU = (-150, 150)
_FEW = 1e-3


def check_modality(volume: Volume) -> tuple[str, ...]:
    """Warnings of values that are odd for Hounsfield units; a DataError where they cannot be, or of one slice."""
    if min(volume.grid.shape) == 1:
        sides = " x ".join(map(str, volume.grid.shape))
        raise DataError(
            "scan.one_slice",
            f"The scan has {sides} voxels, a single slice; a 3D network needs a volume.",
            remedy="Give the whole series.",
        )
    voxels = volume.hounsfield
    low, high = int(voxels.min()), int(voxels.max())
    if low >= 0 and high > low:
        raise DataError(
            "scan.not_hounsfield",
            f"The scan's values run from {low} to {high}; Hounsfield units of a body go below 0 (fat, lungs, air).",
            remedy="Give a CT scan in Hounsfield units; if its rescale intercept was lost, convert the DICOM again.",
        )
    return tuple(_odd(voxels, low, high))


def _odd(voxels: Int16[np.ndarray, "x y z"], low: int, high: int) -> list[str]:
    found = []
    below, above = (float(part.mean()) for part in (voxels < AIR_HU, voxels > METAL_HU))
    if below > _FEW:
        found.append(f"{below:.1%} of voxels lie below {AIR_HU} HU (down to {low}), as outside of a scanner's view")
    if above > _FEW:
        found.append(f"{above:.1%} of voxels lie above {METAL_HU} HU (up to {high}), as in metal")
    if float(((voxels >= _SOFT_HU[0]) & (voxels <= _SOFT_HU[1])).mean()) < _FEW:
        found.append("hardly any voxel is soft tissue (-150 to 150 HU); check that the values are Hounsfield units")
    return found
