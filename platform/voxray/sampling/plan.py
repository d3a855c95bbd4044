"""Which tiles an epoch reads and what is cut from each: a pure function of (seed, epoch), alike for every worker.

An epoch is a row of *rounds*. In a round a slot (a worker's part of the global batch) reads `batch_size`
tiles and cuts `per_tile` patches from each, one for each of the round's `per_tile` batches: a tile is read and
decoded once, and yet every batch mixes `batch_size` tiles, foreground and background at the recipe's ratio (with a
remainder, the ratio holds over the rounds).

Foreground tiles are drawn so that in detection every *object* comes up equally often; in segmentation every *case*,
within a case every class, and within a class tiles by their voxels of it. Background tiles: every case equally often,
within a case any tile. Nothing comes up again before everything has come up once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64
from numpy.random import Generator
from numpy.typing import NDArray

from voxray.core.errors import DataError
from voxray.core.recipe import PatchConfig, Recipe

Ints = NDArray[np.int64]

_PLAN_STREAM = 0x7011


@dataclass(frozen=True)
class Grouped:
    """n numbers in k groups, as flat arrays: the numbers of group i are ``members[starts[i]:starts[i + 1]]``."""

    members: Int64[np.ndarray, " n"]
    starts: Int64[np.ndarray, " k+1"]

    @staticmethod
    def of(*keys: Ints) -> Grouped:
        """The places of n items by their keys, the first key slowest, keys and places in ascending order."""
        order = np.lexsort(keys[::-1])
        differs = np.zeros(max(len(order) - 1, 0), bool)
        for key in keys:
            differs |= np.diff(key[order]) != 0
        starts = np.concatenate([[0], np.flatnonzero(differs) + 1, [len(order)]]) if len(order) else np.zeros(1)
        return Grouped(order, starts.astype(np.int64))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def draw(self, groups: Ints, rng: Generator) -> Ints:
        """A random member of each of those groups."""
        return np.asarray(self.members[self.starts[groups] + rng.integers(0, np.diff(self.starts)[groups])])


@dataclass(frozen=True)
class TileIndex:
    """What a plan must know of n tiles: their rows in the store, their cases, and what is in them, as flat arrays.

    ``object_tile[i]`` is the place (0 to n - 1) of a tile that holds object ``object_id[i]``; an object may lie in
    several tiles. ``label_tile[i]`` has ``label_voxels[i]`` voxels of label ``label_value[i]``.
    """

    row: Int64[np.ndarray, " n"]
    case: Int64[np.ndarray, " n"]
    object_tile: Int64[np.ndarray, " o"]
    object_id: Int64[np.ndarray, " o"]
    label_tile: Int64[np.ndarray, " l"]
    label_value: Int64[np.ndarray, " l"]
    label_voxels: Int64[np.ndarray, " l"]

    @cached_property
    def tiles_of_case(self) -> Grouped:
        """For each case, the places of its tiles."""
        return Grouped.of(self.case)

    @cached_property
    def tiles_of_object(self) -> Grouped:
        """For each object, the places of the tiles that hold it."""
        found = Grouped.of(self.object_id)
        return Grouped(self.object_tile[found.members], found.starts)

    @cached_property
    def entries_of_label(self) -> Grouped:
        """For each label of each case, case by case, its entries: places in ``label_tile``."""
        return Grouped.of(self.case[self.label_tile], self.label_value)

    @cached_property
    def labels_of_case(self) -> Grouped:
        """For each case with labels, its groups of ``entries_of_label``."""
        first = self.entries_of_label.members[self.entries_of_label.starts[:-1]]
        return Grouped.of(self.case[self.label_tile[first]])


@dataclass(frozen=True)
class Schedule:
    """What a training draws in an epoch. Each step has `num_slots` batches of `batch_size` patches.

    A slot is what one worker computes where there are as many workers as slots; fewer workers share the slots.
    """

    seed: int
    steps_per_epoch: int
    batch_size: int
    num_slots: int = 1


@dataclass(frozen=True, slots=True)
class Read:
    """A tile to be read (its row in the store), and the kind and the seed of the patches to be cut from it."""

    tile: int
    foreground: bool
    seed: int


def default_steps(recipe: Recipe, num_cases: int, num_slots: int) -> int:
    """Steps per epoch: the recipe's, or as many as give `per_tile` patches of every case on average."""
    if recipe.optim.steps_per_epoch is not None:
        return recipe.optim.steps_per_epoch
    return max(1, -(-num_cases * recipe.patch.per_tile // (recipe.optim.batch_size * num_slots)))


def num_rounds(schedule: Schedule, config: PatchConfig) -> int:
    """Rounds of an epoch; of the last one's batches only those that complete the epoch's steps are wanted."""
    return -(-schedule.steps_per_epoch // config.per_tile)


def epoch_plan(index: TileIndex, config: PatchConfig, schedule: Schedule, epoch: int) -> list[list[list[Read]]]:
    """``plan[round][slot]``: the `batch_size` tiles that a slot reads in a round, foreground first."""
    rng = np.random.default_rng([_PLAN_STREAM, schedule.seed, epoch])
    slots = num_rounds(schedule, config) * schedule.num_slots
    size = schedule.batch_size
    ends = np.floor(np.arange(slots + 1) * size * config.foreground + 1e-9).astype(np.int64)
    is_foreground = np.arange(size) < np.diff(ends)[:, None]
    tiles = np.empty((slots, size), np.int64)
    tiles[is_foreground] = index.row[_foreground(index, int(ends[-1]), rng)]
    tiles[~is_foreground] = index.row[_background(index, slots * size - int(ends[-1]), rng)]
    columns = tiles, is_foreground, rng.integers(1 << 62, size=(slots, size))
    made = [
        [Read(*read) for read in zip(*slot, strict=True)]
        for slot in zip(*map(np.ndarray.tolist, columns), strict=True)
    ]
    return [made[first : first + schedule.num_slots] for first in range(0, slots, schedule.num_slots)]


def _background(index: TileIndex, number: int, rng: Generator) -> Ints:
    cases = index.tiles_of_case
    return cases.draw(_deck(len(cases), number, rng), rng)


def _foreground(index: TileIndex, number: int, rng: Generator) -> Ints:
    if number and not len(index.object_id) + len(index.label_value):
        raise DataError(
            "sampling.no_foreground",
            "none of the training cases holds an object or a labelled voxel.",
            remedy="Check the annotations with `voxray check`, or set patch.foreground=0.",
        )
    if len(index.object_id):
        objects = index.tiles_of_object
        return objects.draw(_deck(len(objects), number, rng), rng)
    cases = _deck(len(index.labels_of_case), number, rng).tolist()
    return np.array([_tile_of_label(index, case, rng) for case in cases], np.int64)


def _tile_of_label(index: TileIndex, case: int, rng: Generator) -> int:
    """`Generator.choice` with probabilities, without its checks: they take longer than all the rest of a plan."""
    of_case, of_label = index.labels_of_case, index.entries_of_label
    label = of_case.members[rng.integers(of_case.starts[case], of_case.starts[case + 1])]
    entries = of_label.members[of_label.starts[label] : of_label.starts[label + 1]]
    voxels = index.label_voxels[entries]
    below = (voxels / voxels.sum()).cumsum()
    return int(index.label_tile[entries[(below / below[-1]).searchsorted(rng.random(), side="right")]])


def _deck(size: int, number: int, rng: Generator) -> Ints:
    """`number` draws from 0 to size - 1: shuffled decks one after another."""
    decks = [rng.permutation(size) for _ in range(-(-number // max(size, 1)))]
    return np.concatenate([np.zeros(0, np.int64), *decks])[:number]
