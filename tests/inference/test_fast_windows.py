"""The fast plan: fewer voxels, windows on the stride, no larger than allowed."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from voxray.inference.fast_windows import GROWTH, planned

from voxray.core.volume import Shape
from voxray.recipes import read_recipe
from voxray.windows import windows_over

SPLEEN = read_recipe("spleen", ["inference.plan=fast"])
WHOLE_BODY = read_recipe("whole_body", ["inference.plan=fast"])


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
