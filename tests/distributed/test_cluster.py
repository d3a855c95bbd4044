"""Joining and starting Ray."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from voxray.core.errors import ResourceError
from voxray.distributed import cluster

SCRIPT = """
import os
import ray
from voxray.core.errors import ResourceError
from voxray.distributed.capacity import cluster_capacity
from voxray.distributed.cluster import connect
from voxray.distributed.placement import require_cpus

with connect(num_cpus=3) as outer:
    assert outer.local and outer.num_cpus == 3.0, outer
    with connect() as inner:
        assert not inner.local and inner.num_cpus == 3.0, inner
    assert ray.is_initialized()
    assert str(cluster_capacity()) == "1 node of 3 CPUs", cluster_capacity()  # no autoscaler: nothing may come
    require_cpus(3, "three workers")
    try:
        require_cpus(3.5, "seven half workers")
    except ResourceError as error:
        print(error)
    context = ray.data.DataContext.get_current()
    assert not context.use_datasource_v2 and not context.enable_progress_bars
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
assert not ray.is_initialized()
assert "RAY_AUTH_MODE" not in os.environ  # a service that this process starts must still want a token
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_ray_is_quiet_and_ends_with_its_block() -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "seven half workers needs 3.5 logical CPUs on one node, the cluster can have 3 (1 node of 3 CPUs): it would "
    )
    assert "--num-cpus=4" in done.stdout
    assert done.stderr == ""


def test_a_long_temporary_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 80)
    with pytest.raises(ResourceError, match="too long a path"), cluster.connect():
        pass


def test_the_object_store_stays_within_its_bounds() -> None:
    assert 100 << 20 <= cluster._object_store_bytes() <= 2 << 30


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9"])
def test_an_address_where_nothing_listens_is_named_at_once(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with (
        pytest.raises(ResourceError, match=f"RAY_ADDRESS={address}: no Ray cluster answers there"),
        cluster.connect(),
    ):
        pass
