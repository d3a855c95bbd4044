"""Lung nodules: round where vessels branch, and of the same density, so that only their shape tells them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from voxray.phantoms.shapes import Solid, Wobble, common, ellipsoid, grown, turn
from voxray.phantoms.vessels import Tree, points_inside

Extent = Float64[np.ndarray, " 6"]

_CANDIDATES = 60
_MIN_SHOWN = 0.55
_GAP_MM = 6.0


@dataclass(frozen=True)
class Nodule:
    """A nodule's solid, and the box in LPS mm of the part that shows in the lung."""

    solid: Solid
    box_mm: Extent


def draw_nodules(
    lungs: Sequence[Solid],
    trees: Sequence[Tree],
    count: int,
    rng: np.random.Generator,
    *,
    diameter_mm: tuple[float, float],
    fits: Callable[[Extent], bool],
) -> list[Nodule]:
    """`count` nodules: free in the lung, at a small vessel, or against the pleura; never one in another.

    `fits` says of a box whether the scan holds it.
    """
    found: list[Nodule] = []
    while len(found) < count:
        radius = float(rng.uniform(*diameter_mm)) / 2
        lung = lungs[int(rng.integers(len(lungs)))]
        place = ("free", "vessel", "pleura")[int(rng.choice(3, p=(0.45, 0.3, 0.25)))]
        solid = _shape(_place(lung, trees, place, radius, rng), radius, rng)
        # A nodule against the pleura ends there, and does not grow into the ribs.
        solid = common(solid, grown(lung, 1.0))
        box = _shown(solid, lung, radius)
        if box is not None and fits(box) and all(_apart(box, other.box_mm) for other in found):
            found.append(Nodule(solid, box))
    return found


def _place(
    lung: Solid, trees: Sequence[Tree], place: str, radius: float, rng: np.random.Generator
) -> Float64[np.ndarray, " 3"]:
    """A centre that keeps clear of vessels as thick as a nodule."""
    margin = 0.45 * radius if place == "pleura" else radius + 2
    points = points_inside(lung, _CANDIDATES, rng, margin_mm=margin)
    if place == "pleura":
        points = points[lung.at(points) > -0.75 * radius]
    elif place == "vessel":
        nodes = np.concatenate([tree.nodes[(tree.radii > 0.9) & (tree.radii < 2.0)] for tree in trees])
        nodes = nodes + rng.normal(scale=0.6 * radius, size=nodes.shape)
        points = rng.permutation(nodes[lung.at(nodes) < -margin])[:_CANDIDATES]
    thick = [Tree(t.nodes[t.radii > 2.4], t.parents[t.radii > 2.4], t.radii[t.radii > 2.4]) for t in trees]
    for tree in thick:
        if len(tree.nodes) and len(points):
            points = points[tree.distance(points) > radius + 3]
    if len(points) == 0:
        return _place(lung, trees, "free", min(radius, 6.0), rng)
    chosen: Float64[np.ndarray, " 3"] = points[0]
    return chosen


def _shape(centre: Float64[np.ndarray, " 3"], radius: float, rng: np.random.Generator) -> Solid:
    """Nearly a ball: half-axes differ by some 12 %, and the surface is slightly lobed."""
    radii = radius * rng.uniform(0.88, 1.12, size=3)
    rotation = turn(0, rng.uniform(0, 180)) @ turn(1, rng.uniform(0, 180)) @ turn(2, rng.uniform(0, 180))
    lobes = Wobble.draw(rng, amplitude_mm=0.05 * radius, length_mm=1.3 * radius, count=5)
    return ellipsoid(tuple(centre), tuple(radii), rotation, lobes)


def _shown(nodule: Solid, lung: Solid, radius: float) -> Extent | None:
    """The box of what lies in the lung, measured in half millimetres; None where too little of the ball is left."""
    step = min(0.5, radius / 8)
    axes = [np.arange(low, high, step) for low, high in zip(nodule.low, nodule.high, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    inside = points[nodule.at(points) < 0]
    shown = inside[lung.at(inside) < 0.5]
    if len(shown) * step**3 < _MIN_SHOWN * 4 / 3 * np.pi * radius**3:
        return None
    return np.concatenate([shown.min(axis=0) - step / 2, shown.max(axis=0) + step / 2])


def _apart(box: Extent, other: Extent) -> bool:
    return bool(np.any((box[:3] > other[3:] + _GAP_MM) | (other[:3] > box[3:] + _GAP_MM)))
