"""How far a pipeline has come: bars on a terminal, plain lines in a log file, nothing in tests.

with progress.track("ingest", total=len(cases), unit="cases") as advance:
    for case in cases:
        ...
        advance(1)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Advance(Protocol):
    """Adds to what is done, in units of the track."""

    def __call__(self, amount: float = 1, /) -> None:
        """`amount` more units are done."""
        ...


class Progress(Protocol):
    """What a pipeline tells while it works."""

    def track(self, name: str, *, total: float | None, unit: str = "") -> AbstractContextManager[Advance]:
        """A stretch of `total` units (None: unknown); the given function counts them."""
        ...

    def say(self, line: str) -> None:
        """One line for the user, above any bar."""
        ...


class SilentProgress:
    """Counts nothing and says nothing."""

    @contextmanager
    def track(self, name: str, *, total: float | None, unit: str = "") -> Iterator[Advance]:
        """A track that nobody sees."""
        del name, total, unit
        yield _count_nothing

    def say(self, line: str) -> None:
        """Nothing."""
        del line


class PlainProgress:
    """A line at most every `every_s` seconds, and one at the end of each track."""

    def __init__(self, stream: TextIO, *, every_s: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._every_s, self._clock = stream, every_s, clock

    @contextmanager
    def track(self, name: str, *, total: float | None, unit: str = "") -> Iterator[Advance]:
        """Lines with the count, the rate and the time left."""
        begin = told_s = self._clock()
        done = 0.0

        def advance(amount: float = 1, /) -> None:
            nonlocal done, told_s
            done += amount
            now = self._clock()
            if now - told_s >= self._every_s:
                told_s = now
                self.say(plain_line(name, done, total, unit, elapsed_s=now - begin))

        yield advance
        self.say(plain_line(name, done, total, unit, elapsed_s=self._clock() - begin, ended=True))

    def say(self, line: str) -> None:
        """The line, at once."""
        print(line, file=self._stream, flush=True)


class RichProgress:
    """A bar for each track, with its rate and the time left."""

    def __init__(self, console: Console) -> None:
        self._bars = Bars(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("[cyan]{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._open_tracks = 0

    @contextmanager
    def track(self, name: str, *, total: float | None, unit: str = "") -> Iterator[Advance]:
        """A bar that stays when its track is done; tracks may nest."""
        task = self._bars.add_task(name, total=total, rate="")
        begin, done = time.monotonic(), 0.0
        self._open_tracks += 1
        if self._open_tracks == 1:
            self._bars.start()

        def advance(amount: float = 1, /) -> None:
            nonlocal done
            done += amount
            elapsed_s = max(time.monotonic() - begin, 1e-9)
            self._bars.update(task, advance=amount, rate=rate_text(done / elapsed_s, unit))

        try:
            yield advance
        finally:
            self._open_tracks -= 1
            if self._open_tracks == 0:
                self._bars.stop()
                for shown in self._bars.task_ids:
                    self._bars.remove_task(shown)

    def say(self, line: str) -> None:
        """The line, above the bars."""
        self._bars.console.print(line, markup=False, highlight=False)


def open_progress(stream: TextIO | None = None) -> Progress:
    """Bars where `stream` (by default standard error) is a terminal, else plain lines."""
    stream = stream or sys.stderr
    if stream.isatty():
        return RichProgress(Console(file=stream))
    return PlainProgress(stream)


def tell_warnings(progress: Progress, name: str, warnings: Sequence[str]) -> None:
    """A line for each warning of a case or a scan: ``p1: warning: qform and sform place the volume differently``."""
    for text in warnings:
        progress.say(f"{name}: warning: {text}")


def plain_line(
    name: str, done: float, total: float | None, unit: str, *, elapsed_s: float, ended: bool = False
) -> str:
    """``ingest: 40/200 cases (20 %), 2.1 cases/s, 1:16 left``."""
    count = f"{done:g}" if total is None else f"{done:g}/{total:g}"
    parts = [f"{name}: {count} {unit}".rstrip()]
    if total:
        parts[0] += f" ({done / total:.0%})".replace("%", " %")
    if done and elapsed_s > 0:
        parts.append(rate_text(done / elapsed_s, unit))
        if total and not ended:
            parts.append(f"{_minutes((total - done) * elapsed_s / done)} left")
    if ended:
        parts.append(f"took {_minutes(elapsed_s)}")
    return ", ".join(parts)


def rate_text(per_second: float, unit: str) -> str:
    """``2.1 cases/s``, or ``8.0 s per case`` where there are fewer than one in two seconds."""
    if per_second >= 0.5:
        return f"{per_second:.1f} {unit}/s".replace(" /s", "/s")
    if per_second <= 0:
        return ""
    return f"{1 / per_second:.1f} s per {unit.removesuffix('s') or 'step'}"


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _count_nothing(amount: float = 1, /) -> None:
    del amount
