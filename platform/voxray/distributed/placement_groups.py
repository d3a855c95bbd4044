"""What a training leaves behind in the cluster when it is stopped from outside: the room of its workers.

Ray Train gives that back through a helper that asks the dashboard of Ray whether the training lives. Where there is
no dashboard, as in a local Ray, it never learns that it does not, and the next training would wait for ever.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

from voxray.core.storage import Location, Place

NOTED = "placement_group"
"""In a training's folder: the placement group of its workers."""


def note_room(location: Location) -> None:
    """Notes in whose room this worker is."""
    from ray.util import get_current_placement_group

    group = get_current_placement_group()
    if group is not None:
        Place.of(location).write(NOTED, group.id.hex().encode())


def give_back_room(location: Location) -> None:
    """Gives back the room of a training that has ended, however it ended."""
    place = Place.of(location)
    if not place.exists(NOTED):
        return
    _remove(place.read(NOTED).decode())
    place.remove(NOTED)


def rooms() -> frozenset[str]:
    """The placement groups of this job, of which all trainings are that it has started, by their ids."""
    import ray
    from ray.util import placement_group_table

    job = ray.get_runtime_context().get_job_id()
    there = placement_group_table().items()
    return frozenset(name for name, one in there if name.endswith(job) and one["state"] != "REMOVED")


def give_back_rooms(*, but: Collection[str]) -> None:
    """Gives back all room of this job, some excepted: also that in which no worker had begun to note it."""
    for name in rooms().difference(but):
        _remove(name)


def _remove(name: str) -> None:
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    with suppress(Exception):  # it was given back, or its cluster is gone
        remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))
