"""What the doctor says of a cluster's nodes: by rules on their facts, and on two real nodes with real faults."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.clusters import two_nodes
from voxray.commands.doctor_cluster import ClusterHealth, doctor_cluster, findings_of
from voxray.core.errors import ConfigError
from voxray.core.progress import SilentProgress
from voxray.distributed.node_facts import PACKAGES, NodeFacts, versions_here

VERSIONS: Mapping[str, str] = {"python": "3.11.7", "torch": "2.13", "ray": "2.60.0"}
GOOD = NodeFacts(
    node_id="0123456789ab",
    address="10.0.0.2",
    host="gpu-1",
    versions=VERSIONS,
    ray_gpus=1,
    torch_gpus=1,
    gpu_names=("H200",),
    cuda="13.0",
    driver="580.1",
    memory_gib=64.0,
    shm_gib=32.0,
    object_store_gib=16.0,
    disk_gib=200.0,
    storage={"s3://bucket": ""},
    clock_s=-0.01,
    mb_per_s=900.0,
)


def test_a_good_node_has_no_findings_and_a_row() -> None:
    health = ClusterHealth((GOOD,), tuple(findings_of([GOOD], VERSIONS)))
    assert (health.ok, health.findings) == (True, ())
    assert health.rows() == [
        (
            *("10.0.0.2 (01234567)", "gpu-1", "3.11.7, 2.60.0, 2.13", "1 of 1 (H200)"),
            *("64.0 GiB", "32.0 GiB", "200 GiB", "-0.010 s", "900 MB/s"),
        )
    ]


@pytest.mark.parametrize(
    ("changes", "wrong", "is_hint"),
    [
        ({"versions": {**VERSIONS, "torch": "2.10"}}, "torch is 2.10, the driver's is 2.13", False),
        ({"versions": {**VERSIONS, "torch": ""}}, "torch is not installed, the driver's is 2.13", False),
        (
            {"torch_gpus": 0, "cuda": ""},
            "Ray counts 1 GPUs, torch sees 0 (it is built for the CPU only; driver 580.1)",
            False,
        ),
        ({"torch_gpus": 8}, "torch sees 8 GPUs, Ray counts 1", True),
        ({"ray_gpus": 0, "torch_gpus": 0}, "has NVIDIA's driver 580.1, and torch sees no GPU", True),
        ({"shm_gib": 0.1}, "Ray's object store of 16.0 GiB exceeds /dev/shm of 0.1 GiB", False),
        ({"storage": {"s3://b": "s3://b: cannot be written (403)."}}, "s3://b: cannot be written (403)", False),
        ({"disk_gib": 3.0}, "3.0 GiB are free where Ray spills and logs", True),
        ({"memory_gib": 4.0}, "4.0 GiB of memory", True),
        ({"clock_s": -7.5}, "its clock is 7.5 s behind the driver's", True),
        ({"mb_per_s": 12.0}, "gets 12 MB/s from the node before it", True),
    ],
)
def test_each_fault_is_one_finding_with_what_to_mend(changes: dict[str, Any], wrong: str, is_hint: bool) -> None:
    (found,) = findings_of([replace(GOOD, **changes)], VERSIONS)
    assert wrong in found.wrong
    assert found.is_hint == is_hint
    assert found.mend
    assert ClusterHealth((), (found,)).ok == is_hint


def test_a_node_that_does_not_answer_is_a_row_and_comes_before_hints() -> None:
    lost = NodeFacts("ffff", "10.0.0.3", error="it did not answer within 180 s")
    slow = replace(GOOD, mb_per_s=1.0)
    health = ClusterHealth((slow, lost), tuple(findings_of([slow, lost], VERSIONS)))
    assert [one.is_hint for one in health.findings] == [False, True]
    assert "no task can run there (it did not answer within 180 s)" in str(health.findings[0])
    assert len({len(row) for row in health.rows()}) == 1


def test_it_wants_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="RAY_ADDRESS is not set"):
        doctor_cluster(progress=SilentProgress())


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_on_two_nodes_another_version_and_storage_that_is_elsewhere_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second node has an old nibabel, and cannot reach the bucket that the head's node writes to."""
    about = tmp_path / "old" / "nibabel-4.0.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: nibabel\nVersion: 4.0.0\n")
    paths = os.pathsep.join((str(about.parent), os.environ.get("PYTHONPATH", "")))
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with two_nodes({"PYTHONPATH": paths}) as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        health = doctor_cluster([str(shared), "memory://doctor"], progress=SilentProgress())
    assert len(health.nodes) == 2
    assert all(one.versions and not one.error for one in health.nodes), [one.error for one in health.nodes]
    assert all(one.versions.keys() >= {"python", "voxray", *PACKAGES} for one in health.nodes)
    (odd,) = {one.node for one in health.findings if "nibabel" in one.wrong}
    (wrong,) = [one.wrong for one in health.findings if "nibabel" in one.wrong]
    assert wrong.startswith(f"nibabel is 4.0.0, the driver's is {versions_here()['nibabel']}")
    assert {one.node for one in health.findings if one.wrong.startswith("memory://doctor")} >= {odd}
    assert not any(str(shared) in one.wrong for one in health.findings)
    assert list(shared.iterdir()) == []
    assert all(abs(one.clock_s) < 1 and (one.mb_per_s or 0) > 0 for one in health.nodes)
    assert not health.ok
    assert json.loads(json.dumps(health.to_dict()))["ok"] is False
