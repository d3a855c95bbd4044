"""The code that workers of a joined cluster run: this process's own, whatever is installed on their nodes.

So a node needs what voxray is made of, and not voxray; and no node runs another version than its driver.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import voxray

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where Ray tells the driver of a submitted job what else its workers get."""
OVERRIDE = "RAY_OVERRIDE_JOB_RUNTIME_ENV"
VARIABLES = ("VOXRAY_CACHE", "VOXRAY_CACHE_GIB", "VOXRAY_STORAGE_PATIENCE_S")
"""What a driver's environment says to its workers, too."""


def in_a_job() -> bool:
    """Whether this process is the driver of a job that was submitted to a cluster."""
    return JOB_CONFIG in os.environ


def worker_environment() -> dict[str, Any]:
    """The ``runtime_env`` to join a cluster with; Ray uploads the package once for each of its versions.

    In a job its own environment goes to its workers anyway.
    """
    package = Path(voxray.__file__).parent
    given: list[str] = _given().get("py_modules") or []
    if any(Path(uri).stem in package.parts for uri in given):
        return {}  # it is the job's own module already
    if given:
        os.environ.setdefault(OVERRIDE, "1")  # Ray refuses two lists; this one holds the job's, too
    variables = {name: os.environ[name] for name in VARIABLES if name in os.environ and not in_a_job()}
    return {"py_modules": [*given, str(package)], **({"env_vars": variables} if variables else {})}


def _given() -> dict[str, Any]:
    """The runtime environment of the job that this process is the driver of."""
    config: dict[str, Any] = json.loads(os.environ.get(JOB_CONFIG) or "{}")
    return config.get("runtime_env") or {}
