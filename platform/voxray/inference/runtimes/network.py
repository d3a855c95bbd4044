"""A trained network in the forms that runtimes open: the module itself, and files that hold it.

A run has the module alone; what another runtime needs is converted from it once and kept beside the run. A package
brings its files along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from voxray.errors import ConfigError
from voxray.inference.keeping import kept
from voxray.inference.runtimes.runtime import Precision
from voxray.inference.runtimes.tensor_rt_build import EngineKey
from voxray.inference.runtimes.tensors import TaskName, output_names
from voxray.recipe import Recipe
from voxray.volume import Shape


@dataclass(frozen=True)
class Network:
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
    """The SHA-256 of the weights; empty where nobody knows it, and then nothing is kept."""
    folder: Path | None = None
    """Where converted forms are kept."""
    engine_key: EngineKey | None = None
    """What the package's TensorRT engine was built by and for."""
    files: Mapping[tuple[str, Precision], Path] = field(default_factory=dict)
    """(``onnx``, ``openvino`` or ``tensorrt``, precision) -> file."""

    def onnx(self, precision: Precision = "fp32") -> bytes:
        """The network as ONNX: the package's file, or the one that was converted before, or converted now."""
        brought = self.files.get(("onnx", precision))
        if brought is not None:
            return brought.read_bytes()
        if self.module is None:
            held = ", ".join(sorted(kind for form, kind in self.files if form == "onnx")) or "none"
            raise ConfigError(
                f"precision {precision}: this package holds the network as ONNX in {held}; "
                f"use that, or export the run again with --precision {precision}."
            )
        from voxray.inference.onnx_export import FORMAT, export_onnx
        from voxray.inference.onnx_typing import typed

        module, outputs, stride = self.module, self.outputs, self.stride_vox
        plain = self.kept(f"{FORMAT}.onnx", lambda: export_onnx(module, outputs=outputs, stride_vox=stride))
        return typed(plain, precision)

    def kept(self, name: str, make: Callable[[], bytes]) -> bytes:
        """What `make` gives, kept under the weights' digest and the name where the digest is known."""
        if not self.digest:
            return make()
        return kept(f"{self.digest[:16]}-{name}", make, folder=self.folder)


def network_of(recipe: Recipe, module: nn.Module | None, *, digest: str = "", folder: Path | None = None) -> Network:
    """The recipe's network; with a digest and a folder, what is converted from it is kept there."""
    num_levels = len(recipe.network.level_strides_vox) if recipe.task == "detection" else 0
    return Network(
        task=recipe.task,
        stride_vox=recipe.network.stride_vox,
        outputs=output_names(recipe.task, num_levels),
        window_vox=recipe.inference.window_vox,
        module=module,
        digest=digest,
        folder=folder,
    )
