"""Which device answers, and in which half precision it is fast."""

from __future__ import annotations

from typing import Literal

import torch

from voxray.core.errors import ConfigError, ResourceError


def choose_device(name: str) -> torch.device:
    """The torch device of a name; ``auto`` is CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r}: no such device; use auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ResourceError(f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices; use cpu.")
    return device


def half_on(device: torch.device) -> Literal["off", "bf16"]:
    """The half precision that the device computes fast in and that needs no care; ``off`` where there is none."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "off"
    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "off"
