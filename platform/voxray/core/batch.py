"""What travels to the device and what a loss sees.

Objects are ragged; a batch pads them to a common count and marks the padding with class `PADDING`. A box of class
`IGNORED` is a region where the truth is not known in full, such as an object that the patch's border cuts: its
anchors are neither positive nor negative.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int16, Int64, UInt8
from torch import Tensor

PADDING = -1
IGNORED = -2


class PatchBatch(NamedTuple):
    """Patches as they stream: Hounsfield units, not yet normalised or augmented.

    ``stats`` holds each patch's volume statistics: mean, standard deviation, minimum and maximum in HU.
    """

    voxels: Int16[Tensor, "b x y z"]
    stats: Float[Tensor, "b 4"]
    boxes: Float[Tensor, "b m 6"]
    classes: Int64[Tensor, "b m"]
    labels: UInt8[Tensor, "b x y z"] | None

    def to(self, device: torch.device) -> PatchBatch:
        """The same batch on a device, copied without waiting where the memory is pinned."""
        return PatchBatch(*(None if t is None else t.to(device, non_blocking=True) for t in self))  # type: ignore[arg-type]


class Batch(NamedTuple):
    """Normalised, augmented patches with their truth; boxes in edge voxels of the patch."""

    images: Float[Tensor, "b 1 x y z"]
    boxes: Float[Tensor, "b m 6"]
    classes: Int64[Tensor, "b m"]
    labels: UInt8[Tensor, "b x y z"] | None
