"""What of lost workers counts against an item, and what is said of it."""

from __future__ import annotations

import pytest

from voxray.distributed.losses import Attempt, Deaths, Notes, deaths


def test_the_story_of_an_item_that_is_set_aside() -> None:
    assert str(Deaths(("10.0.0.1", "10.0.0.2", "10.0.0.1"))) == (
        "the worker that had it died 3 times, on nodes 10.0.0.1 (2 x), 10.0.0.2, probably for want of memory."
    )
    assert "3 times, for want of memory, as Ray reports." in str(Deaths(("", "", ""), of_memory=True))
    assert [Deaths(("",) * count).too_many for count in (2, 3)] == [False, True]


@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
def test_attempts_on_nodes_that_are_gone_do_not_count() -> None:
    import ray

    notes = Notes()
    assert not notes.any_begun()
    notes.begin(1)
    notes.begin(12)
    assert notes.any_begun()
    here = notes.take(1)
    assert here is not None
    assert here.node == ray.get_runtime_context().get_node_id()
    assert notes.take(1) is None  # it is told once
    notes.end(12)
    assert not notes.any_begun()
    gone = Attempt("f" * 56, "0" * 56)
    address = ray.nodes()[0]["NodeManagerAddress"]
    assert deaths([gone, here, gone, here]) == Deaths((address, address))
    assert deaths([here, Attempt(), here]) == Deaths((address, "", address))
    assert not deaths([gone] * 9)
    notes.begin(3)
    notes.close()
    assert not notes.any_begun()
