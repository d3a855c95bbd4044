"""The reply of two parts, as the standard library and the plugins take it apart."""

from __future__ import annotations

import email
import email.policy
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from voxray.serving.http.replies import wrapping

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@given(params=st.dictionaries(st.text(), JSON), data=st.binary(max_size=400))
def test_both_parts_come_out_as_they_went_in(params: dict[str, Any], data: bytes) -> None:
    head, tail, boundary = wrapping(params, name="label.nrrd", content_type="application/octet-stream")
    kind = f'Content-Type: multipart/form-data; boundary="{boundary}"\r\n\r\n'.encode()
    message = email.message_from_bytes(kind + head + data + tail, policy=email.policy.HTTP)
    told, file = message.iter_parts()
    assert told.get_content_type() == "application/json"
    assert json.loads(told.get_payload(decode=True)) == params  # type: ignore[arg-type]
    assert told.get_filename() is None
    assert file.get_filename() == "label.nrrd"
    assert file.get_content_type() == "application/octet-stream"
    start = len(head)
    assert (head + data + tail)[start : start + len(data)] == data
    assert (head + data + tail).count(f"--{boundary}".encode()) == 3
