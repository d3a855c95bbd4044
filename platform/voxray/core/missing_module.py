"""A module that a process lacks: on a cluster each node has its own Python, and Ray tells of it in a traceback."""

from __future__ import annotations

import re
import sys

_MODULE = re.compile(r"No module named '([\w.]+)'")
_NODE = re.compile(r"\bip(?:=|: )([0-9a-fA-F.:]+)")


def missing_module(error: BaseException) -> str:
    """What is to be said where Python, here or on another node, lacks a module; else an empty text."""
    from_ray = type(error).__module__.partition(".")[0] == "ray"
    if not from_ray and not isinstance(error, ModuleNotFoundError):
        return ""
    found = _MODULE.search(str(error))
    node = _NODE.search(str(error)) if from_ray else None
    if found is None or (found.group(1).startswith("voxray.") and node is None):
        return ""
    where = f"node {node.group(1)}" if node else "some node" if from_ray else sys.executable
    return (
        f"{where}: has no module named {found.group(1)}; install what voxray needs there, in the same versions as "
        f"here (`pip install -c constraints.txt .`), for the Python that `ray start` finds first in PATH."
    )
