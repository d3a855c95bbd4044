"""Answers in files, of every form, against every form of truth: the same findings get the same score."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from support.bright_runs import register, write_run, write_spheres
from support.small_runs import retold
from voxray.commands.evaluate import evaluate
from voxray.commands.evaluate_files import FileOptions, Scored, evaluate_anything
from voxray.core.alignment import arrangements
from voxray.core.answer_json import FindingsFile, read_file
from voxray.core.errors import ConfigError, DataError
from voxray.core.evaluation import Evaluation, Luna16Evaluation, read_evaluation
from voxray.core.progress import SilentProgress
from voxray.core.volume import Grid, Volume
from voxray.loading.scans import Scan
from voxray.readers import describe, label_names, read_label_map, read_volume, write_nifti
from voxray.results.formats import monai_json
from voxray.scoring.summary import parse_ious

CASES = ("s0", "s1", "s2")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    register(monkeypatch)


def _answered(folder: Path, task: str) -> tuple[Path, Path, Evaluation]:
    """A dataset, a run's answers to it, and their score."""
    dataset = write_spheres(folder / "data")
    write_run(folder / "run", task, val_cases=CASES)
    report = evaluate(folder / "run", dataset=dataset, output=folder / "out", progress=SilentProgress())
    return dataset, folder / "out", report


def _score(answers: Path, truth: Path | None, **options: Any) -> Scored:
    return evaluate_anything(str(answers), truth, FileOptions(**options), progress=SilentProgress())


def _evaluation(answers: Path, truth: Path, **options: Any) -> Evaluation:
    result = _score(answers, truth, **options).result
    assert isinstance(result, Evaluation)
    return result


def _alike(first: Evaluation, second: Evaluation) -> None:
    assert dict(first.metrics) == pytest.approx(dict(second.metrics), abs=1e-6, nan_ok=True)
    assert first.intervals == second.intervals


def _findings(out: Path) -> list[tuple[Scan, FindingsFile]]:
    return [
        (Scan(case, Path(f"images/{case}.nii.gz")), read_file(FindingsFile, out / f"{case}.json")) for case in CASES
    ]


def test_a_runs_own_answers_have_the_runs_score(tmp_path: Path) -> None:
    dataset, out, report = _answered(tmp_path, "detection")
    (out / "s1.json").unlink()
    _alike(evaluate(tmp_path / "run", dataset=dataset, output=out, progress=SilentProgress()), report)
    _alike(_evaluation(out, dataset), report)


def test_monai_json(tmp_path: Path) -> None:
    dataset, out, report = _answered(tmp_path, "detection")
    path = tmp_path / "result.json"
    path.write_text(monai_json(_findings(out), ["bright"]))
    _alike(_evaluation(path, dataset), report)


def test_nndetection_pickles(tmp_path: Path) -> None:
    dataset, out, report = _answered(tmp_path, "detection")
    folder = tmp_path / "pickles"
    folder.mkdir()
    for scan, file in _findings(out):
        info = describe(dataset.parent / "images" / f"{scan.name}.nii.gz")
        grid = Grid(info.shape, info.spacing_mm, info.origin_mm, info.direction)
        box = np.array([one.box_vox for one in file.findings]).reshape(-1, 6)
        x1, y1, z1, x2, y2, z2 = box.T
        fields = {
            "pred_boxes": np.stack([z1 - 1, y1 - 1, z2, y2, x1 - 1, x2], axis=1),
            "pred_scores": np.array([one.score for one in file.findings]),
            "pred_labels": np.zeros(len(box), int),
            "restore": True,
            "itk_origin": grid.origin_mm,
            "itk_spacing": grid.spacing_mm,
            "itk_direction": grid.direction,
        }
        (folder / f"{scan.name}_boxes.pkl").write_bytes(pickle.dumps(fields))
    with pytest.raises(ConfigError, match="--trust-pickle"):
        _score(folder, dataset)
    found = _evaluation(folder, dataset, trust_pickle=True)
    # These scans lie obliquely: nnDetection's box goes through the world and back as the box of an ellipsoid.
    assert found.metrics["AP@0.10"] == report.metrics["AP@0.10"] == 1.0
    assert found.metrics["mAP"] == pytest.approx(report.metrics["mAP"], abs=0.2)


