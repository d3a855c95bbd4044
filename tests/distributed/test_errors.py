"""What Ray's errors mean, without a Ray."""

from __future__ import annotations

import pytest
from ray.exceptions import RayError, RayTaskError, WorkerCrashedError

from voxray.core.errors import DataError, VoxrayError
from voxray.distributed.errors import find_raised, is_loss

OWN = DataError("a.b", "it is broken.", remedy="Mend it.")


def wrapped(cause: Exception) -> Exception:
    """As Ray raises what a task raised: an error of the cause's class, too."""
    made: Exception = RayTaskError("work", "a traceback", cause).as_instanceof_cause()
    return made


def below(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [OWN, wrapped(OWN), wrapped(wrapped(OWN)), below(RuntimeError("execution failed"), wrapped(OWN))],
)
def test_our_own_error_comes_out_of_what_is_around_it(error: Exception) -> None:
    assert find_raised(error, VoxrayError) is OWN
    assert not is_loss(error)


def test_the_error_that_says_most_is_found() -> None:
    named = below(OWN.of_case("a"), OWN)
    assert find_raised(wrapped(named), VoxrayError) is named


def test_other_kinds_are_found_where_they_are_asked_for() -> None:
    error = wrapped(below(KeyError("a"), OWN))
    found = find_raised(error, KeyError, VoxrayError)
    assert type(found) is KeyError
    assert find_raised(error, ZeroDivisionError) is None


@pytest.mark.parametrize("error", [WorkerCrashedError(), wrapped(WorkerCrashedError())])
def test_the_loss_of_a_process_is_told_from_what_the_work_raised(error: Exception) -> None:
    assert is_loss(error)
    assert isinstance(error, RayError)
    assert find_raised(error, VoxrayError) is None
