"""What the command line says and how it reads lists: sentences, tables, exit codes of errors."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import typer

from voxray.errors import ConfigError, VoxrayError

if TYPE_CHECKING:
    from rich.table import Table


def explain(error: BaseException) -> int:
    """Says what is wrong; the exit code. Ray wraps what its workers raise: the cause is what counts."""
    known = next((cause for cause in _causes(error) if isinstance(cause, VoxrayError)), None)
    if known is None:
        kind, text = type(error).__name__, (str(error) or "no message").strip().splitlines()[0]
        complain(f"a fault of voxray: {kind}: {text[:300]} (run again with --debug for the traceback)")
        return 3
    complain(str(known))
    return 2 if isinstance(known, ConfigError) else 1


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The innermost first: Ray's own subclass of a worker's error has a traceback for a text."""
    if error is not None:
        cause = getattr(error, "cause", None)
        yield from _causes(cause if isinstance(cause, BaseException) else error.__cause__)
        for inner in getattr(error, "worker_failures", {}).values():
            yield from _causes(inner)
        yield error


def complain(text: str) -> None:
    """One sentence on standard error."""
    typer.secho(f"voxray: {text}", fg="red", err=True)


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text}: must be whole numbers with commas, such as 1,4,8.") from None


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


def date(seconds: float) -> str:
    """A moment as day and time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def as_text(value: Any) -> str:
    """A number in few digits, a list with commas, anything else as it is."""
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(as_text, value)) if isinstance(value, list | tuple) else str(value)
