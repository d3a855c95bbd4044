"""A graph that OpenVINO computes faster, with the same answer."""

from __future__ import annotations

from typing import Any

from voxray.core.volume import Shape
from voxray.kernels.winograd import can_compile
from voxray.runtimes.openvino.group_norm import spread_group_norms
from voxray.runtimes.openvino.upsampling import widen_upsampling

OURS = ("WinogradConvolution", "NormAffine")
"""Operations that OpenVINO has not (`operations`); they want shapes that are fixed when the graph is compiled."""


def quicken(model: Any, window_vox: Shape | None = None) -> Any:
    """The `openvino.Model` with what OpenVINO is slow at said otherwise; changed in place.

    A graph with quantised weights is of `widened` already: folded once more, its weights would be float32. Its norms
    need no more digits than one pass gives. `window_vox`: the graph computes in float32, mostly in windows of this
    size, and may hold operations that OpenVINO has not.
    """
    quantised = any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
    made = model if quantised else widened(model)
    if window_vox is not None and not quantised and can_compile():
        from voxray.runtimes.openvino.winograd_graph import with_winograd

        made = with_winograd(made, window_vox)
    made = spread_group_norms(made, once=quantised)
    made.validate_nodes_and_infer_types()
    return made


def widened(model: Any) -> Any:
    """The `openvino.Model` with its constants folded and its upsampling by phases; changed in place."""
    from openvino.passes import ConstantFolding, Manager

    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(model)
    made = widen_upsampling(model)
    made.validate_nodes_and_infer_types()
    return made
