"""Windows over a preprocessed scan, through the network, to decoded answers in order.

The windows come as a generator in the order of their places along the scan's longest axis, so that a merge can
finish a slab and let go of it while later windows are still to come.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Int16
from torch import Tensor

from voxray.core.case import VolumeStats
from voxray.core.recipe import Recipe
from voxray.core.volume import Shape
from voxray.preprocess import normalise
from voxray.runtimes.protocol import Runtime
from voxray.tasks import Task
from voxray.windows import windows_over

Autocast = Literal["off", "bf16", "fp16"]
Watch = Callable[[float], None]
"""Told the share of the windows that are answered, in (0, 1]; what it raises ends the work."""

T = TypeVar("T")
R = TypeVar("R")

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def slide(
    image: Int16[np.ndarray, "x y z"],
    members: Sequence[Runtime],
    task: Task[Any, Any, Any],
    *,
    recipe: Recipe,
    device: torch.device,
    amp: Autocast = "off",
    watch: Watch | None = None,
) -> Iterator[tuple[Shape, Any]]:
    """(first voxel, decoded answer) of each window over an image on the recipe's grid, in the lattice's order.

    The intensity statistics are the whole image's, not the window's. The networks run under autocast where `amp`
    says so; decoding is always in float32, as half precision moves boxes by up to a quarter voxel. Several members,
    and the recipe's mirrors, give one answer together. Where a network has several `streams`, as many batches are
    under way at once. Where the task has the network's `head`, the network is asked for what comes before it.
    """
    config, places = recipe.inference, windows_over(image.shape, recipe)
    stats = VolumeStats.of(image)
    mirrors: list[tuple[int, ...]] = [(), *config.mirrors]

    @torch.inference_mode()
    def answers(batch: Sequence[Shape]) -> list[Any]:
        crops = np.stack([cut(image, start, places.window, recipe=recipe) for start in batch])
        images = normalise(torch.from_numpy(crops).to(device), stats, recipe.intensity)[:, None]
        joined: list[Any] = []
        for number, (network, axes) in enumerate(itertools.product(members, mirrors), start=1):
            seen = images.flip([axis + 2 for axis in axes]) if axes else images
            with torch.autocast(device.type, dtype=_DTYPES.get(amp), enabled=amp != "off"):
                output = network(seen) if task.head is None else network.features(seen)
            found = task.decode(in_float32(output))
            if axes:
                found = [task.mirror(one, axes, places.window) for one in found]
            pairs = zip(joined, found, strict=True)
            joined = [task.combine(old, new, number=number) for old, new in pairs] if joined else found
        return joined

    starts = places.places
    batches = [starts[first : first + config.batch_size] for first in range(0, len(starts), config.batch_size)]
    streams = min(network.streams for network in members)
    results = in_turn(answers, batches, workers=streams)
    for number, batch in enumerate(batches, start=1):
        found = next(results)
        if watch is not None:
            watch(number / len(batches))
        for start in batch:
            yield start, found.pop(0)  # and is not held here while the next window is answered


def in_turn(action: Callable[[T], R], items: Sequence[T], *, workers: int) -> Iterator[R]:
    """The action's results in the items' order, with so many under way at once; with one worker, each when asked."""
    if workers <= 1:
        yield from map(action, items)
        return
    pool = ThreadPoolExecutor(workers)
    coming: deque[Future[R]] = deque()
    try:
        for item in items:
            coming.append(pool.submit(action, item))
            if len(coming) > workers:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt waits for what is under way, and starts no more


def cut(
    image: Int16[np.ndarray, "x y z"], start: Shape, window: Shape, *, recipe: Recipe
) -> Int16[np.ndarray, "wx wy wz"]:
    """The window's voxels in HU; beyond the scan's end the recipe's padding value or the border voxel again."""
    crop = image[tuple(slice(first, first + side) for first, side in zip(start, window, strict=True))]
    missing = [(0, side - length) for side, length in zip(window, crop.shape, strict=True)]
    if not any(after for _, after in missing):
        return crop
    if recipe.inference.padding == "replicate":
        return np.pad(crop, missing, mode="edge")
    return np.pad(crop, missing, constant_values=recipe.patch.pad_hu)


def in_float32(output: Any) -> Any:
    """A network's output with every tensor as float32, its named tuples kept."""
    if isinstance(output, Tensor):
        return output.float()
    parts = [in_float32(part) for part in output]
    return type(output)(*parts) if hasattr(output, "_fields") else tuple(parts)
