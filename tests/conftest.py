"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]

# Before torch is imported: two test runs whose threads wait for each other's processors are thirty times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

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
