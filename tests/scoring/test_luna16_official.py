"""The command line by LUNA16's rules: the official figures and files, and a sentence for what is wrong."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from voxray import cli

HEADER = "seriesuid,coordX,coordY,coordZ"


def voxray(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three scans: one nodule in a, one in b with an excluded finding, none in c; and four marks."""
    truth = tmp_path / "truth"
    truth.mkdir()
    (truth / "annotations.csv").write_text(f"{HEADER},diameter_mm\na,0,0,0,10\nb,50,0,0,6\n")
    (truth / "annotations_excluded.csv").write_text(f"{HEADER},diameter_mm\nb,-50,0,0,-1\n")
    (truth / "seriesuids.csv").write_text("a\nb\nc\n")
    rows = ["a,1,0,0,0.9", "a,2,0,0,0.5", "b,-48,0,0,0.8", "c,0,0,0,0.7"]
    (tmp_path / "marks.csv").write_text("\n".join([f"{HEADER},probability", *rows]) + "\n")
    return tmp_path


def test_a_score_by_hand(folder: Path) -> None:
    done = voxray(
        "evaluate", folder / "marks.csv", folder / "truth", "--rules", "luna16", "--json", folder / "o.json"
    )
    assert done.exit_code == 0, done.output
    assert "CPM" in done.output
    found = json.loads((folder / "o.json").read_text())
    assert found["cpm"] == 0.5
    assert found["counts"] == {
        "True positives": 1,
        "False positives": 1,
        "False negatives": 1,
        "True negatives": 0,
        "Total number of candidates": 4,
        "Total number of nodules": 2,
        "Ignored candidates on excluded nodules": 1,
        "Ignored candidates which were double detections on a nodule": 1,
        "Sensitivity": 0.5,
        "Average number of candidates per scan": pytest.approx(4 / 3),
    }
    low, high = found["cpm_interval"]
    assert low <= 0.5 <= high
    again = voxray("evaluate", folder / "marks.csv", folder / "truth", "--json", folder / "again.json")
    assert again.exit_code == 0
    assert json.loads((folder / "again.json").read_text()) == found


