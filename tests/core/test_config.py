"""Configuration files as editors write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from voxray.core.config import get_field, read_mapping, set_fields
from voxray.core.errors import ConfigError


@pytest.mark.parametrize(("name", "text"), [("a.toml", "rate = 0.1\r\n"), ("a.json", '{"rate": 0.1}')])
def test_a_mark_at_the_start_is_no_part_of_the_file(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_mapping(path) == {"rate": 0.1}


@pytest.mark.parametrize("name", ["a.toml", "a.json"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_are_refused_in_one_sentence(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / name).write_bytes("rate = 0.1".encode(encoding))
    with pytest.raises(ConfigError, match=rf"{name}: cannot be read \(.*save it as UTF-8\)") as raised:
        read_mapping(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_a_dotted_field_is_set_in_a_copy_and_read_again() -> None:
    data = {"merge": {"iou": 0.2, "kind": "a"}}
    assert set_fields(data, {"merge.iou": 0.3, "optim.rate": 1}, where="x") == {
        "merge": {"iou": 0.3, "kind": "a"},
        "optim": {"rate": 1},
    }
    assert data == {"merge": {"iou": 0.2, "kind": "a"}}
    assert [get_field(data, field) for field in ("merge.iou", "merge.iou.x", "optim.rate")] == [0.2, None, None]
    with pytest.raises(ConfigError, match=r"x: merge.iou.x: 'iou' is a value, not a group of fields\."):
        set_fields(data, {"merge.iou.x": 1}, where="x")
