"""Cluster files, as far as they can be tried without a cloud: Ray's own check of the whole file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
CLOUDS = ("cluster.yaml", "deploy/gcp.yaml")
FILES = (*CLOUDS, "deploy/onprem.yaml")


@pytest.fixture(params=FILES)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each file, as Ray would read it."""
    return read(request.param)


@pytest.fixture(params=CLOUDS)
def cloud(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each file with node types."""
    return read(request.param)


def read(name: str) -> dict[str, Any]:
    """A file as it is."""
    loaded: dict[str, Any] = yaml.safe_load((REPOSITORY / name).read_text())
    return loaded


def accept(config: dict[str, Any]) -> dict[str, Any]:
    """Ray's own check, which also fills in defaults; raises where it is wrong."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_accepts_the_file(config: dict[str, Any]) -> None:
    prepared = accept(config)
    assert prepared["head_node_type"] in prepared["available_node_types"]


def test_the_check_would_find_a_slip(config: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="max_wrokers"):
        accept(config | {"max_wrokers": 3})


def test_the_check_would_find_a_wrong_type(cloud: dict[str, Any]) -> None:
    for wrong in (cloud | {"max_workers": "many"}, cloud | {"head_node_type": "nothing"}):
        with pytest.raises(Exception, match=r"many|head_node_type"):
            accept(wrong)


def test_cpus_ingest_spot_gpus_train_from_none_and_others_serve(cloud: dict[str, Any]) -> None:
    kinds = cloud["available_node_types"]
    assert set(kinds) == {"head", "cpu", "gpu", "serve"}
    assert {name for name, kind in kinds.items() if "GPU" in kind["resources"]} == {"gpu", "serve"}
    assert all(kind["min_workers"] == 0 for name, kind in kinds.items() if name != "head")
    spot = {name for name, kind in kinds.items() if "spot" in str(kind["node_config"]).lower()}
    assert spot == {"cpu", "gpu"}
    assert [name for name, kind in kinds.items() if "serving" in kind["resources"]] == ["serve"]


def test_workers_fit_the_limit(cloud: dict[str, Any]) -> None:
    kinds = [kind for name, kind in cloud["available_node_types"].items() if name != cloud["head_node_type"]]
    assert all(0 <= kind["min_workers"] <= kind["max_workers"] for kind in kinds)
    assert sum(kind["max_workers"] for kind in kinds) == cloud["max_workers"]


def test_all_machines_of_ones_own_are_workers() -> None:
    config = read("deploy/onprem.yaml")
    assert config["min_workers"] == config["max_workers"] == len(config["provider"]["worker_ips"])


def test_what_is_mounted_is_what_is_installed(config: dict[str, Any]) -> None:
    (remote,) = [remote for remote, local in config["file_mounts"].items() if local == "."]
    assert (REPOSITORY / "constraints.txt").exists()
    assert any(f"-c {remote}/constraints.txt -e {remote}" in command for command in config["setup_commands"])


def test_every_node_wants_the_token_and_nothing_listens_to_everyone(config: dict[str, Any]) -> None:
    (head,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    (worker,) = [command for command in config["worker_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in head
    for command in (head, worker):
        before = command.partition("ray start")[0]
        assert "RAY_AUTH_MODE=token" in before
        assert "RAY_JOB_STOP_WAIT_TIME_S=60" in before
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
