"""How long a network takes for one patch on each runtime: `speed.json`, in the columns of the published tables."""

from __future__ import annotations

import platform
import statistics
import time

import torch
from jaxtyping import Float
from torch import Tensor

from voxray.core.config import Config
from voxray.core.volume import Shape
from voxray.runtimes import Precision, Runtime

_BUDGET_S = 10.0
_MOST = 20
_LEAST = 3


class Speed(Config):
    """Milliseconds for one patch, the median of several; None where this machine cannot run it."""

    device: str
    patch_vox: Shape
    runtime: str
    amp: Precision
    """What torch's amp computed in: bf16 on CPUs, whose fp16 takes a hundred times as long."""
    half: Precision
    """What the engine's half column computed in."""
    torch_fp32: float
    torch_amp: float
    engine_fp32: float | None = None
    engine_half: float | None = None
    speedup_amp: float
    """Each over torch_fp32."""
    speedup_fp32: float | None = None
    speedup_half: float | None = None
    amp_vs_half: float | None = None


def milliseconds(runtime: Runtime, patch: Float[Tensor, "1 1 x y z"]) -> float:
    """The median time of a patch, after one that is not counted; the device is waited for."""
    images = patch.to(runtime.device)
    _timed(runtime, images)
    found: list[float] = []
    begin = time.monotonic()
    while len(found) < _LEAST or (len(found) < _MOST and time.monotonic() - begin < _BUDGET_S):
        found.append(_timed(runtime, images))
    return round(1000 * statistics.median(found), 3)


def table(
    *, torch_fp32: float, torch_amp: float, engines: dict[str, float | None], about: dict[str, object]
) -> Speed:
    """The row with its speed-ups; `engines` has ``engine_fp32`` and ``engine_half``."""
    plain, half = engines["engine_fp32"], engines["engine_half"]
    return Speed.model_validate(
        {
            **about,
            **engines,
            "torch_fp32": torch_fp32,
            "torch_amp": torch_amp,
            "speedup_amp": _ratio(torch_fp32, torch_amp),
            "speedup_fp32": _ratio(torch_fp32, plain),
            "speedup_half": _ratio(torch_fp32, half),
            "amp_vs_half": _ratio(torch_amp, half),
        }
    )


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads"


def _timed(runtime: Runtime, images: Float[Tensor, "1 1 x y z"]) -> float:
    begin = time.perf_counter()
    runtime(images)
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)
    return time.perf_counter() - begin


def _ratio(first: float, second: float | None) -> float | None:
    return None if second is None else round(first / second, 2)
