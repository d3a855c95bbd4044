"""The loop: learns, resumes bit-identically, survives gradients that are not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from voxray.core.batch import PatchBatch
from voxray.core.errors import ConfigError
from voxray.core.recipe import Recipe
from voxray.core.run import Run
from voxray.tasks import build_task
from voxray.training.checkpoint import Checkpoint, read_state, read_trainer, read_weights, write_checkpoint
from voxray.training.loop import EpochRecord, StoppedError, Surroundings, fit
from voxray.training.meter import Tick
from voxray.training.state import TrainingState, on_host
from voxray.training.step import MAX_SKIPPED_IN_A_ROW

MakeRecipe = Callable[..., Recipe]
MakePatches = Callable[..., PatchBatch]

NUM_STEPS = 3
RESTLESS = (
    "network.dropout=0.2",
    "augment.flip_p=0.5",
    "augment.rot90_p=0.5",
    "augment.rotate_p=0.5",
    "augment.noise_p=0.5",
    "augment.blur_p=0.5",
    "augment.gamma_p=0.5",
)


def _model(recipe: Recipe) -> nn.Module:
    torch.manual_seed(1)
    model: nn.Module = recipe.network.build(recipe, 1)
    return model


def _batches(make_patches: MakePatches) -> Callable[[int], Iterator[PatchBatch]]:
    return lambda epoch: (make_patches(1000 * epoch + step) for step in range(NUM_STEPS))


def _fit(
    recipe: Recipe,
    batches: Callable[[int], Iterator[PatchBatch]],
    *,
    training: TrainingState | None = None,
    save: Callable[[TrainingState, EpochRecord], None] = lambda *_: None,
    **more: Any,
) -> TrainingState:
    training = training or TrainingState(_model(recipe), recipe.optim)
    calls = {name: more[name] for name in ("tick", "after_step", "interrupted") if name in more}
    around = Surroundings(batches, NUM_STEPS, more.get("validate"), save, **calls)
    fit(training, task=build_task(recipe, ["ball"]), recipe=recipe, around=around, seed=more.get("seed", 0))
    return training


def _saver(
    location: Path, run: Run, *, stop_after: int | None = None
) -> Callable[[TrainingState, EpochRecord], None]:
    def save(training: TrainingState, record: EpochRecord) -> None:
        value = record.metrics.get("dice")
        write_checkpoint(
            location,
            Checkpoint(run, training.weights(), training.epochs_done, training.trainer(), metric="dice", value=value),
        )
        if record.epoch == stop_after:
            raise KeyboardInterrupt

    return save


def test_it_learns(make_recipe: MakeRecipe, make_patches: MakePatches) -> None:
    recipe = make_recipe("optim.epochs=12", "optim.rate=0.02")
    training = _fit(recipe, lambda _: (make_patches(step) for step in range(NUM_STEPS)))
    losses = [row["loss/total"] for row in training.history]
    assert losses[-1] < 0.6 * losses[0]
    assert training.num_steps == 12 * NUM_STEPS
    assert training.num_skipped == 0


@pytest.mark.parametrize(
    "settings",
    [
        ("optim.optimizer=adamw", "optim.schedule=poly"),
        ("optim.optimizer=sgd", "optim.warmup_epochs=2", "optim.ema_decay=0.9", "optim.clip_norm=1.0"),
        ("optim.optimizer=novograd", "optim.amp=bf16", "network.norm=instance", "optim.channels_last=true"),
    ],
)
def test_a_resumed_training_ends_bit_identical(
    tmp_path: Path,
    make_recipe: MakeRecipe,
    make_run: Callable[..., Run],
    make_patches: MakePatches,
    settings: tuple[str, ...],
) -> None:
    recipe = make_recipe(*RESTLESS, *settings)
    run, batches = make_run(recipe), _batches(make_patches)
    straight, halted = tmp_path / "straight", tmp_path / "halted"
    _fit(recipe, batches, save=_saver(straight, run))
    with pytest.raises(KeyboardInterrupt):
        _fit(recipe, batches, save=_saver(halted, run, stop_after=2))
    torch.manual_seed(99)
    again = TrainingState(recipe.network.build(recipe, 1), recipe.optim)
    state, trainer = read_state(halted), read_trainer(halted)
    assert state.epochs_done == 2
    assert trainer is not None
    again.restore(read_weights(halted, f"checkpoints/{state.last}"), trainer)
    resumed = _fit(recipe, batches, training=again, save=_saver(halted, run))
    name = "checkpoints/epoch_0004/weights.safetensors"
    assert (halted / name).read_bytes() == (straight / name).read_bytes()
    assert [row["epoch"] for row in resumed.history] == [1, 2, 3, 4]


@pytest.mark.parametrize("settings", [("optim.ema_decay=0.9",), ("optim.optimizer=sgd", "network.norm=batch")])
@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_a_training_that_goes_on_within_an_epoch_ends_bit_identical(
    make_recipe: MakeRecipe, make_patches: MakePatches, settings: tuple[str, ...], stop_at: int
) -> None:
    recipe = make_recipe(*RESTLESS, *settings, "optim.epochs=2", "optim.validate_every=2")
    straight = _fit(recipe, _batches(make_patches))
    kept: list[Any] = []

    def stop(training: TrainingState) -> None:
        if training.num_steps == stop_at:
            kept.append((on_host(training.weights()), on_host(training.trainer())))
            raise StoppedError("here")

    with pytest.raises(StoppedError):
        _fit(recipe, _batches(make_patches), after_step=stop)
    torch.manual_seed(99)
    again = TrainingState(recipe.network.build(recipe, 1), recipe.optim)
    again.restore(*kept[0])
    assert again.epochs_done * NUM_STEPS + again.steps_done == stop_at
    resumed = _fit(recipe, _from(_batches(make_patches), again.epochs_done, again.steps_done), training=again)
    assert _equal(resumed.weights(), straight.weights())
    assert [_losses(row) for row in resumed.history] == [_losses(row) for row in straight.history]


def _from(
    batches: Callable[[int], Iterator[PatchBatch]], epoch: int, step: int
) -> Callable[[int], Iterator[PatchBatch]]:
    """The batches of a stream that begins within an epoch."""
    return lambda now: islice(batches(now), step if now == epoch else 0, None)


def _losses(row: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name.startswith("loss/") or name == "num_skipped"}


def test_a_stop_while_it_validates_is_saved_with_the_weights_that_train(
    make_recipe: MakeRecipe, make_patches: MakePatches
) -> None:
    recipe = make_recipe("optim.epochs=1", "optim.ema_decay=0.9")
    straight, kept = _fit(recipe, _batches(make_patches)), []

    def validate(_: nn.Module) -> dict[str, float]:
        raise StoppedError

    def save(training: TrainingState) -> None:
        kept.append(on_host(training.trainer()))
        raise StoppedError("saved")

    with pytest.raises(StoppedError, match="saved"):
        _fit(recipe, _batches(make_patches), validate=validate, interrupted=save)
    assert kept[0]["counters"]["steps_done"] == NUM_STEPS
    assert _equal(kept[0]["model"], straight.model.state_dict())


def test_another_seed_trains_another_network(make_recipe: MakeRecipe, make_patches: MakePatches) -> None:
    recipe = make_recipe(*RESTLESS, "optim.epochs=1")
    one, two, same = (_fit(recipe, _batches(make_patches), seed=seed).weights() for seed in (0, 1, 0))
    assert _equal(one, same)
    assert not _equal(one, two)


def test_validation_is_due_every_so_often_and_at_the_end(make_recipe: MakeRecipe, make_patches: MakePatches) -> None:
    recipe = make_recipe("optim.epochs=5", "optim.validate_every=2")
    records: list[EpochRecord] = []
    modes: list[bool] = []

    def validate(model: nn.Module) -> dict[str, float]:
        modes.append(model.training)
        return {"dice": 0.5}

    training = _fit(recipe, _batches(make_patches), validate=validate, save=lambda _, record: records.append(record))
    assert [bool(record.metrics) for record in records] == [False, True, False, True, True]
    assert modes == [False] * 3
    assert training.model.training
    assert training.history[1]["val/dice"] == 0.5


def test_the_moving_average_predicts_and_training_goes_on_without_it(
    make_recipe: MakeRecipe, make_patches: MakePatches
) -> None:
    recipe = make_recipe("optim.epochs=1", "optim.ema_decay=0.9")
    training = _fit(recipe, _batches(make_patches))
    own = {name: value.clone() for name, value in training.model.state_dict().items()}
    with training.predicting() as model:
        assert _equal(model.state_dict(), training.weights())
        assert not _equal(model.state_dict(), own)
    assert _equal(training.model.state_dict(), own)


def _with_bad(batches: Callable[[int], Iterator[PatchBatch]], bad: set[int]) -> Callable[[int], Iterator[PatchBatch]]:
    """Some steps' patches have statistics that are not numbers, and so images that are not."""

    def spoilt(epoch: int) -> Iterator[PatchBatch]:
        for step, patches in enumerate(batches(epoch), start=epoch * NUM_STEPS):
            yield patches._replace(stats=patches.stats * float("nan")) if step in bad else patches

    return spoilt


