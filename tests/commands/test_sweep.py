"""Sweeps over kept candidates: tuned on some cases, judged on others, kept on disk."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.bright_runs import Heard, register, write_run, write_spheres
from support.crowds import crowded_case
from voxray.commands.sweep import sweep
from voxray.core.answer_json import stamp
from voxray.core.errors import ConfigError
from voxray.core.progress import SilentProgress
from voxray.core.recipe import DetectionMerge, SegmentationMerge
from voxray.core.storage import Place
from voxray.core.volume import Volume
from voxray.inference.candidates.file import RecordedCase, read_recorded, write_recorded
from voxray.inference.trained_model import weights_digest
from voxray.metrics import coco
from voxray.readers import read_label_map, read_volume, write_nifti
from voxray.sweeping import journal
from voxray.sweeping.candidate_cases import CaseRequest, content_of_recorded, record_cases
from voxray.sweeping.parts import parts_of
from voxray.sweeping.sweep_report import SweepOptions, SweepReport
from voxray.tasks.merging import merge_candidates
from voxray.training.checkpoint import load_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's use of SQLAlchemy

SPACE = """
[fields]
"merge.tile_iou" = { low = 0.05, high = 0.6, grid = [0.05, 0.2, 0.4] }
"merge.method" = { choices = ["nms", "weighted_nms"] }
"merge.ensemble_method" = { choices = ["pooled", "wbc"] }
"merge.min_size_mm" = { low = 0.0, high = 12.0 }
"""


@pytest.fixture(scope="module")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One file for all tests: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tracking_uri: str) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    register(monkeypatch)


def run_with(folder: Path, seeds: range) -> str:
    """A run whose validation left crowds of candidates."""
    cases = [crowded_case(seed, num_views=1, classes=("bright",)) for seed in seeds]
    write_run(folder, "detection", val_cases=tuple(one.head.case for one in cases))
    about, recipe, model = load_model(folder)
    mark = stamp(about, recipe, sha256=weights_digest(model))
    for one in cases:
        head = one.head.model_copy(update={"model": mark})
        write_recorded(Place.of(folder / "candidates" / "epoch_0000"), replace(one, head=head))
    return str(folder)


def swept(tmp_path: Path, *runs: str, text: str = SPACE, **options: Any) -> SweepReport:
    path = tmp_path / "space.toml"
    path.write_text(text)
    asked = SweepOptions(**{"trials": 24, **options})
    return sweep(list(runs), path, tmp_path / "out", asked, progress=SilentProgress())


def test_a_sweep_is_tuned_on_some_cases_and_judged_on_others(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", range(12))
    report = swept(tmp_path, run, trials=40)
    assert report.unseen is not None
    assert (report.metric, report.seen.cases, report.unseen.cases) == ("mAP", 12, 12)
    assert report.seen.own == pytest.approx(report.unseen.own)
    assert report.seen.tuned > report.seen.own + 0.01
    assert report.unseen.tuned < report.seen.tuned, "where it was tuned a setting looks better than it is"
    assert set(report.parts) == {"part 0", "part 1"}
    folder = tmp_path / "out"
    names = {
        "sweep.json",
        "best.toml",
        "trials.csv",
        "slices.png",
        "importance.png",
        "study.journal",
        "tracking.json",
    }
    assert {path.name for path in folder.iterdir()} == names
    written = json.loads((folder / "sweep.json").read_text())
    assert written["setting"] == dict(report.setting)
    assert written["unseen"]["tuned"] == report.unseen.tuned
    assert sum(report.importance.values()) == pytest.approx(1)
    assert len((folder / "trials.csv").read_text().splitlines()) >= 30


def test_the_recipes_own_setting_is_judged_even_where_it_lies_outside_of_the_space(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", range(8))
    inside = swept(tmp_path, run, same_cases=True)
    (tmp_path / "other").mkdir()
    narrow = """[fields]
