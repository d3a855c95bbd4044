"""A broken network must not look like an empty scan."""

from __future__ import annotations

import torch
from torch import Tensor

from voxray.core.errors import DataError


def require_finite(values: Tensor) -> None:
    """A DataError where any of what a network gave is not a number, or has no bounds."""
    if not torch.isfinite(values.sum()):
        raise DataError(
            "model.not_finite",
            "The network's answer is not finite.",
            remedy="Predict in float32 or bf16; if that does not help, the weights are broken: use an earlier epoch.",
        )
