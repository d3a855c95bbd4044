"""Windows over a preprocessed scan, through the network, to decoded answers in order.

The windows come as a generator in the order of their places along the scan's longest axis, so that a merge can
finish a slab and let go of it while later windows are still to come.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int16
from torch import Tensor, nn

from voxray.case import VolumeStats
from voxray.preprocess import normalise
from voxray.recipe import Recipe
from voxray.tasks import Task
from voxray.volume import Shape
from voxray.windows import place

Precision = Literal["off", "bf16", "fp16"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@torch.inference_mode()
def slide(
    image: Int16[np.ndarray, "x y z"],
    model: nn.Module,
    task: Task[Any, Any, Any],
    *,
    recipe: Recipe,
    device: torch.device,
    amp: Precision = "off",
) -> Iterator[tuple[Shape, Any]]:
    """(first voxel, decoded answer) of each window over an image on the recipe's grid.

    The intensity statistics are the whole image's, not the window's. The network runs under autocast where
    `amp` says so; decoding is always in float32, as half precision moves boxes by up to a quarter voxel.
    """
    config = recipe.inference
    window = window_for(image.shape, config.window_vox, recipe.network.stride_vox)
    stats = VolumeStats.of(image)
    starts = in_order(place(_shape(image), window, config.overlap, recipe.network.stride_vox), _shape(image))
    for first in range(0, len(starts), config.batch_size):
        batch = starts[first : first + config.batch_size]
        crops = np.stack([cut(image, start, window, recipe=recipe) for start in batch])
        voxels = torch.from_numpy(crops).to(device)
        images = normalise(voxels, stats, recipe.intensity)[:, None]
        with torch.autocast(device.type, dtype=_DTYPES.get(amp), enabled=amp != "off"):
            output = model(images)
        yield from zip(batch, task.decode(in_float32(output)), strict=True)


def window_for(shape: tuple[int, ...], window: Shape, stride: Shape) -> Shape:
    """The window, shrunk on each axis where the scan is smaller: to the scan rounded up to the stride."""
    sides = zip(shape, window, stride, strict=True)
    x, y, z = (min(side, -(-length // step) * step) for length, side, step in sides)
    return x, y, z


def in_order(starts: list[Shape], shape: Shape) -> list[Shape]:
    """The places sorted along the longest axis (the first of equals), then along the others."""
    longest = int(np.argmax(shape))
    return sorted(starts, key=lambda start: (start[longest], start))


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


def _shape(image: Int16[np.ndarray, "x y z"]) -> Shape:
    x, y, z = image.shape
    return x, y, z
