"""What this machine, and the cluster that it is told of, can do: the first thing to look at when something fails."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from voxray.core.errors import ResourceError
from voxray.distributed.cluster import connect, require_listener
from voxray.distributed.node_facts import GIB, PACKAGES

LEAST_MEMORY_GIB = 8
LEAST_DISK_GIB = 20
LEAST_SHM_GIB = 1
CONNECT_S = 3.0


@dataclass(frozen=True)
class MachineFinding:
    """One line: what was looked at, what was found, and what to do where that will not be enough."""

    name: str
    found: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing needs to be done."""
        return not self.remedy


def doctor(*, folder: Path | None = None) -> list[MachineFinding]:
    """All findings: versions, cores, memory, disk in `folder`, GPUs and Ray."""
    return [*_versions(), *_machine(folder or Path.cwd()), *_gpus(), *_cluster()]


def _versions() -> Iterator[MachineFinding]:
    yield MachineFinding("python", f"{platform.python_version()} ({sys.executable})")
    for name in ("voxray", *PACKAGES):
        try:
            yield MachineFinding(name, version(name))
        except PackageNotFoundError:
            yield MachineFinding(name, "not installed", remedy="" if name == "voxray" else f"pip install {name}")


def _machine(folder: Path) -> Iterator[MachineFinding]:
    yield MachineFinding(
        "cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    yield enough("memory", memory, least=LEAST_MEMORY_GIB, remedy="use a machine with more memory, or one worker")
    disk = shutil.disk_usage(folder).free / GIB
    yield enough(f"free disk in {folder}", disk, least=LEAST_DISK_GIB, remedy="write stores and runs elsewhere")
    shm = Path("/dev/shm")
    if shm.exists():
        size = shutil.disk_usage(shm).total / GIB
        yield enough("shared memory", size, least=LEAST_SHM_GIB, remedy="in a container give --shm-size=4g or more")


def enough(name: str, gib: float, *, least: float, remedy: str) -> MachineFinding:
    """A size that should be at least so many GiB."""
    text = f"{gib:.1f} GiB"
    return (
        MachineFinding(name, text) if gib >= least else MachineFinding(name, text, f"below {least:g} GiB: {remedy}")
    )


def _gpus() -> Iterator[MachineFinding]:
    import torch

    if not torch.cuda.is_available():
        driver, built = Path("/proc/driver/nvidia/version").exists(), torch.version.cuda
        found = f"none in use; torch is built for {f'CUDA {built}' if built else 'the CPU only'}"
        yield MachineFinding("gpu", found, "install a build of torch that fits the driver" if driver else "")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield MachineFinding(f"gpu {index}", f"{properties.name}, {properties.total_memory / GIB:.0f} GiB")


def _cluster() -> Iterator[MachineFinding]:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        yield MachineFinding("ray cluster", "none configured (RAY_ADDRESS is not set); work runs on this machine")
        return
    remedy = "start it with `ray start --head`, or unset RAY_ADDRESS"
    try:
        require_listener(address, timeout_s=CONNECT_S)
    except OSError:
        yield MachineFinding("ray cluster", f"{address}: nobody listens there", remedy)
        return
    try:
        with connect() as cluster:
            size = f"{cluster.num_nodes} nodes, {cluster.num_cpus:g} CPUs, {cluster.num_gpus:g} GPUs"
    except ResourceError as error:
        yield MachineFinding("ray cluster", f"{address}: refuses ({str(error.__cause__).splitlines()[0]})", remedy)
    else:
        yield MachineFinding("ray cluster", f"{address}: {size}")
