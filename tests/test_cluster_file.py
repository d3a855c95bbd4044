"""cluster.yaml, as far as it can be tried without a cloud: Ray's own check of the whole file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def config() -> dict[str, Any]:
    """The file, as Ray would read it."""
    loaded: dict[str, Any] = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    return loaded


def accept(config: dict[str, Any]) -> dict[str, Any]:
    """Ray's own check, which also fills in defaults; raises where it is wrong."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_accepts_the_file(config: dict[str, Any]) -> None:
    prepared = accept(config)
    assert prepared["head_node_type"] == "head"
    assert prepared["available_node_types"]["gpu"]["resources"]["GPU"] == 1
    assert "GPU" not in prepared["available_node_types"]["head"]["resources"]


def test_the_check_would_find_a_slip(config: dict[str, Any]) -> None:
    for wrong in (
        config | {"head_node_type": "nothing"},
        config | {"max_wrokers": 3},
        config | {"max_workers": "many"},
    ):
        with pytest.raises(Exception, match=r"head_node_type|max_wrokers|many"):
            accept(wrong)


def test_workers_fit_the_limit(config: dict[str, Any]) -> None:
    kinds = [kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]]
    assert all(0 <= kind["min_workers"] <= kind["max_workers"] <= config["max_workers"] for kind in kinds)


def test_what_is_mounted_is_what_is_installed(config: dict[str, Any]) -> None:
    (remote, local), *others = config["file_mounts"].items()
    assert (local, others) == (".", [])
    assert (REPOSITORY / "constraints.txt").exists()
    assert any(f"-e {remote}'[s3]'" in command for command in config["setup_commands"])
    assert any(f"{remote}/constraints.txt" in command for command in config["setup_commands"])


def test_nothing_listens_to_everyone(config: dict[str, Any]) -> None:
    (start,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start
