"""How much memory a scan's answer will take, so that one that cannot fit says so before it starts.

The network's share is found by sending a window without data (torch's meta device) through the recipe's network and
watching what its layers leave; the rest is arithmetic on shapes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from voxray.core.errors import ResourceError
from voxray.core.recipe import Recipe
from voxray.core.volume import Shape
from voxray.windows import Lattice, windows_over

_LIVE_OUTPUTS = 5
"""Outputs as large as the largest that are alive at once: inputs, outputs, skips, copies in a kernel's own layout.

Measured on a CPU, with torch and OpenVINO: 3.6 to 5.4 for the three published networks at windows of 64^3 to
192 x 192 x 80; more only where all of it is less than half a GiB.
"""
_LIVE_FEATURES = 10
"""The same where logits are not made. Measured with OpenVINO, for a SegResNet: 7.7 and 8.8 at 64^3 and 96^3."""
_SHARE = 0.9
_GIB = 2**30
_ACCUMULATED = {"fp32": 4, "fp16": 2, "bf16": 2}


class Computed(NamedTuple):
    """How a network answers windows."""

    half: bool = False
    """In half precision."""
    features: int | None = None
    """Windows are blended in so many channels before a `Head`, not in logits."""


WHOLE = Computed()
"""In float32, to its logits."""


def answer_bytes(
    recipe: Recipe,
    num_classes: int,
    *,
    scan: Shape,
    image: Shape,
    how: Computed = WHOLE,
    on_device: bool = False,
) -> int:
    """Bytes that are alive at the worst moment of an answer, beside the process itself.

    `scan` and `image` are the shapes of the scan as it was read and on the recipe's grid; `on_device`: of the
    device's memory alone, which holds neither scan nor answer.
    """
    places, logits = windows_over(image, recipe), how.features is None
    channels = (num_classes if how.features is None else how.features) + 1
    live = _LIVE_OUTPUTS if logits else _LIVE_FEATURES
    layers = live * _largest_output(recipe, num_classes, places.window, logits=logits)
    window = recipe.inference.batch_size * layers // (2 if how.half else 1)
    held = labels = 0
    if recipe.task == "segmentation":
        held, labels = _held_bytes(recipe, channels, places), math.prod(scan) + math.prod(image)
    if on_device:
        return window + held
    return 2 * (math.prod(scan) + math.prod(image)) + labels + window + held


def require_memory(
    recipe: Recipe,
    num_classes: int,
    *,
    scan: Shape,
    image: Shape,
    device: torch.device,
    how: Computed = WHOLE,
    free: int | None = None,
) -> None:
    """A ResourceError with the estimate and the settings that would fit, where the answer would not.

    `free`: bytes that it may take; by default nearly all that the device has free.
    """
    free = int(_SHARE * free_bytes(device)) if free is None else free

    def needed(one: Recipe) -> int:
        return answer_bytes(one, num_classes, scan=scan, image=image, how=how, on_device=device.type != "cpu")

    if needed(recipe) <= free:
        return
    fitting = next((words for words, one in _smaller(recipe) if needed(one) <= free), None)
    remedy = f"--set {fitting} would fit" if fitting else "no setting would make it fit: use a machine with more"
    raise ResourceError(
        f"a scan of {_text(scan)} voxels, {_text(image)} on the recipe's grid, needs about "
        f"{needed(recipe) / _GIB:.1f} GiB with windows of {_text(recipe.inference.window_vox)}, and "
        f"{free / _GIB:.1f} GiB of {'memory' if device.type == 'cpu' else str(device)} are free; {remedy}."
    )


def free_bytes(device: torch.device) -> int:
    """What a device has free; for the CPU, what this process may still take before it is stopped."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        group = Path("/sys/fs/cgroup") / ("" if limit == "memory.max" else "memory")
        try:
            most = (group / limit).read_text().strip()
            if most.isdigit():
                free = min(free, int(most) - int((group / used).read_text()))
        except OSError:
            continue
    return max(free, 0)


def _smaller(recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    """Settings that take less and less, as they are written after ``--set``."""
    words: list[str] = []
    changes: dict[str, Any] = {}
    config = recipe.inference
    if config.batch_size > 1:
        words.append("inference.batch_size=1")
        changes["batch_size"] = 1
        yield _changed(recipe, words, changes)
    if recipe.task == "segmentation" and config.accumulate == "fp32":
        words.append("inference.accumulate=fp16")
        changes["accumulate"] = "fp16"
        yield _changed(recipe, words, changes)
    stride, sides = recipe.network.stride_vox, config.window_vox
    while any(side > 4 * step for side, step in zip(sides, stride, strict=True)):
        sides = _halved(sides, stride)
        changes["window_vox"] = sides
        yield _changed(recipe, [*words, f"inference.window_vox={list(sides)}".replace(" ", "")], changes)


def _halved(sides: Shape, stride: Shape) -> Shape:
    """Half of each side, in whole strides, at least four of them."""
    x, y, z = (max(side // 2 // step, min(4, side // step)) * step for side, step in zip(sides, stride, strict=True))
    return x, y, z


def _changed(recipe: Recipe, words: list[str], changes: dict[str, Any]) -> tuple[str, Recipe]:
    inference = recipe.inference.model_copy(update=changes)
    return " --set ".join(words), recipe.model_copy(update={"inference": inference})


def _held_bytes(recipe: Recipe, channels: int, places: Lattice) -> int:
    """Of what is blended: a window's, and what waits for the next windows, rows and layers (`tasks.stitch`)."""
    outer, middle, inner = places.axes
    size = _ACCUMULATED[recipe.inference.accumulate]
    left = {axis: max(0, places.window[axis] - _least_step(places, axis)) for axis in range(3)}
    waiting = (
        left[inner] * places.window[middle] * places.window[outer]
        + places.shape[inner] * left[middle] * places.window[outer]
        + places.shape[inner] * places.shape[middle] * left[outer]
    )
    return channels * (4 * math.prod(places.window) + size * waiting)


def _least_step(places: Lattice, axis: int) -> int:
    starts = places.starts[axis]
    return min((after - before for before, after in itertools.pairwise(starts)), default=places.window[axis])


@lru_cache(maxsize=64)
def _largest_output(recipe: Recipe, num_classes: int, window: Shape, *, logits: bool = True) -> int:
    """Bytes of the largest tensor that any layer gives for one window, in float32; with or without the logits.

    A network whose shapes depend on its values cannot be watched without data; it counts as its input.
    """
    with torch.device("meta"):
        network: nn.Module = recipe.network.build(recipe, num_classes).eval()
        largest = [4 * math.prod(window)]

        def seen(module: nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs
            if isinstance(output, Tensor) and (logits or output.shape[1] != num_classes + 1):
                largest[0] = max(largest[0], 4 * output.numel())

        for module in network.modules():
            module.register_forward_hook(seen)
        with torch.inference_mode(), suppress(RuntimeError):
            network(torch.empty(1, 1, *window))
    return largest[0]


def _text(shape: Shape) -> str:
    return " x ".join(map(str, shape))
