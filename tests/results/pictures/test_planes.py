"""The way from voxels to pixels: sides, sizes, colours."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from voxray.core.case import Case
from voxray.core.detections import Detections
from voxray.core.volume import Grid, Volume
from voxray.results.pictures import WINDOWS, GreyWindow, draw_detections
from voxray.results.pictures.planes import canonical, chosen_window, moved_boxes, nearest_voxel

# Anisotropic, so that a wrong aspect shows: 120 x 80 x 60 mm.
SHAPE, SPACING = (60, 40, 20), (2.0, 2.0, 3.0)
RAS = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
GREEN, ORANGE = np.array([0x2E, 0xCC, 0x40]), np.array([0xFF, 0x85, 0x1B])
BLACK_BELOW = GreyWindow(0, 200)


def _scan(bright: tuple[slice, slice, slice] | None = None) -> Volume:
    voxels = np.full(SHAPE, -1000, np.int16)
    if bright is not None:
        voxels[bright] = 1000
    return Volume(voxels, Grid(SHAPE, SPACING, (59.0, 39.0, -30.0), RAS))


def _case(image: Volume, boxes: np.ndarray | None = None) -> Case:
    kept = np.zeros((0, 6)) if boxes is None else boxes
    return Case("case", "patient", image, kept, np.zeros(len(kept), np.int64))


def _pixels(png: bytes) -> np.ndarray:
    picture: np.ndarray = np.rint(imread(io.BytesIO(png))[..., :3] * 255).astype(int)
    return picture


def _panels(picture: np.ndarray, height: int) -> list[np.ndarray]:
    """Axial, coronal, sagittal and projection, cut out by their known sizes in mm; the tallest is 80 mm."""
    scale, left, found = height / 80, 0, []
    for width, tall in ((120, 80), (120, 60), (80, 60), (120, 60)):
        top = round((height - tall * scale) / 2)
        found.append(picture[top : top + round(tall * scale), left : left + round(width * scale)])
        left += round(width * scale) + 4
    return found


def _centre_of(mask: np.ndarray) -> tuple[float, float]:
    """Row and column of the middle, as shares of the picture's sides."""
    assert mask.any()
    row, column = np.argwhere(mask).mean(axis=0) / mask.shape
    return float(row), float(column)


def test_the_picture_has_the_size_that_the_scale_gives() -> None:
    picture = _pixels(draw_detections(_case(_scan()), height_px=320))
    assert picture.shape == (320 + 22, (480 + 480 + 320 + 480) + 3 * 4, 3)


def test_right_is_left_front_and_head_are_up() -> None:
    # A marker at the patient's right, front and head: high x, y and z in RAS. The planes go through it.
    marker = (slice(50, 56), slice(30, 36), slice(14, 18))
    box = np.array([[50, 30, 14, 56, 36, 18.0]])
    panels = _panels(_pixels(draw_detections(_case(_scan(marker), box), window=BLACK_BELOW, height_px=320)), 320)
    white = [np.all(panel > 250, axis=2) for panel in panels]
    axial, coronal, sagittal, projected = (_centre_of(mask) for mask in white)
    assert axial == pytest.approx((1 - 33 / 40, 1 - 53 / 60), abs=0.02)
    assert coronal == pytest.approx((1 - 16 / 20, 1 - 53 / 60), abs=0.02)
    assert sagittal == pytest.approx((1 - 16 / 20, 1 - 33 / 40), abs=0.02)
    assert projected == pytest.approx(coronal, abs=0.02)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (-1, -1, -1)])
def test_storage_order_does_not_show(order: tuple[int, int, int], flips: tuple[int, int, int]) -> None:
    marker = (slice(50, 56), slice(30, 36), slice(14, 18))
    straight = _scan(marker)
    box = np.array([[50, 30, 14, 56, 36, 18.0]])
    voxels = straight.voxels.transpose(order)[tuple(slice(None, None, flip) for flip in flips)]
    affine = np.eye(4)
    columns = straight.grid.affine[:3, :3][:, order] * flips
    ends = np.array([0 if flip > 0 else side - 1 for flip, side in zip(flips, voxels.shape, strict=True)])
    affine[:3, :3] = columns
    affine[:3, 3] = straight.grid.affine[:3, 3] - columns @ ends
    x, y, z = voxels.shape
    stored = Volume(np.ascontiguousarray(voxels), Grid.from_affine(affine, (x, y, z)))
    moved = moved_boxes(box, straight.grid, stored.grid)
    assert draw_detections(_case(stored, moved)) == draw_detections(_case(straight, box))


