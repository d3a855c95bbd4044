"""Jobs on a real Ray head: submitted as a user would, with the code in the working directory."""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from voxray.cli import app
from voxray.phantoms import write_toy

REPOSITORY = Path(__file__).resolve().parents[1]

VERBS = sorted(str(command.name) for command in app.registered_commands if command.name != "token")
"""A token is a secret, and what a job prints is kept."""
START_S = 600.0

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def test_there_is_a_job_for_every_verb() -> None:
    assert sorted(path.stem for path in (REPOSITORY / "jobs").glob("*.py")) == VERBS


def test_no_job_hides_a_module_of_python() -> None:
    """A script's folder comes first where modules are looked for: a ``token.py`` beside it ends every job."""
    assert not {path.stem for path in (REPOSITORY / "jobs").glob("*.py")} & sys.stdlib_module_names


@pytest.mark.parametrize("verb", VERBS)
def test_a_job_is_its_verb(verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = REPOSITORY / "jobs" / f"{verb}.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert not ended.value.code
    assert f" {verb} [OPTIONS]" in capsys.readouterr().out


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, outside of those that Ray gives its workers (10002 to 19999)."""
    found: list[int] = []
    sockets = [socket.socket() for _ in range(4 * count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
        port = each.getsockname()[1]
        if port > 19999:
            found.append(port)
    for each in sockets:
        each.close()
    assert len(found) >= count
    return found[:count]


def without_voxray(folder: Path) -> Path:
    """A Python that has all that voxray needs, and no voxray; as on a node where only its dependencies are."""
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin" / "python"


def environment(python: str | Path = sys.executable) -> dict[str, str]:
    """This process's, with this Python first in PATH: jobs run with the `python` that `ray start` found there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    path = f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    quiet = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0"}
    return {**kept, **quiet, "PATH": path}


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The jobs address of a Ray head of its own, whose Python has no voxray.

    It is ended by a signal to its process, and nothing else is.
    """
    gcs, dashboard, agent, client = free_ports(4)
    # Ray's sockets lie below this folder, and their paths may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="vx", dir="/tmp", ignore_cleanup_errors=True) as folder:
        python = without_voxray(Path(folder) / "venv")
        command = [
            *(str(python), "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
            *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
            *(f"--ray-client-server-port={client}", "--include-dashboard=true", "--num-cpus=3"),
            *("--object-store-memory=200000000", f"--temp-dir={folder}/r"),
        ]
        log = Path(folder) / "head.log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                command, env=environment(python), stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )
        address = f"http://127.0.0.1:{dashboard}"
        try:
            wait_for(address, process, log)
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until the jobs API answers."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{address}/api/jobs/", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"no answer in {START_S:.0f} s: {log.read_text()}")


def submit(head: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """``ray job submit`` with the code of this checkout, as a user types it."""
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", head),
        *("--working-dir", str(REPOSITORY), "--", "python", *map(str, arguments)),
    ]
    return subprocess.run(command, capture_output=True, text=True, env=environment())


@pytest.mark.ray
@pytest.mark.slow
def test_a_dataset_is_ingested_as_a_job_where_voxray_is_not_installed(head: str, tmp_path: Path) -> None:
    """The driver has it from its working folder, its workers from the driver."""
    dataset = write_toy(tmp_path / "toy", kind="cubes", num_cases=3)
    done = submit(head, "jobs/ingest.py", dataset, "spleen", "-o", tmp_path / "store")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert "3 done in " in done.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_a_dataset_that_fails_makes_the_job_fail(head: str, tmp_path: Path) -> None:
    dataset = write_toy(tmp_path / "toy", kind="cubes", num_cases=3)
    image = tmp_path / "toy" / "images" / "toy_001.nii.gz"
    image.write_bytes(image.read_bytes()[:5000])
    done = submit(head, "jobs/check.py", dataset)
    assert done.returncode != 0
    assert "toy_001" in done.stdout
    assert "[nifti.truncated]" in done.stdout
    assert "failed" in (done.stdout + done.stderr).lower()
    assert status_of_last_job(head) == "FAILED"


def status_of_last_job(head: str) -> str:
    """What the head says of the job that began last."""
    from ray.job_submission import JobSubmissionClient

    jobs = JobSubmissionClient(head).list_jobs()
    return str(max(jobs, key=lambda job: job.start_time or 0).status.value)
