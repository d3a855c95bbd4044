"""Labels from probabilities: which class wins where."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from voxray.tasks.thresholds import labels_above, selected, thresholds_of

from voxray.core.errors import ConfigError
from voxray.core.recipe import SegmentationMerge

CLASSES = ("spleen", "liver", "kidney")


def at(*shares: float) -> torch.Tensor:
    return torch.tensor(shares).reshape(-1, 1, 1, 1)


def label(shares: torch.Tensor, thresholds: list[float | None]) -> int:
    return int(labels_above(shares, thresholds).item())


def test_a_class_above_its_threshold_needs_no_majority() -> None:
    shares = at(0.6, 0.3, 0.1)
    assert label(shares, [None, None]) == 0
    assert label(shares, [0.25, None]) == 1
    assert label(shares, [0.3, None]) == 0
    assert label(shares, [0.25, 0.05]) == 1
    assert label(shares, [0.35, 0.05]) == 2


def test_a_class_below_its_threshold_leaves_the_place_to_the_next() -> None:
    shares = at(0.1, 0.5, 0.4)
    assert label(shares, [0.6, None]) == 2
    assert label(shares, [0.6, 0.6]) == 0
    assert label(at(0.45, 0.5, 0.05), [0.6, None]) == 0


def test_of_several_the_most_probable_whatever_their_order() -> None:
    assert label(at(0.2, 0.3, 0.5), [0.1, None]) == 2
    assert label(at(0.2, 0.5, 0.3), [None, 0.1]) == 1
    assert label(at(0.2, 0.3, 0.5), [0.1, 0.1]) == 2
    assert label(at(0.2, 0.4, 0.4), [0.1, 0.1]) == 1


@given(st.integers(0, 1000))
def test_without_thresholds_the_largest(seed: int) -> None:
    shares = torch.rand((4, 3, 4, 5), generator=torch.Generator().manual_seed(seed)).softmax(dim=0)
    assert torch.equal(labels_above(shares, [None] * 3).long(), shares.argmax(dim=0))
    assert torch.equal(labels_above(shares, [0.0] * 3).long(), shares[1:].argmax(dim=0) + 1)
    bytes_of = (shares * 255).round().to(torch.uint8)
    assert torch.equal(
        labels_above(bytes_of, [None, 1.0, None], whole=255) == 2, torch.zeros((3, 4, 5), dtype=torch.bool)
    )


def test_thresholds_by_name_come_before_the_common_one() -> None:
    assert thresholds_of(SegmentationMerge(), CLASSES) is None
    how = SegmentationMerge(threshold=0.4, thresholds={"liver": 0.2})
    assert thresholds_of(how, CLASSES) == [0.4, 0.2, 0.4]
    assert thresholds_of(SegmentationMerge(thresholds={"liver": 0.2}), CLASSES) == [None, 0.2, None]


def test_classes_are_selected_by_name() -> None:
    assert selected(False, CLASSES, field="merge.fill_holes") == []
    assert selected(True, CLASSES, field="merge.fill_holes") == [1, 2, 3]
    assert selected(("kidney", "spleen"), CLASSES, field="merge.fill_holes") == [3, 1]


def test_a_class_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"merge.thresholds: no class is named 'splen'; did you mean 'spleen'\?"):
        thresholds_of(SegmentationMerge(thresholds={"splen": 0.2}), CLASSES)
    with pytest.raises(ConfigError, match=r"merge.fill_holes: no class is named 'x'; classes are spleen, liver, kid"):
        selected(("x",), CLASSES, field="merge.fill_holes")
