"""The journal of a sweep's studies: Optuna's own format, written to disk once a batch.

Optuna's backend waits for the disk ten times a trial. One process alone writes a sweep's journal, so a trial may wait
in memory until its batch is judged; a batch that is cut short has then never begun.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from voxray.core.storage import Place

BRING_EVERY_S = 30.0


class Journal:
    """A backend for `optuna.storages.JournalStorage`."""

    def __init__(self, path: Path, place: Place | None = None) -> None:
        """Of a sweep whose folder is elsewhere, `place`, the file is put there now and then: a kill costs little."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._place, self._brought_s = path, place, time.monotonic()
        text = path.read_bytes() if path.exists() else b""
        self._whole = text.rfind(b"\n") + 1  # what follows was being written when the machine stopped
        self._logs: list[dict[str, Any]] = [json.loads(line) for line in text[: self._whole].splitlines()]
        self._written = len(self._logs)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The entries from that one on."""
        yield from self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Entries more, not yet on disk."""
        self._logs += json.loads(json.dumps(logs))

    def flush(self) -> None:
        """Writes what is not yet on disk, and waits until it is."""
        new = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in self._logs[self._written :])
        if not new:
            return
        with self._path.open("r+b" if self._path.exists() else "wb") as file:
            file.seek(self._whole)
            file.truncate()
            file.write(new.encode())
            file.flush()
            os.fsync(file.fileno())
            self._whole = file.tell()
        self._written = len(self._logs)
        if self._place is not None and time.monotonic() - self._brought_s > BRING_EVERY_S:
            self._place.offer(self._path.name, self._path.read_bytes())
            self._brought_s = time.monotonic()
