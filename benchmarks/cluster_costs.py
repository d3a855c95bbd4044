"""What a cluster costs: seconds, bytes, requests and idle nodes, each part bounded in time and printed at once.

Clusters are processes of this machine, so that their nodes share its cores; every row names the load average at its
end. The peer of a row is what it is compared with: the smaller store, one node, one worker, the fewer items.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import SimpleITK
from cluster_workloads import Numbers, large_recipe, noise_case, write_copies
from process_tree import watched_memory
from table import Row, options, show

from record_behaviour import RECIPES
from support.buckets import buckets
from support.clusters import fixed_cluster, free_port, growing_cluster
from support.tiny_training import made_store, segmentation_recipe, train_silently
from voxray.core.recipe import PatchConfig
from voxray.core.storage import Place
from voxray.distributed.capacity import Capacity, NodeShape
from voxray.distributed.placement import placement
from voxray.sampling import Schedule, TileIndex, epoch_plan
from voxray.store import PatchSource, Store, read_batches, stretches, write_case, write_manifest
from voxray.store.reading import forget_opened
from voxray.store.shard_cache import FOLDER, SIZE

REPOSITORY = Path(__file__).resolve().parents[1]
LIMIT_S = 400.0
"""How long one workload may take."""


def main() -> None:
    """Measures and prints the parts."""
    asked = options(__doc__ or "", parts=tuple(PARTS))
    if asked.only:
        costs(asked.only, quick=asked.quick, json_file=asked.json)
        return
    rows = [row for name in PARTS for row in costs(name, quick=asked.quick)]
    show(rows, title="what a cluster costs", json_file=asked.json)


def costs(part: str, *, quick: bool, json_file: Path | None = None) -> list[Row]:
    """The rows of a part, printed at once."""
    with tempfile.TemporaryDirectory() as folder:
        found = list(measured(part, Path(folder), quick=quick))
    title = f"{part}, load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores"
    show(found, title=title, json_file=json_file)
    return found


def measured(part: str, folder: Path, *, quick: bool) -> Iterator[Row]:
    """The rows of a part; what fails is a row that misses its aim, and the others go on."""
    try:
        yield from PARTS[part](folder, quick)
    except Exception as error:
        print(f"{part}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        yield Row(f"{part} failed", 0, 1, "failures", 0, aim_of="voxray")


def number(case: str, value: float, unit: str, most: float = float("inf"), peer: float | None = None) -> Row:
    """A row of which less is better, held to `most`."""
    return Row(case, value if peer is None else peer, value, unit, most, less_is_better=True, aim_of="voxray")


def memory(folder: Path, quick: bool) -> Iterator[Row]:
    """An epoch of the stream from a store within the object store's limit, and from one 20 times as large."""
    found: dict[str, Numbers] = {}
    for name, num_bytes in (("limit", 80_000_000), ("20 x", 1_600_000_000)):
        store = write_copies(folder / name, num_bytes)
        found[name] = workload("stream", {"store": store.uri, "batches": 150 if quick else 600})
    few, many = found["limit"], found["20 x"]
    title = "stream, object store of 80 MB: peak of all processes, store of 1.6 GB against 80 MB"
    yield number(title, many["peak_mib"], "MiB", most=1.1 * few["peak_mib"], peer=few["peak_mib"])
    yield Row("stream: patches of 64 x 64 x 64", few["rate"], many["rate"], "patches/s", 0)
    yield number("stream: reports of spilled objects", many["spilled"], "reports", most=0)


