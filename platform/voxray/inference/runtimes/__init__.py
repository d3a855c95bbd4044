"""Runtimes: what runs a network. One small protocol, a table, and the choice of the best that a machine has.

A new runtime is one module with a class that keeps to `Runtime`, and one line in `RUNTIMES`.
"""

from voxray.inference.runtimes.choosing import (
    RUNTIMES,
    Backend,
    Choice,
    backend,
    choose_runtime,
    open_runtime,
    prefer_runtime,
)
from voxray.inference.runtimes.eager import TorchRuntime
from voxray.inference.runtimes.network import Network, network_of
from voxray.inference.runtimes.runtime import DTYPES, PRECISIONS, Precision, Runtime

__all__ = [
    "DTYPES",
    "PRECISIONS",
    "RUNTIMES",
    "Backend",
    "Choice",
    "Network",
    "Precision",
    "Runtime",
    "TorchRuntime",
    "backend",
    "choose_runtime",
    "network_of",
    "open_runtime",
    "prefer_runtime",
]
