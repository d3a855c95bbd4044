"""A network's output as named tensors, which is all that an exported file knows, and back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from voxray.core.outputs import DetectionOutput, Output, SegmentationOutput
from voxray.core.task_name import TaskName

INPUT = "images"
"""The one input of every exported network."""
LOGITS = "logits"
CLASS_LOGITS, BOX_DELTAS = "class_logits", "box_deltas"


def output_names(task: TaskName, num_levels: int) -> tuple[str, ...]:
    """``logits``; or ``class_logits_0`` of the finest level and so on, then ``box_deltas_0`` and so on."""
    if task == "segmentation":
        return (LOGITS,)
    return tuple(f"{kind}_{level}" for kind in (CLASS_LOGITS, BOX_DELTAS) for level in range(num_levels))


def flatten(output: Output) -> tuple[Tensor, ...]:
    """The output's tensors in the order of `output_names`."""
    if isinstance(output, DetectionOutput):
        return *output.class_logits, *output.box_deltas
    return (output.logits,)


def assemble(tensors: Mapping[str, Tensor]) -> Output:
    """The output of these named tensors."""
    if LOGITS in tensors:
        return SegmentationOutput(tensors[LOGITS])
    num_levels = len(tensors) // 2
    return DetectionOutput(
        class_logits=tuple(tensors[f"{CLASS_LOGITS}_{level}"] for level in range(num_levels)),
        box_deltas=tuple(tensors[f"{BOX_DELTAS}_{level}"] for level in range(num_levels)),
    )
