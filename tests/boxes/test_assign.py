"""ATSS and the mining of negatives: slow references, MONAI where the two rules agree, and each promise by itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.apps.detection.utils.ATSS_matcher import ATSSMatcher
from monai.apps.detection.utils.hard_negative_sampler import HardNegativeSampler
from torch import Tensor

from support.box_references import all_boxes, iou
from voxray.boxes.anchors import AnchorLevel, anchor_levels
from voxray.boxes.assign import Assignment, assign, num_draws, sample
from voxray.core.batch import IGNORED, PADDING
from voxray.core.recipe import AnchorConfig, DetectionLoss

ANCHORS = AnchorConfig(
    base_shapes_vox=((6, 8, 4), (8, 6, 5), (10, 10, 6)), level_scales=(1, 2, 4), published_rounding=True
)
STRIDES = ((4, 4, 2), (8, 8, 4), (16, 16, 8))
SPACING_MM = torch.tensor([0.703125, 0.703125, 1.25])


def levels_of(*window: int) -> tuple[AnchorLevel, ...]:
    shapes = [tuple(side // step for side, step in zip(window, stride, strict=True)) for stride in STRIDES]
    return anchor_levels(ANCHORS, shapes, STRIDES)


def random_objects(count: int, window: tuple[int, ...], seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    sides = 4 + torch.rand((count, 3), generator=rng) * 16
    low = torch.rand((count, 3), generator=rng) * (torch.tensor(window) - sides)
    return torch.cat([low, low + sides], dim=1)


def matched(assignment: Assignment, image: int = 0) -> Tensor:
    """For each anchor the object that it is positive for, or -1."""
    result = torch.full((assignment.is_negative.shape[1],), -1)
    chosen = assignment.is_positive[image]
    assert len(set(assignment.anchors[image][chosen].tolist())) == int(chosen.sum())
    result[assignment.anchors[image][chosen]] = assignment.objects[image][chosen]
    return result


def slow_atss(boxes: Tensor, levels: tuple[AnchorLevel, ...], count: int, *, center_in_box: bool) -> Tensor:
    """nnDetection's rule, object by object: min(count * anchors a place, anchors of the level) candidates a level."""
    anchors = all_boxes(levels)
    centres = (anchors[:, :3] + anchors[:, 3:]) / 2
    best, result = torch.zeros(len(anchors)), torch.full((len(anchors),), -1)
    for index, box in enumerate(boxes):
        distance = (centres - (box[:3] + box[3:]) / 2).norm(dim=1)
        candidates, first = [], 0
        for level in levels:
            near = distance[first : first + level.num_anchors].sort(stable=True).indices
            candidates.append(near[: min(count * level.num_shapes, level.num_anchors)] + first)
            first += level.num_anchors
        chosen = torch.cat(candidates)
        overlap = iou(anchors[chosen], box[None])[:, 0]
        for number, value in zip(chosen.tolist(), overlap.tolist(), strict=True):
            inside = bool(((centres[number] > box[:3]) & (centres[number] < box[3:])).all())
            if value >= overlap.mean() + overlap.std() and value > best[number] and (inside or not center_in_box):
                best[number], result[number] = value, index
    return result


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 4),
    st.sampled_from([(64, 64, 32), (32, 48, 16), (16, 16, 8)]),
    st.integers(1, 9),
    st.booleans(),
    st.integers(0, 10_000),
)
def test_as_the_slow_rule(
    count: int, window: tuple[int, int, int], candidates: int, center_in_box: bool, seed: int
) -> None:
    """Also where a level has fewer places than candidates, where MONAI takes fewer anchors than nnDetection."""
    levels, boxes = levels_of(*window), random_objects(count, window, seed)
    classes = torch.zeros((1, count), dtype=torch.int64)
    found = assign(boxes[None], classes, levels, num_candidates=candidates, center_in_box=center_in_box)
    expected = slow_atss(boxes, levels, candidates, center_in_box=center_in_box)
    assert torch.equal(matched(found), expected)
    assert torch.equal(found.is_negative[0], expected < 0)


