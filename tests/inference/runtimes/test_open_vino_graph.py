"""The rewritten graph says the same as the one that it was made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from voxray.inference.runtimes import network_of
from voxray.inference.runtimes.open_vino_graph import subpixel_kernel, widen_upsampling
from voxray.recipes import read_recipe


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


def test_a_unet_loses_its_narrow_upsampling_and_keeps_its_answer() -> None:
    openvino = pytest.importorskip("openvino")
    recipe = read_recipe("spleen")
    torch.manual_seed(0)
    onnx = network_of(recipe, recipe.network.build(recipe, 1).eval()).onnx()
    core = openvino.Core()
    plain, rewritten = core.read_model(onnx), widen_upsampling(core.read_model(onnx))
    kinds = [[node.get_type_name() for node in model.get_ordered_ops()] for model in (plain, rewritten)]
    assert [names.count("ConvolutionBackpropData") for names in kinds] == [4, 3]
    assert [names.count("DepthToSpace") for names in kinds] == [0, 1]
    images = np.random.default_rng(0).normal(size=(1, 1, 32, 48, 32)).astype(np.float32)
    fp32 = {"INFERENCE_PRECISION_HINT": "f32"}
    expected, found = (core.compile_model(model, "CPU", fp32)([images])[0] for model in (plain, rewritten))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max() + 1e-6)
