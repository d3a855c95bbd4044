"""Bulkheads: what one case or one form fails from becomes a sentence of its own, and the others are done.

Every loop over cases, and every form that is made of an answer, goes through here. Ctrl-C, `SystemExit` and a
cancelled task are no failures of a case: they pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from voxray.core.errors import ResourceError, VoxrayError
from voxray.core.missing_module import missing_module
from voxray.core.storage_errors import is_of_storage, refusal_of_storage, trouble_of

_T = TypeVar("_T")

LOGGER = __name__
"""Where the traceback of a fault goes: ``--debug`` shows it, and a Ray worker writes it to its log."""
DEBUG = "VOXRAY_DEBUG"
"""Set in the environment by ``--debug``: what Ray's workers log then reaches the terminal."""
_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "bad allocation")
"""What native libraries say, within a RuntimeError."""
_LENGTH = 300

log = logging.getLogger(LOGGER)


def attempt(action: Callable[[], Any]) -> str:
    """Runs the action; what it fails from as one sentence, or an empty text."""
    try:
        action()
    except Exception as error:
        return sentence_of(error)
    return ""


def optional(action: Callable[[], _T]) -> _T | None:
    """The action's value, or None where it fails, for what somebody else says why."""
    try:
        return action()
    except Exception as error:
        sentence_of(error)  # a fault goes to the log
        return None


def sentence_of(error: BaseException) -> str:
    """The error as a user reads it; the traceback of one that nobody foresaw goes to the log."""
    known = refusal_in(error)
    if known is not None:
        return str(known)
    log_fault(error)
    return f"a fault of voxray: {_text(error)} (run again with --debug for the traceback)"


def log_fault(error: BaseException) -> None:
    """The traceback of what nobody foresaw."""
    log.error("a fault of voxray", exc_info=error)


def refusal_in(error: BaseException) -> VoxrayError | None:
    """What the user or the machine can mend, below whatever wraps it; None where the fault is ours."""
    for cause in causes(error):
        if isinstance(cause, VoxrayError):
            return cause
    for cause in reversed(list(causes(error))):
        if lacking := missing_module(cause):
            return ResourceError(lacking)
    for cause in causes(error):
        if lacks_memory(cause):
            return ResourceError(
                f"not enough memory ({_text(cause)}). Free some, use fewer workers, or a machine with more."
            )
        if is_of_storage(cause) and trouble_of(cause) is not None:
            return refusal_of_storage(cause, "storage", "reached")
        if isinstance(cause, OSError):
            return ResourceError(_system_text(cause))
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The innermost first: Ray's own subclass of a worker's error has a traceback for a text.

    Below one of our own there is nothing to look for: it was raised to say more, such as the name of the case.
    """
    if isinstance(error, VoxrayError) and type(error).__module__ == VoxrayError.__module__:
        yield error
    elif error is not None:
        cause = getattr(error, "cause", None) or getattr(error, "controller_failure", None)
        yield from causes(cause if isinstance(cause, BaseException) else error.__cause__)
        for inner in getattr(error, "worker_failures", {}).values():
            yield from causes(inner)
        yield error


def lacks_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _NO_MEMORY)


def _system_text(error: OSError) -> str:
    if error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}."
    return _text(error)


def _text(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {(lines[0] if lines else 'no message')[:_LENGTH]}"
