"""Recorded candidates: an answer made from the file is the network's own, for whatever merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from support.bright_scans import BrightConfig, bright_recipe, bright_run, sphere_scan
from voxray.core.answer_json import stamp
from voxray.core.errors import DataError
from voxray.core.outputs import DetectionOutput
from voxray.core.recipe import DetectionMerge, Merge, Recipe, SegmentationMerge
from voxray.core.run import Run
from voxray.core.storage import Place
from voxray.core.volume import Volume
from voxray.inference.candidates import file as module
from voxray.inference.candidates.file import (
    RecordedCase,
    RecordedTruth,
    file_name,
    read_head,
    read_recorded,
    with_truth,
    write_recorded,
)
from voxray.inference.candidates.folder import RecordSource, recorded_case
from voxray.inference.predictor import Prediction, Predictor
from voxray.tasks.recorder import Recorder

TURN = np.eye(3)[[1, 2, 0]]


class Crowd(nn.Module):
    """Boxes around every place that is bright, with scores by how bright it is."""

    def forward(self, images: Tensor) -> DetectionOutput:
        """Maps at a stride of 4 with one anchor of 8 voxels a side."""
        bright = nn.functional.avg_pool3d(images, 4)
        noise = torch.sin(40 * torch.cumsum(bright, dim=2))
        return DetectionOutput((6 * bright - 4 + noise,), (torch.cat([0.2 * noise] * 6, dim=1),))


def scan() -> Volume:
    return sphere_scan(TURN, angles_deg=(11.0, 4.0, 0.0))[0]


def kept_on_disk(
    predictor: Predictor, folder: Path, volume: Volume, labels: tuple[int, ...] = ()
) -> tuple[Prediction, RecordedCase]:
    """A prediction, and what was recorded of it as it is read from its file."""
    keep = Recorder(labels)
    prediction = predictor.predict(volume, recorder=keep)
    mark = stamp(predictor.run, predictor.recipe, sha256="0" * 64)
    classes = predictor.run.classes
    recorded = recorded_case(keep, RecordSource(predictor.recipe, mark, classes, "a/b", volume.grid))
    name = write_recorded(Place.of(folder), recorded)
    assert [path.name for path in folder.iterdir()] == [name] == [file_name("a/b")]
    return prediction, read_recorded(Place.of(folder), name)


def crowded(**inference: Any) -> tuple[Run, Recipe]:
    recipe = bright_recipe("detection", candidates_per_level=300, **inference)
    return bright_run(recipe), recipe


@pytest.mark.parametrize(
    "how",
    [
        DetectionMerge(),
        DetectionMerge(score_floor=0.3, min_size_mm=6.0, tile_iou=0.1),
        DetectionMerge(method="weighted_nms", ensemble_method="wbc", view_detections=20),
        DetectionMerge(method="wbc", tile_iou=0.1, tile_weight="gaussian", wbc_by_volume=True),
    ],
)
def test_detections_of_a_file_are_those_of_the_network(how: Merge, tmp_path: Path) -> None:
    run, recipe = crowded(mirrors=[[0], [1, 2]])
    plain = Predictor(run, recipe, [Crowd(), Crowd()], how=how).predict(scan()).detections
    prediction, recorded = kept_on_disk(Predictor(run, recipe, [Crowd(), Crowd()], how=how), tmp_path, scan())
    assert plain is not None
    assert prediction.detections is not None
    assert isinstance(how, DetectionMerge)
    assert len(plain) > 5
    for found in (prediction.detections, recorded.detections(how)):
        assert np.array_equal(found.boxes, plain.boxes)
        assert np.array_equal(found.scores, plain.scores)
        assert np.array_equal(found.classes, plain.classes)
    assert (recorded.head.num_models, recorded.head.mirrors) == (2, ((), (0,), (1, 2)))
    assert set(recorded.required.views.tolist()) == set(range(6))


@pytest.mark.parametrize("restore", ["shares", "labels"])
def test_labels_of_a_file_are_those_of_the_network(restore: str, tmp_path: Path) -> None:
    recipe = bright_recipe("segmentation", restore=restore, blend="gaussian")
    predictor = Predictor(bright_run(recipe), recipe, BrightConfig().build(recipe, 1))
    plain = predictor.predict(scan()).labels
    prediction, recorded = kept_on_disk(predictor, tmp_path, scan(), labels=(1,))
    assert plain is not None
    assert prediction.labels is not None
    assert np.array_equal(prediction.labels.voxels, plain.voxels)
    assert recorded.shares is not None
    assert recorded.shares.shape[1:] < recorded.grid.shape
    again = recorded.labels(SegmentationMerge())
    assert again.grid == plain.grid
    if restore == "shares":
        assert np.count_nonzero(again.voxels != plain.voxels) <= 0.002 * np.count_nonzero(plain.voxels)
    for how in (SegmentationMerge(threshold=0.1), SegmentationMerge(thresholds={"bright": 0.9}, largest_only=True)):
        shares = recipe.model_copy(
            update={"inference": recipe.inference.model_copy(update={"restore": "shares"}), "merge": how}
        )
        expected = Predictor(bright_run(recipe), shares, BrightConfig().build(recipe, 1)).predict(scan()).labels
        assert expected is not None
        wrong = np.count_nonzero(recorded.labels(how).voxels != expected.voxels)
        assert wrong <= 0.004 * np.count_nonzero(expected.voxels)


def test_of_many_classes_those_that_are_asked_for_and_the_best_of_the_rest() -> None:
    keep = Recorder((3, 1))
    grid = scan().grid
    keep.begin(grid)
    shares = torch.rand((4, *grid.shape), generator=torch.Generator().manual_seed(0)).softmax(dim=0)
    keep.block((0, 0, 0), shares)
    recipe = bright_recipe("segmentation")
    mark = stamp(bright_run(recipe), recipe, sha256="0" * 64)
    recorded = recorded_case(keep, RecordSource(recipe, mark, ("a", "b", "c"), "c", grid))
    assert recorded.head.classes == ("c", "a")
    assert recorded.shares is not None
    expected = torch.stack([torch.maximum(shares[0], shares[2]), shares[3], shares[1]])
    np.testing.assert_array_equal(recorded.shares, (expected * 255).round().to(torch.uint8).numpy())


def test_an_empty_scan_keeps_nothing(tmp_path: Path) -> None:
    volume = scan()
    empty = Volume(np.full_like(volume.voxels, -1000), volume.grid)
    for task in ("detection", "segmentation"):
        recipe = bright_recipe(task)
        predictor = Predictor(bright_run(recipe), recipe, BrightConfig().build(recipe, 1))
        folder = tmp_path / task
        folder.mkdir()
        _, recorded = kept_on_disk(predictor, folder, empty, labels=(1,) if task == "segmentation" else ())
        if task == "detection":
            assert len(recorded.detections(DetectionMerge())) == 0
        else:
            assert recorded.shares is not None
            assert recorded.shares.size == 0
            assert not recorded.labels(SegmentationMerge(threshold=0.5)).voxels.any()


def test_the_truth_travels_with_the_candidates(tmp_path: Path) -> None:
    run, recipe = crowded()
    _, recorded = kept_on_disk(Predictor(run, recipe, Crowd()), tmp_path, scan())
    assert recorded.truth is None
    truth = RecordedTruth(np.array([[1.5, 2, 3, 4, 5, 6]]), np.array([0]))
    write_recorded(Place.of(tmp_path), with_truth(recorded, truth))
    again = read_recorded(Place.of(tmp_path), file_name("a/b")).truth
    assert again is not None
    np.testing.assert_array_equal(again.boxes, truth.boxes)
    assert again.classes.tolist() == [0]
    recipe = bright_recipe("segmentation")
    predictor = Predictor(bright_run(recipe), recipe, BrightConfig().build(recipe, 1))
    folder = tmp_path / "labels"
    folder.mkdir()
    _, recorded = kept_on_disk(predictor, folder, scan(), labels=(1,))
    labels = (scan().voxels > 0).astype(np.uint8)
    write_recorded(Place.of(folder), with_truth(recorded, RecordedTruth(labels=labels)))
    found = read_recorded(Place.of(folder), file_name("a/b")).truth
    assert found is not None
    assert found.labels is not None
    np.testing.assert_array_equal(found.labels, labels)


def test_a_damaged_file_is_said_to_be(tmp_path: Path) -> None:
    run, recipe = crowded()
    kept_on_disk(Predictor(run, recipe, Crowd()), tmp_path, scan())
    path = tmp_path / file_name("a/b")
    assert read_head(Place.of(tmp_path), path.name).case == "a/b"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"\[candidates.damaged\] .* cannot be read"):
        read_recorded(Place.of(tmp_path), path.name)
    with pytest.raises(DataError, match=r"\[candidates.missing\] .* is not there"):
        read_head(Place.of(tmp_path), "other.parquet")


def test_the_kept_probabilities_do_not_depend_on_how_planes_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = bright_recipe("segmentation")
    predictor = Predictor(bright_run(recipe), recipe, BrightConfig().build(recipe, 1))
    _, recorded = kept_on_disk(predictor, tmp_path, scan(), labels=(1,))
    whole = recorded.shares_on_scan()
    monkeypatch.setattr(module, "_PLANES", 3)
    np.testing.assert_array_equal(recorded.shares_on_scan(), whole)