def test_a_json_of_boxes_is_truth(tmp_path: Path) -> None:
    _, out, _ = _answered(tmp_path, "detection")
    boxes = [
        {"case": scan.name, "class": "bright", "corners_mm": list(one.box_mm)}
        for scan, file in _findings(out)
        for one in file.findings[:1]
    ]
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({"frame": "LPS", "boxes": boxes, "cases": ["empty"]}))
    found = _evaluation(out, truth)
    assert found.metrics["mAP"] == 1.0
    assert set(found.cases) == {*CASES, "empty"}
    assert found.failed == {"empty": "has no answer; it counts as an empty one."}
    truth.write_text(
        json.dumps({"frame": "voxel", "boxes": [{"case": "s0", "class": "bright", "corners_vox": [0] * 3 + [9] * 3}]})
    )
    assert _evaluation(out, truth).metrics["AR@0.50"] == 0.0
    path = tmp_path / "result.json"
    path.write_text(monai_json(_findings(out), ["bright"]))
    assert "in voxels of a scan that is not given" in _evaluation(path, truth).not_judged["s0"]


def test_label_maps_against_a_dataset_and_against_a_folder(tmp_path: Path) -> None:
    dataset, out, report = _answered(tmp_path, "segmentation")
    _alike(_evaluation(out, dataset), report)
    maps = tmp_path / "maps"
    for case in CASES:
        (maps / case).mkdir(parents=True)
        (maps / case / f"{case}_trans.nii.gz").write_bytes((out / f"{case}.nii.gz").read_bytes())
    _alike(_evaluation(maps, dataset), report)
    found = _evaluation(maps, dataset.parent / "labels")
    assert found.classes == ("1",)
    assert found.metrics["HD95_mm/1"] == pytest.approx(report.metrics["HD95_mm/bright"])


def test_label_maps_that_do_not_fit(tmp_path: Path) -> None:
    dataset, out, _ = _answered(tmp_path, "segmentation")
    maps = tmp_path / "maps"
    maps.mkdir()
    good = read_label_map(out / "s0.nii.gz")
    moved = Grid(good.grid.shape, good.grid.spacing_mm, (0.0, 0.0, 999.0), good.grid.direction)
    write_nifti(Volume(good.voxels, moved), maps / "s0.nii.gz")
    second = read_label_map(out / "s1.nii.gz")
    write_nifti(Volume(second.voxels * 5, second.grid), maps / "s1.nii.gz")
    write_nifti(second, maps / "other.nii.gz")
    scored = _score(maps, dataset, json_file=tmp_path / "none.json")
    assert isinstance(scored.result, Evaluation)
    lost = scored.result.not_judged
    assert re.search(r"s0.nii.gz does not lie where the truth lies: corners are up to \d+\.?\d* mm apart", lost["s0"])
    assert re.search(r"s1.nii.gz: value 5 \(\d+ voxels\) has no class; the classes are bright", lost["s1"])
    assert scored.result.failed == {"s2": "has no answer; it counts as an empty one."}
    # One case is left, and it has no answer: zeros would look like a score.
    assert (scored.result.metrics, scored.tables) == ({}, ())
    assert scored.lines == ("maps on 1 of 3 cases (all) of spheres",)
    assert "not judged, so in no metric: 2 of 3 cases" in scored.ending
    assert "no case has an answer that could be judged, so there is no score" in scored.ending
    assert "left out, as they are of no case of spheres: answers other" in scored.ending
    assert read_evaluation(tmp_path / "none.json").not_judged == lost
    (why,) = _score(maps, dataset, against=out / "evaluation.json").lost
    assert "cannot be compared" in why
    write_nifti(read_label_map(out / "s2.nii.gz"), maps / "s2.nii.gz")
    some = _evaluation(maps, dataset)
    assert some.metrics["dice"] == some.cases["s2"]["bright"] > 0.9
    assert (list(some.cases), sorted(some.not_judged)) == (["s2"], ["s0", "s1"])
    (maps / "s2.nii.gz").write_bytes(b"x")
    assert "s2" in _evaluation(maps, dataset).failed


