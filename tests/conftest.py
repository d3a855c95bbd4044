"""Fixtures that every test may use."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]
RAY_CPUS = 4
"""Logical CPUs of the Ray that tests share."""
_RAY = pytest.StashKey[ExitStack]()

# Before torch is imported: two test runs whose threads wait for each other's processors are thirty times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Shards of stores elsewhere go where no other test run looks, and not to the user's own cache.
os.environ["VOXRAY_CACHE"] = tempfile.mkdtemp(prefix="voxray_test_shards_")
atexit.register(shutil.rmtree, os.environ["VOXRAY_CACHE"], ignore_errors=True)

# The same examples every time, and none is failed for being slow on a busy machine.
settings.register_profile("voxray", deadline=None, derandomize=True)
settings.load_profile("voxray")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real scans, from $VOXRAY_TEST_DATA or beside the repository; skips where it is absent."""
    folder = Path(os.environ.get("VOXRAY_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "README.md").exists():
        pytest.skip(f"no real scans at {folder}; set VOXRAY_TEST_DATA")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator."""
    return np.random.default_rng(20260101)


@pytest.fixture(scope="module")
def one_ray(pytestconfig: pytest.Config) -> None:
    """A local Ray, the same for all modules in a row that want one: to start it takes longer than most tests."""
    import ray

    if not ray.is_initialized():
        from voxray.distributed.cluster import connect

        with ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.delenv("RAY_ADDRESS", raising=False)
            patch.setenv("RAY_metrics_report_interval_ms", "500")  # Ray's own 10 s are long for a test
            stack.enter_context(connect(num_cpus=RAY_CPUS))
            pytestconfig.stash[_RAY] = stack.pop_all()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Ends the shared Ray before modules that want none, or lie elsewhere and may start a service."""
    if nextitem is not None:
        beside = nextitem.path.parent == item.path.parent and nextitem.get_closest_marker("ray") is not None
        if nextitem.path == item.path or beside:
            return
    if _RAY in item.config.stash:
        item.config.stash[_RAY].close()
        del item.config.stash[_RAY]
