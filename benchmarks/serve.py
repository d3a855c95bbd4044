"""The service: what it costs over the bare predictor, what it stands, and how soon it is there.

Overhead: the same scan, from its file to its answer, by the bare predictor (read, predicted, written, in a warm
process) and through HTTP (uploaded, answered, fetched; and all of it in one request), in turns: what the service adds
is the median of the differences within a turn, as the machine's speed may be another in the next. A whole scan's
answer takes so long that this speed still outweighs all else: so what of a job is outside of the engine, which is the
bare predictor's own, is told, too (it includes reading the scan and writing the mask). The rest has no peer, so its
column shows the aim: mixed load of eight clients, good and bad, with cancels; kills of replicas, of the door and of
the whole service with jobs under way; a rolling update under load; a cold start. Growth of memory is what the
service's processes hold more after the load than after the first tenth of it, and a control that leaks must be found
out.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from table import Row, options, show

# What tests use to drive a service; in place of this folder, whose names are those of folders there.
sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests")

from support.service_load import resident_mib, right_answers, use  # noqa: E402
from support.services import Served, await_ready, small_models, small_scan, start  # noqa: E402
from support.small_runs import write_small_run  # noqa: E402
from voxray.inference.trained_model import open_model  # noqa: E402
from voxray.phantoms import draw_phantom  # noqa: E402
from voxray.readers import read_volume, write_nifti  # noqa: E402
from voxray.results.answers import write_answer  # noqa: E402

ROUNDS = 5
WINDOWS = ["inference.window_vox=[96,96,64]", "inference.overlap=0.25"]


def main() -> None:
    """Prints the table."""
    asked = options(__doc__ or "")
    minutes, kills = (0.5, 2) if asked.quick else (10.0, 20)
    with tempfile.TemporaryDirectory(prefix="voxray_serve_") as scratch:
        folder = Path(scratch)
        rows = [*overhead(folder / "overhead", quick=asked.quick)]
        models = small_models(folder / "runs")
        scans = [small_scan(folder / f"scan{seed}.nii.gz", seed=seed) for seed in range(4)]
        served = start(folder / "load", models)
        rows.append(bound("cold start to ready, 2 models", await_ready(served), "s", 60))
        answers = right_answers(served.address, scans)
        rows += load(served, scans, answers, minutes=minutes)
        rows += update(served, scans, answers)
        rows += killed(served, models, scans, answers, times=kills)
    rows.append(control(minutes=min(minutes, 1.0)))
    show(rows, title="the service", json_file=asked.json)


def bound(case: str, value: float, unit: str, most: float) -> Row:
    """A figure that has no peer, and the most that it may be; said at once, as the whole takes long."""
    print(f"{case}: {value:.4g} {unit}", flush=True)
    return Row(case, most, value, unit, most, less_is_better=True, aim_of="voxray")


def overhead(folder: Path, *, quick: bool) -> list[Row]:
    """A whole scan and a small one, bare and through HTTP, in turns."""
    folder.mkdir(parents=True)
    run = write_small_run(folder / "organs", "segresnet")
    small = small_scan(folder / "small.nii.gz")
    whole = folder / "whole.nii.gz"
    write_nifti(draw_phantom("abdomen", 1, size="small" if quick else "large").image, whole)
    model = open_model(str(run), runtime="torch", device="cpu", overrides=WINDOWS)
    predictor = model.predictor()

    def bare(path: Path) -> float:
        begin = time.perf_counter()
        write_answer(predictor.predict(read_volume(path)), folder, case=path.name, model=model)
        return time.perf_counter() - begin

    alone: dict[Path, list[float]] = {small: [], whole: []}
    added: dict[Path, list[tuple[float, ...]]] = {small: [], whole: []}
    outside: dict[Path, list[float]] = {small: [], whole: []}
    served = start(folder / "service", {"organs": {"path": str(run), "runtime": "torch", "overrides": WINDOWS}})
    try:
        await_ready(served)
        with httpx.Client(base_url=served.address, timeout=600) as client:
            for path in alone:
                for _ in range(1 + ROUNDS * (4 if path == small else 1)):  # the first warms both
                    alone[path].append(bare(path))
                    job, sent, within = through(client, path)
                    ways = (seconds - alone[path][-1] for seconds in (job, sent, at_once(client, path)))
                    added[path].append(tuple(ways))
                    outside[path].append(job - within)
    finally:
        served.process.send_signal(signal.SIGINT)
        served.process.wait(90)
        served.kill_all()
    first = statistics.median(alone[whole][1:])
    more = {path: [statistics.median(way) for way in zip(*turns[1:], strict=True)] for path, turns in added.items()}
    apart = statistics.median(outside[whole][1:])
    names = ("as a job", "sent and fetched, too", "all in one request")
    return [
        *(
            Row(f"a whole scan: bare, and {name}", first, first + seconds, "s", 1 / 1.1, less_is_better=True)
            for name, seconds in zip(names, more[whole], strict=True)
        ),
        bound("a whole scan, as a job: outside of the engine", 100 * apart / first, "%", 10),
        *(
            bound(f"a small scan, {name}: more than bare", 1000 * seconds, "ms", 50)
            for name, seconds in zip(names, more[small], strict=True)
        ),
    ]


def through(client: httpx.Client, path: Path) -> tuple[float, float, float]:
    """Seconds of the job from asking to its answer, from the file to the fetched answer, and of its engine."""
    begin = time.perf_counter()
    study = client.post("/v1/studies?name=scan.nii.gz", content=path.read_bytes()).json()["study_id"]
    asked = time.perf_counter()
    job = client.post("/v1/jobs?wait=300", json={"study_id": study, "model": "organs"}).json()
    answered = time.perf_counter()
    assert job["state"] == "done", job
    client.get(f"/v1/jobs/{job['job_id']}/results/nifti").raise_for_status()
    fetched = time.perf_counter()
    client.delete(f"/v1/studies/{study}")
    return answered - asked, fetched - begin, job["timing_s"]["answer"]


def at_once(client: httpx.Client, path: Path) -> float:
    """Seconds from the file to the answer in one request."""
    begin = time.perf_counter()
    client.post("/v1/answers?model=organs&form=nifti", content=path.read_bytes()).raise_for_status()
    return time.perf_counter() - begin


def load(served: Served, scans: list[Path], answers: Any, *, minutes: float) -> list[Row]:
    """Eight clients; memory is looked at after the first tenth and at the end, when all is still."""
    use(served.address, scans, answers, clients=8, seconds=max(20.0, 6 * minutes))
    time.sleep(5)
    before = resident_mib(served.processes("voxray"))
    record = use(served.address, scans, answers, clients=8, seconds=60 * minutes)
    time.sleep(5)
    growth = resident_mib(served.processes("voxray")) - before
    print(
        f"load: {record.jobs} jobs, {record.cancelled} cancelled, {record.refused} refused, {dict(record.statuses)}"
    )
    for fault in record.faults[:10]:
        print("  fault:", fault)
    what = f"{minutes:g} min of 8 clients, {record.jobs} jobs"
    return [
        bound(f"{what}: faults (5xx, lost, doubled, wrong)", len(record.faults) + record.broken, "", 0),
        bound(f"{what}: growth of memory", growth, "MiB", 100),
    ]


def update(served: Served, scans: list[Path], answers: Any) -> list[Row]:
    """The application deployed again, with changed models, while clients use it."""
    record: list[Any] = []
    using = threading.Thread(
        target=lambda: record.append(use(served.address, scans, answers, clients=4, seconds=45.0))
    )
    using.start()
    time.sleep(3)
    done = subprocess.run(
        [sys.executable, "-c", UPDATE, served.folder, served.ray_address()],
        env={**os.environ, "RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        check=False,
    )
    using.join()
    assert done.returncode == 0, done.stderr[-2000:]
    for fault in record[0].faults[:5]:
        print("  fault:", fault)
    return [bound("a rolling update under load: failed requests", len(record[0].faults) + record[0].broken, "", 0)]


def killed(served: Served, models: dict[str, Any], scans: list[Path], answers: Any, *, times: int) -> list[Row]:
    """SIGKILL while jobs are under way: a model's replica, the door, everything."""
    rows, port = [], int(served.address.rsplit(":", 1)[1])
    rng = random.Random(0)
    for what in ("model-organs", "door", "everything"):
        wrong = 0
        for _ in range(times):
            jobs = [accepted(served.address, scans, answers, rng) for _ in range(4)]
            time.sleep(rng.random() * 0.3)
            if what == "everything":
                served.kill_all()
                served = start(served.folder, models, port=port)
                await_ready(served)
            else:
                for pid in served.processes(f"voxray:{what}"):
                    os.kill(pid, signal.SIGKILL)
            wrong += sum(not ended_well(served.address, job, answers[key]) for job, key in jobs)
        rows.append(bound(f"{what} killed {times} times, 4 jobs under way: lost or wrong", wrong, "jobs", 0))
    served.process.send_signal(signal.SIGINT)
    served.process.wait(90)
    served.kill_all()
    return rows