@pytest.mark.parametrize("center_in_box", [False, True])
def test_as_monai_on_maps_with_enough_places(center_in_box: bool) -> None:
    window = (96, 96, 48)
    levels, boxes = levels_of(*window), random_objects(12, window, 7)
    anchors = all_boxes(levels)
    matcher = ATSSMatcher(num_candidates=4, center_in_gt=center_in_box)
    _, expected = matcher.compute_matches(boxes, anchors, [level.num_places for level in levels], 3)
    found = assign(
        boxes[None], torch.zeros((1, 12), dtype=torch.int64), levels, num_candidates=4, center_in_box=center_in_box
    )
    assert torch.equal(matched(found), expected)


def test_nodule_of_three_millimetres_has_five_weak_positives() -> None:
    """With the published anchors, off the grid: 5 positives, the best IoU 0.228, the least 0.121."""
    sides = 3 / SPACING_MM
    centre = torch.tensor([81.2, 81.2, 41.2])
    box = torch.cat([centre - sides / 2, centre + sides / 2])
    levels = levels_of(192, 192, 80)
    found = assign(box[None, None], torch.zeros((1, 1), dtype=torch.int64), levels, num_candidates=4)
    overlap = iou(found.anchor_boxes[0][found.is_positive[0]], box[None])
    assert found.anchors.shape == (1, 36)
    assert len(overlap) == 5
    assert overlap.max().item() == pytest.approx(0.228, abs=5e-4)
    assert overlap.min().item() == pytest.approx(0.121, abs=5e-4)


def test_anchor_claimed_twice_goes_to_the_larger_overlap() -> None:
    levels = levels_of(64, 64, 32)
    boxes = torch.tensor([[26.0, 26, 12, 36, 36, 18], [27, 27, 12, 35, 35, 18]])
    found = assign(boxes[None], torch.zeros((1, 2), dtype=torch.int64), levels, num_candidates=4)
    both = iou(all_boxes(levels), boxes)
    numbers = found.anchors[0][found.is_positive[0]]
    assert set(found.objects[0][found.is_positive[0]].tolist()) == {0, 1}
    contested = numbers[(both[numbers] > 0.3).all(dim=1)]
    assert len(contested) > 0
    assert torch.equal(matched(found)[contested], both[contested].argmax(dim=1))


def test_same_object_twice_keeps_the_first() -> None:
    boxes = torch.tensor([[[20.0, 20, 10, 30, 30, 16]] * 2])
    found = assign(boxes, torch.tensor([[0, 1]]), levels_of(64, 64, 32), num_candidates=4)
    assert set(found.objects[0][found.is_positive[0]].tolist()) == {0}


def test_padding_claims_nothing_and_images_do_not_mix() -> None:
    levels = levels_of(64, 64, 32)
    boxes = random_objects(3, (64, 64, 32), 3)
    batch = torch.stack([boxes, boxes.flip(0)])
    classes = torch.tensor([[0, 1, PADDING], [0, PADDING, 2]])
    found = assign(batch, classes, levels, num_candidates=4)
    alone = [assign(batch[i : i + 1], classes[i : i + 1], levels, num_candidates=4) for i in range(2)]
    for image in range(2):
        assert torch.equal(matched(found, image), matched(alone[image]))
    assert set(matched(found, 0).tolist()) == {-1, 0, 1}
    assert set(matched(found, 1).tolist()) == {-1, 0, 2}
    assert matched(assign(boxes[None, :0], classes[:1, :0], levels, num_candidates=4)).eq(-1).all()


def test_box_without_volume_claims_nothing() -> None:
    boxes = torch.tensor([[[20.0, 20, 10, 20, 30, 16]]])
    found = assign(boxes, torch.tensor([[0]]), levels_of(64, 64, 32), num_candidates=4)
    assert not found.is_positive.any()
    assert found.is_negative.all()


