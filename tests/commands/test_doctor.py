"""What the doctor says of a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from voxray.commands.doctor import doctor, enough
from voxray.distributed.node_facts import PACKAGES


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_everything_is_looked_at(tmp_path: Path) -> None:
    found = {finding.name: finding for finding in doctor(folder=tmp_path)}
    assert {"python", "voxray", *PACKAGES, "cores", "memory", f"free disk in {tmp_path}", "ray cluster"} <= set(found)
    assert found["ray cluster"].ok
    assert "this machine" in found["ray cluster"].found
    assert all(found[name].found[0].isdigit() for name in ("voxray", *PACKAGES))
    assert any(name.startswith("gpu") for name in found)


def test_too_little_comes_with_a_remedy() -> None:
    fine, tight = (enough("memory", gib, least=8, remedy="add some") for gib in (16.0, 2.5))
    assert (fine.ok, fine.found) == (True, "16.0 GiB")
    assert (tight.ok, tight.found, tight.remedy) == (False, "2.5 GiB", "below 8 GiB: add some")


def test_a_cluster_that_does_not_answer_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    (cluster,) = [finding for finding in doctor() if finding.name == "ray cluster"]
    assert not cluster.ok
    assert cluster.found == "127.0.0.1:9: nobody listens there"
    assert "unset RAY_ADDRESS" in cluster.remedy
