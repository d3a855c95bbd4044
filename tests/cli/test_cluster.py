"""submit and status on the command line, as far as no cluster is wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from voxray import cli
from voxray.cli.cluster import NO_JOBS


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def voxray(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments)


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["train", "store", "spleen", "-o", "/run"], 2, "store: is a relative path"),
        (["train", "/store", "spleen", "-o", "/run", "--wrokers", "2"], 2, "submit train: No such option: --wrokers"),
        (["train", "/store", "spleen"], 2, "submit train: Missing option"),
        (["trian", "/store"], 2, "submit trian: is no verb that runs as a job; allowed are check, "),
        (["token", "add", "ann"], 2, "submit token: is no verb that runs as a job"),
        (["train", "/store", "spleen", "-o", "/run"], 2, "no cluster was named: give --address"),
        (["check", "/d.toml", "--address", "127.0.0.1:1"], 1, "http://127.0.0.1:1: no Ray dashboard answers there"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sent(arguments: list[str], code: int, part: str) -> None:
    result = voxray("submit", *arguments)
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("voxray: ")
    assert part in result.stderr
    assert "\n" not in result.stderr.strip()


def test_no_verb_has_an_option_of_submits_own() -> None:
    """It would be taken from the verb's arguments."""
    verbs: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    own = {text for parameter in verbs["submit"].params for text in (*parameter.opts, *parameter.secondary_opts)}
    for name in verbs.keys() - NO_JOBS:
        for parameter in verbs[name].params:
            assert not own.intersection((*parameter.opts, *parameter.secondary_opts)), name


def test_status_wants_a_run_or_a_job_at_an_address(tmp_path: Path) -> None:
    nothing = voxray("status", str(tmp_path))
    assert (nothing.exit_code, "no run here" in nothing.stderr) == (2, True)
    job = voxray("status", "raysubmit_1")
    assert (job.exit_code, "no cluster was named" in job.stderr) == (2, True)
