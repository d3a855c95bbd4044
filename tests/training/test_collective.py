"""Two ranks over gloo: N workers take the step of one worker with the N-fold batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from support.ranks import model, on_two_ranks, sums, trained_in_slots, weights_after
from support.tiny_task import ball_patches, tiny_recipe
from support.tiny_training import detection_recipe
from voxray.core.batch import PADDING, PatchBatch
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


SLOTTED = {
    "detection": detection_recipe("optim.optimizer=sgd", "optim.rate=0.05", "optim.clip_norm=1.0"),
    "segmentation": tiny_recipe(
        "network.norm=batch",
        "network.dropout=0.2",
        "augment.flip_p=0.5",
        "augment.noise_p=0.5",
        "loss.batch_dice=true",
        "optim.optimizer=sgd",
        "optim.rate=0.05",
        "optim.ema_decay=0.9",
        'intensity={kind="zscore_minmax"}',
    ),
}
"""A loss with global normalisers and one with a Dice of the whole batch; the latter with all that is random."""


def _boxed(patches: PatchBatch, both: bool) -> PatchBatch:
    """With the balls' boxes, of the first patch only or of both: the slots' normalisers differ."""
    assert patches.labels is not None
    places = [labels.nonzero().float() for labels in patches.labels]
    boxes = torch.stack([torch.cat([one.amin(0), one.amax(0) + 1])[None] for one in places])
    return patches._replace(boxes=boxes, classes=torch.tensor([[0], [0 if both else PADDING]]))


def _in_slots(
    recipe: Recipe, num_slots: int, *, steps: range = range(3), state: Any = None, bad: bool = False
) -> tuple[Any, ...]:
    """What `trained_in_slots` is given: for each step a batch for each slot."""
    batches = [[_boxed(ball_patches(10 * step + slot), bool(slot)) for slot in range(num_slots)] for step in steps]
    if bad:
        batches[1][2].stats[0] = float("nan")
    return recipe.model_dump(mode="json"), [[tuple(one) for one in slots] for slots in batches], steps.start, state


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
    for task, recipe in SLOTTED.items():
        for num_slots in (2, 3):
            jobs[f"{task} {num_slots}"] = (trained_in_slots, _in_slots(recipe, num_slots))
        jobs[f"{task} halted"] = (trained_in_slots, _in_slots(recipe, 3, steps=range(1)))
    jobs["bad slot"] = (trained_in_slots, _in_slots(SLOTTED["segmentation"], 3, bad=True))
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


@pytest.mark.parametrize("num_slots", [2, 3])
@pytest.mark.parametrize("task", SLOTTED)
def test_the_number_of_workers_changes_only_the_order_of_summation(
    answers: dict[str, tuple[Any, ...]], task: str, num_slots: int
) -> None:
    first, second = answers[f"{task} {num_slots}"]
    alone = trained_in_slots(Collective(), _in_slots(SLOTTED[task], num_slots))
    assert first["losses"] == second["losses"]
    assert _numbers(first["losses"]) == pytest.approx(_numbers(alone["losses"]), rel=1e-5)
    moved = _distance(alone["weights"], model(SLOTTED[task]).state_dict())
    assert _distance(first["weights"], alone["weights"]) < 1e-4 * moved


@pytest.mark.parametrize("task", SLOTTED)
def test_a_change_from_two_workers_to_one_changes_only_the_order_of_summation(
    answers: dict[str, tuple[Any, ...]], task: str
) -> None:
    halted, recipe = answers[f"{task} halted"][0], SLOTTED[task]
    changed = trained_in_slots(Collective(), _in_slots(recipe, 3, steps=range(1, 3), state=halted))
    alone = trained_in_slots(Collective(), _in_slots(recipe, 3))
    assert _numbers([*halted["losses"], *changed["losses"]]) == pytest.approx(_numbers(alone["losses"]), rel=1e-5)
    moved = _distance(alone["weights"], model(recipe).state_dict())
    assert _distance(changed["weights"], alone["weights"]) < 1e-4 * moved


def test_a_slot_whose_gradient_is_not_finite_skips_the_step_everywhere(answers: dict[str, tuple[Any, ...]]) -> None:
    alone = trained_in_slots(Collective(), _in_slots(SLOTTED["segmentation"], 3, bad=True))
    for one in (*answers["bad slot"], alone):
        assert [loss is None for loss in one["losses"]] == [False, True, False]
        assert one["trainer"]["counters"]["num_skipped"] == 1
        assert all(bool(torch.isfinite(value).all()) for value in one["weights"].values())


def _numbers(losses: list[dict[str, float]]) -> list[float]:
    return [value for parts in losses for value in parts.values()]


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
