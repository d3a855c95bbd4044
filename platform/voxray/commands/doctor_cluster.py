"""`voxray doctor --cluster`: what every node of the joined cluster has, what is wrong with it and what to mend."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from voxray.core.errors import ConfigError
from voxray.core.progress import Progress
from voxray.distributed.cluster import connect
from voxray.distributed.node_facts import LIMIT_S, NodeFacts, node_facts, versions_here

LEAST_MEMORY_GIB, LEAST_DISK_GIB = 8.0, 20.0
MOST_CLOCK_S = 1.0
LEAST_MB_PER_S = 100.0
"""A gigabit network; scans and gradients wait for anything slower."""


@dataclass(frozen=True)
class NodeFinding:
    """What is wrong with a node and what to mend; a hint where work goes on as it is, only worse."""

    node: str
    wrong: str
    mend: str
    is_hint: bool = False

    def __str__(self) -> str:
        return f"{self.node}: {'hint: ' if self.is_hint else ''}{self.wrong}; {self.mend}."


@dataclass(frozen=True)
class ClusterHealth:
    """All nodes, and what was found of them."""

    nodes: tuple[NodeFacts, ...]
    findings: tuple[NodeFinding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing must be mended."""
        return all(one.is_hint for one in self.findings)

    def rows(self) -> list[tuple[str, ...]]:
        """A line for each node, as texts."""
        return [_row(one) for one in self.nodes]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "ok": self.ok,
            "nodes": [asdict(one) for one in self.nodes],
            "findings": list(map(asdict, self.findings)),
        }


COLUMNS = ("node", "host", "python, ray, torch", "GPUs", "memory", "/dev/shm", "free disk", "clock", "network")


def doctor_cluster(storage: Sequence[str] = (), *, limit_s: float = LIMIT_S, progress: Progress) -> ClusterHealth:
    """Asks every node of the cluster of ``RAY_ADDRESS``; a ConfigError where that is not set."""
    if not os.environ.get("RAY_ADDRESS"):
        raise ConfigError("doctor --cluster: RAY_ADDRESS is not set; set it to the cluster, such as 10.0.0.1:6379.")
    with connect():
        nodes = node_facts(storage, limit_s=limit_s, say=progress.say)
    return ClusterHealth(tuple(nodes), tuple(findings_of(nodes, versions_here())))


def findings_of(nodes: Sequence[NodeFacts], driver: Mapping[str, str]) -> Iterator[NodeFinding]:
    """What must be mended first, then hints."""
    every = [finding for node in nodes for finding in _of_node(node, driver)]
    yield from (one for one in every if not one.is_hint)
    yield from (one for one in every if one.is_hint)


def _of_node(node: NodeFacts, driver: Mapping[str, str]) -> Iterator[NodeFinding]:
    name = name_of(node)
    if node.error:
        yield NodeFinding(name, f"no task can run there ({node.error})", "mend or replace the node")
    if not node.versions:
        return
    yield from _versions(name, node, driver)
    yield from _gpus(name, node)
    for problem in filter(None, node.storage.values()):
        yield NodeFinding(name, problem.rstrip("."), "give the node access, or take storage that every node reaches")
    yield from _sizes(name, node)
    yield from _clock_and_network(name, node)


def _versions(name: str, node: NodeFacts, driver: Mapping[str, str]) -> Iterator[NodeFinding]:
    for package, wanted in driver.items():
        found = node.versions.get(package, "")
        if wanted and found != wanted:
            yield NodeFinding(
                name,
                f"{package} is {found or 'not installed'}, the driver's is {wanted}",
                "start all nodes from one image (deploy/Dockerfile)",
            )


def _gpus(name: str, node: NodeFacts) -> Iterator[NodeFinding]:
    if node.ray_gpus > node.torch_gpus:
        why = "is built for the CPU only" if not node.cuda else f"is built for CUDA {node.cuda}"
        yield NodeFinding(
            name,
            f"Ray counts {node.ray_gpus} GPUs, torch sees {node.torch_gpus} "
            f"(it {why}; driver {node.driver or 'none'})",
            "install a torch and a driver that fit, or start the node with --num-gpus as many as there are",
        )
    elif node.torch_gpus > node.ray_gpus:
        wrong = f"torch sees {node.torch_gpus} GPUs, Ray counts {node.ray_gpus}"
        yield NodeFinding(name, wrong, "start the node with a larger --num-gpus to use them all", is_hint=True)
    if node.driver and not node.torch_gpus and not node.ray_gpus:
        yield NodeFinding(
            name, f"has NVIDIA's driver {node.driver}, and torch sees no GPU", "install torch for CUDA", is_hint=True
        )


def _sizes(name: str, node: NodeFacts) -> Iterator[NodeFinding]:
    if node.shm_gib < node.object_store_gib:
        yield NodeFinding(
            name,
            f"Ray's object store of {node.object_store_gib:.1f} GiB exceeds /dev/shm of {node.shm_gib:.1f} GiB",
            "give the container --shm-size, or start the node with a smaller --object-store-memory",
        )
    if node.disk_gib < LEAST_DISK_GIB:
        wrong = f"{node.disk_gib:.1f} GiB are free where Ray spills and logs"
        yield NodeFinding(name, wrong, f"free {LEAST_DISK_GIB:g} GiB, or give ray start --temp-dir", is_hint=True)
    if node.memory_gib < LEAST_MEMORY_GIB:
        wrong = f"{node.memory_gib:.1f} GiB of memory"
        yield NodeFinding(name, wrong, f"use nodes of {LEAST_MEMORY_GIB:g} GiB or more", is_hint=True)


def _clock_and_network(name: str, node: NodeFacts) -> Iterator[NodeFinding]:
    if abs(node.clock_s) > MOST_CLOCK_S:
        where = "ahead of" if node.clock_s > 0 else "behind"
        yield NodeFinding(
            name,
            f"its clock is {abs(node.clock_s):.1f} s {where} the driver's",
            "let NTP or chrony set all clocks: object storage refuses wrong ones, and leases and ages are off",
            is_hint=True,
        )
    if node.mb_per_s is not None and node.mb_per_s < LEAST_MB_PER_S:
        yield NodeFinding(
            name,
            f"gets {node.mb_per_s:.0f} MB/s from the node before it",
            f"put nodes into one zone and on a network of {LEAST_MB_PER_S:g} MB/s or more",
            is_hint=True,
        )


def name_of(node: NodeFacts) -> str:
    """Nodes may share an address, as in a test."""
    return f"{node.address} ({node.node_id[:8]})"


def _row(node: NodeFacts) -> tuple[str, ...]:
    if not node.versions:
        return (name_of(node), node.host, node.error, *("" for _ in COLUMNS[3:]))
    models = f" ({', '.join(sorted(set(node.gpu_names)))})" if node.gpu_names else ""
    return (
        name_of(node),
        node.host,
        ", ".join(node.versions.get(name, "") or "none" for name in ("python", "ray", "torch")),
        f"{node.ray_gpus} of {node.torch_gpus}{models}",
        f"{node.memory_gib:.1f} GiB",
        f"{node.shm_gib:.1f} GiB",
        f"{node.disk_gib:.0f} GiB",
        f"{node.clock_s:+.3f} s",
        "" if node.mb_per_s is None else f"{node.mb_per_s:.0f} MB/s",
    )
