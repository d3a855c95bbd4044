"""Objects that can be a target, held to what the sampler and the loss themselves make of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.random import Generator

from support.tiny_training import detection_recipe
from voxray.boxes.assign import assign, best_overlaps
from voxray.core.batch import IGNORED
from voxray.core.case import Case, Tile
from voxray.core.recipe import DetectionLoss, Recipe
from voxray.core.volume import Grid, Volume
from voxray.sampling import cut_patch, cut_tiles, own_objects
from voxray.sampling.targets import TiledObjects, largest_sides_vox, patch_levels, possible_targets

SIDE = 72
GRID = Grid((SIDE,) * 3, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))


def case_of(boxes: list[list[float]]) -> Case:
    """An empty scan with these objects."""
    image = Volume(np.zeros(GRID.shape, np.int16), GRID)
    return Case("c", "c", image, np.array(boxes, float).reshape(-1, 6), np.zeros(len(boxes), np.int64))


def cube(centre: float, side: float) -> list[float]:
    """A box about a place on the diagonal."""
    return [centre - side / 2] * 3 + [centre + side / 2] * 3


def tiled(case: Case, recipe: Recipe) -> tuple[TiledObjects, list[Tile]]:
    """The case's objects in its tiles, and these."""
    tiles, own = list(cut_tiles(case, recipe)), own_objects(case, recipe)
    number = np.concatenate(own)
    starts = np.concatenate(
        [np.repeat([tile.start], len(mine), axis=0) for tile, mine in zip(tiles, own, strict=True)]
    )
    shapes = np.concatenate(
        [np.repeat([tile.voxels.shape], len(mine), axis=0) for tile, mine in zip(tiles, own, strict=True)]
    )
    return TiledObjects(number, case.boxes[number] - np.tile(starts, 2), shapes), tiles


def sampled(tiles: list[Tile], recipe: Recipe, rng: Generator, number: int = 60) -> bool:
    """Whether any of so many foreground patches has an object for a target that some anchor answers."""
    assert isinstance(recipe.loss, DetectionLoss)
    full = [tile for tile in tiles if tile.has_foreground]
    for _ in range(number):
        patch = cut_patch(full[rng.integers(len(full))], recipe, rng, foreground=True)
        boxes, classes = torch.from_numpy(patch.boxes)[None], torch.from_numpy(patch.classes)[None]
        found = assign(boxes, classes, patch_levels(recipe), num_candidates=recipe.loss.atss_candidates)
        if (patch.classes != IGNORED).any() and bool(found.is_positive.any()):
            return True
    return False


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("side", [3.0, 10.0, 16.0, 19.5, 22.0, 43.2])
@pytest.mark.parametrize("centre", [36.0, 13.3])
def test_what_can_be_a_target_is_what_the_sampler_and_the_anchors_say(
    side: float, centre: float, whole: bool, rng: Generator
) -> None:
    case = case_of([cube(max(centre, side / 2), side)])
    recipe = detection_recipe("patch.margin_vox=[40,40,40]", f"patch.whole_boxes={str(whole).lower()}")
    objects, tiles = tiled(case, recipe)
    found = possible_targets(objects, 1, recipe)
    assert bool(found.possible[0]) == sampled(tiles, recipe, rng)
    assert bool(found.is_kept[0]) == (not whole or side < 20.2)


def test_the_largest_sides_are_where_half_of_an_object_fits() -> None:
    recipe = detection_recipe()
    assert largest_sides_vox(recipe) == (20, 20, 20)
    assert 16**3 / 20**3 >= 0.5 > 16**3 / 21**3
    assert largest_sides_vox(detection_recipe("patch.whole_boxes=false")) is None


def test_an_object_that_a_tile_cuts_is_judged_by_all_of_it() -> None:
    """A tile of a patch's size would pass its own middle off as an object that fills it."""
    recipe = detection_recipe("patch.margin_vox=[0,0,0]")
    case = case_of([cube(36, 43.2), cube(12, 8)])
    found = possible_targets(tiled(case, recipe)[0], 2, recipe)
    assert found.is_kept.tolist() == [False, True]


def test_an_object_without_a_tile_is_told_apart() -> None:
    nothing = TiledObjects(np.zeros(0, np.int64), np.zeros((0, 6)), np.zeros((0, 3), np.int64))
    found = possible_targets(nothing, 2, detection_recipe())
    assert not found.is_tiled.any()
    assert not found.possible.any()


@pytest.mark.parametrize(("base", "possible"), [(8, True), (0.2, False), (400, False)])
def test_anchors_far_from_the_objects_answer_none(base: float, possible: bool) -> None:
    recipe = detection_recipe(f"anchors={{base_shapes_vox=[[{base},{base},{base}]], level_scales=[1,2,4]}}")
    found = possible_targets(tiled(case_of([cube(30, 9)]), recipe)[0], 1, recipe)
    assert found.is_kept[0]
    assert bool(found.possible[0]) is possible


def test_the_best_overlap_is_that_of_the_positive_anchors(rng: Generator) -> None:
    recipe = detection_recipe()
    low = rng.uniform(0, 8, (20, 3))
    boxes = torch.from_numpy(np.concatenate([low, low + rng.uniform(2, 8, (20, 3))], axis=1))
    levels = patch_levels(recipe)
    found = best_overlaps(boxes, levels, num_candidates=4)
    for box, best in zip(boxes, found, strict=True):
        one = assign(box[None, None].float(), torch.zeros(1, 1, dtype=torch.int64), levels, num_candidates=4)
        assert (best > 0) == one.is_positive.any()
    assert len(best_overlaps(boxes[:0], levels, num_candidates=4)) == 0
