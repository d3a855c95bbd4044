"""Engines from ONNX with TensorRT or TensorRT-RTX, which share one interface; building needs no GPU with the latter.

Networks are strongly typed: what an engine computes in is what the ONNX says. An engine serves one window and a
profile of batches, and belongs to the kind of GPU and the version of TensorRT that it was built for.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from pydantic import PositiveInt

from voxray.core.config import Config
from voxray.core.errors import DataError, ResourceError
from voxray.core.recipe import SizeVox
from voxray.runtimes.protocol import Precision
from voxray.runtimes.tensors import INPUT

FlavourName = Literal["tensorrt", "tensorrt_rtx"]
_MODULES: dict[FlavourName, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt_rtx_bindings"}

AHEAD_OF_TIME = "8.9"
"""The compute capability that engines are built for where there is no GPU: Ada, such as the L4 and the RTX 4090."""


@dataclass(frozen=True)
class Flavour:
    """One of the two libraries."""

    name: FlavourName
    api: Any

    @property
    def version(self) -> str:
        """The library's."""
        return str(self.api.__version__)


class EngineKey(Config):
    """What an engine was built by and for; where any of it differs, it is built again."""

    flavour: FlavourName
    version: str
    gpu: str
    """The GPU's name; empty for an engine that was built ahead of time, for any GPU of the capability."""
    capability: str
    """The compute capability, such as 8.9."""
    window_vox: SizeVox
    batches: tuple[PositiveInt, PositiveInt, PositiveInt]
    precision: Precision

    def misfit(self, other: EngineKey) -> str:
        """In what this engine does not fit what `other` asks for, in words; empty where it fits."""
        for field, mine, wanted in (
            ("made by", f"{self.flavour} {self.version}", f"{other.flavour} {other.version}"),
            ("for compute capability", self.capability, other.capability),
            ("for the GPU", self.gpu or other.gpu, other.gpu or self.gpu),
            ("for windows of", self.window_vox, other.window_vox),
            ("for batches of", self.batches, other.batches),
            ("at", self.precision, other.precision),
        ):
            if mine != wanted:
                return f"it was built {field} {mine}, not {wanted}"
        return ""

    def file_name(self, digest: str) -> str:
        """Tells everything that the engine depends on, given the digest of its ONNX."""
        sides = "x".join(map(str, self.window_vox))
        sizes = "-".join(map(str, self.batches))
        gpu = "".join(letter if letter.isalnum() else "-" for letter in self.gpu) or "any"
        return f"{digest[:16]}-{self.flavour}-{self.version}-{gpu}-{self.capability}-{sides}-{sizes}-{self.precision}"


def find_flavour() -> Flavour | None:
    """TensorRT where it is installed and loads, else TensorRT-RTX, else None."""
    for name, module in _MODULES.items():
        if find_spec(module) is None:
            continue
        try:
            return Flavour(name, importlib.import_module(module))
        except (ImportError, OSError, RuntimeError):
            # The package may be there without the libraries that its vendor's index holds.
            continue
    return None


def require_flavour() -> Flavour:
    """The installed flavour, or a ResourceError with the remedy."""
    flavour = find_flavour()
    if flavour is None:
        raise ResourceError(
            "runtime tensorrt: neither TensorRT nor TensorRT-RTX is installed here; "
            "`pip install 'voxray[tensorrt-rtx]'` adds the latter, for GPUs of compute capability 7.5 and more."
        )
    return flavour


def key_for(
    flavour: Flavour,
    *,
    window_vox: SizeVox,
    batches: tuple[int, int, int],
    precision: Precision,
    device: torch.device | None = None,
) -> EngineKey:
    """The key of an engine for the device, or ahead of time for any GPU of `AHEAD_OF_TIME`."""
    gpu, capability = "", AHEAD_OF_TIME
    if device is not None and device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        gpu, capability = torch.cuda.get_device_name(device), f"{major}.{minor}"
    return EngineKey(
        flavour=flavour.name,
        version=flavour.version,
        gpu=gpu,
        capability=capability,
        window_vox=window_vox,
        batches=batches,
        precision=precision,
    )


def capabilities(flavour: Flavour) -> tuple[str, ...] | None:
    """The compute capabilities that TensorRT-RTX builds for, such as 8.9; None where the flavour does not say."""
    if flavour.name == "tensorrt":
        return None
    names = [name for name in dir(flavour.api.ComputeCapability) if name.startswith("SM")]
    numbers = sorted(int(name.removeprefix("SM")) for name in names)
    return tuple(f"{number // 10}.{number % 10}" for number in numbers)


def build_engine(onnx_file: bytes, key: EngineKey, flavour: Flavour) -> bytes:
    """The engine that the key describes. A DataError names the layer that could not be built."""
    _check(key, flavour)
    trt, log = flavour.api, listen(flavour.api)
    builder = trt.Builder(log)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx_file):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise _refused(key, [_where(error) for error in errors], log.errors)
    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(builder, key))
    if not key.gpu:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{key.capability.replace('.', '')}"), 0)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise _refused(key, [], log.errors)
    return bytes(engine)


def unsupported(flavour: Flavour, gpu: str, capability: str) -> ResourceError | None:
    """Why the flavour has no engines for such a GPU; None where it has."""
    known = capabilities(flavour)
    if known is None or capability in known:
        return None
    return ResourceError(
        f"runtime tensorrt: TensorRT-RTX {flavour.version} has no kernels for {gpu or 'GPUs'} of compute "
        f"capability {capability}, only for {', '.join(known)}; install TensorRT, or use --runtime torch."
    )


def _check(key: EngineKey, flavour: Flavour) -> None:
    if flavour.name == "tensorrt" and not key.gpu:
        raise ResourceError(
            "runtime tensorrt: TensorRT builds engines on the GPU that will run them, and there is none here; "
            "export on a machine with that GPU, or `pip install 'voxray[tensorrt-rtx]'`, which builds ahead of time."
        )
    obstacle = unsupported(flavour, key.gpu, key.capability)
    if obstacle is not None:
        raise obstacle


def _strongly_typed(trt: Any) -> int:
    """The flag that makes types come from the graph; later versions know nothing else and have no such flag."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _profile(builder: Any, key: EngineKey) -> Any:
    """One window, and batches from the least over the usual to the most."""
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, *((size, 1, *key.window_vox) for size in key.batches))
    return profile


def _where(error: Any) -> str:
    layer = f"layer {error.node_name()!r} ({error.node_operator()}): " if error.node_name() else ""
    return f"{layer}{error.desc()}"


def _refused(key: EngineKey, parsed: Sequence[str], logged: Sequence[str]) -> DataError:
    """What the parser says of a layer is clearer than what the log says."""
    said = " / ".join(" ".join(text.split()) for text in [*parsed, *logged][:2]) or "no reason was given"
    sides = " x ".join(map(str, key.window_vox))
    return DataError(
        "tensorrt.build",
        f"{key.flavour} {key.version} cannot build the network at {key.precision} for windows of {sides}: "
        f"{said[:600].rstrip('.')}.",
        remedy="Use --runtime onnxruntime or torch, a smaller --window, or another version of TensorRT.",
    )


def listen(trt: Any) -> Any:
    """A logger that keeps errors and prints nothing."""

    class Listener(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            """Called by TensorRT for everything that it does."""
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Listener()
