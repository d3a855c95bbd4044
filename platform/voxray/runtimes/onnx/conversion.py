"""A network as ONNX, by torch's dynamo exporter: float32 in and out, with the batch and all three sides free.

One file serves every window. The exporter makes batch norms part of the convolutions before them. Half precision is
made of the float32 graph afterwards (`half_precision`), so that a network is traced once whatever it will compute in.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from voxray.core.errors import ConfigError, ResourceError
from voxray.core.volume import Shape
from voxray.runtimes.tensors import INPUT, flatten

FORMAT = 2
"""Counts up when the exported graph changes, so that what was kept of older ones is not used."""
OPSET = 22
"""The first in which convolutions may be bf16."""


def export_onnx(module: nn.Module, *, outputs: Sequence[str], stride_vox: Shape) -> bytes:
    """The network as an ONNX file in float32 with input ``images`` and these outputs."""
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ResourceError(
            f"export to ONNX: {' and '.join(missing)} not installed here; `pip install 'voxray[onnx]'` adds both."
        )
    x, y, z = stride_vox
    place = next(iter(module.parameters())).device
    # Three different sides, so that none is taken for another.
    images = torch.zeros(2, 1, 2 * x, 3 * y, 4 * z, device=place)
    free = torch.export.Dim.DYNAMIC
    with torch.no_grad(), _predicting(module), _quietly():
        try:
            program = torch.onnx.export(
                _Flat(module).eval(),
                (images,),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes={INPUT: {0: free, 2: free, 3: free, 4: free}},
                input_names=[INPUT],
                output_names=list(outputs),
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            cause = error.__cause__ or error
            raise ConfigError(
                f"export to ONNX: {type(module).__name__} cannot be converted for patches of every size "
                f"({type(cause).__name__}); use --runtime torch, or write it without steps that depend on values."
            ) from error
    assert program is not None
    return _without_origins(program.model_proto)


def _without_origins(model: Any) -> bytes:
    """The file without what the exporter notes of every node: paths on this machine, lines of code, call stacks."""
    for graph in (model.graph, *model.functions):
        values = (*graph.input, *graph.output, *graph.initializer) if graph is model.graph else ()
        for part in (graph, *graph.node, *graph.value_info, *values):
            del part.metadata_props[:]
    del model.metadata_props[:]
    return bytes(model.SerializeToString())


class _Flat(nn.Module):
    """The network with a plain tuple of tensors as its output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The tensors in the order of `output_names`."""
        return flatten(self.network(images))


@contextmanager
def _predicting(module: nn.Module) -> Iterator[None]:
    """Eval mode for as long as it is exported; then what it was in."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


@contextmanager
def _quietly() -> Iterator[None]:
    """The exporter speaks of libraries that are not there and of its own code's future; neither concerns a user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
