"""How busy this machine is: processor, memory, disk, network and GPUs, by the names of MLflow's system metrics."""

from __future__ import annotations

from contextlib import suppress

import psutil
import torch

_MB = 1e6


def machine_load() -> dict[str, float]:
    """Percentages and megabytes as they are now; what cannot be read is left out.

    Processors are busy since the last call, and the network's bytes count from the machine's start.
    """
    found: dict[str, float] = {}
    for read in (_processor_and_memory, _disk_and_network, _gpus):
        with suppress(Exception):  # a container may hide any of it, and no training ends for that
            found |= read()
    return found


def _processor_and_memory() -> dict[str, float]:
    memory = psutil.virtual_memory()
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": (memory.total - memory.available) / _MB,
        "system_memory_usage_percentage": memory.percent,
    }


def _disk_and_network() -> dict[str, float]:
    disk, network = psutil.disk_usage("/"), psutil.net_io_counters()
    return {
        "disk_usage_percentage": disk.percent,
        "disk_available_megabytes": disk.free / _MB,
        "network_receive_megabytes": network.bytes_recv / _MB,
        "network_transmit_megabytes": network.bytes_sent / _MB,
    }


def _gpus() -> dict[str, float]:
    found: dict[str, float] = {}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        found[f"gpu_{index}_memory_usage_megabytes"] = (total - free) / _MB
        found[f"gpu_{index}_memory_usage_percentage"] = 100 * (total - free) / total
        with suppress(Exception):  # wants NVIDIA's management library
            found[f"gpu_{index}_utilization_percentage"] = float(torch.cuda.utilization(index))
    return found
