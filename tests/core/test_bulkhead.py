"""Bulkheads: whatever one case fails from is one sentence; what is meant to end the program ends it."""

from __future__ import annotations

import asyncio
import logging
import sys

import numpy as np
import pytest

from voxray.core.bulkhead import LOGGER, attempt, refusal_in
from voxray.core.errors import ConfigError, DataError, ResourceError


class LibraryError(Exception):
    """What no list of known errors holds."""


def failing(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    "error",
    [
        KeyError("2.25.38"),
        AttributeError("'NoneType' object has no attribute 'x'"),
        TypeError("not a mapping"),
        AssertionError(),
        StopIteration(),
        RecursionError("maximum recursion depth exceeded"),
        LibraryError("first line\nsecond line"),
        NotImplementedError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_library_raises_is_one_sentence(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    sentence = attempt(lambda: failing(error))
    assert "\n" not in sentence
    assert sentence.startswith(f"a fault of voxray: {type(error).__name__}: ")
    assert sentence.endswith("(run again with --debug for the traceback)")
    (record,) = [one for one in caplog.records if one.name == LOGGER]
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert record.exc_info[2] is not None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), asyncio.CancelledError(), GeneratorExit()])
def test_what_ends_the_program_passes(error: BaseException) -> None:
    with pytest.raises(type(error)):
        attempt(lambda: failing(error))


def test_what_can_be_mended_is_said_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    refused = DataError("nifti.truncated", "a.nii: ends early.", remedy="Copy it again.")
    assert attempt(lambda: failing(refused)) == str(refused)
    assert attempt(lambda: failing(ConfigError("--x: no."))) == "--x: no."
    assert attempt(lambda: None) == ""
    wrapped = RuntimeError("a worker's traceback, many lines")
    wrapped.cause = refused  # type: ignore[attr-defined]  # as Ray has it
    assert attempt(lambda: failing(wrapped)) == str(refused)
    assert not caplog.records


@pytest.mark.parametrize(
    "action",
    [
        lambda: np.zeros((1 << 20, 1 << 20, 1 << 10), np.float64),
        lambda: failing(MemoryError()),
        lambda: failing(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes")),
        lambda: failing(RuntimeError("std::bad_alloc")),
    ],
)
def test_want_of_memory_is_the_machines(action: object, caplog: pytest.LogCaptureFixture) -> None:
    assert callable(action)
    assert attempt(action).startswith("not enough memory (")
    assert not caplog.records


def test_a_file_that_the_system_refuses_is_named() -> None:
    sentence = attempt(lambda: open("/proc/self/no_such_file"))  # noqa: PTH123, SIM115
    assert sentence == "/proc/self/no_such_file: No such file or directory."
    assert isinstance(refusal_in(PermissionError(13, "Permission denied", "/a")), ResourceError)


def test_an_error_that_names_its_case_is_not_taken_for_the_one_below() -> None:
    def raise_with_case() -> None:
        try:
            raise DataError("labels.shape", "it has 3 voxels.", remedy="Mend it.")
        except DataError as error:
            raise error.of_case("s0") from error

    assert attempt(raise_with_case) == "case s0: [labels.shape] it has 3 voxels. Mend it."


class FromRayError(Exception):
    """What Ray raises, as far as its text and its module go."""

    __module__ = "ray.exceptions"


@pytest.mark.parametrize(
    ("error", "begin"),
    [
        (
            FromRayError("ray::f() (pid=1, ip=10.0.0.3)\nModuleNotFoundError: No module named 'torch'"),
            "node 10.0.0.3",
        ),
        (FromRayError("The actor died.\n\tip: 10.0.0.4\n...\nNo module named 'torch'"), "node 10.0.0.4"),
        (FromRayError("System error: No module named 'torch'"), "some node"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), sys.executable),
    ],
)
def test_a_node_without_a_module_is_one_sentence(error: Exception, begin: str) -> None:
    assert str(refusal_in(error)).startswith(f"{begin}: has no module named torch; install what voxray needs there")


def test_a_module_that_is_missing_behind_a_controller_is_found() -> None:
    class ControllerError(Exception):
        controller_failure = FromRayError("(pid=1, ip=10.0.0.3) No module named 'voxray'")

    found = refusal_in(ControllerError("Training failed due to controller error:\n..."))
    assert str(found).startswith("node 10.0.0.3: has no module named voxray;")


def test_a_module_that_voxray_lacks_within_itself_is_its_own_fault() -> None:
    assert refusal_in(ModuleNotFoundError("No module named 'voxray.tasks.x'", name="voxray.tasks.x")) is None
