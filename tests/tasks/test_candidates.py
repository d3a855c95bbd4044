"""Candidates of a scan: where they lie, how far they are trusted, and how many windows see them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from voxray.core.recipe import DetectionMerge
from voxray.core.volume import Grid, Shape
from voxray.tasks.candidates import Candidates, Placed, place, tile_weights
from voxray.windows import lattice

GRID = Grid((100, 90, 50), (1.0, 2.0, 0.5), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))


def found(*rows: tuple[float, ...]) -> Candidates:
    """Rows of six sides, a score and a class."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 8)
    return Candidates(table[:, :6], table[:, 6], table[:, 7].long())


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        ("none", [1, 1, 1, 1, 1, 1]),
        ("linear", [1, 0.5, 1, 1, 0.515625, 0.75]),
        ("gaussian", [1, 0.457833, 0.822578, 0.940859, 0.469059, 0.644389]),
    ],
)
def test_tile_weights_are_the_published_ones(kind: str, weights: list[float]) -> None:
    """What nnDetection's and MDT's own code gives for centres in a window of 128 voxels a side."""
    centres = torch.tensor([[64.0] * 3, [0.0] * 3, [32.0] * 3, [96.0, 64, 64], [127.0] * 3, [16.0] * 3])
    assert tile_weights(centres, (128, 128, 128), kind).tolist() == pytest.approx(weights, abs=1e-6)  # type: ignore[arg-type]


def test_candidates_are_placed_clipped_and_know_their_window() -> None:
    windows = [((0, 0, 0), found((1, 1, 1, 9, 9, 9, 0.5, 0))), ((80, 70, 30), found((5, 5, 5, 40, 40, 40, 0.9, 1)))]
    placed = place(windows, GRID, (32, 32, 32))
    assert placed.boxes.tolist() == [[1, 1, 1, 9, 9, 9], [85, 75, 35, 100, 90, 50]]
    assert placed.tiles.tolist() == [0, 1]
    assert placed.starts.tolist() == [[0, 0, 0], [80, 70, 30]]
    assert (placed.views.tolist(), placed.num_views) == ([0, 0], 1)


def test_what_the_merge_does_not_allow_is_dropped_where_it_is_placed() -> None:
    rows = [(0, 0, 0, 8, 8, 8, 0.05, 0), (0, 0, 0, 8, 8, 5, 0.5, 0), (0, 0, 0, 8, 8, 7, 0.5, 0)]
    how = DetectionMerge(score_floor=0.1, min_size_mm=3.0)
    placed = place([((0, 0, 0), found(*rows))], GRID, (32, 32, 32), how=how)
    assert placed.boxes[:, 5].tolist() == [7]  # of 0.5 mm a voxel: 3.5 mm


def test_a_scan_without_windows_or_findings_has_no_candidates() -> None:
    assert len(place([], GRID, (32, 32, 32))) == 0
    placed = place([((0, 0, 0), found())], GRID, (32, 32, 32))
    assert len(placed) == 0
    assert placed.starts.tolist() == [[0, 0, 0]]


def test_windows_over_a_box_are_counted_voxel_by_voxel(rng: np.random.Generator) -> None:
    shape: Shape = (100, 90, 50)
    places = lattice(shape, window=(32, 32, 32), overlap=0.4, stride=(4, 4, 4))
    over = np.zeros(shape)
    for start in places.places:
        over[tuple(slice(first, first + 32) for first in start)] += 1
    low = np.stack([rng.integers(0, side - 6, 40) for side in shape], axis=1)
    high = np.minimum(low + rng.integers(1, 20, low.shape), shape)
    boxes = torch.from_numpy(np.concatenate([low, high], axis=1)).float()
    nothing = torch.zeros(len(boxes), dtype=torch.int64)
    placed = Placed(
        boxes,
        scores=torch.ones(len(boxes)),
        classes=nothing,
        views=nothing,
        tiles=nothing,
        starts=torch.tensor(places.places),
        window=(32, 32, 32),
        num_views=1,
    )
    expected = [
        over[tuple(slice(*ends) for ends in zip(a, b, strict=True))].mean() for a, b in zip(low, high, strict=True)
    ]
    assert placed.num_windows().tolist() == pytest.approx(expected, rel=1e-6)
