"""The report of runs and of answers in files, with and without their scans; in MLflow too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from support.bright_runs import register, write_run, write_spheres
from support.evaluations import read_page
from voxray.cli import app
from voxray.commands.evaluate import evaluate
from voxray.commands.evaluate_files import FileOptions, evaluate_anything
from voxray.commands.predict import AnswerOptions, predict
from voxray.commands.report import ReportOptions, find_evaluation, report
from voxray.commands.report_scans import ScoredScans, find_scored_scans, read_scored_scans
from voxray.core.errors import ConfigError
from voxray.core.progress import SilentProgress
from voxray.core.volume import Volume
from voxray.distributed.mlflow_run import open_tracking
from voxray.metrics.record import compare
from voxray.readers import read_label_map, read_volume, write_nifti
from voxray.training.checkpoint import read_run

CASES = ("s0", "s1", "s2")
QUIET = SilentProgress()

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's use of SQLAlchemy


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    register(monkeypatch)


@pytest.fixture
def spheres(tmp_path: Path) -> Path:
    """A dataset of three scans; its file."""
    return write_spheres(tmp_path / "data")


def evaluated(folder: Path, dataset: Path, task: str = "detection", **fields: Any) -> Path:
    """A run that found something in three scans, and was scored on them."""
    write_run(folder, task, val_cases=CASES, dataset_file=str(dataset), **fields)
    evaluate(folder, progress=QUIET)
    return folder


def test_a_run_is_reported_with_pictures_of_its_findings(tmp_path: Path, spheres: Path) -> None:
    run = evaluated(tmp_path / "run", spheres)
    made = report([str(run)], progress=QUIET)
    assert made == type(made)(run / "report.html", str(run / "report.html"), (), ())
    page = read_page(made.path.read_text())
    assert "Hits with the highest scores" in page.headings
    pictures = [alt for alt in page.images if alt.startswith("Hit in three planes of 60 mm")]
    assert len(pictures) == 3
    finding = json.loads((run / "evaluation" / "s0.json").read_text())["findings"][0]
    assert f"s0: bright, {finding['diameter_mm']:.1f} mm, score {finding['score']:.2f}" in page.text
    assert page.row("mAP")[1] == "1.000"
    assert "optim" in page.text
    assert "3 of 3 patients" in page.text


def test_missed_and_false_findings_are_shown(tmp_path: Path, spheres: Path) -> None:
    run = evaluated(tmp_path / "run", spheres)
    answer = run / "evaluation" / "s1.json"
    data = json.loads(answer.read_text())
    for finding in data["findings"]:
        finding["box_vox"] = [side + 25 for side in finding["box_vox"]]
    answer.write_text(json.dumps(data))
    evaluate(run, progress=QUIET)
    page = read_page(report([str(run)], progress=QUIET).path.read_text())
    assert {"False findings with the highest scores", "The largest objects that were missed"} < set(page.headings)
    assert sum(alt.startswith("Missed object in three planes") for alt in page.images) == 1
    assert sum(alt.startswith("False finding in three planes") for alt in page.images) >= 1


def test_a_segmentation_shows_its_worst_and_best_cases(tmp_path: Path, spheres: Path) -> None:
    run = evaluated(tmp_path / "run", spheres, "segmentation")
    made = report([str(run)], tmp_path / "page.html", progress=QUIET)
    assert made.path == tmp_path / "page.html"
    page = read_page(made.path.read_text())
    assert {"The worst cases", "The best cases"} < set(page.headings)
    assert sum(alt.startswith("Three planes with what was found") for alt in page.images) == 3
    assert "only truth is drawn" not in page.text
    for file in (run / "evaluation").glob("s*.json"):
        file.unlink()
    page = read_page(report([str(run)], tmp_path / "page.html", progress=QUIET).path.read_text())
    assert "its answer is not beside the score, only truth is drawn" in page.text
    assert "it has no answer" not in page.text


def test_size_and_intensity_are_those_of_the_scans(tmp_path: Path, spheres: Path) -> None:
    run = evaluated(tmp_path / "run", spheres)
    given = find_evaluation(str(run))
    found = find_scored_scans(given.evaluation, read_run(run, "checkpoints/epoch_0000/run.json"), None, None)
    assert isinstance(found, ScoredScans)
    scans, lacking, _ = read_scored_scans(given.evaluation, found, given.answers, workers=1, progress=QUIET)
    assert lacking == ()
    boxes = (spheres.parent / "boxes.csv").read_text().splitlines()
    for case in CASES:
        np.testing.assert_allclose(scans.sizes_mm[case], [19.0], rtol=1e-3)
        row = next(line.split(",") for line in boxes if line.startswith(case))
        image = read_volume(spheres.parent / "images" / f"{case}.nii.gz")
        index = np.indices(image.grid.shape).reshape(3, -1).T
        away_mm = np.linalg.norm(image.grid.to_world(index + 0.5) - np.array(row[2:5], float), axis=1)
        assert scans.objects_hu[case][0] == pytest.approx(image.voxels.ravel()[away_mm <= 9.5].mean(), abs=1)


def test_intensity_of_structures(tmp_path: Path, spheres: Path) -> None:
    run = evaluated(tmp_path / "run", spheres, "segmentation")
    given = find_evaluation(str(run))
    found = find_scored_scans(given.evaluation, None, spheres, None)
    assert isinstance(found, ScoredScans)
    scans, _, _ = read_scored_scans(given.evaluation, found, given.answers, workers=1, progress=QUIET)
    image = read_volume(spheres.parent / "images" / "s1.nii.gz").voxels
    assert scans.structures_hu["s1"]["bright"] == pytest.approx(image[image > 0].mean())


def test_a_scan_that_cannot_be_read_is_listed(tmp_path: Path, spheres: Path) -> None:
    run = evaluated(tmp_path / "run", spheres)
    image = spheres.parent / "images" / "s2.nii.gz"
    image.write_bytes(image.read_bytes()[:2000])
    made = report([str(run)], progress=QUIET)
    assert len(made.lacking) == 2, "its size, and its picture"
    assert all("s2" in text and "[nifti.truncated]" in text for text in made.lacking)
    told = CliRunner().invoke(app, ["report", str(run), "-o", str(tmp_path / "told.html")])
    assert told.exit_code == 1
    assert "told.html: 2 scans or pictures missing" in told.stdout
    assert "[nifti.truncated]" in told.stderr
    page = read_page(made.path.read_text())
    assert sum(alt.startswith("Hit in three planes") for alt in page.images) == 2
    assert page.text.count("[nifti.truncated]") >= 1


def test_a_dataset_that_is_gone_leaves_a_report_without_pictures(tmp_path: Path, spheres: Path) -> None:
    run = evaluated(tmp_path / "run", spheres)
    moved = spheres.parent.rename(tmp_path / "moved")
    made = report([str(run)], progress=QUIET)
    assert "The scans are not in reach" in made.remarks[0]
    page = read_page(made.path.read_text())
    assert "Pictures" not in page.headings
    assert "give one with --dataset FILE" in page.text
    there = report([str(run)], options=ReportOptions(dataset=moved / "dataset.toml"), progress=QUIET)
    assert there.remarks == ()
    assert "Pictures" in read_page(there.path.read_text()).headings
    unread = report([str(run)], options=ReportOptions(dataset=moved / "dataset.toml", scans=False), progress=QUIET)
    assert "as asked" in unread.remarks[0]


def test_a_given_dataset_must_be_the_one_that_was_scored(tmp_path: Path, spheres: Path) -> None:
    run = evaluated(tmp_path / "run", spheres)
    spheres.write_text(spheres.read_text().replace('name = "spheres"', 'name = "others"'))
    with pytest.raises(ConfigError, match=r"is others with bright; bright was scored on spheres with bright"):
        report([str(run)], options=ReportOptions(dataset=spheres), progress=QUIET)
    assert "is others with bright" in report([str(run)], progress=QUIET).remarks[0]


def test_answers_in_files_are_reported_without_a_training(tmp_path: Path, spheres: Path) -> None:
    run = evaluated(tmp_path / "run", spheres)
    options = FileOptions(output=tmp_path / "score")
    evaluate_anything(str(run / "evaluation"), spheres, options, progress=QUIET)
    made = report([str(tmp_path / "score")], options=ReportOptions(dataset=spheres), progress=QUIET)
    assert made.path == tmp_path / "score" / "report.html"
    assert made.remarks == ("evaluation: Its training is not known: no curves of the training, and no recipe.",)
    headings = read_page(made.path.read_text()).headings
    assert "Pictures" in headings
    assert "Recipe" not in headings


def test_two_runs_side_by_side_with_their_difference(tmp_path: Path, spheres: Path) -> None:
    first = evaluated(tmp_path / "first", spheres, name="first")
    second = evaluated(tmp_path / "second", spheres, name="second")
    made = report([str(first), str(second)], tmp_path / "both.html", progress=QUIET)
    page = read_page(made.path.read_text())
    assert page.row("metric") == ["metric", "first", "second"]
    assert ["mAP", "+0.000", "+0.000 to +0.000", "0.500", "no"] in page.rows
    assert {"first: hits with the highest scores", "second: hits with the highest scores"} < set(page.headings)


def test_runs_on_other_cases_are_shown_with_why_they_are_not_compared(tmp_path: Path, spheres: Path) -> None:
    first = evaluated(tmp_path / "first", spheres, name="first")
    write_run(tmp_path / "second", "detection", val_cases=CASES[:2], dataset_file=str(spheres), name="second")
    evaluate(tmp_path / "second", progress=QUIET)
    page = read_page(report([str(first), str(tmp_path / "second")], tmp_path, progress=QUIET).path.read_text())
    assert "first and second cannot be compared: only one of them scored s2" in page.text


def test_mlflow_has_the_report_as_an_artifact(tmp_path: Path, spheres: Path) -> None:
    run = evaluated(tmp_path / "run", spheres)
    about = read_run(run, "checkpoints/epoch_0000/run.json")
    tracking = open_tracking(about, run, say=print)
    tracking.end("FINISHED")
    made = report([str(run)], options=ReportOptions(scans=False), progress=QUIET)
    assert made.tracked == ("bright",)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking.uri)
    assert [item.path for item in client.list_artifacts(tracking.run_id, "report")] == ["report/report.html"]
    assert client.get_run(tracking.run_id).info.status in ("FINISHED", "KILLED")


def test_what_cannot_be_reported_is_said_in_a_sentence(tmp_path: Path, spheres: Path) -> None:
    run = tmp_path / "run"
    write_run(run, "detection", val_cases=CASES, dataset_file=str(spheres))
    with pytest.raises(ConfigError, match=rf"has no evaluation\.json; make it with `voxray evaluate {run}`"):
        report([str(run)], progress=QUIET)
    with pytest.raises(ConfigError, match="no such file or folder"):
        report([str(tmp_path / "nowhere")], progress=QUIET)
    with pytest.raises(ConfigError, match=r"^memory://nowhere/run: has no evaluation.json"):
        report(["memory://nowhere/run"], progress=QUIET)
    evaluate(run, progress=QUIET)
    with pytest.raises(ConfigError, match="is given twice"):
        report([str(run), str(run)], progress=QUIET)
    other = evaluated(tmp_path / "other", spheres, "segmentation")
    with pytest.raises(ConfigError, match=r"run is a detection and .*other a segmentation; make a report of each"):
        report([str(run), str(other)], progress=QUIET)
    with pytest.raises(ConfigError, match="no run given"):
        report([], progress=QUIET)
    (tmp_path / "evaluation.json").write_text(json.dumps({"schema": "voxray-luna16/1"}))
    with pytest.raises(ConfigError, match="is a score by LUNA16's rules"):
        report([str(tmp_path)], progress=QUIET)


def test_a_label_map_on_another_grid_is_listed(tmp_path: Path, spheres: Path) -> None:
    run = evaluated(tmp_path / "run", spheres, "segmentation")
    file = run / "evaluation" / "s0.nii.gz"
    volume = read_volume(spheres.parent / "images" / "s0.nii.gz")
    part = volume.voxels[:10, :10, :10]
    grid = type(volume.grid)((10, 10, 10), volume.grid.spacing_mm, volume.grid.origin_mm, volume.grid.direction)
    write_nifti(Volume((part > 0).astype(np.uint8), grid), file)
    made = report([str(run)], progress=QUIET)
    assert any("case s0: [comparison.shape] s0.nii.gz has 10 x 10 x 10 voxels" in text for text in made.remarks)


def test_scans_and_answers_that_changed_since_the_score_are_not_shown(tmp_path: Path, spheres: Path) -> None:
    run = evaluated(tmp_path / "run", spheres, "segmentation")
    image, labels = (spheres.parent / kind for kind in ("images", "labels"))
    volume = read_volume(image / "s0.nii.gz")
    write_nifti(Volume(np.full_like(volume.voxels, -900), volume.grid), image / "s0.nii.gz")
    truth = read_label_map(labels / "s1.nii.gz")
    write_nifti(Volume(np.zeros_like(truth.voxels), truth.grid), labels / "s1.nii.gz")
    made = report([str(run)], progress=QUIET)
    told = "\n".join(made.remarks)
    assert "case s0: [report.other_scan] its scan has changed since it was scored" in told
    assert "case s1: [report.other_truth] its truth has changed since it was scored" in told
    page = read_page(made.path.read_text())
    assert sum(alt.startswith("Three planes with what was found") for alt in page.images) == 1
    write_run(run, "segmentation", val_cases=CASES, dataset_file=str(spheres), threshold=0.4)
    predict(run, [image / "s2.nii.gz"], run / "evaluation", AnswerOptions(device="cpu"), progress=QUIET)
    told = "\n".join(report([str(run)], progress=QUIET).remarks)
    assert "the score is that of other weights than it holds now" in told
    assert "case s2: [report.other_answer] its answer is no longer the one that was scored" in told


def test_scores_of_other_scans_are_not_compared_case_by_case(tmp_path: Path, spheres: Path) -> None:
    run = evaluated(tmp_path / "run", spheres)
    image = spheres.parent / "images" / "s0.nii.gz"
    volume = read_volume(image)
    write_nifti(Volume(volume.voxels + np.int16(1), volume.grid), image)
    again = evaluate(run, output=tmp_path / "again", progress=QUIET)
    with pytest.raises(ConfigError, match="they scored other scans as case s0; score the same scans"):
        compare(find_evaluation(str(run)).evaluation, again)


def test_a_report_takes_no_other_files_place(tmp_path: Path, spheres: Path) -> None:
    run = evaluated(tmp_path / "run", spheres)
    mine = tmp_path / "mine.html"
    mine.write_text("<html>somebody's own</html>")
    quick = ReportOptions(scans=False)
    with pytest.raises(ConfigError, match=r"mine\.html: is there already.*--overwrite"):
        report([str(run)], mine, quick, progress=QUIET)
    assert mine.read_text() == "<html>somebody's own</html>"
    for path in (run / "state.json", run / "evaluation" / "evaluation.json", spheres, spheres.parent / "boxes.csv"):
        before = path.read_bytes()
        with pytest.raises(ConfigError, match="would be written over"):
            report([str(run)], path, ReportOptions(scans=False, overwrite=True), progress=QUIET)
        assert path.read_bytes() == before
    for _ in range(2):
        assert report([str(run)], None, quick, progress=QUIET).path == run / "report.html"
    assert report([str(run)], mine, ReportOptions(scans=False, overwrite=True), progress=QUIET).path == mine
