"""The protocol's tensors, against NVIDIA's own client: what it writes is read, and it reads what we write."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult

from voxray.core.errors import ConfigError
from voxray.serving.http.kserve_tensors import (
    DATATYPES,
    InferRequest,
    InputTensor,
    OutputTensor,
    read_request,
    write_response,
)

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)
ARRAYS = st.sampled_from(sorted(DATATYPES)).flatmap(
    lambda name: st.tuples(
        st.just(name), hnp.arrays(DATATYPES[name], SHAPES, elements={"allow_nan": False} if "FP" in name else None)
    )
)
FILES = st.binary(max_size=300)


def ask(inputs: list[InferInput], **more: Any) -> InferRequest:
    """What we read of the body that tritonclient writes."""
    body, length = InferenceServerClient.generate_request_body(inputs, **more)
    return read_request(body, length)


def triton_input(name: str, datatype: str, array: Any, *, binary: bool) -> InferInput:
    """An input as tritonclient sends it."""
    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


@given(named=ARRAYS, binary=st.booleans(), second=FILES)
def test_what_tritonclient_sends_is_read_as_it_was(named: tuple[str, Any], binary: bool, second: bytes) -> None:
    datatype, array = named
    if "FP" in datatype:
        array = np.where(np.isfinite(array), array, 0).astype(array.dtype)  # JSON has no infinity
    file = np.array([second], dtype=np.object_)
    request = ask(
        [triton_input("a", datatype, array, binary=binary), triton_input("b", "BYTES", file, binary=True)],
        request_id="r1",
        outputs=[InferRequestedOutput("x", binary_data=False), InferRequestedOutput("y")],
    )
    numbers = request.inputs[0].numbers()
    assert numbers.shape == array.shape
    assert np.array_equal(numbers, array)
    assert bytes(request.inputs[1].elements[0]) == second
    assert request.id == "r1"
    assert [(wanted.name, wanted.binary) for wanted in request.outputs] == [("x", False), ("y", True)]


@given(elements=st.lists(FILES, max_size=5))
def test_elements_of_bytes_keep_their_borders(elements: list[bytes]) -> None:
    array = np.array(elements, dtype=np.object_)
    request = ask([triton_input("a", "BYTES", array, binary=True)])
    assert [bytes(element) for element in request.inputs[0].elements] == elements
    assert request.binary  # tritonclient asks for it where it names no outputs


@given(named=ARRAYS, file=FILES, first=st.booleans(), second=st.booleans())
def test_tritonclient_reads_what_we_answer(named: tuple[str, Any], file: bytes, first: bool, second: bool) -> None:
    array = named[1]
    if not first and not np.isfinite(array.astype(np.float64)).all():
        array = np.zeros_like(array)
    pieces, length = write_response(
        [(OutputTensor("numbers", array), first), (OutputTensor("file", file), second)],
        model="m",
        version="1",
        id="r2",
    )
    result = InferResult.from_response_body(b"".join(pieces), header_length=length)
    read = result.as_numpy("numbers")
    assert read is not None
    assert read.shape == array.shape
    assert read.dtype == array.dtype
    assert np.array_equal(read, array)
    assert result.get_response()["id"] == "r2"
    if second:
        assert result.as_numpy("file").tolist() == [file]
    else:
        told = result.get_output("file")
        assert told is not None
        again = read_request(json.dumps({"inputs": [told]}).encode(), None)
        assert again.inputs[0].elements == (file,)
    assert (length is None) == (not first and not second)


def test_one_raw_element_needs_no_json() -> None:
    assert read_request(b"\x1f\x8bscan", 0).inputs == (
        InputTensor("", "BYTES", (1,), (memoryview(b"\x1f\x8bscan"),)),
    )


def test_nested_and_flat_numbers_are_the_same() -> None:
    nested = body(data=[[1, 2, 3], [4, 5, 6]], shape=[2, 3])
    flat = body(data=[1, 2, 3, 4, 5, 6], shape=[2, 3])
    assert np.array_equal(
        read_request(nested, None).inputs[0].numbers(), read_request(flat, None).inputs[0].numbers()
    )


def body(**entry: Any) -> bytes:
    """A request with one input."""
    return json.dumps({"inputs": [{"name": "a", "datatype": "INT16", **entry}]}).encode()


LIES = {
    "is no JSON": (b"{", None),
    "is no JSON (it is nested too deeply)": (b"[" * 200_000, None),
    "is no JSON (NaN": (b'{"inputs": NaN}', None),
    "must be an object of JSON": (b"[1]", None),
    "must be a list of at most": (b'{"inputs": {}}', None),
    "is empty": (b'{"inputs": []}', None),
    "each needs a name": (b'{"inputs": [{"name": 5}]}', None),
    "two have the same name": (b'{"inputs": [{"name": "a"}, {"name": "a"}]}', None),
    "says 9000 bytes of JSON": (b"{}", 9000),
    "says -1 bytes": (b"{}", -1),
    "datatype must be one of": (body(data=[1], shape=[1], datatype="FP8"), None),
    "shape must be a list": (body(data=[1], shape=[-1]), None),
    "shape must be a list of": (body(data=[1], shape=[True]), None),
    "shape must be a list of at most 8": (body(data=[1], shape=[1] * 9), None),
    "and not both": (body(data=[1], shape=[1], parameters={"binary_data_size": 2}), None),
    "either data or": (body(shape=[1]), None),
    "data has the shape [3]; [2] is said": (body(data=[1, 2, 3], shape=[2]), None),
    "data has the shape [2, 1]; [1, 2] is said": (body(data=[[1], [2]], shape=[1, 2]), None),
    "is ragged": (body(data=[[1, 2], [3]], shape=[3]), None),
    "must be numbers that fit": (body(data=["1"], shape=[1]), None),
    "must be numbers that fit INT16": (body(data=[1.5], shape=[1]), None),
    "must be numbers that fit FP32": (body(data=[10**400], shape=[1], datatype="FP32"), None),
    "must lie between -32768": (body(data=[40000], shape=[1]), None),
    "must lie within 65504": (body(data=[1e5], shape=[1], datatype="FP16"), None),
    "data has 1 elements": (body(data=["x"], shape=[2], datatype="BYTES"), None),
    "must be strings": (body(data=[1], shape=[1], datatype="BYTES"), None),
    "is not base64": (body(data=["é"], shape=[1], datatype="BYTES", parameters={"encoding": "base64"}), None),
    "is not UTF-8": (body(data=["\ud800"], shape=[1], datatype="BYTES"), None),
    "shared memory is not offered": (body(shape=[1], parameters={"shared_memory_region": "x"}), None),
    "id: must be a string": (b'{"id": 5, ' + body(data=[1], shape=[1])[1:], None),
    "binary_data_output: must be true or false": (b'{"parameters": {"binary_data_output": 1}, "inputs": []}', None),
    "bytes are left": (body(shape=[1], parameters={"binary_data_size": 2}), None),
    "binary_data_size is True": (body(shape=[1], parameters={"binary_data_size": True}), None),
}


@pytest.mark.parametrize("sentence", sorted(LIES))
def test_lies_are_refused_in_a_sentence(sentence: str) -> None:
    data, length = LIES[sentence]
    with pytest.raises(ConfigError) as refused:
        read_request(data, length)
    assert sentence in str(refused.value)


def with_raw(entry: dict[str, Any], raw: bytes) -> tuple[bytes, int]:
    """A request with one binary input."""
    parameters = {"binary_data_size": entry.pop("size", len(raw))}
    head = json.dumps({"inputs": [{"name": "a", "parameters": parameters, **entry}]}).encode()
    return head + raw, len(head)


@pytest.mark.parametrize(
    ("entry", "raw", "sentence"),
    [
        ({"datatype": "INT16", "shape": [3]}, b"12345", "has 5 bytes, INT16 [3] takes 6"),
        ({"datatype": "INT16", "shape": [2**40, 2**40]}, b"12", "has 2 bytes"),
        ({"datatype": "INT16", "shape": [1], "size": 2}, b"1234", "add up to 2 bytes, 4 follow"),
        ({"datatype": "INT16", "shape": [1], "size": 9}, b"12", "2 bytes are left"),
        ({"datatype": "BYTES", "shape": [1]}, b"\x09\0\0\0ab", "ends at byte 13 of 6"),
        ({"datatype": "BYTES", "shape": [1]}, b"\x01\0", "ends at byte"),
        ({"datatype": "BYTES", "shape": [2]}, b"\x01\0\0\0a", "holds 1 elements"),
        ({"datatype": "BYTES", "shape": [1]}, b"\xff\xff\xff\xff", "ends at byte"),
    ],
)
def test_lies_about_raw_tensors_are_refused(entry: dict[str, Any], raw: bytes, sentence: str) -> None:
    data, length = with_raw(entry, raw)
    with pytest.raises(ConfigError) as refused:
        read_request(data, length)
    assert sentence in str(refused.value)


@given(data=st.binary(max_size=200), length=st.none() | st.integers(-5, 300), cut=st.integers(0, 400))
def test_whatever_comes_is_read_or_refused(data: bytes, length: int | None, cut: int) -> None:
    honest, json_length = InferenceServerClient.generate_request_body(
        [triton_input("a", "INT16", np.arange(12, dtype=np.int16).reshape(3, 4), binary=True)]
    )
    for mangled, said in ((data, length), (honest[:cut] + data, json_length), (honest[:cut], length)):
        try:
            request = read_request(mangled, said)
        except ConfigError:
            continue
        for tensor in request.inputs:
            if tensor.datatype != "BYTES":
                assert tensor.numbers().size == math.prod(tensor.shape)


def test_too_many_numbers_for_json_are_refused() -> None:
    mask = np.zeros((128, 128, 128), np.uint8)
    with pytest.raises(ConfigError, match="binary_data true"):
        write_response([(OutputTensor("mask_voxels", mask), False)], model="m", version="1")
    pieces, length = write_response([(OutputTensor("mask_voxels", mask), True)], model="m", version="1")
    assert sum(map(len, pieces)) - (length or 0) == mask.size
