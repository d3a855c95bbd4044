"""What is sent with a job, and how its end is told."""

from __future__ import annotations

from pathlib import Path

import pytest

import voxray
from voxray.commands.submit import STOP_WAIT_S, code_of, report_of
from voxray.distributed.submitted_jobs import SubmittedJob

REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_checkout_goes_as_the_working_folder() -> None:
    code = code_of("train")
    assert code.command == ("python", "jobs/train.py")
    assert code.folder == REPOSITORY
    assert code.runtime_env["working_dir"] == str(REPOSITORY)
    assert code.runtime_env["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}


def test_an_installed_package_goes_as_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "voxray"
    monkeypatch.setattr(voxray, "__file__", str(package / "__init__.py"))
    code = code_of("train")
    assert code.command == ("python", "-m", "voxray", "train")
    assert code.folder is None
    assert code.runtime_env["py_modules"] == [str(package)]
    assert "working_dir" not in code.runtime_env


def job(status: str, *, exit_code: int | None = None, message: str = "") -> SubmittedJob:
    return SubmittedJob("raysubmit_1", status, "python jobs/x.py", message, exit_code, 0.0, 1.0)


@pytest.mark.parametrize(
    ("ended", "stopped_here", "code", "text"),
    [
        (job("SUCCEEDED", exit_code=0), False, 0, ""),
        (job("STOPPED"), True, 130, "raysubmit_1 was stopped."),
        (job("STOPPED"), False, 143, "raysubmit_1 was stopped."),
        (job("FAILED", exit_code=2), False, 2, "raysubmit_1 failed with exit code 2: /x.toml: no such file."),
        (job("FAILED", exit_code=-9), False, 137, "raysubmit_1 failed with exit code 137: /x.toml: no such file."),
        (job("FAILED"), False, 1, "raysubmit_1 failed with exit code 1: /x.toml: no such file."),
    ],
)
def test_a_jobs_end_is_an_exit_code_and_a_sentence(
    ended: SubmittedJob, stopped_here: bool, code: int, text: str
) -> None:
    report = report_of(
        ended, ["check: 1/4", "\x1b[31mvoxray: /x.toml: no such file.\x1b[0m"], stopped_here=stopped_here
    )
    assert (report.exit_code, report.text) == (code, text)
