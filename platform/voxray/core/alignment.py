"""Volumes of one patient space that are stored with other axes, put on one grid without a voxel's change.

A grid can be stored in 48 ways: six orders of its axes, each of which may run backwards. Two grids that differ in
nothing but such an arrangement hold the same voxels in another order, so the one goes onto the other exactly. Any
other difference would need interpolation, and is refused with its distance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations, product

import numpy as np
from jaxtyping import Float64, Shaped

from voxray.core.errors import DataError
from voxray.core.volume import Grid, Shape, Volume

SHIFT_VOX = 0.1
"""Grids are one where no corner lies further from its counterpart than this share of the smallest spacing: files
round their affines differently, and so little changes no voxel's nearest neighbour."""


@dataclass(frozen=True)
class Arrangement:
    """A way to store a grid: new axis k is the old axis ``order[k]``, and runs backwards where ``flips[k]``."""

    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @property
    def is_identity(self) -> bool:
        """Whether nothing is reordered."""
        return self.order == (0, 1, 2) and not any(self.flips)

    def voxels(self, voxels: Shaped[np.ndarray, "x y z"]) -> Shaped[np.ndarray, "u v w"]:
        """The voxels in the new order, as a view of the same memory."""
        return voxels.transpose(self.order)[tuple(slice(None, None, -1 if flip else None) for flip in self.flips)]

    def grid(self, grid: Grid) -> Grid:
        """The grid that the reordered voxels lie on: the same places in space."""
        x, y, z = (grid.shape[axis] for axis in self.order)
        sx, sy, sz = (grid.spacing_mm[axis] for axis in self.order)
        rotation = grid.rotation[:, self.order] * np.where(self.flips, -1.0, 1.0)
        corner = np.zeros(3)
        for axis, flip in zip(self.order, self.flips, strict=True):
            corner[axis] = grid.shape[axis] - 1 if flip else 0
        ox, oy, oz = (float(value) for value in grid.to_world(corner[None] + 0.5)[0])
        return Grid((x, y, z), (sx, sy, sz), (ox, oy, oz), tuple(rotation.ravel().tolist()))

    def boxes(self, boxes: Float64[np.ndarray, "n 6"], shape: Shape) -> Float64[np.ndarray, "n 6"]:
        """Boxes in edge voxels of a grid of `shape`, as edge voxels of the new one."""
        low, high = boxes[:, :3][:, self.order], boxes[:, 3:][:, self.order]
        flip, side = np.asarray(self.flips), np.asarray(shape, np.float64)[list(self.order)]
        return np.concatenate([np.where(flip, side - high, low), np.where(flip, side - low, high)], axis=1)


@dataclass(frozen=True)
class Fit:
    """The arrangement of a grid that comes nearest to another grid."""

    arrangement: Arrangement
    grid: Grid
    """The arranged grid."""
    shift_mm: float
    """How far a corner lies from its counterpart, at most."""

    def is_exact(self, wanted: Grid) -> bool:
        """Whether voxels fall on voxels."""
        return self.grid.shape == wanted.shape and self.shift_mm <= SHIFT_VOX * min(wanted.spacing_mm)


def arrangements() -> Iterator[Arrangement]:
    """All 48, the identity first."""
    for x, y, z in permutations((0, 1, 2)):
        for flips in product((False, True), (False, True), (False, True)):
            yield Arrangement((x, y, z), flips)


def fit(found: Grid, wanted: Grid) -> Fit:
    """How `found` has to be arranged to come nearest to `wanted`; the right shape comes before the distance."""
    target = _corners(wanted)
    fits = []
    for one in arrangements():
        grid = one.grid(found)
        fits.append(Fit(one, grid, float(np.linalg.norm(_corners(grid) - target, axis=1).max())))
        if fits[-1].is_exact(wanted):  # the others are a voxel away or more
            return fits[-1]
    return min(fits, key=lambda one: (one.grid.shape != wanted.shape, one.shift_mm))


def put_on(volume: Volume, grid: Grid, *, name: str, of: str = "its image", code: str = "labels") -> Volume:
    """A label map on the grid of its image, where both cover one space voxel for voxel.

    Anything else is a DataError, ``<code>.shape`` or ``<code>.geometry``, which calls the two `name` and `of`.
    """
    best = fit(volume.grid, grid)
    if best.grid.shape != grid.shape:
        sides = [" x ".join(str(side) for side in one.shape) for one in (best.grid, grid)]
        text = f"{name} has {sides[0]} voxels, {of} {sides[1]}; their corners are up to {best.shift_mm:.4g} mm apart."
        raise _refusal(f"{code}.shape", text, of)
    if not best.is_exact(grid):
        text = f"{name} does not lie where {of} lies: corners are up to {best.shift_mm:.4g} mm apart"
        raise _refusal(f"{code}.geometry", f"{text}{_differing(best.grid, grid, of)}.", of)
    if best.arrangement.is_identity:
        return volume
    return replace(volume, voxels=np.ascontiguousarray(best.arrangement.voxels(volume.voxels)), grid=grid)


def _corners(grid: Grid) -> Float64[np.ndarray, "8 3"]:
    return grid.to_world(np.array(list(product(*((0, side) for side in grid.shape))), np.float64))


def _differing(found: Grid, image: Grid, of: str) -> str:
    """What of the two grids' descriptions differs; nothing where only roundings add up."""
    parts = [
        f"{what} {_numbers(getattr(found, what))} ({of.split()[-1]}: {_numbers(getattr(image, what))})"
        for what in ("spacing_mm", "origin_mm", "direction")
        if not np.allclose(getattr(found, what), getattr(image, what), rtol=1e-4, atol=1e-3)
    ]
    return f"; {'; '.join(parts)}" if parts else ""


def _refusal(code: str, text: str, of: str) -> DataError:
    noun = of.split()[-1]
    remedy = f"Resample it onto the {noun}'s grid (nearest neighbour), or pair it with its own {noun}."
    return DataError(code, text, remedy=remedy)


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.6g}" for value in values)
