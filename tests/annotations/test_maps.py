"""Label maps, masks and instances against slow implementations."""

from __future__ import annotations

from collections import deque
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from voxray.annotations.maps import (
    component_boxes,
    instance_boxes,
    instance_classes,
    labels_by_name,
    labels_of_masks,
    value_counts,
)
from voxray.core.errors import DataError

CLASSES = ("liver", "spleen", "kidney")
UNIT = (1.0, 1.0, 1.0)
MAPS = hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 6)] * 3), elements=st.sampled_from([0, 0, 0, 1, 2, 3]))


def slow_components(labels: NDArray[np.uint8]) -> set[tuple[int, ...]]:
    """(class, x1 y1 z1 x2 y2 z2, voxels) of each component, by flooding voxel after voxel."""
    left = {tuple(int(i) for i in place) for place in np.argwhere(labels)}
    found = set()
    while left:
        start = min(left)
        left.discard(start)
        part, queue = [start], deque([start])
        while queue:
            here = queue.popleft()
            for step in product((-1, 0, 1), repeat=3):
                there = tuple(a + b for a, b in zip(here, step, strict=True))
                if there in left and labels[there] == labels[start]:
                    left.discard(there)
                    part.append(there)
                    queue.append(there)
        low, high = np.min(part, axis=0), np.max(part, axis=0) + 1
        found.add((int(labels[start]) - 1, *low.tolist(), *high.tolist(), len(part)))
    return found


@settings(deadline=None)
@given(labels=MAPS)
def test_components_are_those_of_flooding(labels: NDArray[np.uint8]) -> None:
    boxes, classes = component_boxes(labels, spacing_mm=UNIT)
    found = sorted((int(c), *b.astype(int).tolist()) for c, b in zip(classes, boxes, strict=True))
    assert found == sorted(row[:-1] for row in slow_components(labels))


@settings(deadline=None)
@given(labels=MAPS, min_voxels=st.integers(0, 6))
def test_small_components_are_no_objects(labels: NDArray[np.uint8], min_voxels: int) -> None:
    boxes, _ = component_boxes(labels, spacing_mm=(2.0, 1.0, 0.5), min_object_mm3=float(min_voxels))
    assert len(boxes) == sum(row[-1] >= min_voxels for row in slow_components(labels))


def test_a_box_runs_from_the_first_voxel_to_one_past_the_last() -> None:
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[2:5, 3:4, 6:10] = 2
    boxes, classes = component_boxes(labels, spacing_mm=UNIT)
    np.testing.assert_array_equal(boxes, [[2, 3, 6, 5, 4, 10]])
    np.testing.assert_array_equal(classes, [1])


@given(voxels=hnp.arrays(np.uint16, (4, 5, 6), elements=st.integers(0, 700)))
def test_value_counts(voxels: NDArray[np.uint16]) -> None:
    counts = value_counts(voxels)
    assert counts.sum() == voxels.size
    values, expected = np.unique(voxels, return_counts=True)
    np.testing.assert_array_equal(np.flatnonzero(counts), values)
    np.testing.assert_array_equal(counts[values], expected)


def test_labels_are_found_by_name_and_not_by_number() -> None:
    voxels = np.array([[[0, 1, 2, 5]]], np.uint8)
    names = {1: "spleen", 2: "liver", 5: "spleen"}
    labels, problems = labels_by_name(voxels, names, CLASSES, unlisted_is_background=False, where="m")
    assert not problems
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, [[[0, 2, 1, 2]]])


def test_values_without_a_class_are_told_or_become_background() -> None:
    voxels = np.array([[[0, 1, 2, 2, 300]]], np.uint16)
    names = {1: "liver", 2: "heart"}
    labels, problems = labels_by_name(voxels, names, CLASSES, unlisted_is_background=False, where="m.nii")
    np.testing.assert_array_equal(labels, [[[0, 1, 0, 0, 0]]])
    assert [problem.message for problem in problems] == [
        "m.nii: value 2 (2 voxels) is called 'heart', which is no class of the dataset.",
        "m.nii: value 300 (1 voxels) has no class.",
    ]
    again, none = labels_by_name(voxels, names, CLASSES, unlisted_is_background=True, where="m.nii")
    assert not none
    np.testing.assert_array_equal(again, labels)


