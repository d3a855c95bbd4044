"""Painting on grids of any orientation."""

from __future__ import annotations

import numpy as np
import pytest

from voxray.phantoms.canvas import AIR_HU, Canvas, grid_over
from voxray.phantoms.shapes import Array, ellipsoid, turn


def _slope(x: Array, y: Array, z: Array) -> Array:
    return 10 * x + 0 * (y + z)


BALL = ellipsoid((6, -4, 3), (12, 9, 7))
AXES = [np.eye(3), np.diag([-1.0, -1.0, 1.0]), np.eye(3)[:, [2, 0, 1]], turn(0, 20) @ turn(2, 15)]


@pytest.mark.parametrize("axes", AXES)
def test_a_painted_ball_lies_where_it_belongs(axes: np.ndarray) -> None:
    canvas = Canvas(grid_over((1, 2, 3), (60, 52, 50), (1.0, 1.1, 1.3), axes))
    canvas.paint(BALL, 40.0, label=3)
    inside = np.argwhere(canvas.labels == 3) + 0.5
    middle = canvas.grid.to_world(inside).mean(axis=0)
    np.testing.assert_allclose(middle, (6, -4, 3), atol=0.1)
    volume = 4 / 3 * np.pi * 12 * 9 * 7
    assert len(inside) * 1.43 == pytest.approx(volume, rel=0.03)
    # Partial volume: the border's share makes the painted mass nearly that of the ball.
    mass = float((canvas.voxels - AIR_HU).sum()) / 1040 * 1.43
    assert mass == pytest.approx(volume, rel=0.03)


def test_only_the_part_inside_the_grid_is_painted() -> None:
    canvas = Canvas(grid_over((0, 0, 0), (20, 20, 20), (1, 1, 1), np.eye(3)))
    assert canvas.block(ellipsoid((100, 0, 0), (5, 5, 5))) is None
    canvas.paint(ellipsoid((100, 0, 0), (5, 5, 5)), 40.0)
    assert np.all(canvas.voxels == AIR_HU)
    canvas.paint(ellipsoid((10, 0, 0), (5, 5, 5)), 40.0, opacity=0.5)
    assert canvas.voxels.max() == pytest.approx(-480)
    assert canvas.voxels[:12].max() == AIR_HU


def test_tissue_may_vary_with_place() -> None:
    canvas = Canvas(grid_over((0, 0, 0), (20, 20, 20), (1, 1, 1), np.eye(3)))
    canvas.paint(ellipsoid((0, 0, 0), (9, 9, 9)), _slope)
    np.testing.assert_allclose(canvas.voxels[6:14, 10, 10], 10 * (np.arange(6, 14) - 9.5), atol=1e-3)


def test_a_grid_covers_its_region_about_its_centre() -> None:
    grid = grid_over((1, 2, 3), (40, 30, 20), (2, 1.5, 1), turn(2, 30))
    assert grid.shape == (20, 20, 20)
    np.testing.assert_allclose(grid.to_world(np.array([[10.0, 10.0, 10.0]]))[0], (1, 2, 3), atol=1e-9)
