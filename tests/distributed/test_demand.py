"""What a cluster lacks is one sentence, whichever way it was asked."""

from __future__ import annotations

from voxray.distributed.demand import Demand, bundle_of, counted


def test_demand_in_words() -> None:
    lacking = Demand({(("CPU", 1.0), ("GPU", 1.0)): 2}, num_starting=1)
    assert str(lacking) == "2 x {CPU: 1, GPU: 1}; 1 node is starting"
    assert str(Demand({(("GPU", 1.0),): 1})) == "1 x {GPU: 1}; no node is starting"
    assert str(Demand({(): 1}, num_starting=3)) == "1 x {any node}; 3 nodes are starting"
    assert not Demand()
    assert Demand().requests == ""


def test_equal_requests_are_counted_and_the_most_frequent_is_first() -> None:
    asked: list[dict[str, float]] = [
        {"CPU": 0.5},
        {"GPU": 1.0, "CPU": 2.0},
        {"CPU": 2.0, "GPU": 1.0},
        {},
        {"CPU_group_1f": 1.0},
        {"GPU": 0},
    ]
    assert Demand(counted(asked)).requests == "2 x {CPU: 2, GPU: 1}, 1 x {CPU: 0.5}"


def test_names_that_ray_adds_are_left_out_of_a_request() -> None:
    assert bundle_of({"GPU": 1, "node:10.0.0.1": 0.001}, only=("CPU", "GPU")) == (("GPU", 1.0),)
