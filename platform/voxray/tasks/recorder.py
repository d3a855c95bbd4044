"""Records, while a scan is answered, what the network said before it was merged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from voxray.core.volume import Grid, Shape
from voxray.tasks.candidates import Placed

WHOLE = 255
"""A probability of 1, as it is recorded."""


class Recorder:
    """Of one scan: its candidates, or the probabilities of the classes with the given labels."""

    def __init__(self, labels: Sequence[int] = ()) -> None:
        self.labels = tuple(labels)
        self.grid: Grid | None = None
        """The recipe's grid over the scan, once something was recorded."""
        self.placed: Placed | None = None
        """The candidates of a detection."""
        self.shares: UInt8[np.ndarray, "c x y z"] | None = None
        """The probabilities of a segmentation in 255ths: the largest of all other classes first."""

    def candidates(self, placed: Placed, grid: Grid) -> None:
        """Records the candidates of a detection."""
        self.placed, self.grid = placed, grid

    def begin(self, grid: Grid) -> None:
        """Makes room for probabilities on the recipe's grid."""
        self.grid = grid
        self.shares = np.zeros((1 + len(self.labels), *grid.shape), np.uint8)
        self.shares[0] = WHOLE

    def block(self, place: Shape, shares: Float[Tensor, "c x y z"]) -> None:
        """Records the probabilities of all classes, background first, in a block of the grid."""
        assert self.shares is not None
        others = [index for index in range(len(shares)) if index not in self.labels]
        rest = shares[others].amax(dim=0)
        recorded = torch.cat([rest[None], shares[list(self.labels)]]).mul(WHOLE).round().to(torch.uint8)
        x, y, z = (slice(first, first + side) for first, side in zip(place, shares.shape[1:], strict=True))
        self.shares[:, x, y, z] = recorded.cpu().numpy()

    def slabs(
        self, finished: Iterator[tuple[int, Float[Tensor, "k x y z"]]], axis: int
    ) -> Iterator[tuple[int, Float[Tensor, "k x y z"]]]:
        """The slabs as they are, recorded on their way; a single share is ``2 p - 1``."""
        for first, slab in finished:
            place = (first * (axis == 0), first * (axis == 1), first * (axis == 2))
            self.block(place, _both(slab) if len(slab) == 1 else slab)
            yield first, slab


def _both(slab: Float[Tensor, "1 x y z"]) -> Float[Tensor, "2 x y z"]:
    share = (slab[0] + 1) / 2
    return torch.stack([1 - share, share])
