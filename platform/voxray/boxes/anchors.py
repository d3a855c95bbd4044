"""Anchors: the boxes from which a detector's deltas are measured, a few shapes at every place of every map.

Anchors are never stored: level, place and shape follow from an anchor's number. Numbers run through the places of a
level in C order, at each place through the shapes, and then on to the next level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from voxray.core.recipe import AnchorConfig
from voxray.core.volume import Shape, Vector


@dataclass(frozen=True)
class AnchorLevel:
    """The anchors of one map of `shape` places; place i has its centre at (i + 0.5) * stride + offset voxels."""

    shape: Shape
    stride_vox: Shape
    offset_vox: float
    half_sides_vox: tuple[Vector, ...]

    @property
    def num_places(self) -> int:
        """Places of the map."""
        x, y, z = self.shape
        return x * y * z

    @property
    def num_shapes(self) -> int:
        """Anchors at each place."""
        return len(self.half_sides_vox)

    @property
    def num_anchors(self) -> int:
        """Anchors of the level."""
        return self.num_places * self.num_shapes

    def centres(self, axis: int, device: torch.device | None = None) -> Float[Tensor, " places"]:
        """The places' centres along one axis, in voxels."""
        index = torch.arange(self.shape[axis], dtype=torch.float32, device=device)
        return (index + 0.5) * self.stride_vox[axis] + self.offset_vox

    def half_sides(self, device: torch.device | None = None) -> Float[Tensor, "a 3"]:
        """Half the sides of each shape, in voxels."""
        return torch.tensor(self.half_sides_vox, dtype=torch.float32, device=device)

    def boxes_at(self, places: Int64[Tensor, "*n"], shapes: Int64[Tensor, "*n"]) -> Float[Tensor, "*n 6"]:
        """The anchors of these shapes at these places (numbered in C order)."""
        _, y, z = self.shape
        index = (places // (y * z), places // z % y, places % z)
        centre = torch.stack([self.centres(axis, places.device)[index[axis]] for axis in range(3)], dim=-1)
        half = self.half_sides(places.device)[shapes]
        return torch.cat([centre - half, centre + half], dim=-1)


def anchor_levels(
    config: AnchorConfig, shapes: Sequence[Sequence[int]], strides_vox: Sequence[Shape]
) -> tuple[AnchorLevel, ...]:
    """The levels of maps with these shapes (x y z) and strides, finest first."""
    levels = zip(shapes, strides_vox, config.level_scales, strict=True)
    return tuple(
        AnchorLevel(
            shape=(int(shape[0]), int(shape[1]), int(shape[2])),
            stride_vox=stride,
            offset_vox=config.offset_vox,
            half_sides_vox=tuple(_half_sides(base, scale, config) for base in config.base_shapes_vox),
        )
        for shape, stride, scale in levels
    )


def per_anchor(maps: Sequence[Float[Tensor, "b ac x y z"]], num_shapes: int) -> Float[Tensor, "b n c"]:
    """A network's maps (channels anchor-major) as one row of values for each anchor, in order."""
    rows = [
        m.reshape(len(m), num_shapes, m.shape[1] // num_shapes, -1).permute(0, 3, 1, 2).flatten(1, 2) for m in maps
    ]
    return torch.cat(rows, dim=1)


def _half_sides(base: Vector, scale: float, config: AnchorConfig) -> Vector:
    x, y, z = (float(round(side * scale / 2)) if config.published_rounding else side * scale / 2 for side in base)
    return x, y, z
