"""What Ray writes to a user's terminal past every logger, of workers and nodes that are lost.

What is done about a loss is said by voxray; with ``--debug`` Ray's own words pass, too.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from voxray.core.bulkhead import DEBUG

_LEVEL = "RAY_BACKEND_LOG_LEVEL"
CHATTER = {
    # The driver's core worker writes its errors to standard error; one is a warning for each actor of Ray Data that
    # may be restarted.
    _LEVEL: "fatal",
    # These come on standard output, among the answers of a verb.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed|has been marked dead|Raylet is terminated|"
    "killed due to (memory|the node)",
}
"""Defaults for Ray's environment without ``--debug``."""


@contextmanager
def level_unsaid() -> Iterator[None]:
    """Keeps a line on the level of its log from standard error while Ray starts; the rest comes a moment later."""
    try:
        own = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(own, 2)
            os.close(own)
            held.seek(0)
            for line in held:
                if _LEVEL.encode() not in line:
                    os.write(2, line)


@contextmanager
def quiet_data() -> Iterator[None]:
    """Ray Data writes a traceback for each block whose worker is lost; within, only with ``--debug``."""
    logger = logging.getLogger("ray.data")
    before = logger.level
    logger.setLevel(before if DEBUG in os.environ else logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
