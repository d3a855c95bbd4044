"""Jobs on a real Ray head: submitted as a user would, with the code in the working directory."""

from __future__ import annotations

import json
import os
import runpy
import secrets
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
from dataclasses import dataclass
from pathlib import Path

import pytest

from voxray.cli import app
from voxray.cli.cluster import NO_JOBS
from voxray.phantoms import write_toy

REPOSITORY = Path(__file__).resolve().parents[1]

VERBS = sorted(str(command.name) for command in app.registered_commands if command.name not in NO_JOBS)
START_S = 600.0

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def test_there_is_a_job_for_every_verb() -> None:
    assert sorted(path.stem for path in (REPOSITORY / "jobs").glob("*.py")) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_a_job_brings_its_code_and_names_its_verb(verb: str) -> None:
    """All but for the verb alike: what one needs, all need."""
    other = "check" if verb != "check" else "train"
    texts = [(REPOSITORY / "jobs" / f"{name}.py").read_text().partition("\n")[2] for name in (verb, other)]
    assert texts[0].replace(f'run("{verb}")', "run(...)") == texts[1].replace(f'run("{other}")', "run(...)")
    assert f'run("{verb}")' in texts[0]


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


@dataclass(frozen=True)
class Head:
    """A Ray head: where its jobs API is, and the file with its token."""

    address: str
    token: Path


def environment(token: Path, python: str | Path = sys.executable) -> dict[str, str]:
    """This process's, with this Python first in PATH: jobs run with the `python` that `ray start` found there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    path = f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    guard = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0"}
    return {**kept, **guard, **quiet, "PATH": path}


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A Ray head of its own, which wants a token, and whose Python has no voxray.

    It is ended by a signal to its process, and nothing else is.
    """
    gcs, dashboard, agent, client = free_ports(4)
    # Ray's sockets lie below this folder, and their paths may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="vx", dir="/tmp", ignore_cleanup_errors=True) as folder:
        python = without_voxray(Path(folder) / "venv")
        token = Path(folder) / "token"
        token.write_text(secrets.token_hex(32))
        command = [
            *(str(python), "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
            *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
            *(f"--ray-client-server-port={client}", "--include-dashboard=true", "--num-cpus=3"),
            *("--object-store-memory=200000000", f"--temp-dir={folder}/r"),
        ]
        log = Path(folder) / "head.log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                command,
                env=environment(token, python),
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        address = f"http://127.0.0.1:{dashboard}"
        try:
            wait_for(address, process, log)
            yield Head(address, token)
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
                pytest.fail("the jobs API answers without a token")
        except urllib.error.HTTPError as answer:
            if answer.code == 401:
                return
            time.sleep(0.5)
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"no answer in {START_S:.0f} s: {log.read_text()}")


def submit(head: Head, *arguments: object) -> subprocess.CompletedProcess[str]:
    """``ray job submit`` with the code of this checkout, as a user types it."""
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", head.address),
        *("--working-dir", str(REPOSITORY), "--", "python", *map(str, arguments)),
    ]
    return subprocess.run(command, capture_output=True, text=True, env=environment(head.token))


def voxray(head: Head, *arguments: object) -> subprocess.CompletedProcess[str]:
    """``voxray`` of this checkout, for that cluster."""
    command = [sys.executable, "-m", "voxray", *map(str, arguments), "--address", head.address]
    env = environment(head.token) | {"PYTHONPATH": str(REPOSITORY / "platform")}
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.mark.ray
@pytest.mark.slow
def test_a_dataset_is_ingested_as_a_job_where_voxray_is_not_installed(head: Head, tmp_path: Path) -> None:
    """The driver has it from its working folder, its workers from the driver."""
    dataset = write_toy(tmp_path / "toy", kind="cubes", num_cases=3)
    done = submit(head, "jobs/ingest.py", dataset, "spleen", "-o", tmp_path / "store")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert "3 done in " in done.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_that_fails_returns_its_exit_code_and_names_the_cause(head: Head, tmp_path: Path) -> None:
    dataset = write_toy(tmp_path / "toy", kind="cubes", num_cases=3)
    image = tmp_path / "toy" / "images" / "toy_001.nii.gz"
    image.write_bytes(image.read_bytes()[:5000])
    done = voxray(head, "submit", "check", dataset)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "voxray: case toy_001: [nifti.truncated]" in done.stdout
    job_id = done.stdout.split(maxsplit=1)[0]
    told = done.stderr.strip().splitlines()[-1]
    assert told.startswith(f"voxray: {job_id} failed with exit code 1: case toy_001: [nifti.truncated]"), done.stderr
    found = voxray(head, "status", job_id, "--json")
    assert found.returncode == 0, found.stderr
    rows = json.loads(found.stdout)
    assert rows["state"] == "failed with exit code 1"
    assert rows["because"].startswith("case toy_001: [nifti.truncated]")
    assert head.token.read_text() not in done.stdout + done.stderr + found.stdout
