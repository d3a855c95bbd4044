"""Branching vessels: a tree grown from a root to points spread through an organ, thick as Murray's law has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voxray.phantoms.canvas import Canvas
from voxray.phantoms.shapes import Solid, capsule

Points = NDArray[np.float64]

_MURRAY = 2.7
_STEP_MM = 9.0


@dataclass(frozen=True)
class Tree:
    """Nodes in LPS mm, each with its parent (-1 at the root) and its radius in mm."""

    nodes: Points
    parents: NDArray[np.int64]
    radii: NDArray[np.float64]

    def distance(self, points_mm: Points) -> NDArray[np.float64]:
        """The distance of points from the nearest wall, taken at the nodes."""
        gaps = np.linalg.norm(points_mm[:, None] - self.nodes[None], axis=2) - self.radii[None]
        nearest: NDArray[np.float64] = gaps.min(axis=1)
        return nearest


def points_inside(solid: Solid, count: int, rng: np.random.Generator, *, margin_mm: float) -> Points:
    """Uniform points at least `margin_mm` below the solid's surface."""
    found = np.zeros((0, 3))
    while len(found) < count:
        drawn = rng.uniform(solid.low, solid.high, size=(4 * count, 3))
        found = np.concatenate([found, drawn[solid.at(drawn) < -margin_mm]])
    return found[:count]


def grow(root: Sequence[float], leaves: Points, rng: np.random.Generator, *, leaf_radius_mm: float) -> Tree:
    """The tree that reaches every leaf, nearest first, each from the node that makes a short and smooth way.

    A branch that feeds n leaves has a radius of n^(1/2.7) times a leaf's (Murray 1926, with the exponent of lungs).
    """
    start = np.asarray(root, np.float64)
    nodes, parents = [start], [-1]
    headings, lengths = [np.mean(leaves, axis=0) - start], [0.0]
    headings[0] = headings[0] / np.linalg.norm(headings[0])
    for leaf in leaves[np.argsort(np.linalg.norm(leaves - start, axis=1))]:
        way = leaf - np.array(nodes)
        distance = np.maximum(np.linalg.norm(way, axis=1), 1e-6)
        bend = 1 - np.sum(way / distance[:, None] * np.array(headings), axis=1)
        parent = int(np.argmin(distance * (1 + 0.8 * bend) + 0.3 * np.array(lengths)))
        count = max(1, round(float(distance[parent]) / _STEP_MM))
        for point in _curve(nodes[parent], headings[parent], leaf, count, rng):
            step = point - nodes[parent]
            length = float(np.linalg.norm(step))
            nodes.append(point)
            parents.append(parent)
            headings.append(step / max(length, 1e-6))
            lengths.append(lengths[parent] + length)
            parent = len(nodes) - 1
    return Tree(np.array(nodes), np.array(parents), _radii(np.array(parents), leaf_radius_mm))


def paint_tree(canvas: Canvas, tree: Tree, hu: float, *, least_mm: float = 0.0) -> None:
    """Every branch as a tapering tube; one thinner than a voxel shows as faintly as it would in a scan."""
    for index, parent in enumerate(tree.parents):
        if parent < 0 or tree.radii[index] < least_mm:
            continue
        first, last = float(tree.radii[parent]), float(tree.radii[index])
        # A thick parent does not swell its thin side branch.
        tube = capsule(tree.nodes[parent], tree.nodes[index], (min(first, 1.35 * last), last))
        opacity = min(1.0, (last / (0.5 * canvas.voxel_mm)) ** 2)
        canvas.paint(tube, hu, opacity=opacity)


def _curve(start: Points, heading: Points, end: Points, count: int, rng: np.random.Generator) -> Points:
    """`count` points on a curve that leaves along `heading` and ends at `end` (quadratic Bezier), slightly uneven."""
    length = np.linalg.norm(end - start)
    bend = start + 0.5 * length * (0.45 * heading + 0.55 * (end - start) / max(float(length), 1e-6))
    share = np.linspace(0, 1, count + 1)[1:, None]
    points = (1 - share) ** 2 * start + 2 * share * (1 - share) * bend + share**2 * end
    points[:-1] += rng.normal(scale=0.5, size=(count - 1, 3))
    curve: Points = points
    return curve


def _radii(parents: NDArray[np.int64], leaf_radius_mm: float) -> NDArray[np.float64]:
    fed = np.zeros(len(parents))
    children = np.bincount(parents[parents >= 0], minlength=len(parents))
    fed[children == 0] = 1
    for index in range(len(parents) - 1, 0, -1):
        fed[parents[index]] += fed[index]
    radii: NDArray[np.float64] = leaf_radius_mm * np.maximum(fed, 1) ** (1 / _MURRAY)
    return radii
