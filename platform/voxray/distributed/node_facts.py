"""What a small task on each node of a cluster finds: versions, GPUs, memory, disks, storage, clock, network.

A node that does not answer in time is told of as such; nothing here waits for it longer.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import voxray
from voxray.core.errors import VoxrayError
from voxray.core.storage import Place

if TYPE_CHECKING:
    from ray import ObjectRef

PACKAGES = (
    "ray",
    "torch",
    "monai",
    "SimpleITK",
    "pydicom",
    "nibabel",
    "numpy",
    "pyarrow",
    "mlflow",
    "optuna",
    "blosc2",
)
"""Whose versions must be the driver's."""
LIMIT_S = 180.0
"""How long a node may take: its first task starts a process, imports torch, and asks each storage."""
PIECE_BYTES = 64 << 20
"""Of the object that is sent between nodes, at most a quarter of the smaller object store."""
GIB = 1 << 30

_ROUND_TRIPS = 5
_ASK_S = 60.0
_TORCH = """
import json, torch
names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
print(json.dumps({"gpus": len(names), "names": names, "cuda": torch.version.cuda or ""}))
"""


@dataclass(frozen=True)
class NodeFacts:
    """What was found on a node; where `error` is not empty it did not answer, and the rest is not known."""

    node_id: str
    address: str
    host: str = ""
    error: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of Python, voxray and `PACKAGES`; an empty text for what is not installed."""
    ray_gpus: int = 0
    torch_gpus: int = 0
    gpu_names: tuple[str, ...] = ()
    cuda: str = ""
    """What torch was built for; empty for the CPU only."""
    driver: str = ""
    """NVIDIA's, as the kernel says; empty where there is none."""
    memory_gib: float = 0.0
    shm_gib: float = 0.0
    object_store_gib: float = 0.0
    disk_gib: float = 0.0
    """Free where Ray keeps its logs and what it spills."""
    storage: Mapping[str, str] = field(default_factory=dict)
    """What is wrong with each place; an empty text where nothing is."""
    clock_s: float = 0.0
    """How far the node's clock is ahead of the driver's, half a round trip taken off."""
    mb_per_s: float | None = None
    """How fast an object came from the node before it; None where there is no other, or it did not come in time."""


def node_facts(storage: Sequence[str], *, limit_s: float = LIMIT_S, say: Callable[[str], None]) -> list[NodeFacts]:
    """The facts of all living nodes of the Ray that was joined, in the order of their addresses."""
    import ray

    nodes = [_Node.of(one) for one in ray.nodes() if one["Alive"]]
    nodes.sort(key=lambda one: (one.address, one.node_id))
    say(f"asking {len(nodes)} nodes, for at most {limit_s:.0f} s")
    marks = [(uri, _mark(uri)) for uri in storage]
    try:
        asked = [_on(node, _look, node, marks) for node in nodes]
        in_time, _ = ray.wait(asked, num_returns=len(asked), timeout=limit_s)
        found = [
            _answer(node, reference, limit_s if reference not in in_time else None)
            for node, reference in zip(nodes, asked, strict=True)
        ]
    finally:
        for uri, mark in marks:
            with suppress(VoxrayError):
                if mark:
                    Place.of(uri).once().remove(mark)
    say("comparing clocks, and measuring the network between nodes")
    clocked = [one if one.error else _with_clock(node, one) for node, one in zip(nodes, found, strict=True)]
    return _with_speeds(nodes, clocked)


@dataclass(frozen=True)
class _Node:
    """A node as Ray's head describes it."""

    node_id: str
    address: str
    host: str
    gpus: int
    object_store: int
    sockets: str

    @staticmethod
    def of(one: Mapping[str, Any]) -> _Node:
        resources = one["Resources"]
        return _Node(
            one["NodeID"],
            one["NodeManagerAddress"],
            one.get("NodeManagerHostname", ""),
            int(resources.get("GPU", 0)),
            int(resources.get("object_store_memory", 0)),
            one.get("ObjectStoreSocketName", ""),
        )


