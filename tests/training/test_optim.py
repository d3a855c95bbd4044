"""Optimizers, the rate over time, clipping and averaging."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from voxray.core.errors import ConfigError
from voxray.core.recipe import OptimConfig
from voxray.training.optim import Average, build_optimizer, clip_gradient, rate_at, set_rate


def _config(**fields: Any) -> OptimConfig:
    return OptimConfig.model_validate({"rate": 0.01, "epochs": 300, "batch_size": 4} | fields)


def test_the_published_schedule_of_the_lung_nodule_bundle() -> None:
    # GradualWarmup(10) then StepLR(160, .1), stepped per epoch, simulated on torch 2.13; epochs as 1-based there.
    config = _config(schedule="steps", warmup_epochs=10, decay_epochs=(160,))
    rates = [rate_at(config, epoch) for epoch in range(300)]
    assert rates[:10] == pytest.approx([0.001 * k for k in range(1, 11)])
    assert rates[10:170] == pytest.approx([0.01] * 160)
    assert rates[170:] == pytest.approx([0.001] * 130)


def test_steps_decay_once_at_each_of_their_epochs() -> None:
    config = _config(decay_epochs=(2, 4), decay_factor=0.5, epochs=6)
    assert [rate_at(config, epoch) for epoch in range(6)] == pytest.approx([0.01, 0.01, 0.005, 0.005, 0.0025, 0.0025])


def test_steps_hold_the_rate_within_an_epoch() -> None:
    config = _config(decay_epochs=(2,), warmup_epochs=1)
    assert {rate_at(config, 2, step, 10) for step in range(10)} == {0.01}


def test_poly_falls_as_published() -> None:
    # nnU-Net: rate * (1 - epoch / epochs) ** 0.9
    config = _config(schedule="poly", epochs=1000)
    assert [rate_at(config, epoch) for epoch in (0, 500, 999)] == pytest.approx(
        [0.01, 0.01 * 0.5**0.9, 0.01 * 0.001**0.9]
    )


def test_cosine_falls_from_the_full_rate_by_half_at_half_time() -> None:
    config = _config(schedule="cosine", epochs=12, warmup_epochs=2)
    assert rate_at(config, 2, 0, 4) == pytest.approx(0.01)
    assert rate_at(config, 7, 0, 4) == pytest.approx(0.005)
    assert rate_at(config, 11, 3, 4) == pytest.approx(0.01 * (1 + math.cos(math.pi * 9.75 / 10)) / 2)


@pytest.mark.parametrize("schedule", ["poly", "cosine"])
def test_smooth_schedules_fall_with_every_step(schedule: str) -> None:
    config = _config(schedule=schedule, epochs=4)
    rates = [rate_at(config, epoch, step, 5) for epoch in range(4) for step in range(5)]
    assert all(later < earlier for earlier, later in pairwise(rates))
    assert rates[-1] > 0


def test_a_warm_up_longer_than_training_only_rises() -> None:
    config = _config(warmup_epochs=10, epochs=4, schedule="poly")
    assert [rate_at(config, epoch) for epoch in range(4)] == pytest.approx([0.001, 0.002, 0.003, 0.004])


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "novograd"])
def test_every_optimizer_goes_downhill_and_resumes_bit_identically(name: str) -> None:
    config = _config(optimizer=name, rate=0.05, weight_decay=1e-4)

    def advance(model: nn.Linear, optimizer: torch.optim.Optimizer, steps: int) -> float:
        loss = torch.zeros(())
        for _ in range(steps):
            loss = (model(torch.eye(3)) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = build_optimizer(config, model.parameters())
    first = advance(model, optimizer, 3)
    saved = ({k: v.clone() for k, v in model.state_dict().items()}, optimizer.state_dict())
    twin = nn.Linear(3, 1)
    twin.load_state_dict(saved[0])
    twin_optimizer = build_optimizer(config, twin.parameters())
    twin_optimizer.load_state_dict(torch.load(_through_disk(saved[1]), weights_only=True))
    assert advance(model, optimizer, 5) < first
    advance(twin, twin_optimizer, 5)
    assert torch.equal(model.weight, twin.weight)


def _through_disk(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim\.nesterov: needs optim\.momentum above 0"):
        build_optimizer(_config(momentum=0.0), nn.Linear(2, 1).parameters())


def test_set_rate_reaches_the_optimizer() -> None:
    optimizer = build_optimizer(_config(), nn.Linear(2, 1).parameters())
    set_rate(optimizer, 0.123)
    assert optimizer.param_groups[0]["lr"] == 0.123


@pytest.fixture
def with_gradient() -> Callable[[list[float]], nn.Linear]:
    def make(gradient: list[float]) -> nn.Linear:
        layer = nn.Linear(2, 1, bias=False)
        layer.weight.grad = torch.tensor([gradient])
        return layer

    return make


def test_clipping_cuts_the_norm_and_reports_what_it_was(with_gradient: Callable[[list[float]], nn.Linear]) -> None:
    layer = with_gradient([3.0, 4.0])
    assert float(clip_gradient(layer.parameters(), 1.0)) == pytest.approx(5.0)
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad, torch.tensor([[0.6, 0.8]]), atol=1e-5)
    assert float(clip_gradient(layer.parameters(), None)) == pytest.approx(1.0, abs=1e-5)


def test_a_gradient_that_is_not_finite_shows_in_the_norm(with_gradient: Callable[[list[float]], nn.Linear]) -> None:
    for bad in (float("nan"), float("inf")):
        assert not torch.isfinite(clip_gradient(with_gradient([1.0, bad]).parameters(), None))


def test_the_average_follows_its_formula_and_copies_buffers() -> None:
    model = nn.BatchNorm1d(1)
    average = Average(model, 0.9)
    expected = 1.0
    for step in range(1, 40):
        with torch.no_grad():
            model.weight.fill_(float(step))
        model.running_mean = torch.tensor([float(step)])
        average.update(model)
        keep = min(0.9, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * step
    assert float(average.weights["weight"]) == pytest.approx(expected, rel=1e-5)
    assert float(average.weights["running_mean"]) == 39.0
