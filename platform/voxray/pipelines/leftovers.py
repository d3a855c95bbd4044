"""What a training leaves behind in the cluster when it is stopped from outside: the room of its workers.

Ray Train gives that back through a helper that asks the dashboard of Ray whether the training lives. Where there is
no dashboard, as in a local Ray, it never learns that it does not, and the next training would wait for ever.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import Any

from voxray.place import Location, Place

NOTED = "placement_group"
"""In a training's folder: the placement group of its workers."""


def note_room(location: Location) -> None:
    """Notes in whose room this worker is."""
    util: Any = importlib.import_module("ray.util")
    group = util.get_current_placement_group()
    if group is not None:
        Place.of(location).write(NOTED, group.id.hex().encode())


def give_back_room(location: Location) -> None:
    """Gives back the room of a training that has ended, however it ended."""
    place = Place.of(location)
    if not place.exists(NOTED):
        return
    groups: Any = importlib.import_module("ray.util.placement_group")
    ids: Any = importlib.import_module("ray._raylet").PlacementGroupID
    with suppress(Exception):  # it was given back, or its cluster is gone
        groups.remove_placement_group(groups.PlacementGroup(ids.from_hex(place.read(NOTED).decode())))
    place.remove(NOTED)
