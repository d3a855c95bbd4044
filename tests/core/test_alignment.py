"""One space stored in all 48 ways: what is put on a grid is the same voxels, and what is elsewhere is refused."""

from __future__ import annotations

import itertools
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from voxray.core.alignment import Arrangement, arrangements, fit, put_on
from voxray.core.errors import DataError
from voxray.core.volume import Grid, Shape, Volume

EVERY = list(arrangements())
SPACING = (0.7, 1.3, 2.9)


def _grid(
    shape: Shape, spacing_mm: tuple[float, float, float] = SPACING, angles: tuple[float, ...] = (0, 0, 0)
) -> Grid:
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    return Grid(shape, spacing_mm, (-31.5, 12.25, 100.125), tuple(turn.ravel().tolist()))


def _volume(grid: Grid, seed: int = 0) -> Volume:
    return Volume(np.random.default_rng(seed).integers(0, 250, grid.shape).astype(np.uint8), grid)


def _stored(volume: Volume, one: Arrangement) -> Volume:
    return Volume(np.ascontiguousarray(one.voxels(volume.voxels)), one.grid(volume.grid))


def test_there_are_48_and_each_once() -> None:
    assert len({(one.order, one.flips) for one in EVERY}) == 48
    assert [one.is_identity for one in EVERY] == [True] + [False] * 47


@pytest.mark.parametrize("shape", [(5, 7, 3), (4, 4, 4), (6, 6, 1)])
@pytest.mark.parametrize("angles", [(0, 0, 0), (20, -35, 10), (44, 44, 44)])
def test_every_arrangement_comes_back_bit_for_bit(shape: Shape, angles: tuple[float, ...]) -> None:
    whole = _volume(_grid(shape, angles=angles))
    for one in EVERY:
        back = put_on(_stored(whole, one), whole.grid, name="map")
        np.testing.assert_array_equal(back.voxels, whole.voxels)
        assert back.voxels.flags.c_contiguous
        assert back.grid.is_close(whole.grid, tolerance_mm=1e-9)


@given(
    st.tuples(*[st.integers(1, 6)] * 3),
    st.tuples(*[st.floats(0.3, 6.0)] * 3),
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.sampled_from(EVERY),
)
def test_each_voxel_keeps_its_place_in_space(
    shape: Shape, spacing_mm: tuple[float, float, float], angles: tuple[float, ...], one: Arrangement
) -> None:
    whole = _volume(_grid(shape, spacing_mm, angles))
    stored = _stored(whole, one)
    places = np.array(list(itertools.product(*map(range, stored.grid.shape))))
    world = stored.grid.to_world(places + 0.5)
    index = np.floor(whole.grid.to_voxel(world)).astype(int)
    np.testing.assert_array_equal(stored.voxels[tuple(places.T)], whole.voxels[tuple(index.T)])
    np.testing.assert_array_equal(put_on(stored, whole.grid, name="map").voxels, whole.voxels)


@pytest.mark.parametrize("one", EVERY[::5])
def test_boxes_go_with_their_voxels(one: Arrangement) -> None:
    grid = _grid((5, 7, 3))
    box = np.array([[1.0, 2.0, 0.0, 3.0, 6.0, 2.0]])
    mask = np.zeros(grid.shape, bool)
    mask[1:3, 2:6, 0:2] = True
    low, high = np.split(one.boxes(box, grid.shape)[0].astype(int), 2)
    turned = one.voxels(mask)
    assert turned[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].all()
    assert turned.sum() == np.prod(high - low)


def test_the_same_grid_is_not_copied() -> None:
    volume = _volume(_grid((5, 7, 3)))
    assert put_on(volume, volume.grid, name="map") is volume


@pytest.mark.parametrize("change", ["origin", "spacing", "direction"])
def test_an_affine_that_is_rounded_is_the_same(change: str) -> None:
    grid = _grid((200, 180, 90))
    found = {
        "origin": replace(grid, origin_mm=(-31.5001, 12.2501, 100.1249)),
        "spacing": replace(grid, spacing_mm=(0.70001, 1.29999, 2.9001)),
        "direction": replace(grid, direction=(1.0, 1e-4, 0.0, -1e-4, 1.0, 0.0, 0.0, 0.0, 1.0)),
    }[change]
    assert fit(found, grid).arrangement.is_identity
    assert put_on(_volume(found), grid, name="map").voxels.shape == grid.shape
    turned = EVERY[29]
    np.testing.assert_array_equal(
        put_on(_stored(_volume(found), turned), grid, name="map").voxels, _volume(found).voxels
    )


def test_a_shift_is_refused_with_its_distance_however_it_is_stored() -> None:
    grid = _grid((5, 7, 3))
    for one, step in itertools.product(EVERY[::7], (0.35, 5.0)):
        moved = replace(grid, origin_mm=(grid.origin_mm[0] + step, *grid.origin_mm[1:]))
        with pytest.raises(
            DataError, match=f"a.nii does not lie where its image lies: corners are up to {step:g} mm"
        ):
            put_on(_stored(_volume(moved), one), grid, name="a.nii")


def test_a_turn_and_another_shape_are_refused_with_their_distance() -> None:
    grid = _grid((50, 40, 30), (1.0, 1.0, 1.0))
    turned = replace(grid, direction=_grid((1, 1, 1), angles=(0, 0, 3)).direction)
    with pytest.raises(DataError, match=r"labels.geometry.*up to 3.3\d+ mm apart; direction") as refused:
        put_on(_volume(turned), grid, name="a.nii")
    assert "Resample it onto the image's grid (nearest neighbour)" in refused.value.remedy
    short = replace(grid, shape=(30, 50, 39))
    with pytest.raises(DataError, match=r"predictions.shape.*a.nii has .* voxels, the truth 50 x 40 x 30"):
        put_on(_volume(short), grid, name="a.nii", of="the truth", code="predictions")


def test_memory_is_that_of_one_map() -> None:
    volume = Volume(np.zeros((160, 150, 140), np.uint8), _grid((160, 150, 140)))
    stored = _stored(volume, EVERY[-1])
    tracemalloc.start()
    try:
        put_on(stored, volume.grid, name="map")
        assert tracemalloc.get_traced_memory()[1] < 1.2 * volume.voxels.nbytes
    finally:
        tracemalloc.stop()
