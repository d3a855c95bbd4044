"""Geometry end to end: a bright sphere in scans of any orientation, and a network that answers "bright"."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.bright_scans import SPACING_MM, BrightConfig, ball_sides_mm, bright_recipe, bright_run, sphere_scan
from voxray.core.case import Case
from voxray.core.recipe import DetectionMerge, SegmentationMerge
from voxray.core.volume import Volume
from voxray.inference.predictor import Predictor
from voxray.inference.sliding import Autocast
from voxray.readers import read_volume

TURNS = [
    np.eye(3)[list(order)] * np.array(signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]
ANGLES = [(0.0, 0.0, 0.0), (17.0, -9.0, 24.0)]
RADIUS_MM = 9.0
BLUR_MM = 0.4
"""Linear interpolation between slices 2.1 mm apart makes the ball seem 0.3 mm longer across them."""


def predictor(task: str, **inference: Any) -> Predictor:
    recipe = bright_recipe(task, **inference)
    return Predictor(bright_run(recipe), recipe, BrightConfig().build(recipe, 1))


@pytest.mark.parametrize("turn", TURNS[::5])
@pytest.mark.parametrize("angles", ANGLES)
def test_a_sphere_is_found_where_it_is(turn: Any, angles: tuple[float, float, float]) -> None:
    scan, centre = sphere_scan(turn, angles_deg=angles, radius_mm=RADIUS_MM)
    prediction = predictor("detection").predict(scan)
    assert prediction.detections is not None
    assert prediction.labels is None
    assert len(prediction.detections) == 1
    world = prediction.world
    assert world.frame == "LPS"
    low, high = world.boxes[0, :3], world.boxes[0, 3:]
    np.testing.assert_allclose((low + high) / 2, centre, atol=0.1)
    np.testing.assert_allclose(high - low, ball_sides_mm(RADIUS_MM), atol=BLUR_MM)
    inside = prediction.detections.boxes[0]
    voxel = scan.grid.to_voxel(np.array([centre]))[0]
    np.testing.assert_allclose((inside[:3] + inside[3:]) / 2, voxel, atol=0.1)
    sides = (inside[3:] - inside[:3]) * np.array(scan.grid.spacing_mm)
    np.testing.assert_allclose(sides, ball_sides_mm(RADIUS_MM), atol=BLUR_MM)


@pytest.mark.parametrize("restore", ["labels", "shares"])
def test_label_maps_are_tidied_on_the_scans_own_grid(restore: str) -> None:
    """A ball is judged by the volume that it has as it is shown, not on the recipe's grid."""
    scan, _ = sphere_scan(np.eye(3), angles_deg=(0, 0, 0), radius_mm=RADIUS_MM)
    recipe = bright_recipe("segmentation", restore=restore)
    model = BrightConfig().build(recipe, 1)

    def voxels(**how: Any) -> int:
        chosen = SegmentationMerge(**how)
        labels = Predictor(bright_run(recipe), recipe, model, how=chosen).predict(scan).labels
        assert labels is not None
        return int(np.count_nonzero(labels.voxels))

    plain, voxel_mm3 = voxels(), float(np.prod(scan.grid.spacing_mm))
    assert voxels(min_component_mm3=(plain - 0.5) * voxel_mm3) == plain
    assert voxels(min_component_mm3=(plain + 0.5) * voxel_mm3) == 0
    assert voxels(threshold=0.01) > plain > voxels(thresholds={"bright": 0.99}) > 0


@pytest.mark.parametrize("turn", TURNS[1::7])
@pytest.mark.parametrize("angles", ANGLES)
def test_labels_come_back_on_the_scans_own_grid(turn: Any, angles: tuple[float, float, float]) -> None:
    scan, _ = sphere_scan(turn, angles_deg=angles, radius_mm=RADIUS_MM)
    prediction = predictor("segmentation").predict(scan)
    assert prediction.detections is None
    assert prediction.labels is not None
    assert prediction.labels.grid == scan.grid
    assert prediction.labels.voxels.dtype == np.uint8
    truth = scan.voxels > 0
    found = prediction.labels.voxels == 1
    # Half a resampled voxel (0.5 mm) of a shell of a sphere of 9 mm is about a twelfth of its volume.
    assert 2 * (truth & found).sum() / (truth.sum() + found.sum()) > 0.95


def test_where_grids_agree_labels_are_exact() -> None:
    scan, _ = sphere_scan(TURNS[0], angles_deg=(0, 0, 0), spacing_mm=SPACING_MM, radius_mm=8.0)
    prediction = predictor("segmentation").predict(scan)
    assert prediction.labels is not None
    np.testing.assert_array_equal(prediction.labels.voxels == 1, scan.voxels > 0)


