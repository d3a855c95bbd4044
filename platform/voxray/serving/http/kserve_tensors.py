"""Tensors of the Open Inference Protocol (KServe v2), as JSON or after it as raw bytes (Triton's binary extension).

A request's body is JSON alone; or JSON of `Inference-Header-Content-Length` bytes and then, in the order of the
inputs, each tensor that has a ``binary_data_size``; or, where that header is 0, one nameless element of BYTES.
Numbers are little-endian and row-major; an element of BYTES is its length in four bytes, then itself. What a request
says of its tensors is never believed: every length is checked against what came, and a refusal is a ConfigError.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Shaped

from voxray.core.errors import ConfigError

Buffer = bytes | memoryview

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Of numbers; BYTES has no numpy type."""

_LENGTH = 4
_MAX_TENSORS = 16
_MAX_DIMENSIONS = 8
_MAX_JSON = 32 << 20
_MAX_JSON_NUMBERS = 1 << 20
_BASE64 = "base64"
_SHARED_MEMORY = "shared_memory_region"
_KINDS = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}
"""The kinds of JSON numbers that each kind of tensor may be written with."""


@dataclass(frozen=True)
class InputTensor:
    """An input: raw numbers of a datatype, or the elements of BYTES."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    elements: tuple[Buffer, ...]
    """Of numbers there is one element, all of them."""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def numbers(self) -> Shaped[np.ndarray, ...]:
        """The numbers in their shape, without a copy."""
        return np.frombuffer(self.elements[0], DATATYPES[self.datatype]).reshape(self.shape)


@dataclass(frozen=True)
class RequestedOutput:
    """An output that is asked for, and whether as raw bytes after the JSON."""

    name: str
    binary: bool


@dataclass(frozen=True)
class InferRequest:
    """What a client asks."""

    inputs: tuple[InputTensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    """Empty: all that the model gives by itself."""
    id: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    binary: bool = False
    """Whether outputs that are not named come as raw bytes."""


@dataclass(frozen=True)
class OutputTensor:
    """An output: numbers, or one element of BYTES."""

    name: str
    value: Shaped[np.ndarray, ...] | bytes


def read_request(body: Buffer, json_length: int | None) -> InferRequest:
    """The request in a body; `json_length` is what `Inference-Header-Content-Length` says, else None."""
    view = memoryview(body).cast("B")
    if json_length == 0:
        return InferRequest(inputs=(InputTensor("", "BYTES", (1,), (view,)),))
    if not view:
        raise ConfigError("the request: the body is empty; send JSON with the input 'volume'.")
    end = len(view) if json_length is None else json_length
    if not 0 < end <= len(view):
        raise ConfigError(
            f"Inference-Header-Content-Length: says {end} bytes of JSON, the body has {len(view)}; give the "
            "length of the JSON before the tensors."
        )
    told = _object(_json(view[:end]), "the request")
    parameters = _object(told.get("parameters", {}), "parameters")
    binary = _flag(parameters.get("binary_data_output", False), "parameters.binary_data_output")
    return InferRequest(
        inputs=_inputs(told.get("inputs"), view[end:]),
        outputs=_outputs(told.get("outputs", []), binary),
        id=_identifier(told.get("id")),
        parameters=parameters,
        binary=binary,
    )


def write_response(
    outputs: Sequence[tuple[OutputTensor, bool]],
    *,
    model: str,
    version: str,
    id: str | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[list[Buffer], int | None]:
    """The reply's body in pieces, and the length of its JSON where raw tensors follow; each output with its form."""
    raws: list[Buffer] = []
    told = []
    for output, binary in outputs:
        entry, raw = _binary(output) if binary else (_in_json(output), None)
        told.append(entry)
        raws.extend([] if raw is None else raw)
    reply: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": told}
    reply |= {"id": id} if id is not None else {}
    reply |= {"parameters": dict(parameters)} if parameters else {}
    head = json.dumps(reply, allow_nan=False, separators=(",", ":")).encode()
    any_binary = any(binary for _, binary in outputs)
    return [head, *raws], len(head) if any_binary else None


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a numpy type."""
    return next(name for name, known in DATATYPES.items() if known == dtype.newbyteorder("<"))


def _json(data: memoryview) -> Any:
    if len(data) > _MAX_JSON:
        raise ConfigError(
            f"the request: has {len(data)} bytes of JSON, at most {_MAX_JSON} are read; send tensors as binary data "
            "(binary_data_size)."
        )
    try:
        return json.loads(bytes(data), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:100]
        raise ConfigError(
            f"the request: is no JSON ({reason}); where tensors follow as binary data, say so with "
            "Inference-Header-Content-Length."
        ) from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


def _inputs(told: Any, rest: memoryview) -> tuple[InputTensor, ...]:
    entries = _entries(told, "inputs")
    if not entries:
        raise ConfigError("inputs: is empty; give the input 'volume'.")
    tensors, offset = [], 0
    for entry in entries:
        tensor, used = _tensor(entry, rest[offset:])
        tensors.append(tensor)
        offset += used
    if offset != len(rest):
        raise ConfigError(
            f"inputs: their binary_data_size add up to {offset} bytes, {len(rest)} follow the JSON; both must agree."
        )
    return tuple(tensors)


def _outputs(told: Any, binary: bool) -> tuple[RequestedOutput, ...]:
    wanted = []
    for entry in _entries(told, "outputs"):
        name = str(entry["name"])
        parameters = _object(entry.get("parameters", {}), f"outputs.{name}.parameters")
        _no_shared_memory(parameters, f"outputs.{name}")
        if parameters.get("classification"):
            raise ConfigError(f"outputs.{name}: classification is not offered; leave it out.")
        flag = _flag(parameters.get("binary_data", binary), f"outputs.{name}.parameters.binary_data")
        wanted.append(RequestedOutput(name, flag))
    return tuple(wanted)


def _entries(told: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(told, list) or len(told) > _MAX_TENSORS:
        raise ConfigError(f"{where}: must be a list of at most {_MAX_TENSORS} tensors.")
    entries = [_object(entry, f"{where}[{number}]") for number, entry in enumerate(told)]
    names = [entry.get("name") for entry in entries]
    if not all(isinstance(name, str) and 0 < len(name) <= 64 for name in names):
        raise ConfigError(f"{where}: each needs a name of 1 to 64 characters.")
    if len(set(names)) < len(names):
        raise ConfigError(f"{where}: two have the same name; name each once.")
    return entries


def _tensor(entry: Mapping[str, Any], rest: memoryview) -> tuple[InputTensor, int]:
    """An input, and how many of the bytes after the JSON are its."""
    where = f"inputs.{entry['name']}"
    parameters = _object(entry.get("parameters", {}), f"{where}.parameters")
    _no_shared_memory(parameters, where)
    datatype, shape = _datatype(entry.get("datatype"), where), _shape(entry.get("shape"), where)
    size = parameters.get("binary_data_size")
    if (size is None) == ("data" not in entry):
        raise ConfigError(f"{where}: needs either data or parameters.binary_data_size, and not both.")
    if size is None:
        elements = _from_json(entry["data"], datatype, shape, encoding=parameters.get("encoding"), where=where)
        return InputTensor(entry["name"], datatype, shape, elements, parameters), 0
    if not _is_count(size) or size > len(rest):
        raise ConfigError(f"{where}: binary_data_size is {size!r:.40}, {len(rest)} bytes are left in the body.")
    elements = _from_bytes(rest[:size], datatype, shape, where=where)
    return InputTensor(entry["name"], datatype, shape, elements, parameters), size


def _from_bytes(raw: memoryview, datatype: str, shape: tuple[int, ...], *, where: str) -> tuple[Buffer, ...]:
    count = math.prod(shape)
    if datatype == "BYTES":
        elements = tuple(_split(raw, where))
        if len(elements) != count:
            raise ConfigError(f"{where}: holds {len(elements)} elements, its shape {list(shape)} says {count}.")
        return elements
    need = count * DATATYPES[datatype].itemsize
    if len(raw) != need:
        raise ConfigError(f"{where}: has {len(raw)} bytes, {datatype} {list(shape)} takes {need}.")
    return (raw,)


def _split(raw: memoryview, where: str) -> Iterator[memoryview]:
    offset = 0
    while offset < len(raw):
        start = offset + _LENGTH
        end = start + int.from_bytes(raw[offset:start], "little")
        if start > len(raw) or end > len(raw):
            raise ConfigError(
                f"{where}: an element says that it ends at byte {end} of {len(raw)}; each starts with its length in "
                "four bytes, little-endian."
            )
        yield raw[start:end]
        offset = end


def _from_json(data: Any, datatype: str, shape: tuple[int, ...], *, encoding: Any, where: str) -> tuple[Buffer, ...]:
    count = math.prod(shape)
    if datatype == "BYTES":
        elements = tuple(_text(item, encoding, where) for item in _flat(data))
        if len(elements) != count:
            raise ConfigError(f"{where}: data has {len(elements)} elements, its shape {list(shape)} says {count}.")
        return elements
    array = _array(data, datatype, where)
    if array.shape not in ((count,), shape) and not array.size == count == 0:
        raise ConfigError(
            f"{where}: data has the shape {list(array.shape)}; {list(shape)} is said, so give it so or flat."
        )
    return (np.ascontiguousarray(array, DATATYPES[datatype]).tobytes(),)


def _array(data: Any, datatype: str, where: str) -> Shaped[np.ndarray, ...]:
    target = DATATYPES[datatype]
    try:
        array = np.asarray(data)
    except ValueError:
        raise ConfigError(f"{where}: data is ragged; give lists of equal length.") from None
    if array.size and array.dtype.kind not in _KINDS[target.kind]:
        raise ConfigError(f"{where}: data must be numbers that fit {datatype}.")
    if array.size and target.kind in "iu":
        bounds = np.iinfo(target)
        if int(array.min()) < bounds.min or int(array.max()) > bounds.max:
            raise ConfigError(f"{where}: data must lie between {bounds.min} and {bounds.max} ({datatype}).")
    if (
        array.size
        and target.kind == "f"
        and float(np.abs(array.astype(np.float64)).max()) > float(np.finfo(target).max)
    ):
        raise ConfigError(f"{where}: data must lie within {np.finfo(target).max} ({datatype}).")
    return array


def _flat(data: Any, depth: int = 0) -> Iterator[Any]:
    if isinstance(data, list) and depth <= _MAX_DIMENSIONS:
        for item in data:
            yield from _flat(item, depth + 1)
    else:
        yield data


def _text(item: Any, encoding: Any, where: str) -> bytes:
    if not isinstance(item, str):
        raise ConfigError(f"{where}: data of BYTES must be strings.")
    if encoding not in (None, _BASE64):
        raise ConfigError(f"{where}: parameters.encoding must be 'base64' or left out.")
    try:
        return item.encode() if encoding is None else base64.b64decode(item, validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError):
        raise ConfigError(f"{where}: data is not {'UTF-8' if encoding is None else encoding}.") from None


def _binary(output: OutputTensor) -> tuple[dict[str, Any], list[Buffer]]:
    if isinstance(output.value, bytes):
        raw: list[Buffer] = [len(output.value).to_bytes(_LENGTH, "little"), output.value]
        entry: dict[str, Any] = {"name": output.name, "datatype": "BYTES", "shape": [1]}
    else:
        array = np.ascontiguousarray(output.value, output.value.dtype.newbyteorder("<"))
        raw = [array.reshape(-1).view(np.uint8).data] if array.size else []
        entry = {"name": output.name, "datatype": datatype_of(array.dtype), "shape": list(output.value.shape)}
    return {**entry, "parameters": {"binary_data_size": sum(len(piece) for piece in raw)}}, raw


def _in_json(output: OutputTensor) -> dict[str, Any]:
    if isinstance(output.value, bytes):
        text = base64.b64encode(output.value).decode()
        told = {"name": output.name, "datatype": "BYTES", "shape": [1], "parameters": {"encoding": _BASE64}}
        return {**told, "data": [text]}
    if output.value.size > _MAX_JSON_NUMBERS:
        raise ConfigError(
            f"outputs.{output.name}: has {output.value.size} numbers, too many for JSON; ask for it with "
            "parameters.binary_data true."
        )
    datatype = datatype_of(output.value.dtype)
    return {
        "name": output.name,
        "datatype": datatype,
        "shape": list(output.value.shape),
        "data": output.value.ravel().tolist(),
    }


def _object(told: Any, where: str) -> dict[str, Any]:
    if not isinstance(told, dict):
        raise ConfigError(f"{where}: must be an object of JSON, got a {type(told).__name__}.")
    return told


def _identifier(told: Any) -> str | None:
    if told is not None and not (isinstance(told, str) and len(told) <= 256):
        raise ConfigError("id: must be a string of at most 256 characters.")
    return told


def _datatype(told: Any, where: str) -> str:
    if not isinstance(told, str) or told not in ("BYTES", *DATATYPES):
        raise ConfigError(f"{where}: datatype must be one of BYTES, {', '.join(DATATYPES)}; got {told!r:.40}.")
    return told


def _shape(told: Any, where: str) -> tuple[int, ...]:
    if not isinstance(told, list) or len(told) > _MAX_DIMENSIONS or not all(_is_count(side) for side in told):
        raise ConfigError(f"{where}: shape must be a list of at most {_MAX_DIMENSIONS} whole numbers from 0.")
    return tuple(told)


def _is_count(told: Any) -> bool:
    return isinstance(told, int) and not isinstance(told, bool) and 0 <= told < 1 << 48


def _flag(told: Any, where: str) -> bool:
    if not isinstance(told, bool):
        raise ConfigError(f"{where}: must be true or false.")
    return told


def _no_shared_memory(parameters: Mapping[str, Any], where: str) -> None:
    if _SHARED_MEMORY in parameters:
        raise ConfigError(f"{where}: shared memory is not offered; send the tensor in the body.")
