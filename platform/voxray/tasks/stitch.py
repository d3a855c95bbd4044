"""Windows of logits to labels, slab by slab: only what later windows can still touch is kept.

With 105 classes the logits of a 287 x 287 x 397 scan take 12.8 GiB in float32, and a softmax as much again. Here
they exist for one window's thickness along the scan's longest axis, and a slab becomes labels as soon as the windows
have passed it. Labels are the argmax of the weighted sums: dividing by the weights or a softmax would not move it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from voxray.volume import Shape
from voxray.windows import blend_weights

Window = tuple[Shape, Float[Tensor, "c x y z"]]
"""First voxel and logits. A window may reach beyond the end of the grid."""


def label_slabs(
    windows: Iterable[Window], shape: Shape, *, axis: int, blend: Literal["constant", "gaussian"]
) -> Iterator[tuple[int, UInt8[Tensor, "t a b"]]]:
    """First plane and labels of each finished slab; planes lie across `axis`, their other axes in the grid's order.

    Windows are of one size and come in the order of their first voxel along `axis`. What none covers is background.
    """
    across = [length for index, length in enumerate(shape) if index != axis]
    sums = weights = None
    done = 0
    for start, logits in windows:
        planes = logits.detach().movedim(axis + 1, 1)
        if sums is None or weights is None:
            sums = planes.new_zeros((*planes.shape[:2], *across), dtype=torch.float32)
            weights = blend_weights(_sides(logits), blend).to(planes.device, torch.float32).movedim(axis, 0)
        assert start[axis] >= done, f"windows out of order: plane {start[axis]} after {done}"
        if start[axis] > done:
            yield done, _labels(sums[:, : start[axis] - done])
            _shift(sums, start[axis] - done)
            done = start[axis]
        first, second = (place for index, place in enumerate(start) if index != axis)
        target = sums[:, :, first : first + planes.shape[2], second : second + planes.shape[3]]
        inside = (slice(None), slice(target.shape[2]), slice(target.shape[3]))
        target.addcmul_(planes[:, *inside].float(), weights[inside])
    if sums is not None:
        yield done, _labels(sums[:, : shape[axis] - done])


def _labels(sums: Float[Tensor, "c t a b"]) -> UInt8[Tensor, "t a b"]:
    """The first class of the largest sum. A few planes at a time, as argmax's indices take eight bytes a voxel."""
    parts = [sums[:, first : first + 8].argmax(0).to(torch.uint8) for first in range(0, sums.shape[1], 8)]
    return torch.cat(parts)


def _shift(sums: Float[Tensor, "c t a b"], planes: int) -> None:
    """Moves the slab on by so many planes in place, one class at a time so that no second slab is needed."""
    for one in sums:
        kept = one[planes:].clone()
        one[: len(kept)] = kept
        one[len(kept) :] = 0


def _sides(logits: Tensor) -> Shape:
    _, x, y, z = logits.shape
    return x, y, z