def test_a_scan_smaller_than_a_window_is_answered() -> None:
    scan, _ = sphere_scan(TURNS[7], angles_deg=ANGLES[1])
    small = predictor("segmentation", window_vox=(96, 128, 64)).predict(scan)
    windows = predictor("segmentation").predict(scan)
    assert small.labels is not None
    assert windows.labels is not None
    np.testing.assert_array_equal(small.labels.voxels, windows.labels.voxels)


@pytest.mark.parametrize("padding", ["constant", "replicate"])
def test_an_empty_scan_has_no_answer(padding: str) -> None:
    scan, _ = sphere_scan(TURNS[0], angles_deg=(0, 0, 0))
    empty = Volume(np.full_like(scan.voxels, -1000), scan.grid)
    found = predictor("detection", padding=padding).predict(empty).detections
    assert found is not None
    assert len(found) == 0
    labels = predictor("segmentation", padding=padding).predict(empty).labels
    assert labels is not None
    assert not labels.voxels.any()


def test_merging_can_be_set_for_an_answer() -> None:
    scan, _ = sphere_scan(TURNS[0], angles_deg=(0, 0, 0))
    recipe = bright_recipe("detection")
    strict = DetectionMerge(min_size_mm=25.0)
    found = Predictor(bright_run(recipe), recipe, BrightConfig().build(recipe, 1), how=strict).predict(scan)
    assert found.detections is not None
    assert len(found.detections) == 0
    recipe = bright_recipe("segmentation")
    strict_labels = SegmentationMerge(min_component_mm3=5000.0)
    run = Predictor(bright_run(recipe), recipe, BrightConfig().build(recipe, 1), how=strict_labels)
    labels = run.predict(scan).labels
    assert labels is not None
    assert not labels.voxels.any()


def test_a_case_on_the_recipes_grid_goes_straight_in() -> None:
    scan, centre = sphere_scan(TURNS[0], angles_deg=(0, 0, 0), spacing_mm=SPACING_MM, radius_mm=6.0)
    nothing = np.zeros((0, 6)), np.zeros(0, np.int64)
    case = Case("a", "a", scan, *nothing)
    found = predictor("detection").predict_grid(case)
    assert not isinstance(found, Volume)
    middle = (found.boxes[0, :3] + found.boxes[0, 3:]) / 2
    np.testing.assert_allclose(middle, scan.grid.to_voxel(np.array([centre]))[0], atol=0.05)


def test_training_mode_is_left_as_it_was() -> None:
    scan, _ = sphere_scan(TURNS[0], angles_deg=(0, 0, 0))
    recipe = bright_recipe("segmentation")
    model = torch.nn.Sequential(torch.nn.Dropout(1.0), BrightConfig().build(recipe, 1)).train()
    prediction = Predictor(bright_run(recipe), recipe, model).predict(scan)
    assert model.training
    assert prediction.labels is not None
    assert prediction.labels.voxels.any(), "dropout of everything must have been off"
    model.eval()
    Predictor(bright_run(recipe), recipe, model).predict_grid(replace(scan))
    assert not model.training


@pytest.mark.data
def test_one_image_in_seven_orientations_has_one_answer(shared_data: Path) -> None:
    files = sorted((shared_data / "malformed" / "derived").glob("40_orient_*_ct.nii.gz"))
    assert len(files) >= 7
    centres = []
    for file in files:
        scan = read_volume(file)
        labels = predictor("segmentation").predict(scan).labels
        assert labels is not None
        assert labels.grid == scan.grid
        found, bright = labels.voxels == 1, scan.voxels > 0
        assert bright.any()
        assert (found == bright).mean() > 0.95, file.name
        centres.append(scan.grid.to_world(np.argwhere(found) + 0.5).mean(axis=0))
    np.testing.assert_allclose(centres, np.broadcast_to(centres[0], (len(centres), 3)), atol=0.2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_gpu_answers_as_the_cpu_does(amp: Autocast) -> None:
    scan, centre = sphere_scan(TURNS[9], angles_deg=ANGLES[1])
    recipe = bright_recipe("segmentation")
    model = BrightConfig().build(recipe, 1)
    labels = [
        Predictor(bright_run(recipe), recipe, model, device, amp=amp).predict(scan).labels
        for device in ("cpu", "cuda")
    ]
    assert labels[0] is not None
    assert labels[1] is not None
    assert (labels[0].voxels == labels[1].voxels).mean() > 0.999
    recipe = bright_recipe("detection")
    found = (
        Predictor(bright_run(recipe), recipe, BrightConfig().build(recipe, 1), "cuda", amp=amp).predict(scan).world
    )
    np.testing.assert_allclose((found.boxes[0, :3] + found.boxes[0, 3:]) / 2, centre, atol=0.1)
