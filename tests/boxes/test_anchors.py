"""Anchors: MONAI's, where the published rounding is asked for, and their geometry."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape

from support.box_references import all_boxes
from voxray.boxes.anchors import anchor_levels, per_anchor
from voxray.boxes.overlap import paired_iou
from voxray.core.recipe import AnchorConfig

BASE = ((6.0, 8.0, 4.0), (8.0, 6.0, 5.0), (10.0, 10.0, 6.0))
STRIDES = ((4, 4, 2), (8, 8, 4), (16, 16, 8))
PUBLISHED = AnchorConfig(base_shapes_vox=BASE, level_scales=(1, 2, 4), published_rounding=True)
EXACT = AnchorConfig(base_shapes_vox=BASE, level_scales=(1, 2, 4))


def maps_of(window: tuple[int, int, int]) -> list[tuple[int, ...]]:
    return [tuple(side // step for side, step in zip(window, stride, strict=True)) for stride in STRIDES]


@pytest.mark.parametrize("window", [(64, 64, 32), (48, 80, 24), (192, 192, 80)])
def test_published_anchors_are_monais(window: tuple[int, int, int]) -> None:
    monai = AnchorGeneratorWithAnchorShape(feature_map_scales=[1, 2, 4], base_anchor_shapes=BASE, indexing="ij")
    shapes = maps_of(window)
    expected = monai(torch.zeros((1, 1, *window)), [torch.zeros((1, 1, *shape)) for shape in shapes])[0]
    assert torch.equal(all_boxes(anchor_levels(PUBLISHED, shapes, STRIDES)), expected)


def test_published_sizes() -> None:
    """The published weights' effective sizes: halves rounded to even make 8 x 6 x 5 an 8 x 6 x 4."""
    levels = anchor_levels(PUBLISHED, maps_of((64, 64, 32)), STRIDES)
    sizes = [[tuple(2 * side for side in half) for half in level.half_sides_vox] for level in levels]
    assert sizes == [
        [(6, 8, 4), (8, 6, 4), (10, 10, 6)],
        [(12, 16, 8), (16, 12, 10), (20, 20, 12)],
        [(24, 32, 16), (32, 24, 20), (40, 40, 24)],
    ]


def test_counts_of_the_published_windows() -> None:
    counts = {
        window: sum(level.num_anchors for level in anchor_levels(EXACT, maps_of(window), STRIDES))
        for window in ((192, 192, 80), (512, 512, 192))
    }
    assert counts == {(192, 192, 80): 315_360, (512, 512, 192): 5_382_144}


def test_exact_sizes_and_first_centre() -> None:
    level = anchor_levels(EXACT, maps_of((64, 64, 32)), STRIDES)[0]
    boxes = all_boxes([level])[:3]
    assert [tuple(row) for row in (boxes[:, 3:] - boxes[:, :3]).tolist()] == list(BASE)
    assert ((boxes[:, :3] + boxes[:, 3:]) / 2).tolist() == [[2, 2, 1]] * 3


def test_offset_moves_every_anchor() -> None:
    moved = AnchorConfig(base_shapes_vox=BASE, level_scales=(1, 2, 4), offset_vox=0.5)
    shapes = maps_of((32, 32, 16))
    difference = all_boxes(anchor_levels(moved, shapes, STRIDES)) - all_boxes(anchor_levels(EXACT, shapes, STRIDES))
    assert torch.equal(difference, torch.full_like(difference, 0.5))


def test_rows_of_a_map_follow_the_anchors() -> None:
    """Channels are anchor-major, places in C order: the value at (anchor, class, x, y, z) must find its row."""
    shapes, num_anchors, num_classes = [(2, 3, 4), (1, 2, 2)], 3, 2
    maps = [torch.arange(2 * 6 * x * y * z).reshape(2, 6, x, y, z).float() for x, y, z in shapes]
    rows = per_anchor(maps, num_anchors)
    assert rows.shape == (2, (24 + 4) * num_anchors, num_classes)
    place = (1 * 3 + 2) * 4 + 3
    assert rows[1, place * num_anchors + 2, 1] == maps[0][1, 2 * num_classes + 1, 1, 2, 3]
    assert rows[0, 24 * num_anchors + 3 * num_anchors + 1, 0] == maps[1][0, 1 * num_classes, 0, 1, 1]


@settings(deadline=None, max_examples=50)
@given(st.tuples(*[st.floats(0, 1)] * 3), st.floats(5, 25))
def test_every_nodule_is_covered(place: tuple[float, float, float], diameter_mm: float) -> None:
    """Wherever a ball of 5 to 25 mm lies in the window, some anchor overlaps its box by a quarter or more."""
    window = torch.tensor([64.0, 64.0, 32.0])
    sides = diameter_mm / torch.tensor([0.703125, 0.703125, 1.25])
    centre = sides / 2 + torch.tensor(place) * (window - sides)
    box = torch.cat([centre - sides / 2, centre + sides / 2])
    anchors = all_boxes(anchor_levels(EXACT, maps_of((64, 64, 32)), STRIDES))
    assert paired_iou(anchors, box[None]).max() > 0.25
