"""Consolidate: several runs as one package that answers with all of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomlkit

from support.bright_runs import Heard, register, write_run, write_spheres
from support.bright_scans import sphere_scan
from support.small_networks import small_network
from support.small_runs import retold, write_small_run
from voxray.commands.consolidate import ConsolidateReport, consolidate
from voxray.commands.evaluate import EvaluateOptions, evaluate
from voxray.commands.export import ExportOptions, export, export_bundle
from voxray.commands.predict import AnswerOptions, predict
from voxray.core.config import to_toml
from voxray.core.errors import ConfigError, DataError
from voxray.core.progress import SilentProgress
from voxray.core.volume import Volume
from voxray.inference.package import read_package, sha256_of
from voxray.inference.predictor import Predictor
from voxray.inference.trained_model import open_model
from voxray.training.checkpoint import load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of one recipe with different weights, a detector, and a package of the three."""
    root = tmp_path_factory.mktemp("consolidate")
    for seed in range(3):
        write_small_run(root / f"run_{seed}", "unet", module=small_network("unet", seed))
    write_small_run(root / "retinanet", "retinanet")
    made([root / f"run_{seed}" for seed in range(3)], root / "model")
    return root


def made(runs: list[Path], output: Path, **options: Any) -> ConsolidateReport:
    return consolidate(runs, output, progress=SilentProgress(), **options)


def scan() -> Volume:
    volume, _ = sphere_scan(np.eye(3), angles_deg=(4.0, 0.0, -7.0), radius_mm=12.0)
    return volume


def test_a_package_of_several_answers_as_their_networks_together(folder: Path) -> None:
    loaded = [load_model(folder / f"run_{seed}") for seed in range(3)]
    run, recipe, _ = loaded[0]
    together = Predictor(run, recipe, [module for _, _, module in loaded]).predict(scan()).labels
    alone = Predictor(run, recipe, loaded[0][2]).predict(scan()).labels
    found = open_model(folder / "model").predictor().predict(scan()).labels
    assert together is not None
    assert alone is not None
    assert found is not None
    np.testing.assert_array_equal(found.voxels, together.voxels)
    assert (found.voxels != alone.voxels).mean() > 0.001
    engine = open_model(folder / "model", runtime="auto")
    assert engine.choice is not None
    assert engine.choice.runtime == "openvino"
    converted = engine.predictor().predict(scan()).labels
    assert converted is not None
    assert (converted.voxels != together.voxels).mean() < 1e-3


def test_it_names_every_run(folder: Path) -> None:
    package, _ = read_package(folder / "model", task="segmentation")
    assert (package.schema_version, package.runtime, package.engines) == (2, "torch", ())
    assert package.ensemble is not None
    members = package.ensemble.members
    stamps = [open_model(folder / f"run_{seed}").stamp for seed in range(3)]
    assert [member.provenance.weights_sha256 for member in members] == [stamp.sha256 for stamp in stamps]
    assert [member.weights for member in members] == [f"weights-{number}.safetensors" for number in (1, 2, 3)]
    assert {member.checkpoint for member in members} == {"epoch_0000"}
    assert {member.provenance.run for member in members} == {"small unet"}
    assert package.provenance.weights_sha256 not in [stamp.sha256 for stamp in stamps]
    assert (package.provenance.run, package.provenance.licence) == ("model", "CC0-1.0")
    assert {path.name for path in (folder / "model").iterdir()} == {*package.files, "package.json"}
    card = (folder / "model" / "README.md").read_text()
    assert "a 3D CT segmentation model of 3 networks that answer together".lower() in card.lower()
    assert all(stamp.sha256[:16] in card for stamp in stamps)


def test_each_file_of_weights_is_checked(folder: Path, tmp_path: Path) -> None:
    made([folder / "run_0", folder / "run_1"], tmp_path / "model")
    path = tmp_path / "model" / "weights-2.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(DataError, match=r"package\.hash.*weights-2"):
        read_package(tmp_path / "model")
    path.write_bytes(content)
    manifest = tmp_path / "model" / "package.json"
    data = json.loads(manifest.read_text())
    assert data["files"]["weights-2.safetensors"]["sha256"] == sha256_of(path)
    del data["files"]["weights-2.safetensors"]
    manifest.write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"package\.unlisted.*weights-2"):
        read_package(tmp_path / "model")


