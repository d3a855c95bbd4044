"""Training on Ray Train: real workers that are lost, stopped or at fault."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.tiny_training import last_weights, made_store, segmentation_recipe, train_silently
from voxray.core.errors import DataError, ResourceError
from voxray.distributed import training
from voxray.store import Store
from voxray.training.checkpoint import find_state, read_state

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

PATIENCE_S = 900


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return made_store(tmp_path_factory.mktemp("data") / "store", segmentation_recipe())


@pytest.fixture(scope="module")
def _ray(one_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    del one_ray
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}")
        yield


@pytest.mark.usefixtures("_ray")
def test_a_worker_killed_within_an_epoch_is_started_again_and_nothing_is_lost(store: Store, tmp_path: Path) -> None:
    recipe = segmentation_recipe("optim.epochs=3", "optim.steps_per_epoch=12", "optim.ema_decay=0.9")
    straight = train_silently(store.uri, recipe, tmp_path / "straight", workers=2)
    killed: list[int] = []

    def kill() -> None:
        _wait(lambda: (1, 1) <= _place(tmp_path / "killed") < (2, 0))
        killed.append(max(_training_workers()))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    report = train_silently(store.uri, recipe, tmp_path / "killed", workers=2, checkpoint_minutes=1e-4)
    killer.join()
    assert len(killed) == 1
    assert report.epochs == straight.epochs == 3
    assert last_weights(tmp_path / "killed") == last_weights(tmp_path / "straight")
    assert report.metrics == straight.metrics
    assert _losses(tmp_path / "killed") == _losses(tmp_path / "straight")
    assert not (tmp_path / "killed" / ".ray").exists()
    train_silently(store.uri, recipe, tmp_path / "alone", workers=1, slots=2)
    assert _losses(tmp_path / "alone") == pytest.approx(_losses(tmp_path / "straight"), rel=1e-3)


@pytest.mark.usefixtures("_ray")
def test_the_stream_trains_as_reading_in_this_process_does(store: Store, tmp_path: Path) -> None:
    recipe = segmentation_recipe("optim.epochs=2")
    train_silently(store.uri, recipe, tmp_path / "ray", workers=1)
    train_silently(store.uri, recipe, tmp_path / "here", workers=0)
    rows = [json.loads((tmp_path / name / "history.json").read_text()) for name in ("ray", "here")]
    for ray_row, row in zip(*rows, strict=True):
        assert ray_row["loss/total"] == pytest.approx(row["loss/total"], rel=1e-4)
        assert ray_row["val/dice"] == pytest.approx(row["val/dice"], abs=0.02)


@pytest.mark.usefixtures("_ray")
def test_a_damaged_store_ends_the_training_with_its_sentence(tmp_path: Path) -> None:
    store = made_store(tmp_path / "store", segmentation_recipe())
    for path in (tmp_path / "store" / "cases").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"\[store\.damaged\]"):
        train_silently(store.uri, segmentation_recipe(), tmp_path / "run", workers=1)
    assert find_state(tmp_path / "run") is None


@pytest.mark.usefixtures("_ray")
def test_too_many_workers_for_the_cluster_are_refused_before_they_start(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"40 workers .* need 20 logical CPUs .*, the cluster can have 4 \("):
        train_silently(store.uri, segmentation_recipe(), tmp_path / "run", workers=40)
    with pytest.raises(ResourceError, match="1 workers need 1 GPUs, the cluster can have 0"):
        train_silently(store.uri, segmentation_recipe(), tmp_path / "run", workers=1, gpus=1)


@pytest.mark.usefixtures("_ray")
def test_workers_that_never_start_together_are_given_up_with_a_sentence(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes that may come, and never do."""
    monkeypatch.setenv("VOXRAY_NODE_TYPES", '{"big": {"resources": {"CPU": 64}, "max_workers": 2}}')
    monkeypatch.setenv("VOXRAY_WAIT_NODES", "5s")
    monkeypatch.setattr(training, "_USERS_TIMEOUT", "5")
    with pytest.raises(
        ResourceError,
        match=r"^8 training workers of \{CPU: 12\} did not start within 5 s: .*Add nodes, use fewer workers, or wait",
    ):
        train_silently(store.uri, segmentation_recipe(), tmp_path / "run", workers=8)


def test_ctrl_c_and_sigterm_are_saved_within_the_epoch_and_the_same_command_goes_on(
    store: Store, tmp_path: Path
) -> None:
    run, uri = tmp_path / "run", f"sqlite:///{tmp_path / 'mlflow.db'}"
    overrides = ("optim.epochs=12", "optim.steps_per_epoch=10", "optim.validate_every=12")
    words = [sys.executable, "-m", "support.tiny_training", store.uri, str(run), "2", *overrides]
    paths = os.pathsep.join((str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")))
    env = os.environ | {"PYTHONPATH": paths, "MLFLOW_TRACKING_URI": uri}
    done = 0
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        _wait(lambda: _epochs_done(run) > done or process.poll() is not None)  # noqa: B023
        process.send_signal(number)
        _, complaints = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == code, complaints
        assert done < _epochs_done(run) < 12
        assert _mlflow_status(uri, run) == "KILLED"
        done, steps = _place(run)
        assert steps > 0, complaints
        assert "stopping: a checkpoint is written first" in complaints
        assert f"stopped after epoch {done + 1}, step {steps}, with a checkpoint" in complaints
    words[words.index("2")] = "1"
    process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said, complaints = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, complaints
    assert f"went on after {done} and {steps} steps" in said
    assert "its global batch is 2 x 2 patches, and stays so; 1 of 2 workers compute it" in complaints
    assert read_state(run).finished
    assert _mlflow_status(uri, run) == "FINISHED"


def _training_workers() -> list[int]:
    """The process ids of this process's own Ray's training workers."""
    parents, workers = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if "RayTrainWorker" in (folder / "cmdline").read_text():
                workers.append(int(folder.name))
        except OSError:
            continue
    return [pid for pid in workers if os.getpid() in _ancestors(pid, parents)]


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid in parents:
        pid = parents[pid]
        yield pid


def _wait(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def _place(run: Path) -> tuple[int, int]:
    state = find_state(run)
    return state.place if state else (0, 0)


def _epochs_done(run: Path) -> int:
    return _place(run)[0]


def _losses(run: Path) -> list[float]:
    return [row["loss/total"] for row in json.loads((run / "history.json").read_text())]


def _mlflow_status(uri: str, run: Path) -> str:
    from mlflow import MlflowClient

    run_id = json.loads((run / "tracking.json").read_text())["run_id"]
    return str(MlflowClient(tracking_uri=uri).get_run(run_id).info.status)
