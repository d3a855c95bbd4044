"""What verbs do in a folder they do on object storage, too: answers, scores, packages, studies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from support.bright_runs import TURNS, register, write_run, write_spheres
from support.bright_scans import sphere_scan
from support.buckets import Buckets, buckets
from voxray.cli.app import app
from voxray.commands.consolidate import consolidate
from voxray.commands.evaluate import evaluate
from voxray.commands.evaluate_files import FileOptions, evaluate_anything
from voxray.commands.predict import AnswerOptions, predict
from voxray.commands.report import ReportOptions, report
from voxray.commands.sweep import sweep
from voxray.core.config import to_full_toml
from voxray.core.errors import ConfigError
from voxray.core.progress import SilentProgress
from voxray.core.storage import Place
from voxray.readers import write_nifti
from voxray.recipes import read_recipe
from voxray.sweeping.sweep_report import SweepOptions

QUIET = SilentProgress()


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """In a working folder of its own, which stays as it is: no folder is named after an address."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    register(monkeypatch)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    assert list((tmp_path / "here").iterdir()) == []


@pytest.fixture(scope="module")
def s3() -> Iterator[Buckets]:
    """A small S3 over HTTP."""
    with buckets() as server:
        yield server


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two scans in a folder."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for name, turn in (("a", TURNS[1]), ("b", TURNS[2])):
        write_nifti(sphere_scan(turn, angles_deg=(11.0, 4.0, 0.0))[0], folder / f"{name}.nii.gz")
    return folder


@pytest.mark.parametrize("kind", ["detection", "segmentation"])
def test_answers_on_s3_are_those_in_a_folder(s3: Buckets, tmp_path: Path, scans: Path, kind: str) -> None:
    bucket = s3.make()
    write_run(tmp_path / "run", kind)
    out = Place.of(f"s3://{bucket}/answers")
    options = AnswerOptions(device="cpu", save="preview,csv-luna16" if kind == "detection" else "preview")
    beside = predict(tmp_path / "run", [scans], tmp_path / "out", options, progress=QUIET)
    report = predict(tmp_path / "run", [scans], out.uri, options, progress=QUIET)
    assert (report.done, report.failed, report.missing) == (("a", "b"), {}, {})
    assert report.done == beside.done
    assert out.names(".") == sorted(path.name for path in (tmp_path / "out").iterdir())
    again = predict(tmp_path / "run", [scans], out.uri, options, progress=QUIET)
    assert (again.done, again.skipped) == ((), ("a", "b"))
    out.remove("a.png")
    mended = predict(tmp_path / "run", [scans], out.uri, options, progress=QUIET)
    assert (mended.done, mended.skipped) == (("a",), ("b",))
    assert out.exists("a.png")


def test_nothing_on_s3_is_written_over_that_voxray_did_not_write(s3: Buckets, tmp_path: Path, scans: Path) -> None:
    write_run(tmp_path / "run", "detection")
    out = Place.of(f"s3://{s3.make()}/answers")
    out.write("a.json", b"mine")
    with pytest.raises(ConfigError, match=rf"^{out.uri}/a.json: is there already, and is nothing that voxray wrote"):
        predict(tmp_path / "run", [scans], out.uri, AnswerOptions(device="cpu"), progress=QUIET)
    assert out.read("a.json") == b"mine"
    assert out.names(".") == ["a.json"]


def test_an_answer_is_there_as_soon_as_it_is_given(s3: Buckets, tmp_path: Path, scans: Path) -> None:
    """A job that is killed after hours has lost nothing that it said was answered."""
    write_run(tmp_path / "run", "segmentation")
    out = Place.of(f"s3://{s3.make()}/answers")
    (scans / "a.nii.gz").write_bytes(b"no scan")
    report = predict(tmp_path / "run", [scans], out.uri, AnswerOptions(device="cpu"), progress=QUIET)
    assert report.done == ("b",)
    assert "a" in report.failed
    assert out.names(".") == ["b.json", "b.nii.gz"]
    written = out.path("b")
    puts = [path for method, path in s3.asked if method == "PUT" and path.startswith(f"/{written}")]
    assert [path.rpartition("/")[2] for path in puts] == ["b.nii.gz", "b.json"], (
        "what says that it is done comes last"
    )


def test_a_score_on_s3_is_that_in_a_folder(s3: Buckets, tmp_path: Path) -> None:
    cases = ("s0", "s1", "s2")
    dataset = write_spheres(tmp_path / "data")
    run = Place.of(f"s3://{s3.make()}/run")
    write_run(run.uri, "detection", val_cases=cases)
    write_run(tmp_path / "run", "detection", val_cases=cases)
    beside = evaluate(tmp_path / "run", dataset=dataset, output=tmp_path / "out", progress=QUIET)
    report = evaluate(run.uri, dataset=dataset, progress=QUIET)
    assert report.metrics == pytest.approx(beside.metrics, nan_ok=True)
    assert report.output == f"{run.uri}/evaluation"
    names = ["evaluation.json", *(f"{case}.json" for case in cases)]
    assert run.names("evaluation") == sorted(names)
    assert evaluate(run.uri, dataset=dataset, progress=QUIET).metrics == pytest.approx(report.metrics, nan_ok=True)