def _on(node: _Node, work: Callable[..., Any], *args: object) -> ObjectRef[Any]:
    """The work on that node and no other; it takes no CPU, so that a busy node answers, too."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(work).remote(*args)


def _answer(node: _Node, reference: ObjectRef[NodeFacts], late_s: float | None) -> NodeFacts:
    import ray

    if late_s is not None:
        with suppress(Exception):
            ray.cancel(reference, force=True)
        return NodeFacts(node.node_id, node.address, node.host, error=f"it did not answer within {late_s:.0f} s")
    try:
        return ray.get(reference)
    except Exception as error:
        return NodeFacts(node.node_id, node.address, node.host, error=_last_line(error))


def _last_line(error: Exception) -> str:
    """What Ray wraps says at its end what was wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def _look(node: _Node, storage: Sequence[tuple[str, str]]) -> NodeFacts:
    """What a node says of itself; runs there."""
    found, why = _torch()
    shared, session = Path("/dev/shm"), Path(node.sockets).parent
    return NodeFacts(
        node_id=node.node_id,
        address=node.address,
        host=socket.gethostname(),
        error=why,
        versions=versions_here(),
        ray_gpus=node.gpus,
        torch_gpus=int(found.get("gpus", 0)),
        gpu_names=tuple(found.get("names", ())),
        cuda=str(found.get("cuda", "")),
        driver=_driver(),
        memory_gib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB,
        shm_gib=shutil.disk_usage(shared).total / GIB if shared.exists() else 0.0,
        object_store_gib=node.object_store / GIB,
        disk_gib=shutil.disk_usage(session if session.is_dir() else "/").free / GIB,
        storage={uri: _storage(uri, mark) for uri, mark in storage},
    )


def versions_here() -> dict[str, str]:
    """Those of this process."""
    own = {"python": platform.python_version(), "voxray": voxray.__version__}
    return own | {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _torch() -> tuple[Mapping[str, Any], str]:
    """What torch sees of GPUs, and why it cannot be asked, if so; Ray hides GPUs from tasks that ask for none."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    words = [sys.executable, "-W", "ignore", "-c", _TORCH]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False, timeout=LIMIT_S)
    if done.returncode:
        return {}, f"torch cannot be imported: {_last_line(RuntimeError(done.stderr))}"
    return json.loads(done.stdout.splitlines()[-1]), ""


def _driver() -> str:
    with suppress(OSError, IndexError):
        text = Path("/proc/driver/nvidia/version").read_text()
        return next((word for word in text.split() if word.count(".") and word.replace(".", "").isdecimal()), "")
    return ""


def _mark(uri: str) -> str:
    """The name of a file that the driver has written there, which each node must see; empty where it cannot."""
    name = f".voxray-doctor-{uuid4().hex[:8]}"
    try:
        Place.of(uri).once().write(name, b"driver")
    except VoxrayError:
        return ""  # the nodes say why, unless they can
    return name


def _storage(uri: str, mark: str) -> str:
    """What is wrong with a place from here; an empty text where it can be written, read and removed."""
    name = f".voxray-doctor-{uuid4().hex[:8]}"
    try:
        place = Place.of(uri).once()
        if mark and not place.exists(mark):
            return f"{uri}: is another place here than on the driver's node (a file written there is not seen)."
        place.write(name, b"voxray")
        if place.read(name) != b"voxray":
            return f"{uri}: gives back other bytes than were written."
        place.remove(name)
    except (VoxrayError, FileNotFoundError) as error:
        return str(error)
    return ""


def _now() -> float:
    return time.time()


def _with_clock(node: _Node, found: NodeFacts) -> NodeFacts:
    """The facts with the clock's offset, from the quickest of a few round trips."""
    import ray

    trips = []
    with suppress(Exception):  # a node that is lost just now has no clock
        for _ in range(_ROUND_TRIPS):
            begin = time.time()
            theirs = float(ray.get(_on(node, _now), timeout=_ASK_S))
            end = time.time()
            trips.append((end - begin, theirs - (begin + end) / 2))
    return replace(found, clock_s=min(trips)[1]) if trips else found


def _with_speeds(nodes: Sequence[_Node], found: Sequence[NodeFacts]) -> list[NodeFacts]:
    """The facts with the speed at which each node gets an object from the one before it."""
    good = [at for at, one in enumerate(found) if not one.error]
    speeds: dict[int, float | None] = {}
    if len(good) > 1:
        num_bytes = min(PIECE_BYTES, min(nodes[at].object_store for at in good) // 4)
        for source, target in zip([good[-1], *good[:-1]], good, strict=True):
            speeds[target] = _speed(nodes[source], nodes[target], num_bytes)
    return [replace(one, mb_per_s=speeds.get(at)) for at, one in enumerate(found)]


def _speed(source: _Node, target: _Node, num_bytes: int) -> float | None:
    """MB/s from one node to another; None where it did not come in time."""
    import ray

    with suppress(Exception):
        piece = _on(source, _make, num_bytes)
        ray.wait([piece], timeout=_ASK_S, fetch_local=False)
        return num_bytes / 1e6 / float(ray.get(_on(target, _take, [piece]), timeout=_ASK_S))
    return None


def _make(num_bytes: int) -> bytes:
    return os.urandom(num_bytes)


def _take(pieces: Sequence[ObjectRef[bytes]]) -> float:
    """Seconds that it takes to have the object here."""
    import ray

    begin = time.perf_counter()
    ray.get(pieces[0])
    return time.perf_counter() - begin
