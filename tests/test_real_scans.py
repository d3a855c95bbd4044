"""The main job on real scans: check, ingest, train, evaluate, predict; small networks learn these few scans by heart.

What is asserted is that the road carries real data and ends where the truth lies, not how good a model is.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from support.tiny_training import train_silently
from voxray.commands.check import check
from voxray.commands.evaluate import EvaluateOptions, evaluate
from voxray.commands.ingest import ingest
from voxray.commands.predict import predict
from voxray.core.evaluation import Evaluation
from voxray.core.progress import SilentProgress
from voxray.core.recipe import Recipe
from voxray.dataset import read_dataset
from voxray.recipes import read_recipe

DATASETS = Path(__file__).parent / "datasets"
NODULE_MM = np.array([56.208, 86.343, -115.868])
"""LIDC-IDRI-0001's one whole nodule as LUNA16 has it (LPS)."""
NODULE_DIAMETER_MM = 23.35

SMALL_OPTIM = (
    "optim.optimizer='adamw'",
    "optim.schedule='cosine'",
    "optim.warmup_epochs=0",
    "optim.decay_epochs=[]",
    "optim.amp='off'",
    "optim.batch_size=2",
)
SMALL_UNET = (
    *SMALL_OPTIM,
    "network.channels=[8, 16, 32]",
    "network.strides=[2, 2]",
    "patch.size_vox=[48, 48, 32]",
    "patch.margin_vox=[16, 16, 8]",
    "optim.rate=0.005",
    "inference.window_vox=[96, 96, 64]",
    "inference.overlap=0.25",
)
SMALL_RETINANET = (
    *SMALL_OPTIM,
    "grid.spacing_mm=[1.5, 1.5, 2.5]",
    "network.backbone='resnet10'",
    "network.width=16",
    "network.channels=32",
    "network.stem_kernel=[3, 3, 3]",
    "network.stem_stride=[1, 1, 1]",
    "anchors.base_shapes_vox=[[5, 5, 4]]",
    "patch.size_vox=[48, 48, 24]",
    "patch.margin_vox=[16, 16, 8]",
    "patch.max_object_vox=[20, 20, 12]",
    "augment.rot90_p=0.0",
    "augment.rotate_p=0.0",
    "augment.zoom_p=0.0",
    "optim.rate=0.002",
    "inference.window_vox=[96, 96, 32]",
)

pytestmark = [
    pytest.mark.data,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("one_ray"),
]


@pytest.fixture(autouse=True)
def places(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXRAY_TEST_DATA", str(shared_data))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


def walk(dataset_file: Path, recipe: Recipe, folder: Path, *, fold: int | None) -> Evaluation:
    """Check, ingest, train and evaluate; the score on all cases."""
    dataset = read_dataset(dataset_file)
    assert check(dataset, progress=SilentProgress()).problems == ()
    ingested = ingest(dataset, recipe, folder / "store", progress=SilentProgress())
    assert not ingested.failed
    trained = train_silently(folder / "store", recipe, folder / "run", fold=fold, workers=0, seed=1)
    assert np.isfinite(trained.loss)
    report = evaluate(folder / "run", EvaluateOptions(which="all"), dataset=dataset_file, progress=SilentProgress())
    assert not report.failed
    return report


def test_spleen_of_a_real_abdomen(tmp_path: Path) -> None:
    overrides = [*SMALL_UNET, "grid.spacing_mm=[3, 3, 3]", "optim.epochs=8", "optim.steps_per_epoch=20"]
    recipe = read_recipe("spleen", overrides=overrides)
    report = walk(DATASETS / "ts_spleen.toml", recipe, tmp_path, fold=None)
    assert report.metrics["dice/spleen"] > 0.6


def test_tumours_of_real_thighs(tmp_path: Path) -> None:
    window = ("intensity.low_hu=-200", "intensity.high_hu=200")
    overrides = [*SMALL_UNET, *window, "grid.spacing_mm=[2, 2, 3.27]", "optim.epochs=4", "optim.steps_per_epoch=20"]
    report = walk(DATASETS / "sts_ct.toml", read_recipe("spleen", overrides=overrides), tmp_path, fold=0)
    assert len(report.cases) == 4
    assert report.metrics["dice"] > 0.05


def test_nodule_of_a_real_chest_comes_back_in_its_place(tmp_path: Path, shared_data: Path) -> None:
    overrides = [*SMALL_RETINANET, "optim.epochs=8", "optim.steps_per_epoch=20"]
    recipe = read_recipe("lung_nodule", overrides=overrides)
    report = walk(DATASETS / "luna16_style.toml", recipe, tmp_path, fold=None)
    assert report.metrics["AR@0.10"] == 1.0
    assert report.metrics["AP@0.10"] > 0.5
    series = shared_data / "lidc" / "LIDC-IDRI-0001_16sl_dicom"
    answered = predict(tmp_path / "run", [series], tmp_path / "answers", progress=SilentProgress())
    assert not answered.failed
    (path,) = list((tmp_path / "answers").glob("*.json"))
    answer = json.loads(path.read_text())
    assert answer["frame"] == "LPS"
    distances_mm = [np.linalg.norm(np.array(one["center_mm"]) - NODULE_MM) for one in answer["findings"][:5]]
    assert min(distances_mm) < NODULE_DIAMETER_MM / 2
