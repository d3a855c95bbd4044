"""Tiles for shards, and patches for training: what is cut from where, as pure functions of a seed."""

from __future__ import annotations

from voxray.sampling.patches import Patch, collate, cut_patch
from voxray.sampling.plan import Read, Schedule, TileIndex, default_steps, epoch_plan, num_rounds
from voxray.sampling.tiles import cut_tiles, own_objects, tile_shape

__all__ = [
    "Patch",
    "Read",
    "Schedule",
    "TileIndex",
    "collate",
    "cut_patch",
    "cut_tiles",
    "default_steps",
    "epoch_plan",
    "num_rounds",
    "own_objects",
    "tile_shape",
]
