"""What ranks do together: sums for losses and metrics, gathered answers; a single process needs none of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Collective:
    """One rank of a group of processes; with more than one, `torch.distributed` must be initialised."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    num_slots: int = 0
    """The parts of the global batch, at least one for each rank; 0: as many as ranks."""

    @property
    def slots(self) -> range:
        """The slots that this rank computes."""
        return range(self.rank, self.num_slots or self.world_size, self.world_size)

    @property
    def accumulates(self) -> bool:
        """Whether some rank computes several slots, one after another."""
        return self.num_slots > self.world_size

    @property
    def global_share(self) -> float:
        """The number of all slots over that of this rank's."""
        return (self.num_slots or self.world_size) / len(self.slots)

    def reduce(self, value: Tensor) -> Tensor:
        """The sum over ranks, the same on every one, with the gradient of this rank's summand."""
        if self.world_size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total + (value - value.detach())

    def mean(self, values: Sequence[float]) -> list[float]:
        """Each number's mean over ranks."""
        total = torch.tensor(values, dtype=torch.float32, device=self.device)
        if self.world_size > 1:
            dist.all_reduce(total)
        return [float(value) for value in (total / self.world_size).tolist()]

    def gather(self, item: Any) -> list[Any] | None:
        """The picklable items of all ranks in order, on rank 0; None on the others."""
        if self.world_size == 1:
            return [item]
        gathered: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(item, gathered)
        return gathered

    def broadcast(self, item: Any) -> Any:
        """Rank 0's picklable item, on every rank."""
        if self.world_size == 1:
            return item
        box = [item]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def share_buffers(self, model: nn.Module) -> None:
        """Gives every rank the buffers (running statistics of norms) of rank 0, which are those that are saved."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def add_up(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor's sum over ranks; all of them travel at once."""
        if self.world_size == 1 or not values:
            return list(values)
        flat = torch.cat([value.flatten() for value in values])
        dist.all_reduce(flat)
        parts = torch.split(flat, [value.numel() for value in values])
        return [part.view_as(value) for part, value in zip(parts, values, strict=True)]

    def wrap(self, model: nn.Module) -> nn.Module:
        """The network with gradients averaged over ranks; the loop multiplies by their number to get the sum.

        Where slots are accumulated, the network as it is: `add_up` then sums the gradients.
        """
        if self.world_size == 1 or self.accumulates:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
