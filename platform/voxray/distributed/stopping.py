"""How a training is asked to stop from outside, and given the time to save what it has come to.

SIGTERM (as of ``ray job stop``) and Ctrl-C reach the driver. The first asks the training for a checkpoint at its next
step; a second one, or the end of the grace time, ends it at once. Rank 0 alone decides at which step: the other ranks
hold nothing that it does not, and are ended with their group.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

from voxray.core.errors import TerminatedError, VoxrayError
from voxray.core.progress import Progress, SilentProgress
from voxray.distributed.watchdog import seconds_of

if TYPE_CHECKING:
    from types import FrameType

    from ray.train.torch import TorchTrainer

GRACE = "VOXRAY_STOP_GRACE"
"""Environment variable: how long a training that is stopped may take for its checkpoint."""
GRACE_DEFAULT = "45s"

_LOOK_EVERY_S = 0.2
_ABORT_S = 20.0
_BEAT_S = 1.0
"""How often rank 0 says that it is there."""
_LOST_S = 15.0
"""After how long without a beat rank 0 counts as lost; a thread sends it, whatever a step or validation takes."""


def grace_s() -> float:
    """How long a stopped training may take for its checkpoint, by ``VOXRAY_STOP_GRACE``: 45 s unless it says so."""
    return seconds_of(os.environ.get(GRACE, GRACE_DEFAULT), where=GRACE)


class StopLine(Protocol):
    """What stands between the driver and rank 0."""

    def request(self) -> bool:
        """Asks for a stop; False where no training is at work that could save anything."""
        ...

    def is_heard(self) -> bool:
        """Whether a training is still at work that could save anything."""
        ...

    def saved(self) -> str | None:
        """After which step the checkpoint was written; None where it has not been."""
        ...


class LocalStop:
    """The line of a training in the driver's own process."""

    def __init__(self) -> None:
        self._wanted, self._where = threading.Event(), ""

    def request(self) -> bool:
        """Asks for a stop."""
        self._wanted.set()
        return True

    def is_heard(self) -> bool:
        """Always: it is in this process."""
        return True

    def wanted(self) -> bool:
        """Whether a stop has been asked for."""
        return self._wanted.is_set()

    def tell(self, where: str) -> None:
        """Says after which step the checkpoint was written."""
        self._where = where

    def saved(self) -> str | None:
        """After which step that was."""
        return self._where or None


class RayStop:
    """The driver's end of the line to a training on Ray: a small actor that rank 0 waits on."""

    def __init__(self) -> None:
        import ray

        self.actor: Any = ray.remote(num_cpus=0)(StopRequest).remote()

    def request(self) -> bool:
        """Asks for a stop; False where rank 0 has not begun, or has gone."""
        return bool(self._ask("request"))

    def is_heard(self) -> bool:
        """Whether rank 0 is there; where the actor does not answer, that is not known, and it counts as there."""
        return self._ask("is_heard") is not False

    def saved(self) -> str | None:
        """After which step the checkpoint was written."""
        return self._ask("saved") or None

    def _ask(self, name: str) -> Any:
        import ray

        with suppress(Exception):  # the cluster may be on its way down
            return ray.get(getattr(self.actor, name).remote(), timeout=5.0)
        return None


class RayStopListener:
    """Rank 0's end of the line: one call that returns when a stop is asked for, so that a look costs no message."""

    def __init__(self, actor: Any) -> None:
        self._actor, self._call = actor, actor.wanted.remote()
        self._over = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="stop-listener", daemon=True)
        self._beats.start()

    def wanted(self) -> bool:
        """Whether a stop has been asked for."""
        import ray

        return bool(ray.wait([self._call], timeout=0)[0])

    def tell(self, where: str) -> None:
        """Says after which step the checkpoint was written, and waits until that has arrived."""
        import ray

        with suppress(Exception):
            ray.get(self._actor.tell.remote(where), timeout=10.0)

    def close(self) -> None:
        """From now on nobody is at work who could save anything."""
        self._over.set()
        self._beats.join()
        with suppress(Exception):
            self._actor.leave.remote()

    def _beat(self) -> None:
        while not self._over.wait(_BEAT_S):
            with suppress(Exception):
                self._actor.beat.remote()


