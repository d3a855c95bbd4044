"""Configuration files as editors write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from voxray.core.config import read_mapping
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
