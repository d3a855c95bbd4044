"""What nodes say of themselves, and what is said of those that do not."""

from __future__ import annotations

from pathlib import Path

import pytest

from voxray.distributed.node_facts import node_facts, versions_here


def _quiet(line: str) -> None:
    assert line


@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
def test_a_node_that_does_not_answer_in_time_is_told_of_and_not_waited_for() -> None:
    (found,) = node_facts((), limit_s=0.0, say=_quiet)
    assert found.error == "it did not answer within 0 s"
    assert not found.versions


@pytest.mark.ray
@pytest.mark.usefixtures("one_ray")
def test_storage_that_is_not_there_is_said_by_each_node(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    (found,) = node_facts([str(tmp_path / "file"), str(tmp_path)], limit_s=300.0, say=_quiet)
    assert found.versions == versions_here()
    assert "cannot be written" in found.storage[str(tmp_path / "file")]
    assert found.storage[str(tmp_path)] == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert found.mb_per_s is None
