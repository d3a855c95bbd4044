"""Placing workers: as many CPUs as there are, and always some for the tasks that feed them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxray.pipelines.placement import Placement, fitting_share

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
