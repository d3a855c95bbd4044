"""How far a runtime's answers are from torch's in float32, on patches of a scan: `parity.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import NonNegativeInt
from torch import Tensor

from voxray.core.config import Config
from voxray.core.errors import DataError
from voxray.core.outputs import DetectionOutput, Output, SegmentationOutput
from voxray.core.volume import Shape
from voxray.runtimes import Precision, Runtime
from voxray.runtimes.tensors import LOGITS, flatten

TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1, "int8": 0.5}
"""The largest allowed difference, as a part of an output's largest value (at least 1). At fp32 it keeps scores
within 1e-3 and boxes within 0.1 mm; half precision has 11 (fp16) or 8 (bf16) bits at each of dozens of layers. Of
int8, whose single values may be off by more than that, the answers are held against torch's."""
LEAST_AGREEMENT: dict[Precision, float] = {"int8": 0.95}
"""The least that answers may agree, where that is asked for."""


CANDIDATE = 0.05
"""An anchor with a lower score is no finding to anybody."""


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


class Agreement(Config):
    """How much of what is answered is the same."""

    measure: Literal["Dice of labels", "overlap of scores"]
    """Of all classes together: the voxels with the same label; or, over the anchors that either side takes for a
    candidate, the sum of the lower scores over the sum of the higher ones (Ruzicka's similarity)."""
    value: float | None
    """None where torch finds nothing on these patches."""
    least: float | None
    """What it may be; None where the raw differences decide alone."""

    @property
    def is_within(self) -> bool:
        """Whether the engine may be used."""
        return self.least is None or (self.value is not None and self.value >= self.least)


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
    agreement: Agreement | None = None
    """None in files of before it was measured."""


class ParityResult(NamedTuple):
    """What the comparison of two runtimes gives."""

    outputs: tuple[OutputParity, ...]
    agreement: Agreement


def compare(
    runtime: Runtime, reference: Runtime, patches: Sequence[Float[Tensor, "b 1 x y z"]], names: Sequence[str]
) -> ParityResult:
    """The largest and the mean differences of each output over all patches, and how far the answers agree."""
    differences, shares = [], []
    for patch in patches:
        found, expected = runtime(patch), reference(patch)
        differences.append(_differences(found, expected))
        shares.append(_shared(found, expected))
    shared, whole = (float(sum(column)) for column in zip(*shares, strict=True))
    agreement = Agreement(
        measure="Dice of labels" if names[0] == LOGITS else "overlap of scores",
        value=shared / whole if whole > 0 else None,
        least=LEAST_AGREEMENT.get(runtime.precision),
    )
    return ParityResult(_rows(differences, names, TOLERANCE[runtime.precision]), agreement)


def _rows(
    found: Sequence[Sequence[tuple[float, float, float]]], names: Sequence[str], tolerance: float
) -> tuple[OutputParity, ...]:
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
    agreements = [parity.agreement for parity in parities if parity.agreement is not None]
    agreement = min(agreements, key=lambda one: 1.0 if one.value is None else one.value, default=None)
    return parities[0].model_copy(update={"outputs": outputs, "agreement": agreement})


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
    agreement = parity.agreement
    if agreement is not None and not agreement.is_within:
        found = "nothing is found" if agreement.value is None else f"the {agreement.measure} is {agreement.value:.3f}"
        raise DataError(
            "export.agreement",
            f"{parity.runtime} at {parity.precision}: {found} on {parity.num_patches} patches of {parity.patches}, "
            f"at least {agreement.least:g} is needed; nothing was written.",
            remedy="Give a scan on which the network finds something (--scan), or export at fp32 or bf16.",
        )


def _shared(found: Output, expected: Output) -> tuple[float, float]:
    """Parts of an agreement, which is the one over the other after both were summed over patches."""
    if isinstance(found, DetectionOutput):
        assert isinstance(expected, DetectionOutput)
        pairs = zip(found.class_logits, expected.class_logits, strict=True)
        scores = [torch.stack([one.cpu(), other.cpu()]).sigmoid() for one, other in pairs]
        lower, higher = (
            torch.cat([take(pair, dim=0).ravel() for pair in scores]) for take in (torch.amin, torch.amax)
        )
        taken = higher >= CANDIDATE
        return float(lower[taken].sum()), float(higher[taken].sum())
    assert isinstance(expected, SegmentationOutput)
    one, other = (output.logits.cpu().argmax(dim=1) for output in (found, expected))
    both = (one == other) & (one > 0)
    return 2.0 * int(both.sum()), float((one > 0).sum() + (other > 0).sum())


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