def masks() -> list[tuple[str, NDArray[np.bool_]]]:
    liver, spleen = np.zeros((2, 2, 3), bool), np.zeros((2, 2, 3), bool)
    liver[..., :2] = True
    spleen[..., 2] = True
    return [("liver", liver), ("spleen", spleen)]


def test_masks_are_merged_by_name() -> None:
    labels, problems = labels_of_masks(masks(), CLASSES, (2, 2, 3), first_wins=False, where="case")
    assert not problems
    np.testing.assert_array_equal(labels, np.broadcast_to([1, 1, 2], (2, 2, 3)))
    again, _ = labels_of_masks(reversed(masks()), CLASSES, (2, 2, 3), first_wins=False, where="case")
    np.testing.assert_array_equal(again, labels)


def test_shared_voxels_are_told_or_go_to_the_first() -> None:
    both = masks()
    both[1][1][0, :, 1] = True
    labels, problems = labels_of_masks(both, CLASSES, (2, 2, 3), first_wins=False, where="s1")
    assert [(p.code, p.message) for p in problems] == [("labels.overlap", "s1: liver and spleen share 2 voxels.")]
    again, none = labels_of_masks(both, CLASSES, (2, 2, 3), first_wins=True, where="s1")
    assert not none
    np.testing.assert_array_equal(again, labels)
    np.testing.assert_array_equal(again, np.broadcast_to([1, 1, 2], (2, 2, 3)))


def test_instances_may_touch_and_may_be_in_parts() -> None:
    voxels = np.zeros((6, 4, 4), np.uint16)
    voxels[0:2], voxels[2:4], voxels[5, 3, 3] = 1, 2, 1
    labels, boxes, classes, problems = instance_boxes(voxels, {1: 2, 2: 0}, where="i")
    assert not problems
    np.testing.assert_array_equal(boxes, [[0, 0, 0, 6, 4, 4], [2, 0, 0, 4, 4, 4]])
    np.testing.assert_array_equal(classes, [2, 0])
    np.testing.assert_array_equal(np.unique(labels), [0, 1, 3])


def test_instances_and_their_json_must_agree() -> None:
    voxels = np.zeros((3, 3, 3), np.uint8)
    voxels[0], voxels[1] = 1, 3
    _, boxes, classes, problems = instance_boxes(voxels, {1: 0, 2: 0}, where="i.nii")
    assert [(p.code, p.message) for p in problems] == [
        ("instances.class", "i.nii: instance 3 has no class."),
        ("instances.absent", "i.nii: instance 2 of the JSON has no voxel."),
    ]
    assert len(boxes) == len(classes) == 1


def test_an_empty_instance_map_is_a_valid_case() -> None:
    labels, boxes, classes, problems = instance_boxes(np.zeros((2, 2, 2), np.uint8), {}, where="i")
    assert not problems
    assert boxes.shape == (0, 6)
    assert classes.shape == (0,)
    assert not labels.any()


def test_classes_of_instances_by_index_or_name() -> None:
    assert instance_classes({"instances": {"1": 2, "7": "liver"}}, CLASSES, where="i") == {1: 2, 7: 0}


@pytest.mark.parametrize(
    "data",
    [[], {}, {"instances": {"0": 1}}, {"instances": {"a": 1}}, {"instances": {"1": 3}}, {"instances": {"1": True}}],
)
def test_broken_instance_tables_are_refused(data: object) -> None:
    with pytest.raises(DataError) as caught:
        instance_classes(data, CLASSES, where="i.json")
    assert caught.value.code == "instances.form"
