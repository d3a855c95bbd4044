"""The command line: quick help, and for whatever is wrong one sentence, an exit code and no traceback."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from support.bright_runs import register, write_run, write_spheres
from support.bright_scans import sphere_scan
from support.dicom_series import write_volume
from voxray import cli
from voxray.cli import terminal
from voxray.core.errors import ConfigError, DataError, ResourceError
from voxray.readers import read_label_map, write_nifti

VERBS = tuple(str(command.name) for command in cli.app.registered_commands)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def voxray(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def refused(result: Result, code: int, *parts: str) -> str:
    """The sentence of a refusal; each part must stand in it."""
    assert result.exit_code == code, (result.exit_code, result.output, result.stderr)
    sentence = result.stderr.strip()
    for part in parts:
        assert part in sentence, sentence
    assert "Traceback" not in result.output
    return sentence


@pytest.fixture
def spheres(tmp_path: Path) -> Path:
    """A dataset of three small scans; its file."""
    return write_spheres(tmp_path / "data")


def test_help_is_quick_and_names_every_verb() -> None:
    done = subprocess.run([sys.executable, "-m", "voxray", "--help"], capture_output=True, text=True, check=True)
    assert {"ingest", "train", "predict", "evaluate", "serve"} < set(VERBS)
    for verb in VERBS:
        assert re.search(rf"^│ {verb} ", done.stdout, re.MULTILINE), verb
    # What makes it quick: nothing heavy is imported before a verb runs.
    heavy = (
        "import sys, voxray.cli; print([m for m in ('torch', 'ray', 'monai', 'mlflow', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    result = voxray(verb, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_info_as_table_and_as_json(tmp_path: Path) -> None:
    scan, _ = sphere_scan(np.eye(3), angles_deg=(0, 0, 0))
    write_nifti(scan, tmp_path / "a.nii.gz")
    table = voxray("info", tmp_path / "a.nii.gz")
    assert table.exit_code == 0
    assert "64, 58, 26" in table.output
    found = json.loads(voxray("info", tmp_path / "a.nii.gz", "--json", "--pixels").output)
    assert found["range_hu"] == [-1000, 1000]
    assert found["spacing_mm"] == pytest.approx([0.9, 0.8, 2.1])


def test_a_recipe_is_printed_as_toml_that_reads_back(tmp_path: Path) -> None:
    printed = voxray("recipe", "spleen", "--set", "optim.rate=0.5")
    assert tomllib.loads(printed.output)["optim"]["rate"] == 0.5
    (tmp_path / "mine.toml").write_text(printed.output)
    assert voxray("recipe", tmp_path / "mine.toml").output == printed.output


def test_predict_and_evaluate_from_the_command_line(
    tmp_path: Path, spheres: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch)
    write_run(tmp_path / "run", "detection", val_cases=("s0", "s2"), dataset_file=str(spheres))
    first = voxray("predict", tmp_path / "run", spheres.parent / "images", "-o", tmp_path / "out", "--device", "cpu")
    assert first.exit_code == 0, first.stderr
    assert "3 answered, 0 answered before, 0 failed" in first.output
    again = voxray("predict", tmp_path / "run", spheres.parent / "images", "-o", tmp_path / "out", "--device", "cpu")
    assert "0 answered, 3 answered before" in again.output
    scored = voxray("evaluate", tmp_path / "run")
    assert scored.exit_code == 0, scored.stderr
    assert "bright on 2 cases (val) of spheres" in scored.output
    assert re.search(r"│ mAP +│ 1\.000 │ 1\.000 to 1\.000 │", scored.output)
    assert (tmp_path / "run" / "evaluation" / "evaluation.json").exists()
    reported = voxray("report", tmp_path / "run", "-o", tmp_path / "report.html")
    assert reported.exit_code == 0, reported.stderr
    assert reported.output.splitlines()[-1] == str(tmp_path / "report.html")
    assert "<h1>bright on spheres</h1>" in (tmp_path / "report.html").read_text()


def test_a_bad_scan_among_good_ones_ends_with_one(
    tmp_path: Path, spheres: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch)
    write_run(tmp_path / "run", "detection")
    (spheres.parent / "images" / "s1.nii.gz").write_bytes(b"")
    result = voxray("predict", tmp_path / "run", spheres.parent / "images", "-o", tmp_path / "out", "--device", "cpu")
    refused(result, 1, "s1: [nifti.empty]")
    assert "2 answered, 0 answered before, 1 failed" in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["recipe", "splen"], 2, ["no such recipe", "did you mean 'spleen'"]),
        (["recipe", "nowhere.toml"], 2, ["nowhere.toml: no such file"]),
        (["recipe", "spleen", "--set", "optim.rte=1"], 2, ["optim.rte: no such field; did you mean 'rate'"]),
        (["recipe", "spleen", "--set", "optim.rate=-1"], 2, ["optim.rate", "greater than 0", "-1"]),
        (["recipe", "spleen", "--set", "rate"], 2, ["--set rate: must have the form field.subfield=value"]),
        (["info", "nothing.nii.gz"], 1, ["[path.missing] nothing.nii.gz"]),
        (["info", "."], 1, ["holds no DICOM"]),
        (["check", "nothing.toml"], 2, ["nothing.toml: no such file"]),
        (["train", "nothing", "spleen", "-o", "r"], None, ["nothing"]),
        (["train", "nothing", "spleen", "-o", "r", "--fold", "first"], 2, ["--fold first: must be a number"]),
        (["train", "nothing", "splen", "-o", "r"], 2, ["no such recipe"]),
        (["predict", "norun", ".", "-o", "out"], 2, ["holds no scan"]),
        (["predict", "norun", "scan.nii.gz", "-o", "out"], 2, ["scan.nii.gz: no such file"]),
        (["evaluate", "norun"], 2, ["norun: no such file or folder"]),
        (["report", "norun"], 2, ["norun: no such file or folder", "evaluation.json"]),
        (["import-weights", "model.pt", "spleen", "-o", "r"], 2, ["model.pt: no such file"]),
        (["import-weights", "model.pt", "my.toml", "-o", "r"], 2, ["has no published weights"]),
        (["toy", "t", "--kind", "cube"], 2, ["must be one of", "'cube'"]),
        (["toy", "t", "--cases", "1"], 2, ["2 to 1000 cases, got 1"]),
    ],
)
def test_what_is_wrong_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int | None, parts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = voxray(*arguments)
    assert result.exit_code in ({1, 2} if code is None else {code})
    sentence = refused(result, result.exit_code, *parts)
    assert sentence.startswith("voxray: ")
    assert "\n" not in sentence


def test_a_dataset_with_a_wrong_key_a_wrong_fold_or_no_scans(tmp_path: Path, spheres: Path) -> None:
    text = spheres.read_text()
    spheres.write_text(text.replace("licence", "license"))
    refused(voxray("check", spheres), 2, "license: no such field; did you mean 'licence'")
    spheres.write_text(text)
    arguments = ["train", spheres, "spleen", "-o", tmp_path / "run", "--workers", 0]
    refused(voxray(*arguments, "--fold", 7), 2, "fold 7", "0 to 2")
    for image in (spheres.parent / "images").iterdir():
        image.unlink()
    refused(voxray("ingest", spheres, "spleen", "-o", tmp_path / "store"), 1, "[dataset.no_images]")


def test_missing_arguments_are_named() -> None:
    result = voxray("predict")
    assert result.exit_code == 2
    assert "Missing argument" in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("this is not allowed."), 2, "this is not allowed."),
        (ResourceError("no room."), 1, "no room."),
        (DataError("x.y", "is broken.", remedy="Mend it.", case_id="c"), 1, "case c: [x.y] is broken. Mend it."),
        (KeyError("spam"), 3, "a fault of voxray: KeyError: 'spam'"),
    ],
)
def test_kinds_of_errors_have_their_codes(
    error: Exception, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert terminal.explain(error) == code
    assert text in capsys.readouterr().err


def test_the_cause_is_told_not_its_wrapping(capsys: pytest.CaptureFixture[str]) -> None:
    class WrappedError(ConfigError):
        """What Ray makes of a worker's error: of its class, with a traceback for a text."""

        cause = ConfigError("the real sentence.")

    outer = RuntimeError("the job failed")
    outer.__cause__ = WrappedError("a long trace")
    assert terminal.explain(outer) == 2
    assert capsys.readouterr().err == "voxray: the real sentence.\n"


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "voxray", "info", "nothing"]
    plain = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (plain.returncode, plain.stderr.count("\n")) == (1, 1)
    traced = subprocess.run([*command, "--debug"], capture_output=True, text=True, cwd=tmp_path)
    assert traced.returncode != 0
    assert "Traceback" in traced.stderr


