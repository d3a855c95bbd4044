"""Export: packages that answer as their run does, refusals, and nothing left behind by what fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from support.bright_scans import sphere_scan
from support.small_runs import retold, write_small_run
from voxray.cli import app
from voxray.commands.export import ExportOptions, export
from voxray.core.errors import ConfigError, DataError, ResourceError
from voxray.core.progress import SilentProgress, open_progress
from voxray.core.volume import Volume
from voxray.exporting import parity as comparing
from voxray.exporting.sample_patches import patch_for
from voxray.inference.package import FileEntry, Package, read_package, sha256_of
from voxray.inference.trained_model import open_model
from voxray.readers import write_nifti
from voxray.recipes import read_recipe
from voxray.runtimes.tensorrt_build import find_flavour


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, a scan, and a package; conversions are kept beside the runs, so each network is traced once."""
    root = tmp_path_factory.mktemp("export")
    for kind in ("unet", "retinanet"):
        write_small_run(root / kind, kind)
    write_nifti(scan(), root / "scan.nii.gz")
    export(root / "unet", root / "package", ExportOptions(scan=root / "scan.nii.gz"), progress=SilentProgress())
    return root


DATASET = """
name = "toy"
licence = "CC0-1.0"
classes = ["first", "second"]

[images]
glob = "images/*.nii.gz"

[annotations]
kind = "labels"
file = "labels/{case}.nii.gz"

[annotations.values]
1 = "first"
2 = "second"

[folds]
kind = "kfold"
num_folds = 2
"""


def scan() -> Volume:
    volume, _ = sphere_scan(np.eye(3), angles_deg=(4.0, 0.0, -7.0), radius_mm=12.0)
    return volume


def made(folder: Path, tmp_path: Path) -> Path:
    """A copy of the package to do harm to."""
    return Path(shutil.copytree(folder / "package", tmp_path / "package"))


def edit(package: Path, **fields: Any) -> None:
    path = package / "package.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_package_says_what_it_is(folder: Path) -> None:
    package, recipe = read_package(folder / "package", task="segmentation")
    assert (package.task, package.runtime, package.precision) == ("segmentation", "onnxruntime", "fp32")
    assert package.classes == ("first", "second")
    assert package.windows.window_vox == recipe.inference.window_vox == (16, 24, 16)
    assert package.preprocessing.intensity == recipe.intensity
    assert package.provenance.commit == "0123456"
    names = {path.name for path in (folder / "package").iterdir()}
    assert names == {*package.files, "package.json"}
    assert {"model.onnx", "weights.safetensors", "parity.json", "speed.json", "README.md"} == set(package.files)
    for name, entry in package.files.items():
        assert entry == FileEntry(
            sha256=sha256_of(folder / "package" / name), size=(folder / "package" / name).stat().st_size
        )
    written = json.loads((folder / "package" / "package.json").read_text())
    # What was written before there were ensembles, and a voxray of that time can read.
    assert written["schema_version"] == 1
    assert "ensemble" not in written
    parity = json.loads((folder / "package" / "parity.json").read_text())
    assert parity["patches"] == "the scan scan.nii.gz"
    assert parity["num_patches"] == 3
    assert 0 < parity["outputs"][0]["max_difference"] < parity["outputs"][0]["tolerance"]
    speed = json.loads((folder / "package" / "speed.json").read_text())
    assert min(speed["torch_fp32"], speed["torch_amp"], speed["engine_fp32"]) > 0
    assert speed["speedup_fp32"] == pytest.approx(speed["torch_fp32"] / speed["engine_fp32"], abs=0.01)
    card = (folder / "package" / "README.md").read_text()
    assert "small unet" in card
    assert "CC0-1.0" in card


def test_packages_answer_as_their_run_does(folder: Path) -> None:
    volume = scan()
    expected = open_model(folder / "unet").predictor().predict(volume).labels
    assert expected is not None
    assert expected.voxels.any()
    for runtime in (None, "torch", "openvino"):
        engine = open_model(folder / "package", runtime=runtime)
        found = engine.predictor().predict(volume).labels
        assert engine.stamp.model_copy(update={"engine": "torch"}) == open_model(folder / "unet").stamp
        assert found is not None
        assert (found.voxels != expected.voxels).mean() < 1e-4


