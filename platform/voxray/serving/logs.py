"""Logs as JSON lines: what happened to which job or request, and nothing of the patient.

Only what is named in ``extra={"fields": ...}`` is written, next to a fixed sentence; of an exception its kind and the
places in the code, never its text, which may quote a file.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from logging.handlers import RotatingFileHandler
from pathlib import Path

NAME = "voxray.serving"
_FILE_BYTES, _FILES = 20 << 20, 3


class JsonLines(logging.Formatter):
    """One line a record."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line = {"time": at, "level": record.levelname.lower(), "message": record.msg}
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[0] is not None:
            frames = traceback.extract_tb(record.exc_info[2])
            line["exception"] = record.exc_info[0].__name__
            line["at"] = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-6:]]
        return json.dumps(line)


def set_up_logs(folder: Path, part: str) -> None:
    """Sends the service's lines to standard error and to a file of this process in the folder."""
    logger = logging.getLogger(NAME)
    if not any(isinstance(handler.formatter, JsonLines) for handler in logger.handlers):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = folder / f"{part}-{os.getpid()}.jsonl"
        to_file = RotatingFileHandler(file, maxBytes=_FILE_BYTES, backupCount=_FILES, delay=True)
        for handler in (logging.StreamHandler(sys.stderr), to_file):
            handler.setFormatter(JsonLines())
            logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for name in ("uvicorn.access", "ray.serve"):  # they write paths, and with them what clients put there
        logging.getLogger(name).setLevel(logging.ERROR)
