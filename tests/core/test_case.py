"""Volume statistics and the rows of tiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from voxray.core.case import Case, VolumeStats, label_counts, pack, unpack
from voxray.core.volume import Grid, Volume


@given(arrays(np.int16, st.tuples(st.integers(1, 40), st.integers(1, 4), st.integers(1, 4))))
def test_statistics_leave_out_zeros(voxels: np.ndarray) -> None:
    values = voxels[voxels != 0].astype(np.float64)
    found = VolumeStats.of(voxels)
    if not len(values):
        assert found == VolumeStats(0.0, 1.0, 0.0, 0.0)
        return
    assert found.mean_hu == pytest.approx(values.mean(), rel=1e-9, abs=1e-9)
    assert found.std_hu == pytest.approx(values.std() if np.ptp(values) else 1.0, rel=1e-5, abs=1e-4)
    assert (found.min_hu, found.max_hu) == (values.min(), values.max())


@given(arrays(np.int16, st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))))
def test_packing_is_lossless(voxels: np.ndarray) -> None:
    np.testing.assert_array_equal(unpack(pack(voxels), voxels.shape, np.int16), voxels)
    turned = voxels.transpose(2, 0, 1)[::-1]
    np.testing.assert_array_equal(unpack(pack(turned), turned.shape, np.int16), turned)


@given(arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(1, 5))))
def test_labels_are_counted(labels: np.ndarray) -> None:
    np.testing.assert_array_equal(label_counts(labels), np.bincount(labels.ravel(), minlength=256))
    turned = labels.transpose(2, 0, 1)[:, ::-1]
    np.testing.assert_array_equal(label_counts(turned), np.bincount(labels.ravel(), minlength=256))


def test_a_task_sees_its_own_truth_alone() -> None:
    grid = Grid((2, 2, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    labels = np.ones(grid.shape, np.uint8)
    case = Case(
        "c",
        "p",
        Volume(np.zeros(grid.shape, np.int16), grid),
        np.array([[0.0, 0, 0, 1, 1, 1]]),
        np.array([3]),
        labels,
    )
    boxes, maps = case.for_task("detection"), case.for_task("segmentation")
    assert boxes.labels is None
    assert boxes.boxes is case.boxes
    assert maps.labels is labels
    assert len(maps.boxes) == len(maps.classes) == 0
