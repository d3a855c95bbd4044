"""The scan in an inference request: a file, several DICOM files, or bare voxels with their geometry."""

from __future__ import annotations

import math
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxray.core.errors import ConfigError
from voxray.core.volume import Grid, Volume
from voxray.readers import write_nifti
from voxray.readers.geometry import FARTHEST_MM, SPACING_RANGE_MM
from voxray.serving.http.kserve_tensors import Buffer, InferRequest, InputTensor
from voxray.serving.intake.disk import in_thread
from voxray.serving.intake.receive import UploadPart

NAME = "volume"
_CHUNK = 1 << 20
_GEOMETRY = {"spacing_mm": 3, "origin_mm": 3, "direction": 9}
_STARTS = ((b"\x1f\x8b", ".nii.gz"), (b"PK\x03\x04", ".zip"), (b"NRRD", ".nrrd"), (b"ObjectType", ".mha"))
_NIFTI_HEADERS = (348, 540)


def volume_of(asked: InferRequest) -> InputTensor:
    """The one input, checked as far as it can be without reading it."""
    names = [tensor.name for tensor in asked.inputs]
    if names not in ([NAME], [""]):
        raise ConfigError(f"inputs: must be {NAME!r} alone, got {', '.join(map(repr, names))[:200]}.")
    tensor = asked.inputs[0]
    if tensor.datatype == "BYTES" and len(tensor.shape) == 1 and tensor.elements:
        return tensor
    if tensor.datatype == "INT16" and len(tensor.shape) == 3 and all(tensor.shape):
        geometry_of(tensor, asked.parameters)
        return tensor
    raise ConfigError(
        f"inputs.{NAME}: must be BYTES [1] holding a file (.nii.gz, .nii, .nrrd, .mha or a zip), BYTES [n] "
        f"holding DICOM files, or INT16 [x, y, z] in HU; got {tensor.datatype} {list(tensor.shape)}."
    )


async def parts_of(tensor: InputTensor, parameters: Mapping[str, Any], folder: Path) -> AsyncIterator[UploadPart]:
    """The files of a scan as an upload has them; bare voxels are written to `folder` on the way."""
    if tensor.datatype == "BYTES":
        for element in tensor.elements:
            yield UploadPart(f"scan{suffix_of(bytes(element[:16]))}", _pieces(element))
        return
    grid = geometry_of(tensor, parameters)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "scan.nii"
        await in_thread(write_nifti, Volume(tensor.numbers().astype(np.int16, copy=False), grid), path)
        yield UploadPart(path.name, _read(path))


def geometry_of(tensor: InputTensor, parameters: Mapping[str, Any]) -> Grid:
    """Where bare voxels lie: the parameters of the tensor, or else of the request."""
    told = {**parameters, **tensor.parameters}
    numbers = {name: _numbers(told.get(name), count, name) for name, count in _GEOMETRY.items()}
    (low, high), far = SPACING_RANGE_MM, FARTHEST_MM
    if not all(low <= side <= high for side in numbers["spacing_mm"]):
        raise ConfigError(f"inputs.{NAME}: each side of spacing_mm must lie between {low} and {high} mm.")
    if max(map(abs, numbers["origin_mm"])) > far:
        raise ConfigError(f"inputs.{NAME}: origin_mm must lie within {far:g} mm of 0.")
    axes = np.asarray(numbers["direction"]).reshape(3, 3)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-4):
        raise ConfigError(f"inputs.{NAME}: direction must be nine cosines, its columns at right angles.")
    x, y, z = tensor.shape
    return Grid.from_dict({"shape": (x, y, z), **numbers})


def suffix_of(start: bytes) -> str:
    """The end of a file's name by its first bytes; empty where these say nothing (DICOM says it further on)."""
    if {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")} & set(_NIFTI_HEADERS):
        return ".nii"
    return next((suffix for mark, suffix in _STARTS if start.startswith(mark)), "")


def _numbers(told: Any, count: int, name: str) -> Sequence[float]:
    """So many numbers: a list, or text with commas, as some clients send no lists."""
    values = told.split(",") if isinstance(told, str) else told
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ConfigError(
            f"inputs.{NAME}: INT16 voxels need the parameter {name} of {count} numbers, of the input or the request "
            "(LPS mm, as SimpleITK has them); without it nobody knows where they lie."
        )
    return numbers


async def _pieces(data: Buffer) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _CHUNK):
        yield bytes(data[start : start + _CHUNK])


async def _read(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await in_thread(file.read, _CHUNK):
            yield chunk
