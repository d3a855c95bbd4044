"""Every runtime answers as torch does, in any batch and window; what this machine lacks is refused in a sentence."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from support.small_networks import SMALL, exported, exported_onnx, furthest, patches, tensors_of
from voxray.core.errors import ConfigError, DataError, ResourceError
from voxray.runtimes import RUNTIMES, Precision, Runtime, choose_runtime, open_runtime
from voxray.runtimes.onnxruntime import OnnxRuntime
from voxray.runtimes.openvino.engine import OpenVinoRuntime, offered_precisions
from voxray.runtimes.torch_eager import TorchRuntime

FURTHEST: dict[Precision, float] = {"fp32": 2e-5, "fp16": 5e-3, "bf16": 4e-2}


def opened(name: str, kind: str, precision: Precision = "fp32") -> Runtime:
    """The runtime on the ONNX that all tests share, or on the module."""
    if name == "onnxruntime":
        return OnnxRuntime(exported_onnx(kind, precision), precision=precision)
    if name == "openvino":
        return OpenVinoRuntime(exported_onnx(kind), precision=precision)
    return open_runtime(name, exported(kind), precision=precision)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_every_runtime_answers_as_the_network_does(name: str, kind: str) -> None:
    runtime, module = opened(name, kind), exported(kind).module
    assert isinstance(runtime, Runtime)
    assert (runtime.name, runtime.precision, runtime.device) == (name, "fp32", torch.device("cpu"))
    assert module is not None
    for images in (patches(kind, 2), patches(kind, 1), patches(kind, 3, factor=2)):
        with torch.inference_mode():
            expected = module(images)
        found = runtime(images)
        assert type(found) is type(expected)
        assert {tensor.dtype for tensor in tensors_of(found)} == {torch.float32}
        assert furthest(found, expected) < FURTHEST["fp32"]


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize(
    ("name", "precision"),
    [("torch", "bf16"), ("torch", "fp16"), ("onnxruntime", "fp16"), ("openvino", "bf16")],
)
def test_half_precision_is_near(name: str, precision: Precision, kind: str) -> None:
    if name == "openvino" and precision not in offered_precisions():
        pytest.skip(f"this CPU has no {precision}")
    images = patches(kind)
    found, expected = opened(name, kind, precision)(images), opened("torch", kind)(images)
    assert {tensor.dtype for tensor in tensors_of(found)} == {torch.float32}
    assert 0 < furthest(found, expected) < FURTHEST[precision]


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_answers_stay_as_they_are_when_the_next_come(name: str) -> None:
    runtime = opened(name, "unet")
    first = runtime(patches("unet"))
    kept = [tensor.clone() for tensor in tensors_of(first)]
    runtime(patches("unet") + 1)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors_of(first), kept, strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torch_compiled_answers_alike() -> None:
    obstacle = RUNTIMES["torch-compiled"].obstacle(torch.device("cpu"), "fp32")
    if obstacle is not None:
        pytest.skip(str(obstacle))
    images = patches("unet")
    runtime = open_runtime("torch-compiled", exported("unet"))
    assert runtime.name == "torch-compiled"
    assert furthest(runtime(images), opened("torch", "unet")(images)) < FURTHEST["fp32"]


def test_auto_takes_openvino_on_a_cpu_and_says_so() -> None:
    choice = choose_runtime()
    assert (choice.runtime, choice.precision) == ("openvino", "fp32")
    assert choice.why == "openvino at fp32: the fastest on cpu here."


def test_auto_goes_on_to_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "openvino")
    choice = choose_runtime()
    assert choice.runtime == "onnxruntime"
    assert "openvino: not installed here; `pip install 'voxray[openvino]'` adds it" in choice.why
    without(monkeypatch, "openvino", "onnxruntime")
    assert choose_runtime().runtime == "torch"


@pytest.mark.parametrize(("name", "remedy"), [("openvino", "voxray[openvino]"), ("onnxruntime", "voxray[onnx]")])
def test_a_runtime_that_is_not_installed_is_refused_with_the_remedy(
    name: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, name)
    with pytest.raises(ResourceError, match="not installed here") as caught:
        choose_runtime(name)
    assert f"pip install '{remedy}'" in str(caught.value)
    with pytest.raises(ResourceError, match="not installed here"):
        open_runtime(name, exported("unet"))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'openvino'"):
        choose_runtime("openvinno")
    with pytest.raises(ConfigError, match="allowed are auto, fp32, fp16, bf16, int8"):
        choose_runtime(precision="int4")
    with pytest.raises(ConfigError, match="no bf16 on the CPU"):
        choose_runtime("onnxruntime", precision="bf16")
    for name in ("onnxruntime", "openvino"):
        with pytest.raises(ConfigError, match="runs on the CPU, not on cuda"):
            choose_runtime(name, device="cuda")
    missing = {"fp16", "bf16"} - set(offered_precisions())
    for precision in missing:
        with pytest.raises(ResourceError, match=f"not in {precision}"):
            choose_runtime("openvino", precision=precision)


def test_damaged_files_are_refused() -> None:
    for runtime in (OnnxRuntime, OpenVinoRuntime):
        with pytest.raises(DataError, match="cannot open the network"):
            runtime(b"no network")


def test_a_conversion_is_kept_beside_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from voxray.runtimes.onnx import conversion

    calls: list[str] = []

    def instead(*_: object, **options: str) -> bytes:
        calls.append("".join(options["outputs"]))
        return exported_onnx("unet")

    # The conversion itself is tested above; here it is only counted.
    monkeypatch.setattr(conversion, "export_onnx", instead)
    network = replace(exported("unet"), digest="0123456789abcdef" * 4, folder=tmp_path / "runtimes")
    assert network.onnx() == network.onnx() == exported_onnx("unet")
    assert calls == ["logits"]
    assert len(list((tmp_path / "runtimes").iterdir())) == 1
    other = replace(network, digest="f" * 64)
    other.onnx()
    assert calls == ["logits", "logits"], "other weights are converted anew"
    without_digest = replace(network, digest="")
    without_digest.onnx()
    without_digest.onnx()
    assert len(calls) == 4


def test_a_folder_that_cannot_be_written_is_replaced_by_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from voxray.runtimes.engine_cache import cached

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("not a folder")
    made: list[int] = []

    def make() -> bytes:
        made.append(1)
        return b"data"

    for _ in range(2):
        assert cached("a.onnx", make, folder=tmp_path / "file") == b"data"
    assert made == [1]
    assert (tmp_path / "cache" / "voxray" / "a.onnx").read_bytes() == b"data"


def test_torch_moves_the_module_and_leaves_its_weights() -> None:
    module = exported("unet").module
    assert module is not None
    runtime = TorchRuntime(module)
    assert runtime.module is module
    assert runtime.window_vox is None
    assert runtime.max_batch is None


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Makes modules look as if they were not installed."""
    real = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> object:
        return None if name in names else real(name, package)

    for module in ("onnxruntime", "openvino.engine"):
        monkeypatch.setattr(f"voxray.runtimes.{module}.find_spec", find)
