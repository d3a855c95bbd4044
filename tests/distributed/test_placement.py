"""Placing workers: as many CPUs as there are, and always some for the tasks that feed them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxray.distributed.placement import Placement, fitting_share, fitting_trainings

Nodes = list[tuple[float, float]]


@pytest.mark.parametrize(
    ("nodes", "workers", "on_gpu", "expected"),
    [
        ([(4, 0)], 1, False, 3.0),
        ([(4, 0)], 2, False, 1.0),
        ([(4, 0)], 6, False, 0.25),  # 6 x 0.25 for feeding leaves no more
        ([(4, 0)], 40, False, None),
        ([(1, 0)], 1, False, None),
        ([(16, 0), (16, 0)], 2, False, 12.0),
        ([(16, 0), (16, 0)], 1, False, 16.0),
        ([(64, 8)], 8, True, 6.0),
        ([(64, 8)], 9, True, None),
        ([(8, 0), (8, 1), (8, 1)], 2, True, 8.0),
        ([(8, 4)], 4, True, 1.0),
    ],
)
def test_shares_by_hand(nodes: Nodes, workers: int, on_gpu: bool, expected: float | None) -> None:
    assert fitting_share(nodes, workers, on_gpu=on_gpu) == expected


@given(
    nodes=st.lists(st.tuples(st.integers(0, 64), st.integers(0, 8)), min_size=1, max_size=4),
    workers=st.integers(1, 20),
    on_gpu=st.booleans(),
)
def test_workers_fit_on_nodes_and_leave_room(nodes: list[tuple[int, int]], workers: int, on_gpu: bool) -> None:
    share = fitting_share([(float(cpus), float(gpus)) for cpus, gpus in nodes], workers, on_gpu=on_gpu)
    if share is None:
        return
    left, waiting = [[float(cpus), float(gpus)] for cpus, gpus in nodes], workers
    for node in left:
        while waiting and node[0] >= share and (not on_gpu or node[1] >= 1):
            node[0] -= share
            node[1] -= 1
            waiting -= 1
    assert waiting == 0
    assert sum(cpus for cpus, _ in left) >= max(1.0, 0.25 * workers)


def test_resources_have_rays_names() -> None:
    assert Placement(2, 3.0, on_gpu=True).resources() == {"CPU": 3.0, "GPU": 1.0}
    assert Placement(2, 0.5, on_gpu=False).resources() == {"CPU": 0.5}


@pytest.mark.parametrize(
    ("nodes", "most", "workers", "on_gpu", "expected"),
    [
        ([(4, 0)], 5, 1, False, 1),  # a laptop with two cores: one after the other
        ([(16, 0)], 5, 1, False, 3),
        ([(64, 0)], 5, 1, False, 5),
        ([(16, 0)] * 4, 10, 2, False, 7),
        ([(16, 8)], 5, 1, True, 5),
        ([(16, 8)], 5, 2, True, 4),
        ([(16, 1)], 5, 1, True, 1),
        ([(2, 8)], 5, 1, True, 1),  # GPUs that nobody could feed
    ],
)
def test_trainings_side_by_side_have_what_each_needs(
    nodes: Nodes, most: int, workers: int, on_gpu: bool, expected: int
) -> None:
    assert fitting_trainings(nodes, most, workers, on_gpu=on_gpu) == expected


def test_a_training_that_shares_its_cores_takes_no_more_threads_than_its_part() -> None:
    assert Placement(1, 6.0, on_gpu=False, shared=True).max_threads == 6
    assert Placement(2, 0.5, on_gpu=False, shared=True).max_threads == 1
    assert Placement(2, 6.0, on_gpu=False).max_threads is None
