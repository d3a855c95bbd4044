"""``python -m voxray`` is ``voxray``; a script in ``jobs/`` runs one of its verbs."""

from __future__ import annotations

import socket
import sys


def run(*verb: str) -> None:
    """The program; one sentence where what it is made of is not installed."""
    try:
        from voxray.cli import main
    except ModuleNotFoundError as error:
        sys.exit(
            f"voxray: {socket.gethostname()}: {sys.executable} has no module {error.name}; install what voxray needs "
            f"there (`pip install -c constraints.txt .`), or start Ray with a Python that has it first in PATH."
        )
    main(*verb)


if __name__ == "__main__":
    run()