def predict(folder: Path, _quick: bool) -> Iterator[Row]:
    """Scans answered by two workers: the memory of all processes for 20 of them, and for 200."""
    store = made_store(folder / "store", segmentation_recipe())
    train_silently(store.uri, segmentation_recipe("optim.epochs=1"), folder / "run", workers=0, fold=None)
    few = 20  # with fewer, workers end before they hold what they ever will
    peaks = []
    for count in (few, 10 * few):
        scans = folder / f"scans_{count}"
        scans.mkdir()
        for index in range(count):
            voxels = np.random.default_rng(index).normal(-500, 100, (64, 64, 64)).astype(np.int16)
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), scans / f"scan_{index}.nii.gz")
        words = ("predict", f"{folder}/run", str(scans), "-o", f"{folder}/answers_{count}", "--workers", "2")
        with command(words, None) as process, watched_memory(process.pid) as peak:
            output, _ = process.communicate(timeout=LIMIT_S)
        if process.returncode:
            raise RuntimeError(output.decode()[-1500:])
        peaks.append(peak[0])
    title = f"predict, two workers: peak of all processes, {10 * few} scans against {few}"
    yield number(title, peaks[1], "MiB", most=1.1 * peaks[0], peer=peaks[0])


def balance(folder: Path, _quick: bool) -> Iterator[Row]:
    """Bytes and CPU seconds of each of four slots over an epoch, of cases of 40 to 400 voxels along an axis."""
    recipe, place = large_recipe(), Place.of(folder)
    cases = [noise_case(f"case_{one}", (80, 80, 40 * one)) for one in range(1, 11)]
    stored = [write_case(place, one, recipe, original_grid=one.image.grid, signature="s") for one in cases]
    write_manifest(place, stored, recipe, dataset={"name": "x", "licence": "x", "classes": ["one"]}, failed={})
    store, schedule = Store.open(folder), Schedule(seed=0, steps_per_epoch=40, batch_size=2, num_slots=4)
    source = PatchSource.of(store, recipe, store.case_ids, schedule)
    sizes = np.array([np.prod(shape) * 3 for shape in store.tiles["shape"].to_pylist()])
    num_bytes, seconds = [], []
    for slot in range(4):
        ours = stretches(recipe, schedule, range(1), slots=(slot,))
        num_bytes.append(sum(sizes[read.tile] for one in ours for read in source.plan(0)[one.number][slot]))
        begin = time.process_time()
        for _ in read_batches(source, range(1), slots=(slot,)):
            pass
        seconds.append(time.process_time() - begin)
    yield number("cases of 1 to 10 times the size: bytes of a slot, most/mean", uneven(num_bytes), "times", most=1.1)
    yield number("the same: CPU seconds, most/mean", uneven(seconds), "times", most=1.1)


def uneven(values: Sequence[float]) -> float:
    """The most over the mean."""
    return float(max(values) / np.mean(values))


