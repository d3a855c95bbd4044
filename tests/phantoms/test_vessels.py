"""Trees of vessels."""

from __future__ import annotations

import numpy as np
import pytest

from voxray.phantoms.shapes import ellipsoid
from voxray.phantoms.vessels import grow, points_inside

LUNG = ellipsoid((0, 0, 0), (40, 50, 70))


def test_points_keep_their_margin(rng: np.random.Generator) -> None:
    points = points_inside(LUNG, 300, rng, margin_mm=5)
    assert points.shape == (300, 3)
    assert LUNG.at(points).max() < -5


def test_a_tree_reaches_its_leaves_and_obeys_murray(rng: np.random.Generator) -> None:
    leaves = points_inside(LUNG, 60, rng, margin_mm=4)
    tree = grow((-38.0, 0.0, 0.0), leaves, rng, leaf_radius_mm=0.8)
    gaps = np.linalg.norm(leaves[:, None] - tree.nodes[None], axis=2).min(axis=1)
    assert gaps.max() < 1e-9
    assert tree.parents[0] == -1
    assert np.all(tree.parents[1:] < np.arange(1, len(tree.parents)))
    children = [tree.radii[tree.parents == index] for index in range(len(tree.nodes))]
    for radius, below in zip(tree.radii, children, strict=True):
        if len(below):
            assert radius**2.7 == pytest.approx(float((below**2.7).sum()), rel=1e-9)
    ends = tree.radii[[len(below) == 0 for below in children]]
    assert ends == pytest.approx(0.8)
