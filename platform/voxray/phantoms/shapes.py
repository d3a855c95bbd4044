"""Solids in patient space, as signed distances in LPS millimetres: negative inside.

A solid knows the box that holds it, so that it is evaluated only where it can be. Distances of ellipsoids and
columns are first-order approximations, which is all that a border one voxel wide needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voxray.core.volume import Vector

Array = NDArray[np.float32]
Distance = Callable[[Array, Array, Array], Array]
Matrix = NDArray[np.float64]
_Point = Sequence[float] | NDArray[np.float64]

_FAR_MM = 1e4
_TINY = np.float32(1e-4)


@dataclass(frozen=True)
class Solid:
    """A signed distance in mm of points x, y, z (LPS mm), and a box outside of which it is positive."""

    distance: Distance
    low: Vector
    high: Vector

    def at(self, points_mm: Matrix) -> Array:
        """The distance of n points, given as (n, 3)."""
        x, y, z = (np.ascontiguousarray(column, np.float32) for column in points_mm.T)
        return self.distance(x, y, z)


@dataclass(frozen=True)
class Wobble:
    """A smooth random field in mm: a few plane waves. It makes borders of organs uneven."""

    waves: Matrix
    phases: Matrix
    amplitude_mm: float

    @staticmethod
    def draw(rng: np.random.Generator, *, amplitude_mm: float, length_mm: float, count: int = 4) -> Wobble:
        """Waves of about `length_mm` in random directions; the field's standard deviation is the amplitude."""
        directions = rng.normal(size=(count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lengths = length_mm * rng.uniform(0.7, 1.4, size=(count, 1))
        return Wobble(2 * np.pi * directions / lengths, rng.uniform(0, 2 * np.pi, size=count), amplitude_mm)

    def __call__(self, x: Array, y: Array, z: Array) -> Array:
        """The field at points."""
        total = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape), np.float32)
        for (wx, wy, wz), phase in zip(self.waves.astype(np.float32), self.phases, strict=True):
            total += np.sin(wx * x + wy * y + wz * z + np.float32(phase))
        total *= np.float32(self.amplitude_mm * np.sqrt(2 / len(self.waves)))
        return total


def turn(axis: int, degrees: float) -> Matrix:
    """The rotation about the x, y or z axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = [k for k in range(3) if k != axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix


def ellipsoid(centre: _Point, radii: _Point, rotation: Matrix | None = None, wobble: Wobble | None = None) -> Solid:
    """An ellipsoid whose axes are the columns of `rotation`."""
    axes = np.eye(3) if rotation is None else rotation
    half = np.sqrt((axes**2) @ np.square(radii)) + (0.0 if wobble is None else 3 * wobble.amplitude_mm)
    (cx, cy, cz), rows = centre, axes.T.astype(np.float32)

    def distance(x: Array, y: Array, z: Array) -> Array:
        dx, dy, dz = x - np.float32(cx), y - np.float32(cy), z - np.float32(cz)
        near: Array = np.zeros(np.broadcast_shapes(dx.shape, dy.shape, dz.shape), np.float32)
        slope: Array = np.zeros_like(near)
        for (ax, ay, az), radius in zip(rows, radii, strict=True):
            along = (ax * dx + ay * dy + az * dz) / np.float32(radius)
            near += along * along
            slope += np.square(along / np.float32(radius))
        near = near**0.5
        result: Array = near * (near - 1) / np.maximum(slope**0.5, _TINY)
        return result if wobble is None else result + wobble(x, y, z)

    return Solid(distance, _vector(np.subtract(centre, half)), _vector(np.add(centre, half)))


def column(
    centre: tuple[float, float],
    radii: tuple[float, float],
    *,
    power: float = 2.0,
    bottom: float = -_FAR_MM,
    top: float = _FAR_MM,
    wobble: Wobble | None = None,
) -> Solid:
    """A column along z whose section is a superellipse of the given power: 2 is an ellipse, more is squarer."""
    (cx, cy), (a, b) = centre, radii
    spread = 0.0 if wobble is None else 3 * wobble.amplitude_mm

    def distance(x: Array, y: Array, z: Array) -> Array:
        dx, dy = np.abs(x - np.float32(cx)), np.abs(y - np.float32(cy))
        if power == 2.0:
            ratio = np.sqrt(np.square(dx / np.float32(a)) + np.square(dy / np.float32(b)))
        else:
            ratio = ((dx / np.float32(a)) ** power + (dy / np.float32(b)) ** power) ** np.float32(1 / power)
        ratio = np.maximum(ratio, _TINY)
        result: Array = (ratio - 1) * np.sqrt(dx * dx + dy * dy) / ratio + np.zeros_like(z)
        # At the axis the quotient above is 0/0; there the nearest border is the shorter half-axis away.
        result = np.where(ratio <= 2 * _TINY, np.float32(-min(a, b)), result)
        if wobble is not None:
            result = result + wobble(x, y, z)
        if bottom > -_FAR_MM or top < _FAR_MM:
            result = np.maximum(result, np.maximum(np.float32(bottom) - z, z - np.float32(top)))
        return result

    low = (cx - a - spread, cy - b - spread, bottom)
    return Solid(distance, low, (cx + a + spread, cy + b + spread, top))


def capsule(start: _Point, end: _Point, radii: tuple[float, float], *, tall: float = 1.0) -> Solid:
    """A tube with round ends that tapers from one radius to the other; `tall` stretches its section along z."""
    scale = np.array([1.0, 1.0, 1 / tall])
    first, along = np.asarray(start) * scale, (np.asarray(end) - np.asarray(start)) * scale
    length = float(along @ along)
    (fx, fy, fz), (ax, ay, az), (r0, r1) = first.astype(np.float32), along.astype(np.float32), radii

    def distance(x: Array, y: Array, z: Array) -> Array:
        dx, dy, dz = x - fx, y - fy, z * np.float32(1 / tall) - fz
        share = np.clip((dx * ax + dy * ay + dz * az) * np.float32(1 / max(length, 1e-6)), 0, 1)
        dx, dy, dz = dx - share * ax, dy - share * ay, dz - share * az
        result: Array = np.sqrt(dx * dx + dy * dy + dz * dz) - (np.float32(r0) + share * np.float32(r1 - r0))
        return result

    reach = max(radii) / scale
    ends = np.stack([np.asarray(start, np.float64), np.asarray(end, np.float64)])
    return Solid(distance, _vector(ends.min(axis=0) - reach), _vector(ends.max(axis=0) + reach))


def grown(solid: Solid, by_mm: float) -> Solid:
    """The solid with its border moved outwards; inwards where `by_mm` is negative."""
    reach = max(by_mm, 0.0)
    return Solid(
        lambda x, y, z: solid.distance(x, y, z) - np.float32(by_mm),
        _vector(np.subtract(solid.low, reach)),
        _vector(np.add(solid.high, reach)),
    )


def uneven(solid: Solid, wobble: Wobble) -> Solid:
    """The solid with its border moved in and out."""
    reach = 3 * wobble.amplitude_mm
    return Solid(
        lambda x, y, z: solid.distance(x, y, z) + wobble(x, y, z),
        _vector(np.subtract(solid.low, reach)),
        _vector(np.add(solid.high, reach)),
    )


def sheet_of(solid: Solid, thickness_mm: float) -> Solid:
    """The solid's border as a sheet of that thickness."""

    def distance(x: Array, y: Array, z: Array) -> Array:
        result: Array = np.abs(solid.distance(x, y, z)) - np.float32(thickness_mm / 2)
        return result

    return Solid(distance, solid.low, solid.high)


