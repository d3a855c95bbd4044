"""A trained network in the forms that runtimes open: the module itself, and files that hold it.

A run has the module alone; what another runtime needs is converted from it once and kept beside the run. A package
brings its files along.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from torch import nn

from voxray.core.errors import ConfigError
from voxray.core.recipe import Recipe
from voxray.core.task_name import TaskName
from voxray.core.volume import Shape
from voxray.runtimes.engine_cache import cached
from voxray.runtimes.protocol import Precision
from voxray.runtimes.tensorrt_build import EngineKey
from voxray.runtimes.tensors import output_names

EngineFormat = Literal["onnx", "openvino", "tensorrt"]
"""A kind of file that holds a network."""


@dataclass(frozen=True)
class TrainedNetwork:
    """What a runtime opens."""

    task: TaskName
    stride_vox: Shape
    """Sides of patches are multiples of this."""
    outputs: tuple[str, ...]
    """Names of the output tensors, as in `runtimes.tensors`."""
    window_vox: Shape
    """The recipe's window, or the one that the package was made for."""
    batches: tuple[int, int, int] = (1, 4, 8)
    """The smallest, the usual and the largest batch, for runtimes that are built for them."""
    module: nn.Module | None = None
    digest: str = ""
    """Of the weights and the network's fields; empty where nobody knows it, and then nothing is kept."""
    folder: Path | None = None
    """Where converted forms are kept."""
    engine_key: EngineKey | None = None
    """What the package's TensorRT engine was built by and for."""
    files: Mapping[tuple[EngineFormat, Precision], Path] = field(default_factory=dict)
    """What a package brings."""

    def with_files(
        self, files: Mapping[tuple[EngineFormat, Precision], Path], engine_key: EngineKey | None = None
    ) -> TrainedNetwork:
        """The same network with the files that a package brings."""
        return replace(self, files=dict(files), engine_key=engine_key)

    def onnx(self, precision: Precision = "fp32") -> bytes:
        """The network as ONNX: the package's file, or the one that was converted before, or converted now."""
        brought = self.files.get(("onnx", precision))
        if brought is not None:
            return brought.read_bytes()
        from voxray.runtimes.onnx.half_precision import typed

        return typed(self._plain(), precision)

    def _plain(self) -> bytes:
        """The float32 graph, of which the others are made."""
        from voxray.runtimes.onnx.conversion import FORMAT, export_onnx

        brought = self.files.get(("onnx", "fp32"))
        if brought is not None:
            return brought.read_bytes()
        if self.module is None:
            raise ConfigError("runtime: this package holds no ONNX to make an engine of; export the run again.")
        module, outputs, stride = self.module, self.outputs, self.stride_vox
        return self.cached(f"{FORMAT}.onnx", lambda: export_onnx(module, outputs=outputs, stride_vox=stride))

    def cached(self, name: str, make: Callable[[], bytes]) -> bytes:
        """What `make` gives, kept under the weights' digest and the name where the digest is known."""
        if not self.digest:
            return make()
        return cached(f"{self.digest[:16]}-{name}", make, folder=self.folder)


def network_of(
    recipe: Recipe,
    module: nn.Module | None,
    *,
    digest: str = "",
    folder: Path | None = None,
    batches: tuple[int, int, int] = (1, 4, 8),
) -> TrainedNetwork:
    """The recipe's network; with a digest, what is converted from it is kept, in the folder where it can be."""
    return TrainedNetwork(
        task=recipe.task,
        stride_vox=recipe.network.stride_vox,
        outputs=output_names(recipe.task, len(recipe.level_strides_vox)),
        window_vox=recipe.inference.window_vox,
        batches=batches,
        module=module,
        digest=_identity(digest, recipe),
        folder=folder,
    )


def _identity(digest: str, recipe: Recipe) -> str:
    """The weights' and the network's: strides, say, do not show in the weights."""
    return digest and hashlib.sha256(f"{digest} {recipe.network.model_dump_json()}".encode()).hexdigest()
