"""How far a run is, from its folder alone, wherever it lies."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import pytest

from support.bright_runs import write_run
from voxray.commands.status import ago, is_run, last_sign, run_in, status_of_run
from voxray.core.config import to_json
from voxray.core.errors import ConfigError, ResourceError
from voxray.core.progress import SilentProgress
from voxray.core.storage import Place
from voxray.distributed.run_follower import NotesWaits
from voxray.training.checkpoint import read_best_run, read_state
from voxray.training.run_files import HISTORY, TICKER, WAITS, write_failure

ROW = {"epoch": 1.0, "loss/total": 0.5, "samples_per_s": 3.0, "wait_share": 0.1, "num_skipped": 0.0}


@pytest.fixture(params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A run that has begun: on a disk, and in a bucket of a kind."""
    made = Place.of(tmp_path / "run" if request.param == "folder" else f"memory://{uuid4().hex}/run")
    write_run(made.uri, "segmentation")
    made.write("run.json", to_json(read_best_run(made.uri)).encode())
    return made


def test_a_run_at_work_says_where_it_is(place: Place) -> None:
    tick = {"epoch": 2, "steps_done": 7, "loss": 0.25, "samples_per_s": 4.0, "wait_share": 0.05}
    place.write(HISTORY, json.dumps([{**ROW, "val/dice": 0.75}, {**ROW, "epoch": 2.0}]).encode())
    place.write(TICKER, json.dumps(tick).encode())
    seen = last_sign(place)
    assert seen is not None
    rows = dict(status_of_run(place.uri, now=seen + 12))
    assert rows["run"] == place.uri
    assert rows["state"] == "at work; last sign of life 12 s ago"
    assert rows["step"] == "7, loss 0.25, 4.0 patches/s, 5 % waiting"
    assert rows["last checkpoint"].endswith(" s ago")
    assert rows["epochs"].startswith("0 of ")
    assert rows["last epoch"].startswith("loss 0.5, 3.0 patches/s")
    assert rows["last validation"] == "epoch 1: dice 0.750"
    assert "silent; last sign of life 2.5 h ago: " in dict(status_of_run(place.uri, now=seen + 9000))["state"]


def test_a_run_that_failed_says_why_and_one_that_ended_that_it_did(place: Place) -> None:
    write_failure(place.uri, ResourceError("no room on the disk."))
    assert dict(status_of_run(place.uri))["state"] == "failed: no room on the disk."
    done = read_state(place.uri).model_copy(update={"finished": True, "metric": "dice", "best_value": 0.9})
    place.write("state.json", to_json(done).encode())
    rows = dict(status_of_run(place.uri))
    assert rows["state"].startswith("finished; last sign of life ")
    assert rows["best"] == "dice 0.900 at epoch 0000"


def test_a_run_that_waits_for_nodes_says_so_until_it_goes_on(place: Place) -> None:
    place.write(TICKER, json.dumps({"epoch": 1, "steps_done": 1, "loss": 1.0, "samples_per_s": 1.0}).encode())
    NotesWaits(SilentProgress(), place.uri).say("waiting for 2 x {GPU: 1}; 1 node is starting")
    said = place.modified(WAITS)
    assert said is not None
    state = dict(status_of_run(place.uri, now=said + 20))["state"]
    assert state == "waiting for 2 x {GPU: 1}; 1 node is starting; said 20 s ago"
    assert dict(status_of_run(place.uri, now=said + 200))["state"].startswith("at work; ")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run here"):
        status_of_run(str(tmp_path))


def test_runs_are_told_from_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert is_run("run")
    assert is_run("s3://bucket/run")
    assert is_run("/nowhere/run")
    assert not is_run("raysubmit_1")


@pytest.mark.parametrize(
    ("command", "run"),
    [
        ("python jobs/train.py s3://b/store spleen -o s3://b/run --workers 4", "s3://b/run"),
        ("voxray train /store spleen '--out=/my run'", "/my run"),
        ("python jobs/ingest.py /d.toml spleen -o /store", ""),
        ("python jobs/train.py /store spleen", ""),
    ],
)
def test_a_trainings_run_is_read_off_its_command(command: str, run: str) -> None:
    assert run_in(command) == run


def test_times_are_short() -> None:
    assert [ago(seconds) for seconds in (-3, 12, 300, 9000, 400000)] == ["0 s", "12 s", "5 min", "2.5 h", "5 days"]
