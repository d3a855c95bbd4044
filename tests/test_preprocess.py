"""Turning, resampling and normalising, against slow references and MONAI."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms.intensity.array import NormalizeIntensity, ScaleIntensity, ScaleIntensityRange
from scipy.ndimage import map_coordinates

from voxray.core.case import Case, VolumeStats
from voxray.core.detections import boxes_to_world
from voxray.core.errors import DataError
from voxray.core.recipe import GridConfig, WindowIntensity, ZScoreIntensity
from voxray.core.volume import Grid, Volume
from voxray.preprocess import normalise, orient, prepare_case, resample, resample_labels

SITK: Any = SimpleITK

ALL_TURNS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1.0, -1.0), repeat=3)
]


def grid_of(
    order: tuple[int, ...], signs: tuple[float, ...], shape: tuple[int, int, int], *, tilt: float = 0.0
) -> Grid:
    """A grid whose voxel axis i runs along LPS axis order[i] in direction signs[i], turned by `tilt` rad about z."""
    rotation = np.zeros((3, 3))
    for column, (row, sign) in enumerate(zip(order, signs, strict=True)):
        rotation[row, column] = sign
    turn = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    return Grid(shape, (0.8, 1.1, 2.5), (-30.0, 12.5, 400.0), tuple((turn @ rotation).ravel()))


@pytest.mark.parametrize(("order", "signs"), ALL_TURNS)
def test_every_orientation_turns_to_ras_and_each_voxel_keeps_its_place(
    order: tuple[int, ...], signs: tuple[float, ...], rng: np.random.Generator
) -> None:
    grid = grid_of(order, signs, (3, 4, 5), tilt=0.2)
    volume = Volume(rng.permutation(60).astype(np.int16).reshape(3, 4, 5), grid)
    turned = orient(volume, "RAS")
    assert turned.grid.orientation == "RAS"
    for value in (0, 17, 59):
        before = grid.to_world(np.argwhere(volume.voxels == value) + 0.5)
        after = turned.grid.to_world(np.argwhere(turned.voxels == value) + 0.5)
        np.testing.assert_allclose(after, before, atol=1e-9)
    back = orient(turned, grid.orientation)
    np.testing.assert_array_equal(back.voxels, volume.voxels)
    assert back.grid.is_close(grid)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 24)] * 3),
    spacing=st.tuples(*[st.floats(0.4, 4.0)] * 3),
    wanted=st.tuples(*[st.floats(0.4, 4.0)] * 3),
    seed=st.integers(0, 99),
)
def test_resampling_is_trilinear_between_clamped_voxel_centres(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    wanted: tuple[float, float, float],
    seed: int,
) -> None:
    voxels = np.random.default_rng(seed).integers(-1024, 2000, shape).astype(np.int16)
    volume = Volume(voxels, Grid(shape, spacing, (5.0, -6.0, 7.0), tuple(np.eye(3).ravel())))
    made = resample(volume, wanted)
    axes = [
        (np.arange(n) + 0.5) * new / old - 0.5 for n, old, new in zip(made.grid.shape, spacing, wanted, strict=True)
    ]
    reference = map_coordinates(
        voxels.astype(np.float64), np.stack(np.meshgrid(*axes, indexing="ij")), order=1, mode="nearest"
    )
    assert np.abs(made.voxels - reference).max() <= 0.6
    covered = np.multiply(made.grid.shape, wanted)
    assert (covered > np.multiply(shape, spacing) - 2e-3 * np.asarray(wanted)).all()
    assert (covered < np.multiply(shape, spacing) + np.asarray(wanted)).all()
    np.testing.assert_allclose(
        made.grid.to_world(np.zeros((1, 3))), volume.grid.to_world(np.zeros((1, 3))), atol=1e-9
    )


def test_resampling_agrees_with_simpleitk(rng: np.random.Generator) -> None:
    voxels = rng.integers(-1000, 1000, (20, 22, 9)).astype(np.int16)
    volume = Volume(voxels, grid_of((1, 0, 2), (-1.0, 1.0, 1.0), (20, 22, 9), tilt=0.3))
    made = resample(volume, (0.9, 0.7, 1.0))
    image: Any = SITK.GetImageFromArray(voxels.T.astype(np.float64))
    image.SetSpacing(volume.grid.spacing_mm)
    image.SetOrigin(volume.grid.origin_mm)
    image.SetDirection(volume.grid.direction)
    tool: Any = SITK.ResampleImageFilter()
    tool.SetInterpolator(SITK.sitkLinear)
    tool.SetUseNearestNeighborExtrapolator(True)
    tool.SetSize(made.grid.shape)
    tool.SetOutputSpacing(made.grid.spacing_mm)
    tool.SetOutputOrigin(made.grid.origin_mm)
    tool.SetOutputDirection(made.grid.direction)
    reference = SITK.GetArrayFromImage(tool.Execute(image)).T
    assert np.abs(made.voxels - reference)[:-1, :-1, :-1].max() <= 0.6


def test_the_same_spacing_changes_nothing(rng: np.random.Generator) -> None:
    volume = Volume(rng.integers(-9, 9, (4, 5, 6)).astype(np.int16), grid_of((0, 1, 2), (-1.0, -1.0, 1.0), (4, 5, 6)))
    made = resample(volume, volume.grid.spacing_mm)
    np.testing.assert_array_equal(made.voxels, volume.voxels)
    assert made.grid == volume.grid


@settings(max_examples=40, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 15)] * 3), wanted=st.tuples(*[st.floats(0.3, 4.0)] * 3))
def test_labels_take_the_voxel_that_holds_their_centre(
    shape: tuple[int, int, int], wanted: tuple[float, float, float]
) -> None:
    labels = np.random.default_rng(0).integers(0, 200, shape).astype(np.uint8)
    grid = Grid(shape, (1.0, 1.5, 2.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel()))
    made = resample_labels(Volume(labels, grid), wanted)
    for index in np.random.default_rng(1).integers(0, made.grid.shape, (5, 3)):
        place = grid.to_voxel(made.grid.to_world(index[None] + 0.5))[0]
        source = np.clip(np.floor(place + 1e-6), 0, np.array(shape) - 1).astype(int)
        assert made.voxels[tuple(index)] == labels[tuple(source)]


@pytest.mark.parametrize(("order", "signs"), ALL_TURNS[::5])
def test_boxes_stay_where_they_are_in_the_world(order: tuple[int, ...], signs: tuple[float, ...]) -> None:
    grid = grid_of(order, signs, (30, 40, 20))
    case = Case(
        case_id="a",
        patient_id="a",
        image=Volume(np.zeros((30, 40, 20), np.int16), grid),
        boxes=np.array([[3.25, 5.0, 2.0, 9.0, 21.5, 7.0]]),
        classes=np.array([0]),
    )
    made = prepare_case(case, GridConfig(spacing_mm=(0.7, 0.9, 1.3)))
    np.testing.assert_allclose(
        boxes_to_world(made.boxes, made.image.grid), boxes_to_world(case.boxes, grid), atol=1e-9
    )
    assert made.image.grid.orientation == "RAS"


def block_case(low: tuple[int, int, int], high: tuple[int, int, int], *, labelled: bool = True) -> Case:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 1
    return Case(
        case_id="block",
        patient_id="p",
        image=Volume(
            np.zeros((20, 20, 20), np.int16),
            Grid((20, 20, 20), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), tuple(np.eye(3).ravel())),
        ),
        boxes=np.array([[*low, *high]], np.float64),
        classes=np.array([0]),
        labels=labels if labelled else None,
    )


def test_labels_and_boxes_turn_and_scale_together() -> None:
    made = prepare_case(block_case((2, 4, 6), (8, 14, 12)), GridConfig(spacing_mm=(0.5, 2.0, 1.5)))
    assert made.labels is not None
    filled = np.argwhere(made.labels == 1)
    np.testing.assert_allclose(filled.min(axis=0), made.boxes[0, :3], atol=0.5)
    np.testing.assert_allclose(filled.max(axis=0) + 1, made.boxes[0, 3:], atol=0.5)


@pytest.mark.parametrize("labelled", [True, False])
def test_an_object_that_vanishes_is_refused(labelled: bool) -> None:
    case = block_case((5, 5, 5), (6, 6, 6), labelled=labelled)
    with pytest.raises(
        DataError, match=r"case block: \[resample.object_lost\] at 4 x 4 x 4 mm .* finer grid"
    ) as error:
        prepare_case(case, GridConfig(spacing_mm=(4.0, 4.0, 4.0)))
    assert error.value.code == "resample.object_lost"


def test_a_label_that_vanishes_is_refused() -> None:
    case = block_case((5, 5, 5), (12, 12, 12))
    assert case.labels is not None
    case.labels[0, 0, 0] = 7
    with pytest.raises(DataError, match="no voxel is left of label 7"):
        prepare_case(case, GridConfig(spacing_mm=(3.0, 3.0, 3.0)))


def test_one_of_two_objects_that_vanishes_is_refused() -> None:
    case = block_case((5, 5, 5), (12, 12, 12))
    assert case.labels is not None
    case.labels[2, 2, 17] = 1
    both = Case(
        case.case_id,
        case.patient_id,
        case.image,
        np.array([[2, 2, 17, 3, 3, 18], [5, 5, 5, 12, 12, 12]], float),
        np.array([0, 0]),
        case.labels,
    )
    with pytest.raises(DataError, match="no labelled voxel is left of object 0"):
        prepare_case(both, GridConfig(spacing_mm=(1.9, 1.9, 1.9)))


def with_speck(place: tuple[int, int, int], value: int) -> Case:
    """A block of label 1 and its box; beside it a voxel of a label, of which its object is one voxel large."""
    case = block_case((5, 5, 5), (12, 12, 12))
    assert case.labels is not None
    case.labels[place] = value
    low = np.array(place, float)
    boxes, classes = np.concatenate([case.boxes, [[*low, *(low + 1)]]]), np.array([0, value - 1])
    return replace(case, boxes=boxes, classes=classes, warnings=("read with care.",))


@pytest.mark.parametrize("value", [1, 2])
def test_a_speck_loses_a_case_only_where_objects_matter(value: int) -> None:
    grid = GridConfig(spacing_mm=(2.5, 2.5, 2.5))
    case = with_speck((2, 2, 16), value)
    made = prepare_case(case, grid, task="segmentation", classes=("liver", "lesion"))
    assert made.labels is not None
    assert set(np.unique(made.labels)) == {0, 1}
    what = "1 separate part of liver" if value == 1 else "all of lesion"
    assert made.warnings == (
        "read with care.",
        f"{what} (1 voxel, 1 mm3) has no voxel left at 2.5 x 2.5 x 2.5 mm, and is background there.",
    )
    with pytest.raises(DataError, match=r"no labelled voxel is left of object 1|object 1 .* voxels large"):
        prepare_case(case, grid, task="detection")


def test_a_class_of_which_there_was_more_than_a_speck_is_refused() -> None:
    case = block_case((5, 5, 5), (6, 15, 15))
    with pytest.raises(DataError, match=r"no voxel is left of label 1 \(100 mm3\)"):
        prepare_case(case, GridConfig(spacing_mm=(2.0, 1.0, 1.0)), task="segmentation")


def test_a_label_without_an_object_loses_no_case_of_a_detection() -> None:
    case = block_case((5, 5, 5), (12, 12, 12))
    assert case.labels is not None
    case.labels[0, 0, 0] = 7
    assert len(prepare_case(case, GridConfig(spacing_mm=(3.0, 3.0, 3.0)), task="detection").boxes) == 1


def test_window_intensity_is_monais(rng: np.random.Generator) -> None:
    voxels = torch.from_numpy(rng.integers(-2000, 2000, (2, 8, 8, 8)).astype(np.int16))
    ours = normalise(voxels, torch.zeros(2, 4), WindowIntensity(low_hu=-57, high_hu=164))
    theirs = ScaleIntensityRange(-57, 164, 0, 1, clip=True)(voxels.float())
    torch.testing.assert_close(ours, torch.as_tensor(theirs), atol=1e-6, rtol=0)


@pytest.mark.data
def test_zscore_intensity_is_monais_on_a_real_scan(shared_data: Path) -> None:
    image = SITK.ReadImage(str(shared_data / "abdomen" / "TS_example_ct.nii.gz"))
    voxels = np.rint(SITK.GetArrayFromImage(image).T).astype(np.int16)
    assert (voxels == 0).any(), "the published dip at 0 HU is part of the comparison"
    stats = VolumeStats.of(voxels)
    theirs = ScaleIntensity(-1, 1)(
        NormalizeIntensity(nonzero=True)(torch.from_numpy(voxels[None].astype(np.float32)))
    )
    patches = torch.from_numpy(np.stack([voxels[:40, :40, :40], voxels[-40:, -40:, -40:]]))
    numbers = torch.tensor([[stats.mean_hu, stats.std_hu, stats.min_hu, stats.max_hu]] * 2)
    ours = normalise(patches, numbers, ZScoreIntensity())
    reference = torch.as_tensor(theirs)[0]
    torch.testing.assert_close(ours[0], reference[:40, :40, :40], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours[1], reference[-40:, -40:, -40:], atol=1e-5, rtol=0)
    whole = normalise(torch.from_numpy(voxels), stats, ZScoreIntensity())
    torch.testing.assert_close(whole, reference, atol=1e-5, rtol=0)


def test_zscore_padding_below_the_minimum_becomes_the_minimum() -> None:
    voxels = torch.tensor([-1024, -500, 0, 300], dtype=torch.int16).reshape(1, 1, 1, 4)
    made = normalise(voxels, torch.tensor([[-100.0, 200.0, -500.0, 300.0]]), ZScoreIntensity())
    assert made.flatten().tolist() == pytest.approx([-1.0, -1.0, 0.0 + (2 * (0 - -2) / 4 - 1), 1.0])
