"""Solids: signed distances against what geometry says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxray.phantoms.shapes import (
    Solid,
    Wobble,
    capsule,
    column,
    common,
    ellipsoid,
    grown,
    half_space,
    joined,
    sheet_of,
    turn,
    uneven,
    without,
)

length = st.floats(2, 40)
place = st.floats(-60, 60)


@given(place, place, place, length, st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_the_distance_of_a_ball_is_exact(x: float, y: float, z: float, radius: float, seed: int) -> None:
    points = np.random.default_rng(seed).uniform(-90, 90, size=(50, 3))
    found = ellipsoid((x, y, z), (radius,) * 3).at(points)
    np.testing.assert_allclose(found, np.linalg.norm(points - (x, y, z), axis=1) - radius, atol=2e-3)


@given(st.tuples(length, length, length), st.floats(0, 180), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_every_solid_lies_in_its_box(radii: tuple[float, float, float], angle: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    wobble = Wobble.draw(rng, amplitude_mm=0.5, length_mm=20)
    ball = ellipsoid((1, 2, 3), radii, turn(1, angle) @ turn(2, 2 * angle))
    tube = capsule((0, 0, 0), rng.uniform(-30, 30, size=3), (radii[0], radii[1]), tall=1.5)
    solids = [ball, tube, grown(tube, 2), uneven(ball, wobble), joined(ball, tube, smooth_mm=4), without(ball, tube)]
    solids += [common(ball, grown(tube, 5), smooth_mm=3), column((0, 0), radii[:2], power=2.3, bottom=-5, top=9)]
    points = rng.uniform(-120, 120, size=(4000, 3))
    for solid in solids:
        inside = points[solid.at(points) < 0]
        # A tube that is taller than wide has its distances in its own scale, so it grows by up to half as much again.
        assert np.all((inside >= np.array(solid.low) - 1.5) & (inside <= np.array(solid.high) + 1.5))


def test_a_turned_ellipsoid_has_its_tips_where_rotation_puts_them() -> None:
    rotation = turn(2, 30) @ turn(0, 50)
    solid = ellipsoid((5, 6, 7), (10, 4, 3), rotation)
    tips = np.array([5, 6, 7]) + np.concatenate([rotation.T * [[10], [4], [3]], -rotation.T * [[10], [4], [3]]])
    np.testing.assert_allclose(solid.at(tips), 0, atol=1e-3)


def test_a_tube_tapers_and_can_be_tall() -> None:
    tube = capsule((0, 0, 0), (20, 0, 0), (4, 2))
    assert tube.at(np.array([[0, 4, 0], [20, 2, 0], [10, 3, 0], [-4, 0, 0]])) == pytest.approx(0, abs=1e-5)
    tall = capsule((0, 0, 0), (20, 0, 0), (4, 4), tall=1.5)
    assert tall.at(np.array([[10, 0, 6.0], [10, 4.0, 0]])) == pytest.approx(0, abs=1e-5)


def test_union_intersection_and_difference_agree_with_sets(rng: np.random.Generator) -> None:
    a, b = ellipsoid((0, 0, 0), (10, 10, 10)), ellipsoid((8, 0, 0), (9, 7, 8))
    points = rng.uniform(-20, 20, size=(2000, 3))
    in_a, in_b = a.at(points) < 0, b.at(points) < 0
    np.testing.assert_array_equal(joined(a, b).at(points) < 0, in_a | in_b)
    np.testing.assert_array_equal(common(a, b).at(points) < 0, in_a & in_b)
    np.testing.assert_array_equal(without(a, b).at(points) < 0, in_a & ~in_b)


def test_smooth_seams_fill_and_round(rng: np.random.Generator) -> None:
    a, b = ellipsoid((-6, 0, 0), (10, 10, 10)), ellipsoid((6, 0, 0), (10, 10, 10))
    points = rng.uniform(-20, 20, size=(3000, 3))
    assert np.all(joined(a, b, smooth_mm=5).at(points) <= joined(a, b).at(points) + 1e-4)
    assert np.all(common(a, b, smooth_mm=5).at(points) >= common(a, b).at(points) - 1e-4)
    assert (
        joined(a, b, smooth_mm=5).at(np.array([[0.0, 8.5, 0.0]]))[0]
        < 0
        < joined(a, b).at(np.array([[0.0, 8.5, 0]]))[0]
    )


def test_columns_sheets_and_half_spaces() -> None:
    square = column((2, 3), (10, 5), power=2.4, bottom=-4, top=6)
    on_border = np.array([[12, 3, 0], [-8, 3, 0], [2, 8, 0], [2, 3, 6], [2, 3, -4.0]])
    assert square.at(on_border) == pytest.approx(0, abs=1e-3)
    assert square.at(np.array([[2.0, 3.0, 0.0]]))[0] == pytest.approx(-4, abs=1e-3)
    plane = half_space((0, 0, 5), (0, 0, 2))
    assert plane.at(np.array([[1, 2, 8.0], [1, 2, 1.0]])) == pytest.approx([3, -4])
    sheet = sheet_of(plane, 2)
    assert (sheet.at(np.array([[0, 0, 5.0], [0, 0, 5.9], [0, 0, 6.2]])) < 0).tolist() == [True, True, False]


def test_a_wobble_has_the_amplitude_that_it_names(rng: np.random.Generator) -> None:
    wobble = Wobble.draw(rng, amplitude_mm=3.0, length_mm=15, count=6)
    field = Solid(wobble, (0, 0, 0), (1, 1, 1)).at(rng.uniform(-400, 400, size=(20000, 3)))
    assert field.std() == pytest.approx(3.0, rel=0.05)
    assert abs(field.mean()) < 0.3
