"""Windows of logits to weighted sums, block by block: only what later windows can still touch is kept.

With 105 classes the logits of a 287 x 287 x 397 scan take 12.8 GiB in float32, and a softmax as much again. Windows
come in the order of a lattice, along its longest axis first; so with each window one box is done, up to where the
next windows begin, and what lies beyond it is carried on to them: from window to window, from row to row, from layer
to layer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from voxray.core.outputs import channels_last
from voxray.core.volume import Shape
from voxray.windows import Lattice, blend_weights

WindowValues = tuple[Shape, Float[Tensor, "c x y z"]]
"""First voxel and logits, or a head's features, overwritten. A window may reach beyond the end of the grid."""
Blend = Literal["constant", "gaussian"]


def blocks(
    windows: Iterable[WindowValues],
    lattice: Lattice,
    *,
    blend: Blend,
    accumulate: torch.dtype = torch.float32,
    ones: bool = False,
) -> Iterator[tuple[Shape, Float[Tensor, "c x y z"]]]:
    """First voxel and weighted sums of boxes that no later window touches; together they are the grid.

    Sums are float32; `accumulate` is the type in which they wait for later windows. With `ones` one more channel
    sums the weights.
    """
    outer, middle, inner = lattice.axes
    weights: Tensor | None = None
    between = {axis: _Carry(lattice, axis, accumulate) for axis in (inner, middle, outer)}
    places = iter(lattice.places)
    for start, logits in windows:
        place = next(places)
        assert tuple(start) == place, f"windows out of order: {start} where {place} comes"
        if weights is None and blend == "gaussian":
            weights = blend_weights(lattice.window, blend).to(logits.device)
        part = _inside(logits.detach().float(), place, lattice)
        each = None if weights is None else _inside(weights[None], place, lattice)
        if ones:
            part = _with_ones(part, each)
        elif each is not None:
            part.mul_(each)
        for axis in (inner, middle, outer):
            part = between[axis].through(part, place)
        yield place, part
        del logits, part, each  # before the next window comes: of 105 classes, one takes 350 MiB
    assert next(places, None) is None, "windows are missing"


def slabs(
    finished: Iterable[tuple[Shape, Float[Tensor, "k x y z"]]], lattice: Lattice
) -> Iterator[tuple[int, Float[Tensor, "k x y z"]]]:
    """First plane and values of the slabs across the longest axis that blocks make up, in order."""
    axis = lattice.axes[0]
    layers = itertools.groupby(finished, key=lambda block: block[0][axis])
    for first, layer in layers:
        slab: Tensor | None = None
        for place, values in layer:
            if slab is None:
                sides = [*lattice.shape]
                sides[axis] = values.shape[axis + 1]
                slab = values.new_empty((len(values), *sides))
            at = (place[0] - first * (axis == 0), place[1] - first * (axis == 1), place[2] - first * (axis == 2))
            slab[(slice(None), *corner(at, values))] = values
        assert slab is not None
        yield first, slab


def corner(place: Shape, values: Tensor) -> tuple[slice, slice, slice]:
    """Where a block lies in a grid."""
    x, y, z = (slice(first, first + side) for first, side in zip(place, values.shape[1:], strict=True))
    return x, y, z


class _Carry:
    """What windows leave to those that follow along one axis, over all that the axes inside it span."""

    def __init__(self, lattice: Lattice, axis: int, dtype: torch.dtype) -> None:
        self._lattice, self._axis, self._dtype = lattice, axis, dtype
        self._spanned = lattice.axes[lattice.axes.index(axis) + 1 :]
        first = lattice.starts[axis]
        self._rest = [
            min(begin + lattice.window[axis], lattice.shape[axis]) - begin - lattice.step(axis, begin)
            for begin in first
        ]
        self._held: Tensor | None = None

    def through(self, part: Float[Tensor, "c x y z"], place: Shape) -> Float[Tensor, "c u v w"]:
        """The part with what came before, as far as it is finished along the axis; the rest of it is kept."""
        index = self._lattice.starts[self._axis].index(place[self._axis])
        before = self._rest[index - 1] if index else 0
        if before:
            part.narrow(self._axis + 1, 0, before).add_(self._at(place, part, before))
        step, rest = self._lattice.step(self._axis, place[self._axis]), self._rest[index]
        if rest:
            self._at(place, part, rest).copy_(part.narrow(self._axis + 1, step, rest))
        return part.narrow(self._axis + 1, 0, min(step, part.shape[self._axis + 1]))

    def _at(self, place: Shape, part: Float[Tensor, "c x y z"], length: int) -> Float[Tensor, "c u v w"]:
        """The kept values beside the part; outside the spanned axes there is only one window's worth."""
        if self._held is None:
            sides = [
                self._lattice.shape[axis] if axis in self._spanned else self._lattice.window[axis]
                for axis in range(3)
            ]
            sides[self._axis] = max(self._rest)
            self._held = _room(part, len(part), sides, self._dtype)
        view = self._held
        for axis in range(3):
            first = place[axis] if axis in self._spanned else 0
            view = view.narrow(axis + 1, first, length if axis == self._axis else part.shape[axis + 1])
        return view


def _with_ones(part: Float[Tensor, "c x y z"], weights: Float[Tensor, "1 x y z"] | None) -> Tensor:
    """The weighted part, and the weights as one more channel."""
    made = _room(part, len(part) + 1, part.shape[1:], part.dtype)
    if weights is None:
        made[:-1] = part
        made[-1] = 1.0
    else:
        torch.mul(part, weights, out=made[:-1])
        made[-1:] = weights
    return made


def _room(like: Float[Tensor, "c x y z"], channels: int, sides: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An empty tensor whose channels lie in memory where those of another lie, first or last."""
    if channels_last(like):
        return like.new_empty((*sides, channels), dtype=dtype).movedim(-1, 0)
    return like.new_empty((channels, *sides), dtype=dtype)


def _inside(values: Float[Tensor, "c x y z"], place: Shape, lattice: Lattice) -> Float[Tensor, "c u v w"]:
    """What of a window lies within the grid."""
    x, y, z = (
        min(side, length - first) for first, side, length in zip(place, lattice.window, lattice.shape, strict=True)
    )
    return values[:, :x, :y, :z]
