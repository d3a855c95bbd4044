"""Label maps over a scan."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.image import imread

from voxray.core.volume import Grid, Volume
from voxray.results.pictures import draw_labels
from voxray.results.pictures.labels import borders, class_colours

SHAPE = (40, 30, 20)
RAS = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
IMAGE = Volume(np.full(SHAPE, -1000, np.int16), Grid(SHAPE, (2.0, 2.0, 2.0), (0.0, 0.0, 0.0), RAS))


def _axial(png: bytes, height: int) -> np.ndarray:
    """The axial panel (80 x 60 mm, the tallest) in colours from 0 to 1."""
    picture: np.ndarray = imread(io.BytesIO(png))[:height, : round(height * 80 / 60), :3]
    return picture


def test_borders_run_along_the_edges_between_labels() -> None:
    labels = np.zeros((5, 4), np.uint8)
    labels[1:3, 1:2] = 1
    labels[3, 1] = 2
    segments, values = borders(labels)
    edges = {(k, *map(tuple, np.sort(s, axis=0))) for s, k in zip(segments.astype(int), values, strict=True)}
    one = {((1, 1), (2, 1)), ((2, 1), (3, 1)), ((1, 2), (2, 2)), ((2, 2), (3, 2)), ((1, 1), (1, 2)), ((3, 1), (3, 2))}
    two = {((3, 1), (4, 1)), ((3, 2), (4, 2)), ((3, 1), (3, 2)), ((4, 1), (4, 2))}
    assert {edge[1:] for edge in edges if edge[0] == 1} == one
    assert {edge[1:] for edge in edges if edge[0] == 2} == two


def test_a_label_at_the_rim_is_bounded_there() -> None:
    segments, values = borders(np.ones((3, 2), np.uint8))
    assert len(segments) == 2 * (3 + 2)
    assert np.all(values == 1)
    assert segments.min() == 0
    assert segments.max(axis=(0, 1)).tolist() == [3, 2]


def test_found_is_filled_and_truth_is_outlined_on_the_patients_side() -> None:
    found, truth = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    truth[4:14, 10:20, 5:15] = 1  # low x in RAS is the patient's left, the right of the picture
    found[4:14, 10:20, 5:15] = 1
    found[25:35, 10:20, 5:15] = 2
    height = 300
    axial = _axial(draw_labels(IMAGE, found, truth, classes=("a", "b"), window="soft", height_px=height), height)
    colours = [np.array(colour) for colour in class_colours(2)]

    def at(x: float, y: float) -> np.ndarray:
        colour: np.ndarray = axial[round(height * (1 - y / 30)), round(400 * (1 - x / 40))]
        return colour

    # The scan is black there: a fill of opacity 0.42 leaves 0.42 of the colour.
    assert at(9, 15) == pytest.approx(0.42 * colours[0], abs=0.02)
    assert at(30, 15) == pytest.approx(0.42 * colours[1], abs=0.02)
    assert at(20, 5) == pytest.approx(0, abs=0.01)
    edge = axial[:, round(400 * (1 - 4 / 40)) - 2 : round(400 * (1 - 4 / 40)) + 3].reshape(-1, 3)
    assert np.abs(edge - colours[0]).max(axis=1).min() < 0.12
    no_edge = axial[:, round(400 * (1 - 35 / 40)) - 2 : round(400 * (1 - 35 / 40)) + 3].reshape(-1, 3)
    assert np.abs(no_edge - colours[1]).max(axis=1).min() > 0.2


def test_storage_order_does_not_show() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:14, 10:20, 5:15] = 1
    grid = IMAGE.grid
    flipped = Grid(SHAPE, grid.spacing_mm, (-78.0, -58.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    stored = Volume(IMAGE.voxels[::-1, ::-1].copy(), flipped)
    straight = draw_labels(IMAGE, None, labels, classes=("a",))
    assert draw_labels(stored, None, labels[::-1, ::-1].copy(), classes=("a",)) == straight


def test_a_hundred_classes_and_an_empty_map_can_be_drawn(rng: np.random.Generator) -> None:
    names = [f"class {k}" for k in range(104)]
    many = rng.integers(0, 105, SHAPE).astype(np.uint8)
    picture = imread(io.BytesIO(draw_labels(IMAGE, many, many, classes=names, height_px=200)))
    # Axial, coronal and sagittal on the scale of the axial's 60 mm, and the legend.
    assert picture.shape[:2] == (200, 267 + 267 + 200 + 190 + 3 * 4)
    assert draw_labels(IMAGE, np.zeros(SHAPE, np.uint8), None, classes=names).startswith(b"\x89PNG")


def test_neighbouring_classes_differ_in_colour() -> None:
    colours = np.array(class_colours(30))
    assert np.abs(colours[1:] - colours[:-1]).max(axis=1).min() > 0.25
