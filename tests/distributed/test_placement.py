"""Placing workers: as many CPUs as there are, and always some for the tasks that feed them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxray.core.errors import ConfigError, ResourceError
from voxray.distributed.capacity import Capacity, NodeShape
from voxray.distributed.placement import (
    Placement,
    actor_cpus,
    fitting_share,
    fitting_trainings,
    place_workers,
    placement,
)


def shapes(nodes: list[tuple[float, float]]) -> list[NodeShape]:
    return [NodeShape(cpus, gpus) for cpus, gpus in nodes]


@pytest.mark.parametrize(
    ("nodes", "workers", "on_gpu", "expected"),
    [
        ([(4, 0)], 1, False, 3.0),
        ([(4, 0)], 2, False, 1.0),
        ([(4, 0)], 6, False, 0.25),  # 6 x 0.25 for feeding leaves no more
        ([(4, 0)], 40, False, None),
        ([(1, 0)], 1, False, None),
        ([(16, 0), (16, 0)], 2, False, 12.0),
        ([(16, 0), (16, 0)], 1, False, 12.0),  # its readers have room beside it
        ([(64, 8)], 8, True, 1.0),  # the other CPUs are for the readers
        ([(64, 8)], 9, True, None),
        ([(8, 0), (8, 1), (8, 1)], 2, True, 1.0),
        ([(2, 2)], 2, True, 0.5),
        ([(8, 4)], 4, True, 1.0),
    ],
)
def test_shares_by_hand(nodes: list[tuple[float, float]], workers: int, on_gpu: bool, expected: float | None) -> None:
    assert fitting_share(shapes(nodes), workers, on_gpu=on_gpu) == expected


@given(
    nodes=st.lists(st.tuples(st.integers(0, 64), st.integers(0, 8)), min_size=1, max_size=4),
    workers=st.integers(1, 20),
    on_gpu=st.booleans(),
)
def test_workers_fit_on_nodes_and_leave_room(nodes: list[tuple[int, int]], workers: int, on_gpu: bool) -> None:
    share = fitting_share([NodeShape(*one) for one in nodes], workers, on_gpu=on_gpu)
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
        ([(16, 0)] * 4, 10, 2, False, 6),
        ([(16, 8)], 5, 1, True, 5),
        ([(16, 8)], 5, 2, True, 4),
        ([(16, 1)], 5, 1, True, 1),
        ([(2, 8)], 5, 1, True, 1),  # GPUs that nobody could feed
    ],
)
def test_trainings_side_by_side_have_what_each_needs(
    nodes: list[tuple[float, float]], most: int, workers: int, on_gpu: bool, expected: int
) -> None:
    assert fitting_trainings(shapes(nodes), most, workers, on_gpu=on_gpu) == expected


def test_a_training_that_shares_its_cores_takes_no_more_threads_than_its_part() -> None:
    assert Placement(1, 6.0, on_gpu=False, shared=True).max_threads == 6
    assert Placement(2, 0.5, on_gpu=False, shared=True).max_threads == 1
    assert Placement(2, 6.0, on_gpu=False).max_threads is None


HEAD = NodeShape(1)


def test_training_is_sized_by_the_nodes_that_may_come() -> None:
    from_zero = Capacity((HEAD,), (NodeShape(16, 1),) * 4)
    assert placement(from_zero, 4, None) == Placement(4, 1.0, on_gpu=True)
    assert placement(from_zero, 2, 0) == Placement(2, 12.0, on_gpu=False)
    assert placement(from_zero, 1, None, share=4) == Placement(1, 1.0, on_gpu=True, shared=True)


def test_an_elastic_training_takes_what_the_cluster_can_hold() -> None:
    four = Capacity((HEAD,), (NodeShape(16, 1),) * 4)
    found = placement(four, 8, 1, at_least=2)
    assert (found.workers, found.span, found.is_elastic) == (4, (2, 4), True)
    only = placement(four, 8, 1, at_least=4)
    assert (only.span, only.is_elastic) == (4, False)
    assert placement(four, 3, 1, at_least=3).span == 3
    with pytest.raises(ResourceError, match=r"^5 workers need 5 GPUs, the cluster can have 4"):
        placement(four, 8, 1, at_least=5)


def test_what_no_node_can_ever_hold_is_refused_with_the_numbers() -> None:
    four = Capacity((HEAD,), (NodeShape(16, 1),) * 4)
    with pytest.raises(
        ResourceError,
        match=r"^8 workers need 8 GPUs, the cluster can have 4 \(1 node of 1 CPU, up to 4 more nodes of 16 CPUs",
    ):
        placement(four, 8, 1)
    with pytest.raises(ResourceError, match=r"2 logical CPUs .* can have 1 \(1 node of 1 CPU\): they would wait"):
        placement(Capacity((HEAD,)), 1, 0)


def test_nodes_that_are_not_known_are_waited_for_and_nothing_is_refused() -> None:
    unknown = Capacity((HEAD,), is_known=False)
    assert placement(unknown, 8, 1) == Placement(8, 1.0, on_gpu=True)
    assert placement(unknown, 3, 0) == Placement(3, 1.0, on_gpu=False)


def test_workers_take_no_or_one_gpu() -> None:
    with pytest.raises(ConfigError, match="a worker takes 0 or 1 GPU, got 2"):
        place_workers(1, 2)


@pytest.mark.parametrize(
    ("nodes", "actors", "on_gpu", "expected"),
    [
        ([(4, 0)], 1, False, 3.0),  # one machine: all but one
        ([(4, 0)], 2, False, 1.0),
        ([(2, 0)], 3, False, 0.3333),
        ([(2, 0), (2, 0)], 1, False, 2.0),  # 3 would fit no node
        ([(16, 0)] * 5, 1, False, 16.0),
        ([(1, 0), (2, 0), (2, 0)], 2, False, 2.0),  # none on the head
        ([(4, 0)] + [(16, 1)] * 4, 4, True, 16.0),
        ([(64, 8)], 8, True, 7.0),
        ([(16, 1)], 2, True, None),
    ],
)
def test_actors_of_a_pool_by_hand(
    nodes: list[tuple[float, float]], actors: int, on_gpu: bool, expected: float | None
) -> None:
    assert actor_cpus(shapes(nodes), actors, on_gpu=on_gpu) == expected


@given(
    nodes=st.lists(st.tuples(st.integers(1, 64), st.integers(0, 8)), min_size=1, max_size=5),
    actors=st.integers(1, 40),
    on_gpu=st.booleans(),
)
def test_all_actors_find_a_node(nodes: list[tuple[int, int]], actors: int, on_gpu: bool) -> None:
    share = actor_cpus([NodeShape(*one) for one in nodes], actors, on_gpu=on_gpu)
    if share is None:
        assert on_gpu
        return
    room = sum(int(min(cpus / share + 1e-9, gpus if on_gpu else 1e9)) for cpus, gpus in nodes)
    assert room >= actors
    assert sum(cpus for cpus, _ in nodes) - actors * share > 0
