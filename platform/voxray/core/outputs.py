"""Where models and tasks meet: what a forward pass gives, as plain tensors so that it exports as it is."""

from __future__ import annotations

from typing import NamedTuple

import torch
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


class SegmentationFeatures(NamedTuple):
    """What a `Head` makes logits of, at the patch's own resolution: (batch, channels, x, y, z)."""

    features: Float[Tensor, "b k x y z"]


class Head(NamedTuple):
    """The last layer of a segmentation network that mixes each voxel's channels there, and nothing else.

    Such a layer and the blending of windows may change places, as both are linear: windows are blended in the few
    channels before it, and each finished voxel goes through it once.
    """

    weight: Float[Tensor, "c k"]
    bias: Float[Tensor, " c"]

    def logits(self, features: Float[Tensor, "b k x y z"]) -> Float[Tensor, "b c x y z"]:
        """What the whole network would have said."""
        flat = features.flatten(2)
        made = torch.stack([torch.addmm(self.bias[:, None], self.weight, one) for one in flat])
        return made.view(*made.shape[:2], *features.shape[2:])

    def sums(self, sums: Float[Tensor, "k1 x y z"]) -> Float[Tensor, "c x y z"]:
        """Weighted sums of logits from those of features, whose last channel is the sum of weights.

        Channels lie in memory where those of `sums` lie, first or last.
        """
        matrix = torch.cat([self.weight, self.bias[:, None]], dim=1)
        if channels_last(sums):
            rows = sums.movedim(0, -1)
            made = torch.mm(rows.reshape(-1, len(sums)), matrix.T)
            return made.view(*rows.shape[:-1], -1).movedim(-1, 0)
        return torch.mm(matrix, sums.flatten(1)).view(-1, *sums.shape[1:])


def channels_last(values: Float[Tensor, "c x y z"]) -> bool:
    """Whether a voxel's channels lie beside each other in memory."""
    return len(values) > 1 and values.stride(0) == 1


Output = DetectionOutput | SegmentationOutput
