"""Tiles: they cover the case, hold each object whole somewhere, and say what they cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxray.core.case import Case, Tile, row_to_tile, tile_to_row
from voxray.core.recipe import Recipe
from voxray.core.volume import Grid, Volume
from voxray.recipes import read_recipe
from voxray.sampling import cut_tiles, tile_shape

PATCH = ["patch.size_vox=[32,32,16]", "patch.margin_vox=[8,8,4]", "patch.max_object_vox=[20,20,12]"]
DETECTION = read_recipe("lung_nodule", PATCH)
SEGMENTATION = read_recipe("spleen", ["patch.size_vox=[32,32,32]", "patch.margin_vox=[8,8,8]"])


def case_of(shape: tuple[int, int, int], boxes: list[list[float]], *, labels: bool = False) -> Case:
    rng = np.random.default_rng(0)
    return Case(
        case_id="c",
        patient_id="p",
        image=Volume(
            rng.integers(-1000, 1000, shape).astype(np.int16),
            Grid(shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel())),
        ),
        boxes=np.array(boxes, np.float64).reshape(-1, 6),
        classes=np.arange(len(boxes)),
        labels=rng.integers(0, 3, shape).astype(np.uint8) if labels else None,
    )


def place_of(tile: Tile) -> np.ndarray:
    return np.array([*tile.start, *tile.start], np.float64)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(5, 130), st.integers(5, 130), st.integers(5, 60)),
    seed=st.integers(0, 999),
    number=st.integers(0, 4),
)
def test_tiles_cover_the_case_and_hold_each_object_whole(shape: tuple[int, int, int], seed: int, number: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = []
    for _ in range(number):
        side = np.minimum(rng.uniform(1, [20, 20, 12]), shape)
        low = rng.uniform(0, 1, 3) * (np.array(shape) - side)
        boxes.append([*low, *(low + side)])
    case = case_of(shape, boxes)
    covered = np.zeros(shape, int)
    whole: set[int] = set()
    for tile in cut_tiles(case, DETECTION):
        region = tuple(slice(a, a + n) for a, n in zip(tile.start, tile.voxels.shape, strict=True))
        covered[region] += 1
        np.testing.assert_array_equal(tile.voxels, case.image.voxels[region])
        assert tile.voxels.shape == tuple(np.minimum(tile_shape(DETECTION), shape))
        for box, cls in zip(tile.boxes, tile.classes, strict=True):
            off = np.abs(case.boxes - (box + place_of(tile))).max(axis=1)
            (index,) = np.flatnonzero((off < 1e-9) & (case.classes == cls))
            whole.add(int(index))
        assert (tile.cut_boxes[:, :3] >= 0).all()
        assert (tile.cut_boxes[:, 3:] <= tile.voxels.shape).all()
        touching = (case.boxes[:, 3:] > np.array(tile.start)) & (
            case.boxes[:, :3] < np.add(tile.start, tile.voxels.shape)
        )
        assert len(tile.boxes) + len(tile.cut_boxes) == int(touching.all(axis=1).sum())
    assert covered.min() >= 1
    assert whole == set(range(number))


def test_an_object_too_large_for_every_tile_counts_where_most_of_it_is() -> None:
    case = case_of((100, 30, 10), [[5.0, 2.0, 2.0, 70.0, 9.0, 9.0]])
    tiles = list(cut_tiles(case, DETECTION))
    own = [tile for tile in tiles if len(tile.boxes)]
    assert own
    assert all(tile.boxes[0, 3] - tile.boxes[0, 0] == 40 for tile in own)
    assert all(len(tile.cut_boxes) == 1 - len(tile.boxes) for tile in tiles if tile.start[0] < 70)


def test_detection_tiles_hold_no_labels_and_segmentation_tiles_no_boxes() -> None:
    case = case_of((70, 70, 40), [[3, 3, 3, 9, 9, 9]], labels=True)
    assert all(tile.labels is None for tile in cut_tiles(case, DETECTION))
    tiles = list(cut_tiles(case, SEGMENTATION))
    assert all(tile.labels is not None and not len(tile.boxes) + len(tile.classes) for tile in tiles)
    assert tiles[0].has_foreground


def test_segmentation_tiles_overlap_by_the_margin() -> None:
    starts = sorted({tile.start[0] for tile in cut_tiles(case_of((72, 20, 20), [], labels=True), SEGMENTATION)})
    assert starts == [0, 32]


@pytest.mark.parametrize("recipe", [DETECTION, SEGMENTATION])
def test_a_tile_survives_its_row(recipe: Recipe) -> None:
    case = case_of((50, 40, 20), [[3.5, 3, 3, 9, 9.25, 9]], labels=True)
    for tile in cut_tiles(case, recipe):
        again = row_to_tile(tile_to_row(tile))
        assert (again.case_id, again.start, again.stats) == (tile.case_id, tile.start, tile.stats)
        for name in ("voxels", "boxes", "classes", "cut_boxes", "labels"):
            np.testing.assert_array_equal(getattr(again, name), getattr(tile, name))