def joined(*solids: Solid, smooth_mm: float = 0.0) -> Solid:
    """The union; seams are filled over `smooth_mm`."""

    def distance(x: Array, y: Array, z: Array) -> Array:
        result = solids[0].distance(x, y, z)
        for solid in solids[1:]:
            result = _smooth_min(result, solid.distance(x, y, z), smooth_mm)
        return result

    lows, highs = [solid.low for solid in solids], [solid.high for solid in solids]
    return Solid(distance, _vector(np.min(lows, axis=0) - smooth_mm), _vector(np.max(highs, axis=0) + smooth_mm))


def common(*solids: Solid, smooth_mm: float = 0.0) -> Solid:
    """The intersection; its edges are rounded over `smooth_mm`."""

    def distance(x: Array, y: Array, z: Array) -> Array:
        result = solids[0].distance(x, y, z)
        for solid in solids[1:]:
            result = -_smooth_min(-result, -solid.distance(x, y, z), smooth_mm)
        return result

    lows, highs = [solid.low for solid in solids], [solid.high for solid in solids]
    return Solid(distance, _vector(np.max(lows, axis=0)), _vector(np.min(highs, axis=0)))


def without(solid: Solid, *others: Solid, smooth_mm: float = 0.0) -> Solid:
    """The solid less the others; the new edges are rounded over `smooth_mm`."""

    def distance(x: Array, y: Array, z: Array) -> Array:
        result = solid.distance(x, y, z)
        for other in others:
            result = -_smooth_min(-result, other.distance(x, y, z), smooth_mm)
        return result

    return Solid(distance, solid.low, solid.high)


def half_space(point: _Point, outward: _Point) -> Solid:
    """All points behind the plane through `point` whose normal is `outward`."""
    normal = np.asarray(outward, np.float64) / np.linalg.norm(outward)
    offset = np.float32(normal @ np.asarray(point))
    nx, ny, nz = normal.astype(np.float32)
    everywhere = (-_FAR_MM,) * 3, (_FAR_MM,) * 3
    return Solid(lambda x, y, z: nx * x + ny * y + nz * z - offset, *everywhere)


def _smooth_min(first: Array, second: Array, width: float) -> Array:
    """The minimum, rounded where both are within `width` of each other (polynomial smooth minimum)."""
    lower: Array = np.minimum(first, second)
    if width <= 0:
        return lower
    overlap = np.maximum(np.float32(width) - np.abs(first - second), 0)
    result: Array = lower - overlap * overlap * np.float32(0.25 / width)
    return result


def _vector(values: _Point) -> Vector:
    x, y, z = (float(value) for value in values)
    return x, y, z
