"""Predict on files: answers on disk, reruns, bad scans."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from support.bright_runs import TURNS, register, write_run
from support.bright_scans import bright_run, sphere_scan
from support.odd_scans import DISAGREE, Lines, contradict
from voxray.commands.predict import AnswerOptions, PredictReport, predict
from voxray.core.answer_json import FindingsFile, LabelsFile, read_file
from voxray.core.errors import ConfigError
from voxray.core.progress import SilentProgress
from voxray.core.volume import Volume
from voxray.inference.trained_model import open_model
from voxray.readers import read_label_map, read_volume, write_nifti
from voxray.recipes import read_recipe
from voxray.training.checkpoint import Checkpoint, write_checkpoint


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    register(monkeypatch)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two scans in a folder."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for name, turn in (("a", TURNS[1]), ("b", TURNS[2])):
        write_nifti(sphere_scan(turn, angles_deg=(11.0, 4.0, 0.0))[0], folder / f"{name}.nii.gz")
    return folder


def answer(tmp_path: Path, scans: Path, *overrides: str) -> PredictReport:
    return predict(
        tmp_path / "run",
        [scans],
        tmp_path / "out",
        AnswerOptions(overrides=overrides, device="cpu"),
        progress=SilentProgress(),
    )


def test_findings_are_written_in_the_world(tmp_path: Path, scans: Path) -> None:
    write_run(tmp_path / "run", "detection")
    report = answer(tmp_path, scans)
    assert (report.done, report.skipped, report.failed) == (("a", "b"), (), {})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.json", "b.json"]
    file = read_file(FindingsFile, tmp_path / "out" / "b.json")
    _, centre = sphere_scan(TURNS[2], angles_deg=(11.0, 4.0, 0.0))
    (found,) = file.findings
    np.testing.assert_allclose(found.center_mm, centre, atol=0.1)
    assert (file.case, found.class_name, file.model.run) == ("b", "bright", "bright")
    assert file.model.licence == "CC0-1.0"


def test_label_maps_lie_on_the_scans_own_grid(tmp_path: Path, scans: Path) -> None:
    write_run(tmp_path / "run", "segmentation")
    assert answer(tmp_path, scans).done == ("a", "b")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.json", "a.nii.gz", "b.json", "b.nii.gz"]
    scan = read_volume(scans / "a.nii.gz")
    labels = read_label_map(tmp_path / "out" / "a.nii.gz")
    assert labels.grid.is_close(scan.grid)
    assert ((labels.voxels == 1) & (scan.voxels > 0)).sum() > 0.9 * (scan.voxels > 0).sum()
    index = read_file(LabelsFile, tmp_path / "out" / "a.json")
    assert index.labels[0].num_voxels == int((labels.voxels == 1).sum())


def test_a_rerun_answers_only_what_is_new(tmp_path: Path, scans: Path) -> None:
    write_run(tmp_path / "run", "segmentation")
    answer(tmp_path, scans)
    assert answer(tmp_path, scans).skipped == ("a", "b")
    (tmp_path / "out" / "a.nii.gz").unlink()
    assert answer(tmp_path, scans).done == ("a",)
    os.utime(scans / "b.nii.gz", (4_000_000_000, 4_000_000_000))
    assert answer(tmp_path, scans).done == (), "a date says nothing"
    (tmp_path / "out" / "a.json").write_text("cut sho")
    os.utime(scans / "b.nii.gz", (1_000, 1_000))
    assert answer(tmp_path, scans).done == ("a",)


def test_another_model_or_another_setting_answers_again(tmp_path: Path, scans: Path) -> None:
    write_run(tmp_path / "run", "detection")
    answer(tmp_path, scans)
    strict = answer(tmp_path, scans, "merge.min_size_mm=25")
    assert strict.done == ("a", "b")
    assert json.loads((tmp_path / "out" / "a.json").read_text())["findings"] == []
    write_run(tmp_path / "other", "detection", threshold=0.1)
    other = predict(
        tmp_path / "other", [scans], tmp_path / "out", AnswerOptions(device="cpu"), progress=SilentProgress()
    )
    assert other.done == ("a", "b")


def test_one_bad_scan_does_not_stop_the_rest(tmp_path: Path, scans: Path) -> None:
    write_run(tmp_path / "run", "detection")
    whole = (scans / "a.nii.gz").read_bytes()
    (scans / "a.nii.gz").write_bytes(whole[: len(whole) // 2])
    report = answer(tmp_path, scans)
    assert report.done == ("b",)
    assert list(report.failed) == ["a"]
    assert "[nifti.truncated]" in report.failed["a"]
    assert not (tmp_path / "out" / "a.json").exists()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optim.rate=1", "only merge.* and inference.* can be set"),
        ("merge.tile_iuo=0.3", "did you mean 'tile_iou'"),
        ("inference.window_vox=[30,32,32]", "multiple of the network's stride"),
    ],
)
def test_overrides_are_checked(tmp_path: Path, scans: Path, override: str, sentence: str) -> None:
    write_run(tmp_path / "run", "detection")
    with pytest.raises(ConfigError) as caught:
        answer(tmp_path, scans, override)
    assert sentence in str(caught.value)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, scans: Path) -> None:
    with pytest.raises(ConfigError, match="no run here"):
        answer(tmp_path, scans)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_two_workers_give_what_one_gives(tmp_path: Path, scans: Path) -> None:
    write_small_unet(tmp_path / "run")
    (scans / "c.nii.gz").write_bytes(b"not a scan")
    reports = [
        predict(
            tmp_path / "run",
            [scans],
            tmp_path / f"out{workers}",
            AnswerOptions(workers=workers, device="cpu"),
            progress=SilentProgress(),
        )
        for workers in (1, 2)
    ]
    assert [sorted(report.done) for report in reports] == [["a", "b"]] * 2
    assert [list(report.failed) for report in reports] == [["c"]] * 2
    for name in ("a", "b"):
        one, two = (read_label_map(tmp_path / f"out{workers}" / f"{name}.nii.gz") for workers in (1, 2))
        np.testing.assert_array_equal(one.voxels, two.voxels)
        assert 0 < one.voxels.mean() < 1, "an untrained network's answer must be worth comparing"


def test_forms_for_other_tools_gather_all_answers(tmp_path: Path, scans: Path) -> None:
    write_run(tmp_path / "run", "detection")
    answer(tmp_path, scans)
    options = AnswerOptions(device="cpu", save="preview, csv-luna16,monai-json")
    report = predict(tmp_path / "run", [scans], tmp_path / "out", options, progress=SilentProgress())
    assert report.done == ("a", "b"), "pictures were missing"
    again = predict(tmp_path / "run", [scans], tmp_path / "out", options, progress=SilentProgress())
    assert again.skipped == ("a", "b")
    found = {name: read_file(FindingsFile, tmp_path / "out" / f"{name}.json").findings[0] for name in "ab"}
    rows = list(csv.DictReader((tmp_path / "out" / "luna16.csv").open()))
    assert [row["seriesuid"] for row in rows] == ["a", "b"]
    for row in rows:
        centre = [float(row[f"coord{axis}"]) for axis in "XYZ"]
        assert centre == list(found[row["seriesuid"]].center_mm)
        assert float(row["probability"]) == found[row["seriesuid"]].score
    for entry in json.loads((tmp_path / "out" / "monai.json").read_text()):
        one = found[Path(entry["image"]).name[0]]
        assert entry["box"] == [[*one.center_mm, *one.size_mm]]
        assert (entry["label"], entry["label_scores"]) == ([0], [one.score])
    for name in "ab":
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_forms_of_the_other_task_are_refused(tmp_path: Path, scans: Path) -> None:
    write_run(tmp_path / "run", "segmentation")
    options = AnswerOptions(device="cpu", save="csv-luna16")
    with pytest.raises(ConfigError, match=r"--save csv-luna16: not a form .* allowed are json, nifti, preview"):
        predict(tmp_path / "run", [scans], tmp_path / "out", options, progress=SilentProgress())


def test_another_runtime_answers_alike_and_says_which_it_was(tmp_path: Path, scans: Path) -> None:
    write_small_unet(tmp_path / "run")
    for name in ("torch", "openvino"):
        options = AnswerOptions(device="cpu", runtime=name, precision="fp32")
        report = predict(tmp_path / "run", [scans], tmp_path / name, options, progress=SilentProgress())
        assert report.done == ("a", "b")
        assert read_file(LabelsFile, tmp_path / name / "a.json").model.engine == f"{name} fp32"
    one, two = (read_label_map(tmp_path / name / "a.nii.gz").voxels for name in ("torch", "openvino"))
    assert (one != two).mean() < 1e-3
    with pytest.raises(ConfigError, match="abacus"):
        predict(tmp_path / "run", [scans], tmp_path / "x", AnswerOptions(runtime="abacus"), progress=SilentProgress())


def test_auto_is_the_best_runtime_that_the_network_goes_on(tmp_path: Path) -> None:
    write_small_unet(tmp_path / "unet")
    fast = open_model(tmp_path / "unet", runtime="auto")
    assert fast.choice is not None
    assert (fast.choice.runtime, fast.choice.precision) == ("openvino", "fp32")
    assert list((tmp_path / "unet" / "runtimes").glob("*.onnx")), "what was converted is kept"
    write_run(tmp_path / "bright", "detection")
    slow = open_model(tmp_path / "bright", runtime="auto")
    assert slow.choice is not None
    assert slow.choice.runtime == "torch"
    assert "BrightBoxes cannot be converted" in slow.choice.why


def write_small_unet(folder: Path) -> None:
    """A run of a network that Ray's workers know as well."""
    overrides = (
        "network.channels=[4,8]",
        "network.strides=[2]",
        "inference.window_vox=[32,32,32]",
        "patch.size_vox=[32,32,32]",
    )
    recipe = read_recipe("spleen", overrides)
    torch.manual_seed(3)
    weights = recipe.network.build(recipe, 1).state_dict()
    write_checkpoint(folder, Checkpoint(run=bright_run(recipe), weights=weights, epochs_done=0))


