"""The rewritten graph says the same as the one that it was made of, or something closer to the truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from voxray.recipes import read_recipe
from voxray.runtimes import network_of
from voxray.runtimes.openvino.graph import quicken
from voxray.runtimes.openvino.group_norm import group_means, spread_group_norms
from voxray.runtimes.openvino.upsampling import phases_kernel, subpixel_kernel


def test_a_subpixel_convolution_is_the_transposed_one() -> None:
    torch.manual_seed(0)
    up = torch.nn.ConvTranspose3d(5, 2, 3, stride=2, padding=1, output_padding=1, bias=False)
    images = torch.randn(2, 5, 4, 6, 5)
    kernel = torch.from_numpy(subpixel_kernel(up.weight.detach().numpy()))
    with torch.inference_mode():
        expected = up(images)
        phases = torch.nn.functional.conv3d(torch.nn.functional.pad(images, [0, 1] * 3), kernel)
    found = phases.reshape(2, 2, 2, 2, 2, 4, 6, 5).permute(0, 4, 5, 1, 6, 2, 7, 3).reshape(expected.shape)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_convolution_of_phases_is_that_of_the_voxels() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Conv3d(2, 3, 3, padding=1, bias=False)
    images = torch.randn(2, 2, 8, 4, 6)
    kernel = torch.from_numpy(phases_kernel(plain.weight.detach().numpy()))
    phases = images.reshape(2, 2, 4, 2, 2, 2, 3, 2).permute(0, 3, 5, 7, 1, 2, 4, 6).reshape(2, 16, 4, 2, 3)
    with torch.inference_mode():
        expected = plain(images)
        found = torch.nn.functional.conv3d(phases, kernel, padding=1)
    placed = found.reshape(2, 2, 2, 2, 3, 4, 2, 3).permute(0, 4, 5, 1, 6, 2, 7, 3).reshape(expected.shape)
    torch.testing.assert_close(placed, expected, rtol=0, atol=1e-6)


def test_a_unet_loses_its_narrow_upsampling_and_keeps_its_answer() -> None:
    openvino = pytest.importorskip("openvino")
    recipe = read_recipe("spleen")
    torch.manual_seed(0)
    onnx = network_of(recipe, recipe.network.build(recipe, 1).eval()).onnx()
    core = openvino.Core()
    plain, rewritten = core.read_model(onnx), quicken(core.read_model(onnx))
    kinds = [[node.get_type_name() for node in model.get_ordered_ops()] for model in (plain, rewritten)]
    assert [names.count("ConvolutionBackpropData") for names in kinds] == [4, 3]
    assert [names.count("DepthToSpace") for names in kinds] == [0, 1]
    images = np.random.default_rng(0).normal(size=(1, 1, 32, 48, 32)).astype(np.float32)
    fp32 = {"INFERENCE_PRECISION_HINT": "f32"}
    expected, found = (core.compile_model(model, "CPU", fp32)([images])[0] for model in (plain, rewritten))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max() + 1e-6)


def test_a_channel_gets_the_mean_of_its_group() -> None:
    channels = torch.arange(6.0).reshape(1, 6, 1, 1, 1)
    found = torch.nn.functional.conv3d(channels, torch.from_numpy(group_means(6, 2)))
    torch.testing.assert_close(found.ravel(), torch.tensor([1.0, 1, 1, 4, 4, 4]))


@pytest.mark.parametrize(("channels", "groups", "side"), [(8, 8, 9), (12, 3, 10), (16, 1, 11), (8, 2, 64)])
def test_group_norms_become_sums_and_are_no_worse(channels: int, groups: int, side: int) -> None:
    openvino = pytest.importorskip("openvino")
    opset = pytest.importorskip("openvino.opset12")
    rng = np.random.default_rng(0)
    weights, biases = rng.uniform(-2, 2, (2, channels)).astype(np.float32)
    # A mean of far from zero, from which squares alone would give no variance.
    images = rng.normal(100, 1, (2, channels, side, side + 3, side - 2)).astype(np.float32)
    core, found = openvino.Core(), {}
    for name in ("plain", "sums"):
        given = opset.parameter([-1, channels, -1, -1, -1], np.float32)
        normed = opset.group_normalization(given, opset.constant(weights), opset.constant(biases), groups, 1e-3)
        model = openvino.Model([opset.result(normed)], [given])
        model = quicken(model) if name == "sums" else model
        kinds = {node.get_type_name() for node in model.get_ordered_ops()}
        assert ("GroupNormalization" in kinds, "ReduceL2" in kinds) == (name == "plain", name == "sums")
        found[name] = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([images])[0]
    exact = torch.nn.functional.group_norm(
        torch.from_numpy(images).double(),
        groups,
        torch.from_numpy(weights).double(),
        torch.from_numpy(biases).double(),
        eps=1e-3,
    )
    furthest = {name: float(np.abs(values - exact.numpy()).max()) for name, values in found.items()}
    assert furthest["sums"] < 1e-4, furthest


@pytest.mark.parametrize("mean", [0.0, 5.0])
def test_norms_in_one_pass_are_near_enough_for_whole_numbers(mean: float) -> None:
    openvino = pytest.importorskip("openvino")
    opset = pytest.importorskip("openvino.opset12")
    rng = np.random.default_rng(0)
    weights, biases = rng.uniform(-2, 2, (2, 8)).astype(np.float32)
    images = rng.normal(mean, 1, (2, 8, 40, 24, 32)).astype(np.float32)
    images[:, 3] = mean + 0.25  # a channel without variance
    given = opset.parameter([-1, 8, -1, -1, -1], np.float32)
    normed = opset.group_normalization(given, opset.constant(weights), opset.constant(biases), 8, 1e-3)
    model = spread_group_norms(openvino.Model([opset.result(normed)], [given]), once=True)
    assert [node.get_type_name() for node in model.get_ordered_ops()].count("Convolution") == 2, "two means"
    found = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([images])[0]
    tensors = (torch.from_numpy(array).double() for array in (images, weights, biases))
    values, scale, shift = tensors
    exact = torch.nn.functional.group_norm(values, 8, scale, shift, 1e-3)
    torch.testing.assert_close(torch.from_numpy(found).double(), exact, rtol=0, atol=1e-3)
