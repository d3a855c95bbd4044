"""A wait says what it is for, and ends where it has lasted too long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import count

import pytest

from voxray.core.errors import ConfigError, ResourceError
from voxray.core.progress import SilentProgress
from voxray.distributed.demand import Demand
from voxray.distributed.watchdog import listener, seconds_of, watched

LACKING = Demand({(("CPU", 1.0), ("GPU", 1.0)): 2}, num_starting=1)


class Heard(SilentProgress):
    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def say(self, line: str) -> None:
        self._say(line)


def test_it_says_what_is_missing_while_nothing_goes_on() -> None:
    said, twice = list[str](), threading.Event()

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            twice.set()

    with watched(Heard(say), lambda: 0, demand=lambda: LACKING, every_s=0.01):
        assert twice.wait(30)
    assert set(said) == {"waiting for 2 x {CPU: 1, GPU: 1}; 1 node is starting"}


def test_it_is_silent_while_something_goes_on_or_nothing_is_missing() -> None:
    said, looks = list[str](), threading.Event()
    moving = count()

    def state() -> int:
        now = next(moving)
        if now == 5:
            looks.set()
        return now

    with watched(Heard(said.append), state, demand=lambda: LACKING, every_s=0.01):
        assert looks.wait(30)
    asked = threading.Event()

    def nothing() -> Demand:
        asked.set()
        return Demand({})

    with watched(Heard(said.append), lambda: 0, demand=nothing, every_s=0.01, limit_s=0.01):
        assert asked.wait(30)
    assert said == []


def test_a_wait_that_lasts_too_long_is_stopped_by_a_sentence() -> None:
    stopped = threading.Event()

    def work() -> None:
        with watched(
            SilentProgress(), lambda: 0, demand=lambda: LACKING, every_s=0.01, limit_s=0.02, stop=stopped.set
        ):
            assert stopped.wait(30)
            raise RuntimeError("what the work says of its stop")

    with pytest.raises(ResourceError, match=r"the cluster has lacked 2 x \{CPU: 1, GPU: 1\}; 1 node is starting for"):
        work()


def test_what_the_work_fails_from_is_passed_on() -> None:
    with pytest.raises(ValueError, match="mine"), watched(SilentProgress(), lambda: 0, demand=lambda: LACKING):
        raise ValueError("mine")


def test_a_head_that_does_not_answer_is_no_reason_to_stop() -> None:
    asked = threading.Event()

    def broken() -> Demand:
        asked.set()
        raise ConnectionError("the head restarts")

    with watched(SilentProgress(), lambda: 0, demand=broken, every_s=0.01, limit_s=0.01):
        assert asked.wait(30)


def test_a_wait_during_which_an_actor_works_is_not_ended() -> None:
    asked = count()
    thrice = threading.Event()

    def works() -> bool:
        if next(asked) == 3:
            thrice.set()
        return True

    with watched(SilentProgress(), lambda: 0, demand=lambda: LACKING, works=works, every_s=0.01, limit_s=0.01):
        assert thrice.wait(30)


def test_nobody_listens_on_a_ray_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = SilentProgress()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert listener(progress) is None
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert listener(progress) is progress
    with watched(None, lambda: 0, limit_s=0.0):
        pass


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("1.5h", 5400)])
def test_times_as_people_write_them(text: str, seconds: float) -> None:
    assert seconds_of(text, where="--wait-nodes") == seconds


@pytest.mark.parametrize("text", ["15", "", "m", "-3m", "1 day"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--wait-nodes: must be a time such as 90s, 15m or 2h, got"):
        seconds_of(text, where="--wait-nodes")
