"""Takes down, while a scan is answered, what the network said before it was merged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from voxray.core.answer_json import ModelStamp
from voxray.core.recipe import Recipe
from voxray.core.volume import Grid, Shape
from voxray.inference.candidates.file import FLOOR, WHOLE, RecordedCase, RecordedHeader
from voxray.tasks.candidates import Placed


class Recorder:
    """Of one scan: its candidates, or the probabilities of the classes with the given labels."""

    def __init__(self, labels: Sequence[int] = ()) -> None:
        self.labels = tuple(labels)
        self.grid: Grid | None = None
        self.placed: Placed | None = None
        self._shares: UInt8[np.ndarray, "c x y z"] | None = None

    def candidates(self, placed: Placed, grid: Grid) -> None:
        """Takes the candidates of a detection."""
        self.placed, self.grid = placed, grid

    @property
    def required(self) -> Placed:
        """The candidates that were taken."""
        assert self.placed is not None
        return self.placed

    def begin(self, grid: Grid) -> None:
        """Makes room for probabilities on the recipe's grid."""
        self.grid = grid
        self._shares = np.zeros((1 + len(self.labels), *grid.shape), np.uint8)
        self._shares[0] = WHOLE

    def block(self, place: Shape, shares: Float[Tensor, "c x y z"]) -> None:
        """Takes the probabilities of all classes, background first, in a block of the grid."""
        assert self._shares is not None
        others = [index for index in range(len(shares)) if index not in self.labels]
        rest = shares[others].amax(dim=0)
        recorded = torch.cat([rest[None], shares[list(self.labels)]]).mul(WHOLE).round().to(torch.uint8)
        x, y, z = (slice(first, first + side) for first, side in zip(place, shares.shape[1:], strict=True))
        self._shares[:, x, y, z] = recorded.cpu().numpy()

    def slabs(
        self, finished: Iterator[tuple[int, Float[Tensor, "k x y z"]]], axis: int
    ) -> Iterator[tuple[int, Float[Tensor, "k x y z"]]]:
        """The slabs as they are, taken down on their way; a single share is ``2 p - 1``."""
        for first, slab in finished:
            place = (first * (axis == 0), first * (axis == 1), first * (axis == 2))
            self.block(place, _both(slab) if len(slab) == 1 else slab)
            yield first, slab

    def recorded(
        self,
        recipe: Recipe,
        stamp: ModelStamp,
        *,
        case: str,
        classes: Sequence[str],
        scan_grid: Grid,
        patient: str = "",
    ) -> RecordedCase:
        """What was taken down, as it is written to a file; a patient who is not known is the case."""
        assert self.grid is not None, "nothing was answered"
        head = RecordedHeader(
            case=case,
            patient=patient or case,
            classes=tuple(classes),
            model=stamp,
            grid=self.grid.to_dict(),
            scan_grid=scan_grid.to_dict(),
        )
        if self.placed is not None:
            mirrors = ((), *recipe.inference.mirrors)
            update = {
                "window_vox": self.placed.window,
                "starts_vox": tuple(map(tuple, self.placed.starts.tolist())),
                "num_models": -(-self.placed.num_views // len(mirrors)),
                "mirrors": mirrors,
            }
            return RecordedCase(head.model_copy(update=update), placed=self.placed)
        assert self._shares is not None
        start, shares = _cropped(self._shares)
        update = {
            "classes": tuple(classes[label - 1] for label in self.labels),
            "start_vox": start,
            "shape_vox": shares.shape[1:],
        }
        return RecordedCase(head.model_copy(update=update), shares=shares)


def _both(slab: Float[Tensor, "1 x y z"]) -> Float[Tensor, "2 x y z"]:
    share = (slab[0] + 1) / 2
    return torch.stack([1 - share, share])


def _cropped(shares: UInt8[np.ndarray, "c x y z"]) -> tuple[Shape, UInt8[np.ndarray, "c x y z"]]:
    """The first voxel and the probabilities of what holds all that is above the floor."""
    above = shares[1:] > FLOOR * WHOLE
    ends = []
    for axis in range(3):
        planes = np.flatnonzero(above.any(axis=tuple(side for side in range(4) if side != axis + 1)))
        ends.append((int(planes[0]), int(planes[-1]) + 1) if len(planes) else (0, 0))
    (x1, x2), (y1, y2), (z1, z2) = ends
    return (x1, y1, z1), np.ascontiguousarray(shares[:, x1:x2, y1:y2, z1:z2])
