"""Checkpoints: written whole, found again, refused with a sentence when they cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from voxray.core.errors import ConfigError, DataError
from voxray.core.recipe import Recipe
from voxray.core.run import Run
from voxray.training.checkpoint import (
    Checkpoint,
    checkpoint_name,
    claim_folder,
    find_state,
    load_model,
    load_weights,
    newest_intact,
    place_of,
    read_state,
    read_trainer,
    write_checkpoint,
)

MakeRecipe = Callable[..., Recipe]
MakeRun = Callable[..., Run]


@pytest.fixture
def run(make_recipe: MakeRecipe, make_run: MakeRun) -> Run:
    return make_run(make_recipe())


@pytest.fixture
def weights(make_recipe: MakeRecipe) -> dict[str, Tensor]:
    torch.manual_seed(0)
    recipe = make_recipe()
    model: nn.Module = recipe.network.build(recipe, 1)
    return dict(model.state_dict())


def _write(location: Path | str, run: Run, weights: dict[str, Tensor], epoch: int, **more: Any) -> None:
    write_checkpoint(location, Checkpoint(run, weights, epoch, **more))


def test_weights_come_back_bit_identical_and_in_eval_mode(
    tmp_path: Path, run: Run, weights: dict[str, Tensor]
) -> None:
    _write(tmp_path, run, weights, 1)
    loaded_run, recipe, model = load_model(tmp_path)
    assert loaded_run == run
    assert recipe.name == "tiny"
    assert not model.training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_the_last_two_and_the_best_are_kept_and_the_others_removed(
    tmp_path: Path, run: Run, weights: dict[str, Tensor]
) -> None:
    for epoch, value in enumerate([0.2, 0.9, None, 0.5, float("nan")], start=1):
        _write(tmp_path, run, weights, epoch, metric="dice", value=value)
    state = read_state(tmp_path)
    assert (state.last, state.best, state.best_value, state.epochs_done) == ("epoch_0005", "epoch_0002", 0.9, 5)
    kept = ["epoch_0002", "epoch_0004", "epoch_0005"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == kept


def test_best_is_the_last_one_until_something_was_validated(
    tmp_path: Path, run: Run, weights: dict[str, Tensor]
) -> None:
    _write(tmp_path, run, weights, 1)
    _write(tmp_path, run, weights, 2)
    assert read_state(tmp_path).best == "epoch_0002"


def test_load_model_takes_the_best_or_the_last(tmp_path: Path, run: Run, weights: dict[str, Tensor]) -> None:
    later = {name: value + 1 for name, value in weights.items()}
    _write(tmp_path, run, weights, 1, value=0.9)
    _write(tmp_path, run, later, 2, value=0.1)
    name = next(iter(weights))
    assert torch.equal(load_model(tmp_path)[2].state_dict()[name], weights[name])
    assert torch.equal(load_model(tmp_path, "last")[2].state_dict()[name], later[name])


def test_a_checkpoint_that_was_cut_short_is_never_read(tmp_path: Path, run: Run, weights: dict[str, Tensor]) -> None:
    _write(tmp_path, run, weights, 1)
    half = tmp_path / "checkpoints" / "epoch_0002"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    assert read_state(tmp_path).last == "epoch_0001"
    load_model(tmp_path, "last")
    _write(tmp_path, run, weights, 2)
    load_model(tmp_path, "last")


def test_no_part_of_a_file_is_left_behind(tmp_path: Path, run: Run, weights: dict[str, Tensor]) -> None:
    _write(tmp_path, run, weights, 1, trainer={"epochs_done": 1})
    assert not list(tmp_path.rglob(".*"))


def test_the_trainers_state_comes_back_and_may_be_absent(
    tmp_path: Path, run: Run, weights: dict[str, Tensor]
) -> None:
    _write(tmp_path, run, weights, 1)
    assert read_trainer(tmp_path) is None
    _write(tmp_path, run, weights, 2, trainer={"counters": {"step": 7}, "rate": torch.tensor([0.5])})
    trainer = read_trainer(tmp_path)
    assert trainer is not None
    assert trainer["counters"] == {"step": 7}
    assert torch.equal(trainer["rate"], torch.tensor([0.5]))


def test_a_run_lives_on_any_file_system(run: Run, weights: dict[str, Tensor]) -> None:
    location = "memory://bucket/runs/one"
    for epoch in (1, 2, 3):
        _write(location, run, weights, epoch, value=1.0 / epoch, trainer={"epoch": epoch})
    state = read_state(location)
    assert (state.last, state.best) == ("epoch_0003", "epoch_0001")
    assert load_model(location)[0] == run
    assert read_trainer(location) == {"epoch": 3}


def test_channels_last_weights_are_saved_in_plain_order(tmp_path: Path, run: Run, weights: dict[str, Tensor]) -> None:
    fancy = {
        name: value.to(memory_format=torch.channels_last_3d) if value.ndim == 5 else value
        for name, value in weights.items()
    }
    _write(tmp_path, run, fancy, 1)
    assert all(torch.equal(value, weights[name]) for name, value in load_model(tmp_path)[2].state_dict().items())


def test_where_there_is_no_run_a_sentence_says_so(tmp_path: Path) -> None:
    assert find_state(tmp_path) is None
    with pytest.raises(ConfigError, match=r"no run here.*voxray train -o"):
        load_model(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["weights.safetensors", "run.json"])
def test_a_damaged_file_is_named(tmp_path: Path, run: Run, weights: dict[str, Tensor], name: str) -> None:
    _write(tmp_path, run, weights, 1)
    path = tmp_path / "checkpoints" / "epoch_0001" / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=rf"run.damaged.*{name}"):
        load_model(tmp_path)


def test_a_damaged_trainer_is_named(tmp_path: Path, run: Run, weights: dict[str, Tensor]) -> None:
    _write(tmp_path, run, weights, 1, trainer={"epoch": 1})
    path = tmp_path / "checkpoints" / "epoch_0001" / "trainer.pt"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"run.damaged.*trainer.pt"):
        read_trainer(tmp_path)


def test_a_trainer_file_cannot_run_code(tmp_path: Path, run: Run, weights: dict[str, Tensor]) -> None:
    _write(tmp_path, run, weights, 1, trainer={"epoch": 1})
    torch.save({"evil": Path("somewhere")}, tmp_path / "checkpoints" / "epoch_0001" / "trainer.pt")
    with pytest.raises(DataError, match=r"run.damaged"):
        read_trainer(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path, run: Run, weights: dict[str, Tensor]) -> None:
    _write(tmp_path, run, weights, 1)
    (tmp_path / "checkpoints" / "epoch_0001" / "run.json").unlink()
    with pytest.raises(DataError, match=r"run.incomplete.*run.json"):
        load_model(tmp_path)


def test_a_newer_schema_is_refused(tmp_path: Path, run: Run, weights: dict[str, Tensor]) -> None:
    _write(tmp_path, run, weights, 1)
    state = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps(state | {"schema_version": 3, "more": 1}))
    with pytest.raises(DataError, match=r"run.newer.*schema version 3"):
        load_model(tmp_path)


def test_weights_of_another_network_are_refused(make_recipe: MakeRecipe, weights: dict[str, Tensor]) -> None:
    recipe = make_recipe("network.channels=[4, 16]")
    model: nn.Module = recipe.network.build(recipe, 1)
    with pytest.raises(DataError, match=r"weights.mismatch.*has shape"):
        load_weights(model, weights, where="w")
    first, *_ = weights
    with pytest.raises(DataError, match=f"{first} is missing"):
        load_weights(model, {name: value for name, value in weights.items() if name != first}, where="w")


def test_a_folder_keeps_its_run(tmp_path: Path, run: Run, make_recipe: MakeRecipe, make_run: MakeRun) -> None:
    assert claim_folder(tmp_path, run) == run
    again = run.model_copy(update={"commit": "other", "name": "again"})
    assert claim_folder(tmp_path, again) == run
    changed = make_run(make_recipe("optim.rate=0.5"))
    with pytest.raises(ConfigError, match=r"recipe\.optim\.rate = 0\.01, but 0\.5 was asked for"):
        claim_folder(tmp_path, changed)
    with pytest.raises(ConfigError, match=r"fold = 0, but 1"):
        claim_folder(tmp_path, run.model_copy(update={"fold": 1}))


def test_training_does_not_start_over_imported_weights(tmp_path: Path, run: Run, weights: dict[str, Tensor]) -> None:
    _write(tmp_path, run, weights, 0)
    with pytest.raises(ConfigError, match="not trained there"):
        claim_folder(tmp_path, run)


def test_a_run_wants_a_new_or_empty_folder(tmp_path: Path, run: Run) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"such as notes\.txt, and is no run that voxray made"):
        claim_folder(tmp_path / "run", run)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]
    (tmp_path / "run" / "notes.txt").unlink()
    assert claim_folder(tmp_path / "run", run) == run


def test_only_what_training_made_is_removed_from_the_checkpoints(
    tmp_path: Path, run: Run, weights: dict[str, Tensor]
) -> None:
    (tmp_path / "checkpoints" / "my_favourite").mkdir(parents=True)
    (tmp_path / "checkpoints" / "my_favourite" / "weights.safetensors").write_bytes(b"mine")
    for epoch in (1, 2, 3):
        write_checkpoint(tmp_path, Checkpoint(run, weights, epochs_done=epoch))
    kept = ["epoch_0002", "epoch_0003", "my_favourite"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == kept


def test_a_flipped_bit_in_the_weights_is_refused(tmp_path: Path, run: Run, weights: dict[str, Tensor]) -> None:
    _write(tmp_path, run, weights, 1)
    path = tmp_path / "checkpoints" / "epoch_0001" / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"run.damaged.*weights.safetensors.*SHA-256 is not the one in state.json"):
        load_model(tmp_path)


def test_a_run_of_an_earlier_voxray_has_no_digests_and_loads(
    tmp_path: Path, run: Run, weights: dict[str, Tensor]
) -> None:
    _write(tmp_path, run, weights, 1, trainer={"epoch": 1})
    new = ("previous", "steps_done", "digests")
    state = json.loads((tmp_path / "state.json").read_text())
    old = {name: value for name, value in state.items() if name not in new} | {"schema_version": 1}
    (tmp_path / "state.json").write_text(json.dumps(old))
    load_model(tmp_path)
    found = newest_intact(tmp_path, 3)
    assert found is not None
    assert (found.name, found.warning) == ("epoch_0001", "")
    _write(tmp_path, run, weights, 2, trainer={"epoch": 2})
    assert list(read_state(tmp_path).digests) == ["epoch_0002"]


@pytest.mark.parametrize("part", ["weights.safetensors", "trainer.pt"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, run: Run, weights: dict[str, Tensor], part: str
) -> None:
    _write(tmp_path, run, weights, 1, steps_done=2, trainer={"epoch": 1})
    _write(tmp_path, run, weights, 2, trainer={"epoch": 2}, value=0.5)
    path = tmp_path / "checkpoints" / "epoch_0002" / part
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    found = newest_intact(tmp_path, 10)
    assert found is not None
    assert (found.name, found.trainer) == ("epoch_0001_step_000002", {"epoch": 1})
    assert "epoch_0001_step_000002: 8 steps are done again" in found.warning
    assert part in found.warning
    state = read_state(tmp_path)
    assert (state.last, state.best, state.best_value, state.place) == (found.name, found.name, None, (1, 2))
    _write(tmp_path, run, weights, 2, trainer={"epoch": 2}, value=0.5)
    assert read_state(tmp_path).best == "epoch_0002"
    load_model(tmp_path)


def test_where_no_checkpoint_is_intact_the_newest_is_named(
    tmp_path: Path, run: Run, weights: dict[str, Tensor]
) -> None:
    for epoch in (1, 2):
        _write(tmp_path, run, weights, epoch, trainer={"epoch": epoch})
        (tmp_path / "checkpoints" / f"epoch_{epoch:04d}" / "trainer.pt").write_bytes(b"?")
    with pytest.raises(DataError, match=r"run.damaged.*epoch_0002/trainer.pt"):
        newest_intact(tmp_path, 10)


def test_a_checkpoints_name_says_where_it_is() -> None:
    for place, name in (((7, 0), "epoch_0007"), ((0, 12), "epoch_0000_step_000012")):
        assert checkpoint_name(*place) == name
        assert place_of(name) == place
