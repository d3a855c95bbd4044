"""The table of runtimes, and the choice among them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from voxray.core.errors import ConfigError, VoxrayError
from voxray.runtimes.network import TrainedNetwork
from voxray.runtimes.onnxruntime import onnxruntime_obstacle, open_onnxruntime
from voxray.runtimes.openvino.engine import open_openvino, openvino_obstacle
from voxray.runtimes.protocol import PRECISIONS, Precision, Runtime
from voxray.runtimes.tensorrt import open_tensorrt, tensorrt_obstacle
from voxray.runtimes.torch_eager import (
    compiled_obstacle,
    open_compiled,
    open_torch,
    torch_obstacle,
)


class Backend(NamedTuple):
    """How a runtime is opened, and what may keep it from answering on this machine."""

    open: Callable[[TrainedNetwork, torch.device, Precision], Runtime]
    obstacle: Callable[[torch.device, Precision], VoxrayError | None]


RUNTIMES: Mapping[str, Backend] = {
    "torch": Backend(open_torch, torch_obstacle),
    "torch-compiled": Backend(open_compiled, compiled_obstacle),
    "onnxruntime": Backend(open_onnxruntime, onnxruntime_obstacle),
    "openvino": Backend(open_openvino, openvino_obstacle),
    "tensorrt": Backend(open_tensorrt, tensorrt_obstacle),
}

_BEST = {"cpu": ("openvino", "onnxruntime", "torch"), "cuda": ("tensorrt", "torch")}
"""What ``auto`` tries, by kind of device."""


@dataclass(frozen=True)
class Choice:
    """A runtime and what it computes in, and why."""

    runtime: str
    precision: Precision
    why: str
    """One sentence."""


def choose_runtime(
    name: str = "auto",
    *,
    device: torch.device | str = "cpu",
    precision: str = "auto",
    trained_in: Precision = "fp32",
) -> Choice:
    """The runtime of that name; ``auto`` is the best that this machine has for the device.

    Precision ``auto`` is fp32 on a CPU, and on a GPU what the network was trained in. A runtime that was asked for
    and cannot answer here is refused, never replaced.
    """
    place = torch.device(device)
    chosen = _precision(precision, place, trained_in)
    if name != "auto":
        obstacle = backend(name).obstacle(place, chosen)
        if obstacle is not None:
            raise obstacle
        return Choice(name, chosen, f"{name} at {chosen} on {place}, as asked for.")
    passed_over: list[str] = []
    for candidate in _BEST.get(place.type, ("torch",)):
        obstacle = RUNTIMES[candidate].obstacle(place, chosen)
        if obstacle is None:
            because = "".join(f" ({reason})" for reason in passed_over)
            return Choice(candidate, chosen, f"{candidate} at {chosen}: the fastest on {place.type} here{because}.")
        passed_over.append(str(obstacle).rstrip("."))
    raise AssertionError("torch answers everywhere")


def prefer_runtime(name: str, *, device: torch.device | str, precision: str) -> Choice:
    """The runtime that a package was made for where it can answer here, else the best of this machine at fp32."""
    place = torch.device(device)
    chosen = _precision(precision, place, "fp32")
    obstacle = backend(name).obstacle(place, chosen)
    if obstacle is None:
        return Choice(name, chosen, f"{name} at {chosen} on {place}, which the package was made for.")
    best = choose_runtime("auto", device=place, precision="fp32")
    return Choice(
        best.runtime, "fp32", f"{best.runtime} at fp32, as the package's own cannot answer here: {obstacle}"
    )


def open_runtime(
    name: str, network: TrainedNetwork, *, device: torch.device | str = "cpu", precision: Precision = "fp32"
) -> Runtime:
    """The network on this runtime; one that cannot answer here is refused in a sentence."""
    place, found = torch.device(device), backend(name)
    obstacle = found.obstacle(place, precision)
    if obstacle is not None:
        raise obstacle
    return found.open(network, place, precision)


def backend(name: str) -> Backend:
    """The runtime of that name."""
    if name in RUNTIMES:
        return RUNTIMES[name]
    near = difflib.get_close_matches(name, RUNTIMES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"runtime {name!r}: no such runtime; {hint}allowed are auto, {', '.join(RUNTIMES)}.")


def _precision(name: str, device: torch.device, trained_in: Precision) -> Precision:
    if name == "auto":
        return trained_in if device.type == "cuda" else "fp32"
    for known in PRECISIONS:
        if name == known:
            return known
    raise ConfigError(f"precision {name!r}: no such precision; allowed are auto, {', '.join(PRECISIONS)}.")
