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
    def tiles_of_case(self) -> list[Ints]:
        """For each case, the places of its tiles."""
        return _groups(self.case)

    @cached_property
    def tiles_of_object(self) -> list[Ints]:
        """For each object, the places of the tiles that hold it."""
        return [self.object_tile[group] for group in _groups(self.object_id)]

    @cached_property
    def labels_of_case(self) -> list[list[Ints]]:
        """For each case with labels, for each of its labels, the entries (places in ``label_tile``) of that label."""
        by_case = _groups(self.case[self.label_tile])
        return [[entries[group] for group in _groups(self.label_value[entries])] for entries in by_case]


@dataclass(frozen=True)
class Schedule:
    """What a training draws in an epoch. Each step has `num_slots` batches of `batch_size` patches.

    A slot is what one worker computes where there are as many workers as slots; fewer workers share the slots.
    """

    seed: int
    steps_per_epoch: int
    batch_size: int
    num_slots: int = 1


@dataclass(frozen=True)
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
    num_foreground = np.diff(ends)
    foreground = iter(_foreground(index, int(ends[-1]), rng))
    background = iter(_background(index, slots * size - int(ends[-1]), rng))
    seeds = iter(rng.integers(1 << 62, size=slots * size).tolist())
    made = [
        [
            Read(int(index.row[next(foreground if place < count else background)]), place < int(count), next(seeds))
            for place in range(size)
        ]
        for count in num_foreground
    ]
    return [made[first : first + schedule.num_slots] for first in range(0, slots, schedule.num_slots)]


def _background(index: TileIndex, number: int, rng: Generator) -> list[int]:
    cases = index.tiles_of_case
    return [int(rng.choice(cases[case])) for case in _deck(len(cases), number, rng)]


def _foreground(index: TileIndex, number: int, rng: Generator) -> list[int]:
    if number and not len(index.object_id) + len(index.label_value):
        raise DataError(
            "sampling.no_foreground",
            "none of the training cases holds an object or a labelled voxel.",
            remedy="Check the annotations with `voxray check`, or set patch.foreground=0.",
        )
    if len(index.object_id):
        objects = index.tiles_of_object
        return [int(rng.choice(objects[one])) for one in _deck(len(objects), number, rng)]
    cases = index.labels_of_case
    return [_tile_of_label(index, cases[case], rng) for case in _deck(len(cases), number, rng)]


def _tile_of_label(index: TileIndex, labels: list[Ints], rng: Generator) -> int:
    entries = labels[rng.integers(len(labels))]
    voxels = index.label_voxels[entries]
    return int(index.label_tile[rng.choice(entries, p=voxels / voxels.sum())])


def _deck(size: int, number: int, rng: Generator) -> list[int]:
    """`number` draws from 0 to size - 1: shuffled decks one after another."""
    decks = [rng.permutation(size) for _ in range(-(-number // max(size, 1)))]
    return np.concatenate(decks)[:number].tolist() if decks else []


def _groups(keys: Ints) -> list[Ints]:
    """The places of each key, for every key in ascending order."""
    if not len(keys):
        return []
    order = np.argsort(keys, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)
