"""Search spaces: what is wrong with one is said before anything runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conftest import REPOSITORY
from voxray.core.config import Setting
from voxray.core.errors import ConfigError
from voxray.core.recipe import DetectionMerge, Recipe, SegmentationMerge
from voxray.recipes import read_recipe
from voxray.sweeping.search_space import Space, as_overrides, read_space


def space_of(tmp_path: Path, fields: str, recipe: Recipe | None = None) -> Space:
    path = tmp_path / "space.toml"
    path.write_text(f"[fields]\n{fields}\n")
    return read_space(path, recipe or read_recipe("lung_nodule"))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ('"merge.tile_iuo" = { low = 0.1, high = 0.5 }', "merge.tile_iuo: no such field; did you mean 'tile_iou'?"),
        ('"merg.tile_iou" = { low = 0.1, high = 0.5 }', "merg: no such field; did you mean 'merge'?"),
        ('"merge.tile_iou" = { low = 0.1, high = 1.5 }', "merge.tile_iou: must be less than or equal to 1, got 1.5"),
        ('"merge.tile_iou" = { low = 0.6, high = 0.5 }', "low must be below high, got 0.6 and 0.5"),
        ('"merge.tile_iou" = { low = 0.0, high = 0.5, log = true }', "low must be above 0 with log, got 0.0"),
        ('"merge.tile_iou" = { high = 0.5 }', "needs low and high, or choices"),
        ('"merge.tile_iou" = { low = 0.1, high = 0.5, grid = [0.7] }', "grid values must lie within low and high"),
        ('"merge.tile_iou" = { low = 0.1, high = 0.5, step = 0.9 }', "step must be above 0, fit into the range"),
        ('"merge.tile_iou" = { low = 0.1, hihg = 0.5 }', "hihg: no such field; did you mean 'high'?"),
        ('"merge.method" = { choices = ["nms", "nsm"] }', "merge.method: must be 'nms', 'weighted_nms' or 'wbc'"),
        ('"merge.method" = { choices = ["nms"] }', "choices must be two or more different values"),
        ('"merge.method" = { choices = ["nms", "wbc"], low = 1 }', "has choices, so low, high, step, log and grid"),
        ('"merge.max_detections" = { low = 1.5, high = 9.5 }', "merge.max_detections: must be a valid integer"),
        ('"merge" = { low = 1.5, high = 9.5 }', "must be a group and a field of it"),
        ('"merge.score_floor" = { low = 0.001, high = 0.5 }', "candidates below inference.candidate_floor (0.02)"),
        ('"inference.overlap" = { low = 0.25, high = 0.5 }', "give choices, not a range"),
        ('"merge.max_detections" = { low = 20, high = 90, step = 0.5 }', "holds whole numbers, so step must be one"),
        ('"merge.tile_iou" = { choices = [0.1, true] }', "True is not the kind of value that it holds (1.0)"),
        ('"merge.tile_iou" = { low = nan, high = 0.5 }', "low: must be a finite number, got nan"),
        ('"merge.tile_iou" = 0.3', "merge.tile_iou: must be a group of fields, got 0.3"),
        ("", 'fields: names none; give one or more, such as "merge.tile_iou"'),
    ],
)
def test_a_space_that_does_not_fit_is_refused_in_a_sentence(tmp_path: Path, fields: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)) as caught:
        space_of(tmp_path, fields)
    assert str(caught.value).startswith(str(tmp_path / "space.toml"))
    assert "\n" not in str(caught.value)


def test_thresholds_are_by_class_and_not_below_what_is_kept(tmp_path: Path) -> None:
    spleen = read_recipe("spleen")
    space = space_of(tmp_path, '"merge.thresholds.spleen" = { low = 0.1, high = 0.9 }', spleen)
    how = space.merge_of({"merge.thresholds.spleen": 0.3})
    assert isinstance(how, SegmentationMerge)
    assert how.thresholds == {"spleen": 0.3}
    with pytest.raises(ConfigError, match=r"probabilities below 0.01 are not kept"):
        space_of(tmp_path, '"merge.threshold" = { low = 0.001, high = 0.9 }', spleen)


def test_settings_become_merges_and_recipes(tmp_path: Path) -> None:
    fields = """
    "merge.tile_iou" = { low = 0.0, high = 0.6 }
    "merge.view_candidates" = { low = 10, high = 1000, log = true }
    "merge.method" = { choices = ["wbc", "nms"] }
    """
    space = space_of(tmp_path, fields)
    setting: Setting = {"merge.tile_iou": 0.4, "merge.view_candidates": 20, "merge.method": "wbc"}
    how = space.merge_of(setting)
    assert isinstance(how, DetectionMerge)
    assert (how.tile_iou, how.view_candidates, how.method, how.max_detections) == (0.4, 20, "wbc", 300)
    assert space.recipe_of(setting).merge == how
    assert space.whole == {"merge.view_candidates"}
    assert not space.trains
    assert space.present() is None  # view_candidates is None in the recipe
    assert as_overrides(setting) == ["merge.tile_iou=0.4", "merge.view_candidates=20", 'merge.method="wbc"']
    assert read_recipe("lung_nodule", as_overrides(setting)).merge == how
    assert space.fields["merge.view_candidates"].values() == (10, 25, 63, 158, 398, 1000)
    assert space.fields["merge.tile_iou"].values() == pytest.approx((0, 0.12, 0.24, 0.36, 0.48, 0.6))


def test_choices_of_the_inference_are_variants(tmp_path: Path) -> None:
    fields = '"merge.threshold" = { low = 0.1, high = 0.9 }\n"inference.overlap" = { choices = [0.25, 0.5] }'
    space = space_of(tmp_path, fields, read_recipe("spleen"))
    assert space.variants() == [{"inference.overlap": 0.25}, {"inference.overlap": 0.5}]
    assert not space.trains


@pytest.mark.parametrize(
    ("name", "recipe", "trains"),
    [("detection", "lung_nodule", False), ("segmentation", "spleen", False), ("optimiser", "spleen", True)],
)
def test_the_spaces_that_come_with_voxray_fit_their_recipes(name: str, recipe: str, trains: bool) -> None:
    space = read_space(REPOSITORY / "search_spaces" / f"{name}.toml", read_recipe(recipe))
    assert space.trains == trains
    assert space.file.about


def test_equal_spaces_have_equal_digests(tmp_path: Path) -> None:
    first = space_of(tmp_path, '"merge.tile_iou" = { low = 0.0, high = 0.5 }').digest
    assert space_of(tmp_path, '"merge.tile_iou" = { low = 0.0, high = 0.5 }').digest == first
    assert space_of(tmp_path, '"merge.tile_iou" = { low = 0.0, high = 0.6 }').digest != first
