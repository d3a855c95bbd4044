"""Graphs with Winograd's convolutions answer as the networks do, and hold what they should."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from support.many_classes import many_classes_onnx
from support.small_networks import SMALL, exported, exported_onnx, furthest, patches, small_recipe
from voxray.core.volume import Shape
from voxray.kernels.winograd import can_compile
from voxray.recipes import read_recipe
from voxray.runtimes import network_of
from voxray.runtimes.openvino.engine import OpenVinoRuntime
from voxray.runtimes.openvino.graph import quicken

openvino = pytest.importorskip("openvino")
opset = pytest.importorskip("openvino.opset13")
pytestmark = pytest.mark.skipif(not can_compile(), reason="no LLVM, or no vectors that are long enough")


def kinds(model: Any) -> collections.Counter[str]:
    return collections.Counter(node.get_type_name() for node in model.get_ordered_ops())


@pytest.mark.parametrize("kind", SMALL)
def test_networks_answer_alike_in_any_batch_and_window(kind: str) -> None:
    module, window = exported(kind).module, small_recipe(kind).inference.window_vox
    assert module is not None
    runtime = OpenVinoRuntime(exported_onnx(kind), usual_vox=window)
    for images in (patches(kind, 2), patches(kind, 1), patches(kind, 3, factor=2), patches(kind, 1)):
        with torch.inference_mode():
            assert furthest(runtime(images), module(images)) < 1e-4


@pytest.mark.parametrize(
    ("name", "replaced", "norms"),
    # UNet: of three levels one down and one up, and the last one's phases; below are maps of 6 x 6 x 6.
    # SegResNet: two in each of 9 + 3 blocks, each with its norm; and the norm before the last layer.
    # RetinaNet: of a ResNet's bottlenecks 3 and 3, of its pyramid 2, of two heads on three levels 4 each with a norm.
    [("spleen", 3 + 3 + 1, 0), ("whole_body", 24, 25), ("lung_nodule", 3 + 3 + 2 + 24, 24)],
)
def test_what_the_published_networks_are_made_of(name: str, replaced: int, norms: int) -> None:
    recipe = read_recipe(name)
    network = recipe.network.build(recipe, 1).eval()
    model = quicken(openvino.Core().read_model(network_of(recipe, network).onnx()), recipe.inference.window_vox)
    found = kinds(model)
    assert found["WinogradConvolution"] == replaced
    assert found["NormAffine"] == norms


def test_features_before_a_head_lie_as_they_are_wanted() -> None:
    """Nothing of a SegResNet is turned over, but for what OpenVINO's own convolutions read and write."""
    runtime, plain = (
        OpenVinoRuntime(many_classes_onnx(), usual_vox=(16, 24, 16)),
        OpenVinoRuntime(many_classes_onnx()),
    )
    images = torch.randn((2, 1, 16, 24, 16), generator=torch.Generator().manual_seed(0))
    assert runtime.head is not None
    torch.testing.assert_close(runtime.features(images).features, plain.features(images).features, rtol=0, atol=2e-5)


def test_answers_stay_as_they_are_when_the_next_come() -> None:
    runtime = OpenVinoRuntime(exported_onnx("segresnet"), usual_vox=small_recipe("segresnet").inference.window_vox)
    first = runtime(patches("segresnet", 1))
    kept = first.logits.clone()  # type: ignore[union-attr]
    runtime(patches("segresnet", 1) + 1)
    assert torch.equal(first.logits, kept)  # type: ignore[union-attr]


def test_shapes_that_are_no_longer_used_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxray.runtimes.openvino.engine._VOXELS_KEPT", 16 * 16 * (16 + 24 + 40))
    runtime = OpenVinoRuntime(exported_onnx("segresnet"), usual_vox=small_recipe("segresnet").inference.window_vox)
    for side in (16, 24, 32, 40, 16):
        runtime(torch.zeros(1, 1, side, 16, 16))
    assert list(runtime._compiled) == [(40, 16, 16), (16, 16, 16)]
    runtime(torch.zeros(1, 1, 96, 16, 16))
    assert list(runtime._compiled) == [(96, 16, 16)], "one is there however large it is"


def test_half_precision_and_whole_numbers_keep_openvinos_own() -> None:
    window = small_recipe("segresnet").inference.window_vox
    assert not OpenVinoRuntime(exported_onnx("segresnet"), precision="bf16", usual_vox=window)._wants_shapes
    assert OpenVinoRuntime(exported_onnx("segresnet"), usual_vox=window)._wants_shapes
    assert not OpenVinoRuntime(exported_onnx("segresnet"))._wants_shapes


def test_without_llvm_openvino_has_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voxray.runtimes.openvino.graph.can_compile", lambda: False)
    runtime = OpenVinoRuntime(exported_onnx("segresnet"), usual_vox=small_recipe("segresnet").inference.window_vox)
    assert not runtime._wants_shapes
    with torch.inference_mode():
        assert furthest(runtime(patches("segresnet")), exported("segresnet").module(patches("segresnet"))) < 2e-5  # type: ignore[misc]


