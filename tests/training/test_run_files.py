"""What a training leaves besides checkpoints may be lost, and a checkpoint waits: neither ends the training."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from support.buckets import Buckets, buckets
from voxray.core.errors import StorageAwayError, VoxrayError
from voxray.core.patience import LIMIT
from voxray.core.run import Run
from voxray.core.storage import Place
from voxray.recipes import read_recipe
from voxray.training.checkpoint import read_state
from voxray.training.loop import EpochRecord, StoppedError
from voxray.training.meter import Tick
from voxray.training.run_files import (
    HISTORY,
    TICKER,
    RunWriter,
    SaveRules,
    read_failure,
    read_progress_file,
    write_failure,
)


@pytest.fixture(scope="module")
def s3() -> Iterator[Buckets]:
    """A small S3 over HTTP."""
    with buckets() as server:
        yield server


class Trained:
    """As much of a training as a writer asks for."""

    epochs_done = 1
    steps_done = num_steps = num_checkpoints = 0
    checkpoint_s = 0.0
    history = ({"epoch": 1},)

    def weights(self) -> dict[str, torch.Tensor]:
        return {"one": torch.zeros(2)}

    def trainer(self) -> dict[str, Any]:
        return {}


def _writer(location: str, rules: SaveRules | None = None) -> RunWriter:
    recipe = json.loads(read_recipe("spleen").model_dump_json())
    run = Run(name="r", dataset="d", licence="l", classes=("spleen",), recipe=recipe, voxray_version="0")
    return RunWriter(location, run, metric="dice", num_epochs=2, rank=0, picture=lambda: b"png", rules=rules)


def _record() -> EpochRecord:
    record: Any = type("Record", (), {"epoch": 1, "validated": True, "metrics": {"dice": 0.5}})()
    return record  # type: ignore[no-any-return]


def _settle() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("ticker"):
            thread.join(60)


def test_news_that_cannot_be_written_end_no_training(s3: Buckets) -> None:
    location = f"s3://{s3.make()}/run"
    writer = _writer(location)
    training: Any = Trained()
    s3.close(lambda method, path: method == "PUT" and path.endswith((TICKER, HISTORY, ".png")))
    try:
        writer.tick(Tick(epoch=1, steps_done=1, loss=0.5, samples_per_s=1.0))
        with writer:
            writer.save(training, _record())
        _settle()
    finally:
        s3.open()
    assert read_state(location).last == "epoch_0001"
    assert read_progress_file(location, TICKER) is None
    assert read_progress_file(location, HISTORY) is None
    with writer:
        writer.save(training, _record())
    assert read_progress_file(location, HISTORY) == [{"epoch": 1}]


def test_the_ticker_is_written_beside_the_training(s3: Buckets) -> None:
    location = f"s3://{s3.make()}/run"
    writer = _writer(location)
    writer.tick(Tick(epoch=1, steps_done=3, loss=0.5, samples_per_s=1.0))
    _settle()
    assert read_progress_file(location, TICKER)["steps_done"] == 3


def test_a_checkpoint_waits_for_storage_and_then_says_what_is_wrong(
    s3: Buckets, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = f"s3://{s3.make()}/run"
    writer, training = _writer(location), Trained()
    whole: Any = training
    with writer:
        writer.save(whole, _record())
    training.epochs_done = 2
    monkeypatch.setenv(LIMIT, "1")
    s3.close(lambda method, path: method == "PUT" and path.endswith("state.json"))
    try:
        with pytest.raises(StorageAwayError, match=r"too busy, or has failed .*It was asked again for"), writer:
            writer.save(whole, _record())
        write_failure(location, StorageAwayError("it was away."))
    finally:
        s3.open()
    assert read_state(location).last == "epoch_0001", "the checkpoint before still counts"
    with writer:
        writer.save(whole, _record())
    assert read_state(location).last == "epoch_0002"
    assert isinstance(read_failure(location), StorageAwayError)
    assert Place.of(location).folders("checkpoints") == ["epoch_0001", "epoch_0002"]


def test_a_checkpoint_within_an_epoch_is_written_when_it_is_due(tmp_path: Path) -> None:
    with _writer(str(tmp_path), SaveRules(every_s=0.0)) as writer:
        training: Any = Trained()
        training.steps_done = 2
        writer.after_step(training, 5)
    state = read_state(tmp_path)
    assert (state.last, state.place) == ("epoch_0001_step_000002", (1, 2))
    assert training.num_checkpoints == 1
    with _writer(str(tmp_path), SaveRules(every_s=0.0)) as writer:
        training.steps_done = 5
        writer.after_step(training, 5)
    assert read_state(tmp_path).last == state.last, "the end of the epoch has a checkpoint of its own"
    with _writer(str(tmp_path), SaveRules(every_s=None)) as writer:
        training.steps_done = 3
        writer.after_step(training, 5)
    assert read_state(tmp_path).last == state.last


def test_a_stop_is_saved_before_it_ends_the_training(tmp_path: Path) -> None:
    asked = [False]
    with _writer(str(tmp_path), SaveRules(stop=lambda: asked[0])) as writer:
        training: Any = Trained()
        training.steps_done = 3
        writer.after_step(training, 5)
        asked[0] = True
        with pytest.raises(StoppedError, match="epoch 2, step 3"):
            writer.after_step(training, 5)
        assert read_state(tmp_path).place == (1, 3)


def test_what_is_urgent_is_saved_at_once_and_said(tmp_path: Path) -> None:
    news = ["a node goes", ""]
    with _writer(str(tmp_path), SaveRules(urgent=lambda: news.pop(0))) as writer:
        training: Any = Trained()
        training.steps_done = 3
        writer.after_step(training, 5)
        writer.after_step(training, 5)
    assert read_state(tmp_path).place == (1, 3)
    assert (
        read_progress_file(tmp_path, TICKER)["notice"]
        == "a node goes: a checkpoint is written after epoch 2, step 3."
    )


def test_a_checkpoint_that_fails_beside_the_training_ends_it_at_its_next_step(tmp_path: Path) -> None:
    writer = _writer(str(tmp_path))
    training: Any = Trained()
    (tmp_path / "checkpoints").write_text("not a folder")
    writer.save(training, _record())
    with pytest.raises(VoxrayError), writer:
        pass
    writer.after_step(training, 5)