def test_ctrl_c_ends_with_130_and_how_to_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "voxray", "toy", str(tmp_path / "toy"), "--cases", "900"]
    # A shell starts what runs in its background with Ctrl-C ignored, and that is inherited.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    wait_until((tmp_path / "toy" / "images").exists, 200)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 130
    assert "stopped. Run the same command again" in told
    assert "Traceback" not in told


def wait_until(condition: object, timeout_s: float) -> None:
    """Waits for a function to say yes."""
    assert callable(condition)
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_doctor_says_what_is_there() -> None:
    result = voxray("doctor")
    assert result.exit_code in (0, 1)
    for name in ("python", "torch", "ray", "cores", "memory", "free disk", "gpu"):
        assert name in result.output


def test_doctor_is_json_for_programs_and_wants_a_cluster_for_what_is_a_clusters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = {one["name"]: one for one in json.loads(voxray("doctor", "--json").stdout)}
    assert found["ray"]["found"][0].isdigit()
    for words, sentence in (
        (("--cluster",), "doctor --cluster: RAY_ADDRESS is not set"),
        (("--storage", "s3://bucket"), "--storage: is looked at from every node; say --cluster, too."),
    ):
        refused = voxray("doctor", *words)
        assert refused.exit_code == 2
        assert sentence in refused.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's use of SQLAlchemy