def _stored_otherwise(folder: Path, target: Path, number: int) -> None:
    """The label maps of a folder with their axes in another order."""
    target.mkdir()
    for case in CASES:
        volume, one = read_label_map(folder / f"{case}.nii.gz"), list(arrangements())[number]
        write_nifti(
            Volume(np.ascontiguousarray(one.voxels(volume.voxels)), one.grid(volume.grid)), target / f"{case}.nii.gz"
        )


def test_maps_that_are_stored_otherwise_have_the_same_score(tmp_path: Path) -> None:
    dataset, out, report = _answered(tmp_path, "segmentation")
    labels = dataset.parent / "labels"
    _stored_otherwise(out, tmp_path / "answers", 13)
    _alike(_evaluation(tmp_path / "answers", dataset), report)
    _stored_otherwise(labels, tmp_path / "truth", 38)
    assert _evaluation(tmp_path / "answers", tmp_path / "truth").metrics["dice/1"] == report.metrics["dice"]
    labels.rename(tmp_path / "before")
    _stored_otherwise(tmp_path / "before", labels, 38)
    again = evaluate(tmp_path / "run", dataset=dataset, output=out, progress=SilentProgress())
    np.testing.assert_equal(dict(again.metrics), dict(report.metrics))
    assert again.segmentation is not None
    assert report.segmentation is not None
    assert again.segmentation.model_dump_json() == report.segmentation.model_dump_json()


def test_findings_against_maps_that_are_stored_otherwise(tmp_path: Path) -> None:
    dataset, out, _ = _answered(tmp_path, "detection")
    plain = _evaluation(out, dataset.parent / "labels", values="1=bright")
    _stored_otherwise(dataset.parent / "labels", tmp_path / "truth", 38)
    turned = _evaluation(out, tmp_path / "truth", values="1=bright")
    assert turned.metrics["mAP"] == plain.metrics["mAP"] > 0.9
    unnamed = _evaluation(out, tmp_path / "truth")
    assert "name the numbers of the truth's maps with --values" in unnamed.not_judged["s0"]
    assert unnamed.metrics == {}


TWO = {"kidney": (slice(1, 4), slice(1, 4), slice(1, 4)), "liver": (slice(4, 8), slice(2, 8), slice(2, 8))}