def test_boxes_of_a_package_are_those_of_its_run(folder: Path, tmp_path: Path) -> None:
    options = ExportOptions(runtime="openvino", window_vox=(32, 32, 32), scan=folder / "scan.nii.gz")
    report = export(folder / "retinanet", tmp_path / "model", options, progress=SilentProgress())
    assert report.parity.runtime == "openvino"
    assert {"model.xml", "model.bin", "model.onnx"} <= {path.name for path in (tmp_path / "model").iterdir()}
    overrides = ["inference.window_vox=[32,32,32]", "inference.candidate_floor=0.0", "merge.score_floor=0.0"]
    volume = scan()
    expected = open_model(folder / "retinanet", overrides=overrides).predictor().predict(volume).world
    found = open_model(tmp_path / "model", overrides=overrides[1:]).predictor().predict(volume).world
    assert len(expected) == len(found) > 0
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.1)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)


@pytest.mark.skipif(find_flavour() is None, reason="neither TensorRT nor TensorRT-RTX is installed")
def test_a_tensorrt_package_is_built_without_a_gpu_and_answers_there_by_another_runtime(
    folder: Path, tmp_path: Path
) -> None:
    options = ExportOptions(runtime="tensorrt", precision="fp16", batches=(1, 2, 4), scan=folder / "scan.nii.gz")
    report = export(folder / "unet", tmp_path / "model", options, progress=SilentProgress())
    package, _ = read_package(tmp_path / "model")
    (entry,) = [entry for entry in package.engines if entry.form == "tensorrt"]
    assert entry.key is not None
    assert (entry.key.window_vox, entry.key.batches, entry.key.precision) == ((16, 24, 16), (1, 2, 4), "fp16")
    if not torch.cuda.is_available():
        assert report.parity.measured_with == "onnxruntime on cpu, from the same graph"
        assert report.speed.engine_half is None
        engine = open_model(tmp_path / "model")
        assert engine.choice is not None
        assert engine.choice.runtime == "openvino"
        assert "runs on an NVIDIA GPU" in engine.choice.why
        labels = engine.predictor().predict(scan()).labels
        expected = open_model(folder / "unet").predictor().predict(scan()).labels
        assert labels is not None
        assert expected is not None
        assert (labels.voxels != expected.voxels).mean() < 1e-4


def test_answers_that_are_not_torchs_are_not_exported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(comparing.TOLERANCE, "fp32", 1e-12)
    options = ExportOptions(scan=folder / "scan.nii.gz")
    with pytest.raises(DataError, match=r"differs from torch by .* in logits") as caught:
        export(folder / "unet", tmp_path / "model", options, progress=SilentProgress())
    assert caught.value.code == "export.parity"
    assert list(tmp_path.iterdir()) == []


def test_without_a_scan_the_patches_are_a_phantoms_and_that_is_said(folder: Path, tmp_path: Path) -> None:
    report = export(folder / "unet", tmp_path / "model", progress=SilentProgress())
    assert "generated thorax" in report.parity.patches


def test_a_phantom_in_the_place_of_a_scan_that_cannot_be_read_is_told_with_why(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(folder / "unet", tmp_path / "run")
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "a.nii.gz").write_bytes(b"no scan")
    data = tmp_path / "dataset.toml"
    data.write_text(DATASET)
    retold(run, dataset_file=str(data), val_cases=["a"])
    report = export(run, tmp_path / "model", progress=open_progress())
    why = "the run's dataset cannot be read: case a: ["
    assert why in report.parity.patches
    assert why in (tmp_path / "model" / "README.md").read_text()
    assert (
        f"warning: compared and timed on a generated thorax (no scan was given, and {why}" in capsys.readouterr().err
    )


def test_what_cannot_be_exported_is_refused(folder: Path, tmp_path: Path) -> None:
    for options, words in (
        (ExportOptions(runtime="caffe"), "allowed are onnx, openvino, tensorrt"),
        (ExportOptions(precision="int4"), "allowed are fp32, fp16, bf16, int8"),
        (ExportOptions(batches=(4, 1, 8)), "the smallest, the usual and the largest"),
        (ExportOptions(window_vox=(15, 24, 16)), "must be a multiple of the network's stride"),
    ):
        with pytest.raises(ConfigError, match=words):
            export(folder / "unet", tmp_path / "model", options, progress=SilentProgress())
    with pytest.raises(ConfigError, match="is there already"):
        export(folder / "unet", folder / "package", progress=SilentProgress())
    with pytest.raises(ConfigError, match="no run here"):
        export(tmp_path / "nowhere", tmp_path / "model", progress=SilentProgress())
    assert list(tmp_path.iterdir()) == []


