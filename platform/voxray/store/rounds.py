"""The batches of a training, read from a store: a pure function of (seed, epoch, round, slot), wherever it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice, tee
from typing import Any, TypeVar

import numpy as np

from voxray.core.batch import PatchBatch
from voxray.core.recipe import Recipe
from voxray.core.storage import Place
from voxray.sampling import Read, Schedule, TileIndex, collate, cut_patch, epoch_plan, num_rounds
from voxray.store.reading import Store, TileFile, tile_at

T = TypeVar("T")


@dataclass(frozen=True)
class Round:
    """A stretch of an epoch's steps in one slot: batches `first` to `last` - 1 of one round of the plan."""

    epoch: int
    number: int
    slot: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class TileRead:
    """A tile to be read, where it lies, and the kind and the seed of the patches to be cut from it."""

    tile: TileFile
    foreground: bool
    seed: int


@dataclass(frozen=True, slots=True)
class StretchReads:
    """Batches `first` to `last` - 1 of a round as what is read for them; small, however large the store."""

    first: int
    last: int
    reads: tuple[TileRead, ...]

    def to_row(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> StretchReads:
        """The inverse of `to_row`."""
        reads = (TileRead(TileFile(**one["tile"]), one["foreground"], one["seed"]) for one in row["reads"])
        return StretchReads(row["first"], row["last"], tuple(reads))

    def batches(self, place: Place, recipe: Recipe) -> Iterator[PatchBatch]:
        """The batches, from the store at `place`; each tile is read once."""
        tiles = [tile_at(place, read.tile) for read in self.reads]
        for number in range(self.first, self.last):
            yield collate(
                [
                    cut_patch(tile, recipe, np.random.default_rng([read.seed, number]), foreground=read.foreground)
                    for read, tile in zip(self.reads, tiles, strict=True)
                ]
            )


@dataclass(frozen=True)
class PatchSource:
    """A store with what is to be drawn from it."""

    store: Store
    recipe: Recipe
    schedule: Schedule
    index: TileIndex
    _plans: dict[int, list[list[list[Read]]]] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def of(store: Store, recipe: Recipe, case_ids: Sequence[str], schedule: Schedule) -> PatchSource:
        """The source of these cases' patches; a store of other tiles than the recipe's is a ConfigError."""
        store.require(recipe)
        return PatchSource(store, recipe, schedule, store.index(case_ids))

    def plan(self, epoch: int) -> list[list[list[Read]]]:
        """The epoch's plan; the two last ones that were asked for are kept."""
        if epoch not in self._plans:
            while len(self._plans) > 1:
                self._plans.pop(next(iter(self._plans)))
            self._plans[epoch] = epoch_plan(self.index, self.recipe.patch, self.schedule, epoch)
        return self._plans[epoch]

    def reads(self, stretch: Round) -> StretchReads:
        """What making the stretch's batches needs of this source."""
        reads = self.plan(stretch.epoch)[stretch.number][stretch.slot]
        found = (TileRead(self.store.tile_file(read.tile), read.foreground, read.seed) for read in reads)
        return StretchReads(stretch.first, stretch.last, tuple(found))

    def batches(self, stretch: Round) -> Iterator[PatchBatch]:
        """The batches of a stretch; each of its tiles is read once."""
        return self.reads(stretch).batches(self.store.place, self.recipe)


def stretches(
    recipe: Recipe, schedule: Schedule, epochs: range, *, slots: Sequence[int] = (0,), start_step: int = 0
) -> Iterator[Round]:
    """The stretches of some epochs in order, slot by slot; of the first epoch without its first `start_step`."""
    per_tile, steps = recipe.patch.per_tile, schedule.steps_per_epoch
    for epoch in epochs:
        skip = start_step if epoch == epochs.start else 0
        for number in range(skip // per_tile, num_rounds(schedule, recipe.patch)):
            first = max(0, skip - number * per_tile)
            last = min(per_tile, steps - number * per_tile)
            if first < last:
                for slot in slots:
                    yield Round(epoch, number, slot, first, last)


def step_by_step(batches: Iterator[T], todo: Iterator[Round], num_slots: int) -> Iterator[T]:
    """The batches of those stretches (as `stretches` gives them) in the order of steps, each with all its slots.

    With several slots a round's batches are held until its last slot has come.
    """
    if num_slots == 1:
        yield from batches
        return
    for stretch in islice(todo, 0, None, num_slots):
        length = stretch.last - stretch.first
        held = [list(islice(batches, length)) for _ in range(num_slots)]
        for step in range(length):
            yield from (of_slot[step] for of_slot in held if step < len(of_slot))


def read_batches(
    source: PatchSource,
    epochs: range,
    *,
    slots: Sequence[int] = (0,),
    start_step: int = 0,
    num_steps: int | None = None,
) -> Iterator[PatchBatch]:
    """The batches of some epochs, read in this process; the same ones that the stream gives."""
    every, again = tee(stretches(source.recipe, source.schedule, epochs, slots=slots, start_step=start_step))
    ordered = step_by_step((batch for one in every for batch in source.batches(one)), again, len(slots))
    return islice(ordered, None if num_steps is None else num_steps * len(slots))
