"""What a training leaves besides checkpoints may be lost, and a checkpoint waits: neither ends the training."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from support.buckets import Buckets, buckets
from voxray.core.errors import StorageAwayError
from voxray.core.patience import LIMIT
from voxray.core.run import Run
from voxray.core.storage import Place
from voxray.recipes import read_recipe
from voxray.training.checkpoint import read_state
from voxray.training.loop import EpochRecord, Tick
from voxray.training.run_files import HISTORY, TICKER, RunWriter, read_failure, read_progress_file, write_failure


@pytest.fixture(scope="module")
def s3() -> Iterator[Buckets]:
    """A small S3 over HTTP."""
    with buckets() as server:
        yield server


class Trained:
    """As much of a training as a writer asks for."""

    epochs_done = 1
    history = ({"epoch": 1},)

    def weights(self) -> dict[str, torch.Tensor]:
        return {"one": torch.zeros(2)}

    def trainer(self) -> dict[str, Any]:
        return {}


def _writer(location: str) -> RunWriter:
    recipe = json.loads(read_recipe("spleen").model_dump_json())
    run = Run(name="r", dataset="d", licence="l", classes=("spleen",), recipe=recipe, voxray_version="0")
    return RunWriter(location, run, metric="dice", num_epochs=2, rank=0, picture=lambda: b"png")


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
        writer.save(training, _record())
        _settle()
    finally:
        s3.open()
    assert read_state(location).last == "epoch_0001"
    assert read_progress_file(location, TICKER) is None
    assert read_progress_file(location, HISTORY) is None
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
    writer.save(whole, _record())
    training.epochs_done = 2
    monkeypatch.setenv(LIMIT, "1")
    s3.close(lambda method, path: method == "PUT" and path.endswith("state.json"))
    try:
        with pytest.raises(StorageAwayError, match=r"too busy, or has failed .*It was asked again for"):
            writer.save(whole, _record())
        write_failure(location, StorageAwayError("it was away."))
    finally:
        s3.open()
    assert read_state(location).last == "epoch_0001", "the checkpoint before still counts"
    writer.save(whole, _record())
    assert read_state(location).last == "epoch_0002"
    assert isinstance(read_failure(location), StorageAwayError)
    assert Place.of(location).folders("checkpoints") == ["epoch_0001", "epoch_0002"]
