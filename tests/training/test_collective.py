"""Two ranks over gloo: N workers take the step of one worker with the N-fold batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from support.ranks import model, on_two_ranks, sums, weights_after
from support.tiny_task import ball_patches, tiny_recipe
from voxray.core.recipe import Recipe
from voxray.training.collective import Collective

SEGRESNET = (
    'network={kind="segresnet", init_filters=8, blocks_down=[1,1], blocks_up=[1], dropout=0.0}',
    "optim.optimizer=sgd",
    "optim.rate=0.1",
)
WHOLE_BATCH = tiny_recipe(*SEGRESNET, "loss.batch_dice=true")
PER_PATCH = tiny_recipe(*SEGRESNET, "loss.batch_dice=false")
ZSCORE = tiny_recipe(*SEGRESNET, 'intensity={kind="zscore_minmax"}')


def _good(recipe: Recipe) -> tuple[Any, list[Any]]:
    return recipe.model_dump(mode="json"), [tuple(ball_patches(step, size=4)) for step in range(2)]


def _bad_on_rank_1(recipe: Recipe) -> tuple[Any, list[Any]]:
    good, bad = ball_patches(0, size=4), ball_patches(1, size=4)
    bad.stats[3] = float("nan")
    return recipe.model_dump(mode="json"), [tuple(good), tuple(bad), tuple(good)]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, ...]]:
    """What both ranks found; all in one pair of processes, as starting them is what takes long."""
    jobs = {
        "whole_batch": (weights_after, _good(WHOLE_BATCH)),
        "per_patch": (weights_after, _good(PER_PATCH)),
        "bad": (weights_after, _bad_on_rank_1(ZSCORE)),
        "sums": (sums, "word"),
    }
    return dict(zip(jobs, on_two_ranks(list(jobs.values()), tmp_path_factory.mktemp("ranks")), strict=True))


@pytest.mark.parametrize(("name", "recipe"), [("whole_batch", WHOLE_BATCH), ("per_patch", PER_PATCH)])
def test_two_workers_take_the_step_of_one_with_the_double_batch(
    answers: dict[str, tuple[Any, ...]], name: str, recipe: Recipe
) -> None:
    first, second = answers[name]
    alone = weights_after(Collective(), _good(recipe))
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    moved = _distance(alone["weights"], model(recipe).state_dict())
    assert _distance(first["weights"], second["weights"]) == 0
    assert _distance(first["weights"], alone["weights"]) < 1e-4 * moved


def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_all(
    answers: dict[str, tuple[Any, ...]],
) -> None:
    first, second = answers["bad"]
    assert (first["skipped"], second["skipped"]) == (1, 1)
    assert first["losses"][1] is None
    assert _distance(first["weights"], second["weights"]) == 0
    assert all(bool(torch.isfinite(value).all()) for value in first["weights"].values())


def test_sums_means_and_gathering(answers: dict[str, tuple[Any, ...]]) -> None:
    first, second = answers["sums"]
    # total = 2 (1 + 2); d(total^2)/d(value) through this rank's summand alone = 2 * total * 2
    assert first == [6.0, torch.tensor(24.0), [0.5, 1.0], [{"rank": 0}, {"rank": 1}], "word"]
    assert second == [6.0, torch.tensor(24.0), [0.5, 1.0], None, "word"]


def test_alone_everything_is_the_identity() -> None:
    collective, value = Collective(), torch.ones(())
    assert collective.reduce(value) is value
    assert collective.gather(3) == [3]
    assert collective.mean([2.0]) == [2.0]
    assert collective.broadcast("x") == "x"


def _distance(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    return float(torch.stack([(value - two[name]).abs().max() for name, value in one.items()]).max())
