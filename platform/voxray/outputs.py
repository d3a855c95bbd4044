"""Where models and tasks meet: what a forward pass gives, as plain tensors so that it exports as it is."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class DetectionOutput(NamedTuple):
    """Raw maps, one pair per pyramid level, finest first; the channel axis is anchor-major.

    ``class_logits[l]`` is (batch, anchors * classes, x, y, z); ``box_deltas[l]`` is (batch, anchors * 6, x, y, z).
    """

    class_logits: tuple[Float[Tensor, "b ac x y z"], ...]
    box_deltas: tuple[Float[Tensor, "b a6 x y z"], ...]


class SegmentationOutput(NamedTuple):
    """Logits of every class, background first, at the patch's own resolution: (batch, classes, x, y, z)."""

    logits: Float[Tensor, "b c x y z"]


Output = DetectionOutput | SegmentationOutput
