"""Windows: covering, snapped to the stride, overlapping enough."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map

from voxray.core.volume import Shape
from voxray.recipes import read_recipe
from voxray.windows import GROWTH, blend_weights, lattice, place, planned, starts, window_for, windows_over

SPLEEN = read_recipe("spleen", ["inference.plan=fast"])
WHOLE_BODY = read_recipe("whole_body", ["inference.plan=fast"])


@given(
    length=st.integers(1, 700),
    cells=st.integers(1, 24),
    stride=st.sampled_from([1, 2, 8, 16]),
    overlap=st.floats(0, 0.9),
)
def test_starts_cover_the_axis_on_the_strides_lattice(length: int, cells: int, stride: int, overlap: float) -> None:
    window = cells * stride
    found = starts(length, window, overlap, stride)
    assert found[0] == 0
    assert all(start % stride == 0 for start in found)
    assert found == sorted(set(found))
    assert found[-1] + window >= length
    assert length <= window or found[-1] + window < length + stride
    smallest = min(overlap * window, window - stride)
    assert all(first + window - second >= smallest - 1e-6 for first, second in pairwise(found))


@pytest.mark.parametrize(
    ("length", "window", "overlap", "stride", "expected"),
    [
        (512, 512, 0.25, 16, [0]),
        (100, 512, 0.25, 16, [0]),
        (513, 512, 0.25, 16, [0, 16]),
        (300, 96, 0.5, 16, [0, 32, 80, 112, 160, 208]),
        (200, 80, 0.25, 8, [0, 40, 80, 120]),
    ],
)
def test_starts_by_hand(length: int, window: int, overlap: float, stride: int, expected: list[int]) -> None:
    assert starts(length, window, overlap, stride) == expected


def test_no_more_windows_than_fixed_steps_would_take() -> None:
    for length in range(97, 500):
        fixed = 1 + -(-(length - 96) // 72)
        assert len(starts(length, 96, 0.25, 1)) == fixed


def test_every_voxel_is_in_a_window() -> None:
    covered = np.zeros((70, 33, 20), bool)
    for x, y, z in place((70, 33, 20), (32, 32, 16), 0.25, (16, 16, 8)):
        covered[x : x + 32, y : y + 32, z : z + 16] = True
    assert covered.all()


@pytest.mark.parametrize("window", [(96, 96, 96), (32, 16, 8), (5, 7, 1)])
def test_the_gaussian_is_monais(window: tuple[int, int, int]) -> None:
    theirs = compute_importance_map(window, mode="gaussian", sigma_scale=0.125)
    torch.testing.assert_close(blend_weights(window, "gaussian"), theirs, atol=1e-6, rtol=1e-5)


def test_constant_weights_are_ones() -> None:
    assert (blend_weights((4, 5, 6), "constant") == torch.ones(4, 5, 6)).all()


def test_the_window_shrinks_to_a_small_scan() -> None:
    assert window_for((20, 33, 64), (32, 32, 32), (4, 4, 4)) == (20, 32, 32)
    assert window_for((21, 5, 1), (32, 32, 32), (16, 16, 8)) == (32, 16, 8)


@given(st.tuples(*[st.integers(1, 70)] * 3), st.sampled_from([0.0, 0.3, 0.5, 0.8]))
def test_a_lattice_runs_along_the_first_of_the_longest_axes(shape: Shape, overlap: float) -> None:
    found = lattice(shape, window=(16, 24, 8), overlap=overlap, stride=(8, 8, 4))
    longest = int(np.argmax(shape))
    assert found.axes[0] == longest
    in_order = sorted(place(shape, found.window, overlap, (8, 8, 4)), key=lambda start: (start[longest], start))
    assert found.places == in_order
    for axis in range(3):
        assert sum(found.step(axis, start) for start in found.starts[axis]) == shape[axis]


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(1, 400)] * 3))
def test_fewer_voxels_in_windows_that_may_be_larger(shape: Shape) -> None:
    fast = planned(SPLEEN, shape)
    assert all(side % 16 == 0 for side in fast.inference.window_vox)
    assert np.prod(fast.inference.window_vox) <= GROWTH * 96**3
    before, after = (windows_over(shape, recipe) for recipe in (SPLEEN, fast))
    assert len(after.places) * np.prod(after.window) <= len(before.places) * np.prod(before.window)


def test_a_scan_of_the_abdomen_takes_less_than_a_quarter() -> None:
    before, after = (windows_over((244, 202, 168), recipe) for recipe in (SPLEEN, planned(SPLEEN, (244, 202, 168))))
    assert len(before.places) == 60
    assert 4 * len(after.places) * np.prod(after.window) < 60 * 96**3


def test_windows_that_must_not_grow_only_overlap_less() -> None:
    """Group norm's statistics are the window's, and engines are built for one size."""
    fast = planned(WHOLE_BODY, (300, 200, 300))
    assert fast.inference.window_vox == WHOLE_BODY.inference.window_vox
    assert fast.inference.overlap < WHOLE_BODY.inference.overlap
    assert planned(SPLEEN, (300, 200, 300), fixed=True).inference.window_vox == (96, 96, 96)


def test_the_recipe_stands_where_it_is_the_plan() -> None:
    recipe = read_recipe("spleen")
    assert planned(recipe, (300, 200, 300)) is recipe
