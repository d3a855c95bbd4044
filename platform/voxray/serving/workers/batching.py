"""Windows of different scans, answered in one batch: for GPUs, which are half asleep over one small scan's windows.

On a CPU, which one window keeps busy, it gains nothing, so that it is off unless a model's `window_batch` is set.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from voxray.runtimes.protocol import Forward, Runtime, as_runtime

_WAIT_S = 0.02
"""The most that a window waits for others."""


@dataclass
class _Asked:
    images: Tensor
    answered: threading.Event = field(default_factory=threading.Event)
    output: Any = None
    error: BaseException | None = None


class BatchingNetwork(Runtime):
    """A network that several threads call, each with the windows of its own scan.

    Whoever comes first waits for the others that are at work, and answers for all: in its own thread, under its own
    autocast, so that each gets what it would have got alone.
    """

    def __init__(self, network: Forward | Runtime, most: int) -> None:
        """Its `head` stays None: the whole network is asked."""
        self._network, self._most = as_runtime(network, torch.device("cpu")), most
        self.name, self.precision, self.device = self._network.name, self._network.precision, self._network.device
        self.window_vox, self.max_batch = self._network.window_vox, self._network.max_batch
        self.streams = self._network.streams
        self._condition = threading.Condition()
        self._asked: list[_Asked] = []
        self._led, self._users = False, 0

    @contextmanager
    def used(self) -> Iterator[None]:
        """One more scan is under way."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def __call__(self, images: Tensor) -> Any:
        """The network's output for these windows."""
        mine = _Asked(images)
        with self._condition:
            self._asked.append(mine)
            self._condition.notify_all()
        while not mine.answered.is_set():
            with self._condition:
                if self._led:
                    self._condition.wait(_WAIT_S)
                    continue
                self._led = True
            try:
                self._answer(self._gathered())
            finally:
                with self._condition:
                    self._led = False
                    self._condition.notify_all()
        if mine.error is not None:
            raise mine.error
        return mine.output

    def _gathered(self) -> list[_Asked]:
        """The windows of all that are at work, of one shape, at most `most` of them."""
        with self._condition:
            self._condition.wait_for(self._is_full, _WAIT_S)
            taken: list[_Asked] = []
            for one in list(self._asked):
                alike = not taken or one.images.shape[1:] == taken[0].images.shape[1:]
                if alike and (not taken or sum(len(other.images) for other in (*taken, one)) <= self._most):
                    taken.append(one)
                    self._asked.remove(one)
            return taken

    def _is_full(self) -> bool:
        return len(self._asked) >= self._users or sum(len(one.images) for one in self._asked) >= self._most

    def _answer(self, asked: Sequence[_Asked]) -> None:
        if not asked:
            return
        try:
            outputs = parts_of(
                self._network(torch.cat([one.images for one in asked])), [len(one.images) for one in asked]
            )
            for one, output in zip(asked, outputs, strict=True):
                one.output = output
        except BaseException as error:
            for one in asked:
                one.error = error
        for one in asked:
            one.answered.set()

    def _count(self, change: int) -> None:
        with self._condition:
            self._users += change
            self._condition.notify_all()


def parts_of(output: Any, counts: Sequence[int]) -> list[Any]:
    """A batch's output as one for each of its parts; tensors, and tuples of them however deep."""
    if isinstance(output, Tensor):
        return list(torch.split(output, list(counts)))
    split = [parts_of(part, counts) for part in output]
    kind = type(output)
    return [kind(*parts) if hasattr(output, "_fields") else kind(parts) for parts in zip(*split, strict=True)]
