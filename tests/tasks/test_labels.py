"""Labels from probabilities, and label maps tidied up, in slabs as in one piece."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import UInt8
from scipy import ndimage

from voxray.tasks import labels as module
from voxray.tasks.labels import CORNERS, FACES, Components, labels_above, tidy

Labels = UInt8[np.ndarray, "x y z"]


def slow_tidy(labels: Labels, *, smallest_vox: float, largest_only: list[int], fill_holes: list[int]) -> Labels:
    """The same over the whole map at once."""
    result = labels.copy()
    for label in fill_holes:
        outside = np.pad(result, 1) != label
        parts, _ = ndimage.label(outside, structure=FACES)
        holes = (parts != parts[0, 0, 0])[1:-1, 1:-1, 1:-1] & (result != label)
        result[holes & (result == 0)] = label
    for label in np.unique(result[result > 0]):
        parts, count = ndimage.label(result == label, structure=CORNERS)
        sizes = ndimage.sum_labels(np.ones_like(parts), parts, np.arange(1, count + 1))
        for part, size in enumerate(sizes, start=1):
            if size < smallest_vox or (label in largest_only and size < sizes.max()):
                result[parts == part] = 0
    return result


@given(
    st.integers(0, 10_000),
    st.floats(0.05, 0.6),
    st.sampled_from([0.0, 1.5, 4.0]),
    st.sampled_from([[], [1], [1, 2]]),
    st.sampled_from([[], [2], [1, 2]]),
)
def test_slabs_give_what_the_whole_map_gives(
    seed: int, density: float, smallest_vox: float, largest_only: list[int], fill_holes: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((9, 6, 7)) < density, rng.integers(1, 3, (9, 6, 7)), 0).astype(np.uint8)
    labels[2:7, 1:5, 1:6] = np.where(rng.random((5, 4, 5)) < 0.85, 1, labels[2:7, 1:5, 1:6])
    expected = slow_tidy(labels, smallest_vox=smallest_vox, largest_only=[], fill_holes=fill_holes)
    for slab_voxels in (1, 100, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "SLAB_VOXELS", slab_voxels)
            found = tidy(labels, smallest_vox=smallest_vox, fill_holes=fill_holes)
            np.testing.assert_array_equal(found, expected)
            alone = tidy(labels, smallest_vox=smallest_vox, largest_only=largest_only, fill_holes=fill_holes)
        for label in (1, 2):
            parts, count = ndimage.label(alone == label, structure=CORNERS)
            if label in largest_only:
                assert count <= 1
                before, _ = ndimage.label(expected == label, structure=CORNERS)
                assert np.count_nonzero(parts) == np.bincount(before.ravel())[1:].max(initial=0)
            else:
                np.testing.assert_array_equal(alone == label, expected == label)


def test_components_are_counted_across_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spiral through all slabs is one component; a corner is enough to touch, where corners count."""
    monkeypatch.setattr(module, "SLAB_VOXELS", 1)
    mask = np.zeros((6, 3, 3), bool)
    for plane, place in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (1, 1), (0, 1)]):
        mask[(plane, *place)] = True
    assert Components(lambda slab: mask[slab], mask.shape, CORNERS).sizes.tolist() == [6]
    assert sorted(Components(lambda slab: mask[slab], mask.shape, FACES).sizes.tolist()) == [1] * 6
    inside = np.zeros((5, 5, 5), bool)
    inside[1:4, 2, 2] = True
    found = Components(lambda slab: inside[slab], inside.shape, FACES)
    assert (found.sizes.tolist(), found.on_border.tolist()) == ([3], [False])


def test_a_hole_that_holds_another_class_keeps_it() -> None:
    labels = np.zeros((7, 7, 7), np.uint8)
    labels[1:6, 1:6, 1:6] = 1
    labels[2:5, 2:5, 2:5] = 0
    labels[3, 3, 3] = 2
    filled = tidy(labels, fill_holes=[1])
    assert filled[3, 3, 3] == 2
    assert np.count_nonzero(filled == 1) == 124
    np.testing.assert_array_equal(tidy(labels, fill_holes=[2]), labels)


def test_nothing_to_tidy() -> None:
    empty = np.zeros((4, 5, 6), np.uint8)
    np.testing.assert_array_equal(tidy(empty, smallest_vox=5, largest_only=[1], fill_holes=[1]), empty)


@pytest.mark.data
def test_real_organs_in_slabs_as_in_one_piece(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shared_data / "abdomen" / "TS_example_ct_labels117_fast.nii.gz"
    labels = np.ascontiguousarray(np.asarray(nibabel.load(path).dataobj), np.uint8)  # type: ignore[attr-defined]
    every = list(range(1, 118))
    whole = tidy(labels, smallest_vox=20, largest_only=every[:50], fill_holes=every)
    monkeypatch.setattr(module, "SLAB_VOXELS", 5000)
    np.testing.assert_array_equal(tidy(labels, smallest_vox=20, largest_only=every[:50], fill_holes=every), whole)
    assert np.count_nonzero(whole != labels) > 100


CLASSES = ("spleen", "liver", "kidney")


def at(*shares: float) -> torch.Tensor:
    return torch.tensor(shares).reshape(-1, 1, 1, 1)


def label(shares: torch.Tensor, thresholds: list[float | None]) -> int:
    return int(labels_above(shares, thresholds).item())


def test_a_class_above_its_threshold_needs_no_majority() -> None:
    shares = at(0.6, 0.3, 0.1)
    assert label(shares, [None, None]) == 0
    assert label(shares, [0.25, None]) == 1
    assert label(shares, [0.3, None]) == 0
    assert label(shares, [0.25, 0.05]) == 1
    assert label(shares, [0.35, 0.05]) == 2


def test_a_class_below_its_threshold_leaves_the_place_to_the_next() -> None:
    shares = at(0.1, 0.5, 0.4)
    assert label(shares, [0.6, None]) == 2
    assert label(shares, [0.6, 0.6]) == 0
    assert label(at(0.45, 0.5, 0.05), [0.6, None]) == 0


def test_of_several_the_most_probable_whatever_their_order() -> None:
    assert label(at(0.2, 0.3, 0.5), [0.1, None]) == 2
    assert label(at(0.2, 0.5, 0.3), [None, 0.1]) == 1
    assert label(at(0.2, 0.3, 0.5), [0.1, 0.1]) == 2
    assert label(at(0.2, 0.4, 0.4), [0.1, 0.1]) == 1


@given(st.integers(0, 1000))
def test_without_thresholds_the_largest(seed: int) -> None:
    shares = torch.rand((4, 3, 4, 5), generator=torch.Generator().manual_seed(seed)).softmax(dim=0)
    assert torch.equal(labels_above(shares, [None] * 3).long(), shares.argmax(dim=0))
    assert torch.equal(labels_above(shares, [0.0] * 3).long(), shares[1:].argmax(dim=0) + 1)
    bytes_of = (shares * 255).round().to(torch.uint8)
    assert torch.equal(
        labels_above(bytes_of, [None, 1.0, None], whole=255) == 2, torch.zeros((3, 4, 5), dtype=torch.bool)
    )
