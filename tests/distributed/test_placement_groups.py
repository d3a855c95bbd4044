"""The room of trainings that were stopped, on a real local Ray."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

import pytest

from voxray.distributed.placement_groups import NOTED, give_back_room, give_back_rooms, note_room, rooms


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_room_is_given_back_once(tmp_path: Path) -> None:
    ray: Any = importlib.import_module("ray")
    util: Any = importlib.import_module("ray.util")
    strategies: Any = importlib.import_module("ray.util.scheduling_strategies")
    before = ray.cluster_resources()["CPU"]
    group = util.placement_group([{"CPU": 1}])
    ray.get(group.ready(), timeout=60)
    within = strategies.PlacementGroupSchedulingStrategy(group)
    ray.get(ray.remote(num_cpus=1)(note_room).options(scheduling_strategy=within).remote(str(tmp_path)), timeout=60)
    assert (tmp_path / NOTED).exists()
    give_back_room(str(tmp_path))
    until = time.monotonic() + 30
    while util.placement_group_table(group)["state"] != "REMOVED":
        assert time.monotonic() < until
        time.sleep(0.1)
    assert not (tmp_path / NOTED).exists()
    give_back_room(str(tmp_path))
    assert ray.cluster_resources()["CPU"] == before


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
def test_rooms_that_nobody_noted_are_given_back() -> None:
    ray: Any = importlib.import_module("ray")
    util: Any = importlib.import_module("ray.util")
    kept = util.placement_group([{"CPU": 0.5}])
    before = rooms()
    left = util.placement_group([{"CPU": 0.5}])
    ray.get([kept.ready(), left.ready()], timeout=60)
    assert {kept.id.hex()} <= before
    assert rooms() - before == {left.id.hex()}
    give_back_rooms(but=before)
    until = time.monotonic() + 30
    while rooms() != before:
        assert time.monotonic() < until
        time.sleep(0.1)
    util.remove_placement_group(kept)


def test_nothing_is_done_where_nothing_was_noted(tmp_path: Path) -> None:
    give_back_room(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
