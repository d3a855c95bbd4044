"""All that changes while a network is trained, and its way into a checkpoint and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from voxray.core.recipe import OptimConfig
from voxray.training.meter import Meter
from voxray.training.optim import Average, build_optimizer


class TrainingState:
    """The network on its device with optimizer, gradient scaler, moving average and counters."""

    def __init__(self, model: nn.Module, config: OptimConfig, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device)
        if config.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.config = config
        self.optimizer = build_optimizer(config, self.model.parameters())
        self.scaler = GradScaler(self.device.type, enabled=config.amp == "fp16")
        self.average = Average(self.model, config.ema_decay) if config.ema_decay is not None else None
        self.epochs_done = self.num_steps = self.num_skipped = 0
        self.steps_done = 0
        """Steps of the epoch under way."""
        self.meter = Meter(self.device)
        """The sums of the epoch under way."""
        self.checkpoint_s, self.num_checkpoints = 0.0, 0
        """Seconds that training has waited for checkpoints since the last row of the history, and their number."""
        self.history: list[dict[str, float]] = []
        """One row per epoch."""

    def weights(self) -> Mapping[str, Tensor]:
        """What predicts: the moving average where there is one, else the network's own weights."""
        return self.average.weights if self.average else self.model.state_dict()

    def trainer(self) -> dict[str, Any]:
        """What a checkpoint needs besides `weights` to go on exactly here; plain data and tensors."""
        saved: dict[str, Any] = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "counters": {
                "epochs_done": self.epochs_done,
                "steps_done": self.steps_done,
                "num_steps": self.num_steps,
                "num_skipped": self.num_skipped,
                "num_averaged": self.average.num_updates if self.average else 0,
            },
            "meter": self.meter.saved(),
            "history": [dict(row) for row in self.history],
        }
        if self.average:
            saved["model"] = dict(self.model.state_dict())
        return saved

    def restore(self, weights: Mapping[str, Tensor], trainer: Mapping[str, Any]) -> None:
        """Goes on where `weights` and `trainer` were taken."""
        self.model.load_state_dict(dict(trainer.get("model", weights)))
        counters = trainer["counters"]
        if self.average:
            self.average.load(weights, counters["num_averaged"])
        self.optimizer.load_state_dict(trainer["optimizer"])
        self.scaler.load_state_dict(trainer["scaler"])
        self.epochs_done, self.num_steps = counters["epochs_done"], counters["num_steps"]
        self.num_skipped, self.steps_done = counters["num_skipped"], counters.get("steps_done", 0)
        self.meter = Meter.restored(trainer["meter"], self.device) if "meter" in trainer else Meter(self.device)
        self.history = [dict(row) for row in trainer["history"]]

    def end_epoch(self, row: dict[str, float]) -> None:
        """Goes on to the next epoch, with the record of this one."""
        self.history.append(row)
        self.epochs_done, self.steps_done, self.meter = self.epochs_done + 1, 0, Meter(self.device)
        self.checkpoint_s, self.num_checkpoints = 0.0, 0

    @contextmanager
    def predicting(self) -> Iterator[nn.Module]:
        """The network in eval mode with the weights that predict; afterwards it trains on as before."""
        own = {name: value.clone() for name, value in self.model.state_dict().items()} if self.average else None
        self.model.load_state_dict(dict(self.weights()))
        self.model.eval()
        try:
            yield self.model
        finally:
            if own is not None:
                self.model.load_state_dict(own)
            self.model.train()


def on_host(value: Any) -> Any:
    """A copy of plain data and tensors in host memory, which further steps do not change."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {name: on_host(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_host(item) for item in value)
    return value