def test_what_is_odd_about_a_scan_stands_in_its_answer(tmp_path: Path, scans: Path) -> None:
    write_run(tmp_path / "run", "detection")
    volume = read_volume(scans / "a.nii.gz")
    voxels = volume.voxels.copy()
    voxels[:2] = -3024
    write_nifti(Volume(voxels, volume.grid), scans / "a.nii.gz")
    answer(tmp_path, scans)
    odd, plain = (read_file(FindingsFile, tmp_path / "out" / f"{name}.json").warnings for name in "ab")
    assert len(odd) == len(plain) + 1
    assert any("below -1100" in warning for warning in odd)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_what_a_reader_warns_of_is_said_and_written_and_said_again_by_a_rerun(
    tmp_path: Path, scans: Path, task: str
) -> None:
    write_run(tmp_path / "run", task)
    contradict(scans / "a.nii.gz")
    for answered in (("a", "b"), ()):
        progress = Lines()
        report = predict(tmp_path / "run", [scans], tmp_path / "out", AnswerOptions(device="cpu"), progress=progress)
        assert report.done == answered
        assert report.warnings == {"a": (DISAGREE,)}
        assert f"a: warning: {DISAGREE}" in progress.said
    assert json.loads((tmp_path / "out" / "a.json").read_text())["warnings"] == [DISAGREE]
    assert json.loads((tmp_path / "out" / "b.json").read_text())["warnings"] == []


def test_values_that_are_no_hounsfield_units_are_refused_unless_they_are_accepted(
    tmp_path: Path, scans: Path
) -> None:
    write_run(tmp_path / "run", "segmentation")
    volume = read_volume(scans / "a.nii.gz")
    write_nifti(Volume(volume.voxels + np.int16(3000), volume.grid), scans / "a.nii.gz")
    report = answer(tmp_path, scans)
    assert (report.done, list(report.failed)) == (("b",), ["a"])
    assert "[scan.not_hounsfield]" in report.failed["a"]
    assert "--accept-values" in report.failed["a"]
    options = AnswerOptions(device="cpu", accept_values=True)
    taken = predict(tmp_path / "run", [scans], tmp_path / "out", options, progress=SilentProgress())
    assert (taken.done, taken.failed) == (("a",), {})
    written = json.loads((tmp_path / "out" / "a.json").read_text())["warnings"]
    assert tuple(written) == taken.warnings["a"]
    assert written[0].startswith("taken as it is, though it holds values that run from ")
