"""What `cluster_costs.py` measures, each in a process of its own: prints numbers as JSON."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.tiny_training import DATASET, made_store, segmentation_recipe, train_silently
from voxray.core.case import Case
from voxray.core.recipe import Recipe
from voxray.core.storage import Place
from voxray.core.volume import Grid, Volume
from voxray.distributed.cluster import configure_data, connect
from voxray.distributed.parallel import TaskOptions, task_map
from voxray.distributed.patch_stream import patch_stream
from voxray.sampling import Schedule
from voxray.store import Store, StoredCase, write_case, write_manifest

STORE_LIMIT = 80_000_000
"""Bytes of Ray's object store where memory is measured; less than Ray's own least is refused."""

Numbers = dict[str, float]


def large_recipe() -> Recipe:
    """Patches of 64 voxels a side."""
    return segmentation_recipe("patch.size_vox=[64,64,64]", "patch.margin_vox=[16,16,16]", "patch.per_tile=2")


def noise_case(case_id: str, shape: tuple[int, int, int]) -> Case:
    """A scan that does not compress much, with a few labelled voxels."""
    rng = np.random.default_rng(0)
    grid = Grid(shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
    labels = np.zeros(shape, np.uint8)
    labels[20:40, 20:40, 20:40] = 1
    voxels = rng.normal(0, 200, shape).astype(np.int16)
    return Case(case_id, case_id, Volume(voxels, grid), np.zeros((0, 6)), np.zeros(0, np.int64), labels)


def write_copies(folder: Path, num_bytes: int) -> Store:
    """A store of so many bytes: one case's shard under the names of many."""
    recipe, place = large_recipe(), Place.of(folder)
    one = noise_case("case_0", (160, 160, 160))
    stored = write_case(place, one, recipe, original_grid=one.image.grid, signature="s")
    shard = folder / stored.files[0].name
    cases = [stored]
    for number in range(1, max(2, num_bytes // shard.stat().st_size)):
        name = f"case_{number}"
        file = stored.files[0].model_copy(update={"name": f"cases/{name}.parquet"})
        (folder / file.name).write_bytes(shard.read_bytes())
        summary = stored.summary.model_copy(update={"case_id": name, "patient_id": name})
        cases.append(StoredCase(summary, (file,)))
    write_manifest(place, cases, recipe, dataset=DATASET, failed={})
    return Store.open(folder)


def stream(job: dict[str, Any]) -> Numbers:
    """Batches of the training stream with a small object store: their rate, and what Ray spilled to disk."""
    import ray
    from ray._private.internal_api import memory_summary

    recipe, store = large_recipe(), Store.open(job["store"])
    schedule = Schedule(seed=0, steps_per_epoch=job["batches"], batch_size=2)
    ray.init(
        address="local", num_cpus=4, object_store_memory=STORE_LIMIT, include_dashboard=False, log_to_driver=False
    )
    configure_data()
    patches: Any = patch_stream(store, recipe, store.case_ids, schedule=schedule, epochs=range(1))
    with closing(patches):
        first = next(patches)
        begin = time.monotonic()
        count = sum(len(one.voxels) for one in patches)
        seconds = time.monotonic() - begin
    summary: str = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)  # type: ignore[no-untyped-call]
    return {
        "rate": count / seconds,
        "spilled": float(summary.count("Spilled")),
        "patch_bytes": float(first.voxels[0].nbytes),
    }


def from_zero(job: dict[str, Any]) -> Numbers:
    """A task that needs a node where there is none: seconds until it runs, until the node goes, and of idleness."""
    import ray

    ray.init(address=job["address"], log_to_driver=False)
    begin, came = time.time(), threading.Event()
    node = [0.0]

    def watch() -> None:
        while not came.wait(0.1):
            if not node[0] and sum(one["Alive"] for one in ray.nodes()) > 1:
                node[0] = time.time()

    thread = threading.Thread(target=watch)
    thread.start()
    started, ended = ray.get(ray.remote(num_cpus=2)(_one_second).remote())
    came.set()
    thread.join()
    while sum(one["Alive"] for one in ray.nodes()) > 1:
        time.sleep(0.1)
    return {"first": started - begin, "gone": time.time() - ended, "idle_before": started - (node[0] or started)}


def _one_second() -> tuple[float, float]:
    begin = time.time()
    time.sleep(1)
    return begin, time.time()


def driver(job: dict[str, Any]) -> Numbers:
    """The driver's CPU and wall time for each of many tasks that do nothing, with so many in flight."""
    import psutil

    with connect(num_cpus=4), closing(task_map(_same, range(64), TaskOptions(at_once=64))) as warm:
        list(warm)
        memory = psutil.Process().memory_info().rss
        begin, used = time.monotonic(), time.process_time()
        items = range(job["items"])
        with closing(task_map(_same, items, TaskOptions(at_once=job["at_once"]))) as results:
            count = sum(1 for _ in islice(results, job["items"]))
        wall, cpu = time.monotonic() - begin, time.process_time() - used
        grown = psutil.Process().memory_info().rss - memory
    return {"wall_us": wall / count * 1e6, "cpu_us": cpu / count * 1e6, "bytes": grown / count}


def _same(item: int) -> int:
    return item


def train(job: dict[str, Any]) -> Numbers:
    """A training with so many workers at one global batch of six slots: samples a second, and checkpoints' time."""
    recipe = segmentation_recipe(*job["fields"])
    folder = Path(job["folder"])
    made_store(folder / "store", recipe)
    train_silently(str(folder / "store"), recipe, folder / "run", **job["options"])
    last = json.loads((folder / "run" / "history.json").read_text())[-1]
    names = ("samples_per_s", "wait_share", "checkpoint_s", "num_checkpoints", "checkpoint_share", "step_s")
    return {name: float(last[name]) for name in names}


WORKLOADS: dict[str, Callable[[dict[str, Any]], Numbers]] = {
    "stream": stream,
    "from_zero": from_zero,
    "driver": driver,
    "train": train,
}

if __name__ == "__main__":
    print(json.dumps(WORKLOADS[sys.argv[1]](json.loads(sys.argv[2]))))
