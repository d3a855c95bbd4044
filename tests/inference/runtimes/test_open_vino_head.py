"""The last layer of a network of many classes, off OpenVINO's graph: the same answer, from windows and from scans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from inference.small_networks import exported_onnx, furthest, small_recipe
from voxray.inference.keeper import Keeper
from voxray.inference.predictor import Predictor
from voxray.inference.runtimes import network_of
from voxray.inference.runtimes.open_vino import OpenVinoRuntime, save_ir
from voxray.inference.runtimes.open_vino_int8 import save_int8
from voxray.recipe import SegmentationMerge
from voxray.run import Run
from voxray.volume import Grid, Volume

MANY = 20
"""Foreground classes, after a layer of 8 channels."""


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = small_recipe("segresnet").network.build(small_recipe("segresnet"), MANY)
    return made.eval()


@pytest.fixture(scope="module")
def onnx(module: nn.Module) -> bytes:
    return network_of(small_recipe("segresnet"), module).onnx()


def scan(shape: tuple[int, int, int] = (40, 36, 50)) -> Volume:
    rng = np.random.default_rng(3)
    voxels = rng.normal(0, 300, shape).astype(np.int16)
    return Volume(voxels, Grid(shape, (1.5, 1.5, 1.5), (0.0, 0.0, 0.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1)))


class Whole:
    """A network that says what another one says, and nothing of its parts."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def __call__(self, images: torch.Tensor) -> Any:
        return self._network(images)


def answered(
    network: Any, *, keep: Keeper | None = None, how: SegmentationMerge | None = None, **inference: Any
) -> Any:
    """The labels of a scan on the recipe's grid."""
    recipe = small_recipe("segresnet")
    changed = {"blend": "gaussian", "overlap": 0.5, **inference}
    recipe = recipe.model_copy(update={"inference": recipe.inference.model_copy(update=changed)})
    classes = tuple(f"class_{index}" for index in range(MANY))
    run = Run(name="many", dataset="none", licence="none", classes=classes, recipe={}, voxray_version="0")
    found = Predictor(run, recipe, network, how=how).predict_grid(scan(), keep=keep)
    assert isinstance(found, Volume)
    return found.voxels


def test_logits_are_those_of_the_module(module: nn.Module, onnx: bytes, tmp_path: Path) -> None:
    images = torch.randn((2, 1, 16, 24, 16), generator=torch.Generator().manual_seed(1))
    save_ir(onnx, tmp_path / "model.xml")
    for model in (onnx, tmp_path / "model.xml"):
        engine = OpenVinoRuntime(model)
        assert engine.head is not None
        assert engine.head.weight.shape == (MANY + 1, 8)
        assert engine.features(images).features.shape == (2, 8, 16, 24, 16)
        with torch.inference_mode():
            assert furthest(engine(images), module(images)) < 1e-4


def test_a_head_that_gains_nothing_stays() -> None:
    assert OpenVinoRuntime(exported_onnx("segresnet")).head is None, "8 channels before 3 classes"
    assert OpenVinoRuntime(exported_onnx("unet")).head is None, "its last layer looks at neighbours"
    assert OpenVinoRuntime(exported_onnx("retinanet")).head is None


@pytest.mark.parametrize("accumulate", ["fp32", "fp16"])
def test_a_scan_gets_the_labels_that_blended_logits_give(onnx: bytes, accumulate: str) -> None:
    engine = OpenVinoRuntime(onnx)
    found, expected = (answered(one, accumulate=accumulate) for one in (engine, Whole(engine)))
    assert len(np.unique(expected)) > MANY // 2
    assert (found == expected).mean() > (0.9999 if accumulate == "fp32" else 0.99)


def test_thresholds_and_kept_shares_are_those_of_blended_logits(onnx: bytes) -> None:
    engine, how = OpenVinoRuntime(onnx), SegmentationMerge(thresholds={"class_7": 0.12})
    keepers = Keeper((1, 3)), Keeper((1, 3))
    found, expected = (
        answered(one, keep=keeper, how=how) for one, keeper in zip((engine, Whole(engine)), keepers, strict=True)
    )
    assert 0 < (found == 8).sum() < (answered(engine) == 8).sum(), "the class with a threshold"
    assert (found == expected).mean() > 0.999
    kept, others = (keeper._shares for keeper in keepers)
    assert kept is not None
    assert others is not None
    assert np.abs(kept.astype(int) - others.astype(int)).max() <= 1


def test_several_views_are_averaged_as_logits(onnx: bytes) -> None:
    engine = OpenVinoRuntime(onnx)
    mirrored = [answered(one, mirrors=((1,),)) for one in (engine, Whole(engine))]
    np.testing.assert_array_equal(mirrored[0], mirrored[1])
    np.testing.assert_array_equal(answered([engine, engine]), answered(Whole(engine)))


def test_a_head_stays_in_floating_point_at_int8(onnx: bytes, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    patch = torch.randn((1, 1, 16, 24, 16), generator=torch.Generator().manual_seed(1))
    save_int8(onnx, [patch], tmp_path / "int8.xml")
    engine, plain = OpenVinoRuntime(tmp_path / "int8.xml", precision="int8"), OpenVinoRuntime(onnx)
    assert engine.head is not None
    assert plain.head is not None
    torch.testing.assert_close(engine.head.weight, plain.head.weight)
    assert 1e-4 < furthest(engine(patch), plain(patch)) < 0.3