class Model:
    """A graph that is written by hand, of feature maps of 16 channels."""

    SIDES: Shape = (8, 12, 8)

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.given = opset.parameter([-1, 1, -1, -1, -1], np.float32)
        self.start = self.conv(self.given, inputs=1)

    def conv(self, value: Any, *, inputs: int = 16, outputs: int = 16, side: int = 3) -> Any:
        weight = self.rng.normal(size=(outputs, inputs, side, side, side)).astype(np.float32) / side**1.5
        pads = [side // 2] * 3
        return opset.convolution(value, opset.constant(weight), [1] * 3, pads, pads, [1] * 3)

    def bias(self, value: Any) -> Any:
        return opset.add(value, opset.constant(self.rng.normal(size=(1, 16, 1, 1, 1)).astype(np.float32)))

    def norm(self, value: Any) -> Any:
        weight, bias = self.rng.normal(size=(2, 16)).astype(np.float32)
        return opset.group_normalization(value, opset.constant(weight), opset.constant(bias), 4, 1e-3)

    def checked(self, *values: Any) -> collections.Counter[str]:
        """What is in the graph that is made of one with these results; its answers must be the plain one's."""
        plain = openvino.Model([opset.result(value) for value in values], [self.given])
        made = quicken(plain.clone(), self.SIDES)
        found = kinds(made)
        made.reshape([2, 1, *self.SIDES])
        images = self.rng.normal(size=(2, 1, *self.SIDES)).astype(np.float32)
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        expected, answers = (openvino.Core().compile_model(one, "CPU", options)([images]) for one in (plain, made))
        for number in range(len(values)):
            most = float(np.abs(expected[number]).max())
            np.testing.assert_allclose(answers[number], expected[number], rtol=0, atol=3e-5 * most)
        return found


def test_two_that_read_the_same_stay_two() -> None:
    """OpenVINO joins operations of one kind that have the same inputs, unless they say that they differ."""
    model = Model()
    first, second = model.conv(model.start), model.conv(model.start)
    norms = [model.conv(opset.relu(model.norm(model.start))) for _ in range(2)]
    found = model.checked(opset.subtract(first, second), opset.subtract(*norms))
    assert (found["WinogradConvolution"], found["NormAffine"]) == (4, 2)


@pytest.mark.parametrize(
    ("make", "convolutions", "others"),
    [
        (lambda m: m.bias(m.conv(m.start)), 1, {"Add": 0, "Transpose": 2}),
        (lambda m: opset.relu(m.bias(m.conv(m.start))), 1, {"Relu": 0, "Add": 0}),
        (lambda m: opset.prelu(m.conv(m.start), opset.constant(np.array([0.2], np.float32))), 1, {"PRelu": 0}),
        (lambda m: opset.add(m.conv(m.start), m.start), 1, {"Add": 0}),
        (lambda m: opset.add(m.start, m.conv(m.start)), 1, {"Add": 0}),
        (lambda m: opset.add(m.conv(m.start), m.conv(m.start)), 2, {"Add": 0}),
        (lambda m: opset.add(opset.relu(m.conv(m.start)), m.bias(m.conv(m.start))), 2, {"Relu": 0, "Add": 0}),
        (lambda m: m.conv(opset.relu(m.norm(m.conv(m.start)))), 2, {"NormAffine": 1, "GroupNormalization": 0}),
        (lambda m: m.norm(m.conv(m.start)), 1, {"NormAffine": 1}),
        (lambda m: m.norm(m.start), 0, {"NormAffine": 0}),
        (lambda m: opset.concat([m.conv(m.start), m.start], 1), 1, {"Concat": 1, "Transpose": 2}),
        (lambda m: opset.add(m.conv(m.start), m.conv(m.start, inputs=16, outputs=1)), 1, {}),
        (lambda m: m.conv(m.start, side=1), 0, {}),
        (lambda m: m.conv(m.conv(m.start, outputs=3), inputs=3), 0, {}),
    ],
)
def test_what_belongs_to_a_convolution_is_done_with_it(
    make: Callable[[Model], Any], convolutions: int, others: dict[str, int]
) -> None:
    model = Model()
    found = model.checked(make(model))
    assert found["WinogradConvolution"] == convolutions
    assert {name: found[name] for name in others} == others


def test_what_others_read_too_is_there_for_them() -> None:
    """A bias, a norm or a ReLU that has a second reader is not swallowed."""
    model = Model()
    summed = model.bias(model.conv(model.start))
    normed = model.norm(summed)
    rectified = opset.relu(normed)
    last = opset.add(model.conv(rectified), rectified)
    found = model.checked(summed, normed, rectified, last, opset.add(last, summed))
    assert found["WinogradConvolution"] == 2


def test_small_maps_are_left_to_openvino() -> None:
    model = Model()
    model.SIDES = (4, 4, 4)
    assert model.checked(model.conv(model.start))["WinogradConvolution"] == 0
