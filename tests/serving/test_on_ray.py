"""`voxray serve` as users start it: real Ray, real HTTP, real kills."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from support.service_load import resident_mib, right_answers, use
from support.services import await_ready, small_models, small_scan, start
from voxray.core.volume import Grid, Volume
from voxray.readers import write_nifti

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


class Bench:
    """A service, its scans and their right answers."""

    def __init__(self, folder: Path) -> None:
        self.models = small_models(folder / "runs")
        self.scans = [small_scan(folder / f"scan{seed}.nii.gz", seed=seed) for seed in range(2)]
        self.served = start(folder / "service", self.models)
        await_ready(self.served)
        self.answers = right_answers(self.served.address, self.scans)
        self._random = random.Random(0)

    def accepted(self) -> tuple[str, Any]:
        """A job that the service has taken, and its right answer."""
        number, model = self._random.choice(list(self.answers))
        with httpx.Client(base_url=self.served.address, timeout=60) as client:
            study = client.post("/v1/studies?name=a.nii.gz", content=self.scans[number].read_bytes()).json()[
                "study_id"
            ]
            reply = client.post("/v1/jobs", json={"study_id": study, "model": model})
            assert reply.status_code == 202, reply.text
            return reply.json()["job_id"], self.answers[number, model]

    def assert_right(self, job: str, answer: Any) -> None:
        """Waits for the job's end, through whatever is broken meanwhile."""
        until, found = time.monotonic() + 150, None
        while time.monotonic() < until:
            try:
                found = httpx.get(f"{self.served.address}/v1/jobs/{job}?wait=20", timeout=60).json()
                if found.get("state") in ("done", "failed", "cancelled"):
                    break
            except (httpx.HTTPError, ValueError):
                time.sleep(0.5)
        assert found is not None
        assert found["state"] == "done", found
        assert found["result"].get("findings", found["result"].get("labels")) == answer


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("serve"))
    yield made
    made.served.process.send_signal(signal.SIGINT)
    try:
        assert made.served.process.wait(90) == 0
    finally:
        made.served.kill_all()


def test_load_with_bad_requests_and_cancels(bench: Bench) -> None:
    record = use(bench.served.address, bench.scans, bench.answers, clients=4, seconds=15)
    assert not record.faults
    assert not record.broken
    assert record.jobs > 0
    assert record.refused > 0


@pytest.mark.parametrize("what", ["model-organs", "desk", "door", "scans"])
def test_jobs_survive_the_death_of(bench: Bench, what: str) -> None:
    jobs = [bench.accepted() for _ in range(4)]
    killed = bench.served.processes(f"voxray:{what}")
    assert killed
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    for job, answer in jobs:
        bench.assert_right(job, answer)


def test_jobs_survive_the_death_of_everything(bench: Bench) -> None:
    jobs = [bench.accepted() for _ in range(4)]
    port = int(bench.served.address.rsplit(":", 1)[1])
    bench.served.kill_all()
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{bench.served.address}/livez", timeout=5)
    bench.served = start(bench.served.folder, bench.models, port=port)
    await_ready(bench.served)
    for job, answer in jobs:
        bench.assert_right(job, answer)


@contextmanager
def growth(bench: Bench) -> Iterator[dict[int, float]]:
    """The MiB that the door and Ray's proxy hold more at most than at the beginning, by process."""
    pids = [*bench.served.processes("voxray:door"), *bench.served.processes("ProxyActor")]
    assert len(pids) == 2
    before = {pid: resident_mib([pid]) for pid in pids}
    most, over = dict.fromkeys(pids, 0.0), threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            for pid in pids:
                most[pid] = max(most[pid], resident_mib([pid]) - before[pid])

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield most
    finally:
        over.set()
        watching.join()


def test_models_wait_for_nothing_else_on_the_machine(bench: Bench) -> None:
    """Ray's workers do, unless it is told otherwise: beside a training an answer took twice as long."""
    pids = [*bench.served.processes("voxray:model-"), *bench.served.processes("voxray:door")]
    assert len(pids) >= 3
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in pids} == {os.getpriority(os.PRIO_PROCESS, 0)}


def test_an_upload_is_not_held_in_memory(bench: Bench) -> None:
    """Junk that begins as a NIfTI does: refused when it is read, after all of it has come."""
    header, chunk, chunks = (348).to_bytes(4, "little") + bytes(348), random.Random(0).randbytes(1 << 20), 400
    body = (header if number == 0 else chunk for number in range(chunks))
    with growth(bench) as most:
        refused = httpx.post(f"{bench.served.address}/v1/studies?name=scan.nii", content=body, timeout=120)
    assert refused.status_code in (415, 422)
    assert max(most.values()) < 64, most


def test_a_download_is_not_held_in_memory(bench: Bench, tmp_path: Path) -> None:
    """A large scan, to a client that takes little of it, slowly, and leaves; then all of it, to one that does not."""
    voxels = np.random.default_rng(0).integers(-1000, 1000, (400, 400, 800)).astype(np.int16)
    grid = Grid(voxels.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    write_nifti(Volume(voxels, grid), tmp_path / "scan.nii.gz")
    with (
        httpx.Client(base_url=bench.served.address, timeout=120) as client,
        (tmp_path / "scan.nii.gz").open("rb") as f,
    ):
        study = client.post("/v1/studies?name=scan.nii.gz", content=f).json()["study_id"]
        with growth(bench) as most:
            with client.stream("GET", f"/v1/studies/{study}/volume") as reply:
                size, chunks = int(reply.headers["content-length"]), reply.iter_raw(1 << 20)
                for _ in range(8):
                    next(chunks)
                    time.sleep(0.25)
            with client.stream("GET", f"/v1/studies/{study}/volume") as reply:
                assert sum(map(len, reply.iter_raw(1 << 20))) == size > 150 << 20
        client.delete(f"/v1/studies/{study}")
    assert max(most.values()) < 64, most


def test_log_is_json_and_knows_no_patient(bench: Bench) -> None:
    canary = "Canary^Patient"
    with httpx.Client(base_url=bench.served.address, timeout=60) as client:
        junk = client.post("/v1/studies", files={"file": (f"{canary}.nii.gz", b"junk" * 100)})
        named = client.post(f"/v1/studies?name={canary}.nii.gz", content=bench.scans[0].read_bytes())
        metrics = client.get("/metrics")
    assert junk.status_code in (415, 422)
    assert named.status_code == 201
    assert canary in junk.text  # a refusal names the file to its sender, and to nobody else
    assert canary not in named.text + metrics.text
    assert canary not in bench.served.log.read_text()
    files = [path for path in bench.served.folder.rglob("*") if path.is_file()]
    assert not [path for path in files if canary in str(path) or canary.encode() in path.read_bytes()]
    lines = [line for path in files if path.suffix == ".jsonl" for line in path.read_text().splitlines()]
    assert {"request", "job done"} <= {json.loads(line)["message"] for line in lines}


def test_port_that_is_taken_is_named(bench: Bench, tmp_path: Path) -> None:
    port = bench.served.address.rsplit(":", 1)[1]
    command = [
        sys.executable,
        "-m",
        "voxray",
        "serve",
        bench.models["organs"]["path"],
        "--port",
        port,
        "--folder",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_ports_of_ray_want_a_token(bench: Bench) -> None:
    """Another user's client, without the token, is shut out of the cluster."""
    code = "import ray, sys; ray.init(address=sys.argv[1], logging_level='ERROR'); print(ray.cluster_resources())"
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    done = subprocess.run(
        [sys.executable, "-c", code, bench.served.ray_address()],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "CPU" not in done.stdout