class StopRequest:
    """The actor between driver and rank 0: a stop that is asked for, and where training has stopped."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        import asyncio

        self._wanted, self._where = asyncio.Event(), ""
        self._now, self._last_beat = now, -math.inf

    async def request(self) -> bool:
        """The driver asks for a stop; False where rank 0 is not there."""
        self._wanted.set()
        return await self.is_heard()

    async def is_heard(self) -> bool:
        """Whether rank 0 has begun, and neither ended nor been lost: a process that is killed says no goodbye."""
        return self._now() - self._last_beat < _LOST_S

    async def wanted(self) -> bool:
        """Returns when a stop is asked for; rank 0 waits on this call."""
        await self.beat()
        await self._wanted.wait()
        return True

    async def beat(self) -> None:
        """Rank 0 is there."""
        self._last_beat = self._now()

    async def leave(self) -> None:
        """Rank 0 has ended."""
        self._last_beat = -math.inf

    async def tell(self, where: str) -> None:
        """Rank 0 has written a checkpoint after this step."""
        self._where = where

    async def saved(self) -> str:
        """After which step that was; an empty text where there is none."""
        return self._where


class Signals:
    """SIGINT and SIGTERM of the driver while a training is under way."""

    def __init__(self, line: StopLine, progress: Progress) -> None:
        self.line = line
        self.abort: Callable[[], None] = _nothing
        """What ends the training at once, before the signal's exception is raised."""
        self.number: int | None = None
        self._progress, self._over, self._now = progress, threading.Event(), False
        self._waiting = threading.Thread(target=self._wait, name="stopping", daemon=True)

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Asks for a stop the first time, and ends everything the second."""
        if self._over.is_set():
            return
        if self.number is None:
            self.number = number
            if self.line.request():
                self._waiting.start()
                return
        self._now = True
        self.abort()
        raise KeyboardInterrupt

    def _wait(self) -> None:
        limit_s = grace_s()
        self._progress.say(f"stopping: a checkpoint is written first, for up to {limit_s:g} s (again ends at once)")
        end = time.monotonic() + limit_s
        while not self._over.wait(_LOOK_EVERY_S):
            if time.monotonic() >= end or self.line.saved() is not None or not self.line.is_heard():
                if not self._over.wait(_LOOK_EVERY_S) and not self._now:
                    os.kill(os.getpid(), self.number or signal.SIGINT)
                return

    def close(self) -> None:
        """Says what came of it; afterwards no signal is sent any more."""
        self._over.set()
        if self._waiting.is_alive():
            self._waiting.join()
        if self.number is not None and self._waiting.ident is not None:
            where = self.line.saved()
            if where is None:
                self._progress.say("stopped without a new checkpoint: the last one counts")
            else:
                self._progress.say(f"stopped after {where}, with a checkpoint")


def _nothing() -> None:
    pass


class _NoLine:
    """Where nothing can be saved: the first signal ends it."""

    def request(self) -> bool:
        return False

    def is_heard(self) -> bool:
        return False

    def saved(self) -> str | None:
        return None


@contextmanager
def own_interrupt(line: StopLine | None = None, progress: Progress | None = None) -> Iterator[Signals | None]:
    """Ctrl-C and SIGTERM as everywhere: a KeyboardInterrupt, or a TerminatedError.

    With a line, the training is first asked to save what it has come to. Ray would answer Ctrl-C by an exit of its
    own, and what that one's code is cannot be relied upon.
    """
    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    signals = Signals(line or _NoLine(), progress or SilentProgress())
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, signals.handle)
    try:
        yield signals
    except VoxrayError:
        raise
    except SystemExit:
        if signals.number is None:
            raise KeyboardInterrupt from None
    except BaseException:
        if signals.number is None:
            raise
    finally:
        signals.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    if signals.number == signal.SIGTERM:
        raise TerminatedError
    if signals.number is not None:
        raise KeyboardInterrupt


def stoppable_trainer(signals: Signals | None) -> type[TorchTrainer]:
    """Ray's trainer, which leaves the signals to us; what ends it at once goes to `signals`."""
    import ray
    from ray.train.torch import TorchTrainer

    class _Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            if signals is None:
                return

            def abort() -> None:
                with suppress(Exception):
                    ray.get(controller.abort.remote(), timeout=_ABORT_S)

            signals.abort = abort

    return _Trainer
