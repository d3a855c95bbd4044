"""The optimizer, its learning rate over time, gradient clipping and the moving average of weights.

The rate is a pure function of how far training has come, so there is no scheduler with a state to save. Weight decay
acts on every parameter, those of norms included, as the published recipes were trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from voxray.core.errors import ConfigError
from voxray.core.recipe import OptimConfig

POLY_POWER = 0.9
"""Of the polynomial schedule (Chen 2017, DeepLab; nnU-Net)."""


def build_optimizer(config: OptimConfig, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """The recipe's optimizer over these parameters; `set_rate` is called before every step."""
    rate, decay = config.rate, config.weight_decay
    match config.optimizer:
        case "sgd":
            if config.nesterov and config.momentum == 0:
                raise ConfigError("optim.nesterov: needs optim.momentum above 0; set nesterov = false for plain SGD.")
            return SGD(parameters, rate, momentum=config.momentum, weight_decay=decay, nesterov=config.nesterov)
        case "adam":
            return Adam(parameters, rate, weight_decay=decay)
        case "adamw":
            return AdamW(parameters, rate, weight_decay=decay)
        case "novograd":
            from monai.optimizers.novograd import Novograd  # seconds, which others need not wait for

            return Novograd(parameters, rate, weight_decay=decay)


def rate_at(config: OptimConfig, epoch: int, step: int = 0, num_steps: int = 1) -> float:
    """The learning rate of a step; epochs and steps count from 0.

    Warm-up rises in equal parts to the full rate in its last epoch, epoch by epoch (Goyal 2017). The schedule starts
    after it: `decay_epochs` count from the end of the warm-up, epoch by epoch; poly and cosine fall with every step.
    """
    if epoch < config.warmup_epochs:
        return config.rate * (epoch + 1) / config.warmup_epochs
    past = epoch - config.warmup_epochs
    if config.schedule == "steps":
        num_decays = sum(past >= at for at in config.decay_epochs)
        return float(config.rate * config.decay_factor**num_decays)
    done = min(1.0, (past + step / num_steps) / (config.epochs - config.warmup_epochs))
    if config.schedule == "poly":
        return float(config.rate * (1 - done) ** POLY_POWER)
    return config.rate * (1 + math.cos(math.pi * done)) / 2


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Sets the rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradient(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """The gradient's norm before it is cut to `max_norm`, on the device; not finite if any part is not."""
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in with_gradient if p.grad is not None])
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(with_gradient, max_norm, norm)
    return norm


class Average:
    """The exponential moving average of a network's weights (Polyak 1992); buffers are taken as they are.

    It starts quickly, ``min(decay, (1 + n) / (10 + n))`` after n updates, so that short trainings have a use for it.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.num_updates = decay, 0
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the network's weights."""
        self.num_updates += 1
        keep = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        learned = {name for name, _ in model.named_parameters()}
        for name, value in model.state_dict().items():
            if name in learned:
                self.weights[name].lerp_(value, 1 - keep)
            else:
                self.weights[name].copy_(value)

    def load(self, weights: Mapping[str, Tensor], num_updates: int) -> None:
        """Goes on from a saved average."""
        self.num_updates = num_updates
        for name, value in self.weights.items():
            value.copy_(weights[name])
