"""The geometry of a stack of slices, without files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from voxray.core.volume import Grid
from voxray.readers.dicom_slices import DicomFrame, arrange

WHERE = Path("series")


def rotation(angles: tuple[float, float, float]) -> NDArray[np.float64]:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def stack(
    places: list[float],
    *,
    turn: NDArray[np.float64] | None = None,
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    lean: tuple[float, float] = (0.0, 0.0),
    **changes: Any,
) -> list[DicomFrame]:
    """Slices at places along their normal in mm; `lean` is their shift along x and y for each mm."""
    turn = np.eye(3) if turn is None else turn
    frames = []
    for number, place in enumerate(places):
        position = np.asarray(origin) + turn @ [lean[0] * place, lean[1] * place, place]
        frame = DicomFrame(
            path=Path(f"{number}.dcm"),
            index=0,
            columns=512,
            rows=256,
            position_mm=(float(position[0]), float(position[1]), float(position[2])),
            orientation=tuple(turn.T[:2].ravel().tolist()),
            pixel_spacing_mm=(0.8, 0.5),
            thickness_mm=5.0,
            slope=1.0,
            intercept=-1024.0,
        )
        frames.append(replace(frame, **changes))
    return frames


def even(count: int, step: float = 2.0) -> list[float]:
    return [step * number for number in range(count)]


@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    step=st.floats(0.3, 10),
    count=st.integers(2, 40),
    seed=st.integers(0, 100),
)
def test_any_rotation_and_any_order_of_files_give_the_grid(
    angles: tuple[float, float, float], origin: tuple[float, float, float], step: float, count: int, seed: int
) -> None:
    turn = rotation(angles)
    frames = stack(even(count, step), turn=turn, origin=origin)
    shuffled = [frames[int(index)] for index in np.random.default_rng(seed).permutation(count)]
    ordered, grid = arrange(shuffled, WHERE)
    assert ordered == frames
    wanted = Grid((512, 256, count), (0.5, 0.8, step), origin, tuple(turn.ravel().tolist()))
    assert grid.is_close(wanted, tolerance_mm=1e-6)


def test_columns_are_x_and_rows_are_y() -> None:
    _, grid = arrange(stack(even(3)), WHERE)
    assert grid.shape == (512, 256, 3)
    assert grid.spacing_mm == (0.5, 0.8, 2.0)
    assert grid.orientation == "LPS"


@given(count=st.integers(4, 60), data=st.data())
def test_a_missing_slice_is_found_wherever_it_is(count: int, data: st.DataObject) -> None:
    gone = data.draw(st.integers(1, count - 2))
    with pytest.raises(Exception, match=r"^\[dicom\.missing_slice\].*lacks 1 of"):
        arrange(stack([place for number, place in enumerate(even(count)) if number != gone]), WHERE)


def test_several_missing_slices_are_counted(refused: Any) -> None:
    places = [place for place in even(30) if place not in (8.0, 10.0, 40.0)]
    with pytest.raises(Exception, match=r"lacks 3 of 30 slices: the first gap is 6\.000 mm between 3\.dcm and 4"):
        arrange(stack(places), WHERE)
    with refused("dicom.missing_slice"):
        arrange(stack([0.0, 2.0, 6.0]), WHERE)


def test_doubled_slices_are_told_from_phases(refused: Any) -> None:
    with refused("dicom.doubled_position"):
        arrange(stack([0.0, 2.0, 2.0, 4.0]), WHERE)
    with refused("dicom.four_d"):
        arrange(stack(even(5) * 3), WHERE)
    with refused("dicom.four_d"):
        arrange(stack([1.0, 1.0]), WHERE)


def test_uneven_spacing_is_refused_and_rounding_is_not(refused: Any) -> None:
    jump = [*even(10, 1.0), *(9.0 + place for place in even(11, 2.0)[1:])]
    with refused("dicom.uneven_spacing"):
        arrange(stack(jump), WHERE)
    with refused("dicom.uneven_spacing"):
        arrange(stack([0.0, 2.0, 4.3, 6.0]), WHERE)
    with refused("dicom.uneven_spacing"):
        arrange(stack([0.3 * number**1.05 for number in range(100)]), WHERE)
    _, grid = arrange(stack([round(0.625 * number, 1) for number in range(201)]), WHERE)
    assert grid.spacing_mm[2] == pytest.approx(0.625, abs=1e-3)


@pytest.mark.parametrize("lean", [(0.0, 0.25), (-0.1, 0.0), (0.02, 0.02)])
def test_a_tilted_gantry_is_refused(refused: Any, lean: tuple[float, float]) -> None:
    with refused("dicom.gantry_tilt"):
        arrange(stack(even(20), lean=lean), WHERE)
    with refused("dicom.gantry_tilt"):
        arrange(stack(even(20), turn=rotation((0.3, 0.2, 0.1)), lean=lean), WHERE)


def test_the_tilt_is_named_in_degrees() -> None:
    with pytest.raises(Exception, match=r"15\.0 degrees"):
        arrange(stack(even(20), lean=(0.0, float(np.tan(np.radians(15))))), WHERE)


def test_rounded_cosines_are_no_tilt() -> None:
    turn = rotation((0.3, 0.2, 0.1))
    frames = stack(even(100), turn=turn)
    rounded = tuple(round(value, 4) for value in frames[0].orientation)
    _, grid = arrange([replace(frame, orientation=rounded) for frame in frames], WHERE)
    np.testing.assert_allclose(grid.rotation.T @ grid.rotation, np.eye(3), atol=1e-12)


def test_slices_that_differ_are_refused(refused: Any) -> None:
    for code, change in (
        ("dicom.inconsistent_size", {"rows": 255}),
        ("dicom.inconsistent_size", {"columns": 513}),
        ("dicom.inconsistent_spacing", {"pixel_spacing_mm": (0.8, 0.51)}),
        ("dicom.inconsistent_orientation", {"orientation": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)}),
    ):
        frames = stack(even(4))
        with refused(code):
            arrange([*frames[:3], replace(frames[3], **change)], WHERE)


@pytest.mark.parametrize(
    "orientation", [(1, 0, 0, 0.1, 1, 0), (2, 0, 0, 0, 1, 0), (0, 0, 0, 0, 1, 0), (1, 0, 0, 1, 0, 0)]
)
def test_what_is_no_orientation_is_refused(refused: Any, orientation: tuple[float, ...]) -> None:
    with refused("dicom.bad_orientation"):
        arrange(stack(even(3), orientation=orientation), WHERE)


def test_a_single_slice_is_as_thick_as_it_says(refused: Any) -> None:
    _, grid = arrange(stack([0.0]), WHERE)
    assert grid.spacing_mm == (0.5, 0.8, 5.0)
    for thickness in (None, 0.0):
        with refused("dicom.no_thickness"):
            arrange(stack([0.0], thickness_mm=thickness), WHERE)


def test_a_spacing_that_is_no_length_is_refused(refused: Any) -> None:
    for spacing in ((0.0, 0.5), (0.5, -1.0)):
        with refused("grid.spacing"):
            arrange(stack(even(3), pixel_spacing_mm=spacing), WHERE)
