"""What a log file and a terminal see of a pipeline's progress."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from voxray.core.progress import (
    PlainProgress,
    Progress,
    RichProgress,
    SilentProgress,
    open_progress,
    plain_line,
    rate_text,
)


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_come_every_ten_seconds_and_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    with PlainProgress(stream, clock=clock).track("ingest", total=40, unit="cases") as advance:
        for _ in range(40):
            clock.now += 0.5
            advance()
    lines = stream.getvalue().splitlines()
    assert lines == [
        "ingest: 20/40 cases (50 %), 2.0 cases/s, 0:10 left",
        "ingest: 40/40 cases (100 %), 2.0 cases/s, 0:00 left",
        "ingest: 40/40 cases (100 %), 2.0 cases/s, took 0:20",
    ]


def _fail_on_the_way(progress: Progress) -> None:
    with progress.track("check", total=3) as advance:
        advance()
        raise KeyError


def test_no_closing_line_when_the_work_fails() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyError):
        _fail_on_the_way(PlainProgress(stream, clock=Clock()))
    assert stream.getvalue() == ""


def test_unknown_totals_and_long_times() -> None:
    assert plain_line("read", 3, None, "files", elapsed_s=1.5) == "read: 3 files, 2.0 files/s"
    assert plain_line("train", 1, 3, "epochs", elapsed_s=3600).endswith("3600.0 s per epoch, 2:00:00 left")


def test_rates_read_well() -> None:
    assert rate_text(12.34, "cases") == "12.3 cases/s"
    assert rate_text(0.1, "cases") == "10.0 s per case"
    assert rate_text(3, "") == "3.0/s"
    assert rate_text(0, "cases") == ""


def test_bars_show_names_counts_and_nested_tracks() -> None:
    stream = io.StringIO()
    progress = RichProgress(Console(file=stream, force_terminal=True, width=100))
    with progress.track("outer", total=2, unit="folds") as outer:
        with progress.track("inner", total=5, unit="cases") as inner:
            inner(5)
        progress.say("a case failed [nifti.truncated]")
        outer(2)
    text = stream.getvalue()
    assert "outer" in text
    assert "inner" in text
    assert "5/5" in text
    assert "[nifti.truncated]" in text


def test_a_second_track_starts_without_the_first_ones_bar() -> None:
    stream = io.StringIO()
    progress = RichProgress(Console(file=stream, force_terminal=True, width=100))
    with progress.track("first", total=1) as advance:
        advance()
    stream.truncate(0)
    with progress.track("second", total=1) as advance:
        advance()
    assert "second" in stream.getvalue()
    assert "first" not in stream.getvalue()


def test_a_file_gets_plain_lines_and_silence_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(open_progress(io.StringIO()), PlainProgress)
    silent: Progress = SilentProgress()
    with silent.track("x", total=None) as advance:
        advance(2)
    silent.say("nothing")
    assert capsys.readouterr() == ("", "")
