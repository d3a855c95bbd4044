"""Patches: where they lie, what they pad, and what becomes of cut objects."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxray.core.batch import IGNORED, PADDING
from voxray.core.case import Tile, VolumeStats
from voxray.recipes import read_recipe
from voxray.sampling import collate, cut_patch

DETECTION = read_recipe("lung_nodule", ["patch.size_vox=[32,32,16]"])
EVERYTHING = read_recipe("lung_nodule", ["patch.size_vox=[32,32,16]", "patch.whole_boxes=false"])
SEGMENTATION = read_recipe("spleen", ["patch.size_vox=[32,32,32]"])
NO_BOXES = np.zeros((0, 6))


def tile_of(
    shape: tuple[int, int, int],
    boxes: list[list[float]],
    *,
    cut: list[list[float]] | None = None,
    labels: np.ndarray | None = None,
) -> Tile:
    """A tile whose every voxel holds a number of its own, as far as int16 goes."""
    return Tile(
        case_id="c",
        start=(0, 0, 0),
        voxels=(np.arange(np.prod(shape)) % 32000).astype(np.int16).reshape(shape),
        stats=VolumeStats(-600.0, 300.0, -1000.0, 1200.0),
        boxes=np.array(boxes, np.float64).reshape(-1, 6),
        classes=np.arange(len(boxes)),
        cut_boxes=np.array(cut or [], np.float64).reshape(-1, 6),
        labels=labels,
    )


def start_of(tile: Tile, voxels: np.ndarray) -> np.ndarray:
    """Where a patch was cut: the place of its first voxel's number."""
    return np.asarray(np.argwhere(tile.voxels == voxels[0, 0, 0])[0])


@settings(max_examples=80, deadline=None)
@given(
    low=st.tuples(*[st.floats(0, 0.999)] * 3),
    side=st.tuples(st.floats(1, 31), st.floats(1, 31), st.floats(1, 15)),
    seed=st.integers(0, 99),
)
def test_a_foreground_patch_holds_its_object_whole(
    low: tuple[float, float, float], side: tuple[float, float, float], seed: int
) -> None:
    shape = (40, 36, 20)
    first = np.array(low) * (np.array(shape) - side)
    tile = tile_of(shape, [[*first, *(first + side)]])
    patch = cut_patch(tile, DETECTION, np.random.default_rng(seed), foreground=True)
    assert patch.voxels.shape == (32, 32, 16)
    np.testing.assert_allclose(patch.boxes[0, 3:] - patch.boxes[0, :3], side, atol=1e-4)
    np.testing.assert_allclose(patch.boxes[0, :3] + start_of(tile, patch.voxels), first, atol=1e-4)
    assert patch.classes.tolist() == [0]
    assert patch.stats.tolist() == [-600.0, 300.0, -1000.0, 1200.0]


def test_foreground_patches_take_every_possible_place() -> None:
    tile = tile_of((40, 36, 20), [[5.0, 10.0, 8.0, 9.0, 30.0, 12.0]])
    rng = np.random.default_rng(0)
    found = {
        tuple(start_of(tile, cut_patch(tile, DETECTION, rng, foreground=True).voxels).tolist()) for _ in range(900)
    }
    assert found == {(x, y, z) for x in range(6) for y in range(5) for z in range(5)}


def test_a_patch_within_a_larger_object_has_its_centre_in_it() -> None:
    recipe = read_recipe("lung_nodule", ["patch.size_vox=[16,16,8]"])
    tile = tile_of((40, 40, 20), [[2.0, 3.0, 4.0, 38.0, 36.0, 18.0]])
    for seed in range(50):
        patch = cut_patch(tile, recipe, np.random.default_rng(seed), foreground=True)
        centre = start_of(tile, patch.voxels) + np.array([8, 8, 4])
        assert (centre >= tile.boxes[0, :3]).all()
        assert (centre <= tile.boxes[0, 3:]).all()


def test_cut_objects_are_kept_ignored_or_gone() -> None:
    tile = tile_of(
        (64, 32, 16),
        [[20.0, 4.0, 4.0, 24.0, 8.0, 8.0], [28.0, 4.0, 4.0, 48.0, 8.0, 8.0], [60.0, 0.0, 0.0, 62.0, 2.0, 2.0]],
        cut=[[0.0, 20.0, 0.0, 64.0, 32.0, 4.0]],
    )
    seen = set()
    for seed in range(60):
        patch = cut_patch(tile, DETECTION, np.random.default_rng(seed), foreground=False)
        start = float(start_of(tile, patch.voxels)[0])
        expected: dict[tuple[float, ...], int] = {(0.0, 20.0, 0.0, 32.0, 32.0, 4.0): IGNORED}
        for index, (box, length) in enumerate(zip(tile.boxes, (4.0, 20.0, 2.0), strict=True)):
            low, high = max(box[0] - start, 0.0), min(box[3] - start, 32.0)
            if high > low:
                kept = (high - low) / length >= 0.5
                expected[(low, box[1], box[2], high, box[4], box[5])] = index if kept else IGNORED
                seen.add((index, kept))
        found = {
            tuple(box): int(cls)
            for box, cls in zip(patch.boxes.astype(float).tolist(), patch.classes.tolist(), strict=True)
        }
        assert found == expected
    assert (1, True) in seen
    assert (1, False) in seen


