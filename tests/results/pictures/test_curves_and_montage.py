"""Curves and close-ups."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from matplotlib.image import imread

from voxray.core.case import Case
from voxray.core.detections import Detections
from voxray.core.volume import Grid, Volume
from voxray.results.pictures import cut_closeup, draw_curves, draw_montage

SHAPE = (60, 50, 40)
LPS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def _case(rng: np.random.Generator) -> Case:
    voxels = rng.integers(-1000, 1000, SHAPE).astype(np.int16)
    boxes = np.array([[10, 12, 14, 20, 20, 20], [50, 40, 30, 58, 48, 38.0]])
    return Case("c", "p", Volume(voxels, Grid(SHAPE, (2.0, 2.0, 3.0), (0.0, 0.0, 0.0), LPS)), boxes, np.zeros(2, int))


def _shape(png: bytes) -> tuple[int, ...]:
    shape: tuple[int, ...] = imread(io.BytesIO(png)).shape
    return shape


def test_a_closeup_is_the_cube_around_the_place(rng: np.random.Generator) -> None:
    case = _case(rng)
    found = Detections(case.boxes[:1].astype(np.float32) + 1, np.ones(1, np.float32), np.zeros(1, np.int64))
    closeup = cut_closeup(case, found, (15, 16, 17), title="hit", side_mm=36)
    assert closeup.image.voxels.shape == (18, 18, 12)
    assert closeup.image.grid.orientation == "RAS"
    # The cube's own grid leads back to the same voxels of the scan, and to the same boxes.
    index = rng.integers(0, closeup.image.voxels.shape, size=(30, 3))
    there = np.floor(case.image.grid.to_voxel(closeup.image.grid.to_world(index + 0.5))).astype(int)
    np.testing.assert_array_equal(closeup.image.voxels[tuple(index.T)], case.image.voxels[tuple(there.T)])
    assert len(closeup.truth) == len(closeup.found) == 1
    for boxes, expected in ((closeup.truth, case.boxes[:1]), (closeup.found.boxes, found.boxes)):
        corners = np.sort(
            [
                case.image.grid.to_voxel(closeup.image.grid.to_world(boxes[:, part]))
                for part in (slice(0, 3), slice(3, 6))
            ],
            axis=0,
        )
        np.testing.assert_allclose(np.concatenate(corners, axis=1), expected, atol=1e-4)


def test_a_closeup_at_the_rim_is_filled_with_air(rng: np.random.Generator) -> None:
    closeup = cut_closeup(_case(rng), None, (0, 0, 0), title="rim", side_mm=40)
    assert closeup.image.voxels.shape == (20, 20, 13)
    share = np.mean(closeup.image.voxels == -1024)
    assert share == pytest.approx(1 - 0.5 * 0.5 * 6 / 13, abs=0.04)
    away = cut_closeup(_case(rng), None, (-500, 0, 0), title="away", side_mm=40)
    assert np.all(away.image.voxels == -1024)


def test_the_montage_has_a_cell_for_each_closeup(rng: np.random.Generator) -> None:
    case = _case(rng)
    closeups = [cut_closeup(case, None, (15, 16, 17), title=f"{k}") for k in range(5)]
    assert _shape(draw_montage(closeups, columns=2, side_px=100))[:2] == (3 * 116 + 2 * 4, 2 * 308 + 12)
    assert _shape(draw_montage(closeups[:1], columns=4, side_px=100))[:2] == (116, 308)
    assert draw_montage([]).startswith(b"\x89PNG")


def test_curves_share_a_panel_by_their_first_word() -> None:
    line = [(step, 1.0 / (step + 1)) for step in range(100)]
    one = draw_curves({"loss/class": line, "loss/box": line})
    assert _shape(one)[:2] == (300, 420)
    four = draw_curves({"loss": line, "dice/liver": line, "dice/spleen": line, "rate": line, "AP": line}, title="run")
    assert _shape(four)[:2] == (600, 3 * 420)
    assert _shape(draw_curves({}))[:2] == (300, 420)


def test_curves_stand_values_that_are_not_finite() -> None:
    gaps = [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)]
    assert draw_curves({"metric": gaps, "empty": []}) != draw_curves({"metric": [(0, 1.0), (3, 2.0)], "empty": []})
