"""Losses with global normalisers: N workers give the gradient of one worker with the N-fold batch.

Every loss sums locally, passes its sums through a `Reduce`, and divides only then. Within one process that is
the identity; across workers it adds up all ranks' sums while keeping the gradient of the local part, so the
value is the same on every rank and the training loop multiplies by the number of ranks to undo DDP's mean.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
"""A sum over ranks, with the gradient of the local summand."""


def local(value: Tensor) -> Tensor:
    """The `Reduce` of a single process."""
    return value