ZSCORE = ('intensity={kind="zscore_minmax"}',)


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_step_without_a_finite_gradient_changes_nothing(
    make_recipe: MakeRecipe, make_patches: MakePatches, amp: str
) -> None:
    recipe = make_recipe(*ZSCORE, "optim.epochs=1", f"optim.amp={amp}", "network.norm=batch")
    training = TrainingState(_model(recipe), recipe.optim)
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    _fit(recipe, _with_bad(_batches(make_patches), {0, 1, 2}), training=training)
    assert training.num_skipped == NUM_STEPS
    assert _equal(training.model.state_dict(), before)


def test_skipped_steps_are_counted_and_left_out_of_the_mean(
    make_recipe: MakeRecipe, make_patches: MakePatches
) -> None:
    recipe = make_recipe(*ZSCORE, "optim.epochs=2", "network.norm=batch")
    training = _fit(recipe, _with_bad(_batches(make_patches), {1, 4, 5}))
    assert [row["num_skipped"] for row in training.history] == [1.0, 2.0]
    assert all(row["loss/total"] < 10 for row in training.history)
    assert all(bool(torch.isfinite(value).all()) for value in training.model.state_dict().values())


def test_a_training_that_has_diverged_stops_with_a_sentence(
    make_recipe: MakeRecipe, make_patches: MakePatches
) -> None:
    recipe = make_recipe(*ZSCORE, "optim.epochs=100")
    with pytest.raises(ConfigError, match=f"diverged: {MAX_SKIPPED_IN_A_ROW} steps in a row.*lower optim.rate"):
        _fit(recipe, _with_bad(_batches(make_patches), set(range(1000))))


