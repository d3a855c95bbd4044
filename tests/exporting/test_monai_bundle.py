"""MONAI bundles, run as MONAI's own command runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from support.bright_scans import sphere_scan
from support.small_networks import SMALL, small_network, small_recipe
from support.small_runs import write_small_run
from voxray.cli import app
from voxray.commands.export import ExportOptions, export_bundle
from voxray.core.case import VolumeStats
from voxray.core.errors import ConfigError, DataError
from voxray.core.progress import SilentProgress
from voxray.core.run import Run
from voxray.core.volume import Volume
from voxray.exporting.monai_bundle import network_definition, write_segmentation_bundle
from voxray.inference.trained_model import open_model
from voxray.preprocess import normalise, orient, resample
from voxray.readers import read_label_map, read_volume, write_nifti

needs_monai_bundle = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("fire", "ignite")), reason="pip install 'voxray[monai-bundle]'"
)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder with one scan on an anisotropic, oblique grid."""
    folder = tmp_path / "scans"
    folder.mkdir()
    volume, _ = sphere_scan(np.eye(3), angles_deg=(4.0, 0.0, -7.0), radius_mm=12.0)
    write_nifti(volume, folder / "scan.nii.gz")
    return folder


def taught(kind: str, volume: Volume) -> nn.Module:
    """The small network after it has learnt to answer "above 0 HU" on a scan; an untrained one answers noise."""
    recipe, module = small_recipe(kind), small_network(kind)
    image = resample(orient(volume, "RAS"), recipe.grid.spacing_mm).hounsfield
    images = normalise(torch.from_numpy(image.copy())[None], VolumeStats.of(image), recipe.intensity)[:, None]
    truth = torch.from_numpy((image > 0).astype(np.int64))[None]
    step = recipe.network.stride_vox
    sides = [side // by * by for side, by in zip(image.shape, step, strict=True)]
    inside = tuple(slice(side) for side in sides)
    images, truth = images[:, :, *inside], truth[:, *inside]
    optimizer = torch.optim.Adam(module.train().parameters(), lr=2e-2)
    torch.manual_seed(0)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(images).logits, truth).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return module.eval()


def dice(first: Any, second: Any) -> float:
    """Of two masks."""
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def run_bundle(bundle: Path, scans: Path, output: Path) -> None:
    """``python -m monai.bundle run`` in the bundle's folder, as its README says."""
    command = [
        *(sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"),
        *("--dataset_dir", str(scans), "--output_dir", str(output)),
    ]
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_monai_bundle
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unet", "segresnet"])
def test_monai_runs_a_segmentation_bundle_and_agrees(kind: str, scans: Path, tmp_path: Path) -> None:
    volume = read_volume(scans / "scan.nii.gz")
    run = write_small_run(tmp_path / "run", kind, module=taught(kind, volume))
    # One window for the whole scan, as it was taught on: group norm sees no other share of bright voxels.
    options = ["--as", "monai-bundle", "--window", "40,32,40"]
    done = CliRunner().invoke(app, ["export", str(run), *options, "-o", str(tmp_path / "bundle")])
    assert done.exit_code == 0, done.output
    assert not list((tmp_path / "bundle").rglob("*.pt"))
    run_bundle(tmp_path / "bundle", scans, tmp_path / "out")
    (file,) = (tmp_path / "out").rglob("*.nii.gz")
    found = read_label_map(file)
    overrides = ['inference.restore="labels"', "inference.window_vox=[40,32,40]"]
    expected = open_model(run, overrides=overrides).predictor().predict(volume).labels
    assert expected is not None
    assert found.grid.shape == expected.grid.shape
    assert dice(expected.voxels == 1, volume.voxels > 0) > 0.75, "the network has learnt what is bright"
    # MONAI resamples on a grid of its own, half a voxel aside, and pads scans on both ends.
    assert dice(found.voxels == 1, expected.voxels == 1) > 0.9


@needs_monai_bundle
@pytest.mark.slow
def test_monai_runs_a_detection_bundle_and_gives_the_runs_answer(scans: Path, tmp_path: Path) -> None:
    run = write_small_run(tmp_path / "run", "retinanet")
    options = ExportOptions(scan=scans / "scan.nii.gz")
    export_bundle(run, tmp_path / "bundle", options, progress=SilentProgress())
    run_bundle(tmp_path / "bundle", scans, tmp_path / "out")
    answer = json.loads((tmp_path / "out" / "scan.json").read_text())
    expected = open_model(run).predictor().predict(read_volume(scans / "scan.nii.gz")).world
    assert len(answer["findings"]) == len(expected)
    boxes = [finding["box_mm"] for finding in answer["findings"]]
    np.testing.assert_allclose(np.reshape(boxes, (-1, 6)), expected.boxes, atol=0.1)


def test_a_bundle_whose_network_would_answer_otherwise_is_refused(tmp_path: Path) -> None:
    recipe, module = small_recipe("unet"), small_network("unet")
    other = recipe.model_copy(update={"network": recipe.network.model_copy(update={"strides": (2, (2, 2, 1))})})
    run = Run(name="a", dataset="b", licence="c", classes=("first", "second"), recipe={}, voxray_version="0")
    (tmp_path / "bundle").mkdir()
    with pytest.raises(DataError, match="MONAI's UNet differs from the run's network"):
        write_segmentation_bundle(tmp_path / "bundle", run, other, module)


def test_networks_that_monai_cannot_build_are_refused() -> None:
    with pytest.raises(ConfigError, match="MONAI has no network of kind 'retinanet'"):
        network_definition(small_recipe("retinanet").network, 3)
    for kind in set(SMALL) - {"retinanet"}:
        assert network_definition(small_recipe(kind).network, 3)["out_channels"] == 3


def test_another_form_is_refused(tmp_path: Path) -> None:
    run = write_small_run(tmp_path / "run", "unet")
    done = CliRunner().invoke(app, ["export", str(run), "--as", "bundle", "-o", str(tmp_path / "bundle")])
    assert done.exit_code == 2
    assert "allowed are package, monai-bundle" in done.output
    assert not (tmp_path / "bundle").exists()
