"""Work beside the training: one piece at a time, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Background:
    """Runs what it is given beside its caller; what fails there is raised by the next call."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def is_busy(self) -> bool:
        """Whether the last piece is still under way."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, action: Callable[[], None]) -> None:
        """Waits for the piece before, and begins the next."""
        self.wait()

        def run() -> None:
            try:
                action()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises what the last piece failed with, once it has ended."""
        if not self.is_busy:
            self.wait()

    def wait(self) -> None:
        """Waits until nothing is under way."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
