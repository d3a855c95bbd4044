"""The real service to ask: in this process without Ray, or as `voxray serve` runs it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from support.small_runs import write_small_run
from voxray.core.volume import Grid, Volume
from voxray.readers import write_nifti
from voxray.serving.app import check
from voxray.serving.config import ServeConfig
from voxray.serving.deployments.local import LocalWorkers, open_scheduler
from voxray.serving.http.application import make_app
from voxray.serving.jobs.service import Service
from voxray.serving.jobs.store import JobStore
from voxray.serving.paths import ServicePaths

SURE = ["merge.score_floor=0.0", "merge.max_detections=20", "inference.candidate_floor=0.0"]
"""So that a network that has learnt nothing finds something."""
LARGE = "inference.window_vox=[96,96,32]"
"""So that a real scan has few windows."""
QUOTA = {"requests_per_minute": 1_000_000, "uploads_per_minute": 1_000_000, "open_jobs": 10_000, "studies": 100_000}
"""Of clients in tests, which are more eager than others."""
KINDS = {"nodules": "retinanet", "organs": "unet"}
"""The models that are served: a detector and a segmentation."""


def small_models(folder: Path) -> dict[str, dict[str, Any]]:
    """Runs of small networks, as a configuration names them; scans are handed on to the one, not to the other."""
    made: dict[str, dict[str, Any]] = {
        name: {"path": str(write_small_run(folder / name, kind)), "runtime": "torch"} for name, kind in KINDS.items()
    }
    made["nodules"] |= {"overrides": [*SURE, LARGE], "prepared_here_vox": 0}
    made["organs"]["overrides"] = [LARGE]
    return made


def small_scan(path: Path, *, seed: int = 0, side: int = 40) -> Path:
    """A NIfTI of air with a bright block, and noise that tells scans apart."""
    rng = np.random.default_rng(seed)
    voxels = rng.integers(-1000, -900, (side, side + 4, side - 8)).astype(np.int16)
    voxels[10:25, 12:28, 8:20] = 60
    grid = Grid(voxels.shape, (1.5, 1.5, 2.0), (10.0, -20.0, 30.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    write_nifti(Volume(voxels, grid), path)
    return path


@asynccontextmanager
async def in_process(folder: Path, **fields: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service with small models; `fields` go into its configuration, `times` to its desk."""
    times = fields.pop("times", {})
    models = fields.pop("models", None) or small_models(folder / "runs")
    config = ServeConfig.model_validate({"models": models, "folder": str(folder / "service"), **fields})
    places = ServicePaths(config.root).prepared()
    store = JobStore(config.database_url)
    workers = LocalWorkers(config, places)
    scheduler = open_scheduler(config, store, workers, places, **times)
    working = asyncio.create_task(scheduler.run())
    app = make_app(Service(config, store, workers, places, check(config)))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=120) as client:
            yield client
    finally:
        await scheduler.stop()
        await working
        store.close()


async def upload(client: httpx.AsyncClient, *paths: Path, **headers: str) -> dict[str, Any]:
    """The study that the files become."""
    files = [("file", (path.name, path.read_bytes())) for path in paths]
    reply = await client.post("/v1/studies", files=files, headers=headers)
    assert reply.status_code == 201, reply.text
    study: dict[str, Any] = reply.json()
    return study


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Served:
    """A `voxray serve` that runs, with all its processes in one group."""

    process: subprocess.Popen[bytes]
    address: str
    folder: Path
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def processes(self, mark: str) -> list[int]:
        """The service's processes whose title has `mark` in it, such as ``model-organs``."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                title = (path / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
                session = os.getsid(int(path.name))
            except (OSError, ValueError):
                continue
            if mark in title and session == self.process.pid:
                found.append(int(path.name))
        return found

    def ray_address(self) -> str:
        """The address of the service's Ray."""
        for pid in self.processes("raylet/raylet"):
            for part in Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0"):
                if part.startswith("--gcs-address="):
                    return part.removeprefix("--gcs-address=")
        raise AssertionError("no raylet")

    def kill_all(self) -> None:
        """What a power cut does: every process of the service at once."""
        for _ in range(3):
            for pid in self.processes(""):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        self.process.wait()


def start(folder: Path, models: Mapping[str, Any], *, port: int | None = None, more: Sequence[str] = ()) -> Served:
    """Starts `voxray serve`, with `more` options; `await_ready` tells when it answers."""
    port = port or free_port()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "serve.log"
    config = folder / "config.json"
    config.write_text(json.dumps({"models": models, "quota": QUOTA}))
    command = [
        sys.executable,
        "-m",
        "voxray",
        "serve",
        "--port",
        str(port),
        "--folder",
        str(folder),
        "--config",
        str(config),
        *more,
    ]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env=environment, start_new_session=True, cwd=folder
        )
    return Served(process, f"http://127.0.0.1:{port}", folder, log, environment)


def await_ready(served: Served, *, seconds: float = 180.0) -> float:
    """How long it took until every model answered."""
    begin = time.monotonic()
    while time.monotonic() - begin < seconds:
        assert served.process.poll() is None, served.log.read_text()[-3000:]
        try:
            if httpx.get(f"{served.address}/readyz", timeout=5).status_code == 200:
                return time.monotonic() - begin
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise AssertionError(served.log.read_text()[-3000:])


@contextmanager
def on_ray(folder: Path, models: Mapping[str, Any], *, more: Sequence[str] = ()) -> Iterator[Served]:
    """A service that is ready, and ended after the block."""
    served = start(folder, models, more=more)
    try:
        await_ready(served)
        yield served
        served.process.send_signal(signal.SIGINT)
        served.process.wait(90)
    finally:
        served.kill_all()
