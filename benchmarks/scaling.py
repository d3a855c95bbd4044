"""A hundred machines, on paper: LUNA16 and TotalSegmentator on 8, 64 and 512 GPUs, from the unit costs below.

Prints the table of `SCALING.md`, which says where each number is from and what is done where it breaks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

GPUS = (8, 64, 512)
GPUS_PER_NODE = 8
MB, TFLOP = 1e6, 1e12


@dataclass(frozen=True)
class Work:
    """A dataset with the recipe that learns it; sizes as the recipe's own fields give them."""

    name: str
    scans: int
    train_scans: int
    """Of one training."""
    trainings: int
    """Folds, which run side by side."""
    epochs: int
    samples_per_scan: int
    """Patches of each scan in an epoch: `patch.per_tile`."""
    batch_size: int
    gflop: float
    """Of one patch, forward."""
    parameters: float
    states: int
    """Numbers that a checkpoint holds for each parameter: itself and the optimizer's moments."""
    tile_mb: float
    """Compressed."""
    patch_mb: float
    """As it goes through Ray's object store."""
    tiles_per_scan: int
    most_batch: int
    """A global batch that the recipe's rate is still good for."""


@dataclass(frozen=True)
class Units:
    """What one of each costs."""

    flops: float = 0.3 * 312 * TFLOP
    """Assumed: an A100 in bf16 at 30 %."""
    stream_mb_s: float = 240.0
    """Measured: decoded voxels per second and core of the stream."""
    driver_cpu_s: float = 0.9e-3
    """Measured: the driver's CPU time for an item of `task_map`."""
    manifest_kb: float = 8.0
    """Measured: a case of the manifest in the memory of the driver and of each worker."""
    checkpoint_every_s: float = 600.0
    node_start_s: float = 240.0
    """Assumed: a cloud's machine with its image; Ray's part of it is 12 s, measured."""
    idle_s: float = 300.0
    """After which a node goes: Ray's default."""
    restart_s: float = 33.0
    """Measured: a killed worker until the next steps, on a node that is there and busy."""
    losses_per_node_hour: float = 0.05
    """Assumed: spot nodes."""


@dataclass(frozen=True)
class Estimate:
    """What a work takes on so many GPUs."""

    used_gpus: int
    """As many as the largest global batch feeds."""
    hours: float
    node_hours: float
    read_mb_s: float
    """Of each node, from its disk or the storage."""
    store_mb_s: float
    """Of each node, through Ray's object store."""
    reader_cores: float
    """Of each node."""
    gradient_mb_s: float
    """Of each node, out and in."""
    requests_s: float
    """Of all nodes, by ranges; with the cache none after the first epoch."""
    fill_gb: float
    """Of each node's cache."""
    checkpoint_mb_s: float
    """Of all trainings."""
    lost_share: float
    """Of the time, to lost nodes."""
    idle_node_hours: float
    """While nodes start, and until they go."""
    manifest_mb: float
    """In the memory of the driver and of each worker."""
    driver_s: float
    """CPU time of the driver for a verb's scans, at whatever number of nodes."""


LUNA16 = Work("LUNA16", 888, 799, 10, 300, 4, 4, 3561, 20.9e6, 2, 4.9, 5.9, 36, 64)
TOTALSEGMENTATOR = Work("TotalSegmentator", 1204, 1204, 1, 4000, 1, 4, 494, 18.8e6, 3, 2.4, 2.7, 12, 64)


def estimate(work: Work, gpus: int, units: Units = Units()) -> Estimate:
    """The arithmetic: each training's samples over its GPUs' rate, and the rates of all else at that speed."""
    each = min(gpus / work.trainings, work.most_batch / work.batch_size)
    used = min(gpus, max(1, int(each * work.trainings)))
    rate = units.flops / (3 * work.gflop * 1e9)  # samples a second and GPU; backward is twice forward
    samples = work.trainings * work.epochs * work.train_scans * work.samples_per_scan
    seconds = samples / (used * rate)
    nodes = used / GPUS_PER_NODE
    of_node = rate * min(used, GPUS_PER_NODE)
    nodes_of_training = max(1.0, nodes / work.trainings)
    steps_s = rate / work.batch_size
    per_loss = units.checkpoint_every_s / 2 + units.restart_s
    return Estimate(
        used_gpus=used,
        hours=seconds / 3600,
        node_hours=max(nodes, 1) * seconds / 3600,
        read_mb_s=of_node * work.tile_mb / work.samples_per_scan,
        store_mb_s=of_node * work.patch_mb,
        reader_cores=of_node * work.patch_mb / units.stream_mb_s,
        gradient_mb_s=2 * work.parameters * 4 / MB * steps_s * (nodes_of_training > 1),
        requests_s=used * rate / work.samples_per_scan,
        fill_gb=work.scans * work.tiles_per_scan * work.tile_mb / 1000,
        checkpoint_mb_s=work.trainings * work.parameters * 4 * work.states / MB / units.checkpoint_every_s,
        lost_share=nodes_of_training * units.losses_per_node_hour * per_loss / 3600,
        idle_node_hours=max(nodes, 1) * (units.node_start_s + units.idle_s) / 3600,
        manifest_mb=work.scans * units.manifest_kb / 1000,
        driver_s=work.scans * units.driver_cpu_s,
    )


def table() -> str:
    """The estimates as a table in Markdown."""
    columns = [(work, gpus, estimate(work, gpus)) for work in (LUNA16, TOTALSEGMENTATOR) for gpus in GPUS]
    rows: tuple[tuple[str, Callable[[Estimate], str]], ...] = (
        ("GPUs that the global batch feeds", lambda one: f"{one.used_gpus}"),
        ("hours", lambda one: f"{one.hours:.1f}"),
        ("node hours", lambda one: f"{one.node_hours:.0f}"),
        ("shards, MB/s and node", lambda one: f"{one.read_mb_s:.0f}"),
        ("object store, MB/s and node", lambda one: f"{one.store_mb_s:.0f}"),
        ("cores that read, per node", lambda one: f"{one.reader_cores:.1f}"),
        ("gradients, MB/s and node, each way", lambda one: f"{one.gradient_mb_s:.0f}"),
        ("requests/s of all nodes, without the cache", lambda one: f"{one.requests_s:.0f}"),
        ("the cache's size for the whole store, GB", lambda one: f"{one.fill_gb:.0f}"),
        ("checkpoints, MB/s of all trainings", lambda one: f"{one.checkpoint_mb_s:.1f}"),
        ("time lost to lost nodes", lambda one: f"{one.lost_share:.1%}"),
        ("node hours idle: starting, and before they go", lambda one: f"{one.idle_node_hours:.1f}"),
        ("manifest in the driver and in each worker, MB", lambda one: f"{one.manifest_mb:.0f}"),
        ("the driver's CPU seconds for a verb over all scans", lambda one: f"{one.driver_s:.1f}"),
    )
    lines = ["| | " + " | ".join(f"{work.name}, {gpus}" for work, gpus, _ in columns) + " |"]
    lines.append("|---|" + "---|" * len(columns))
    lines += [f"| {name} | " + " | ".join(text(one) for _, _, one in columns) + " |" for name, text in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
