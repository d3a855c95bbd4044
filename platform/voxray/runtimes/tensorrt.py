"""The ``tensorrt`` runtime: an engine of TensorRT or TensorRT-RTX on an NVIDIA GPU.

Patches and answers stay on the GPU, in torch's memory and on torch's stream. An engine that was built by another
version or for another GPU is built again from the ONNX, and kept.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from voxray.core.errors import ConfigError, DataError, ResourceError, VoxrayError
from voxray.core.outputs import Output
from voxray.runtimes.engine_cache import cache_folder, write_whole
from voxray.runtimes.network import TrainedNetwork
from voxray.runtimes.protocol import Precision, Runtime, no_int8
from voxray.runtimes.tensorrt_build import (
    EngineKey,
    Flavour,
    build_engine,
    key_for,
    listen,
    require_flavour,
    unsupported,
)
from voxray.runtimes.tensors import INPUT, assemble


class TensorRtRuntime(Runtime):
    """An engine ready on a GPU; patches must have its window, and come in its batches or fewer."""

    name = "tensorrt"

    def __init__(
        self, engine: bytes, key: EngineKey, flavour: Flavour, device: torch.device, *, cache: Path | None = None
    ) -> None:
        """`cache` is the file in which TensorRT-RTX keeps the kernels that it compiles when it first runs."""
        self.device, self.precision = device, key.precision
        x, y, z = key.window_vox
        self.window_vox = (x, y, z)
        self.max_batch = key.batches[2]
        self._least, self._key, self._cache_file = key.batches[0], key, cache
        with torch.cuda.device(device):
            self._log = listen(flavour.api)
            self._runtime = flavour.api.Runtime(self._log)
            self._engine = self._runtime.deserialize_cuda_engine(engine)
            if self._engine is None:
                raise _unusable(key, self._log.errors)
            self._context, self._cache = self._contexts()
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self._outputs = [name for name in names if name != INPUT]

    @torch.inference_mode()
    def __call__(self, images: Float[Tensor, "b 1 x y z"]) -> Output:
        """The network's output for normalised patches, on torch's current stream."""
        size = len(images)
        patches = images.to(self.device, torch.float32, non_blocking=True)
        if size < self._least:
            filler = patches.new_zeros((self._least - size, *patches.shape[1:]))
            patches = torch.cat([patches, filler])
        patches = patches.contiguous()
        with torch.cuda.device(self.device):
            assert self._context.set_input_shape(INPUT, tuple(patches.shape)), (patches.shape, self._key)
            self._context.set_tensor_address(INPUT, patches.data_ptr())
            found = {name: self._placed(name) for name in self._outputs}
            done = self._context.execute_async_v3(torch.cuda.current_stream(self.device).cuda_stream)
            if not done:
                raise _unusable(self._key, self._log.errors)
        self._save_cache()
        return assemble({name: tensor[:size] for name, tensor in found.items()})

    def _placed(self, name: str) -> Tensor:
        """Room for an output, which the engine will write into."""
        room = torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=torch.float32, device=self.device)
        self._context.set_tensor_address(name, room.data_ptr())
        return room

    def _contexts(self) -> tuple[Any, Any]:
        """The execution context, and TensorRT-RTX's cache of kernels, filled from its file."""
        if not hasattr(self._engine, "create_runtime_config"):
            return self._engine.create_execution_context(), None
        config = self._engine.create_runtime_config()
        if not hasattr(config, "create_runtime_cache"):
            return self._engine.create_execution_context(), None
        cache = config.create_runtime_cache()
        if self._cache_file is not None and self._cache_file.exists():
            cache.deserialize(self._cache_file.read_bytes())
        config.set_runtime_cache(cache)
        return self._engine.create_execution_context(config), cache

    def _save_cache(self) -> None:
        """Once, after the first patches, which is when the kernels are compiled."""
        if self._cache is not None and self._cache_file is not None and not self._cache_file.exists():
            write_whole(self._cache_file, bytes(self._cache.serialize()))
        self._cache = None


def open_tensorrt(network: TrainedNetwork, device: torch.device, precision: Precision) -> TensorRtRuntime:
    """The package's engine where it fits this GPU and TensorRT; else one that is built from the ONNX, and kept."""
    flavour = require_flavour()
    key = key_for(flavour, window_vox=network.window_vox, batches=network.batches, precision=precision, device=device)
    brought = network.files.get(("tensorrt", precision))
    if brought is not None and network.engine_key is not None and not network.engine_key.misfit(key):
        name = key.file_name(hashlib.sha256(brought.name.encode() + network.digest.encode()).hexdigest())
        return TensorRtRuntime(brought.read_bytes(), key, flavour, device, cache=cache_folder() / f"{name}.kernels")
    onnx = network.onnx(precision)
    name = key.file_name(hashlib.sha256(onnx).hexdigest())
    engine = network.cached(f"{name}.engine", lambda: build_engine(onnx, key, flavour))
    return TensorRtRuntime(engine, key, flavour, device, cache=cache_folder() / f"{name}.kernels")


def tensorrt_obstacle(device: torch.device, precision: Precision) -> VoxrayError | None:
    """What keeps TensorRT from answering here."""
    if precision == "int8":
        return no_int8("tensorrt")
    if device.type != "cuda":
        return ConfigError(
            f"runtime tensorrt: runs on an NVIDIA GPU, not on {device}; use --device cuda, or --runtime openvino."
        )
    try:
        flavour = require_flavour()
    except ResourceError as error:
        return error
    major, minor = torch.cuda.get_device_capability(device)
    return unsupported(flavour, torch.cuda.get_device_name(device), f"{major}.{minor}")


def _unusable(key: EngineKey, errors: list[str]) -> DataError:
    said = " ".join((errors[-1] if errors else "no reason was given").split())[:300]
    return DataError(
        "tensorrt.unusable",
        f"{key.flavour} {key.version} cannot run the engine for {key.gpu or key.capability}: {said}.",
        remedy="Export the run again on this machine, or use --runtime torch.",
    )
