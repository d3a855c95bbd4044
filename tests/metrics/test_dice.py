from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from voxray.metrics import dice as dice_module
from voxray.metrics.dice import confusion, dice


def _masked(found: NDArray[np.uint8], truth: NDArray[np.uint8], label: int) -> float:
    """Dice of one label by its definition, from masks."""
    mine, true = found == label, truth == label
    return 2.0 * float((mine & true).sum()) / float(mine.sum() + true.sum()) if true.any() else float("nan")


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_equals_dice_from_masks(seed: int, num_labels: int) -> None:
    rng = np.random.default_rng(seed)
    found, truth = rng.integers(0, num_labels, (2, 5, 4, 3)).astype(np.uint8)
    table = confusion(found, truth, num_labels=num_labels)
    expected = [_masked(found, truth, label) for label in range(1, num_labels)]
    np.testing.assert_allclose(dice(table), expected)
    assert table.sum() == found.size


def test_slabs_add_up(rng: np.random.Generator) -> None:
    found, truth = rng.integers(0, 256, (2, 20, 20, 20)).astype(np.uint8)
    whole = confusion(found, truth, num_labels=256)
    before = dice_module.SLAB_VOXELS
    try:
        dice_module.SLAB_VOXELS = 999
        np.testing.assert_array_equal(confusion(found, truth, num_labels=256), whole)
    finally:
        dice_module.SLAB_VOXELS = before


def test_missed_class_is_zero_and_class_without_truth_is_nan() -> None:
    truth = np.zeros((2, 2, 2), np.uint8)
    truth[0] = 1
    found = np.zeros_like(truth)
    found[1] = 2
    np.testing.assert_array_equal(dice(confusion(found, truth, num_labels=3)), [0.0, np.nan])


def test_a_label_out_of_range_is_our_mistake() -> None:
    labels = np.full((1, 1, 1), 7, np.uint8)
    with pytest.raises(AssertionError, match="below 3"):
        confusion(np.zeros_like(labels), labels, num_labels=3)


@pytest.mark.data
def test_real_abdomen_against_a_shifted_copy(shared_data: Path) -> None:
    """117 classes of TotalSegmentator on a whole abdomen; equal to masks, class by class."""
    path = shared_data / "abdomen" / "TS_example_ct_labels117_fast.nii.gz"
    truth = np.asarray(nibabel.load(path).dataobj).astype(np.uint8)  # type: ignore[attr-defined]
    found = np.roll(truth, 1, axis=0)
    values = dice(confusion(found, truth, num_labels=118))
    assert np.count_nonzero(np.isfinite(values)) == 61
    assert values[0] == pytest.approx(_masked(found, truth, 1))
    present = [label for label in range(1, 118) if (truth == label).any()]
    np.testing.assert_allclose(values[np.isfinite(values)], [_masked(found, truth, label) for label in present])
