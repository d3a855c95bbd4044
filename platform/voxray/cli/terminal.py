"""What the command line says and how it reads lists: sentences, tables, exit codes of errors."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from voxray.core.bulkhead import DEBUG, LOGGER, refusal_in, sentence_of
from voxray.core.errors import ConfigError, TerminatedError

if TYPE_CHECKING:
    from rich.table import Table

    from voxray.core.progress import Progress

BROKEN_PIPE = 141
"""What a shell says of a program that SIGPIPE ended."""


def explain(error: BaseException) -> int:
    """Says what is wrong; the exit code. Ray wraps what its workers raise: the cause is what counts."""
    known = refusal_in(error)
    complain(sentence_of(error))
    if known is None:
        return 3
    return 2 if isinstance(known, ConfigError) else 1


def log_faults(*, debug: bool) -> None:
    """Where the traceback of a fault within one case goes: to standard error, or nowhere; of Ray's workers, too."""
    if debug:
        os.environ[DEBUG] = "1"
    logger = logging.getLogger(LOGGER)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.addHandler(logging.StreamHandler() if debug else logging.NullHandler())


@contextlib.contextmanager
def readers_may_leave() -> Iterator[None]:
    """A reader that goes away, as that of ``| head`` does, ends the program as it ends others: quietly, with 141."""
    outputs = [os.dup(number) for number in _descriptors()]  # what finds one broken may put another in its place
    try:
        yield
    except (SystemExit, BrokenPipeError) as end:
        well = isinstance(end, SystemExit) and not end.code
        if _flushed() and (well or not any(map(_is_broken, outputs))):
            raise
        _silence()
        raise SystemExit(BROKEN_PIPE) from None


@contextlib.contextmanager
def termination_heeded() -> Iterator[None]:
    """SIGTERM ends what is under way in the block as Ctrl-C does: ``ray job stop`` sends it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(_number: int, _frame: object) -> None:
    raise TerminatedError


def reader_is_gone() -> bool:
    """Whether nobody reads the program's output any more."""
    return any(map(_is_broken, _descriptors()))


def _descriptors() -> list[int]:
    numbers = []
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # None, or not a file
            numbers.append(stream.fileno())
    return numbers


def _is_broken(descriptor: int) -> bool:
    watch = select.poll()
    watch.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in watch.poll(0))


def _flushed() -> bool:
    """Whether what was printed has left."""
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except BrokenPipeError:
        return False
    return True


def _silence() -> None:
    """Sends the rest nowhere: what Python flushes when it ends would fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in _descriptors():
        if _is_broken(number):
            os.dup2(nowhere, number)


def complain(text: str) -> None:
    """One sentence on standard error."""
    typer.secho(f"voxray: {text}", fg="red", err=True)


def warn(text: str) -> None:
    """A warning on standard error."""
    typer.secho(f"voxray: warning: {text}", fg="yellow", err=True)


def end(failed: Mapping[str, str]) -> None:
    """A sentence for each that failed, and exit code 1 where any did."""
    for name, sentence in failed.items():
        complain(f"{name}: {sentence.removeprefix(f'case {name}: ')}")
    if failed:
        raise typer.Exit(1)


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text}: must be whole numbers with commas, such as 1,4,8.") from None


def workers(text: str) -> tuple[int | None, int]:
    """What ``--workers`` says: the fewest (None: all of them) and the most."""
    fewest, colon, most = text.partition(":")
    if not colon and text.isdecimal():
        return None, int(text)
    if not (fewest.isdecimal() and most.isdecimal() and 1 <= int(fewest) <= int(most)):
        raise ConfigError(f"--workers {text}: must be a number, or the fewest and the most workers such as 2:8.")
    return int(fewest), int(most)


def gpus(text: str) -> int | None:
    """What ``--gpus`` says; None leaves it to the cluster."""
    if text not in ("auto", "0", "1"):
        raise ConfigError(f"--gpus {text}: must be auto, 0 or 1; for more GPUs use more workers.")
    return None if text == "auto" else int(text)


def names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(name for name in (part.strip() for part in text.split(",")) if name)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Rows of text under a header; an empty header is not shown."""
    from rich.table import Table as RichTable

    made = RichTable(show_header=any(header))
    for name in header:
        made.add_column(name)
    for row in rows:
        made.add_row(*row)
    return made


def show(made: Table) -> None:
    """Prints a table."""
    from rich.console import Console

    Console().print(made)


def progress() -> Progress:
    """How far a verb has come, told on standard error."""
    from voxray.core.progress import open_progress

    return open_progress()


def date(seconds: float) -> str:
    """A moment as day and time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def as_text(value: Any) -> str:
    """A number in few digits, a list with commas, anything else as it is."""
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(as_text, value)) if isinstance(value, list | tuple) else str(value)