@pytest.mark.data
@pytest.mark.parametrize("name", ["tiny12", "subset0"])
def test_the_official_files_come_back(shared_data: Path, tmp_path: Path, name: str) -> None:
    official = shared_data / "froc_luna16" / name
    shutil.copy(official / "submission.csv.gz", tmp_path / f"{name}.csv.gz")
    done = voxray(
        "evaluate", tmp_path / f"{name}.csv.gz", official, "--rules", "luna16", "--json", tmp_path / "o.json",
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found, expected = (json.loads(path.read_text()) for path in (tmp_path / "o.json", official / "expected.json"))
    assert round(found["cpm"], 6) == expected["cpm"]
    assert [round(value, 6) for value in found["sensitivity"]] == expected["sensitivity"]
    assert {key: round(value, 9) for key, value in found["counts"].items()} == expected["counts"]
    assert (found["scans"], found["fp_per_scan"]) == (expected["scans"], expected["fp_per_scan"])
    out = tmp_path / "out"
    assert (out / "CADAnalysis.txt").read_bytes() == (official / "CADAnalysis.txt").read_bytes()
    curve = gzip.decompress((official / "froc_curve.txt.gz").read_bytes()).decode()
    assert (out / f"froc_{name}.txt").read_text() == curve
    samples = (out / f"froc_gt_prob_vectors_{name}.csv").read_text().splitlines()
    counts = expected["counts"]
    assert len(samples) == counts["Total number of nodules"] + counts["False positives"]
    assert len((out / f"froc_{name}_bootstrapping.csv").read_text().splitlines()) == 10_001
    missed = (out / f"nodulesWithoutCandidate_{name}.txt").read_text().splitlines()
    assert len(missed) == 1 + counts["False negatives"]


@pytest.mark.data
def test_the_whole_annotations_serve_a_subset(shared_data: Path, tmp_path: Path) -> None:
    """LUNA16's own files of all 888 scans, one of them packed, with the series of one subset."""
    source, truth = shared_data / "froc_luna16", tmp_path / "truth"
    truth.mkdir()
    for name in ("annotations.csv", "annotations_excluded.csv.gz"):
        shutil.copy(source / name, truth / name)
    shutil.copy(source / "tiny12" / "seriesuids.csv", truth / "seriesuids.csv")
    marks = source / "subset0" / "submission.csv.gz"
    refused = voxray("evaluate", marks, truth)
    done = refused if refused.exit_code else voxray("evaluate", marks, truth, "--json", tmp_path / "o.json")
    names = set((truth / "seriesuids.csv").read_text().split())
    lines = gzip.decompress(marks.read_bytes()).decode().splitlines()[1:]
    known = [line for line in lines if line.split(",")[0] in names]
    if known:
        assert f"{len(lines) - len(known)} marks of" in done.output
    else:
        assert "none of the marks'" in done.stderr


def test_what_the_rules_pass_over_is_said(folder: Path) -> None:
    with (folder / "marks.csv").open("a") as stream:
        stream.writelines(f"a,{200 + index},0,0,0.{index + 100}\n" for index in range(120))
        stream.write("z,0,0,0,0.9\n")
    (folder / "truth" / "seriesuids.csv").write_text("a\nb\nc\nd\n")
    done = voxray("evaluate", folder / "marks.csv", folder / "truth")
    assert done.exit_code == 0, done.output
    assert "1 marks of 1 series that do not count are left out: z" in done.output
    assert "1 scans have no mark and count as they are: d" in done.output
    assert "1 scans have more than 100 marks, of which the best count: a" in done.output


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("marks.csv", "", "marks.csv: is empty"),
        ("marks.csv", f"{HEADER}\na,1,2,3\n", "has no column probability"),
        ("marks.csv", f"{HEADER},probability\nz,1,2,3,0.5\n", "none of the marks' 1 series (z) is one of the 3"),
        ("marks.csv", f"{HEADER},probability\na,inf,2,3,0.5\n", "line 2: coordX must be a finite number"),
        ("truth/annotations.csv", f"{HEADER}\na,0,0,0\n", "annotations.csv: has no column diameter_mm"),
        ("truth/annotations.csv", f"{HEADER},diameter_mm\na,0,nan,0,5\n", "line 2: must be a finite number"),
        ("truth/annotations.csv", f"{HEADER},diameter_mm\na,0,0,0,5\na,0,0,0,5\n", "has the same nodule twice"),
        ("truth/seriesuids.csv", "a\na\n", "names series a twice"),
        ("truth/seriesuids.csv", "", "seriesuids.csv: is empty"),
    ],
)
def test_what_is_wrong_is_one_sentence(folder: Path, file: str, text: str, sentence: str) -> None:
    (folder / file).write_text(text)
    done = voxray("evaluate", folder / "marks.csv", folder / "truth", "--rules", "luna16")
    assert done.exit_code == 1, done.output
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_which_rules_judge_what(folder: Path) -> None:
    (folder / "truth" / "seriesuids.csv").unlink()
    for arguments, code, sentence in (
        ((folder / "marks.csv", folder / "truth"), 1, "has no seriesuids.csv"),
        ((folder / "marks.csv", folder / "marks.csv"), 2, "is no truth for LUNA16's rules"),
        ((folder / "marks.csv", folder / "truth", "--cases", "answered"), 1, "has no seriesuids.csv"),
        ((folder / "marks.csv", folder / "truth", "--against", "x"), 2, "LUNA16's rules have bands instead"),
        ((folder / "marks.csv",), 2, "say what to score them against"),
        ((folder / "marks.csv", folder / "truth", "--rules", "iou"), 2, "only the rules luna16 judge them"),
        ((folder / "marks.csv", folder / "truth", "--rules", "isbi"), 2, "--rules isbi: must be iou or luna16"),
        ((folder / "marks.csv", folder / "truth", "--dataset", "a.toml"), 2, "give one of them"),
    ):
        done = voxray("evaluate", *arguments)
        assert done.exit_code == code, (arguments, done.output, done.stderr)
        assert sentence in done.stderr
