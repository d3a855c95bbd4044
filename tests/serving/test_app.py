"""What is refused, in a sentence, before anything is started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from voxray.core.errors import ConfigError
from voxray.serving.app import absolute, require_same_host
from voxray.serving.config import ServeConfig


def config(**fields: object) -> ServeConfig:
    """A service with one model that need not be there."""
    return ServeConfig.model_validate({"models": {"m": {"path": "models/m"}}, **fields})


def test_paths_are_full_for_replicas_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = absolute(config(folder="service"))
    assert made.folder == os.fspath(tmp_path / "service")
    assert made.models["m"].path == os.fspath(tmp_path / "models" / "m")


@pytest.mark.parametrize("listening", ["0.0.0.0", "::", "10.0.0.7"])
def test_service_that_others_reach_must_say_so(listening: str) -> None:
    with pytest.raises(ConfigError, match=r"args\.host.*tokens"):
        require_same_host(config(), listening)
    require_same_host(config(host=listening), listening)


@pytest.mark.parametrize("listening", [None, "127.0.0.1", "localhost", "::1"])
def test_service_of_this_machine(listening: str | None) -> None:
    require_same_host(config(), listening)
