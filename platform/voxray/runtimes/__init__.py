"""Runtimes: what runs a network. One small protocol, a table, and the choice of the best that a machine has.

A new runtime is one module with a class that keeps to `Runtime`, and one line in `RUNTIMES`.
"""

from voxray.runtimes.network import TrainedNetwork, network_of
from voxray.runtimes.protocol import DTYPES, PRECISIONS, Precision, Runtime, as_runtime
from voxray.runtimes.registry import (
    RUNTIMES,
    Backend,
    Choice,
    backend,
    choose_runtime,
    open_runtime,
    prefer_runtime,
)
from voxray.runtimes.torch_eager import TorchRuntime

__all__ = [
    "DTYPES",
    "PRECISIONS",
    "RUNTIMES",
    "Backend",
    "Choice",
    "Precision",
    "Runtime",
    "TorchRuntime",
    "TrainedNetwork",
    "as_runtime",
    "backend",
    "choose_runtime",
    "network_of",
    "open_runtime",
    "prefer_runtime",
]
