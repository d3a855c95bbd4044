"""A training that is stopped: asked once to save, ended at the second time, and by the right exception."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from voxray.core.errors import ConfigError, TerminatedError
from voxray.core.progress import SilentProgress
from voxray.distributed.stopping import GRACE, LocalStop, StopRequest, grace_s, own_interrupt


class Heard(SilentProgress):
    """Remembers what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, TerminatedError)])
def test_the_first_signal_asks_for_a_checkpoint_and_ends_the_block(number: int, kind: type[BaseException]) -> None:
    line, heard, before = LocalStop(), Heard(), signal.getsignal(number)

    def train() -> None:
        with own_interrupt(line, heard):
            os.kill(os.getpid(), number)
            assert line.wanted()
            line.tell("epoch 2, step 7")

    with pytest.raises(kind):
        train()
    assert heard.lines[-1] == "stopped after epoch 2, step 7, with a checkpoint"
    assert signal.getsignal(number) is before


def test_the_second_signal_ends_it_at_once() -> None:
    heard = Heard()

    def train() -> None:
        with own_interrupt(LocalStop(), heard):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the second signal was not heard")

    with pytest.raises(KeyboardInterrupt):
        train()
    assert heard.lines[-1] == "stopped without a new checkpoint: the last one counts"


def test_where_nothing_can_be_saved_the_first_signal_ends_it() -> None:
    def train() -> None:
        with own_interrupt():
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the signal was not heard")

    with pytest.raises(TerminatedError):
        train()


class Lost(LocalStop):
    """The line to a worker that is killed once it has been asked."""

    def is_heard(self) -> bool:
        return False


def test_a_worker_that_is_gone_is_not_waited_for() -> None:
    heard, begin = Heard(), time.monotonic()

    def train() -> None:
        with own_interrupt(Lost(), heard):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(grace_s() + 30)

    with pytest.raises(TerminatedError):
        train()
    assert time.monotonic() - begin < grace_s()
    assert heard.lines[-1] == "stopped without a new checkpoint: the last one counts"


def test_rank_0_is_there_from_its_first_call_to_its_last_beat() -> None:
    async def story() -> None:
        now = [100.0]
        request = StopRequest(lambda: now[0])
        assert not await request.is_heard()
        waiting = asyncio.create_task(request.wanted())
        await asyncio.sleep(0)
        now[0] += 14
        assert await request.is_heard()
        await request.beat()
        now[0] += 14
        assert await request.request()
        assert await waiting
        now[0] += 1
        assert not await request.is_heard()
        await request.beat()
        assert await request.is_heard()
        await request.leave()
        assert not await request.is_heard()

    asyncio.run(story())


def test_the_grace_time_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert grace_s() == 45
    monkeypatch.setenv(GRACE, "2m")
    assert grace_s() == 120
    monkeypatch.setenv(GRACE, "long")
    with pytest.raises(ConfigError, match=f"{GRACE}: must be a time"):
        grace_s()
