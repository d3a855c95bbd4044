from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from voxray.core.errors import DataError
from voxray.scoring.foreign import read_marks, read_series
from voxray.scoring.foreign.checks import read_text

HEADER = "seriesuid,coordX,coordY,coordZ,probability"


def test_columns_come_in_any_order() -> None:
    table = read_marks("probability,coordZ,coordY,coordX,seriesuid\n0.5,3,2,1,a\n0.25,6,5,4,b\n", where="x.csv")
    assert table.case_ids == ("a", "b")
    assert table.centres_mm.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert table.scores.tolist() == [0.5, 0.25]


def test_a_header_alone_marks_nothing() -> None:
    table = read_marks(HEADER + "\n", where="x.csv")
    assert (len(table.case_ids), table.centres_mm.shape) == (0, (0, 3))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seriesuid,coordX,coordY,coordZ\na,1,2,3\n", r"x\.csv: has no column probability; found seriesuid, coordX"),
        (f"{HEADER}\na,1,nan,3,0.5\n", r"x\.csv line 2: coordY must be a finite number, got 'nan'"),
        (f"{HEADER}\na,1,2,3,high\n", r"line 2: probability must be a finite number, got 'high'"),
        (f"{HEADER}\na,1,2,3,0.5\na,1,2,3,0.5\n", r"line 3: the same mark as in line 2, of series a"),
        (f"{HEADER}\na,1,2,3\n", r"line 2: must have 5 fields"),
        (f"{HEADER}\n,1,2,3,0.5\n", r"line 2: names no series"),
    ],
)
def test_what_cannot_be_used_is_said_with_its_line(text: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read_marks(text, where="x.csv")


def test_series() -> None:
    assert read_series("a\n\nb\n", where="s") == ("a", "b")
    assert read_series("seriesuid\na\n", where="s") == ("a",)
    with pytest.raises(DataError, match="names series a twice"):
        read_series("a\nb\na\n", where="s")
    with pytest.raises(DataError, match="names no series"):
        read_series("seriesuid\n", where="s")


def test_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"text"))
    assert read_text(tmp_path / "a.csv.gz") == "text"
    (tmp_path / "b.csv").write_text(" \n")
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(b"text" * 99)[:20])
    for name, sentence in (("b.csv", "is empty"), ("c.csv.gz", "cannot be read"), ("d.csv", "no such file")):
        with pytest.raises(DataError, match=sentence):
            read_text(tmp_path / name)
