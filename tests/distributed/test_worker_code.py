"""What workers of a joined cluster get, by what the job has been given already."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import voxray
from voxray.distributed.worker_code import JOB_CONFIG, OVERRIDE, VARIABLES, in_a_job, worker_environment

PACKAGE = Path(voxray.__file__).parent


@pytest.fixture(autouse=True)
def _no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JOB_CONFIG, raising=False)
    monkeypatch.delenv(OVERRIDE, raising=False)
    monkeypatch.setenv(OVERRIDE, "0")  # whatever the function sets is put back
    monkeypatch.delenv(OVERRIDE)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def given(monkeypatch: pytest.MonkeyPatch, runtime_env: object) -> None:
    monkeypatch.setenv(JOB_CONFIG, json.dumps({"runtime_env": runtime_env, "metadata": {}}))


def test_workers_get_the_package_that_this_process_runs() -> None:
    assert not in_a_job()
    assert worker_environment() == {"py_modules": [str(PACKAGE)]}


def test_workers_get_what_the_driver_is_told_of_caches_and_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VOXRAY_CACHE_GIB", "5")
    assert worker_environment()["env_vars"] == {"VOXRAY_CACHE_GIB": "5"}
    given(monkeypatch, {})
    assert "env_vars" not in worker_environment(), "a job's own environment goes along by itself"


@pytest.mark.parametrize("runtime_env", [None, {}, {"working_dir": "gcs://_ray_pkg_1.zip"}])
def test_a_jobs_workers_get_it_beside_its_working_folder(
    monkeypatch: pytest.MonkeyPatch, runtime_env: object
) -> None:
    given(monkeypatch, runtime_env)
    assert in_a_job()
    assert worker_environment() == {"py_modules": [str(PACKAGE)]}


def test_a_jobs_own_modules_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, {"py_modules": ["gcs://_ray_pkg_other.zip"]})
    assert worker_environment() == {"py_modules": ["gcs://_ray_pkg_other.zip", str(PACKAGE)]}


def test_a_job_that_brought_the_package_as_a_module_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voxray, "__file__", "/r/py_modules_files/_ray_pkg_1f/voxray/__init__.py")
    given(monkeypatch, {"py_modules": ["gcs://_ray_pkg_1f.zip"]})
    assert worker_environment() == {}