def plan(_folder: Path, quick: bool) -> Iterator[Row]:
    """Plans of 10,000 and 100,000 cases with ten tiles each."""
    costs = {}
    for cases in (1_000, 10_000) if quick else (10_000, 100_000):
        before, begin, index = psutil.Process().memory_info().rss, time.process_time(), labelled(cases)
        made = epoch_plan(index, PatchConfig(size_vox=(8, 8, 8)), Schedule(0, cases // 4, 4, 4), 0)
        costs[cases] = time.process_time() - begin, (psutil.Process().memory_info().rss - before) / 1e6
        del made, index
    (few, _), (many, megabytes) = costs.values()
    factor = max(costs) / min(costs)
    yield number(f"plan of {max(costs)} cases, 10 tiles each: CPU seconds", many, "s", most=5, peer=few * factor)
    yield number("the same: memory, the index of its tiles included", megabytes, "MB", most=500)


def labelled(cases: int) -> TileIndex:
    """Tiles with three labels each."""
    tiles, none = 10 * cases, np.zeros(0, np.int64)
    rows, entries = np.arange(tiles), np.repeat(np.arange(tiles), 3)
    return TileIndex(rows, rows // 10, none, none, entries, np.tile([1, 2, 3], tiles), np.arange(1, 3 * tiles + 1))


def nodes(folder: Path, quick: bool) -> Iterator[Row]:
    """From no node to the first task, and from the last task to no node: a fake autoscaler that looks each second."""
    found: list[Numbers] = []
    for _ in range(1 if quick else 3):
        with growing_cluster(folder, {"cpu": {"resources": {"CPU": 2}, "max_workers": 1}}) as address:
            found.append(workload("from_zero", {"address": address}))
    middle = {name: statistics.median(one[name] for one in found) for name in found[0]}
    yield number("no node -> first task", middle["first"], "s")
    yield number("last task -> node gone (idle time-out 6 s)", middle["gone"], "s")
    idle = middle["idle_before"] + middle["gone"]
    yield number("idle seconds of a node: it waits for the task, and for the time-out", idle, "s")


def two_nodes(folder: Path, quick: bool) -> Iterator[Row]:
    """1 -> 2 nodes, each bound to one core with one thread: ingest, predict, and a training at one global batch."""
    voxray("toy", str(folder / "scans"), "--kind", "abdomen", "--cases", "6" if quick else "12")
    fields = [word for one in SPLEEN for word in ("--set", one)]
    data = str(folder / "scans" / "dataset_spleen.toml")
    cost: dict[tuple[str, int], float] = {}
    for count in (1, 2):
        place, many = folder / str(count), ("--workers", str(count))
        verbs = {
            "ingest": (data, "spleen", "-o", f"{place}/store", *fields),
            "train": (f"{place}/store", "spleen", "-o", f"{place}/run", *fields, "--fold", "none", *many),
            "predict": (f"{place}/run", f"{folder}/scans/images", "-o", f"{place}/answers", *many),
        }
        with fixed_cluster(*[2] * count) as cluster:
            for core, raylet in enumerate(cluster.raylets[1:]):
                bind(raylet, core)
            for verb, words in verbs.items():
                cost[verb, count] = voxray(verb, *words, address=cluster.address)
                if verb != "train":  # the same again has nothing to do
                    cost[verb, count] -= voxray(verb, *words, address=cluster.address)
        history = json.loads((place / "run" / "history.json").read_text())
        cost["train", count] = history[-1]["samples_per_s"]
    for verb in ("ingest", "predict"):
        yield Row(f"{verb}: 1 -> 2 nodes of one core", cost[verb, 1], cost[verb, 2], "s", 1.8, less_is_better=True)
    yield Row("train: the same, a slot on each", cost["train", 1], cost["train", 2], "samples/s", 1.8)


def bind(pid: int, core: int) -> None:
    """The process and all that it starts run on that core alone."""
    for one in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            one.cpu_affinity([core % (os.cpu_count() or 1)])


def workers(folder: Path, quick: bool) -> Iterator[Row]:
    """Samples a second of 1, 2 and 3 workers that share six slots, on the same cores."""
    rates: list[float] = []
    steps = 20 if quick else 60
    for count in (1, 2, 3):
        job = {
            "folder": str(folder / str(count)),
            "fields": [f"optim.steps_per_epoch={steps}", "optim.epochs=2", "optim.validate_every=2"],
            "options": {"workers": count, "slots": 6, "fold": None},
        }
        rates.append(workload("train", job)["samples_per_s"])
        yield Row(f"{count} workers at one global batch of 12", rates[0], rates[-1], "samples/s", 0)


def checkpoints(folder: Path, quick: bool) -> Iterator[Row]:
    """Seconds that a training waits for each of its checkpoints, and its share at one each ten minutes."""
    channels = [32, 64, 128, 256]
    job = {
        "folder": str(folder),
        "fields": [
            f"optim.steps_per_epoch={20 if quick else 60}",
            *("optim.epochs=2", "optim.validate_every=2", "patch.size_vox=[32,32,32]"),
            *(f"network.channels={channels}", "network.strides=[2,2,2]"),
        ],
        "options": {"workers": 1, "fold": None, "checkpoint_minutes": 0.05},
    }
    found = workload("train", job)
    each = found["checkpoint_s"] / max(found["num_checkpoints"], 1)
    size = sum(one.stat().st_size for one in (folder / "run" / "checkpoints").rglob("*")) / 1e6
    yield number(f"checkpoint of {size:.0f} MB on disk: training waits", each, "s")
    yield number("share of training time, one each 3 s", 100 * found["checkpoint_share"], "%")
    yield number("share of training time, one each 10 min", each / 6, "%", most=2)


def kills(folder: Path, quick: bool) -> Iterator[Row]:
    """A worker is killed; the first steps that the training tells of afterwards, ten of them."""
    made_store(folder / "store", segmentation_recipe())
    recipe = folder / "recipe.json"
    fields = ("optim.epochs=400", "optim.steps_per_epoch=50", "optim.validate_every=400")
    recipe.write_text(segmentation_recipe(*fields).model_dump_json())
    waits = []
    words = ("train", f"{folder}/store", str(recipe), "-o", f"{folder}/run", "--fold", "none")
    with fixed_cluster(2) as cluster, command(words, cluster.address) as process:
        for _ in range(2 if quick else 5):
            until(lambda: told_since(folder / "run", 0.0) and bool(train_workers(cluster.raylets)), process)
            before = time.time()
            for one in train_workers(cluster.raylets):
                one.kill()
            until(lambda before=before: told_since(folder / "run", before + 1), process)  # type: ignore[misc]
            waits.append(time.time() - before)
        process.kill()
    yield number("worker killed -> next steps told: median", statistics.median(waits), "s")
    yield number(f"the same: most of {len(waits)}", max(waits), "s")


def told_since(run: Path, moment: float) -> bool:
    """Whether the training has told of steps since then."""
    with suppress(OSError):
        return (run / "ticker.json").stat().st_mtime > moment
    return False


def train_workers(raylets: Sequence[int]) -> list[psutil.Process]:
    """Ray Train's processes on these nodes."""
    found = []
    for one in (child for raylet in raylets for child in psutil.Process(raylet).children()):
        with suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(one.cmdline()):
                found.append(one)
    return found


def until(true: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Waits while the process lives."""
    end = time.monotonic() + LIMIT_S
    while not true():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"ended with {process.poll()} before what was waited for")
        time.sleep(0.05)


def jobs(folder: Path, quick: bool) -> Iterator[Row]:
    """Verbs with nothing left to do, as jobs of a local head; the peer is the same command without a cluster."""
    voxray("toy", str(folder / "scans"), "--kind", "abdomen", "--cases", "4")
    fields = [word for one in SPLEEN for word in ("--set", one)]
    data, run = str(folder / "scans" / "dataset_spleen.toml"), str(folder / "run")
    verbs = {
        "ingest": (data, "spleen", "-o", f"{folder}/store", *fields),
        "train": (f"{folder}/store", "spleen", "-o", run, *fields),
        "predict": (run, f"{folder}/scans/images", "-o", f"{folder}/answers"),
    }
    chosen = ("ingest",) if quick else tuple(verbs)
    for verb in chosen:
        voxray(verb, *verbs[verb])
    alone = {verb: voxray(verb, *verbs[verb]) for verb in chosen}
    with head(folder) as url:
        for verb in chosen:
            seconds = voxray("submit", "--address", url, verb, *verbs[verb])
            yield number(f"{verb} with nothing to do, as a job", seconds, "s", peer=alone[verb])


@contextmanager
def head(folder: Path) -> Iterator[str]:
    """The address of the jobs API of a head of this machine."""
    port = free_port()
    words = [
        *("start", "--head", f"--port={free_port()}", "--num-cpus=4", "--object-store-memory=200000000", "--block"),
        *("--include-dashboard=true", f"--dashboard-port={port}", f"--ray-client-server-port={free_port()}"),
        *("--disable-usage-stats",),
    ]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *words], stdout=log, stderr=log, env=environment
        )
    try:
        until(lambda: b"Ray runtime started" in (folder / "head.log").read_bytes(), process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def requests(folder: Path, _quick: bool) -> Iterator[Row]:
    """Requests to S3 for epochs that read each tile once, with the node's cache and without; bytes a sample."""
    recipe = segmentation_recipe("optim.batch_size=1", "patch.per_tile=2")
    beside = made_store(folder / "store", recipe, num_cases=12)
    samples = len(beside.tiles) * recipe.patch.per_tile
    num_bytes = sum(file.bytes for entry in beside.manifest.cases.values() for file in entry.files)
    os.environ[FOLDER] = str(folder / "cache")
    with buckets() as s3:
        far = Place.of(f"s3://{s3.make()}/store")
        for path in (folder / "store").rglob("*"):
            if path.is_file():
                far.put(path.relative_to(folder / "store").as_posix(), path)
        for gib in ("1", "0"):
            os.environ[SIZE] = gib
            store = Store.open(far.uri)
            forget_opened()
            schedule = Schedule(seed=1, steps_per_epoch=samples, batch_size=1)
            source = PatchSource.of(store, recipe, store.case_ids, schedule)
            for epoch in range(2):
                s3.asked.clear()
                for _ in read_batches(source, range(epoch, epoch + 1)):
                    pass
                asked = sum("/cases/" in path for _, path in s3.asked)
                how = "with the node's cache" if gib == "1" else "by ranges"
                title = f"epoch {epoch + 1} {how}: requests per tile read"
                yield number(title, asked / len(beside.tiles), "requests", most=2 if gib == "1" else 4)
    yield number("bytes per sample, each tile read once", num_bytes / samples / 1e6, "MB")


def driver(_folder: Path, quick: bool) -> Iterator[Row]:
    """`task_map`'s cost for each of many items, 1,000 in flight as on 500 nodes, and the placement on 500 nodes."""
    counts = (2_000, 10_000) if quick else (2_000, 20_000, 100_000)
    first = None
    for count in counts:
        found = workload("driver", {"items": count, "at_once": 1000})
        first = first or found["cpu_us"]
        title = f"driver, {count} items, 1,000 in flight: CPU time per item"
        yield number(title, found["cpu_us"], "us", most=1.25 * first, peer=first)
        yield number(f"the same: time per item on {os.cpu_count()} cores", found["wall_us"], "us")
        yield number("the same: memory per item", found["bytes"], "bytes")
    for size in (5, 500):
        capacity = Capacity(tuple(NodeShape(16.0, 8.0) for _ in range(size)))
        begin = time.process_time()
        placement(capacity, size * 8, None)
        yield number(f"placement of {size * 8} workers on {size} nodes", 1e3 * (time.process_time() - begin), "ms")


def workload(name: str, job: Mapping[str, Any]) -> Numbers:
    """What a workload measured; the peak memory of its tree of processes in MiB, too, where it is a stream."""
    words = [sys.executable, "-W", "ignore", str(REPOSITORY / "benchmarks" / "cluster_workloads.py")]
    child = subprocess.Popen(
        [*words, name, json.dumps(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
    )
    with watched_memory(child.pid) if name == "stream" else nullcontext([0.0]) as peak:
        try:
            output, _ = child.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            raise
    if child.returncode:
        raise RuntimeError(f"{name} ended with {child.returncode}")
    found: Numbers = json.loads(output.strip().splitlines()[-1])
    return {**found, "peak_mib": peak[0]}


@contextmanager
def command(words: Sequence[str], address: str | None) -> Iterator[subprocess.Popen[bytes]]:
    """A command of voxray, on a cluster or on this machine alone."""
    joined = {"RAY_ADDRESS": address} if address else {}
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", **joined}
    process = subprocess.Popen(
        [sys.executable, "-m", "voxray", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def voxray(*words: str, address: str | None = None) -> float:
    """Runs a command to its end; its seconds."""
    begin = time.monotonic()
    with command(words, address) as process:
        output, _ = process.communicate(timeout=LIMIT_S)
    if process.returncode:
        raise RuntimeError(f"voxray {words[0]} ended with {process.returncode}: {output.decode()[-1500:]}")
    return time.monotonic() - begin


SPLEEN = (*RECIPES["spleen"], "optim.steps_per_epoch=12", "optim.validate_every=2")

PARTS: dict[str, Callable[[Path, bool], Iterator[Row]]] = {
    "memory": memory,
    "predict": predict,
    "balance": balance,
    "plan": plan,
    "nodes": nodes,
    "two_nodes": two_nodes,
    "workers": workers,
    "checkpoints": checkpoints,
    "kills": kills,
    "jobs": jobs,
    "requests": requests,
    "driver": driver,
}

if __name__ == "__main__":
    main()