def test_ticks_tell_of_the_steps(make_recipe: MakeRecipe, make_patches: MakePatches) -> None:
    ticks: list[Tick] = []
    _fit(make_recipe("optim.epochs=2"), _batches(make_patches), tick=ticks.append)
    assert [(tick.epoch, tick.steps_done) for tick in ticks] == [(1, 3), (2, 6)]
    assert all(tick.loss > 0 and tick.samples_per_s > 0 for tick in ticks)
    assert all(0 <= tick.wait_share < 1 and tick.step_s > 0 for tick in ticks)


def test_waiting_for_patches_is_measured(make_recipe: MakeRecipe, make_patches: MakePatches) -> None:
    import time

    def slow(epoch: int) -> Iterator[PatchBatch]:
        for patches in _batches(make_patches)(epoch):
            time.sleep(0.15)
            yield patches

    (row,) = _fit(make_recipe("optim.epochs=1"), slow).history
    assert 0.15 <= row["wait_share"] * row["step_s"] < row["step_s"]


def test_a_stream_that_ends_early_is_our_mistake(make_recipe: MakeRecipe, make_patches: MakePatches) -> None:
    with pytest.raises(AssertionError, match="ended after 1 of 3"):
        _fit(make_recipe(), lambda _: iter([make_patches(0)]))


def _equal(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, two[name]) for name, value in one.items())
