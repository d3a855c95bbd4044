"""Every verb in a folder of any name: all lies in it, and nothing elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from support.balls import write_balls
from support.tiny_training import segmentation_recipe
from voxray import cli
from voxray.core.config import to_toml
from voxray.models import MODELS
from voxray.training.checkpoint import load_model

NAME = "a?b#c%25d%3F 100% é'x\" & [y]*+;z:=@{1}"
"""What URLs, patterns, shells and tables of options each take for something else."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's use of SQLAlchemy
def test_every_verb_stays_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MODELS
    for variable in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    here, folder = tmp_path / "here", tmp_path / NAME
    here.mkdir()
    folder.mkdir()
    monkeypatch.chdir(here)

    def run(*arguments: object) -> str:
        done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, (arguments, done.output, done.stderr)
        return done.output

    dataset = write_balls(folder / "data")
    scan = folder / "data" / "images" / "case_0.nii.gz"
    recipe = segmentation_recipe(
        "optim.epochs=1", "optim.steps_per_epoch=2", 'merge={kind="segmentation", threshold=0.5}'
    )
    (folder / "recipe.toml").write_text(to_toml(recipe))
    (folder / "space.toml").write_text('[fields]\n"merge.threshold" = { low = 0.1, high = 0.9 }\n')
    run("info", scan, "--pixels")
    run("check", dataset)
    run("ingest", dataset, folder / "recipe.toml", "-o", folder / "store")
    run("train", folder / "store", folder / "recipe.toml", "-o", folder / "run", "--workers", 0)
    run("evaluate", folder / "run")
    run("sweep", folder / "run", folder / "space.toml", "--trials", 3, "--device", "cpu", "--same-cases")
    run("report", folder / "run")
    run("predict", folder / "run", scan, "-o", folder / "answers", "--save", "preview", "--device", "cpu")
    run("evaluate", folder / "answers", dataset, "--cases", "answered", "-o", folder / "score")
    run("export", folder / "run", "-o", folder / "package", "--scan", scan)
    run("predict", (folder / "package").as_uri(), scan, "-o", folder / "again", "--device", "cpu")
    torch.save(load_model(folder / "run")[2].state_dict(), folder / "model.pt")
    run("import-weights", folder / "model.pt", folder / "recipe.toml", "-o", folder / "imported", "--classes", "ball")
    run("consolidate", folder / "run", "-o", folder / "ensemble")

    made = {path.name for path in folder.iterdir()} - {"mlflow.db-wal", "mlflow.db-shm"}
    assert made == {
        *("data", "recipe.toml", "space.toml", "model.pt", "mlflow.db", "mlartifacts"),
        *("store", "run", "answers", "score", "package", "again", "imported", "ensemble"),
    }
    assert (folder / "answers" / "case_0.nii.gz").is_file()
    assert (folder / "again" / "case_0.nii.gz").is_file()
    assert (folder / "run" / "evaluation" / "evaluation.json").is_file()
    assert (folder / "run" / "sweeps").is_dir()
    assert list((folder / "mlartifacts").glob("*/artifacts/recipe.toml"))
    assert {path.name for path in tmp_path.iterdir()} == {"here", NAME}
    assert list(here.iterdir()) == []