def test_a_newer_package_is_refused(folder: Path, tmp_path: Path) -> None:
    package = made(folder, tmp_path)
    edit(package, schema_version=3, something_new=True)
    with pytest.raises(DataError, match="schema version 3, this voxray reads up to 2"):
        read_package(package)


@pytest.mark.parametrize("name", ["model.onnx", "weights.safetensors", "README.md"])
def test_a_file_that_is_not_what_it_was_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    package = made(folder, tmp_path)
    with (package / name).open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(DataError, match=rf"{name}: its SHA-256 is not the one"):
        read_package(package)
    (package / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: is missing") as caught:
        open_model(package)
    assert caught.value.code == "package.missing"


@pytest.mark.parametrize("name", ["../scan.nii.gz", "/etc/hostname", "..", "a/b.onnx", "..\\model.onnx"])
def test_a_path_outside_the_folder_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    package = made(folder, tmp_path)
    files = json.loads((package / "package.json").read_text())["files"]
    edit(package, files=files | {name: files["model.onnx"]})
    with pytest.raises(DataError, match="is not a file in the package's own folder"):
        read_package(package)


def test_a_link_to_a_file_outside_is_refused(folder: Path, tmp_path: Path) -> None:
    package = made(folder, tmp_path)
    (package / "model.onnx").unlink()
    (package / "model.onnx").symlink_to(folder / "package" / "model.onnx")
    with pytest.raises(DataError, match="is not a file in the package's own folder"):
        read_package(package)


def test_pickles_are_refused_whether_listed_or_not(folder: Path, tmp_path: Path) -> None:
    package = made(folder, tmp_path)
    (package / "model.pt").write_bytes(b"anything")
    with pytest.raises(DataError, match=r"holds model.pt, a kind of file that can run code"):
        read_package(package)
    (package / "model.pt").rename(package / "model.module")
    files = json.loads((package / "package.json").read_text())["files"]
    edit(package, files=files | {"model.module": files["model.onnx"]})
    with pytest.raises(DataError, match=r"holds model.module, a kind of file that can run code"):
        read_package(package)


def test_an_engine_without_a_checksum_is_refused(folder: Path, tmp_path: Path) -> None:
    package = made(folder, tmp_path)
    files = json.loads((package / "package.json").read_text())["files"]
    edit(package, files={name: entry for name, entry in files.items() if name != "model.onnx"})
    with pytest.raises(DataError, match=r"model.onnx is used but has no SHA-256"):
        read_package(package)


def test_another_task_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a package for segmentation, not for detection"):
        read_package(folder / "package", task="detection")
    package = made(folder, tmp_path)
    edit(package, task="detection")
    with pytest.raises(ConfigError, match="task is detection, but its recipe is for segmentation"):
        read_package(package)


def test_a_group_that_was_edited_is_refused(folder: Path, tmp_path: Path) -> None:
    package = made(folder, tmp_path)
    edit(package, merge={"kind": "segmentation", "min_component_mm3": 50.0})
    with pytest.raises(ConfigError, match=r"merge is not what its recipe says; .* --set merge.FIELD=VALUE"):
        read_package(package)


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no package here"):
        read_package(tmp_path)
    (tmp_path / "package.json").write_text('{"schema": "voxray-package"}')
    with pytest.raises(ConfigError, match="is required and missing"):
        read_package(tmp_path)


def test_a_package_without_the_asked_runtime_says_so(folder: Path) -> None:
    with pytest.raises((ConfigError, ResourceError), match="runs on an NVIDIA GPU"):
        open_model(folder / "package", runtime="tensorrt")


def test_large_windows_are_compared_in_part_on_a_cpu() -> None:
    lung = read_recipe("lung_nodule")
    assert patch_for(lung, limited=False) == (512, 512, 192)
    side = patch_for(lung, limited=True)
    assert np.prod(side) <= 128**3
    assert all(length % step == 0 for length, step in zip(side, lung.network.stride_vox, strict=True))
    assert patch_for(read_recipe("spleen"), limited=True) == (96, 96, 96)


def test_the_command_line_exports_and_predicts(folder: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "answers"
    command = ["export", folder / "unet", "--precision", "fp16", "--scan", folder / "scan.nii.gz", "-o", model]
    done = CliRunner().invoke(app, [str(word) for word in command])
    assert done.exit_code == 0, done.output
    assert "onnxruntime at fp16, compared on 3 patches of the scan scan.nii.gz" in done.output
    package: Package = read_package(model)[0]
    assert [(entry.form, entry.precision) for entry in package.engines] == [("onnx", "fp32"), ("onnx", "fp16")]
    done = CliRunner().invoke(app, ["predict", str(model), str(folder / "scan.nii.gz"), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert (out / "scan.nii.gz").exists()
    done = CliRunner().invoke(app, ["export", str(folder / "unet"), "--batch", "one", "-o", str(tmp_path / "m2")])
    assert done.exit_code == 2
    assert "--batch one: must be whole numbers" in done.output


def test_the_command_line_exports_and_predicts_at_int8(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    model, out = tmp_path / "model", tmp_path / "answers"
    command = ["export", folder / "unet", "--runtime", "openvino", "--precision", "int8", "-o", model]
    done = CliRunner().invoke(app, [str(word) for word in command])
    assert done.exit_code == 2
    assert "is calibrated on real scans, and the dataset of small unet is not here; give a scan" in done.output
    assert not model.exists()
    done = CliRunner().invoke(app, [str(word) for word in [*command, "--scan", folder / "scan.nii.gz"]])
    assert done.exit_code == 0, done.output
    agreement = json.loads((model / "parity.json").read_text())["agreement"]
    assert agreement["measure"] == "Dice of labels"
    assert agreement["least"] == 0.95 < agreement["value"] < 1
    assert f"Dice of labels of torch and openvino: {agreement['value']:.4f}" in done.output
    assert f"Dice of labels: {agreement['value']:.4f}." in (model / "README.md").read_text()
    package: Package = read_package(model)[0]
    assert [(entry.form, entry.precision) for entry in package.engines] == [("onnx", "fp32"), ("openvino", "int8")]
    engine = open_model(model)
    assert engine.choice is not None
    assert (engine.choice.runtime, engine.choice.precision) == ("openvino", "int8")
    done = CliRunner().invoke(app, ["predict", str(model), str(folder / "scan.nii.gz"), "-o", str(out)])
    assert done.exit_code == 0, done.output
    exact = open_model(model, precision="fp32").predictor().predict(scan()).labels
    expected = open_model(folder / "unet").predictor().predict(scan()).labels
    assert exact is not None
    assert expected is not None
    assert (exact.voxels != expected.voxels).mean() < 1e-4


@pytest.mark.parametrize(
    ("model", "words", "said"),
    [
        ("unet", ["--runtime", "openvino"], "this is no package that was exported at int8"),
        ("unet", ["--runtime", "torch"], "runtime torch: has no int8"),
        ("package", [], "this is no package that was exported at int8"),
        ("package", ["--runtime", "onnxruntime"], "this is no package that was exported at int8"),
    ],
)
def test_int8_of_what_was_not_made_for_it_is_refused(
    folder: Path, tmp_path: Path, model: str, words: list[str], said: str
) -> None:
    command = ["predict", str(folder / model), str(folder / "scan.nii.gz"), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--precision", "int8", *words])
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())


def test_int8_goes_with_openvino_alone(folder: Path, tmp_path: Path) -> None:
    options = ExportOptions(runtime="onnx", precision="int8")
    with pytest.raises(ConfigError, match="int8: goes with --runtime openvino, not with onnx"):
        export(folder / "unet", tmp_path / "model", options, progress=SilentProgress())


def test_answers_that_are_not_torchs_are_no_package(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nncf")
    monkeypatch.setitem(comparing.LEAST_AGREEMENT, "int8", 1.0)
    options = ExportOptions(runtime="openvino", precision="int8", scan=folder / "scan.nii.gz")
    with pytest.raises(DataError, match=r"the Dice of labels is 0\.9\d+ on 3 patches of the scan .* at least 1 is"):
        export(folder / "unet", tmp_path / "model", options, progress=SilentProgress())
    assert list(tmp_path.iterdir()) == []
