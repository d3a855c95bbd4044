"""Overlaps measured once: suppression and clustering of one set of boxes again and again, by ever other rules.

A sweep joins the same candidates a thousand times. Which of them overlap, and by how much, never changes; so each
box's neighbours are listed once, and a greedy pass then only looks at the lists of the boxes that stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, Int64
from torch import Tensor

from voxray.boxes import nms
from voxray.boxes.overlap import paired_iou


@dataclass(frozen=True)
class Neighbours:
    """For each of n boxes the others of its kind that overlap it by more than a floor, as runs of two arrays."""

    first: Int64[np.ndarray, " n1"]
    """Box i's neighbours are ``other[first[i]:first[i + 1]]``."""
    other: Int32[np.ndarray, " p"]
    iou: Float32[np.ndarray, " p"]

    @staticmethod
    def of(
        boxes: Float[Tensor, "n 6"], kinds: Int64[Tensor, " n"], *, floor: float, most: int | None = None
    ) -> Neighbours | None:
        """The neighbours of boxes on the CPU; None where there would be more than `most` pairs."""
        if len(boxes) == 0:
            return Neighbours(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
        boxes, parts, found = boxes.float(), [], 0
        for first, second in nms.overlapping(boxes, kinds, boxes, kinds, floor):
            # Boxes that start in one place on the y axis come both ways.
            once = (first != second) & ((boxes[first, 1] != boxes[second, 1]) | (first < second))
            parts.append((first[once], second[once]))
            found += int(once.sum())
            if most is not None and found > most:
                return None
        pairs = [torch.cat([part[side] for part in parts]) for side in (0, 1)]
        shares = paired_iou(boxes[pairs[0]], boxes[pairs[1]])
        one, other = torch.cat(pairs), torch.cat(pairs[::-1])
        order = one.argsort(stable=True)
        number = torch.bincount(one, minlength=len(boxes)).numpy()
        return Neighbours(
            np.concatenate([[0], np.cumsum(number)]),
            other[order].numpy().astype(np.int32),
            torch.cat([shares, shares])[order].numpy(),
        )

    def stay(
        self, chosen: Int64[np.ndarray, " c"], *, iou: float, most: int | None = None
    ) -> Int64[np.ndarray, " k"]:
        """Of boxes in the order of their rank, the ranks of the first `most` that stay: `boxes.nms.nms`.

        The threshold is no lower than the floor.
        """
        return self._pass(chosen, iou=iou, most=most, cluster=None)

    def group(
        self, chosen: Int64[np.ndarray, " c"], *, iou: float
    ) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " c"]]:
        """The ranks of those that stay, and the number of each one's cluster: `boxes.clustering.group`."""
        cluster = np.full(len(self.first) - 1, -1, np.int64)
        kept = self._pass(chosen, iou=iou, most=None, cluster=cluster)
        return kept, cluster[chosen]

    def _pass(
        self,
        chosen: Int64[np.ndarray, " c"],
        *,
        iou: float,
        most: int | None,
        cluster: Int64[np.ndarray, " n"] | None,
    ) -> Int64[np.ndarray, " k"]:
        flags = bytearray(len(self.first) - 1)
        is_open = np.frombuffer(flags, np.uint8)
        is_open[chosen] = 1
        first, kept = self.first, list[int]()
        for box in _open_ones(flags, chosen):
            if len(kept) == most:
                break
            run = slice(first[box], first[box + 1])
            near = self.other[run][self.iou[run] > iou]
            if cluster is not None:
                cluster[near[is_open[near] > 0]] = cluster[box] = len(kept)
            is_open[near] = flags[box] = 0
            kept.append(box)
        rank = np.empty(len(flags), np.int64)
        rank[chosen] = np.arange(len(chosen))
        return rank[np.asarray(kept, np.int64)]


def _open_ones(flags: bytearray, chosen: Int64[np.ndarray, " c"]) -> Iterator[int]:
    """The boxes that are still open when their turn comes."""
    if not (chosen[1:] > chosen[:-1]).all():
        yield from (box for box in chosen.tolist() if flags[box])
        return
    box = flags.find(1)
    while box >= 0:
        yield box
        box = flags.find(1, box + 1)
