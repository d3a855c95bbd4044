"""Networks in whole numbers: near torch, from a file too, refused where nobody measured their ranges, and silent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support.small_networks import SMALL, exported, exported_onnx, furthest, patches, tensors_of
from voxray.core.errors import ConfigError, ResourceError
from voxray.runtimes import choose_runtime, open_runtime
from voxray.runtimes.openvino import int8 as made_by
from voxray.runtimes.openvino.engine import _ANY, OpenVinoRuntime
from voxray.runtimes.openvino.int8 import save_int8

pytest.importorskip("nncf")


def saved(kind: str, folder: Path) -> Path:
    """The small network at int8, calibrated on patches like those that it is asked about."""
    path = folder / "model.xml"
    save_int8(exported_onnx(kind), [patches(kind, 1), patches(kind, 1) * 0.7, patches(kind, 1).flip(2)], path)
    return path


@pytest.mark.parametrize("kind", SMALL)
def test_whole_numbers_are_near_and_are_what_the_file_computes_in(kind: str, tmp_path: Path) -> None:
    import openvino

    path = saved(kind, tmp_path)
    network = exported(kind).with_files({("openvino", "int8"): path})
    runtime = open_runtime("openvino", network, precision="int8")
    assert (runtime.name, runtime.precision) == ("openvino", "int8")
    module, images = exported(kind).module, patches(kind, 2)
    assert module is not None
    with torch.inference_mode():
        expected = module(images)
    found = runtime(images)
    assert 1e-4 < furthest(found, expected) < 0.25, "single values of networks that learnt nothing"
    for one, other in zip(tensors_of(found), tensors_of(expected), strict=True):
        assert float((one - other).abs().mean()) < 0.03 * float(other.abs().max())
    weights = [node for node in openvino.Core().read_model(path).get_ops() if node.get_type_name() == "Constant"]
    assert any(node.get_element_type() == openvino.Type.i8 for node in weights)
    assert isinstance(runtime, OpenVinoRuntime)
    made = runtime._compiled[_ANY].model.get_runtime_model()
    computed = {node.get_rt_info()["runtimePrecision"] for node in made.get_ops()}
    assert computed & {"i8", "u8"}, "convolutions of the opened file are in whole numbers"


def test_int8_is_for_packages_that_were_made_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no package that was exported at int8"):
        open_runtime("openvino", exported("unet"), precision="int8")
    for name in ("torch", "torch-compiled", "onnxruntime"):
        with pytest.raises(ConfigError, match=rf"runtime {name}: .*int8"):
            choose_runtime(name, precision="int8")
    monkeypatch.setattr(made_by, "find_spec", lambda _: None)
    with pytest.raises(ResourceError, match=r"needs NNCF; `pip install 'voxray\[int8\]'` adds it"):
        saved("unet", tmp_path)


def test_a_package_of_other_precisions_still_opens_as_float(tmp_path: Path) -> None:
    """Beside an int8 file, fp32 is computed from the ONNX."""
    network = exported("unet").with_files({("openvino", "int8"): saved("unet", tmp_path)})
    module, images = exported("unet").module, patches("unet")
    assert module is not None
    with torch.inference_mode():
        assert furthest(open_runtime("openvino", network)(images), module(images)) < 2e-5


def test_nothing_is_told_to_anybody(tmp_path: Path) -> None:
    """NNCF would report its use over the network, unasked; outside pytest, where it reports, it must not."""
    (tmp_path / "model.onnx").write_bytes(exported_onnx("unet"))
    program = f"""
from pathlib import Path
import torch
from voxray.runtimes.openvino.int8 import save_int8
folder = Path({str(tmp_path)!r})
save_int8((folder / "model.onnx").read_bytes(), [torch.randn(1, 1, 16, 24, 16)], folder / "model.xml")
from nncf.telemetry.wrapper import telemetry
print(type(telemetry).__name__)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "MagicMock\n", "the stand-in that NNCF takes where there is no way out, and no other line"
