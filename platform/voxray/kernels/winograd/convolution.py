"""Convolutions and norms of feature maps with the channels last, in the functions of `kernels`."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from voxray.core.volume import Shape
from voxray.kernels.winograd import kernels, machine
from voxray.kernels.winograd.points import POINTS, TAPS, TILE, weights_at_points

Map = Float32[np.ndarray, "x y z c"]

STEP = 16
"""Numbers of channels are multiples of this."""
_LEAST_VOXELS = 512
_ROWS = 98
"""Rows of a matrix product, about: with fewer its weights are not worth fetching."""
_APART = 80
"""Values between the points of a tile: if all began at the same place of a page, they would drive each other out of
the cache."""
_SHARES = 4
"""Of the work, for each thread: one that is held up leaves the others more."""


class Convolution:
    """A convolution of 3 x 3 x 3 with stride 1 and a border of zeros, and what is done before and after it.

    The answer differs from the plain sum's by the rounding of float32, some ten times as much as that does itself.
    """

    def __init__(
        self,
        weight: Float32[np.ndarray, "o i 3 3 3"],
        bias: Float32[np.ndarray, " o"],
        slope: Float32[np.ndarray, " o"] | None = None,
    ) -> None:
        """`slope`: what answers below 0 are multiplied by."""
        self.outputs, self.inputs = weight.shape[:2]
        assert self.outputs % STEP == self.inputs % STEP == 0
        self._weights = _packed(weights_at_points(weight), machine.blocking().lanes)
        self._bias = np.array(bias, np.float32)
        self._slope = np.ones_like(self._bias) if slope is None else np.array(slope, np.float32)
        self._unchanged = np.stack([np.ones(self.inputs), np.zeros(self.inputs)]).astype(np.float32)

    def __call__(
        self,
        image: Map,
        answer: Map,
        *,
        affine: Float32[np.ndarray, "2 c"] | None = None,
        residual: Map | None = None,
    ) -> None:
        """Writes the answer. With `affine`, ``max(affine[0] * image + affine[1], 0)`` is convolved.

        All arrays are contiguous. The residual is added at the end.
        """
        assert all(one.flags.c_contiguous for one in (image, answer, residual) if one is not None)
        length, width, depth = image.shape[:3]
        at_once = _tiles_at_once((length, width, depth))
        sizes = [at_once * (depth + TAPS - 1) * channels + _APART for channels in (self.inputs, self.outputs)]
        in_row, out_row = depth * self.inputs, depth * self.outputs
        floor = np.array([-np.inf if affine is None else 0], np.float32)
        taken = np.ascontiguousarray(self._unchanged if affine is None else affine, np.float32)

        def work(begin: int, end: int) -> None:
            rooms = _rooms(POINTS * sizes[0], POINTS * sizes[1], in_row, out_row, out_row)
            points, products, outside, waste, none = rooms
            outside[:], none[:] = 0 if affine is None else np.nan, 0
            added = none if residual is None else residual
            arrays = [image, self._weights, self._bias, self._slope, taken, floor, added, answer]
            _convolution()(
                *(array.ctypes.data for array in (*arrays, points, products, outside, waste)),
                *(self.inputs, self.outputs, length, width, depth, at_once, *sizes, int(residual is not None)),
                *(begin, end),
            )

        _shared_out(work, -(-_tiles((length, width, depth)) // at_once))


def norm_affine(
    image: Map,
    groups: int,
    epsilon: float,
    weight: Float32[np.ndarray, " c"],
    bias: Float32[np.ndarray, " c"],
) -> Float32[np.ndarray, "2 c"]:
    """A group norm of the image as ``affine[0] * image + affine[1]``.

    Channels are summed from their first values on, so that means far from zero cost no digits.
    """
    length, width, depth, channels = image.shape
    assert image.flags.c_contiguous
    first, parts = image[0, 0, 0].astype(np.float64), dict[int, Any]()

    def work(begin: int, end: int) -> None:
        made = parts[begin] = np.zeros((2, channels))
        _moments()(image.ctypes.data, made.ctypes.data, channels, depth, begin, end)

    _shared_out(work, length * width)
    mean, square = sum(parts[begin] for begin in sorted(parts)) / (length * width * depth)
    variance = (square - mean**2).reshape(groups, -1)
    mean = (first + mean).reshape(groups, -1)
    middle = mean.mean(1, keepdims=True)
    spread = np.sqrt((variance + (mean - middle) ** 2).mean(1, keepdims=True).clip(0) + epsilon)
    scale = weight / np.broadcast_to(spread, mean.shape).ravel()
    return np.stack([scale, bias - np.broadcast_to(middle, mean.shape).ravel() * scale]).astype(np.float32)


def _packed(weights: Float32[np.ndarray, "p t o"], lanes: int) -> Float32[np.ndarray, " n"]:
    """The weights in the order in which they are read: two vectors of outputs at a time, or a last one."""
    outputs, pair = weights.shape[2], 2 * lanes
    parts = [weights[:, :, first : first + pair] for first in range(0, outputs, pair)]
    return np.concatenate([np.ascontiguousarray(part).reshape(len(part), -1) for part in parts], axis=1).ravel()


def is_worth_it(sides: Shape) -> bool:
    """Whether maps are large enough for the weights, four times as many, to be fetched, and for all threads."""
    return math.prod(sides) >= _LEAST_VOXELS and _tiles(sides) >= torch.get_num_threads()


def _tiles(sides: Shape) -> int:
    return -(-sides[0] // TILE) * -(-sides[1] // TILE)


def _tiles_at_once(sides: Shape) -> int:
    """Tiles of a matrix product: enough for its weights to be worth fetching, and for threads to end together."""
    least, deeper = machine.blocking().rows, sides[2] + TAPS - 1
    tiles, threads = _tiles(sides), torch.get_num_threads()

    def longest(at_once: int) -> int:
        groups = -(-tiles // at_once)
        return -(-groups // threads) * at_once

    found = min(range(max(1, round(_ROWS / deeper)), 0, -1), key=longest)
    return max(found, -(-(least + TAPS - 1) // deeper))


def _shared_out(work: Callable[[int, int], None], count: int) -> None:
    """Does `count` pieces of work in as many threads as torch has; ``work(begin, end)`` does some of them."""
    threads = min(torch.get_num_threads(), count)
    if threads == 1:
        work(0, count)
        return
    shares = min(count, _SHARES * threads)
    numbers = iter(range(shares))

    def some() -> None:
        for share in numbers:
            work(count * share // shares, count * (share + 1) // shares)

    others = [_workers(threads - 1, os.getpid()).submit(some) for _ in range(threads - 1)]
    some()
    for other in others:
        other.result()


_CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
"""The process's: when they are first wanted, one of OpenVINO's threads may ask, which keeps to one core."""


@cache
def _workers(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads on any core; a fork has none of its parent's."""
    del process
    return ThreadPoolExecutor(threads, thread_name_prefix="winograd", initializer=_to_any_core)


def _to_any_core() -> None:
    if _CORES is not None:
        os.sched_setaffinity(0, _CORES)


_MEMORY = threading.local()


def _rooms(*sizes: int) -> list[Float32[np.ndarray, " n"]]:
    """Arrays for the time of a call: a thread has one memory, which grows to the largest that it is asked for."""
    ends = np.cumsum([-(-size // STEP) * STEP for size in sizes])
    if getattr(_MEMORY, "room", np.empty(0)).size < ends[-1] + STEP:
        _MEMORY.room = np.empty(ends[-1] + STEP, np.float32)
    room = _MEMORY.room
    start = (-room.ctypes.data % 64) // room.itemsize
    begins = [start, *(start + end for end in ends[:-1])]
    return [room[begin : begin + size] for begin, size in zip(begins, sizes, strict=True)]


@cache
def _convolution() -> machine.Function:
    text = kernels.convolution(machine.blocking())
    return machine.compiled(text, pointers=len(kernels.POINTERS), numbers=len(kernels.NUMBERS))


@cache
def _moments() -> machine.Function:
    return machine.compiled(kernels.moments(machine.blocking().lanes), pointers=2, numbers=4)
