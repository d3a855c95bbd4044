"""The epoch plan: deterministic, disjoint over ranks, at the recipe's ratio, even over objects and cases."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace

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


@st.composite
def uneven_indices(draw: st.DrawFn) -> TileIndex:
    """Cases of 1 to 10 tiles, each tile with up to two of its case's labels."""
    sizes = draw(st.lists(st.integers(1, 10), min_size=2, max_size=12))
    case = np.repeat(np.arange(len(sizes)), sizes)
    labels = [draw(st.sets(st.integers(1, 3), max_size=2)) for _ in case]
    labels[0] = labels[0] or {1}
    entries = [(tile, value) for tile, values in enumerate(labels) for value in sorted(values)]
    return TileIndex(
        row=np.arange(len(case)),
        case=case,
        object_tile=EMPTY,
        object_id=EMPTY,
        label_tile=np.array([tile for tile, _ in entries]),
        label_value=np.array([value for _, value in entries]),
        label_voxels=np.arange(1, len(entries) + 1),
    )


@settings(max_examples=50, deadline=None)
@given(index=uneven_indices(), num_slots=st.integers(1, 4), batch=st.integers(1, 4), epoch=st.integers(0, 99))
def test_the_order_is_fixed_mixes_cases_and_needs_no_shuffled_copy(
    index: TileIndex, num_slots: int, batch: int, epoch: int
) -> None:
    """For a global batch the order is a function of (seed, epoch); whatever their size, cases come equally often, and
    none comes again before all others have."""
    config = PatchConfig(size_vox=(8, 8, 8), per_tile=2, foreground=0.5)
    schedule = Schedule(seed=1, steps_per_epoch=40, batch_size=batch, num_slots=num_slots)
    plan = epoch_plan(index, config, schedule, epoch)
    assert plan == epoch_plan(index, config, schedule, epoch)
    for foreground in (True, False):
        cases = [int(index.case[read.tile]) for read in reads_of(plan) if read.foreground is foreground]
        among = sorted(set(index.case[index.label_tile].tolist()) if foreground else set(index.case.tolist()))
        decks = [cases[first : first + len(among)] for first in range(0, len(cases), len(among))]
        assert all(sorted(deck) == among for deck in decks[:-1])
        assert len(set(decks[-1])) == len(decks[-1])


def test_the_plan_of_a_given_seed_stays_what_it_was() -> None:
    """Runs that go on under a later voxray draw what they would have drawn."""
    labelled = replace(
        INDEX,
        object_tile=EMPTY,
        object_id=EMPTY,
        label_tile=np.array([0, 1, 1, 3, 4]),
        label_value=np.array([1, 1, 2, 1, 2]),
        label_voxels=np.array([30, 10, 5, 7, 9]),
    )
    schedule = Schedule(seed=3, steps_per_epoch=4, batch_size=3, num_slots=2)
    found = {}
    for name, index in (("objects", INDEX), ("labels", labelled)):
        plan = epoch_plan(index, PatchConfig(size_vox=(8, 8, 8), per_tile=2), schedule, 7)
        found[name] = [read.tile - 100 for read in reads_of(plan)], reads_of(plan)[-1].seed
    assert found == {
        "objects": ([3, 4, 5, 0, 1, 2, 1, 0, 5, 1, 3, 4], 1894120601086238122),
        "labels": ([1, 3, 5, 4, 4, 0, 0, 4, 0, 4, 1, 5], 504182384002813288),
    }


def test_a_plan_of_a_hundred_thousand_cases_costs_a_fraction_of_a_second() -> None:
    """A million tiles and 25,000 draws."""
    number = 100_000
    case = np.repeat(np.arange(number), 10)
    index = replace(
        object_index([], []),
        row=np.arange(len(case)),
        case=case,
        label_tile=np.repeat(np.arange(len(case)), 3),
        label_value=np.tile([1, 2, 3], len(case)),
        label_voxels=np.arange(1, 3 * len(case) + 1),
    )
    begin = time.process_time()
    schedule = Schedule(seed=1, steps_per_epoch=25_000, batch_size=2, num_slots=2)
    plan = epoch_plan(index, PatchConfig(size_vox=(8, 8, 8), per_tile=4), schedule, 0)
    assert len(reads_of(plan)) == 25_000
    assert time.process_time() - begin < 5