def test_a_package_on_s3_answers_as_its_runs_do(
    s3: Buckets, tmp_path: Path, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = Place.of(f"s3://{s3.make()}")
    runs = [root.below(f"run{number}").uri for number in (1, 2)]
    for run in runs:
        write_run(run, "detection")
    made = consolidate(runs, root.below("model").uri, progress=QUIET)
    assert made.output == root.below("model").uri
    assert root.names("model") == ["README.md", "package.json", "weights-1.safetensors", "weights-2.safetensors"]
    with pytest.raises(ConfigError, match="model: is there already; give another folder"):
        consolidate(runs, root.below("model").uri, progress=QUIET)
    options = AnswerOptions(device="cpu", runtime="torch")
    report = predict(root.below("model").uri, [scans], root.below("answers").uri, options, progress=QUIET)
    assert (report.done, report.failed) == (("a", "b"), {})
    with pytest.raises(ConfigError, match="is the run's own folder, or one in it"):
        predict(runs[0], [scans], f"{runs[0]}/candidates", options, progress=QUIET)


def test_a_recipe_may_lie_on_s3(s3: Buckets) -> None:
    place = Place.of(f"s3://{s3.make()}")
    place.write("mine.toml", to_full_toml(read_recipe("spleen")).encode())
    assert read_recipe(f"{place.uri}/mine.toml") == read_recipe("spleen")


def test_answers_and_truth_on_s3_are_scored(s3: Buckets, tmp_path: Path) -> None:
    """A folder of answers, a folder of truth, a score to compare with, and where the score goes: all of it there."""
    dataset, root = write_spheres(tmp_path / "data"), Place.of(f"s3://{s3.make()}")
    write_run(tmp_path / "run", "segmentation")
    options = AnswerOptions(device="cpu")
    predict(tmp_path / "run", [tmp_path / "data" / "images"], root.below("answers").uri, options, progress=QUIET)
    for path in (tmp_path / "data" / "labels").iterdir():
        root.put(f"truth/{path.name}", path)
    uri = root.uri
    how = FileOptions(output=f"{uri}/score", json_file=f"{uri}/score.json", values="1=bright")
    scored = evaluate_anything(f"{uri}/answers", f"{uri}/truth", how, progress=QUIET)
    predict(tmp_path / "run", [tmp_path / "data" / "images"], tmp_path / "answers", options, progress=QUIET)
    here = FileOptions(output=tmp_path / "score", values="1=bright")
    local = evaluate_anything(str(tmp_path / "answers"), tmp_path / "data" / "labels", here, progress=QUIET)
    assert str(scored.result.metrics) == str(local.result.metrics)  # type: ignore[union-attr]
    assert scored.result.metrics["dice"] > 0.9  # type: ignore[union-attr]
    assert scored.lost == ()
    assert f"written: {uri}/score.json" in scored.ending
    assert f"answers and evaluation.json: {uri}/score" in scored.ending
    assert root.names(".") == ["score.json"]
    assert b"/tmp" not in root.read("score/evaluation.json")
    again = FileOptions(against=f"{uri}/score")
    told = evaluate_anything(f"{uri}/answers", dataset, again, progress=QUIET)
    assert len(told.tables) == 2
    assert told.lost == ()


SPACE = """
[fields]
"merge.tile_iou" = { low = 0.05, high = 0.6, grid = [0.05, 0.2, 0.4] }
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_sweep_of_a_run_on_s3_lies_in_it_and_goes_on_there(
    s3: Buckets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an MLflow server its tables are the run's, too."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    dataset, run = write_spheres(tmp_path / "data"), Place.of(f"s3://{s3.make()}/run")
    write_run(run.uri, "detection", val_cases=("s0", "s1", "s2"))
    (tmp_path / "space.toml").write_text(SPACE)
    options = SweepOptions(trials=4, same_cases=True, dataset=dataset, device="cpu")
    report = sweep([run.uri], tmp_path / "space.toml", None, options, progress=QUIET)
    assert report.output == f"{run.uri}/sweeps/space"
    names = ["best.toml", "slices.png", "study.journal", "sweep.json", "tracking.json", "trials.csv"]
    assert run.names("sweeps/space") == names
    assert json.loads(run.read("sweeps/space/sweep.json"))["output"] == report.output
    assert run.exists("mlflow.db")
    assert report.trials == 4
    begun = run.read("sweeps/space/study.journal").count(b"datetime_start")
    again = sweep([run.uri], tmp_path / "space.toml", None, options, progress=QUIET)
    assert again.trials == 4
    assert run.read("sweeps/space/study.journal").count(b"datetime_start") == begun, "nothing is tried again"
    run.write("notes/mine.txt", b"mine")
    with pytest.raises(ConfigError, match=r"notes: holds files, such as mine.txt, and is no sweep"):
        sweep([run.uri], tmp_path / "space.toml", f"{run.uri}/notes", options, progress=QUIET)
    with pytest.raises(ConfigError, match="is the run's own folder"):
        sweep([run.uri], tmp_path / "space.toml", run.uri, options, progress=QUIET)


def test_a_report_of_a_run_on_s3_lies_in_it_or_where_it_is_wanted(s3: Buckets, tmp_path: Path) -> None:
    dataset, root = write_spheres(tmp_path / "data"), Place.of(f"s3://{s3.make()}")
    run = root.below("run")
    write_run(run.uri, "detection", val_cases=("s0", "s1", "s2"))
    evaluate(run.uri, dataset=dataset, progress=QUIET)
    options = ReportOptions(dataset=dataset)
    made = report([run.uri], None, options, progress=QUIET)
    assert made.place == f"{run.uri}/report.html"
    assert made.lacking == ()
    assert run.read("report.html").startswith(b"<!DOCTYPE html>")
    elsewhere = report([f"{run.uri}/evaluation"], root.below("pages/one.html").uri, options, progress=QUIET)
    assert elsewhere.place == f"{root.uri}/pages/one.html"
    assert root.names("pages") == ["one.html"]
    assert not [text for text in elsewhere.remarks if "/tmp" in text]
    root.write("pages/mine.html", b"mine")
    with pytest.raises(ConfigError, match=rf"^{root.uri}/pages/mine.html: is there already"):
        report([run.uri], root.below("pages/mine.html").uri, options, progress=QUIET)
    with pytest.raises(ConfigError, match=r"pages: has no evaluation.json"):
        report([root.below("pages").uri], None, options, progress=QUIET)


WORDS: list[list[str]] = [
    ["ingest", "data/dataset.toml", "spleen", "-o", "ADDRESS"],
    ["train", "ADDRESS", "spleen", "-o", "run"],
    ["train", "ADDRESS.toml", "spleen", "-o", "run"],
    ["predict", "ADDRESS", "data/images", "-o", "out"],
    ["predict", "run", "data/images", "-o", "ADDRESS"],
    ["export", "ADDRESS", "-o", "model"],
    ["export", "run", "-o", "ADDRESS"],
    ["evaluate", "ADDRESS"],
    ["evaluate", "ADDRESS", "data/labels"],
    ["evaluate", "run", "ADDRESS.toml"],
    ["evaluate", "run", "data/dataset.toml", "-o", "ADDRESS"],
    ["evaluate", "run", "data/dataset.toml", "--json", "ADDRESS"],
    ["evaluate", "run", "data/dataset.toml", "--against", "ADDRESS"],
    ["sweep", "ADDRESS", "space.toml"],
    ["sweep", "run", "space.toml", "-o", "ADDRESS"],
    ["report", "ADDRESS"],
    ["crossval", "ADDRESS", "spleen", "-o", "out"],
    ["crossval", "data/dataset.toml", "lung_nodule", "-o", "ADDRESS", "--folds", "3"],
    ["consolidate", "ADDRESS", "-o", "model"],
    ["consolidate", "run", "-o", "ADDRESS"],
    ["consolidate", "run", "-o", "model", "--setting", "ADDRESS"],
    ["import-weights", "ADDRESS", "spleen", "-o", "new"],
]


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_a_bucket_that_is_not_there_is_a_sentence_in_each_verb(s3: Buckets, tmp_path: Path, words: list[str]) -> None:
    """Whatever the option: no traceback, no work before it, and neither a bucket nor a folder is made."""
    write_spheres(tmp_path / "data")
    write_run(tmp_path / "run", "detection", val_cases=("s0",), classes=("bright",))
    address = "s3://no-such-bucket/place"
    (tmp_path / "space.toml").write_text('[fields]\n"merge.score_floor" = { low = 0.02, high = 0.9 }')
    here = {name: str(tmp_path / name) for name in ("data", "run", "space.toml")}
    given = [
        word.replace("ADDRESS", address)
        if "ADDRESS" in word
        else "/".join([here.get(word.split("/")[0], word.split("/")[0]), *word.split("/")[1:]])
        for word in words[1:]
    ]
    result = CliRunner().invoke(app, [words[0], *given])
    text = result.output + result.stderr
    assert result.exit_code in (1, 2), text
    assert "fault of voxray" not in text
    assert "Traceback" not in text
    assert "s3://no-such-bucket" in text
    assert "no-such-bucket" not in s3.names()