def _two_classes(folder: Path, annotations: str, classes: str = '["liver", "kidney"]') -> Path:
    """A dataset of one scan with two structures: 1 is the kidney and 2 the liver in its label map."""
    grid = Grid((9, 9, 9), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    labels = np.zeros(grid.shape, np.uint8)
    for value, where in enumerate(TWO.values(), start=1):
        labels[where] = value
    for place in ("images", "labels", "masks/a"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    write_nifti(Volume((labels * 50).astype(np.int16), grid), folder / "images" / "a.nii.gz")
    write_nifti(Volume(labels, grid), folder / "labels" / "a.nii.gz")
    for name, where in TWO.items():
        mask = np.zeros(grid.shape, np.uint8)
        mask[where] = 1
        write_nifti(Volume(mask, grid), folder / "masks" / "a" / f"{name}.nii.gz")
    path = folder / "two.toml"
    path.write_text(
        f'name = "two"\nlicence = "CC0-1.0"\nclasses = {classes}\n[images]\nglob = "images/*.nii.gz"\n'
        f'[annotations]\n{annotations}\n[folds]\nkind = "none"\n'
    )
    return path


NAMED = 'kind = "labels"\nfile = "labels/{case}.nii.gz"\nvalues = { 1 = "kidney", 2 = "liver" }'
MSD = {"labels": {"0": "background", "1": "kidney", "2": "liver"}}
MASKS = 'kind = "mask_folder"\nfile = "masks/{case}/{class}.nii.gz"'


@pytest.mark.parametrize("kind", ["values", "msd"])
def test_a_dataset_has_a_dice_of_one_against_its_own_files(tmp_path: Path, kind: str) -> None:
    dataset = _two_classes(tmp_path, NAMED if kind == "values" else 'kind = "msd"')
    listed = MSD | {"training": [{"image": "images/a.nii.gz", "label": "labels/a.nii.gz"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(listed))
    found = _evaluation(tmp_path / "labels", dataset)
    assert (found.metrics["dice/kidney"], found.metrics["dice/liver"]) == (1.0, 1.0)
    swapped = _evaluation(tmp_path / "labels", dataset, values="2=kidney,1=liver")
    assert swapped.metrics["dice"] == 0.0


def test_values_without_a_class_are_background_only_where_the_dataset_says_so(tmp_path: Path) -> None:
    dataset = _two_classes(tmp_path, NAMED + '\nunlisted = "background"', '["liver"]')
    assert _evaluation(tmp_path / "labels", dataset).metrics["dice"] == 1.0
    found = _evaluation(tmp_path / "labels", dataset, values="2=liver")
    assert "value 1 (27 voxels) has no class; the classes are liver" in found.not_judged["a"]


def test_numbers_that_nothing_declares_are_asked_for(tmp_path: Path) -> None:
    dataset = _two_classes(tmp_path, MASKS)
    with pytest.raises(
        ConfigError,
        match=r"labels: neither it nor two declares .* label values .*--values 1=NAME,2=NAME with the names liver",
    ):
        _score(tmp_path / "labels", dataset)
    assert _evaluation(tmp_path / "labels", dataset, values="1=kidney,2=liver").metrics["dice"] == 1.0
    for values, sentence in (
        ("1=kidney", None),
        ("1=kidney,2=lung", "--values: 'lung' is no class of the truth, whose classes are liver, kidney"),
        ("kidney,liver", "--values kidney,liver: each part must be a number, = and a name"),
        ("1=kidney,1=liver", "number 1 is both 'kidney' and 'liver'"),
    ):
        if sentence is None:
            assert (
                "value 2 (144 voxels) has no class"
                in _evaluation(tmp_path / "labels", dataset, values=values).not_judged["a"]
            )
            continue
        with pytest.raises(ConfigError, match=re.escape(sentence)):
            _score(tmp_path / "labels", dataset, values=values)
    single = _two_classes(tmp_path, MASKS + '\nunlisted = "background"', '["kidney"]')
    kidney = tmp_path / "masks" / "a" / "kidney.nii.gz"
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.nii.gz").write_bytes(kidney.read_bytes())
    assert _evaluation(tmp_path / "one", single).metrics["dice"] == 1.0


def _slicer(path: Path, voxels: Any, names: dict[int, str]) -> None:
    """A segmentation as 3D Slicer writes it, on the grid of `_two_classes`."""
    image: Any = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    for number, (value, name) in enumerate(names.items()):
        image.SetMetaData(f"Segment{number}_LabelValue", str(value))
        image.SetMetaData(f"Segment{number}_Name", name)
    path.parent.mkdir(exist_ok=True)
    SimpleITK.WriteImage(image, str(path))


def test_segments_of_3d_slicer_have_their_own_names(tmp_path: Path) -> None:
    masks = _two_classes(tmp_path, MASKS)
    voxels = read_label_map(tmp_path / "labels" / "a.nii.gz").voxels
    # Another case drew them in another order: numbers are this file's alone.
    turned = np.array([0, 2, 1], np.uint8)[voxels]
    _slicer(tmp_path / "seg" / "a.seg.nrrd", turned, {2: "kidney", 1: "liver"})
    assert label_names(tmp_path / "seg" / "a.seg.nrrd") == {1: "liver", 2: "kidney"}
    assert _evaluation(tmp_path / "seg", masks).metrics["dice"] == 1.0
    truth = _two_classes(tmp_path, 'kind = "labels"\nfile = "seg/{case}.seg.nrrd"', '["kidney", "liver"]')
    assert _evaluation(tmp_path / "seg", truth).metrics["dice"] == 1.0
    assert _evaluation(tmp_path / "seg", truth, values="1=kidney,2=liver").metrics["dice"] == 0.0
    _slicer(tmp_path / "seg" / "a.seg.nrrd", turned, {1: "Segment_1", 2: "Segment_2"})
    lost = _evaluation(tmp_path / "labels", truth).not_judged["a"]
    assert (
        "its segments (1=Segment_1,2=Segment_2) are no classes of the dataset. Say which class each value is" in lost
    )


def test_a_folder_of_true_maps_has_the_names_that_are_given(tmp_path: Path) -> None:
    _two_classes(tmp_path, MASKS)
    labels = tmp_path / "labels"
    assert _evaluation(labels, labels).classes == ("1", "2")
    named = _evaluation(labels, labels, values="2=liver,1=kidney")
    assert (named.classes, named.metrics["dice"]) == (("kidney", "liver"), 1.0)
    write_run(tmp_path / "run", "segmentation", val_cases=CASES)
    with pytest.raises(ConfigError, match="--values: a run names its classes"):
        _score(tmp_path / "run", labels, values="1=kidney")
    with pytest.raises(ConfigError, match=r"labels: holds 2, which --values 1=kidney does not name"):
        _score(labels, labels, values="1=kidney")


def _boxes(folder: Path, numbers: dict[str, int], **declared: Any) -> Path:
    """MONAI's results with the two structures of `_two_classes`."""
    boxes = [
        [(a.start + a.stop) / 2 - 0.5 for a in where] + [a.stop - a.start for a in where] for where in TWO.values()
    ]
    entry = {
        "image": "images/a.nii.gz",
        "box": boxes,
        "label": [numbers[name] for name in TWO],
        "label_scores": [0.9, 0.8],
    }
    path = folder / "result.json"
    path.write_text(json.dumps({"validation": [entry], **declared} if declared else [entry]))
    return path


def test_class_numbers_of_boxes_are_those_that_are_declared(tmp_path: Path) -> None:
    dataset = _two_classes(tmp_path, NAMED)
    bare = _boxes(tmp_path, {"kidney": 0, "liver": 1})
    with pytest.raises(
        ConfigError,
        match=r"result: neither it nor two declares .* class numbers .*--values 0=NAME,1=NAME with the names liver",
    ):
        _score(bare, dataset)
    assert _evaluation(bare, dataset, values="0=kidney,1=liver").metrics["mAP"] == 1.0
    assert _evaluation(bare, dataset, values="1=kidney,0=liver").metrics["mAP"] == 0.0
    lost = _evaluation(bare, dataset, values="1=liver").not_judged["a"]
    assert "class 0 of 1 findings is none of the 2 (liver, kidney)" in lost
    declared = _boxes(tmp_path, {"kidney": 3, "liver": 7}, labels={"3": "kidney", "7": "liver"})
    assert _evaluation(declared, dataset).metrics["mAP"] == 1.0
    kind = 'kind = "instances"\nfile = "labels/{case}.nii.gz"\nclasses_file = "labels/{case}.json"'
    (tmp_path / "labels" / "a.json").write_text(json.dumps({"instances": {"1": 5, "2": 2}}))
    nndetection = _two_classes(tmp_path, kind + '\nvalues = { 5 = "kidney", 2 = "liver" }')
    assert _evaluation(_boxes(tmp_path, {"kidney": 5, "liver": 2}), nndetection).metrics["mAP"] == 1.0
    dataset = _two_classes(tmp_path, NAMED)
    other = _boxes(tmp_path, {"kidney": 3, "liver": 0}, labels={"3": "kidney", "0": "background"})
    assert "class 0 is 'background', which is none of the 2" in _evaluation(other, dataset).not_judged["a"]


def test_a_json_of_boxes_declares_numbers_by_its_classes(tmp_path: Path) -> None:
    _two_classes(tmp_path, NAMED)
    boxes = [
        {"case": "a", "class": name, "corners_mm": [*(s.start - 0.5 for s in where), *(s.stop - 0.5 for s in where)]}
        for name, where in reversed(TWO.items())
    ]
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({"frame": "LPS", "boxes": boxes}))
    answers = _boxes(tmp_path, {"kidney": 1, "liver": 0})
    with pytest.raises(ConfigError, match="neither it nor truth declares"):
        _score(answers, truth)
    truth.write_text(json.dumps({"frame": "LPS", "boxes": boxes, "classes": ["liver", "liver"]}))
    with pytest.raises(ConfigError, match="classes must be names that differ, got liver, liver"):
        _score(answers, truth)
    truth.write_text(json.dumps({"frame": "LPS", "boxes": boxes, "classes": ["liver", "kidney"]}))
    assert _evaluation(answers, truth).metrics["mAP"] == 1.0


def test_our_own_monai_json_says_what_its_numbers_stand_for(tmp_path: Path) -> None:
    dataset, out, _ = _answered(tmp_path, "detection")
    (entry, *_) = json.loads(monai_json(_findings(out), ["other", "bright"]))
    assert set(entry["label"]) == {1}
    path = tmp_path / "result.json"
    path.write_text(monai_json(_findings(out), ["other", "bright"]))
    _alike(_evaluation(path, dataset), _evaluation(out, dataset))


def test_label_maps_need_label_maps(tmp_path: Path) -> None:
    _, out, _ = _answered(tmp_path, "segmentation")
    truth = tmp_path / "truth.json"
    box = {"case": "s0", "class": "bright", "center_mm": [0, 0, 0], "size_mm": [5, 5, 5]}
    truth.write_text(json.dumps({"frame": "LPS", "boxes": [box]}))
    with pytest.raises(ConfigError, match="truth: has boxes alone; the label maps of out need label maps as truth"):
        _score(out, truth)
    luna = tmp_path / "luna"
    luna.mkdir()
    for name in ("annotations.csv", "annotations_excluded.csv"):
        (luna / name).write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n")
    (luna / "seriesuids.csv").write_text("s0\n")
    with pytest.raises(ConfigError, match="label maps have no scores, so there is no FROC"):
        _score(out, luna, rules="luna16")


def test_a_truth_without_objects_has_no_score(tmp_path: Path) -> None:
    _, out, _ = _answered(tmp_path, "detection")
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps({"frame": "LPS", "boxes": [], "classes": ["bright"], "cases": list(CASES)}))
    scored = _score(out, truth)
    assert isinstance(scored.result, Evaluation)
    assert np.isnan(scored.result.metrics["mAP"])
    assert scored.result.without_truth == ("bright",)
    assert scored.tables[0].rows == ()


def test_findings_by_luna16s_rules(tmp_path: Path) -> None:
    dataset, out, _ = _answered(tmp_path, "detection")
    rows = [
        ",".join([case, *map(str, file.findings[0].center_mm), "19.0"])
        for (_, file), case in zip(_findings(out), CASES, strict=True)
    ]
    (dataset.parent / "spheres.csv").write_text(
        "\n".join(["seriesuid,coordX,coordY,coordZ,diameter_mm", *rows]) + "\n"
    )
    text = dataset.read_text()
    start, end = text.index("[[annotations]]"), text.index("[folds]")
    dataset.write_text(text[:start] + '[[annotations]]\nkind = "spheres_csv"\nfile = "spheres.csv"\n\n' + text[end:])
    found = _score(out, dataset, rules="luna16").result
    assert isinstance(found, Luna16Evaluation)
    assert (found.cpm, found.counts["True positives"]) == (1.0, 3)
    path = tmp_path / "result.json"
    path.write_text(monai_json(_findings(out), ["bright"]))
    again = _score(path, dataset, rules="luna16").result
    assert isinstance(again, Luna16Evaluation)
    assert again.counts == found.counts
    blocked = _score(path, dataset, rules="luna16", output=Path("/proc/voxray"), json_file=Path("/proc/a.json"))
    assert isinstance(blocked.result, Luna16Evaluation)
    assert (blocked.result.cpm, blocked.result.counts) == (again.cpm, again.counts)
    assert ["could not be written" in text for text in blocked.lost] == [True, True]
    of_run = _score(tmp_path / "run", dataset, rules="luna16", which="all").result
    assert isinstance(of_run, Luna16Evaluation)
    assert (of_run.counts, of_run.scans, of_run.cpm) == (found.counts, 3, found.cpm)
    with pytest.raises(ConfigError, match="LUNA16's rules have bands instead"):
        _score(tmp_path / "run", dataset, rules="luna16", against=out / "evaluation.json")
    series = tmp_path / "two"
    series.mkdir()
    for name in ("annotations.csv", "annotations_excluded.csv"):
        (series / name).write_text((dataset.parent / "spheres.csv").read_text())
    (series / "seriesuids.csv").write_text("s0\ns2\n")
    with pytest.raises(ConfigError, match="names no dataset, so its scans are not known"):
        _score(tmp_path / "run", series, rules="luna16", which="all")
    retold(tmp_path / "run", dataset_file=str(dataset))
    with pytest.raises(ConfigError, match=r"knows nothing of s1, which .* was scored on"):
        _score(tmp_path / "run", series, rules="luna16", which="all")


def test_only_the_answered_cases_where_that_is_asked_for(tmp_path: Path) -> None:
    dataset, out, report = _answered(tmp_path, "detection")
    (out / "s1.json").unlink()
    every, answered = _evaluation(out, dataset), _evaluation(out, dataset, which="answered")
    assert every.which == "all"
    assert every.metrics["AR@0.10"] == pytest.approx(2 / 3)
    assert list(every.failed) == ["s1"]
    assert (answered.which, list(answered.cases), answered.failed) == ("answered", ["s0", "s2"], {})
    assert answered.metrics["AR@0.10"] == report.metrics["AR@0.10"]
    with pytest.raises(ConfigError, match="--cases val: of answers in files must be all or answered"):
        _score(out, dataset, which="val")


def test_where_the_result_goes_and_a_comparison(tmp_path: Path) -> None:
    dataset, out, report = _answered(tmp_path, "detection")
    path = out / "s0.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"findings": []}))
    before = tmp_path / "before.json"
    before.write_bytes((out / "evaluation.json").read_bytes())
    scored = _score(out, dataset, output=tmp_path / "new", json_file=tmp_path / "a" / "new.json", against=before)
    assert read_evaluation(tmp_path / "new").metrics["AR@0.10"] == pytest.approx(2 / 3)
    assert read_evaluation(tmp_path / "a" / "new.json").metrics["AR@0.10"] == pytest.approx(2 / 3)
    (row,) = [row for row in scored.tables[-1].rows if row[0] == "AR@0.10"]
    assert row[1] == "-0.333"
    assert report.metrics["AR@0.10"] == 1.0
    assert f"differences are out minus {report.run}, paired case by case" in scored.ending


def test_a_score_that_cannot_be_written_or_compared_is_told_all_the_same(tmp_path: Path) -> None:
    dataset, out, report = _answered(tmp_path, "detection")
    fewer = tmp_path / "fewer.json"
    _score(out, dataset, which="answered", json_file=fewer)
    (out / "s1.json").unlink()
    nowhere = Path("/proc/voxray")
    scored = _score(out, dataset, which="answered", output=nowhere, json_file=nowhere / "a.json", against=fewer)
    assert scored.result.metrics["AR@0.10"] == report.metrics["AR@0.10"]  # type: ignore[union-attr]
    assert scored.tables
    compared, named, folder = scored.lost
    assert "only one of them scored s1" in compared
    assert named.startswith(f"{nowhere / 'a.json'}: the score above could not be written there: ")
    assert folder.startswith(f"{nowhere / 'evaluation.json'}: the score above could not be written there: ")
    for wrong in (tmp_path / "absent.json", out / "s0.json"):
        with pytest.raises(ConfigError, match=wrong.name):
            _score(out, dataset, against=wrong)


def test_answers_and_truth_that_say_nothing(tmp_path: Path) -> None:
    dataset, out, _ = _answered(tmp_path, "detection")
    empty = tmp_path / "empty"
    empty.mkdir()
    fold = tmp_path / "cv" / "fold_1" / "evaluation"
    fold.mkdir(parents=True)
    (fold / "evaluation.json").write_text("{}")
    (tmp_path / "cv" / "crossval.json").write_text("{}")
    (tmp_path / "note.txt").write_text("hello")
    (tmp_path / "boxes.json").write_text(json.dumps({"frame": "LPS", "boxes": []}))
    (tmp_path / "other.json").write_text(
        json.dumps([{"image": "x.nii.gz", "box": [], "label": [], "label_scores": []}])
    )
    for answers, truth, sentence in (
        (empty, dataset, "holds no answers; give a run, or"),
        (fold, dataset, f"holds no answers; those of all folds are in {tmp_path}/cv/answers"),
        (tmp_path / "note.txt", dataset, "is no form of answers that is known"),
        (tmp_path / "none", dataset, "no such file or folder; give a run"),
        (out, None, "say what to score them against"),
        (out, empty, "holds no label map"),
        (out, tmp_path / "note.txt", "is no truth"),
        (out, tmp_path / "none", "no such file or folder; give a dataset's file"),
        (out, tmp_path / "boxes.json", "has no box, so nothing can be scored"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            _score(answers, truth)
    with pytest.raises(DataError, match=r"none of its cases \(x.nii.gz\) is one of spheres's \(s0, s1, s2\)"):
        _score(tmp_path / "other.json", dataset)


def test_thresholds_as_they_are_written() -> None:
    assert parse_ious("0.1:0.5:0.05") == (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
    assert parse_ious("0.5") == (0.5,)
    assert parse_ious("0.1,0.5,0.75") == (0.1, 0.5, 0.75)
    for text in ("0.5:0.1:0.05", "0", "0.1:0.5", "0.5,0.1", "x", "0.2:0.4:0", "1.5", "nan"):
        with pytest.raises(ConfigError, match="--ious"):
            parse_ious(text)


def test_answers_to_other_scans_and_masks_that_were_changed_are_scored_with_a_warning(tmp_path: Path) -> None:
    dataset, out, report = _answered(tmp_path, "segmentation")
    assert _evaluation(out, dataset).warnings == {}
    image = dataset.parent / "images" / "s0.nii.gz"
    volume = read_volume(image)
    write_nifti(Volume(volume.voxels + np.int16(1), volume.grid), image)
    mask = read_label_map(out / "s1.nii.gz")
    write_nifti(Volume(np.zeros_like(mask.voxels), mask.grid), out / "s1.nii.gz")
    again = _evaluation(out, dataset)
    assert again.warnings == {
        "s0": (f"its answer is to other files ({image}) than {image} is now; see that both are one scan",),
        "s1": ("s1.nii.gz is not the label map that was written with s1.json; it is scored as it is",),
    }
    assert again.cases["s0"] == report.cases["s0"]
    assert again.cases["s1"]["bright"] == 0.0
