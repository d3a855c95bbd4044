"""Networks as ONNX: free sides and batches, float32 at the ends, half within where that was asked for."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto
from torch import nn

from support.small_networks import SMALL, exported, exported_onnx, furthest, patches, small_network
from voxray.core.errors import ResourceError
from voxray.runtimes import Precision, TorchRuntime
from voxray.runtimes.onnx.conversion import export_onnx
from voxray.runtimes.onnx.half_precision import IN_FLOAT32, typed
from voxray.runtimes.onnxruntime import OnnxRuntime


@pytest.mark.parametrize("kind", SMALL)
def test_batch_and_sides_are_free_and_names_are_known(kind: str) -> None:
    graph = onnx.load_model_from_string(exported_onnx(kind)).graph
    (given,) = graph.input
    assert given.name == "images"
    sides = given.type.tensor_type.shape.dim
    assert [side.dim_value for side in sides] == [0, 1, 0, 0, 0]
    assert len({side.dim_param for side in sides if side.dim_param}) == 4
    assert [output.name for output in graph.output] == list(exported(kind).outputs)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_file_says_nothing_of_the_machine_that_exported_it(kind: str, precision: Precision) -> None:
    file = exported_onnx(kind, precision)
    for told in (b"stack_trace", b".py", str(Path.cwd()).encode(), sys.prefix.encode()):
        assert told not in file


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_is_within_and_float32_at_both_ends(kind: str, precision: Precision) -> None:
    graph = onnx.load_model_from_string(exported_onnx(kind, precision)).graph
    ends = [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)]
    assert set(ends) == {TensorProto.FLOAT}
    half = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.BFLOAT16
    types = {weight.name: weight.data_type for weight in graph.initializer}
    kernels = {types[node.input[1]] for node in graph.node if node.op_type == "Conv"}
    assert kernels == {half}
    kept = [types[name] for node in graph.node if node.op_type in IN_FLOAT32 for name in node.input if name in types]
    assert set(kept) <= {TensorProto.FLOAT}
    assert bool(kept) == (kind != "unet"), "the others have norms that cannot be folded"
    assert not [node.name for node in graph.node if node.op_type == "BatchNormalization"]


def test_a_network_is_left_in_the_mode_it_was_in() -> None:
    module = small_network("unet").train()
    plain = export_onnx(module, outputs=exported("unet").outputs, stride_vox=exported("unet").stride_vox)
    assert module.training
    found, expected = OnnxRuntime(plain)(patches("unet")), TorchRuntime(module.eval())(patches("unet"))
    assert furthest(found, expected) < 2e-5


def test_what_half_cannot_hold_survives() -> None:
    """A running variance beyond fp16's largest number, 65504, as the first norm of a network on raw HU has."""
    network = small_network("unet")
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm3d):
            assert norm.running_var is not None
            norm.running_var.mul_(3e5)
    source = exported("unet")
    plain = export_onnx(network, outputs=source.outputs, stride_vox=source.stride_vox)
    images = 500 * patches("unet")
    half = OnnxRuntime(typed(plain, "fp16"), precision="fp16")(images)
    assert furthest(half, TorchRuntime(network)(images)) < 5e-3


def test_without_the_exporters_libraries_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxray.runtimes.onnx.conversion.find_spec", lambda _: None)
    with pytest.raises(
        ResourceError, match=r"onnx and onnxscript not installed here; `pip install 'voxray\[onnx\]'`"
    ):
        export_onnx(small_network("unet"), outputs=("logits",), stride_vox=(4, 4, 4))
