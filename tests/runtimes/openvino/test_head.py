"""The last layer of a network of many classes, off OpenVINO's graph: the same answer, from windows and from scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from support.many_classes import MANY, Whole, answered, many_classes, many_classes_onnx, some_patches
from support.small_networks import exported_onnx, furthest
from voxray.core.recipe import SegmentationMerge
from voxray.runtimes.openvino.engine import OpenVinoRuntime, save_ir
from voxray.runtimes.openvino.int8 import save_int8
from voxray.tasks.recorder import Recorder


def test_logits_are_those_of_the_module(tmp_path: Path) -> None:
    images, module = some_patches(), many_classes().module
    assert module is not None
    save_ir(many_classes_onnx(), tmp_path / "model.xml")
    for model in (many_classes_onnx(), tmp_path / "model.xml"):
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
def test_a_scan_gets_the_labels_that_blended_logits_give(accumulate: str) -> None:
    engine = OpenVinoRuntime(many_classes_onnx())
    found, expected = (answered(one, accumulate=accumulate) for one in (engine, Whole(engine)))
    assert len(np.unique(expected)) > MANY // 2
    assert (found == expected).mean() > (0.9999 if accumulate == "fp32" else 0.99)


def test_thresholds_and_kept_shares_are_those_of_blended_logits() -> None:
    engine, how = OpenVinoRuntime(many_classes_onnx()), SegmentationMerge(thresholds={"class_7": 0.12})
    recorders = Recorder((1, 3)), Recorder((1, 3))
    found, expected = (
        answered(one, recorder=recorder, how=how)
        for one, recorder in zip((engine, Whole(engine)), recorders, strict=True)
    )
    assert 0 < (found == 8).sum() < (answered(engine) == 8).sum(), "the class with a threshold"
    assert (found == expected).mean() > 0.999
    kept, others = (recorder.shares for recorder in recorders)
    assert kept is not None
    assert others is not None
    assert np.abs(kept.astype(int) - others.astype(int)).max() <= 1


def test_several_views_are_averaged_as_logits() -> None:
    engine = OpenVinoRuntime(many_classes_onnx())
    mirrored = [answered(one, mirrors=((1,),)) for one in (engine, Whole(engine))]
    np.testing.assert_array_equal(mirrored[0], mirrored[1])
    np.testing.assert_array_equal(answered([engine, engine]), answered(Whole(engine)))


def test_a_head_stays_in_floating_point_at_int8(tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    patch = some_patches()[:1]
    save_int8(many_classes_onnx(), [patch], tmp_path / "int8.xml")
    engine, plain = OpenVinoRuntime(tmp_path / "int8.xml", precision="int8"), OpenVinoRuntime(many_classes_onnx())
    assert engine.head is not None
    assert plain.head is not None
    torch.testing.assert_close(engine.head.weight, plain.head.weight)
    assert 1e-4 < furthest(engine(patch), plain(patch)) < 0.3
