"""Boxes in millimetres put on image grids, oblique ones too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from voxray.annotations.placing import place_boxes
from voxray.core.detections import Frame
from voxray.core.volume import Grid
from voxray.dataset.source import BoxTruth

CLASSES = ("nodule",)


def truth(*boxes: tuple[float, ...], frame: Frame = "LPS") -> BoxTruth:
    return BoxTruth(np.array(boxes, dtype=np.float64).reshape(-1, 6), np.zeros(len(boxes), np.int64), frame)


def grid(spacing: tuple[float, float, float] = (1.0, 1.0, 1.0), rotation: Rotation | None = None) -> Grid:
    matrix = np.eye(3) if rotation is None else rotation.as_matrix()
    return Grid((40, 50, 60), spacing, (100.0, -50.0, 20.0), tuple(matrix.ravel().tolist()))


ANGLES = st.tuples(*[st.floats(-180, 180)] * 3)
SPACINGS = st.tuples(*[st.floats(0.4, 3.0)] * 3)


@given(angles=ANGLES, spacing=SPACINGS, radius_mm=st.floats(0.5, 5.0), flip=st.booleans())
def test_a_sphere_keeps_its_centre_and_radius_on_any_grid(
    angles: tuple[float, float, float], spacing: tuple[float, float, float], radius_mm: float, flip: bool
) -> None:
    where = grid(spacing, Rotation.from_euler("xyz", angles, degrees=True))
    if flip:
        columns = where.rotation * [-1.0, 1.0, 1.0]
        where = Grid(where.shape, spacing, where.origin_mm, tuple(columns.ravel().tolist()))
    centre_vox = np.array([[18.25, 27.5, 33.0]])
    centre = where.to_world(centre_vox)[0]
    sphere = truth((*(centre - radius_mm).tolist(), *(centre + radius_mm).tolist()))
    boxes, problems = place_boxes(sphere, where, CLASSES, overhang_vox=0.0)
    assert not problems
    half = radius_mm / np.array(spacing)
    np.testing.assert_allclose(boxes, [[*(centre_vox[0] - half), *(centre_vox[0] + half)]], atol=1e-6)


def test_the_first_voxel_reaches_from_0_to_1() -> None:
    boxes, _ = place_boxes(truth((99.5, -50.5, 19.5, 100.5, -49.5, 20.5)), grid(), CLASSES, overhang_vox=0.0)
    np.testing.assert_allclose(boxes, [[0, 0, 0, 1, 1, 1]])


def test_boxes_in_voxels_are_taken_as_they_are() -> None:
    boxes, problems = place_boxes(
        truth((1, 2, 3, 4, 5, 6), frame="voxel"), grid((3, 3, 3)), CLASSES, overhang_vox=1.0
    )
    assert not problems
    np.testing.assert_array_equal(boxes, [[1, 2, 3, 4, 5, 6]])


def test_no_box_is_a_valid_case() -> None:
    boxes, problems = place_boxes(BoxTruth.empty("LPS"), grid(), CLASSES, overhang_vox=1.0)
    assert boxes.shape == (0, 6)
    assert not problems


def test_a_little_beyond_is_cut_off_and_more_is_told() -> None:
    near, far = (-0.9, 2, 3, 4, 5, 60.8), (1, 2, 3, 4, 52, 6)
    boxes, problems = place_boxes(truth(near, far, frame="voxel"), grid(), CLASSES, overhang_vox=1.0)
    np.testing.assert_array_equal(boxes[0], [0, 2, 3, 4, 5, 60])
    (problem,) = problems
    assert problem.code == "boxes.outside"
    assert problem.message == (
        "box 1 (nodule) reaches beyond its image: voxels 1.0, 2.0, 3.0 to 4.0, 52.0, 6.0 of 40 x 50 x 60."
    )
    _, none = place_boxes(truth(near, far, frame="voxel"), grid(), CLASSES, overhang_vox=2.0)
    assert not none


@pytest.mark.parametrize("box", [(40, 2, 3, 40.5, 5, 6), (-3, 2, 3, 0, 5, 6), (900, 900, 900, 910, 910, 910)])
def test_a_box_wholly_outside_is_always_told(box: tuple[float, ...]) -> None:
    _, (problem,) = place_boxes(truth(box, frame="voxel"), grid(), CLASSES, overhang_vox=9999.0)
    assert "lies outside its image" in problem.message


def test_a_wrong_frame_is_guessed_aloud_but_never_applied() -> None:
    boxes, (problem,) = place_boxes(truth((-125, 20, 30, -120, 30, 40)), grid(), CLASSES, overhang_vox=1.0)
    assert "other of LPS and RAS" in problem.remedy
    assert (boxes[0, 3:] <= boxes[0, :3]).any()
    _, (elsewhere,) = place_boxes(truth((500, 20, 30, 510, 30, 40)), grid(), CLASSES, overhang_vox=1.0)
    assert "LPS" not in elsewhere.remedy