def test_a_sweep_prints_both_figures_and_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    dataset = write_spheres(tmp_path / "data", count=4)
    cases = ("s0", "s1", "s2", "s3")
    write_run(tmp_path / "run", "segmentation", threshold=0.7, dataset_file=str(dataset), val_cases=cases)
    space = tmp_path / "space.toml"
    space.write_text('[fields]\n"merge.threshold" = { low = 0.02, high = 0.9 }\n')
    done = voxray("sweep", tmp_path / "run", space, "--trials", 20, "--device", "cpu")
    assert done.exit_code == 0, done.output + done.stderr
    assert "tuned on these cases" in done.output
    assert "unseen cases" in done.output
    assert "--set merge.threshold=" in done.output
    space.write_text('[fields]\n"merge.treshold" = { low = 0.02, high = 0.9 }\n')
    sentence = "space.toml: merge.treshold: no such field; did you mean 'threshold'?"
    refused(voxray("sweep", tmp_path / "run", space), 2, sentence)


def test_info_reads_the_series_that_is_named(tmp_path: Path) -> None:
    scan, _ = sphere_scan(np.eye(3), angles_deg=(0, 0, 0))
    write_volume(tmp_path / "series", scan, SeriesInstanceUID="1.2.3.30")
    found = json.loads(voxray("info", tmp_path / "series", "--series", "1.2.3.30", "--json").output)
    assert found["series_uid"] == "1.2.3.30"
    refused = voxray("info", tmp_path / "series", "--series", "1.2.3.31")
    assert refused.exit_code == 1
    assert "holds no CT series 1.2.3.31; it holds 1.2.3.30 (26 files" in " ".join(refused.output.split())


def test_what_cannot_be_judged_ends_with_1_and_without_a_table(tmp_path: Path) -> None:
    dataset = write_spheres(tmp_path / "data", 2)
    labels, answers = dataset.parent / "labels", tmp_path / "answers"
    answers.mkdir()
    for name in ("s0.nii.gz", "s1.nii.gz"):
        volume = read_label_map(labels / name)
        x, y, z = volume.grid.origin_mm
        write_nifti(replace(volume, grid=replace(volume.grid, origin_mm=(x, y, z + 5.0))), answers / name)
    result = voxray("evaluate", answers, dataset, "--json", tmp_path / "out.json")
    refused(result, 1, "s0: ", "s1: ", "corners are up to 5 mm apart")
    assert "answers on 0 of 2 cases" in result.stdout
    assert "dice" not in result.stdout
    told = json.loads((tmp_path / "out.json").read_text())
    assert (told["metrics"], told["cases"], sorted(told["not_judged"])) == ({}, {}, ["s0", "s1"])
    (answers / "s0.nii.gz").write_bytes((labels / "s0.nii.gz").read_bytes())
    result = voxray("evaluate", answers, dataset)
    refused(result, 1, "s1: ")
    assert "answers on 1 of 2 cases" in result.stdout
    assert re.search(r"dice +\S+ 1\.000", result.stdout)