def test_the_setting_that_a_sweep_chose_is_in_the_recipe(folder: Path, tmp_path: Path) -> None:
    recipe = load_model(folder / "run_0")[1]
    changed = recipe.model_copy(update={"merge": recipe.merge.model_copy(update={"min_component_mm3": 250.0})})
    setting = {"merge.min_component_mm3": 250.0}
    files = {
        "sweep.json": json.dumps({"schema": "voxray-sweep/1", "space": "x", "setting": setting, "trials": 7}),
        "best.toml": to_toml(changed),
        "by_hand.toml": "[merge]\nmin_component_mm3 = 250.0\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        report = made([folder / "run_0", folder / "run_1"], tmp_path / f"from_{name}", setting=tmp_path / name)
        assert report.setting == setting
        package, answering = read_package(tmp_path / f"from_{name}")
        assert answering.merge == package.merge == changed.merge
        assert package.ensemble is not None
        assert package.ensemble.setting == setting
    assert "| `merge.min_component_mm3` | 250.0 |" in (tmp_path / "from_sweep.json" / "README.md").read_text()
    assert made([folder / "run_0"], tmp_path / "of_folder", setting=tmp_path).setting == setting
    package, answering = read_package(folder / "model")
    assert answering.merge == recipe.merge
    assert package.ensemble is not None
    assert package.ensemble.setting == {}


def test_a_score_floor_that_no_candidate_comes_under_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("[merge]\nscore_floor = 0.001\n")
    with pytest.raises(ConfigError, match=r"score_floor = 0.001: scores below inference.candidate_floor \(0.02\)"):
        made([folder / "retinanet"], tmp_path / "model", setting=tmp_path / "s.toml")
    (tmp_path / "s.toml").write_text("[merge]\nscore_floor = 0.001\n[inference]\ncandidate_floor = 0.001\n")
    made([folder / "retinanet"], tmp_path / "model", setting=tmp_path / "s.toml")
    assert read_package(tmp_path / "model", task="detection")[0].merge.score_floor == 0.001  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"schema": "voxray-plan/1", "setting": {}}, "schema must be voxray-sweep/1, got 'voxray-plan/1'"),
        ({"schema": "voxray-sweep/1"}, "has no setting; give the sweep.json"),
        ({"schema": "voxray-sweep/1", "setting": {"optim.rate": 1.0}}, r"optim\.rate: cannot be set once"),
        ({"schema": "voxray-sweep/1", "setting": {"merge": 1}}, "merge: cannot be set once"),
        ({"merge": {"min_component": 3.0}}, r"merge\.min_component: no such field; did you mean 'min_component_mm3'"),
        ({"merge": {"min_component_mm3": -3.0}}, "must be greater than or equal to 0"),
        ({"inference": {"overlap": {"x": 1}}}, "'overlap' is a value, not a group"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(
    folder: Path, tmp_path: Path, content: dict[str, Any], sentence: str
) -> None:
    (tmp_path / "s.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=sentence):
        made([folder / "run_0"], tmp_path / "model", setting=tmp_path / "s.json")
    assert not (tmp_path / "model").exists()


def test_a_recipe_of_other_networks_is_no_setting(folder: Path, tmp_path: Path) -> None:
    other = tomlkit.parse(to_toml(load_model(folder / "run_0")[1])).unwrap()
    other["grid"]["spacing_mm"] = [1.0, 1.0, 1.0]
    (tmp_path / "best.toml").write_text(tomlkit.dumps(other))
    with pytest.raises(ConfigError, match=r"grid\.spacing_mm: cannot be set once networks are trained"):
        made([folder / "run_0"], tmp_path / "model", setting=tmp_path / "best.toml")


def test_runs_that_cannot_answer_together_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="retinanet: its recipe has another grid than that of"):
        made([folder / "run_0", folder / "retinanet"], tmp_path / "model")
    with pytest.raises(ConfigError, match="run_0: is given twice"):
        made([folder / "run_0", folder / "run_0"], tmp_path / "model")
    with pytest.raises(ConfigError, match="no run here"):
        made([folder / "run_0", tmp_path / "nothing"], tmp_path / "model")
    with pytest.raises(ConfigError, match="model: is there already"):
        made([folder / "run_0"], folder / "model")
    assert list(tmp_path.iterdir()) == []


def test_runs_that_were_trained_on_other_data_are_named(folder: Path, tmp_path: Path) -> None:
    runs = []
    for number, digest in enumerate(("aa", "aa", "bb")):
        run = Path(shutil.copytree(folder / f"run_{number}", tmp_path / f"run_{number}"))
        version = {"digest": digest, "sides": "s", "store": "store", "num_cases": 3 + number}
        retold(run, data=[version])
        runs.append(run)
    heard = Heard()
    consolidate(runs, tmp_path / "model", progress=heard)
    (line,) = heard.lines
    assert line.startswith(f"{runs[2]}: was trained on other data (5 cases) than {runs[0]} (3 cases)")


def test_an_ensemble_predicts_and_is_evaluated_as_any_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    register(monkeypatch)
    dataset = write_spheres(tmp_path / "data")
    for fold in range(2):
        write_run(tmp_path / f"fold_{fold}", "detection", fold=fold, threshold=0.05 + 0.01 * fold)
    made([tmp_path / f"fold_{fold}" for fold in range(2)], tmp_path / "model")
    package, _ = read_package(tmp_path / "model")
    assert package.ensemble is not None
    assert [member.fold for member in package.ensemble.members] == [0, 1]
    report = predict(
        tmp_path / "model",
        [dataset.parent / "images"],
        tmp_path / "out",
        AnswerOptions(device="cpu"),
        progress=SilentProgress(),
    )
    assert (len(report.done), report.failed) == (3, {})
    answer = json.loads((tmp_path / "out" / "s0.json").read_text())
    assert answer["model"]["sha256"] == package.provenance.weights_sha256
    assert len(answer["findings"]) == 1
    score = evaluate(
        tmp_path / "model",
        EvaluateOptions(which="all"),
        dataset=dataset,
        output=tmp_path / "e",
        progress=SilentProgress(),
    )
    assert score.metrics["mAP"] == 1.0


@pytest.mark.parametrize(("form", "name"), [("openvino", "model-{}.xml"), ("onnx", "model-{}.onnx")])
def test_an_exported_ensemble_answers_with_all_its_engines(
    folder: Path, tmp_path: Path, form: str, name: str
) -> None:
    options = ExportOptions(runtime=form)
    report = export(folder / "model", tmp_path / "engines", options, progress=SilentProgress())
    package, _ = read_package(tmp_path / "engines")
    source, _ = read_package(folder / "model")
    assert package.ensemble == source.ensemble
    assert package.provenance == source.provenance
    assert {entry.file for entry in package.engines if entry.form == form} == {name.format(i) for i in (1, 2, 3)}
    assert [entry.member for entry in package.engines if entry.form == "onnx"] == [1, 2, 3]
    assert all(row.is_within for row in report.parity.outputs)
    engine = open_model(tmp_path / "engines")
    assert engine.choice is not None
    assert engine.choice.runtime == package.runtime == ("openvino" if form == "openvino" else "onnxruntime")
    assert [network.module for network in engine.networks] == [None, None, None]
    found = engine.predictor().predict(scan()).labels
    together = open_model(folder / "model").predictor().predict(scan()).labels
    assert found is not None
    assert together is not None
    assert (found.voxels != together.voxels).mean() < 1e-3
    by_torch = open_model(tmp_path / "engines", runtime="torch").predictor().predict(scan()).labels
    assert by_torch is not None
    np.testing.assert_array_equal(by_torch.voxels, together.voxels)
    card = (tmp_path / "engines" / "README.md").read_text()
    assert "model of 3 networks" in card
    assert f"`{name.format(3)}`" in card


def test_an_exported_package_can_be_exported_again(folder: Path, tmp_path: Path) -> None:
    silent = SilentProgress()
    export(folder / "run_0", tmp_path / "onnx", progress=silent)
    export(tmp_path / "onnx", tmp_path / "openvino", ExportOptions(runtime="openvino"), progress=silent)
    first, second = (read_package(tmp_path / name)[0] for name in ("onnx", "openvino"))
    assert second.runtime == "openvino"
    assert second.provenance == first.provenance
    assert "member" not in (tmp_path / "openvino" / "package.json").read_text()


def test_an_ensemble_is_no_monai_bundle(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 3 networks, and a MONAI bundle holds one"):
        export_bundle(folder / "model", tmp_path / "bundle", progress=SilentProgress())
    assert not (tmp_path / "bundle").exists()
