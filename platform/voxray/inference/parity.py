"""How far a runtime's answers are from torch's in float32, on patches of a scan: `parity.json`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from pydantic import NonNegativeInt
from torch import Tensor

from voxray.config import Config
from voxray.errors import DataError
from voxray.inference.runtimes import Precision, Runtime
from voxray.inference.runtimes.tensors import flatten
from voxray.outputs import Output
from voxray.volume import Shape

TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1}
"""The largest allowed difference, as a part of an output's largest value (at least 1). At fp32 it keeps scores
within 1e-3 and boxes within 0.1 mm; half precision has 11 (fp16) or 8 (bf16) bits at each of dozens of layers."""


class OutputParity(Config):
    """One output tensor."""

    output: str
    max_difference: float
    mean_difference: float
    largest_value: float
    """Of torch's answer."""
    tolerance: float
    """What `max_difference` may be."""

    @property
    def is_within(self) -> bool:
        """Whether the engine may be used."""
        return self.max_difference <= self.tolerance


class Parity(Config):
    """All outputs, and with what they were made."""

    reference: str = "torch fp32"
    runtime: str
    precision: Precision
    measured_with: str
    """The runtime and device that answered; another than `runtime` where the machine of the export cannot run it."""
    patches: str
    """What they were cut from."""
    num_patches: NonNegativeInt
    patch_vox: Shape
    outputs: tuple[OutputParity, ...]


def compare(
    runtime: Runtime, reference: Runtime, patches: Sequence[Float[Tensor, "b 1 x y z"]], names: Sequence[str]
) -> tuple[OutputParity, ...]:
    """The largest and the mean differences of each output over all patches."""
    found = [_differences(runtime(patch), reference(patch)) for patch in patches]
    tolerance = TOLERANCE[runtime.precision]
    rows = []
    for index, name in enumerate(names):
        worst, means, largest = zip(*(patch[index] for patch in found), strict=True)
        rows.append(
            OutputParity(
                output=name,
                max_difference=max(worst),
                mean_difference=sum(means) / len(means),
                largest_value=max(largest),
                tolerance=tolerance * max(1.0, *largest),
            )
        )
    return tuple(rows)


def worst(parities: Sequence[Parity]) -> Parity:
    """Of several networks on the same patches, by output, that which is furthest from torch for what it may be."""
    rows = zip(*(parity.outputs for parity in parities), strict=True)
    outputs = tuple(max(row, key=lambda one: one.max_difference / one.tolerance) for row in rows)
    return parities[0].model_copy(update={"outputs": outputs})


def require(parity: Parity) -> None:
    """A DataError where an output is beyond its tolerance."""
    for row in parity.outputs:
        if not row.is_within:
            raise DataError(
                "export.parity",
                f"{parity.runtime} at {parity.precision} differs from torch by {row.max_difference:.3g} in "
                f"{row.output}, more than the {row.tolerance:.3g} that is allowed; nothing was written.",
                remedy="Export at fp32, or at bf16 if fp16 overflows.",
            )


def _differences(found: Output, expected: Output) -> list[tuple[float, float, float]]:
    rows = []
    for one, other in zip(flatten(found), flatten(expected), strict=True):
        apart, size = (one.cpu() - other.cpu()).abs(), other.abs()
        if not torch.isfinite(apart).all():
            raise DataError(
                "export.not_finite",
                "The network's answer to a patch is not finite; nothing was written.",
                remedy="Export at fp32 or bf16; if that does not help, the weights are broken: use an earlier epoch.",
            )
        rows.append((float(apart.max()), float(apart.mean()), float(size.max())))
    return rows