def test_borders_have_the_colours_of_truth_and_found() -> None:
    truth = np.array([[20, 10, 5, 40, 30, 15.0]])
    found = Detections(
        np.array([[24, 12, 6, 50, 34, 16], [2, 2, 2, 8, 8, 8]], np.float32),
        np.array([0.8, 0.05], np.float32),
        np.zeros(2, np.int64),
    )
    picture = _pixels(draw_detections(_case(_scan(), truth), found, height_px=320))
    axial = _panels(picture, 320)[0]
    green, orange = (np.abs(axial - colour).max(axis=2) < 40 for colour in (GREEN, ORANGE))
    for mask, box, whole in ((green, truth[0], True), (orange, found.boxes[0], False)):
        top, left = 320 * (1 - box[4] / 40), 480 * (1 - box[3] / 60)
        bottom, right = 320 * (1 - box[1] / 40), 480 * (1 - box[0] / 60)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert columns[[0, -1]] == pytest.approx([left, right], abs=2.5)
        assert rows[-1] == pytest.approx(bottom, abs=2.5)
        if whole:
            assert rows[0] == pytest.approx(top, abs=2.5)
        side = mask[:, max(0, round(left) - 2) : round(left) + 3].any(axis=1)[round(top) + 3 : round(bottom) - 3]
        # Solid where it is truth; dashed, so with gaps, where it was found.
        assert side.mean() > 0.9 if whole else 0.3 < side.mean() < 0.85


def test_low_scores_and_boxes_of_other_slices_are_not_drawn() -> None:
    far = np.array([[20, 10, 1, 40, 30, 3], [2, 2, 16, 12, 12, 19.0]])
    scores = np.array([0.05, 0.9], np.float32)
    found = Detections(far.astype(np.float32), scores, np.zeros(2, np.int64))
    axial = _panels(_pixels(draw_detections(_case(_scan()), found, height_px=320)), 320)[0]
    orange = np.abs(axial - ORANGE).max(axis=2) < 40
    row, column = _centre_of(orange)
    assert row == pytest.approx(1 - 7 / 40, abs=0.06)
    assert column == pytest.approx(1 - 7 / 60, abs=0.06)
    hidden = draw_detections(_case(_scan()), found, min_score=0.95, height_px=320)
    assert not (np.abs(_pixels(hidden) - ORANGE).max(axis=2) < 40).any()


def test_findings_in_world_millimetres_are_drawn_in_the_same_place() -> None:
    found = Detections(np.array([[24, 12, 6, 50, 34, 16]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    case = _case(_scan())
    expected = _pixels(draw_detections(case, found))
    for frame in ("LPS", "RAS"):
        picture = _pixels(draw_detections(case, found.to_world(case.image.grid).in_frame(frame)))
        assert np.mean(np.abs(picture - expected) > 8) < 1e-3


def test_the_window_is_lung_in_air_and_soft_elsewhere(rng: np.random.Generator) -> None:
    lung = Volume(rng.normal(-850, 30, SHAPE).astype(np.int16), _scan().grid)
    tissue = Volume(rng.normal(50, 20, SHAPE).astype(np.int16), _scan().grid)
    assert chosen_window(None, lung, (30, 20, 10)) == WINDOWS["lung"]
    assert chosen_window(None, tissue, (0, 0, 19)) == WINDOWS["soft"]
    assert chosen_window("bone", lung, (30, 20, 10)) == WINDOWS["bone"]


@given(st.lists(st.floats(-50, 150), min_size=3, max_size=3))
@settings(max_examples=50, deadline=None)
def test_the_nearest_voxel_is_in_the_grid(point: list[float]) -> None:
    found = nearest_voxel(point, SHAPE)
    for at, voxel, side in zip(point, found, SHAPE, strict=True):
        assert 0 <= voxel < side
        assert voxel <= at < voxel + 1 or at < 0 or at >= side


def test_a_ras_volume_is_taken_as_it_is() -> None:
    scan = _scan()
    assert canonical(scan) is scan


def test_the_same_picture_is_the_same_bytes() -> None:
    box = np.array([[20, 10, 5, 40, 30, 15.0]])
    assert draw_detections(_case(_scan(), box)) == draw_detections(_case(_scan(), box))