def test_without_whole_boxes_a_sliver_of_a_voxel_is_still_truth() -> None:
    tile = tile_of((64, 32, 16), [[10.0, 4.0, 4.0, 60.0, 8.0, 8.0]])
    for seed in range(20):
        patch = cut_patch(tile, EVERYTHING, np.random.default_rng(seed), foreground=False)
        assert patch.classes.tolist() == [0]


def test_a_small_tile_is_padded_at_its_end() -> None:
    tile = tile_of((20, 40, 9), [[2.0, 3.0, 4.0, 8.0, 9.0, 9.0]])
    patch = cut_patch(tile, DETECTION, np.random.default_rng(0), foreground=True)
    start = start_of(tile, patch.voxels)
    assert start[0] == start[2] == 0
    np.testing.assert_array_equal(patch.voxels[:20, :, :9], tile.voxels[:, start[1] : start[1] + 32])
    assert (patch.voxels[20:] == -1024).all()
    assert (patch.voxels[:, :, 9:] == -1024).all()
    assert patch.classes.tolist() == [0]


def test_segmentation_patches_centre_on_each_class_equally_often(rng: np.random.Generator) -> None:
    labels = np.zeros((60, 60, 60), np.uint8)
    labels[20:40, 20:40, 20:40] = 1
    labels[30, 30, 30] = 2
    tile = tile_of((60, 60, 60), [], labels=labels)
    centres = []
    for _ in range(200):
        patch = cut_patch(tile, SEGMENTATION, rng, foreground=True)
        assert patch.labels is not None
        assert patch.labels.shape == (32, 32, 32)
        centres.append(int(patch.labels[16, 16, 16]))
    assert 70 <= centres.count(2) <= 130
    assert centres.count(0) == 0


def test_background_patches_avoid_objects_with_their_centre(rng: np.random.Generator) -> None:
    labels = np.zeros((64, 64, 64), np.uint8)
    labels[:, :, :32] = 1
    tile = tile_of((64, 64, 64), [], labels=labels)
    patches = [cut_patch(tile, SEGMENTATION, rng, foreground=False) for _ in range(50)]
    assert sum(int(patch.labels[16, 16, 16]) for patch in patches if patch.labels is not None) <= 3
    anywhere = read_recipe("spleen", ["patch.size_vox=[32,32,32]", "patch.foreground=0"])
    patches = [cut_patch(tile, anywhere, rng, foreground=False) for _ in range(50)]
    assert sum(int(patch.labels[16, 16, 16]) for patch in patches if patch.labels is not None) > 12


def test_collate_pads_boxes_and_keeps_labels(rng: np.random.Generator) -> None:
    tile = tile_of((40, 36, 20), [[5.0, 10.0, 8.0, 9.0, 30.0, 12.0], [6.0, 11.0, 8.0, 9.0, 20.0, 12.0]])
    empty = tile_of((40, 36, 20), [])
    batch = collate([cut_patch(one, DETECTION, rng, foreground=False) for one in (tile, empty)])
    assert batch.voxels.shape == (2, 32, 32, 16)
    assert batch.stats.shape == (2, 4)
    assert batch.classes.tolist() == [[0, 1], [PADDING, PADDING]]
    assert batch.labels is None
    none = collate([cut_patch(empty, DETECTION, rng, foreground=False)])
    assert none.boxes.shape == (1, 0, 6)
    labelled = tile_of((40, 36, 20), [], labels=np.ones((40, 36, 20), np.uint8))
    patch = cut_patch(labelled, SEGMENTATION, rng, foreground=True)
    made = collate([patch, patch])
    assert made.labels is not None
    assert made.labels.shape == (2, 32, 32, 32)
    assert int(made.labels[0].sum()) == 32 * 32 * 20


@pytest.mark.parametrize("foreground", [True, False])
def test_the_same_seed_gives_the_same_patch(foreground: bool) -> None:
    tile = tile_of((50, 50, 30), [[5.0, 10.0, 8.0, 9.0, 30.0, 12.0]])
    first, second = (cut_patch(tile, DETECTION, np.random.default_rng(7), foreground=foreground) for _ in range(2))
    np.testing.assert_array_equal(first.voxels, second.voxels)
    np.testing.assert_array_equal(first.boxes, second.boxes)