def test_anchors_that_touch_an_ignored_region_are_never_negative() -> None:
    levels = levels_of(64, 64, 32)
    boxes = torch.tensor([[[26.0, 26, 12, 36, 36, 18], [0, 40, 0, 9, 52, 7], [10, 10, 10, 20, 20, 20]]])
    classes = torch.tensor([[0, IGNORED, PADDING]])
    found = assign(boxes, classes, levels, num_candidates=4)
    anchors = all_boxes(levels)
    touching = iou(anchors, boxes[0, 1:2])[:, 0] > 0
    assert touching.any()
    assert torch.equal(found.is_negative[0], ~touching & (matched(found) < 0))
    without = assign(boxes[:, :1], classes[:, :1], levels, num_candidates=4)
    assert torch.equal(matched(found), matched(without))


LOSS = DetectionLoss()


def mined(
    is_positive: Tensor, is_negative: Tensor, scores: Tensor, seed: int, loss: DetectionLoss
) -> tuple[Tensor, ...]:
    """Mined candidates and anchors of one image."""
    count = is_positive.shape[0]
    assignment = Assignment(
        torch.arange(count)[None],
        torch.zeros((1, count, 6)),
        torch.zeros((1, count), dtype=torch.int64),
        is_positive[None],
        is_negative[None],
    )
    draws = torch.rand((1, num_draws(assignment, loss)), generator=torch.Generator().manual_seed(seed))
    found = sample(assignment, scores[None], draws, loss)
    return found.positives[found.is_positive], found.negatives[found.is_negative]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 60), st.integers(0, 4000), st.integers(0, 10_000))
def test_mined_counts_are_monais(num_positives: int, num_negatives: int, seed: int) -> None:
    """At most 19 positives; 7/3 as many negatives, at least 16; from the 20 times as many of highest score."""
    scores = torch.rand(4100, generator=torch.Generator().manual_seed(seed))
    labels = torch.zeros(4100)
    labels[:num_positives] = 1
    is_negative = torch.zeros(4100, dtype=torch.bool)
    is_negative[num_positives : num_positives + num_negatives] = True
    positives, negatives = mined(labels[:100] > 0, is_negative, scores, seed, LOSS)
    labels[(labels == 0) & ~is_negative] = -1
    sampler = HardNegativeSampler(batch_size_per_image=64, positive_fraction=0.3, min_neg=16, pool_size=20)
    expected_positive, expected_negative = sampler.select_samples_per_img(labels, scores)
    assert len(positives) == int(expected_positive.sum())
    assert len(negatives) == int(expected_negative.sum())
    assert len(set(positives.tolist())) == len(positives)
    assert len(set(negatives.tolist())) == len(negatives)
    assert (labels[positives] == 1).all()
    assert is_negative[negatives].all()
    pool = scores[is_negative].sort(descending=True).values[: 20 * len(negatives)]
    assert (scores[negatives] >= pool[-1:]).all()


def test_mining_is_random_but_repeats_with_its_draws() -> None:
    is_positive, is_negative = torch.ones(50, dtype=torch.bool), torch.ones(5000, dtype=torch.bool)
    scores = torch.linspace(1, 0, 5000)
    seen = [mined(is_positive, is_negative, scores, seed, LOSS) for seed in range(200)]
    again = mined(is_positive, is_negative, scores, 0, LOSS)
    assert all(torch.equal(a, b) for a, b in zip(seen[0], again, strict=True))
    hits = torch.bincount(torch.cat([negatives for _, negatives in seen]), minlength=5000).float()
    assert hits[880:].sum() == 0
    assert hits[:880].mean() == 200 * 44 / 880
    assert hits[:440].sum() / hits.sum() == pytest.approx(0.5, abs=0.03)


def test_scores_that_are_not_numbers_are_not_hidden() -> None:
    """A broken network must show in the loss, not be mined around."""
    scores = torch.full((5000,), torch.nan)
    _, negatives = mined(torch.zeros(5, dtype=torch.bool), torch.ones(5000, dtype=torch.bool), scores, 1, LOSS)
    assert len(negatives) == 16
