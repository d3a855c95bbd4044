"""How a Ray Data execution is ended from outside, wherever it is: it must not outlive the Ray that it runs on."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.data._internal.execution.execution_callback import ExecutionCallback


class Switch:
    """An event that is off again in a pickled copy: Ray sends a dataset's context and what it holds to its tasks."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def on(self) -> None:
        """From now on it is on."""
        self._event.set()

    def __bool__(self) -> bool:
        return self._event.is_set()

    def __reduce__(self) -> tuple[type[Switch], tuple[()]]:
        return Switch, ()


def ends_at(switch: Switch) -> type[ExecutionCallback]:
    """A callback that ends a dataset's execution, even one that still waits for its first task."""
    from ray.data._internal.execution.execution_callback import ExecutionCallback
    from ray.data.exceptions import ExecutionTimeoutError

    class _Ends(ExecutionCallback):
        def on_execution_step(self, executor: object) -> None:
            del executor
            if switch:
                raise ExecutionTimeoutError("the dataset was closed")

    return _Ends
