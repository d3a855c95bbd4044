"""Jobs over HTTP: followed through proxies that let no stream through, stopped by Ctrl-C, left by a second one."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from support.small_servers import serving
from voxray.core.errors import ConfigError, ResourceError
from voxray.distributed import submitted_jobs
from voxray.distributed.submitted_jobs import ADDRESSES, Watched, last_cause, open_jobs, without_password

JOB = "raysubmit_1"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


@dataclass
class Dashboard:
    """A head's jobs API with one job, of which each look finds a little more; it knows no WebSockets."""

    outputs: list[str] = field(default_factory=lambda: ["one\n", "one\ntwo\n", "one\ntwo\nvoxray: no room.\n"])
    ends: bool = True
    stops: int = 0
    looks: int = 0

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        """The reply to a request."""
        found = self._reply(handler.command, handler.path)
        body = json.dumps(found).encode()
        handler.send_response(200 if found else 404)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _reply(self, method: str, path: str) -> dict[str, object]:
        if path == "/api/version":
            return {"version": "4", "ray_version": "2.60.0", "ray_commit": "0", "session_name": "s"}
        if path == f"/api/jobs/{JOB}/stop" and method == "POST":
            self.stops += 1
            return {"stopped": True}
        if path == f"/api/jobs/{JOB}/logs":
            self.looks += 1
            return {"logs": self.outputs[min(self.looks, len(self.outputs)) - 1]}
        if path == f"/api/jobs/{JOB}":
            status = "FAILED" if self.ends and self.looks >= len(self.outputs) else "RUNNING"
            told = {"type": "SUBMISSION", "submission_id": JOB, "status": status, "entrypoint": "python jobs/x.py"}
            return {**told, "start_time": 1000, "end_time": 0, "driver_exit_code": 1 if status == "FAILED" else None}
        return {}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ADDRESSES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def dashboard() -> Iterator[tuple[Dashboard, str]]:
    """A dashboard and its address."""
    made = Dashboard()
    with serving(made.answer) as address:
        yield made, address


def test_a_job_is_followed_where_no_stream_comes_through(
    dashboard: tuple[Dashboard, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitted_jobs, "_RETRY_S", 0.01)
    written: list[str] = []
    watched = Watched(write=written.append, say=written.append)
    ended = open_jobs(dashboard[1]).follow(JOB, watched)
    assert "".join(written) == "one\ntwo\nvoxray: no room.\n"
    assert ended is not None
    assert (ended.status, ended.exit_code, ended.has_ended) == ("FAILED", 1, True)
    assert last_cause(list(watched.lines), ended.message) == "no room."


def test_the_address_that_is_given_comes_before_that_of_the_environment(
    dashboard: tuple[Dashboard, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    assert open_jobs(dashboard[1].removeprefix("http://")).look(JOB).status == "RUNNING"
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:1"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", dashboard[1])
    assert open_jobs(None).address == dashboard[1]


def test_an_unknown_job_and_a_silent_address_are_sentences(dashboard: tuple[Dashboard, str]) -> None:
    with pytest.raises(ConfigError, match="raysubmit_2: there is no such job at http"):
        open_jobs(dashboard[1]).look("raysubmit_2")
    with pytest.raises(ResourceError, match="no Ray dashboard answers there"):
        open_jobs("http://127.0.0.1:1")
    with pytest.raises(ConfigError, match="no cluster was named"):
        open_jobs(None)


FOLLOWER = """
import sys
from voxray.commands.submit import follow
from voxray.distributed.submitted_jobs import Watched, open_jobs
write = lambda text: print(text, end="", flush=True)
say = lambda text: print("said:", text, flush=True)
report = follow(open_jobs(sys.argv[1]), sys.argv[2], Watched(write=write, say=say))
print(report.text)
sys.exit(report.exit_code)
"""


def test_ctrl_c_stops_the_job_and_a_second_one_leaves_it(dashboard: tuple[Dashboard, str]) -> None:
    head, address = dashboard
    head.ends = False
    process = subprocess.Popen([sys.executable, "-c", FOLLOWER, address, JOB], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    assert next(lines) == "one\n"
    process.send_signal(signal.SIGINT)
    assert any(line == f"said: stopping {JOB}; Ctrl-C again leaves it to itself.\n" for line in lines)
    process.send_signal(signal.SIGINT)
    rest = "".join(lines)
    assert process.wait(timeout=600) == 130
    assert f"{JOB} has been asked to stop and ends by itself; `voxray status {JOB} --address {address}`" in rest
    assert head.stops == 1


@pytest.mark.parametrize(
    ("lines", "message", "cause"),
    [
        (["voxray: a: bad.", "voxray: warning: slow", "late noise"], "", "a: bad."),
        (
            ["Traceback", "ModuleNotFoundError: No module named 'typer'"],
            "failed with exit code 1",
            "ModuleNotFoundError",
        ),
        ([], "Failed to start\nOSError: no space", "OSError: no space"),
        ([], "", "it printed nothing"),
    ],
)
def test_the_cause_is_the_last_sentence_or_the_last_line(lines: list[str], message: str, cause: str) -> None:
    assert last_cause(lines, message).startswith(cause)


def test_a_password_in_an_address_is_not_shown() -> None:
    assert without_password("https://me:secret@host:8265") == "https://...@host:8265"
