"""Following: news reach the user and MLflow once, in order, whatever the workers go through."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.buckets import buckets
from voxray.core.errors import ConfigError, DataError, ResourceError
from voxray.core.progress import SilentProgress
from voxray.core.storage import Place
from voxray.distributed.run_follower import Follower, epoch_line, following
from voxray.training.machine_load import machine_load
from voxray.training.run_files import forget_earlier_start, read_failure, write_failure
from voxray.training.source_commit import git_commit


class Heard(SilentProgress):
    """Remembers what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


class Kept:
    """What a tracking server would keep."""

    def __init__(self, last: int = 0) -> None:
        self.last, self.rows, self.files = last, list[tuple[int, Mapping[str, float]]](), list[str]()

    def last_epoch(self) -> int:
        return self.last

    def log_row(self, row: Mapping[str, float], *, step: int) -> None:
        self.rows.append((step, row))

    def log_file(self, name: str, data: bytes) -> None:
        assert data
        self.files.append(name)


class Steps:
    """What an advance was called with."""

    def __init__(self) -> None:
        self.heard: list[float] = []

    def __call__(self, amount: float = 1, /) -> None:
        self.heard.append(amount)


def _row(epoch: int, **more: float) -> dict[str, float]:
    row = {"epoch": epoch, "rate": 0.1, "samples_per_s": 8.25, "wait_share": 0.012, "step_s": 0.5, "num_skipped": 0}
    return row | {"loss/total": 1.0 / epoch} | more


def _write(folder: Path, epochs: int, *, steps_done: int = 0) -> None:
    rows = [
        _row(epoch, **({"val/dice": 0.5, "val/dice/liver": 0.5} if epoch == 2 else {}))
        for epoch in range(1, epochs + 1)
    ]
    (folder / "history.json").write_text(json.dumps(rows))
    if steps_done:
        tick = {"epoch": 1, "steps_done": steps_done, "loss": 0.7, "samples_per_s": 3.0}
        (folder / "ticker.json").write_text(json.dumps(tick))


def _follower(folder: Path, kept: Kept, heard: Heard, *, steps_done: int = 0) -> Follower:
    tracking: Any = kept
    return Follower(folder, tracking, heard, num_steps=10, steps_done=steps_done)


def test_every_epoch_is_told_once(tmp_path: Path) -> None:
    kept, heard, steps = Kept(), Heard(), Steps()
    follower = _follower(tmp_path, kept, heard)
    follower.look(steps)
    _write(tmp_path, 1, steps_done=4)
    follower.look(steps)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "epoch_0002.png").write_bytes(b"png")
    _write(tmp_path, 2)
    follower.look(steps)
    follower.look(steps)
    assert sum(steps.heard) == 20
    assert [line.split(",")[0] for line in heard.lines] == ["epoch 1: loss 1", "epoch 2: loss 0.5"]
    assert [step for step, _ in kept.rows] == [4, 1, 2]
    assert kept.files == ["pictures/epoch_0002.png", "curves.png"]


def test_mlflow_gets_a_ticks_numbers_and_rank_0s_machine_as_its_system_metrics(tmp_path: Path) -> None:
    kept = Kept()
    tick = {"epoch": 1, "steps_done": 4, "loss": 0.7, "samples_per_s": 3.0, "wait_share": 0.1, "step_s": 0.5}
    (tmp_path / "ticker.json").write_text(json.dumps({**tick, "system": machine_load()}))
    _follower(tmp_path, kept, Heard()).look(Steps())
    ((step, row),) = kept.rows
    assert step == 4
    assert {name: row[f"step/{name}"] for name in ("loss", "wait_share", "step_s")} == {
        "loss": 0.7,
        "wait_share": 0.1,
        "step_s": 0.5,
    }
    assert 0 < row["system/system_memory_usage_percentage"] < 100
    assert 0 <= row["system/cpu_utilization_percentage"] <= 100
    assert row["system/disk_available_megabytes"] > 0


def test_a_training_that_goes_on_tells_only_what_is_new(tmp_path: Path) -> None:
    kept, heard, steps = Kept(last=1), Heard(), Steps()
    _write(tmp_path, 2)
    follower = _follower(tmp_path, kept, heard, steps_done=20)
    follower.look(steps)
    assert heard.lines == []
    assert [step for step, _ in kept.rows] == [2], "MLflow had missed the second epoch"
    _write(tmp_path, 3)
    follower.look(steps)
    assert steps.heard == [10]


def test_steps_never_count_twice_when_workers_start_again_from_a_checkpoint(tmp_path: Path) -> None:
    kept, heard, steps = Kept(), Heard(), Steps()
    follower = _follower(tmp_path, kept, heard)
    for done in (8, 2, 9):
        _write(tmp_path, 0, steps_done=done)
        follower.look(steps)
    assert sum(steps.heard) == 9


def test_the_last_news_are_seen_at_the_end(tmp_path: Path) -> None:
    kept, heard = Kept(), Heard()
    with following(_follower(tmp_path, kept, heard), Steps(), every_s=60):
        _write(tmp_path, 1)
    assert len(heard.lines) == 1


def test_storage_that_does_not_answer_ends_no_following() -> None:
    """On S3 a file was replaced between its HEAD and its GET: the thread died, and nothing was told any more."""
    with buckets() as s3:
        place = Place.of(f"s3://{s3.make()}/run")
        kept, heard = Kept(), Heard()
        tracking: Any = kept
        follower = Follower(place.uri, tracking, heard, num_steps=10, steps_done=0)
        place.write("history.json", json.dumps([_row(1)]).encode())
        follower.look(Steps())
        s3.close()
        follower.look(Steps())
        follower.look(Steps())
        s3.open()
        place.write("history.json", json.dumps([_row(1), _row(2)]).encode())
        follower.look(Steps())
    told = [line.split(",")[0] for line in heard.lines]
    assert [told[0], told[2]] == ["epoch 1: loss 1", "epoch 2: loss 0.5"]
    assert "/run: cannot be read: the storage is too busy" in heard.lines[1]
    assert "The training goes on meanwhile" in heard.lines[1]
    assert len([line for line in heard.lines if "answers again" in line]) == 1
    assert len(heard.lines) == 4


def test_an_epochs_line() -> None:
    row = _row(4, **{"val/mAP": 0.5, "val/mAP/nodule": 0.5, "num_skipped": 2.0})
    assert epoch_line(row) == "epoch 4: loss 0.25, 8.2 patches/s, 1 % waiting, 2 steps skipped, mAP 0.500"


def test_a_failure_reaches_the_driver_as_it_was(tmp_path: Path) -> None:
    assert read_failure(tmp_path) is None
    for error in (
        ConfigError("optim.rate: too high"),
        ResourceError("no space"),
        DataError("store.damaged", "cut short.", remedy="Ingest again.", case_id="a"),
    ):
        write_failure(tmp_path, error)
        found = read_failure(tmp_path)
        assert type(found) is type(error)
        assert str(found) == str(error)
    forget_earlier_start(tmp_path)
    assert read_failure(tmp_path) is None


def test_the_commit_is_known_in_a_repository_and_unknown_elsewhere(tmp_path: Path) -> None:
    assert git_commit(tmp_path) == "unknown"
    assert len(git_commit().removesuffix("+dirty")) in (40, 64, len("unknown"))
