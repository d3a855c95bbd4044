"""A training that is stopped: asked once to save, ended at the second time, and by the right exception."""

from __future__ import annotations

import os
import signal

import pytest

from voxray.core.errors import ConfigError, TerminatedError
from voxray.core.progress import SilentProgress
from voxray.distributed.stopping import GRACE, LocalStop, grace_s, own_interrupt


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


def test_the_grace_time_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert grace_s() == 45
    monkeypatch.setenv(GRACE, "2m")
    assert grace_s() == 120
    monkeypatch.setenv(GRACE, "long")
    with pytest.raises(ConfigError, match=f"{GRACE}: must be a time"):
        grace_s()
