"""The git commit of the code at work."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def git_commit(folder: Path = Path(__file__).parent) -> str:
    """The commit of the repository around `folder`, with ``+dirty`` where files had changed; else ``unknown``.

    ``VOXRAY_COMMIT`` says it where the code travels without its repository, as in a container.
    """
    told = os.environ.get("VOXRAY_COMMIT", "").strip()
    if told:
        return told
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return "unknown"
    return f"{commit}+dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else commit


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
