"""What the command line says: a reader that leaves ends it quietly, and faults are logged where they are wanted."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from voxray.cli import terminal
from voxray.core.bulkhead import LOGGER, attempt
from voxray.core.errors import ConfigError
from voxray.core.volume import Grid, Volume
from voxray.readers import write_nifti


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A small scan."""
    grid = Grid((4, 5, 6), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    write_nifti(Volume(np.arange(120, dtype=np.int16).reshape(4, 5, 6), grid), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def without_reader(*arguments: str, errors_too: bool) -> subprocess.CompletedProcess[str]:
    """`voxray ARGUMENTS` into a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            [sys.executable, "-m", "voxray", *arguments],
            stdout=writer,
            stderr=writer if errors_too else subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writer)


@pytest.mark.parametrize(
    ("verb", "errors_too"),
    [("--help", True), ("recipe spleen", False), ("info SCAN", True), ("--debug info SCAN --json", False)],
)
def test_a_reader_that_leaves_is_no_fault(verb: str, scan: Path, errors_too: bool) -> None:
    done = without_reader(*verb.replace("SCAN", str(scan)).split(), errors_too=errors_too)
    assert done.returncode == terminal.BROKEN_PIPE == 128 + signal.SIGPIPE
    assert (done.stderr or "") == ""


def test_the_end_of_what_is_read_keeps_its_exit_code(tmp_path: Path) -> None:
    command = f"{sys.executable} -m voxray info {tmp_path}/none.nii | cat; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    assert "none.nii" in done.stderr


@pytest.fixture
def _as_before() -> Iterator[None]:
    logger = logging.getLogger(LOGGER)
    before = list(logger.handlers)
    yield
    logger.handlers = before


@pytest.mark.usefixtures("_as_before")
def test_debug_shows_the_traceback_of_one_case_and_nothing_else_does(capsys: pytest.CaptureFixture[str]) -> None:
    def look_up() -> str:
        return {"a": "b"}["2.25.38"]

    terminal.log_faults(debug=False)
    assert "KeyError: '2.25.38'" in attempt(look_up)
    assert capsys.readouterr().err == ""
    terminal.log_faults(debug=True)
    attempt(look_up)
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "in look_up" in shown


def test_workers_are_a_number_or_the_fewest_and_the_most() -> None:
    assert terminal.workers("0") == (None, 0)
    assert terminal.workers("3") == (None, 3)
    assert terminal.workers("2:8") == (2, 8)
    for text in ("8:2", "0:2", "-1", "2:", "many"):
        with pytest.raises(ConfigError, match=f"--workers {text}: must be a number, or the fewest and the most"):
            terminal.workers(text)
