"""The way back to the scan's own grid, on any axis order, flip and obliqueness."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor

from voxray.core.detections import Detections
from voxray.core.volume import Grid, Vector, Volume
from voxray.preprocess import orient, resampled_grid
from voxray.tasks.labels import labels_of
from voxray.tasks.restore import axis_map, detections_on, labels_on, shares_on

SIGNED_PERMUTATIONS = [
    np.eye(3)[list(order)] * np.array(signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]


def related_grids(turn: Any, *, angles_deg: tuple[float, float, float]) -> tuple[Grid, Grid]:
    """An oblique grid, and the same space along turned axes with other spacing."""
    rotation = Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix()
    shape = np.array([12, 10, 8])
    spacing = np.array([0.8, 1.1, 2.5])
    source = Grid((12, 10, 8), (0.8, 1.1, 2.5), (-31.0, 17.0, 5.0), tuple(rotation.ravel().tolist()))
    fine = np.array([0.5, 0.7, 0.9])
    columns = rotation @ turn
    sides = np.abs(turn.T @ (shape * spacing))
    centre = source.to_world(shape[None] / 2.0)[0]
    new_shape = np.ceil(sides / fine).astype(int)
    origin = centre - columns @ ((new_shape - 1) / 2 * fine)
    target = Grid(
        (int(new_shape[0]), int(new_shape[1]), int(new_shape[2])),
        (0.5, 0.7, 0.9),
        (float(origin[0]), float(origin[1]), float(origin[2])),
        tuple(columns.ravel().tolist()),
    )
    return source, target


@pytest.mark.parametrize("turn", SIGNED_PERMUTATIONS)
def test_a_point_goes_where_the_world_says(turn: Any) -> None:
    source, target = related_grids(turn, angles_deg=(20.0, -35.0, 10.0))
    way = axis_map(source, target)
    points = np.array([[0.0, 0.0, 0.0], [3.5, 2.25, 7.0], [12.0, 10.0, 8.0]])
    expected = target.to_voxel(source.to_world(points))
    np.testing.assert_allclose(points[:, list(way.axis)] * way.scale + way.shift, expected, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SIGNED_PERMUTATIONS),
    st.tuples(*[st.floats(-40, 40)] * 3),
    st.lists(st.floats(0.5, 7.5), min_size=6, max_size=6),
)
def test_boxes_keep_their_corners_in_the_world(
    turn: Any, angles: tuple[float, float, float], sides: list[float]
) -> None:
    source, target = related_grids(turn, angles_deg=angles)
    low, high = np.minimum(sides[:3], sides[3:]), np.maximum(sides[:3], sides[3:])
    before = Detections(
        np.concatenate([low, high])[None].astype(np.float32), np.ones(1, np.float32), np.zeros(1, np.int64)
    )
    after = detections_on(before, source, target)
    assert (after.boxes[:, 3:] >= after.boxes[:, :3]).all()
    corners = np.array(list(itertools.product(*zip(low, high, strict=True))))
    back = np.array(list(itertools.product(*zip(after.boxes[0, :3], after.boxes[0, 3:], strict=True))))
    world, world_back = source.to_world(corners), target.to_world(back)
    nearest = np.abs(world[:, None] - world_back[None]).max(axis=2).min(axis=1)
    assert nearest.max() < 1e-3


@pytest.mark.parametrize("turn", SIGNED_PERMUTATIONS[::5])
def test_each_voxel_takes_the_label_at_its_centre(turn: Any, rng: np.random.Generator) -> None:
    source, target = related_grids(turn, angles_deg=(12.0, 7.0, -21.0))
    labels = Volume(rng.integers(0, 5, target.shape, dtype=np.uint8), target)
    found = labels_on(labels, source)
    assert found.grid is source
    assert found.voxels.dtype == np.uint8
    index = np.stack(np.meshgrid(*[np.arange(n) for n in source.shape], indexing="ij"), axis=-1).reshape(-1, 3)
    there = np.floor(target.to_voxel(source.to_world(index + 0.5)) + 1e-6).astype(int)
    there = np.clip(there, 0, np.array(target.shape) - 1)
    np.testing.assert_array_equal(found.voxels.reshape(-1), labels.voxels[tuple(there.T)])


def test_the_same_grid_changes_nothing(rng: np.random.Generator) -> None:
    grid, _ = related_grids(np.eye(3), angles_deg=(5.0, 0.0, 30.0))
    labels = Volume(rng.integers(0, 3, grid.shape, dtype=np.uint8), grid)
    np.testing.assert_array_equal(labels_on(labels, grid).voxels, labels.voxels)
    empty = detections_on(Detections.empty(), grid, grid)
    assert len(empty) == 0


def test_grids_at_an_angle_are_our_own_mistake() -> None:
    straight, _ = related_grids(np.eye(3), angles_deg=(0.0, 0.0, 0.0))
    turned, _ = related_grids(np.eye(3), angles_deg=(10.0, 0.0, 0.0))
    with pytest.raises(AssertionError, match="do not lie along"):
        axis_map(straight, turned)


def slabs_of(shares: Tensor, axis: int, cuts: list[int]) -> Iterator[tuple[int, Tensor]]:
    """The shares in slabs that end at the cuts."""
    ends = sorted({*cuts, shares.shape[axis + 1]})
    for first, end in zip([0, *ends], ends, strict=False):
        if end > first:
            yield first, shares.narrow(axis + 1, first, end - first)


def largest(shares: Tensor) -> Tensor:
    """Class 1 where a single share is positive, of several the first of the largest."""
    return (shares[0] > 0).to(torch.uint8) if len(shares) == 1 else labels_of(shares)


@pytest.mark.parametrize("turn", SIGNED_PERMUTATIONS[::3])
@pytest.mark.parametrize("num_shares", [1, 4])
@pytest.mark.parametrize("spacing_mm", [(0.5, 0.7, 0.9), (1.6, 1.1, 4.0)])
def test_shares_are_interpolated_as_the_whole_scan_would_be(
    turn: Any, num_shares: int, spacing_mm: Vector, rng: np.random.Generator
) -> None:
    """Against scipy's interpolation of every class at every voxel's centre, found by way of the world."""
    scan, _ = related_grids(turn, angles_deg=(12.0, 7.0, -21.0))
    source = resampled_grid(orient(Volume(np.zeros(scan.shape, np.int16), scan), "RAS").grid, spacing_mm)
    shares = rng.normal(size=(num_shares, *source.shape)).astype(np.float32)
    centres = np.stack(np.meshgrid(*[np.arange(n) + 0.5 for n in scan.shape], indexing="ij"), axis=-1).reshape(-1, 3)
    index = source.to_voxel(scan.to_world(centres)) - 0.5
    values = np.stack([ndimage.map_coordinates(share, index.T, order=1, mode="nearest") for share in shares])
    expected = values[0] > 0 if num_shares == 1 else values.argmax(0)
    clear = np.abs(values[0]) > 1e-5 if num_shares == 1 else np.diff(np.sort(values, axis=0)[-2:], axis=0)[0] > 1e-5
    for axis, cuts in ((0, [2, 3]), (1, [1]), (2, [1, 2])):
        found = shares_on(slabs_of(torch.from_numpy(shares), axis, cuts), source, scan, axis=axis, named=largest)
        assert found.grid is scan
        assert found.voxels.flags.c_contiguous
        np.testing.assert_array_equal(found.voxels.ravel()[clear], expected[clear])
    assert clear.mean() > 0.99


def test_shares_leave_as_their_slabs_are_finished() -> None:
    """No slab is asked for before the planes of those before it are written."""
    scan = Grid((64, 8, 8), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
    source = resampled_grid(scan, (2.0, 1.0, 1.0))
    alive: list[weakref.ref[Tensor]] = []

    def slabs() -> Iterator[tuple[int, Tensor]]:
        for first in range(0, 32, 8):
            assert sum(slab() is not None for slab in alive) <= 1
            slab = torch.full((1, 8, 8, 8), 1.0 if first == 8 else -1.0)
            alive.append(weakref.ref(slab))
            yield first, slab

    found = shares_on(slabs(), source, scan, axis=0, named=largest)
    assert np.flatnonzero(found.voxels[:, 0, 0]).tolist() == list(range(16, 32))