def accepted(address: str, scans: list[Path], answers: Any, rng: random.Random) -> tuple[str, tuple[int, str]]:
    """A job that the service has accepted, asked for until it is."""
    key = rng.choice(list(answers))
    while True:
        try:
            study = httpx.post(
                f"{address}/v1/studies?name=a.nii.gz", content=scans[key[0]].read_bytes(), timeout=60
            ).json()["study_id"]
            reply = httpx.post(f"{address}/v1/jobs", json={"study_id": study, "model": key[1]}, timeout=60)
            return reply.json()["job_id"], key
        except (httpx.HTTPError, KeyError, ValueError):
            time.sleep(0.5)


def ended_well(address: str, job: str, answer: Any, *, seconds: float = 240.0) -> bool:
    """Whether an accepted job came to the right end."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            found = httpx.get(f"{address}/v1/jobs/{job}?wait=20", timeout=60).json()
            if found.get("state") in ("done", "failed", "cancelled"):
                result = found.get("result") or {}
                return bool(result.get("findings", result.get("labels")) == answer)
        except (httpx.HTTPError, ValueError):
            time.sleep(0.5)
    return False


def control(*, minutes: float) -> Row:
    """A process that keeps 4 MiB a second: the measure of growth must find it out."""
    leak = "import time\nheld = []\nwhile True:\n    held.append(bytearray(4 << 20))\n    time.sleep(1)\n"
    process = subprocess.Popen([sys.executable, "-c", leak])
    time.sleep(3)
    before = resident_mib([process.pid])
    time.sleep(60 * minutes)
    growth = resident_mib([process.pid]) - before
    process.kill()
    return Row(f"control: a leak of 4 MiB/s for {minutes:g} min is found", 240 * minutes, growth, "MiB", 0.9)


UPDATE = """
import json, sys
from pathlib import Path
import ray
from ray import serve
from voxray.serving.app import build
ray.init(address=sys.argv[2], logging_level="ERROR", log_to_driver=False)
config = json.loads((Path(sys.argv[1]) / "config.json").read_text())
for model in config["models"].values():
    model["threads"] = 1
serve.run(build({**config, "folder": sys.argv[1]}), name="voxray", route_prefix="/", blocking=False)
"""


if __name__ == "__main__":
    main()
