"""The detection task: candidates at known places, merging over windows, scores, and one patch learned by heart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.apps.detection.utils.box_coder import BoxCoder
from monai.apps.detection.utils.box_selector import BoxSelector
from torch import Tensor

from support.box_references import all_boxes, iou
from voxray.boxes.anchors import anchor_levels, per_anchor
from voxray.boxes.coding import encode
from voxray.core.batch import Batch
from voxray.core.case import Case
from voxray.core.detections import Detections
from voxray.core.errors import DataError
from voxray.core.outputs import DetectionOutput
from voxray.core.recipe import DetectionMerge, Recipe, parse_recipe
from voxray.core.volume import Grid, Shape, Volume
from voxray.losses import local
from voxray.models import MODELS
from voxray.recipes import published, read_recipe
from voxray.tasks import build_task
from voxray.tasks.candidates import Candidates
from voxray.tasks.detection import DetectionTask

WINDOW = (32, 32, 16)
CLASSES = ("nodule", "node")
HOW = DetectionMerge()


def tiny_recipe(**changes: dict[str, Any]) -> Recipe:
    """The lung recipe with a small network, patch and window."""
    data = read_recipe("lung_nodule").model_dump(mode="json")
    data["network"] |= {"backbone": "resnet10", "width": 8, "channels": 16, "norm_groups": 4}
    data["patch"]["size_vox"] = data["inference"]["window_vox"] = list(WINDOW)
    for field, values in changes.items():
        data[field] |= values
    return parse_recipe(data, MODELS, where="test")


def task_of(recipe: Recipe) -> DetectionTask:
    task = build_task(recipe, CLASSES)
    assert isinstance(task, DetectionTask)
    return task


def blank_output(recipe: Recipe, *, count: int = 1, num_classes: int = 2) -> DetectionOutput:
    """Maps of a network that sees nothing."""
    assert recipe.anchors is not None
    num = len(recipe.anchors.base_shapes_vox)
    shapes = [
        [s // step for s, step in zip(WINDOW, stride, strict=True)] for stride in recipe.network.level_strides_vox
    ]
    return DetectionOutput(
        tuple(torch.full((count, num * num_classes, *shape), -9.0) for shape in shapes),
        tuple(torch.zeros((count, num * 6, *shape)) for shape in shapes),
    )


def grid_of(shape: Shape, spacing_mm: tuple[float, float, float] = (1, 1, 1)) -> Grid:
    return Grid(shape, spacing_mm, (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))


def candidates(*rows: tuple[float, ...]) -> Candidates:
    """Rows of six sides, a score and a class."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 8)
    return Candidates(table[:, :6], table[:, 6], table[:, 7].long())


def test_decode_finds_what_was_written_into_the_maps() -> None:
    """A box encoded at one anchor of each level, for a class, comes back from there with its score and class."""
    recipe = tiny_recipe()
    assert recipe.anchors is not None
    output = blank_output(recipe, count=2)
    boxes = torch.tensor([[3.0, 4, 5, 12.5, 11, 9], [8, 9, 2, 20, 22, 12], [1, 2, 1, 30, 29, 14]])
    levels = anchor_levels(
        recipe.anchors, [m.shape[2:] for m in output.class_logits], recipe.network.level_strides_vox
    )
    for index, level in enumerate(levels):
        x, y, z = (side - 1 for side in level.shape)
        anchor = all_boxes([level])[(level.num_places - 1) * 3 + index]
        output.class_logits[index][1, index * 2 + 1, x, y, z] = 2.0 - index
        output.box_deltas[index][1, index * 6 : index * 6 + 6, x, y, z] = encode(boxes[index], anchor)
    nothing, found = task_of(recipe).decode(output)
    assert len(nothing.boxes) == 0
    torch.testing.assert_close(found.boxes, boxes, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.scores, torch.tensor([2.0, 1, 0]).sigmoid())
    assert found.classes.tolist() == [1, 1, 1]


def test_decode_keeps_the_best_of_each_level_above_the_floor() -> None:
    recipe = tiny_recipe(inference={"candidates_per_level": 5, "candidate_floor": 0.3})
    output = blank_output(recipe)
    rng = torch.Generator().manual_seed(1)
    for logits in output.class_logits:
        logits += 8 + torch.randn(logits.shape, generator=rng)
    (found,) = task_of(recipe).decode(output)
    expected = []
    for logits in output.class_logits:
        scores = logits.sigmoid().flatten()
        expected.append(scores[scores > 0.3].sort(descending=True).values[:5])
    torch.testing.assert_close(found.scores, torch.cat(expected))
    assert len(found.scores) > 10


def test_decode_of_all_anchors_covers_every_anchor_once() -> None:
    """With no floor and no limit the candidates are the clipped anchors, each once for each class."""
    recipe = tiny_recipe(inference={"candidates_per_level": 10_000, "candidate_floor": 0.0})
    assert recipe.anchors is not None
    output = blank_output(recipe)
    levels = anchor_levels(
        recipe.anchors, [m.shape[2:] for m in output.class_logits], recipe.network.level_strides_vox
    )
    anchors = all_boxes(levels).clamp_min(0).minimum(torch.tensor([*WINDOW, *WINDOW]))
    (found,) = task_of(recipe).decode(output)
    assert sorted(found.boxes.tolist()) == sorted(anchors.tolist() * 2)


