"""Which device answers."""

from __future__ import annotations

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
