"""Settings under which nothing, or little, can be learnt: found before the first step, with numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from support.tiny_training import ball_case, detection_recipe, segmentation_recipe, without_ball
from voxray.core.case import Case
from voxray.core.errors import ConfigError
from voxray.core.recipe import Recipe
from voxray.core.storage import Place
from voxray.sampling import Schedule
from voxray.store import CaseSummary, write_case
from voxray.training.preflight import (
    PreflightFinding,
    SplitSummaries,
    as_warnings,
    data_findings,
    judged,
    recipe_findings,
)

NAMES = ("ball", "cube")


def summaries(folder: Path, cases: list[Case], recipe: Recipe) -> tuple[CaseSummary, ...]:
    """What their shards say of the cases."""
    place = Place.of(folder)
    return tuple(
        write_case(place, case, recipe, original_grid=case.image.grid, signature="s").summary for case in cases
    )


def balls(count: int = 4, side: float = 10.0, label: int = 0) -> list[Case]:
    """Cases with a cube of these sides each."""
    box = np.array([[14 - side / 2] * 3 + [14 + side / 2] * 3])
    return [replace(ball_case(index), boxes=box, classes=np.array([label])) for index in range(count)]


def found(folder: Path, recipe: Recipe, train: list[Case], val: list[Case] | None = None) -> list[PreflightFinding]:
    """The findings of a fold with these cases."""
    val = [replace(case, case_id=f"v{case.case_id}") for case in balls(2) if val is None] + (val or [])
    sides = SplitSummaries(NAMES, summaries(folder, train, recipe), summaries(folder, val, recipe))
    return data_findings(recipe, sides)


def only(findings: list[PreflightFinding]) -> str:
    """The one finding that is not about the second class, which most cases here lack."""
    (one,) = [one for one in findings if "1 of 2 classes (cube)" not in one.text]
    return one.text


def test_good_data_are_passed_over_but_for_the_class_that_they_lack(tmp_path: Path) -> None:
    (one,) = found(tmp_path, detection_recipe(), balls())
    assert one == PreflightFinding(
        "1 of 2 classes (cube) has no object in any of the 6 cases, and cannot be learnt.", is_fatal=False
    )


def test_objects_larger_than_the_patch_are_fatal_with_numbers(tmp_path: Path) -> None:
    recipe = detection_recipe(
        "patch.size_vox=[8,8,8]", "inference.window_vox=[16,16,16]", "patch.margin_vox=[20,20,20]"
    )
    (one,) = found(tmp_path, recipe, balls(side=21.6))
    assert one.is_fatal
    assert one.text == (
        "0 of 4 objects (0.0 %) can be targets: 4 do not fit a patch of 8 x 8 x 8 voxels (median 21.6 x 21.6 x 21.6 "
        "voxels, 21.6 x 21.6 x 21.6 mm), of which half must lie in it, so that the largest sides allowed are "
        "10 x 10 x 10 voxels (10 x 10 x 10 mm): enlarge patch.size_vox, or make grid.spacing_mm coarser."
    )
    with pytest.raises(ConfigError, match=r"store: nothing can be learnt: 0 of 4 objects"):
        judged([one], "store")
    assert as_warnings([one])[0].startswith("warning: with this recipe nothing can be learnt: 0 of 4")


def test_few_targets_of_a_class_are_a_warning_with_its_numbers(tmp_path: Path) -> None:
    recipe = detection_recipe("patch.margin_vox=[12,12,12]", "patch.max_object_vox=[28,28,28]")
    train = [*balls(3), *balls(4, side=26, label=1)[3:]]
    train[0] = replace(train[0], boxes=np.repeat(train[0].boxes, 4, 0), classes=np.array([0, 0, 0, 1]))
    text = only(found(tmp_path, recipe, train))
    assert text.startswith(
        "1 of 2 objects of class cube (50.0 %) can be targets: 1 do not fit a patch of 16 x 16 x 16"
    )


@pytest.mark.parametrize("base", [0.2, 300])
def test_anchors_that_meet_no_object_are_fatal(tmp_path: Path, base: float) -> None:
    recipe = detection_recipe(f"anchors={{base_shapes_vox=[[{base},{base},{base}]], level_scales=[1,2,4]}}")
    (one,) = found(tmp_path, recipe, balls())
    assert one.is_fatal
    assert (
        "4 have no anchor that overlaps them to an IoU of 0.01 (median 10 x 10 x 10 voxels; anchors have" in one.text
    )


def test_anchors_that_barely_meet_the_objects_are_a_warning(tmp_path: Path) -> None:
    recipe = detection_recipe("anchors={base_shapes_vox=[[1,1,1]], level_scales=[1,2,4]}")
    text = only(found(tmp_path, recipe, balls()))
    assert "overlaps 4 of 4 objects to an IoU below 0.1 (median 0.064)" in text
    assert "1 x 1 x 1 to 4 x 4 x 4 voxels" in text


def test_no_object_is_fatal_for_a_detection(tmp_path: Path) -> None:
    (one,) = found(tmp_path, detection_recipe(), [without_ball(case) for case in balls()])
    assert one.is_fatal
    assert "none of the 4 training cases holds an object" in one.text


def test_no_labelled_voxel_in_a_tile_is_fatal_for_a_segmentation(tmp_path: Path) -> None:
    recipe = segmentation_recipe()
    (one,) = found(tmp_path, recipe, [replace(case, labels=None) for case in balls()])
    assert one.is_fatal
    assert "no tile of the 4 training cases holds a labelled voxel; see" in one.text
    whole = summaries(tmp_path / "whole", balls(), recipe)
    outside = tuple(
        case.model_copy(update={"tiles": tuple(tile.model_copy(update={"label_voxels": {}}) for tile in case.tiles)})
        for case in whole
    )
    (one,) = data_findings(recipe, SplitSummaries(NAMES, outside, whole))
    assert one.is_fatal
    assert "4 of them have labelled voxels, which lie in no tile" in one.text


def test_classes_that_only_validate_are_told_apart_from_those_that_are_nowhere(tmp_path: Path) -> None:
    texts = [one.text for one in found(tmp_path, detection_recipe(), balls(), balls(6, label=1)[4:])]
    assert texts == [
        "1 of 2 classes (cube (2 that validate)) has no object in the 4 training cases, but in cases that validate, "
        "and cannot be learnt."
    ]


def test_a_validation_that_says_nothing_is_a_warning(tmp_path: Path) -> None:
    nothing = [without_ball(case) for case in balls(6)[4:]]
    text = only(found(tmp_path, detection_recipe(), balls(), nothing))
    assert text == "none of the 2 cases that validate holds an object, so that their score says nothing."
    text = only(
        data_findings(detection_recipe(), SplitSummaries(NAMES, summaries(tmp_path, balls(), detection_recipe())))
    )
    assert text.startswith("no case validates")


def test_batches_beyond_the_data_and_epochs_without_foreground_are_warnings(tmp_path: Path) -> None:
    recipe = segmentation_recipe("patch.foreground=0.01", "patch.margin_vox=[16,16,16]")
    sides = SplitSummaries(("ball",), summaries(tmp_path, balls(1), recipe), validates=False)
    texts = [one.text for one in data_findings(recipe, sides, Schedule(0, steps_per_epoch=3, batch_size=9))]
    assert texts[0].startswith("a batch of 9 patches is cut from only 1 tile,")
    assert texts[1].startswith("patch.foreground 0.01 of the 18 tiles of an epoch is less than one")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["loss.dice_weight=0", "loss.ce_weight=0"], "loss.dice_weight and loss.ce_weight are both 0"),
        (["optim.rate=1e-20"], "the learning rate is 1e-20 at most in 3 epochs"),
        (["optim.warmup_epochs=1000000000000"], "the learning rate is 3e-14 at most in 3 epochs"),
        (
            ['loss={kind="detection", class_weight=0, box_weight=0}'],
            "loss.class_weight and loss.box_weight are both 0",
        ),
        (['loss={kind="detection", positive_fraction=0}'], "is less than one anchor with an object"),
        (['loss={kind="detection", anchors_per_patch=3}'], "is less than one anchor with an object"),
    ],
)
def test_a_recipe_that_learns_nothing_is_fatal_by_itself(overrides: list[str], sentence: str) -> None:
    made = detection_recipe if "detection" in overrides[0] else segmentation_recipe
    with pytest.raises(ConfigError, match=sentence):
        judged(recipe_findings(made(*overrides)), "tiny")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["optim.warmup_epochs=6"],
            "longer than the training of 3 epochs, in which the learning rate rises to 0.005",
        ),
        (["optim.decay_epochs=[1]", "optim.decay_factor=1e-20"], "is below 1e-12 in 67 % of the epochs"),
    ],
)
def test_a_rate_that_hardly_learns_is_a_warning(overrides: list[str], sentence: str) -> None:
    (text,) = judged(recipe_findings(segmentation_recipe(*overrides)), "tiny")
    assert sentence in text


def test_published_recipes_pass() -> None:
    assert recipe_findings(segmentation_recipe()) == recipe_findings(detection_recipe()) == []