def test_candidates_are_clipped_and_those_outside_dropped() -> None:
    recipe = tiny_recipe()
    output = blank_output(recipe)
    output.class_logits[0][0, 0, 0, 0, 0] = output.class_logits[0][0, 0, 1, 0, 0] = 3.0
    output.box_deltas[0][0, 0, 0, 0, 0] = -5.0
    (found,) = task_of(recipe).decode(output)
    assert found.boxes.shape == (1, 6)
    assert found.boxes[0].tolist() == [3, 0, 0, 9, 6, 3]


@pytest.mark.parametrize("broken", ["class_logits", "box_deltas"])
def test_broken_network_is_not_a_scan_without_findings(broken: str) -> None:
    output = blank_output(tiny_recipe())
    output.class_logits[0][0, 0, 0, 0, 0] = 3.0
    getattr(output, broken)[0][0, 0, 0, 0, 0] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        task_of(tiny_recipe()).decode(output)


def test_merge_places_windows_and_suppresses_across_them() -> None:
    """One object seen by two windows is one finding; boxes lie on the scan's grid."""
    task, grid = task_of(tiny_recipe()), grid_of((48, 32, 16))
    windows = [
        ((0, 0, 0), candidates((18, 4, 4, 26, 12, 10, 0.9, 0), (1, 1, 1, 5, 5, 5, 0.4, 0))),
        (
            (16, 0, 0),
            candidates(
                (2.5, 4, 4, 10.5, 12, 10, 0.8, 0), (2, 4, 4, 10, 12, 10, 0.7, 1), (28, 20, 3, 40, 30, 9, 0.5, 0)
            ),
        ),
    ]
    found = task.merge(iter(windows), grid, HOW)
    assert found.boxes.tolist() == [
        [18, 4, 4, 26, 12, 10],
        [18, 4, 4, 26, 12, 10],
        [44, 20, 3, 48, 30, 9],
        [1, 1, 1, 5, 5, 5],
    ]
    np.testing.assert_allclose(found.scores, [0.9, 0.7, 0.5, 0.4], rtol=1e-6)
    assert found.classes.tolist() == [0, 1, 0, 0]
    assert found.frame == "voxel"
    assert found.boxes.dtype == found.scores.dtype == np.float32


def test_merge_drops_what_lies_in_the_padding() -> None:
    found = task_of(tiny_recipe()).merge(
        [((0, 0, 0), candidates((25, 0, 0, 30, 9, 9, 0.9, 0)))], grid_of((20, 20, 20)), HOW
    )
    assert len(found) == 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"score_floor": 0.6}, [0.9, 0.8]),
        ({"min_size_mm": 5.0}, [0.8]),
        ({"max_detections": 2}, [0.9, 0.8]),
        ({"tile_iou": 0.9}, [0.9, 0.8, 0.5, 0.45]),
        ({}, [0.9, 0.8, 0.5]),
    ],
)
def test_merge_obeys_what_is_swept(change: dict[str, float], expected: list[float]) -> None:
    """The smallest side of the first box is 4 voxels of 0.7 mm, that of the second 4 of 1.25 mm."""
    windows = [
        (
            (0, 0, 0),
            candidates(
                (0, 0, 0, 4, 8, 8, 0.9, 0),
                (10, 10, 2, 18, 18, 6, 0.8, 0),
                (20, 20, 2, 22, 22, 6, 0.5, 0),
                (20, 20, 2, 22, 22, 7, 0.45, 0),
            ),
        )
    ]
    how = DetectionMerge.model_validate(change)
    found = task_of(tiny_recipe()).merge(windows, grid_of((32, 32, 16), (0.7, 0.7, 1.25)), how)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-6)


def test_merge_of_nothing() -> None:
    task, grid = task_of(tiny_recipe()), grid_of((8, 8, 8))
    assert len(task.merge([], grid, HOW)) == 0
    assert len(task.merge([((0, 0, 0), candidates())], grid, HOW)) == 0


def test_score() -> None:
    """One of two nodules found, no node: the class without truth is left out of the means."""
    image = Volume(np.zeros((8, 8, 8), np.int16), grid_of((8, 8, 8)))
    boxes = np.array([[1.0, 1, 1, 4, 4, 4], [5, 5, 5, 8, 8, 8]])
    case = Case("a", "a", image, boxes, np.zeros(2, np.int64))
    found = Detections(boxes[:1].astype(np.float32), np.ones(1, np.float32), np.zeros(1, np.int64))
    score = task_of(tiny_recipe()).score([found], [case])
    assert score["mAR"] == score["AR@0.10"] == score["AR@0.10/nodule"] == 0.5
    assert score["mAP"] == score["AP@0.10"] == pytest.approx(51 / 101)
    assert "AP@0.10/node" not in score