"merge.tile_iou" = { low = 0.4, high = 0.6 }
"merge.score_floor" = { low = 0.5, high = 0.6 }
"merge.ensemble_method" = { choices = ["wbc", "nms"] }
"""
    outside = swept(tmp_path / "other", run, text=narrow, same_cases=True)
    assert outside.seen.own == pytest.approx(inside.seen.own, abs=1e-12)


def test_the_same_command_again_makes_no_trial_twice(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", range(8))
    first = swept(tmp_path, run)
    again = swept(tmp_path, run)
    assert again.setting == first.setting
    assert (again.trials, again.seen, again.unseen) == (first.trials, first.seen, first.unseen)
    more = swept(tmp_path, run, trials=30)
    assert more.trials == 30
    assert more.seen.tuned >= first.seen.tuned


def test_what_a_setting_is_tuned_for_can_be_said(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", range(8))
    usual = swept(tmp_path, run, same_cases=True)
    assert usual.aim == "mAP"
    with pytest.raises(ConfigError, match="of another network, other cases, scans or truth, or other IoUs"):
        swept(tmp_path, run, same_cases=True, ious=(0.5, 0.7))
    (tmp_path / "strict").mkdir()
    strict = swept(tmp_path / "strict", run, same_cases=True, ious=(0.5, 0.7))
    assert strict.aim == "mAP at IoU 0.5, 0.7"
    assert strict.seen.own < usual.seen.own - 0.05, "close boxes are harder"
    folder = Place.of(run).below("candidates").below("epoch_0000")
    kept = [read_recorded(folder, name) for name in folder.names(".")]
    own = load_model(run)[1].merge
    assert isinstance(own, DetectionMerge)
    truth = [one.truth for one in kept if one.truth is not None]
    found = [merge_candidates(one.required, one.grid, own) for one in kept]
    plain = coco.evaluate(
        found, [one.boxes for one in truth], [one.classes for one in truth], ("b",), ious=(0.5, 0.7)
    )
    assert strict.seen.own == pytest.approx(plain["mAP"])
    write_run(tmp_path / "labels", "segmentation", val_cases=("s0",))
    text = '[fields]\n"merge.threshold" = { low = 0.02, high = 0.9 }'
    with pytest.raises(ConfigError, match="--ious: is for a detection whose merge is swept"):
        swept(tmp_path, str(tmp_path / "labels"), text=text, ious=(0.5,))


def test_the_same_cases_must_be_asked_for_by_name(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", range(2))  # both of patient p0
    with pytest.raises(ConfigError, match=r"two patients or more, .* there is 1; .* --same-cases"):
        swept(tmp_path, run)
    report = swept(tmp_path, run, same_cases=True)
    assert report.unseen is None
    assert report.parts == {}


def test_runs_of_folds_are_the_parts(tmp_path: Path) -> None:
    runs = [run_with(tmp_path / f"fold_{fold}", range(4 * fold, 4 * fold + 4)) for fold in range(3)]
    report = swept(tmp_path, *runs)
    assert set(report.parts) == {"part 0", "part 1", "part 2"}
    assert report.unseen is not None
    assert report.unseen.cases == 12
    with pytest.raises(ConfigError, match=r"validated on case case_0, as .*fold_0 did; give each fold once"):
        swept(tmp_path, runs[0], runs[0])


def test_parts_never_share_a_patient() -> None:
    patients = [f"p{index // 3}" for index in range(20)]
    parts = parts_of([0] * 20, patients, seed=3)
    assert sorted(index for part in parts for index in part) == list(range(20))
    assert not {patients[index] for index in parts[0]} & {patients[index] for index in parts[1]}
    assert parts == parts_of([0] * 20, patients, seed=3)
    assert parts_of([0, 0, 1, 2], ["a"] * 4, seed=0) == [(0, 1), (2,), (3,)]


@pytest.mark.parametrize("sampler", ["greedy", "grid", "random"])
def test_other_samplers_for_comparison(tmp_path: Path, sampler: str) -> None:
    run = run_with(tmp_path / "run", range(6))
    report = swept(tmp_path, run, sampler=sampler, same_cases=True)
    assert report.trials <= 24
    assert report.seen.tuned >= report.seen.own


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sampler": "tpee"}, "--sampler tpee: no such sampler; allowed are tpe, grid, greedy, random."),
        ({"executor": "spark"}, "--executor spark: no such executor; allowed are ask, tune."),
        ({"executor": "tune", "sampler": "greedy"}, "--executor tune: has no sampler greedy"),
    ],
)
def test_what_there_is_not_is_said(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    run = run_with(tmp_path / "run", range(4))
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        swept(tmp_path, run, **options)


def test_a_run_without_anything_to_find_cannot_be_tuned(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", range(4))
    folder = Place.of(tmp_path / "run" / "candidates" / "epoch_0000")
    for name in folder.names("."):
        kept = read_recorded(folder, name)
        head = kept.head.model_copy(update={"truth_boxes": (), "truth_classes": ()})
        write_recorded(folder, replace(kept, head=head))
    with pytest.raises(ConfigError, match="none of its 4 cases holds anything to find"):
        swept(tmp_path, run)


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_what_is_not_kept_is_answered_once(tmp_path: Path, task: str) -> None:
    """Spheres from scans: the network answers, truth comes from the dataset; a second sweep needs neither."""
    dataset = write_spheres(tmp_path / "data", count=4)
    fields = {"dataset_file": str(dataset), "dataset": "spheres", "val_cases": ("s0", "s1", "s2", "s3")}
    write_run(tmp_path / "run", task, threshold=0.05 if task == "detection" else 0.7, **fields)
    text = '[fields]\n"merge.score_floor" = { low = 0.02, high = 0.9 }'
    if task == "segmentation":
        text = (
            '[fields]\n"merge.threshold" = { low = 0.02, high = 0.9 }\n"inference.overlap" = { choices = [0.5, 0.6] }'
        )
    report = swept(tmp_path, str(tmp_path / "run"), text=text, device="cpu")
    assert report.seen.cases == 4
    assert report.seen.own > 0.5
    if task == "segmentation":  # a threshold of 0.7 of the brightness is too high, a lower one of the answer mends it
        assert report.seen.tuned > report.seen.own
        assert report.unseen is not None
        assert report.unseen.tuned > report.unseen.own
    dataset.unlink()
    again = swept(tmp_path, str(tmp_path / "run"), text=text, device="cpu", trials=30)
    assert again.trials == 30


def test_scans_of_another_dataset_are_answered_though_their_names_are_known(tmp_path: Path) -> None:
    dataset, other = (write_spheres(tmp_path / name, count=2) for name in ("data", "other"))
    rows = (tmp_path / "other" / "boxes.csv").read_text().replace("19.0,19.0,19.0", "4.0,4.0,4.0")
    (tmp_path / "other" / "boxes.csv").write_text(rows)
    fields = {"dataset_file": str(dataset), "dataset": "spheres", "val_cases": ("s0", "s1")}
    write_run(tmp_path / "run", "detection", threshold=0.05, **fields)
    text = '[fields]\n"merge.score_floor" = { low = 0.02, high = 0.9 }'
    scores = []
    for name, given in (("a", None), ("b", other), ("c", dataset)):
        (tmp_path / name).mkdir()
        asked = {"device": "cpu", "trials": 2, "dataset": given}
        scores.append(swept(tmp_path / name, str(tmp_path / "run"), text=text, **asked).seen.own)
    assert scores[0] == scores[2] > 0.5
    assert scores[1] == 0


def test_a_dataset_that_is_gone_is_asked_for(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "detection", dataset_file="gone.toml", val_cases=("s0",))
    with pytest.raises(ConfigError, match=r"its dataset file gone.toml is not there; give one with --dataset FILE"):
        swept(tmp_path, str(tmp_path / "run"))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("one_ray")
@pytest.mark.parametrize("executor", ["ask", "tune"])
def test_on_ray(tmp_path: Path, executor: str) -> None:
    run = run_with(tmp_path / "run", range(8))
    (tmp_path / "here").mkdir()
    alone = swept(tmp_path / "here", run, same_cases=True)
    report = swept(tmp_path, run, same_cases=True, workers=2, executor=executor)
    assert report.trials == 24
    assert report.seen.own == pytest.approx(alone.seen.own)
    if executor == "ask":
        assert report.setting == alone.setting
    else:
        assert report.seen.tuned >= report.seen.own


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_what_is_kept_is_of_the_scans_and_the_truth_of_today(tmp_path: Path, task: str) -> None:
    dataset = write_spheres(tmp_path / "data", count=2)
    run = tmp_path / "run"
    fields = {"dataset_file": str(dataset), "dataset": "spheres", "val_cases": ("s0", "s1")}
    write_run(run, task, threshold=0.05 if task == "detection" else 0.5, **fields)

    def kept() -> dict[str, RecordedCase]:
        found, failed = record_cases(CaseRequest(str(run), device="cpu"), {}, progress=Heard())
        assert not failed
        return {one.head.case: one for one in found}

    first, again = kept(), kept()
    assert {case: one.head for case, one in again.items()} == {case: one.head for case, one in first.items()}
    if task == "detection":
        path = tmp_path / "data" / "boxes.csv"
        path.write_text(path.read_text().replace("19.0", "15.0", 1))
    else:
        path = tmp_path / "data" / "labels" / "s0.nii.gz"
        volume = read_label_map(path)
        write_nifti(Volume(np.roll(volume.voxels, 5, axis=1), volume.grid), path)
    os.utime(path, (1_000, 1_000))
    corrected = kept()
    assert corrected["s1"].head == first["s1"].head
    assert corrected["s0"].head.scan_sha256 == first["s0"].head.scan_sha256
    assert content_of_recorded(corrected["s0"]) != content_of_recorded(first["s0"])
    assert content_of_recorded(corrected["s1"]) == content_of_recorded(first["s1"])
    scan = tmp_path / "data" / "images" / "s1.nii.gz"
    volume = read_volume(scan)
    write_nifti(Volume(np.full_like(volume.voxels, -1000), volume.grid), scan)
    os.utime(scan, (1_000, 1_000))
    rescanned = kept()["s1"]
    assert rescanned.head.scan_sha256 != first["s1"].head.scan_sha256
    if task == "segmentation":
        assert first["s1"].labels(SegmentationMerge()).voxels.any()
        assert not rescanned.labels(SegmentationMerge()).voxels.any()


def test_a_study_of_other_truth_is_not_gone_on_with(tmp_path: Path) -> None:
    dataset = write_spheres(tmp_path / "data", count=2)
    fields = {"dataset_file": str(dataset), "dataset": "spheres", "val_cases": ("s0", "s1")}
    write_run(tmp_path / "run", "detection", threshold=0.05, **fields)
    text = '[fields]\n"merge.score_floor" = { low = 0.02, high = 0.9 }'
    swept(tmp_path, str(tmp_path / "run"), text=text, device="cpu", trials=2)
    path = tmp_path / "data" / "boxes.csv"
    path.write_text(path.read_text().replace("19.0,19.0,19.0", "18.0,18.0,18.0"))
    with pytest.raises(ConfigError, match=r"is of another network, other cases, scans or truth.*sweep into another"):
        swept(tmp_path, str(tmp_path / "run"), text=text, device="cpu", trials=2)


def test_a_sweep_wants_a_folder_of_its_own(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", range(8))
    for name in ("best.toml", "study.journal", "tracking.json"):
        out = tmp_path / "out"
        out.mkdir()
        (out / name).write_text("{}")
        with pytest.raises(ConfigError, match=f"such as {name}, and is no sweep that voxray made"):
            swept(tmp_path, run, same_cases=True)
        assert [path.read_text() for path in out.iterdir()] == ["{}"]
        (out / name).unlink()
        out.rmdir()
    with pytest.raises(ConfigError, match="is the run's own folder"):
        sweep([run], tmp_path / "space.toml", Path(run), SweepOptions(trials=4), progress=SilentProgress())
    swept(tmp_path, run, same_cases=True)
    swept(tmp_path, run, same_cases=True)
    best = tmp_path / "out" / "best.toml"
    best.write_text(best.read_text() + "# my own changes\n")
    with pytest.raises(ConfigError, match=r"best\.toml: was changed since"):
        swept(tmp_path, run, same_cases=True)
    assert best.read_text().endswith("# my own changes\n")


def test_a_sweep_is_named_as_its_folder_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_with(tmp_path / "run", range(8))
    (tmp_path / "space.toml").write_text('[fields]\n"merge.score_floor" = { low = 0.02, high = 0.9 }')
    monkeypatch.chdir(tmp_path)
    options = SweepOptions(trials=2, same_cases=True)
    for out, named in (("out", "out"), (None, "run/sweeps/space")):
        report = sweep(["run"], Path("space.toml"), out, options, progress=SilentProgress())
        assert report.output == named
        assert json.loads(Path(named, "sweep.json").read_text())["output"] == named
    best = Path("out", "best.toml")
    best.write_text(best.read_text() + "# my own changes\n")
    with pytest.raises(ConfigError, match=r"^out/best\.toml: was changed since"):
        sweep(["run"], Path("space.toml"), "out", options, progress=SilentProgress())


def test_the_journal_of_a_sweep_elsewhere_is_brought_there_while_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "BRING_EVERY_S", 0.0)
    place = Place.of(f"memory://{tmp_path.name}/sweep")
    kept = journal.Journal(tmp_path / "study.journal", place)
    kept.append_logs([{"op_code": 0}])
    kept.flush()
    assert place.read("study.journal") == (tmp_path / "study.journal").read_bytes()
