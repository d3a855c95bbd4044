"""What an epoch adds up to, from its first step or from a checkpoint within it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

READ_EVERY = 10
"""Steps between looks at the loss: each makes the device wait."""


@dataclass(frozen=True)
class Tick:
    """What a few steps amounted to; `loss` is their mean, nan where all were skipped."""

    epoch: int
    steps_done: int
    """Of the whole training."""
    loss: float
    samples_per_s: float
    wait_share: float = 0.0
    """Of these steps' time on this rank, spent waiting for patches."""
    step_s: float = 0.0


class Meter:
    """The sums of the epoch under way; losses stay on the device and are read every `READ_EVERY` steps."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._recent, self._recent_s = torch.zeros((), device=device), 0.0
        self._num_recent = self._since_tick = 0
        self._recent_samples = self._recent_waited_s = 0.0
        self._sums: dict[str, Tensor] = {}
        self._num_applied = self.num_skipped = 0
        self.num_samples = 0.0
        """Of all ranks, as for `add`."""
        self.waited_s, self.total_s = 0.0, 0.0

    def saved(self) -> dict[str, Any]:
        """The sums as plain data and tensors, for a checkpoint."""
        return {
            "sums": dict(self._sums),
            "num_applied": self._num_applied,
            "num_samples": self.num_samples,
            "num_skipped": self.num_skipped,
            "waited_s": self.waited_s,
            "total_s": self.total_s,
        }

    @staticmethod
    def restored(saved: Mapping[str, Any], device: torch.device) -> Meter:
        """The inverse of `saved`."""
        meter = Meter(device)
        meter._sums = {name: value.to(device) for name, value in saved["sums"].items()}
        meter._num_applied, meter.num_samples = saved["num_applied"], saved["num_samples"]
        meter.num_skipped = saved["num_skipped"]
        meter.waited_s, meter.total_s = saved["waited_s"], saved["total_s"]
        return meter

    def add(self, parts: dict[str, Tensor] | None, num_samples: float, *, waited_s: float, step_s: float) -> None:
        """Adds a step with so many samples on all ranks; `parts` are its losses, None where it was skipped."""
        self.num_samples += num_samples
        self._recent_samples += num_samples
        self.waited_s += waited_s
        self.total_s += step_s
        self._recent_s += step_s
        self._recent_waited_s += waited_s
        self._since_tick += 1
        if parts is None:
            self.num_skipped += 1
            return
        self._num_applied += 1
        self._num_recent += 1
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._recent = self._recent + torch.stack(list(parts.values())).sum()

    def flush(self, tick: Callable[[Tick], None], *, epoch: int, steps_done: int, at_least: int = 1) -> None:
        """Tells what the steps since the last time amounted to, if they are enough."""
        if self._since_tick < at_least:
            return
        loss = float(self._recent) / self._num_recent if self._num_recent else float("nan")
        seconds = max(self._recent_s, 1e-9)
        speed, share = self._recent_samples / seconds, self._recent_waited_s / seconds
        tick(Tick(epoch, steps_done, loss, speed, share, self._recent_s / self._since_tick))
        self._since_tick = self._num_recent = 0
        self._recent, self._recent_s = torch.zeros_like(self._recent), 0.0
        self._recent_samples = self._recent_waited_s = 0.0

    def losses(self) -> dict[str, float]:
        """The mean of each part over the steps that were applied, and their total."""
        means = {name: float(total) / self._num_applied for name, total in self._sums.items()}
        return {"total": sum(means.values()) if means else float("nan")} | means