def test_published_overrides_shift_anchors_to_edge_coordinates() -> None:
    """Weights trained on index coordinates answer the same box half a voxel lower."""
    recipe = read_recipe("lung_nodule", published("lung_nodule").overrides)
    assert recipe.anchors is not None
    first = all_boxes(anchor_levels(recipe.anchors, [(2, 2, 2)] * 3, recipe.network.level_strides_vox)[:1])[0]
    assert first.tolist() == [-0.5, -1.5, -0.5, 5.5, 6.5, 3.5]


def two_objects(seed: int = 0) -> Batch:
    """A patch of faint noise with two bright ellipsoids, one of each class."""
    rng = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([[4.0, 5, 3, 12, 13, 8], [17, 16, 6, 28, 27, 13]])
    places = torch.stack(torch.meshgrid(*(torch.arange(side) + 0.5 for side in WINDOW), indexing="ij"), dim=-1)
    image = 0.1 * torch.rand(WINDOW, generator=rng)
    for box, brightness in zip(boxes, (0.9, 0.5), strict=True):
        centre, half = (box[:3] + box[3:]) / 2, (box[3:] - box[:3]) / 2
        image[(((places - centre) / half).square().sum(dim=-1)) <= 1] = brightness
    return Batch(image[None, None], boxes[None], torch.tensor([[0, 1]]), None)


@pytest.mark.slow
@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
def test_one_patch_is_learned_by_heart(box_loss: str) -> None:
    """The whole way from loss to findings: both objects come back, of the right class, before anything else."""
    torch.manual_seed(0)
    recipe = tiny_recipe(loss={"box_loss": box_loss})
    task, batch = task_of(recipe), two_objects()
    model = recipe.network.build(recipe, len(CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(250):
        optimizer.zero_grad()
        value = sum(task.loss(model(batch.images), batch, local).values(), torch.zeros(()))
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()
    with torch.no_grad():
        (window,) = task.decode(model(batch.images))
    found = task.merge([((0, 0, 0), window)], grid_of(WINDOW), HOW)
    overlap = iou(torch.from_numpy(found.boxes[:2]), batch.boxes[0])
    assert sorted(found.classes[:2].tolist()) == [0, 1]
    assert all(overlap[rank, found.classes[rank]] > 0.5 for rank in range(2)), overlap
    assert found.scores[1] > 0.5
    assert (found.scores[2:] < 0.5).all()


def test_loss_draws_from_torchs_own_generator() -> None:
    """Restoring its state, as a resumed run does, repeats a step's loss; going on does not."""
    recipe = tiny_recipe()
    task, batch = task_of(recipe), two_objects()
    torch.manual_seed(1)
    output = recipe.network.build(recipe, 2)(batch.images)
    state = torch.get_rng_state()
    first, second = task.loss(output, batch, local), task.loss(output, batch, local)
    torch.set_rng_state(state)
    again = task.loss(output, batch, local)
    assert _same(first, again)
    assert not _same(first, second)


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in ("class", "box"))


def test_same_findings_as_monais_selector() -> None:
    """With the published anchors and thresholds, random maps give the boxes that MONAI's post-processing gives.

    MONAI drops boxes of less than a voxel; here that is the merge's smallest size, on a grid of 1 mm.
    """
    recipe = tiny_recipe(anchors={"published_rounding": True}, inference={"candidates_per_level": 100})
    assert recipe.anchors is not None
    output, rng = blank_output(recipe), torch.Generator().manual_seed(4)
    for logits, deltas in zip(output.class_logits, output.box_deltas, strict=True):
        logits.copy_(2 * torch.randn(logits.shape, generator=rng) - 3)
        deltas.copy_(0.3 * torch.randn(deltas.shape, generator=rng))
    task = task_of(recipe)
    found = task.merge([((0, 0, 0), task.decode(output)[0])], grid_of(WINDOW), DetectionMerge(min_size_mm=1.0))

    levels = anchor_levels(
        recipe.anchors, [m.shape[2:] for m in output.class_logits], recipe.network.level_strides_vox
    )
    coder = BoxCoder(weights=(1.0,) * 6)
    decoded = [
        coder.decode_single(per_anchor([deltas], 3)[0], all_boxes([level]))
        for deltas, level in zip(output.box_deltas, levels, strict=True)
    ]
    logits_list = [per_anchor([logits], 3)[0] for logits in output.class_logits]
    selector = BoxSelector(score_thresh=0.02, topk_candidates_per_level=100, nms_thresh=0.22, detections_per_img=300)
    boxes, scores, classes = selector.select_boxes_per_image(decoded, logits_list, list(WINDOW))
    assert 20 < len(boxes) < 300
    torch.testing.assert_close(torch.from_numpy(found.boxes), boxes, atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.from_numpy(found.scores), scores)
    assert torch.equal(torch.from_numpy(found.classes), classes)
