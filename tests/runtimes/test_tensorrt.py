"""Real engines of all networks, built ahead of time where there is no GPU, and run where there is one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from onnx import TensorProto, helper

from support.small_networks import SMALL, exported, exported_onnx, furthest, patches, small_recipe
from voxray.core.errors import ConfigError, DataError, ResourceError
from voxray.runtimes import Precision, TorchRuntime, choose_runtime, open_runtime
from voxray.runtimes import tensorrt_build as building
from voxray.runtimes.tensorrt_build import (
    EngineKey,
    Flavour,
    build_engine,
    capabilities,
    find_flavour,
    key_for,
)

FLAVOUR = find_flavour()
needs_tensorrt = pytest.mark.skipif(FLAVOUR is None, reason="neither TensorRT nor TensorRT-RTX is installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def flavour() -> Flavour:
    assert FLAVOUR is not None
    return FLAVOUR


def key_of(kind: str, precision: Precision, batches: tuple[int, int, int] = (1, 4, 8)) -> EngineKey:
    device = torch.device("cuda") if torch.cuda.is_available() else None
    window = small_recipe(kind).inference.window_vox
    return key_for(flavour(), window_vox=window, batches=batches, precision=precision, device=device)


@needs_tensorrt
@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("batches", [(1, 1, 1), (1, 4, 8)], ids=["static", "dynamic"])
def test_engines_of_all_networks_are_built(kind: str, batches: tuple[int, int, int]) -> None:
    sizes = {}
    for precision in ("fp32", "fp16"):
        engine = build_engine(exported_onnx(kind, precision), key_of(kind, precision, batches), flavour())
        sizes[precision] = len(engine)
    module = exported(kind).module
    assert module is not None
    weights = sum(value.numel() for value in module.parameters())
    assert sizes["fp32"] > 4 * weights
    assert sizes["fp32"] - sizes["fp16"] > weights, "half weights take two bytes less, less what stays in float32"


@needs_tensorrt
@pytest.mark.parametrize("kind", SMALL)
def test_engines_in_bf16_are_built(kind: str) -> None:
    assert build_engine(exported_onnx(kind, "bf16"), key_of(kind, "bf16"), flavour())


@needs_tensorrt
def test_a_layer_that_cannot_be_built_is_named() -> None:
    node = helper.make_node("Multinomial", ["images"], ["logits"], name="head/draw", sample_size=1)
    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["b", 1, "x", "y", "z"])
    found = helper.make_tensor_value_info("logits", TensorProto.INT32, None)
    graph = helper.make_graph([node], "odd", [given], [found])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    with pytest.raises(DataError, match=r"layer 'head/draw' \(Multinomial\)") as caught:
        build_engine(model.SerializeToString(), key_of("unet", "fp32"), flavour())
    assert caught.value.code == "tensorrt.build"
    assert "16 x 24 x 16" in str(caught.value)


@needs_tensorrt
def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(DataError, match=r"\[tensorrt.build\]"):
        build_engine(b"no network", key_of("unet", "fp32"), flavour())


@needs_tensorrt
def test_a_gpu_that_rtx_has_no_kernels_for_is_refused() -> None:
    if capabilities(flavour()) is None:
        pytest.skip("TensorRT builds for every GPU that it runs on")
    hopper = key_of("unet", "fp32").model_copy(update={"gpu": "NVIDIA H200", "capability": "9.0"})
    with pytest.raises(ResourceError, match=r"no kernels for NVIDIA H200 of compute capability 9.0.*torch"):
        build_engine(exported_onnx("unet"), hopper, flavour())


def test_without_either_library_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "find_spec", lambda _: None)
    with pytest.raises(ResourceError, match=r"pip install 'voxray\[tensorrt-rtx\]'"):
        building.require_flavour()


def test_without_a_gpu_it_is_refused_and_auto_passes_it_over() -> None:
    with pytest.raises(ConfigError, match="runs on an NVIDIA GPU, not on cpu"):
        choose_runtime("tensorrt")
    with pytest.raises(ConfigError, match="runs on an NVIDIA GPU, not on cpu"):
        open_runtime("tensorrt", exported("unet"))
    assert choose_runtime("auto").runtime != "tensorrt"


def test_an_engine_fits_what_it_was_built_for_and_nothing_else() -> None:
    key = EngineKey(
        flavour="tensorrt",
        version="11.4",
        gpu="NVIDIA L4",
        capability="8.9",
        window_vox=(96, 96, 96),
        batches=(1, 4, 8),
        precision="fp16",
    )
    assert key.misfit(key) == ""
    changes: dict[str, Any] = {
        "version": "11.5",
        "gpu": "NVIDIA A100",
        "capability": "8.0",
        "window_vox": (64, 96, 96),
        "batches": (1, 1, 1),
        "precision": "fp32",
    }
    names = set()
    for field, value in changes.items():
        other = key.model_copy(update={field: value})
        assert str(value) in key.misfit(other)
        names.add(other.file_name("0" * 64))
    assert len(names) == len(changes)
    ahead = key.model_copy(update={"gpu": ""})
    assert ahead.misfit(key) == "", "built ahead of time, for any GPU of the capability"


@pytest.mark.gpu
@needs_gpu
@needs_tensorrt
@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize(("precision", "most"), [("fp32", 2e-3), ("fp16", 1e-2)])
def test_engines_answer_as_torch_does(kind: str, precision: Precision, most: float) -> None:
    network = replace(exported(kind), digest="")
    module = network.module
    assert module is not None
    try:
        runtime = open_runtime("tensorrt", network, device="cuda", precision=precision)
    except ResourceError as error:
        pytest.skip(str(error))
    for size in (1, 3, 8):
        images = patches(kind, size)
        expected = TorchRuntime(module)(images)
        found = type(expected)(*(_on_cpu(part) for part in runtime(images)))
        assert furthest(found, expected) < most


def _on_cpu(part: Any) -> Any:
    return part.cpu() if isinstance(part, torch.Tensor) else tuple(tensor.cpu() for tensor in part)
