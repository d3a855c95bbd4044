"""Text that people wrote: marks at its start, other encodings, and names whose accents are encoded in two ways."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from voxray.core.errors import DataError
from voxray.core.text import TextError, on_disk, read_text, same, spellings, text_in

NFC, NFD = (unicodedata.normalize(form, "Müller_é") for form in ("NFC", "NFD"))


def test_a_mark_and_ends_of_lines_are_no_text() -> None:
    assert text_in(b"\xef\xbb\xbfa = 1\r\nb = 2\rc\n") == "a = 1\nb = 2\nc\n"
    assert text_in("a\ufeffb".encode()) == "a\ufeffb"
    assert text_in(b"") == ""


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("a = 1".encode("utf-16"), "it is UTF-16 text; save it as UTF-8"),
        (b"\xfe\xff" + "a = 1".encode("utf-16-be"), "it is UTF-16 text"),
        ("a = 1".encode("utf-32"), "it is UTF-32 text"),
        ("a = 1".encode("utf-16-le"), "it holds zero bytes, as UTF-16 text without a mark does"),
        ("a\nb = 'ü'".encode("latin-1"), "line 2 holds the byte 0xfc, which is no UTF-8; save it as UTF-8"),
    ],
)
def test_other_encodings_are_named(data: bytes, said: str) -> None:
    with pytest.raises(TextError, match=said):
        text_in(data)


def test_names_are_compared_whatever_their_normal_form() -> None:
    assert NFC != NFD
    assert same(NFC) == same(NFD) == NFC
    assert set(spellings(NFD)) == {NFC, NFD}
    assert spellings("plain") == ("plain",)


@pytest.mark.parametrize(("there", "asked"), [(NFC, NFD), (NFD, NFC)])
def test_a_path_is_found_in_the_other_form_in_each_of_its_parts(tmp_path: Path, there: str, asked: str) -> None:
    file = tmp_path / there / "plain" / f"{there}.txt"
    file.parent.mkdir(parents=True)
    file.write_text("here", encoding="utf-8")
    given = tmp_path / asked / "plain" / f"{asked}.txt"
    assert on_disk(given) == file
    assert on_disk(file) == file
    assert read_text(given) == "here"
    absent = given.with_name(f"{asked}.csv")
    assert on_disk(absent) == absent


def test_the_same_spelling_comes_first_and_several_others_are_refused(tmp_path: Path) -> None:
    for name in (NFC, NFD):
        (tmp_path / name).write_text(name, encoding="utf-8")
    for name in (NFC, NFD):
        assert read_text(tmp_path / name) == name
    mixed = unicodedata.normalize("NFC", "Müller_") + unicodedata.normalize("NFD", "é")
    with pytest.raises(DataError, match="2 names in its folder differ from it in nothing but how accents") as raised:
        on_disk(tmp_path / mixed)
    assert raised.value.code == "path.ambiguous"
