"""The epoch plan: deterministic, disjoint over ranks, at the recipe's ratio, even over objects and cases."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxray.core.errors import DataError
from voxray.core.recipe import PatchConfig
from voxray.recipes import read_recipe
from voxray.sampling import Read, Schedule, TileIndex, default_steps, epoch_plan, num_rounds

EMPTY = np.zeros(0, np.int64)


def object_index(objects_per_tile: list[list[int]], case: list[int]) -> TileIndex:
    """Tiles with these objects in these cases; the store's rows are the places plus 100."""
    return TileIndex(
        row=np.arange(len(case)) + 100,
        case=np.array(case),
        object_tile=np.array([tile for tile, objects in enumerate(objects_per_tile) for _ in objects], np.int64),
        object_id=np.array([one for objects in objects_per_tile for one in objects], np.int64),
        label_tile=EMPTY,
        label_value=EMPTY,
        label_voxels=EMPTY,
    )


def reads_of(plan: list[list[list[Read]]]) -> list[Read]:
    return [read for ranks in plan for reads in ranks for read in reads]


INDEX = object_index([[0], [0, 1], [], [2], [], []], [0, 0, 0, 1, 1, 2])


@settings(max_examples=50, deadline=None)
@given(
    batch=st.integers(1, 7),
    world=st.integers(1, 4),
    steps=st.integers(1, 40),
    per_tile=st.integers(1, 5),
    share=st.floats(0, 1),
    epoch=st.integers(0, 1000),
)
def test_shape_ratio_and_determinism(
    batch: int, world: int, steps: int, per_tile: int, share: float, epoch: int
) -> None:
    config = PatchConfig(size_vox=(8, 8, 8), per_tile=per_tile, foreground=share)
    schedule = Schedule(seed=3, steps_per_epoch=steps, batch_size=batch, num_slots=world)
    plan = epoch_plan(INDEX, config, schedule, epoch)
    assert len(plan) == num_rounds(schedule, config) == -(-steps // per_tile)
    assert all(len(ranks) == world and all(len(reads) == batch for reads in ranks) for ranks in plan)
    reads = reads_of(plan)
    assert abs(sum(read.foreground for read in reads) - share * len(reads)) <= 1
    assert all(
        abs(sum(read.foreground for read in batch) - share * len(batch)) < 1 for ranks in plan for batch in ranks
    )
    assert all(read.tile in (100, 101, 103) for read in reads if read.foreground)
    assert len({read.seed for read in reads}) == len(reads)
    assert plan == epoch_plan(INDEX, config, schedule, epoch)
    assert plan != epoch_plan(INDEX, config, schedule, epoch + 1)


def test_objects_come_up_equally_often_however_many_tiles_hold_them() -> None:
    index = object_index([[0], [0], [0], [1, 2, 3]], [0, 0, 0, 1])
    config = PatchConfig(size_vox=(8, 8, 8), per_tile=1, foreground=1.0)
    plan = epoch_plan(index, config, Schedule(seed=0, steps_per_epoch=100, batch_size=4), 0)
    tiles = Counter(read.tile for read in reads_of(plan))
    assert tiles[103] == 300
    assert sum(tiles[row] for row in (100, 101, 102)) == 100
    assert min(tiles.values()) > 20


def test_background_comes_from_every_case_equally_often() -> None:
    config = PatchConfig(size_vox=(8, 8, 8), per_tile=2, foreground=0.0)
    plan = epoch_plan(INDEX, config, Schedule(seed=0, steps_per_epoch=100, batch_size=6), 5)
    cases = Counter(int(INDEX.case[read.tile - 100]) for read in reads_of(plan))
    assert cases == {0: 100, 1: 100, 2: 100}


def test_labels_are_drawn_by_case_then_class_then_voxels() -> None:
    index = TileIndex(
        row=np.arange(4),
        case=np.array([0, 0, 1, 1]),
        object_tile=EMPTY,
        object_id=EMPTY,
        label_tile=np.array([0, 1, 1, 2]),
        label_value=np.array([1, 1, 2, 1]),
        label_voxels=np.array([300, 100, 5, 7]),
    )
    config = PatchConfig(size_vox=(8, 8, 8), per_tile=1, foreground=1.0)
    plan = epoch_plan(index, config, Schedule(seed=1, steps_per_epoch=4000, batch_size=2), 0)
    share = {tile: count / 8000 for tile, count in Counter(read.tile for read in reads_of(plan)).items()}
    assert share[2] == 0.5
    assert share[0] == pytest.approx(0.5 * 0.5 * 0.75, abs=0.02)
    assert share[1] == pytest.approx(0.5 * (0.5 * 0.25 + 0.5), abs=0.02)
    assert 3 not in share


def test_a_deck_is_not_repeated_before_it_is_through() -> None:
    index = object_index([[i] for i in range(24)], list(range(24)))
    config = PatchConfig(size_vox=(8, 8, 8), per_tile=4, foreground=0.5)
    plan = epoch_plan(index, config, Schedule(seed=0, steps_per_epoch=24, batch_size=4, num_slots=2), 0)
    for foreground in (True, False):
        assert sorted(read.tile for read in reads_of(plan) if read.foreground is foreground) == list(range(100, 124))


def test_no_foreground_anywhere_is_an_error() -> None:
    index = object_index([[], []], [0, 1])
    schedule = Schedule(seed=0, steps_per_epoch=1, batch_size=2)
    with pytest.raises(DataError, match="none of the training cases holds an object"):
        epoch_plan(index, PatchConfig(size_vox=(8, 8, 8)), schedule, 0)
    assert epoch_plan(index, PatchConfig(size_vox=(8, 8, 8), foreground=0), schedule, 0)


def test_default_steps_see_per_tile_patches_of_every_case() -> None:
    recipe = read_recipe("lung_nodule", ["optim.batch_size=4", "patch.per_tile=4"])
    if recipe.optim.steps_per_epoch is None:
        assert default_steps(recipe, 10, 2) == 5
        assert default_steps(recipe, 1, 4) == 1
    assert default_steps(read_recipe("lung_nodule", ["optim.steps_per_epoch=17"]), 10, 2) == 17
