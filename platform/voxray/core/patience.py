"""Waiting for storage that does not answer: with longer and longer pauses, for ten minutes, and it is said.

Storage that has never answered is not waited for: its address, the network or the credentials are wrong, and the user
should hear of it at once. Once it has answered, hours of work hang on it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from voxray.core.errors import ConfigError, StorageAwayError

LIMIT = "VOXRAY_STORAGE_PATIENCE_S"
"""Environment: the seconds, in place of `LIMIT_S`."""
LIMIT_S = 600.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0

log = logging.getLogger(__name__)
"""What is said while it waits; where nobody has set up logging, Python writes it to standard error."""

T = TypeVar("T")

_answered: set[str] = set()
_tellers: list[Callable[[], None]] = []


@dataclass(frozen=True)
class Clock:
    """The time, and how it is let pass."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def trust(root: str) -> None:
    """From now on the storage counts as having answered, as it did for whoever started this process."""
    _answered.add(root)


def tell_retries(tell: Callable[[], None]) -> None:
    """From now on `tell` is called whenever storage is asked again in this process."""
    _tellers.append(tell)


def is_trusted(root: str) -> bool:
    """Whether the storage has answered before."""
    return root in _answered


def patiently(action: Callable[[], T], root: str, *, clock: Clock | None = None) -> T:
    """What the action gives; where the storage at `root` does not answer, it is asked again.

    After ten minutes its last sentence is raised.
    """
    clock = clock or Clock()
    begin, pause_s = clock.now(), FIRST_PAUSE_S
    while True:
        try:
            result = action()
        except StorageAwayError as error:
            waited_s, limit_s = clock.now() - begin, _limit_s() if is_trusted(root) else 0.0
            if waited_s >= limit_s:
                if not waited_s or not limit_s:
                    raise
                raise StorageAwayError(f"{error} It was asked again for {_span(waited_s)}.") from error
            pause_s = min(pause_s, limit_s - waited_s)
            what, left = str(error).rpartition("; ")[0] or str(error), _span(limit_s - waited_s)
            log.warning("%s. Asked again in %.0f s, and given up in %s.", what, pause_s, left)
            for tell in _tellers:
                tell()
            clock.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        except FileNotFoundError:
            trust(root)
            raise
        else:
            trust(root)
            return result


def _limit_s() -> float:
    text = os.environ.get(LIMIT, "")
    try:
        return float(text) if text else LIMIT_S
    except ValueError:
        raise ConfigError(f"{LIMIT}={text}: must be a number of seconds, such as 600.") from None


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"
